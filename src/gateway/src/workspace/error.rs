//! Why something with a workspace did not work, as it is told to a person.

use std::fmt;

use serde::Serialize;
use vendetta_sshio::keys::KeyError;

use crate::agent::install::InstallError;
use crate::agent::pool::AgentError;
use crate::inventory::InventoryError;
use crate::node::NodeError;
use crate::ports;
use crate::provider::ProviderError;
use crate::store::StoreError;

/// What sort of failure it is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request itself is wrong.
    Usage,
    /// Not there, or not the caller's.
    NotFound,
    /// Something stands against it.
    Conflict,
    /// The node or its engine does not do it.
    Unavailable,
    /// Our own fault.
    Internal,
}

impl ErrorKind {
    /// The exit code of a command that failed so.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unavailable => 5,
            Self::Internal => 70,
        }
    }
}

/// A failure with its context ("workspace x"), the problem and, where there is
/// one, the remedy. Displays as "context: problem".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkspaceError {
    /// What sort of failure it is.
    pub kind: ErrorKind,
    /// What it is about.
    pub context: String,
    /// What is wrong.
    pub problem: String,
    /// What to do; a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl WorkspaceError {
    /// A failure without a remedy.
    pub fn new(kind: ErrorKind, context: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            problem: problem.into(),
            remedy: None,
        }
    }

    /// The same with a remedy.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// 2 usage, 3 not found or not yours, 4 conflict, 5 node or engine unavailable, 70 internal.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }

    pub(super) fn not_found(name: &str) -> Self {
        Self::new(
            ErrorKind::NotFound,
            format!("workspace {name}"),
            "there is no such workspace, or it is not yours",
        )
        .with_remedy("ssh vendetta workspace list")
    }
}

impl fmt::Display for WorkspaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.context, self.problem)
    }
}

impl std::error::Error for WorkspaceError {}

/// What a failure of the layers below means to somebody who uses a workspace.
pub(crate) trait Explain {
    /// As a failure of `context`.
    fn explain(self, context: &str) -> WorkspaceError;
}

impl Explain for ProviderError {
    fn explain(self, context: &str) -> WorkspaceError {
        let kind = match &self {
            Self::Unavailable { .. } | Self::Engine { .. } | Self::Node(_) => {
                ErrorKind::Unavailable
            }
            Self::NoImage { .. } => ErrorKind::NotFound,
            Self::Refused { .. } | Self::BuildFailed { .. } => ErrorKind::Usage,
            Self::NoEnvironment | Self::Cancelled => ErrorKind::Conflict,
        };
        let remedy = self.remedy();
        WorkspaceError {
            remedy,
            ..WorkspaceError::new(kind, context, self.to_string())
        }
    }
}

impl Explain for InstallError {
    fn explain(self, context: &str) -> WorkspaceError {
        let problem = self.to_string();
        match self {
            Self::Node(error) => error.explain(context),
            Self::NoPayload { .. } | Self::Read { .. } => {
                WorkspaceError::new(ErrorKind::Internal, context, problem).with_remedy(
                    "put vendetta-agent beside the gateway, or set agent_dir in its config",
                )
            }
        }
    }
}

impl Explain for AgentError {
    fn explain(self, context: &str) -> WorkspaceError {
        let kind = match &self {
            Self::Refused { not_found, .. } if *not_found => ErrorKind::NotFound,
            Self::NoUser { .. } => ErrorKind::NotFound,
            Self::Refused { .. } => ErrorKind::Conflict,
            _ => ErrorKind::Unavailable,
        };
        WorkspaceError {
            remedy: self.remedy(),
            ..WorkspaceError::new(kind, context, self.to_string())
        }
    }
}

impl Explain for NodeError {
    fn explain(self, context: &str) -> WorkspaceError {
        WorkspaceError {
            remedy: self.remedy(),
            ..WorkspaceError::new(ErrorKind::Unavailable, context, self.to_string())
        }
    }
}

impl Explain for InventoryError {
    fn explain(self, context: &str) -> WorkspaceError {
        match self {
            Self::Store(error) => error.explain(context),
            error => WorkspaceError {
                remedy: error.remedy(),
                ..WorkspaceError::new(error.kind(), context, error.to_string())
            },
        }
    }
}

impl Explain for StoreError {
    fn explain(self, context: &str) -> WorkspaceError {
        let kind = self.kind();
        // What the database says is for the operator, not for the client.
        let problem = if kind == ErrorKind::Internal {
            tracing::error!(%context, error = %self, "the store failed");
            "the gateway could not read or write its state".to_owned()
        } else {
            self.to_string()
        };
        WorkspaceError {
            remedy: self.remedy(),
            ..WorkspaceError::new(kind, context, problem)
        }
    }
}

impl Explain for ports::Refused {
    fn explain(self, context: &str) -> WorkspaceError {
        WorkspaceError::new(ErrorKind::Conflict, context, self.problem).with_remedy(self.remedy)
    }
}

impl Explain for KeyError {
    fn explain(self, context: &str) -> WorkspaceError {
        WorkspaceError::new(ErrorKind::Internal, context, self.to_string())
    }
}
