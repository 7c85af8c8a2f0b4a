//! The settings of russh's server, from the gateway's configuration.

use std::borrow::Cow;
use std::time::Duration;

use russh::keys::{Certificate, PrivateKey};
use russh::server;
use russh::{Limits, MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};

use vendetta_sshio::transport::{IDENTIFICATION, SERVER_WINDOW};

use crate::config::Ssh;

/// An algorithm in the configuration that russh does not have.
#[derive(Debug, thiserror::Error)]
#[error("ssh.{key}: there is no {name:?} here")]
pub struct UnknownAlgorithm {
    /// The list it stands in.
    pub key: &'static str,
    /// The name.
    pub name: String,
}

/// How long a rejection takes. Not a defence (whether a key is known shows in
/// the answer itself), but a brake on guessing.
const REJECTION: Duration = Duration::from_millis(10);

/// Events that wait for a connection's loop; the rest waits at the senders.
const EVENTS: usize = 16;

/// The server's settings.
///
/// # Errors
/// When a list names what russh does not have.
pub fn server_config(
    ssh: &Ssh,
    auth_attempts: usize,
    keys: Vec<PrivateKey>,
    certificates: Vec<Certificate>,
) -> Result<server::Config, UnknownAlgorithm> {
    let mut kex = names::<kex::Name>("kex_algorithms", &ssh.kex_algorithms)?;
    kex.extend([
        kex::EXTENSION_SUPPORT_AS_SERVER,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
    ]);
    let preferred = Preferred {
        kex: Cow::Owned(kex),
        cipher: Cow::Owned(names::<cipher::Name>("ciphers", &ssh.ciphers)?),
        mac: Cow::Owned(names::<mac::Name>("macs", &ssh.macs)?),
        compression: Cow::Borrowed(&[
            compression::NONE,
            compression::ZLIB_LEGACY,
            compression::ZLIB,
        ]),
        ..Preferred::DEFAULT
    };
    let rekey_bytes = usize::try_from(ssh.rekey_bytes)
        .unwrap_or(usize::MAX)
        .min(1 << 30);
    let interval = ssh.client_alive_interval_seconds;
    Ok(server::Config {
        server_id: SshId::Standard(Cow::Borrowed(IDENTIFICATION)),
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        auth_rejection_time: REJECTION,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys,
        certificates,
        limits: Limits::new(
            rekey_bytes,
            rekey_bytes,
            Duration::from_secs(ssh.rekey_seconds),
        ),
        window_size: SERVER_WINDOW,
        event_buffer_size: EVENTS,
        preferred,
        max_auth_attempts: auth_attempts,
        inactivity_timeout: None,
        keepalive_interval: (interval > 0).then(|| Duration::from_secs(interval)),
        keepalive_max: ssh.client_alive_count_max,
        nodelay: true,
        ..server::Config::default()
    })
}

fn names<N>(key: &'static str, wanted: &[String]) -> Result<Vec<N>, UnknownAlgorithm>
where
    N: for<'a> TryFrom<&'a str>,
{
    wanted
        .iter()
        .map(|name| {
            N::try_from(name.as_str()).map_err(|_| UnknownAlgorithm {
                key,
                name: name.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use vendetta_sshio::transport::agent_algorithms;

    use super::*;

    #[test]
    fn who_gets_into_the_gateway_gets_into_an_agent_end_to_end() {
        let ours = server_config(&Ssh::default(), 1, Vec::new(), Vec::new()).unwrap();
        let (ours, agents) = (ours.preferred, agent_algorithms());
        for kex in ours.kex.iter() {
            assert!(agents.kex.contains(kex), "{kex:?}");
        }
        for cipher in ours.cipher.iter() {
            assert!(agents.cipher.contains(cipher), "{cipher:?}");
        }
        for mac in ours.mac.iter() {
            assert!(agents.mac.contains(mac), "{mac:?}");
        }
    }
}
