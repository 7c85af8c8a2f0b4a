//! Why a node did not do what was asked, and what can be done about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vendetta_proto::NodeName;

/// Why a node did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The operating system refused.
    #[error("node {node}: {operation} {subject}: {source}")]
    Io {
        /// The node.
        node: NodeName,
        /// What was tried: "connect to", "write", …
        operation: &'static str,
        /// What it was tried with.
        subject: String,
        /// The cause.
        source: io::Error,
    },
    /// Not done in time.
    #[error("node {node}: {operation} {subject}: no answer after {} s", limit.as_secs())]
    Timeout {
        /// The node.
        node: NodeName,
        /// What was tried.
        operation: &'static str,
        /// What it was tried with.
        subject: String,
        /// The time limit.
        limit: Duration,
    },
    /// A path of a unix socket that is too long for the kernel (unix(7): 107 bytes).
    #[error("node {node}: socket path {path} is longer than {max} bytes; choose a shorter state directory", path = path.display())]
    SocketPath {
        /// The node.
        node: NodeName,
        /// The path.
        path: PathBuf,
        /// Most bytes it may have.
        max: usize,
    },
    /// There is no SSH connection to it.
    #[error("node {node}: {cause}")]
    Link {
        /// The node.
        node: NodeName,
        /// Why not.
        cause: Box<LinkError>,
    },
    /// Its sshd is configured not to allow it.
    #[error("node {node}: {operation} {subject}: {refusal}")]
    Refused {
        /// The node.
        node: NodeName,
        /// What was tried.
        operation: &'static str,
        /// What it was tried with.
        subject: String,
        /// What sshd does not allow.
        refusal: Refusal,
    },
}

impl NodeError {
    /// The kind of I/O error, when it is one.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            Self::Timeout { .. }
            | Self::SocketPath { .. }
            | Self::Link { .. }
            | Self::Refused { .. } => None,
        }
    }

    /// What to do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("make room on the node, for instance: docker system prune".to_owned())
                }
                _ => None,
            },
            Self::Link { node, cause } => cause.remedy(node),
            Self::Refused { refusal, .. } => Some(refusal.remedy()),
            Self::Timeout { .. } | Self::SocketPath { .. } => None,
        }
    }
}

/// Why there is no SSH connection to a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody answers at its address.
    #[error("cannot reach {address}: {cause}")]
    Dial {
        /// Where it was tried.
        address: String,
        /// The cause.
        cause: String,
    },
    /// Whoever answers does not complete an SSH handshake.
    #[error("SSH handshake with {address}: {cause}")]
    Handshake {
        /// Where it was tried.
        address: String,
        /// The cause.
        cause: String,
    },
    /// It proves another host key than the pinned one.
    #[error("the host key of {address} is another one: expected {expected}, got {got}")]
    HostKeyChanged {
        /// Where it was tried.
        address: String,
        /// Fingerprints of the pinned keys.
        expected: String,
        /// Fingerprint of the key that was proved.
        got: String,
        /// The address as `node add` takes it.
        words: String,
    },
    /// It does not let the gateway's key in.
    #[error("{address} does not accept the gateway's key {key} for user {user}")]
    Authentication {
        /// Where it was tried.
        address: String,
        /// The user.
        user: String,
        /// Fingerprint of the gateway's key.
        key: String,
    },
    /// There was one.
    #[error("the connection to {address} was lost: {cause}")]
    Lost {
        /// Where it led.
        address: String,
        /// The cause.
        cause: String,
    },
    /// Not made in time.
    #[error("no connection to {address} within {} s", limit.as_secs())]
    TimedOut {
        /// Where it was tried.
        address: String,
        /// The time limit.
        limit: Duration,
    },
    /// The gateway no longer uses the node.
    #[error("the connection to {address} was closed by the gateway")]
    Stopped {
        /// Where it led.
        address: String,
    },
}

impl LinkError {
    /// What to do about it for `node`, where there is something.
    #[must_use]
    pub fn remedy(&self, node: &NodeName) -> Option<String> {
        match self {
            Self::Dial { address, .. } | Self::TimedOut { address, .. } => Some(format!(
                "see that the machine is on and that its sshd listens at {address}; the gateway keeps trying"
            )),
            Self::HostKeyChanged { got, words, .. } => Some(format!(
                "only when you know why it changed (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, \
                 on the machine itself): ssh vendetta node add {node} {words} --host-key {got}"
            )),
            Self::Authentication { user, .. } => Some(format!(
                "put the line that this prints into ~{user}/.ssh/authorized_keys of the node: ssh vendetta node key"
            )),
            Self::Handshake { .. } | Self::Lost { .. } | Self::Stopped { .. } => None,
        }
    }

    /// Whether trying again soon may help without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Dial { .. }
            | Self::Handshake { .. }
            | Self::Lost { .. }
            | Self::TimedOut { .. } => true,
            Self::HostKeyChanged { .. } | Self::Authentication { .. } | Self::Stopped { .. } => {
                false
            }
        }
    }
}

/// What a node's sshd does not allow (sshd_config(5)).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Connections to unix sockets.
    #[error("its sshd does not allow connections to unix sockets (AllowStreamLocalForwarding)")]
    StreamLocal,
    /// Connections to TCP ports.
    #[error("its sshd does not allow connections to this port (AllowTcpForwarding, PermitOpen)")]
    Tcp,
    /// Any session.
    #[error("its sshd does not allow commands (MaxSessions)")]
    Sessions,
    /// Commands of our choice.
    #[error("its sshd ran something else than was asked for (ForceCommand, command= or the login shell){}", said(.0))]
    Command(
        /// What came instead, shortened; may be empty.
        String,
    ),
}

fn said(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("; it said: {text}")
    }
}

impl Refusal {
    /// The directive of sshd_config(5) that decides it.
    #[must_use]
    pub fn directive(&self) -> &'static str {
        match self {
            Self::StreamLocal => "AllowStreamLocalForwarding",
            Self::Tcp => "AllowTcpForwarding",
            Self::Sessions => "MaxSessions",
            Self::Command(_) => "ForceCommand",
        }
    }

    /// The line to add, and where.
    #[must_use]
    pub fn remedy(&self) -> String {
        let (line, besides) = match self {
            // sshd forbids sockets too when it forbids ports.
            Self::StreamLocal => (
                "AllowStreamLocalForwarding yes",
                "with AllowTcpForwarding yes, no PermitOpen, no DisableForwarding, and no restrict \
                 or no-port-forwarding before the key in authorized_keys",
            ),
            Self::Tcp => (
                "AllowTcpForwarding yes",
                "with no PermitOpen that leaves the port out, no DisableForwarding, and no restrict, \
                 permitopen or no-port-forwarding before the key in authorized_keys",
            ),
            Self::Sessions => ("MaxSessions 10", "which is the default"),
            Self::Command(_) => {
                return "let the user run commands: no ForceCommand for it in the node's \
                        /etc/ssh/sshd_config, no command= before the key in its authorized_keys, \
                        and a login shell such as /bin/sh"
                    .to_owned();
            }
        };
        format!(
            "put this line into the node's /etc/ssh/sshd_config: {line} ({besides}); then: sudo systemctl reload ssh"
        )
    }
}
