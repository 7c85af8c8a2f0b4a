//! Why an engine's socket cannot be opened, as far as the node tells.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use vendetta_proto::NodeName;

use crate::node::{Command, NodeError, NodeTransport};

/// Says whether Docker is installed, who we are, and whose group the socket is.
const LOOK: &str = r#"
PATH=$PATH:/usr/sbin:/sbin:/usr/local/bin:/snap/bin
if command -v dockerd >/dev/null 2>&1 || command -v docker >/dev/null 2>&1; then echo installed; else echo missing; fi
id -un
stat -c %G -- "$1" 2>/dev/null
"#;

/// Why an engine's socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Docker is not there.
    #[error("Docker is not installed")]
    NotInstalled,
    /// Nobody listens at the socket.
    #[error("no engine listens at {}", .0.display())]
    NotRunning(PathBuf),
    /// We may not open it.
    #[error("user {user} may not open {}", socket.display())]
    Denied {
        /// The socket.
        socket: PathBuf,
        /// Who we are on the node.
        user: String,
        /// The group that may open it.
        group: String,
    },
    /// The node did not do its part.
    #[error(transparent)]
    Node(NodeError),
}

impl Unusable {
    /// Problem and remedy, for people.
    pub(super) fn explain(&self, node: &NodeName) -> (String, String) {
        let again = if node.as_str() == NodeName::LOCAL {
            "and start the gateway again".to_owned()
        } else {
            format!("then: ssh vendetta node test {node}")
        };
        let remedy = match self {
            Self::NotInstalled => {
                format!(
                    "install it on the node, for instance: sudo apt-get install docker.io; {again}"
                )
            }
            Self::NotRunning(_) => "start it, for instance: sudo systemctl start docker".to_owned(),
            Self::Denied { user, group, .. } => {
                format!(
                    "add the user to the socket's group: sudo usermod -aG {group} {user}; {again}"
                )
            }
            Self::Node(error) => error.remedy().unwrap_or(again),
        };
        (self.to_string(), remedy)
    }
}

/// What `error`, which opening `socket` came to, means.
pub(super) async fn why_not(node: &dyn NodeTransport, socket: &Path, error: NodeError) -> Unusable {
    let kind = error.io_kind();
    let telling = [
        io::ErrorKind::NotFound,
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::PermissionDenied,
    ];
    let Some(kind) = kind.filter(|kind| telling.contains(kind)) else {
        return Unusable::Node(error);
    };
    let path = socket.display().to_string();
    let looked = node
        .exec(&Command::new(["sh", "-c", LOOK, "sh", &path]))
        .await;
    let said = looked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    let mut lines = said.lines();
    let installed = lines.next() != Some("missing");
    let mut word = |default: &str| {
        let line = lines.next().map(str::trim).filter(|line| !line.is_empty());
        line.unwrap_or(default).to_owned()
    };
    match kind {
        io::ErrorKind::PermissionDenied => Unusable::Denied {
            socket: socket.to_owned(),
            user: word("USER"),
            group: word("docker"),
        },
        io::ErrorKind::NotFound if !installed => Unusable::NotInstalled,
        _ => Unusable::NotRunning(socket.to_owned()),
    }
}
