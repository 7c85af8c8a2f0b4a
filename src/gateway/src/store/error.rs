//! Why the store did not do something.

use std::path::PathBuf;

use vendetta_proto::{NodeName, UserName};

use crate::workspace::ErrorKind;

/// Why the store did not do something. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("database {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A directory that others can read.
    #[error("{path}: mode {mode:03o} lets others read the gateway's state; run: chmod 700 {path}", path = path.display())]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// SQLite refused.
    #[error("database: {operation}: {source}")]
    Sql {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        source: rusqlite::Error,
    },
    /// Written by a newer vendetta.
    #[error("database {path} has format {found}, this version knows up to {known}; run the vendetta that wrote it, or a newer one", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format known.
        known: i64,
    },
    /// A row that cannot be ours.
    #[error("database: a row that cannot be read: {0}")]
    Corrupt(String),
    /// The work was given up, at shutdown.
    #[error("database: {operation}: given up")]
    GaveUp {
        /// What was tried.
        operation: &'static str,
    },
    /// A name that is in use.
    #[error("the name {name} is taken by a {kind}; users and workspaces share one name space")]
    NameTaken {
        /// The name.
        name: String,
        /// By what: "user" or "workspace".
        kind: &'static str,
    },
    /// No such user.
    #[error("there is no user {0}")]
    NoUser(UserName),
    /// No such node.
    #[error("there is no node {0}")]
    NoNode(NodeName),
    /// A node that something depends on.
    #[error("node {node} is in use: {}", in_use(workspaces, nodes))]
    NodeInUse {
        /// The node.
        node: NodeName,
        /// Names of the workspaces on it.
        workspaces: Vec<String>,
        /// Names of the nodes that are reached through it.
        nodes: Vec<String>,
    },
    /// No key of that user matches.
    #[error("user {user} has no key {key}")]
    NoKey {
        /// The user.
        user: UserName,
        /// What was asked for.
        key: String,
    },
    /// More than one key matches.
    #[error("{key} is the beginning of {count} keys of user {user}; give more of it")]
    AmbiguousKey {
        /// The user.
        user: UserName,
        /// What was asked for.
        key: String,
        /// How many match.
        count: usize,
    },
    /// A key that somebody has already.
    #[error("key {fingerprint} belongs to user {user} already")]
    KeyTaken {
        /// The key.
        fingerprint: String,
        /// Whose it is.
        user: UserName,
    },
    /// Without this admin, or this key, nobody could administer the gateway.
    #[error("{0} is the last admin that can log in; make another one first")]
    LastAdmin(UserName),
    /// A user who still has workspaces.
    #[error("user {user} still has workspaces: {}; destroy them first", workspaces.join(", "))]
    HasWorkspaces {
        /// The user.
        user: UserName,
        /// Their names.
        workspaces: Vec<String>,
    },
}

impl StoreError {
    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoUser(_) | Self::NoNode(_) | Self::NoKey { .. } => ErrorKind::NotFound,
            Self::NameTaken { .. }
            | Self::NodeInUse { .. }
            | Self::AmbiguousKey { .. }
            | Self::KeyTaken { .. }
            | Self::LastAdmin(_)
            | Self::HasWorkspaces { .. } => ErrorKind::Conflict,
            Self::Io { .. }
            | Self::Mode { .. }
            | Self::Sql { .. }
            | Self::Newer { .. }
            | Self::Corrupt(_)
            | Self::GaveUp { .. } => ErrorKind::Internal,
        }
    }

    /// What to do about it, where the message does not say it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let remedy = match self {
            Self::NoUser(_) => "ssh vendetta user list".to_owned(),
            Self::NoKey { user, .. } => format!("ssh vendetta key list --user {user}"),
            Self::KeyTaken { .. } => "a key stands for one user; use another key".to_owned(),
            Self::NameTaken { .. } => "choose another name".to_owned(),
            internal if internal.kind() == ErrorKind::Internal => {
                "the gateway's log says more".to_owned()
            }
            _ => return None,
        };
        Some(remedy)
    }

    /// Names the operation that an SQLite error belongs to.
    pub(super) fn during(self, operation: &'static str) -> Self {
        match self {
            Self::Sql { source, .. } => Self::Sql { operation, source },
            other => other,
        }
    }
}

fn in_use(workspaces: &[String], nodes: &[String]) -> String {
    let part = |what: &str, names: &[String]| {
        (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
    };
    let parts = [
        part("workspaces", workspaces),
        part("on the way to nodes", nodes),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

impl From<rusqlite::Error> for StoreError {
    fn from(source: rusqlite::Error) -> Self {
        Self::Sql {
            operation: "query",
            source,
        }
    }
}
