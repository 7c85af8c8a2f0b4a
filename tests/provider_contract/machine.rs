//! The machine that a provider's node is, seen from beside the provider.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use vendetta::node::ssh::{Address, Settings};
use vendetta::node::{LocalNode, NodeTransport, SshNode};
use vendetta::provider::{Endpoint, LXC_SOCKETS};
use vendetta_sshio::keys::PrivateKey;
use vendetta_tests::{Engine, Gateway, LxcEngine, MachineImage, Node, Run};

use crate::subject::Life;

/// Login name of the gateway on a node of the lab: one who may use its engines and is not root.
pub const USER: &str = "dev";

/// Where images of machines are on a node unless its operator says otherwise.
const IMAGES: &str = "/var/lib/vendetta/images";

/// A machine, and the ways to look at it that do not lead through its transport.
pub enum Machine {
    /// The one that the tests run on.
    Own(Shared),
    /// One that is reached through ssh.
    Lab(Node),
}

/// The engine that tests share on their own machine.
pub enum Shared {
    /// None is needed.
    Nothing,
    /// Docker.
    Docker(Arc<Engine>),
    /// Incus or LXD.
    Lxc(Arc<LxcEngine>),
}

impl Machine {
    /// The transport to it, with the files of a gateway of this id.
    pub fn transport(&self, dir: &TempDir, gateway: &str, life: &Life) -> Arc<dyn NodeTransport> {
        match self {
            Self::Own(_) => Arc::new(LocalNode::new(dir.path().join("state"))),
            Self::Lab(node) => {
                let key = std::fs::read_to_string(node.user_key()).unwrap();
                let host_key = node.run(&["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).ok();
                let settings = Settings {
                    name: node
                        .name()
                        .parse::<vendetta_proto::NodeName>()
                        .unwrap()
                        .into(),
                    address: Address {
                        user: USER.to_owned(),
                        host: node.address().to_string(),
                        port: 22,
                        jump: None,
                    },
                    host_keys: vec![host_key.text().parse().unwrap()],
                    key: PrivateKey::from_openssh(&key).unwrap(),
                    state_dir: Path::new("/home")
                        .join(USER)
                        .join(".vendetta")
                        .join(gateway),
                };
                let tasks = life.tasks.clone();
                Arc::new(SshNode::new(settings, tasks, &life.cancel))
            }
        }
    }

    /// The agent's executable there.
    pub fn agent(&self) -> PathBuf {
        let built = Gateway::binary("vendetta-agent");
        self.have(&built, "/usr/local/bin/vendetta-agent")
    }

    /// The image of small virtual machines there.
    pub fn image(&self) -> PathBuf {
        let there = Path::new(IMAGES).join("small.qcow2");
        self.have(&MachineImage::Small.path(), &there.display().to_string())
    }

    /// The folder that it is in there.
    pub fn images(&self) -> PathBuf {
        match self {
            Self::Own(_) => MachineImage::Small.path().with_file_name(""),
            Self::Lab(_) => PathBuf::from(IMAGES),
        }
    }

    /// Sees that a file of this machine is there, at `there` on a node.
    fn have(&self, file: &Path, there: &str) -> PathBuf {
        let Self::Lab(node) = self else {
            return file.to_owned();
        };
        let copy = r#"mkdir -p "${1%/*}" && cat >"$1" && chmod 755 "$1""#;
        node.run(&["sh", "-c", copy, "sh", there])
            .stdin_file(File::open(file).unwrap())
            .ok();
        PathBuf::from(there)
    }

    fn engine(&self) -> &Engine {
        match self {
            Self::Own(Shared::Docker(engine)) => engine,
            _ => panic!("a machine with Docker"),
        }
    }

    /// The socket of its Docker engine.
    pub fn docker_socket(&self) -> PathBuf {
        match self {
            Self::Own(_) => self.engine().socket(),
            Self::Lab(_) => PathBuf::from("/var/run/docker.sock"),
        }
    }

    /// The sockets of its Incus or LXD.
    pub fn lxc_sockets(&self) -> Vec<PathBuf> {
        match self {
            Self::Own(Shared::Lxc(engine)) => vec![engine.socket()],
            _ => LXC_SOCKETS.map(PathBuf::from).to_vec(),
        }
    }

    /// `incus ARGS…` or `lxc ARGS…` at its engine.
    pub fn lxc(&self, args: &[&str]) -> Run {
        match self {
            Self::Own(Shared::Lxc(engine)) => engine.client(args),
            Self::Own(_) => panic!("a machine with Incus or LXD"),
            Self::Lab(node) => node.lxc(args),
        }
    }

    /// Names of the instances and volumes of its Incus or LXD with a label.
    pub fn lxc_labelled(&self, key: &str, value: &str) -> Vec<String> {
        match self {
            Self::Own(Shared::Lxc(engine)) => engine.labelled(key, value),
            Self::Own(_) => panic!("a machine with Incus or LXD"),
            Self::Lab(node) => node.lxc_labelled(key, value),
        }
    }

    /// The node of the lab that it is.
    pub fn node(&self) -> &Node {
        match self {
            Self::Lab(node) => node,
            Self::Own(_) => panic!("a node of the lab"),
        }
    }

    /// A program there, as root.
    pub fn run(&self, argv: &[&str]) -> Run {
        match self {
            Self::Own(_) => Run::new(argv[0]).args(&argv[1..]),
            Self::Lab(node) => node.run(argv),
        }
    }

    /// `docker ARGS…` at its engine.
    pub fn docker(&self, args: &[&str]) -> Run {
        match self {
            Self::Own(_) => self.engine().docker(args),
            Self::Lab(node) => node.docker(args),
        }
    }

    /// Names of the containers and volumes of its engine that carry `label`.
    pub fn labelled(&self, label: &str) -> Vec<String> {
        match self {
            Self::Own(_) => self.engine().labelled(label),
            Self::Lab(node) => node.labelled(label),
        }
    }

    /// A ProxyCommand of OpenSSH that connects to a socket there.
    pub fn relay(&self, endpoint: &Endpoint) -> String {
        let connect = match endpoint {
            Endpoint::Unix(socket) => format!("UNIX-CONNECT:{}", socket.display()),
            Endpoint::Tcp { host, port } => format!("TCP:{host}:{port}"),
        };
        let line = self.run(&["socat", "-", &connect]).shell_line();
        line.replace('%', "%%")
    }
}
