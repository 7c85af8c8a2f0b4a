//! What keeps a gateway from starting and is its operator's to change.

use std::io;
use std::net::SocketAddr;

/// Why a gateway cannot start as it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct CannotStart {
    /// 2: what it was given cannot be used; 4: something else has it.
    pub exit_code: u8,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl CannotStart {
    /// What it was given cannot be used.
    pub(crate) fn unusable(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            exit_code: 2,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// Something else has what it was given.
    pub(crate) fn taken(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            exit_code: 4,
            ..Self::unusable(problem, remedy)
        }
    }

    /// It cannot listen on an address that `setting` says.
    pub(crate) fn listening(address: SocketAddr, setting: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::AddrInUse {
            let port = address.port();
            return Self::taken(
                format!("something else listens on {address}"),
                format!(
                    "take another port with {setting}; this one's program: ss -ltnp 'sport = :{port}'"
                ),
            );
        }
        Self::unusable(
            format!("cannot listen on {address}: {error}"),
            format!("take another address with {setting}"),
        )
    }
}
