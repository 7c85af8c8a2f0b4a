//! What goes wrong on the way to a node, before it is known what it was for.

use std::io;
use std::time::Duration;

use vendetta_proto::NodeName;

use super::super::{LinkError, NodeError, Refusal};

/// What goes wrong on the way to a node.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Trouble {
    /// There is no connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// sshd is configured not to allow it.
    #[error(transparent)]
    Refused(Refusal),
    /// Not done in time.
    #[error("no answer after {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The node's operating system refused.
    #[error(transparent)]
    Io(io::Error),
}

impl Trouble {
    /// A request that makes no sense to a node.
    pub(super) fn invalid(what: &str) -> Self {
        Self::Io(io::Error::new(io::ErrorKind::InvalidInput, what))
    }

    /// What to do, where there is something and no node has to be named for it.
    pub(in super::super) fn remedy(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => Some(refusal.remedy()),
            Self::Link(_) | Self::TimedOut(_) | Self::Io(_) => None,
        }
    }

    /// As the failure of `operation` with `subject`.
    pub(in super::super) fn during(
        self,
        node: &NodeName,
        operation: &'static str,
        subject: impl Into<String>,
    ) -> NodeError {
        let (node, subject) = (node.clone(), subject.into());
        match self {
            Self::Link(cause) => NodeError::Link {
                node,
                cause: Box::new(cause),
            },
            Self::Refused(refusal) => NodeError::Refused {
                node,
                operation,
                subject,
                refusal,
            },
            Self::TimedOut(limit) => NodeError::Timeout {
                node,
                operation,
                subject,
                limit,
            },
            Self::Io(source) => NodeError::Io {
                node,
                operation,
                subject,
                source,
            },
        }
    }
}

/// The kind of error that a program or sshd tells in the words of strerror(3), in the C locale.
pub(super) fn io_error(text: &str) -> io::Error {
    use io::ErrorKind::{
        AlreadyExists, ConnectionRefused, DirectoryNotEmpty, HostUnreachable, IsADirectory,
        NetworkUnreachable, NotADirectory, NotFound, PermissionDenied, QuotaExceeded,
        ReadOnlyFilesystem, ResourceBusy, StorageFull, TimedOut,
    };
    let kinds = [
        ("No such file or directory", NotFound),
        ("Permission denied", PermissionDenied),
        ("Operation not permitted", PermissionDenied),
        ("Connection refused", ConnectionRefused),
        ("Connection timed out", TimedOut),
        ("No route to host", HostUnreachable),
        ("Network is unreachable", NetworkUnreachable),
        ("No space left on device", StorageFull),
        ("Disk quota exceeded", QuotaExceeded),
        ("Read-only file system", ReadOnlyFilesystem),
        ("Not a directory", NotADirectory),
        ("Is a directory", IsADirectory),
        ("Directory not empty", DirectoryNotEmpty),
        ("File exists", AlreadyExists),
        ("Device or resource busy", ResourceBusy),
    ];
    let found = kinds.iter().find(|(words, _)| text.contains(words));
    let kind = found.map_or(io::ErrorKind::Other, |(_, kind)| *kind);
    io::Error::new(kind, text.to_owned())
}
