//! Makes a machine a node: finds a way in, puts the gateway's key there, and
//! sees that the key alone gets in from then on.
//!
//! The ways, in this order, over as few connections as the server's limits allow:
//! the gateway's key, if it is there already; the operator's keys and agent; the
//! agent of whoever asks; a password, asked once and kept nowhere. The first
//! connection takes the host key that comes, unless one was demanded, and every
//! later one takes that key and no other.

mod authorized_keys;
mod door;
mod error;
#[cfg(test)]
mod tests;
mod ways;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use vendetta_sshio::keys::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::ByteStream;
use super::ssh::Address;
use door::Door;
use ways::Search;

pub use authorized_keys::withdraw;
pub use error::{EnrollError, Tried};

/// Time limit of the whole, which may include somebody's typing a password and
/// touching a token.
const LIMIT: Duration = Duration::from_secs(300);

/// The machine that is to become a node.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where it is, the user there, and the node to go through.
    pub address: Address,
    /// The fingerprint that its host key must have, "SHA256:…"; none: the first
    /// key that comes is taken.
    pub host_key: Option<String>,
}

/// What may be tried to get in.
#[derive(Debug)]
pub struct Ways {
    /// The gateway's node key, which gets in from then on.
    pub node_key: PrivateKey,
    /// What belongs to the operator of the gateway.
    pub operator: Operator,
    /// The agent that the caller forwards.
    pub caller_agent: Option<Arc<dyn AgentAccess>>,
    /// Asks the caller for a password.
    pub password: Option<Arc<dyn AskPassword>>,
}

/// What belongs to the operator of the gateway; nothing unless it is named here.
#[derive(Debug, Clone, Default)]
pub struct Operator {
    /// The home directory, for the private keys in its `.ssh`.
    pub home: Option<PathBuf>,
    /// The socket of the ssh-agent (`$SSH_AUTH_SOCK`).
    pub agent: Option<PathBuf>,
}

/// Access to an ssh-agent.
#[async_trait]
pub trait AgentAccess: Send + Sync + fmt::Debug {
    /// Opens a new stream on which the ssh-agent protocol is spoken (draft-miller-ssh-agent).
    ///
    /// # Errors
    /// When there is no agent any more.
    async fn open(&self) -> std::io::Result<Box<dyn ByteStream>>;
}

/// Asks a person for a secret.
#[async_trait]
pub trait AskPassword: Send + Sync + fmt::Debug {
    /// The answer to `prompt`, typed unseen; none when there is none to be had.
    async fn ask(&self, prompt: &str) -> Option<Secret>;
}

/// A password; overwritten when it is dropped, and never shown.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The secret that `text` is.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The way that led in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The gateway's key was there already.
    NodeKey,
    /// A key in the operator's `~/.ssh`.
    OperatorKey {
        /// The file.
        path: PathBuf,
    },
    /// A key of the operator's agent.
    OperatorAgent {
        /// Its fingerprint.
        key: String,
    },
    /// A key of the agent that the caller forwards.
    CallerAgent {
        /// Its fingerprint.
        key: String,
    },
    /// A password that the caller typed.
    Password,
}

/// As it is told: "let in by …".
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeKey => f.write_str("the gateway's key, which was there already"),
            Self::OperatorKey { path } => write!(f, "the operator's key {}", path.display()),
            Self::OperatorAgent { key } => write!(f, "key {key} of the operator's agent"),
            Self::CallerAgent { key } => write!(f, "key {key} of your agent"),
            Self::Password => f.write_str("a password"),
        }
    }
}

/// A machine on which the gateway's key gets in.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// The host key that it proved, to be pinned.
    pub host_key: PublicKey,
    /// The way that led in.
    pub way: Way,
    /// Whether a line was added to authorized_keys.
    pub installed: bool,
}

/// Finds a way in, installs the gateway's key and proves that it gets in.
///
/// # Errors
/// When the machine cannot be reached, proves another host key than demanded, lets
/// nobody in, or does not take the key.
pub async fn enroll(request: Request, ways: Ways) -> Result<Enrolled, EnrollError> {
    let address = request.address.clone();
    let enrolled = timeout(LIMIT, enroll_without_limit(request, &ways)).await;
    enrolled.unwrap_or(Err(EnrollError::TimedOut {
        address: address.to_string(),
        limit: LIMIT,
    }))
}

async fn enroll_without_limit(request: Request, ways: &Ways) -> Result<Enrolled, EnrollError> {
    let mut door = Door::new(request.address, request.host_key);
    let way = Search::new(&mut door, ways).find().await?;
    let connection = door.enter()?;
    let mut installed = false;
    if way != Way::NodeKey {
        let added = authorized_keys::install(&connection, &ways.node_key.public()).await;
        installed = added.map_err(|trouble| door.not_installed(&trouble))?;
        door.prove(&ways.node_key).await?;
    }
    connection.disconnect().await;
    Ok(Enrolled {
        host_key: door.host_key()?,
        way,
        installed,
    })
}
