//! Names of the environment: /etc/hosts and the servers of /etc/resolv.conf,
//! asked directly, because a static binary has no NSS.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

/// When the files were last written.
type Stamp = [Option<SystemTime>; 2];

/// Resolves names; built again when its files change.
#[derive(Debug, Default)]
pub struct Resolver(Mutex<Option<Sources>>);

/// What names are resolved by, as of a time.
#[derive(Debug, Clone)]
struct Sources {
    stamp: Stamp,
    hosts: Arc<Hosts>,
    dns: TokioResolver,
}

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
        let sources = self.current()?;
        // A name in the file is asked for nowhere else, as with "hosts: files dns" of
        // nsswitch.conf(5). The resolver would ask DNS for the family that the file lacks.
        let listed = listed(&sources.hosts, host);
        if !listed.is_empty() {
            return Ok(listed);
        }
        // The texts are those of gai_strerror(3), as in every other program.
        let found = sources.dns.lookup_ip(host).await.map_err(|error| {
            tracing::debug!("cannot resolve {host}: {error}");
            if error.is_no_records_found() || error.is_nx_domain() {
                io::Error::new(io::ErrorKind::NotFound, "Name or service not known")
            } else {
                io::Error::other("Temporary failure in name resolution")
            }
        })?;
        Ok(found.iter().collect())
    }

    fn current(&self) -> io::Result<Sources> {
        let now = stamp();
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sources) = &*cached
            && sources.stamp == now
        {
            return Ok(sources.clone());
        }
        let dns = TokioResolver::builder_tokio()
            .and_then(|builder| builder.build())
            .map_err(|error| {
                io::Error::other(format!("/etc/resolv.conf is not usable: {error}"))
            })?;
        let sources = Sources {
            stamp: now,
            // An image may have no such file.
            hosts: Arc::new(Hosts::from_system().unwrap_or_default()),
            dns,
        };
        Ok(cached.insert(sources).clone())
    }
}

/// The addresses of `host` in /etc/hosts.
fn listed(hosts: &Hosts, host: &str) -> Vec<IpAddr> {
    let Ok(name) = host.parse::<Name>() else {
        return Vec::new();
    };
    let of = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
    [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(of)
        .flat_map(|found| {
            let addresses = found.answers().iter().filter_map(|r| r.data.ip_addr());
            addresses.collect::<Vec<_>>()
        })
        .collect()
}
