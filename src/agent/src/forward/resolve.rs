//! Names of the environment: /etc/hosts and the servers of /etc/resolv.conf,
//! asked directly, because a static binary has no NSS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use hickory_resolver::TokioResolver;

/// When the files were last written.
type Stamp = [Option<SystemTime>; 2];

/// Resolves names; built again when its files change.
#[derive(Debug, Default)]
pub struct Resolver(Mutex<Option<(Stamp, TokioResolver)>>);

fn stamp() -> Stamp {
    ["/etc/hosts", "/etc/resolv.conf"].map(|path| {
        std::fs::metadata(path)
            .and_then(|meta| meta.modified())
            .ok()
    })
}

impl Resolver {
    /// The addresses of `host`, in the order to try them.
    ///
    /// # Errors
    /// When there are none; the text says why.
    pub async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if host.eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let resolver = self.current()?;
        let found = resolver.lookup_ip(host).await.map_err(|error| {
            if error.is_no_records_found() || error.is_nx_domain() {
                io::Error::new(io::ErrorKind::NotFound, "name not known")
            } else {
                io::Error::other(format!("name not resolved: {error}"))
            }
        })?;
        Ok(found.iter().collect())
    }

    fn current(&self) -> io::Result<TokioResolver> {
        let now = stamp();
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, resolver)) = &*cached
            && *then == now
        {
            return Ok(resolver.clone());
        }
        let resolver = TokioResolver::builder_tokio()
            .and_then(|builder| builder.build())
            .map_err(|error| {
                io::Error::other(format!("/etc/resolv.conf is not usable: {error}"))
            })?;
        *cached = Some((now, resolver.clone()));
        Ok(resolver)
    }
}
