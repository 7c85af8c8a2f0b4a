//! Why a machine did not become a node.

use std::fmt;
use std::time::Duration;

use super::super::LinkError;

/// A way in that did not lead in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// What was tried.
    pub way: String,
    /// Why it failed.
    pub why: String,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.way, self.why)
    }
}

/// Why a machine did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// It cannot be reached, or completes no SSH handshake.
    #[error(transparent)]
    Link(LinkError),
    /// It proved another host key than was demanded; nobody tried to log in.
    #[error("the host key of {address} is {got}, not {demanded}, which was demanded")]
    HostKey {
        /// Where it is.
        address: String,
        /// The fingerprint that was demanded.
        demanded: String,
        /// The fingerprint of its key.
        got: String,
    },
    /// No way led in.
    #[error(
        "{user}@{address} lets the gateway in by none of the ways it has: {}",
        list(tried)
    )]
    NoWayIn {
        /// Where it is.
        address: String,
        /// The user.
        user: String,
        /// What was tried, in order.
        tried: Vec<Tried>,
    },
    /// The gateway was let in, but its key could not be put there.
    #[error("putting the gateway's key into ~/.ssh/authorized_keys of {user}@{address}: {problem}")]
    Install {
        /// Where it is.
        address: String,
        /// The user.
        user: String,
        /// What is wrong.
        problem: String,
        /// What to do, where there is something.
        remedy: Option<String>,
    },
    /// The key is there, and does not get in all the same.
    #[error(
        "the gateway's key is in ~/.ssh/authorized_keys of {user}@{address}, but its sshd does not accept it"
    )]
    NotAccepted {
        /// Where it is.
        address: String,
        /// The user.
        user: String,
    },
    /// It took too long.
    #[error("{address} is not enrolled after {} s", limit.as_secs())]
    TimedOut {
        /// Where it is.
        address: String,
        /// The time limit.
        limit: Duration,
    },
}

fn list(tried: &[Tried]) -> String {
    let all: Vec<_> = tried.iter().map(Tried::to_string).collect();
    all.join("; ")
}

impl EnrollError {
    /// What to do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Link(LinkError::Dial { address, .. } | LinkError::TimedOut { address, .. }) => {
                Some(format!(
                    "see that the machine is on and that its sshd listens at {address}"
                ))
            }
            Self::Link(_) | Self::TimedOut { .. } => None,
            Self::HostKey { got, .. } => Some(format!(
                "compare it on the machine itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub; \
                 when {got} is right: --host-key {got}"
            )),
            Self::NoWayIn { user, .. } => Some(format!(
                "install the gateway's key by hand: put the line that this prints into \
                 ~{user}/.ssh/authorized_keys there: ssh vendetta node key; or lend it your \
                 agent: ssh -A vendetta node add …"
            )),
            Self::Install { remedy, .. } => remedy.clone(),
            Self::NotAccepted { user, .. } => Some(format!(
                "see in the machine's /etc/ssh/sshd_config that PubkeyAuthentication is yes, that \
                 AuthorizedKeysFile names .ssh/authorized_keys, and that no AuthenticationMethods asks \
                 for more than a key; and that nobody else can write to ~{user} and ~{user}/.ssh \
                 (StrictModes)"
            )),
        }
    }
}
