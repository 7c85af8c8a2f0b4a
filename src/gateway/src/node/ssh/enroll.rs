//! Getting into a machine for the first time, and installing the gateway's key
//! there.
//!
//! The ways in are tried in this order, over one connection as long as its sshd
//! puts up with it (MaxAuthTries, sshd_config(5)):
//!
//! ```text
//!   the gateway's key ─▶ the operator's keys ─▶ the operator's agent
//!       ─▶ the caller's agent ─▶ a password that the caller is asked for
//! ```

use std::fmt;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use vendetta_sshio::keys::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::super::{ByteStream, LinkError};
use super::authorized_keys::install;
use super::connection::{Connection, Connector};
use super::door::{Door, greet_in_time};
use super::handshake::Address;
use super::host_keys::HostKeys;

/// What the operator of the gateway has that may open a machine.
#[derive(Debug, Clone, Default)]
pub struct Operator {
    /// Login name; also the default one on new nodes.
    pub user: String,
    /// Private keys that may exist, in the order in which OpenSSH tries them.
    pub keys: Vec<PathBuf>,
    /// The socket of an ssh-agent.
    pub agent: Option<PathBuf>,
}

/// What the one who adds a node has that may open it.
#[async_trait]
pub trait Ways: Send {
    /// A new connection to their ssh-agent; none when they forward none.
    async fn agent(&mut self) -> Option<io::Result<Box<dyn ByteStream>>>;

    /// A password that they are asked for; none when they give none.
    async fn password(&mut self, prompt: &str) -> Option<Zeroizing<String>>;
}

/// The way that led in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The gateway's own key was there already.
    NodeKey,
    /// A private key of the operator.
    OperatorKey(PathBuf),
    /// A key of the operator's agent, by its fingerprint.
    OperatorAgent(String),
    /// A key of the caller's agent, by its fingerprint.
    CallerAgent(String),
    /// A password.
    Password,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeKey => f.write_str("the gateway's own key"),
            Self::OperatorKey(path) => write!(f, "the operator's key {}", path.display()),
            Self::OperatorAgent(key) => write!(f, "key {key} of the operator's agent"),
            Self::CallerAgent(key) => write!(f, "key {key} of your agent"),
            Self::Password => f.write_str("a password"),
        }
    }
}

/// A machine that the gateway's key opens now.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// The host key that it proved.
    pub host_key: PublicKey,
    /// The way that led in.
    pub way: Way,
}

/// Why a machine was not opened.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// There is no connection to it, or it proved another host key.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No way led in.
    #[error("{address} lets nobody in as {user}; tried: {}", tried.join("; "))]
    NoWay {
        /// Where it is.
        address: String,
        /// The login name.
        user: String,
        /// The ways that were tried, and what became of each.
        tried: Vec<String>,
    },
    /// The key could not be installed.
    #[error("installing the gateway's key for {user} on {address}: {problem}")]
    Install {
        /// Where it is.
        address: String,
        /// The login name.
        user: String,
        /// What went wrong.
        problem: String,
    },
    /// The key was installed and does not open it.
    #[error(
        "the gateway's key was added to ~{user}/.ssh/authorized_keys on {address}, but it does not open it"
    )]
    NotAccepted {
        /// Where it is.
        address: String,
        /// The login name.
        user: String,
    },
}

impl EnrollError {
    /// What to do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Link(LinkError::HostKeyChanged { got, .. }) => format!(
                "compare with: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, on the machine itself; \
                 if it is right, say so with --host-key {got}"
            ),
            Self::Link(LinkError::Dial { address, .. } | LinkError::TimedOut { address, .. }) => {
                format!("see that the machine is on and that its sshd listens at {address}")
            }
            Self::Link(_) => return None,
            Self::NoWay { .. } => {
                "forward an agent that opens it (ssh -A), or be asked for a password (ssh -t), or \
                 install the gateway's key by hand: ssh vendetta node key"
                    .to_owned()
            }
            Self::Install { user, .. } => {
                format!("see that ~{user}/.ssh can be written, or install the key by hand: ssh vendetta node key")
            }
            Self::NotAccepted { .. } => {
                "see AuthorizedKeysFile, PubkeyAuthentication and AllowUsers in the node's /etc/ssh/sshd_config; \
                 then: sudo systemctl reload ssh"
                    .to_owned()
            }
        })
    }
}

/// Which host key a machine must prove to be let in.
#[derive(Debug, Clone)]
pub enum Demand {
    /// Whichever it proves first.
    Any,
    /// One with this fingerprint, "SHA256:…".
    Fingerprint(String),
    /// This one.
    Key(PublicKey),
}

/// Gets into the machine at `address` and sees that `node_key` opens it.
///
/// # Errors
/// When it is not reached, proves another host key, or no way leads in.
pub async fn enroll(
    address: &Address,
    demand: Demand,
    node_key: &PrivateKey,
    operator: &Operator,
    ways: &mut dyn Ways,
) -> Result<Enrolled, EnrollError> {
    let host_keys = match demand {
        Demand::Any => HostKeys::First,
        Demand::Fingerprint(fingerprint) => HostKeys::Demanded(fingerprint),
        Demand::Key(key) => HostKeys::Pinned(vec![key]),
    };
    let greeted = greet_in_time(address, host_keys).await?;
    let host_key = greeted.host_key.clone();
    let mut door = Door::new(address, greeted);
    let way = door.open(node_key, operator, ways).await?;
    if way != Way::NodeKey {
        let connection = Connection::new(door.entered(), address);
        install(&connection, address, &node_key.public()).await?;
        connection.disconnect().await;
        let connector = Connector {
            address: address.clone(),
            host_keys: vec![host_key.clone()],
            key: node_key.clone(),
        };
        match connector.connect().await {
            Ok(connection) => connection.disconnect().await,
            Err(LinkError::Authentication { address, user, .. }) => {
                return Err(EnrollError::NotAccepted { address, user });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Enrolled { host_key, way })
}
