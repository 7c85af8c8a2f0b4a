//! Where an engine listens on a node, and why none can be asked, as far as the node tells.

use std::path::{Path, PathBuf};

use vendetta_proto::NodeName;

use crate::node::{Command, NodeError, NodeTransport};

/// Says of each path given whether it is a socket that we may open, which engines are
/// installed, and who we are.
const LOOK: &str = r#"
PATH=$PATH:/usr/sbin:/sbin:/usr/local/bin:/snap/bin:/usr/libexec/incus
for socket; do
    [ -S "$socket" ] || continue
    if [ -r "$socket" ] && [ -w "$socket" ]; then echo "usable $socket"
    else echo "denied $(stat -c %G -- "$socket") $socket"; fi
done
for program in incusd lxd; do
    if command -v "$program" >/dev/null 2>&1; then echo "installed $program"; fi
done
echo "user $(id -un)"
"#;

/// What there is of Incus and LXD on a node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Looked {
    /// Sockets that we may open, the preferred first.
    pub usable: Vec<PathBuf>,
    /// Sockets that we may not open, with the group that may.
    denied: Vec<(String, PathBuf)>,
    installed: Vec<String>,
    user: String,
}

impl Looked {
    fn read(said: &str) -> Self {
        let mut looked = Self::default();
        for line in said.lines() {
            match line.split_once(' ') {
                Some(("usable", socket)) => looked.usable.push(PathBuf::from(socket)),
                Some(("denied", rest)) => {
                    if let Some((group, socket)) = rest.split_once(' ') {
                        looked.denied.push((group.to_owned(), socket.into()));
                    }
                }
                Some(("installed", program)) => looked.installed.push(program.to_owned()),
                Some(("user", user)) => user.clone_into(&mut looked.user),
                _ => {}
            }
        }
        looked
    }

    /// Problem and remedy for people, when we may not open a socket.
    pub(super) fn denied(&self, node: &NodeName) -> Option<(String, String)> {
        let (group, socket) = self.denied.first()?;
        let user = &self.user;
        Some((
            format!("user {user} may not open {}", socket.display()),
            format!(
                "add the user to the socket's group: sudo usermod -aG {group} {user}; {}",
                again(node)
            ),
        ))
    }

    /// Problem and remedy for people, when no engine at any of `sockets` could be asked.
    pub(super) fn explain(&self, node: &NodeName, sockets: &[PathBuf]) -> (String, String) {
        if let Some(denied) = self.denied(node) {
            return denied;
        }
        if let Some(socket) = self.usable.first() {
            return (
                format!("no engine listens at {}", socket.display()),
                "start it, for instance: sudo systemctl start incus, or lxd".to_owned(),
            );
        }
        if let [socket] = sockets {
            return (
                format!("no engine listens at {}", socket.display()),
                "start it, or name its socket in section [lxc] of the gateway's config".to_owned(),
            );
        }
        match self.installed.first().map(String::as_str) {
            None => (
                "neither Incus nor LXD is installed".to_owned(),
                format!(
                    "install one on the node, for instance: sudo apt-get install incus && \
                     sudo incus admin init --auto; {}",
                    again(node)
                ),
            ),
            Some("incusd") => (
                "Incus is installed and does not run".to_owned(),
                "start it, for instance: sudo systemctl start incus".to_owned(),
            ),
            Some(_) => (
                "LXD is installed and does not run".to_owned(),
                "start it, for instance: sudo systemctl start lxd".to_owned(),
            ),
        }
    }
}

/// What to do once a user may do more.
fn again(node: &NodeName) -> String {
    if node.as_str() == NodeName::LOCAL {
        "and start the gateway again".to_owned()
    } else {
        format!("then: ssh vendetta node test {node}")
    }
}

/// Looks for engines at `sockets` of a node.
pub(super) async fn look(
    node: &dyn NodeTransport,
    sockets: &[PathBuf],
) -> Result<Looked, NodeError> {
    let mut command = Command::new(["sh", "-c", LOOK, "sh"]);
    let paths = sockets.iter().map(|socket: &PathBuf| text(socket));
    command.argv.extend(paths);
    let output = node.exec(&command).await?;
    Ok(Looked::read(&String::from_utf8_lossy(&output.stdout)))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_named_with_what_to_do() {
        let node: NodeName = "n1".parse().unwrap();
        let about = |said| Looked::read(said).explain(&node, &[]);
        let (problem, remedy) =
            about("denied incus-admin /var/lib/incus/unix.socket\ninstalled incusd\nuser dev\n");
        assert!(problem.contains("user dev may not open /var/lib/incus/unix.socket"));
        assert!(remedy.contains("usermod -aG incus-admin dev"), "{remedy}");
        assert!(remedy.contains("node test n1"), "{remedy}");
        assert!(about("user dev").0.contains("neither Incus nor LXD"));
        assert!(about("installed lxd\nuser dev").0.contains("LXD is inst"));
        assert!(about("usable /x\nuser dev").0.contains("listens at /x"));
        let configured = [PathBuf::from("/its/socket")];
        let (problem, remedy) = Looked::read("installed incusd").explain(&node, &configured);
        assert!(
            problem.contains("/its/socket") && remedy.contains("[lxc]"),
            "{problem}: {remedy}"
        );
        assert!(!about("noise\n\0 \n denied").0.is_empty());
    }
}
