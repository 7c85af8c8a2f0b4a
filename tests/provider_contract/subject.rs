//! A provider under test, and the ways to look at what it made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta::node::NodeTransport;
use vendetta::provider::{
    Context, Docker, Endpoint, Environment, Host, Placement, Provider, run_dir,
};
use vendetta::workspace::{ProgressSink, WorkspaceId};
use vendetta_proto::agent::{AgentConfig, CONFIG_VERSION};
use vendetta_proto::spec::{DockerConfig, ProjectConfig, ProviderKind};
use vendetta_sshio::keys::PrivateKey;
use vendetta_tests::{Engine, Node, PATIENCE, Run, TOOLS};

use crate::machine::{Machine, USER};

/// A provider with a node of its own.
pub struct Subject {
    dir: TempDir,
    pub machine: Machine,
    pub node: Arc<dyn NodeTransport>,
    pub provider: Arc<dyn Provider>,
    /// The same engine for another gateway.
    pub stranger: Arc<dyn Provider>,
    config: ProjectConfig,
    agent: PathBuf,
    /// Who the agent is.
    user: &'static str,
    gateway_id: String,
    host_key: PrivateKey,
    life: Life,
}

/// The tasks of a subject, and their end.
#[derive(Default)]
pub struct Life {
    pub tasks: TaskTracker,
    pub cancel: CancellationToken,
}

impl Subject {
    pub fn docker() -> Self {
        Self::new(ProviderKind::Docker, Machine::Own(Some(Engine::shared())))
    }

    pub fn host() -> Self {
        Self::new(ProviderKind::Host, Machine::Own(None))
    }

    pub fn docker_on_node() -> Self {
        Self::new(ProviderKind::Docker, Machine::Lab(Node::with_docker()))
    }

    pub fn host_on_node() -> Self {
        Self::new(ProviderKind::Host, Machine::Lab(Node::start()))
    }

    /// On a node to which a packet takes 50 ms, and as long back.
    pub fn docker_far_away() -> Self {
        Self::docker_on_node().far_away()
    }

    /// On a node to which a packet takes 50 ms, and as long back.
    pub fn host_far_away() -> Self {
        Self::host_on_node().far_away()
    }

    fn far_away(self) -> Self {
        if let Machine::Lab(node) = &self.machine {
            node.delay(Duration::from_millis(50));
        }
        self
    }

