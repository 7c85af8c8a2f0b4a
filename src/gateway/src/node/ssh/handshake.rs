//! From an address to an SSH connection on which nobody is logged in yet.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use russh::client::{self, Handle};
use russh::keys::PrivateKeyWithHashAlg;
use russh::{Preferred, cipher, compression};
use socket2::SockRef;
use tokio::net::TcpStream;
use vendetta_sshio::keys::{PrivateKey, PublicKey};
use vendetta_sshio::read_ahead::ReadAhead;
use vendetta_sshio::transport;

use super::super::{ByteStream, LinkError, NodeTransport};
use super::callbacks::Callbacks;
use super::host_keys::HostKeys;
use super::life::Life;

/// How often a silent peer is asked for a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(4);
/// Unanswered requests after which, at the next, a peer is taken for lost: 12 s of silence.
const KEEPALIVE_MAX: usize = 2;
/// How long the kernel tries to get rid of what was written (tcp(7), TCP_USER_TIMEOUT).
const UNSENT_LIMIT: Duration = Duration::from_secs(30);

/// Where a node's sshd is, and as whom to log in there.
#[derive(Debug, Clone)]
pub struct Address {
    /// The user of the node.
    pub user: String,
    /// Name or IP address; as seen from `jump`, when there is one.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The node to go through.
    pub jump: Option<Arc<dyn NodeTransport>>,
}

impl Address {
    /// As `node add` takes it: "user@host:port --jump NODE", with what is needed of that.
    fn words(&self) -> String {
        let host = match self.port {
            22 => self.host.clone(),
            _ => self.to_string(),
        };
        let jump = self.jump.as_ref().map(|jump| jump.name());
        let jump = jump.map_or_else(String::new, |jump| format!(" --jump {jump}"));
        format!("{}@{host}{jump}", self.user)
    }
}

/// "host:port", with brackets around an IPv6 address.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What an sshd since OpenSSH 7.4 and we both know, the cheapest cipher first
/// where processors have AES instructions.
fn algorithms(host_keys: &HostKeys) -> Preferred {
    Preferred {
        key: host_keys.algorithms(),
        cipher: Cow::Borrowed(&[
            cipher::AES_128_GCM,
            cipher::AES_256_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_128_CTR,
            cipher::AES_192_CTR,
            cipher::AES_256_CTR,
        ]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// A connection before anybody has logged in.
pub(in super::super) struct Greeted {
    /// The SSH client.
    pub handle: Handle<Callbacks>,
    /// Ends with the connection.
    pub life: Life,
    /// The key that the server proved.
    pub host_key: PublicKey,
}

/// Connects to `address` and has it prove one of `host_keys`. The caller sets the limit.
pub(in super::super) async fn greet(
    address: &Address,
    host_keys: HostKeys,
) -> Result<Greeted, LinkError> {
    let stream = dial(address).await?;
    let config = client::Config {
        limits: transport::link_limits(),
        window_size: transport::LINK_WINDOW,
        maximum_packet_size: transport::LINK_PACKET,
        preferred: algorithms(&host_keys),
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        ..client::Config::default()
    };
    let life = Life::default();
    let shown = Arc::new(OnceLock::new());
    let callbacks = Callbacks::new(host_keys.clone(), Arc::clone(&shown), life.clone());
    let greeted = client::connect_stream(Arc::new(config), ReadAhead::new(stream), callbacks).await;
    match (greeted, shown.get()) {
        (Ok(handle), Some(host_key)) => Ok(Greeted {
            handle,
            life,
            host_key: host_key.clone(),
        }),
        (_, Some(got)) if !host_keys.accepts(got) => Err(LinkError::HostKeyChanged {
            address: address.to_string(),
            expected: host_keys.expected(),
            got: got.fingerprint(),
            words: address.words(),
        }),
        (result, _) => Err(LinkError::Handshake {
            address: address.to_string(),
            cause: match result {
                Err(error) => describe(&error),
                Ok(_) => "no host key".to_owned(),
            },
        }),
    }
}

async fn dial(address: &Address) -> Result<Box<dyn ByteStream>, LinkError> {
    let failed = |cause: String| LinkError::Dial {
        address: address.to_string(),
        cause,
    };
    if let Some(jump) = &address.jump {
        let stream = jump.open_tcp(&address.host, address.port).await;
        return stream.map_err(|error| failed(error.to_string()));
    }
    let connect = async {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        // Nothing else ends a connection that is given up while its peer takes nothing.
        SockRef::from(&stream).set_tcp_user_timeout(Some(UNSENT_LIMIT))?;
        transport::ServerStream::new(stream)
    };
    let stream = connect.await.map_err(|error| failed(error.to_string()))?;
    Ok(Box::new(stream))
}

/// What an error of the library means to somebody who reads about a node.
pub(super) fn describe(error: &russh::Error) -> String {
    match error {
        russh::Error::HUP | russh::Error::Disconnect => {
            "it closed the connection (sshd does so when it is overloaded, MaxStartups, \
             or bars this address)"
                .to_owned()
        }
        russh::Error::KeepaliveTimeout => {
            let silence = KEEPALIVE.as_secs() * (KEEPALIVE_MAX as u64 + 1);
            format!("no sign of life for {silence} s")
        }
        other => other.to_string(),
    }
}

/// Logs in with `key`. Whether the server lets it in.
///
/// # Errors
/// When the connection ends meanwhile.
pub(in super::super) async fn log_in(
    greeted: &mut Greeted,
    address: &Address,
    key: &PrivateKey,
) -> Result<bool, LinkError> {
    let key = PrivateKeyWithHashAlg::new(Arc::new(key.as_russh().clone()), None);
    let result = greeted
        .handle
        .authenticate_publickey(address.user.as_str(), key)
        .await;
    match (result, greeted.life.ended()) {
        (Ok(answer), None) => Ok(answer.success()),
        (result, cause) => Err(LinkError::Handshake {
            address: address.to_string(),
            cause: match (cause, result) {
                (None, Err(error)) => describe(&error),
                (cause, _) => cause.unwrap_or_default().to_owned(),
            },
        }),
    }
}
