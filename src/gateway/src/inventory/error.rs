//! Why something with the nodes did not work.

use crate::node::NodeError;
use crate::node::enroll::EnrollError;
use crate::store::StoreError;
use crate::workspace::ErrorKind;

/// Why something with the nodes did not work.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// No node has this name.
    #[error("there is no node {name}")]
    NoNode {
        /// The name.
        name: String,
        /// The name that was probably meant.
        meant: Option<String>,
    },
    /// The gateway's own machine is what it is.
    #[error("local is the gateway's own machine, which cannot {0}")]
    Local(&'static str),
    /// A machine that is a node already.
    #[error("{address} is node {name} already")]
    Known {
        /// Where it is.
        address: String,
        /// Its name.
        name: String,
    },
    /// A name that another machine has.
    #[error("there is a node {name} already, which is {address}")]
    Taken {
        /// The name.
        name: String,
        /// Where that node is.
        address: String,
    },
    /// A node that would be reached through itself.
    #[error("node {jump} is itself reached through node {name}")]
    Circle {
        /// The node.
        name: String,
        /// The node through which it was to be reached.
        jump: String,
    },
    /// There is no way into the machine.
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    /// The node did not do its part.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The store did not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl InventoryError {
    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoNode { .. } => ErrorKind::NotFound,
            Self::Local(_) | Self::Known { .. } | Self::Taken { .. } | Self::Circle { .. } => {
                ErrorKind::Conflict
            }
            Self::Enroll(_) | Self::Node(_) => ErrorKind::Unavailable,
            Self::Store(error) => error.kind(),
        }
    }

    /// What to do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoNode {
                meant: Some(meant), ..
            } => Some(format!("did you mean {meant}?")),
            Self::NoNode { name, meant: None } => Some(format!(
                "ssh vendetta node list shows the nodes; an admin adds one: ssh vendetta node add {name} ADDRESS"
            )),
            Self::Known { name, .. } => Some(format!("ssh vendetta node status {name}")),
            Self::Taken { .. } => Some(
                "choose another name, or say that it is the same machine elsewhere: --moved"
                    .to_owned(),
            ),
            Self::Circle { .. } => Some("name another node with --jump, or none".to_owned()),
            Self::Enroll(error) => error.remedy(),
            Self::Node(error) => error.remedy(),
            Self::Local(_) | Self::Store(_) => None,
        }
    }
}