    fn new(kind: ProviderKind, machine: Machine) -> Self {
        // Not in target: unix socket paths must stay short.
        let dir = tempfile::Builder::new()
            .prefix("vendetta-p-")
            .tempdir_in("/tmp")
            .unwrap();
        let life = Life::default();
        let gateway_id = WorkspaceId::random().to_string();
        let node = machine.transport(&dir, &gateway_id, &life);
        Run::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.path().join("key"))
            .ok();
        let mut config = ProjectConfig::default();
        if kind == ProviderKind::Docker {
            let image = TOOLS.to_owned();
            config.docker = Some(DockerConfig::from_image(image));
        }
        let make = |gateway: String| make(kind, &machine, &node, gateway, &life);
        Self {
            provider: make(gateway_id.clone()),
            stranger: make(format!("{gateway_id}-stranger")),
            agent: machine.agent(),
            user: match (&machine, kind) {
                (Machine::Lab(_), ProviderKind::Host) => USER,
                _ => "root",
            },
            machine,
            dir,
            node,
            config,
            gateway_id,
            host_key: PrivateKey::generate_ed25519("test").unwrap(),
            life,
        }
    }

    /// The same provider as another process of the same gateway would make it.
    pub fn heir(&self) -> Arc<dyn Provider> {
        make(
            self.provider.kind(),
            &self.machine,
            &self.node,
            self.gateway_id.clone(),
            &self.life,
        )
    }

    /// An environment that may be made.
    pub fn environment(&self) -> Environment {
        let id = WorkspaceId::random();
        let mut config = self.config.clone();
        config
            .env
            .insert("GREETING".to_owned(), "hello world".to_owned());
        Environment {
            build_context: None,
            run_dir: run_dir(self.node.as_ref(), &id),
            id,
            name: "web".parse().unwrap(),
            generation: 1,
            config,
            agent: self.agent.clone(),
        }
    }

    pub fn context(&self) -> Context {
        Context {
            progress: ProgressSink::new(),
            cancel: CancellationToken::new(),
        }
    }

    /// A folder for what a test makes.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Makes an environment with all that its agent needs, not started.
    pub async fn create(&self, environment: &Environment) -> Placement {
        self.node.make_dir(&environment.run_dir).await.unwrap();
        let context = self.context();
        let placement = self.provider.create(environment, &context).await.unwrap();
        let key = std::fs::read_to_string(self.dir.path().join("key.pub")).unwrap();
        let config = AgentConfig {
            version: CONFIG_VERSION,
            workspace: environment.name.to_string(),
            host_key: self.host_key.to_openssh().unwrap(),
            host_certificate: None,
            gateway_keys: vec![key.trim().to_owned()],
            listen: placement.listen.clone(),
            user: placement.user.clone(),
            env: environment.config.env.clone(),
            workdir: Some(placement.workdir.clone()),
            services: BTreeMap::new(),
            host_ports: BTreeMap::new(),
            log_dir: None,
        };
        let config = serde_json::to_vec(&config).unwrap();
        let path = environment.run_dir.join("agent.json");
        self.node.put(&path, 0o600, &config).await.unwrap();
        placement
    }

    /// Makes and starts an environment, and waits until a command runs in it.
    pub async fn up(&self, environment: &Environment) -> Placement {
        let placement = self.create(environment).await;
        self.provider.start(environment).await.unwrap();
        self.answers(&placement).await;
        placement
    }

    /// Waits until the agent answers, first through the node's transport as a gateway
    /// does, then to OpenSSH.
    pub async fn answers(&self, placement: &Placement) {
        let began = Instant::now();
        while let Err(error) = self.greeted(placement).await {
            assert!(began.elapsed() < PATIENCE, "{placement:?}: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.ssh(placement, "true").ok();
    }

    /// Whether there is an SSH server.
    async fn greeted(&self, placement: &Placement) -> anyhow::Result<()> {
        let mut stream = self.node.open_unix(socket(placement)).await?;
        let mut said = [0; 8];
        stream.read_exact(&mut said).await?;
        anyhow::ensure!(said == *b"SSH-2.0-", "it says {said:?}");
        Ok(())
    }

    /// A command in the environment, through its agent, as the user that the agent is.
    pub fn ssh(&self, placement: &Placement, command: &str) -> Run {
        self.ssh_as(self.user, placement, command)
    }

    /// A command in the environment, through its agent.
    pub fn ssh_as(&self, user: &str, placement: &Placement, command: &str) -> Run {
        let key = self.dir.path().join("key");
        let options = [
            format!("ProxyCommand={}", self.machine.relay(socket(placement))),
            format!(
                "UserKnownHostsFile={}/known_hosts",
                self.dir.path().display()
            ),
            "StrictHostKeyChecking=accept-new".to_owned(),
            "BatchMode=yes".to_owned(),
            "LogLevel=ERROR".to_owned(),
        ];
        let mut run = Run::new("ssh").args(["-F", "none", "-i"]).arg(key);
        for option in options {
            run = run.arg("-o").arg(option);
        }
        run.arg(format!("{user}@workspace")).arg(command)
    }

    /// What a command in the environment says.
    pub fn says(&self, placement: &Placement, command: &str) -> String {
        self.ssh(placement, command)
            .ok()
            .text()
            .trim_end()
            .to_owned()
    }

    /// Ends the environment the hard way, behind the provider's back.
    pub fn murder(&self, environment: &Environment) {
        if self.provider.kind() == ProviderKind::Docker {
            let name = format!("vendetta-{}-{}", environment.name, environment.id);
            self.machine.docker(&["kill", &name]).ok();
        } else {
            let kill = r#"read -r pid start <"$1/agent.pid" && kill -9 "$pid""#;
            let dir = &environment.run_dir;
            self.machine.run(&["sh", "-c", kill, "sh"]).arg(dir).ok();
        }
    }

    /// Whether anything is left of a workspace, wherever the provider keeps things.
    pub fn leftovers(&self, id: &WorkspaceId) -> Vec<String> {
        let dir = run_dir(self.node.as_ref(), id);
        let look = |argv: &[&str], path: &Path| {
            let said = self.machine.run(argv).arg(path).finish();
            let lines = said.text();
            lines.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let mut left = look(&["ls", "-d", "--"], &dir);
        left.extend(look(&["pgrep", "-f", "-a", "--"], &dir.join("agent.json")));
        if self.provider.kind() == ProviderKind::Docker {
            let label = format!("vendetta.workspace={id}");
            left.extend(self.machine.labelled(&label));
        }
        left
    }
}

fn socket(placement: &Placement) -> &Path {
    match &placement.endpoint {
        Endpoint::Unix(socket) => socket,
        Endpoint::Tcp { .. } => panic!("not a unix socket: {placement:?}"),
    }
}

fn make(
    kind: ProviderKind,
    machine: &Machine,
    node: &Arc<dyn NodeTransport>,
    gateway: String,
    life: &Life,
) -> Arc<dyn Provider> {
    let node = Arc::clone(node);
    if kind == ProviderKind::Docker {
        let tasks = life.tasks.clone();
        Arc::new(Docker::new(node, machine.docker_socket(), gateway, tasks))
    } else {
        Arc::new(Host::new(node, gateway))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.life.cancel.cancel();
        let gateways = [
            self.gateway_id.clone(),
            format!("{}-stranger", self.gateway_id),
        ];
        match &self.machine {
            // With the node goes what is on it.
            Machine::Lab(_) => {}
            Machine::Own(Some(engine)) => {
                for id in gateways {
                    engine.remove_labelled(&format!("vendetta.gateway={id}"));
                }
            }
            Machine::Own(None) => kill_agents(&self.node.state_dir().join("w")),
        }
    }
}

/// Ends the agents that run on this machine for the workspaces in a directory.
fn kill_agents(workspaces: &Path) {
    let entries = std::fs::read_dir(workspaces).into_iter().flatten();
    for dir in entries.flatten().map(|entry| entry.path()) {
        let record = std::fs::read_to_string(dir.join("agent.pid")).unwrap_or_default();
        let pid = record.split(' ').next().and_then(|pid| pid.parse().ok());
        let Some(pid) = pid else { continue };
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&cmdline).contains(&*dir.to_string_lossy()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
