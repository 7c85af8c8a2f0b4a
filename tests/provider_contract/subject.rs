//! A provider under test, and the ways to look at what it made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta::node::Kvm;
use vendetta::node::NodeTransport;
use vendetta::provider::{
    Context, Docker, Endpoint, Environment, Farewell, Host, Lxc as LxcProvider, Placement,
    Provider, Qemu, QemuSettings, run_dir,
};
use vendetta::workspace::{ProgressSink, WorkspaceId};
use vendetta_proto::agent::{AgentConfig, CONFIG_VERSION};
use vendetta_proto::spec::{
    Accel, DockerConfig, LxcConfig, ProjectConfig, ProviderKind, QemuConfig,
};
use vendetta_sshio::keys::PrivateKey;
use vendetta_tests::{BOOT, Engine, Lxc, LxcEngine, Node, PATIENCE, Process, Run, TOOLS};

use crate::machine::{Machine, Shared, USER};

/// The label of instances and volumes that names their workspace.
const WORKSPACE_LABEL: &str = "user.vendetta.workspace";

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
        Self::new(
            ProviderKind::Docker,
            Machine::Own(Shared::Docker(Engine::shared())),
        )
    }

    pub fn host() -> Self {
        Self::new(ProviderKind::Host, Machine::Own(Shared::Nothing))
    }

    pub fn lxc_on_incus() -> Self {
        Self::lxc(Lxc::Incus)
    }

    pub fn lxc_on_lxd() -> Self {
        Self::lxc(Lxc::Lxd)
    }

    pub fn lxc(engine: Lxc) -> Self {
        let engine = LxcEngine::shared(engine);
        Self::new(ProviderKind::Lxc, Machine::Own(Shared::Lxc(engine)))
    }

    pub fn lxc_on_node_with_incus() -> Self {
        Self::lxc_on_node(Lxc::Incus)
    }

    pub fn lxc_on_node_with_lxd() -> Self {
        Self::lxc_on_node(Lxc::Lxd)
    }

    fn lxc_on_node(engine: Lxc) -> Self {
        Self::lxc_on(Node::builder().lxc(engine).start())
    }

    pub fn lxc_on(node: Node) -> Self {
        Self::new(ProviderKind::Lxc, Machine::Lab(node))
    }

    /// On a node to which a packet takes 50 ms, and as long back.
    pub fn lxc_far_away() -> Self {
        Self::lxc_on_node(Lxc::Incus).far_away()
    }

    pub fn docker_on_node() -> Self {
        Self::new(ProviderKind::Docker, Machine::Lab(Node::with_docker()))
    }

    pub fn host_on_node() -> Self {
        Self::new(ProviderKind::Host, Machine::Lab(Node::start()))
    }

    pub fn qemu() -> Self {
        Self::new(ProviderKind::Qemu, Machine::Own(Shared::Nothing))
    }

    pub fn qemu_on_node() -> Self {
        Self::new(ProviderKind::Qemu, Machine::Lab(Node::start()))
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
        match kind {
            ProviderKind::Docker => {
                let image = TOOLS.to_owned();
                config.docker = Some(DockerConfig::from_image(image));
            }
            ProviderKind::Lxc => {
                let image = "busybox".to_owned();
                config.lxc = Some(LxcConfig { image });
            }
            ProviderKind::Qemu => config.qemu = Some(small(machine.image().display().to_string())),
            ProviderKind::Host => {}
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

    /// Incus or LXD as another process of the same gateway would find it at `sockets`.
    pub fn lxc_heir(&self, sockets: &[&str]) -> LxcProvider {
        LxcProvider::new(
            Arc::clone(&self.node),
            sockets.iter().map(PathBuf::from).collect(),
            self.gateway_id.clone(),
            self.life.tasks.clone(),
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
            farewell: Farewell::default(),
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
            volumes: placement.volumes.clone(),
            services: BTreeMap::new(),
            host_ports: BTreeMap::new(),
            log_dir: placement.log_dir.clone(),
            own_network: placement.own_network,
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
            assert!(
                began.elapsed() < self.boot_limit(),
                "{placement:?}: {error}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.ssh(placement, "true").ok();
    }

    /// How often work is cut off that starts an environment twice each time: once, where
    /// that is a machine which boots emulated (tests/recovery cuts it off more often).
    pub fn rounds(&self) -> usize {
        match self.provider.kind() {
            ProviderKind::Qemu => 1,
            _ => 8,
        }
    }

    fn boot_limit(&self) -> Duration {
        match self.provider.kind() {
            ProviderKind::Qemu => BOOT,
            _ => PATIENCE,
        }
    }

    /// Whether there is an SSH server.
    async fn greeted(&self, placement: &Placement) -> anyhow::Result<()> {
        let mut stream = match &placement.endpoint {
            Endpoint::Unix(socket) => self.node.open_unix(socket).await?,
            Endpoint::Tcp { host, port } => self.node.open_tcp(host, *port).await?,
        };
        let mut said = [0; 8];
        // What QEMU accepts in the place of a machine that does not listen yet is mute.
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut said)).await??;
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
            format!("ProxyCommand={}", self.machine.relay(&placement.endpoint)),
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
        match self.provider.kind() {
            ProviderKind::Docker => {
                let name = format!("vendetta-{}-{}", environment.name, environment.id);
                self.machine.docker(&["kill", &name]).ok();
            }
            ProviderKind::Lxc => {
                let name = self.instance(environment);
                self.machine.lxc(&["stop", "--force", &name]).ok();
            }
            kind @ (ProviderKind::Host | ProviderKind::Qemu) => {
                let file = if kind == ProviderKind::Qemu {
                    "pid"
                } else {
                    "agent.pid"
                };
                let kill = r#"read -r pid start <"$1" && kill -9 "$pid""#;
                let pid = environment.run_dir.join(file);
                self.machine.run(&["sh", "-c", kill, "sh"]).arg(pid).ok();
            }
        }
    }

    /// Name of the instance of Incus or LXD that an environment is.
    pub fn instance(&self, environment: &Environment) -> String {
        let (key, id) = (WORKSPACE_LABEL, environment.id.as_str());
        let mut names = self.machine.lxc_labelled(key, id).into_iter();
        let name = names.find_map(|name| Some(name.strip_prefix("instance ")?.to_owned()));
        name.expect("an instance")
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
        // What its processes have among their arguments.
        for file in ["agent.json", "pid"] {
            left.extend(look(&["pgrep", "-f", "-a", "--"], &dir.join(file)));
        }
        if self.provider.kind() == ProviderKind::Docker {
            let label = format!("vendetta.workspace={id}");
            left.extend(self.machine.labelled(&label));
        }
        if self.provider.kind() == ProviderKind::Lxc {
            left.extend(self.machine.lxc_labelled(WORKSPACE_LABEL, id.as_str()));
        }
        left
    }
}

/// A machine of the small image that takes as little as it can.
fn small(image: String) -> QemuConfig {
    QemuConfig {
        image,
        cpu: Some(1),
        memory: Some("256M".parse().unwrap()),
        disk: Some("1G".parse().unwrap()),
        accel: Some(Accel::Tcg),
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
    let tasks = life.tasks.clone();
    match kind {
        ProviderKind::Docker => {
            Arc::new(Docker::new(node, machine.docker_socket(), gateway, tasks))
        }
        ProviderKind::Lxc => Arc::new(LxcProvider::new(
            node,
            machine.lxc_sockets(),
            gateway,
            tasks,
        )),
        ProviderKind::Qemu => {
            let settings = QemuSettings {
                image_dirs: vec![machine.images()],
                ..QemuSettings::default()
            };
            Arc::new(Qemu::new(node, gateway, settings, Some(Kvm::Absent)))
        }
        ProviderKind::Host => Arc::new(Host::new(node, gateway)),
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
            Machine::Own(Shared::Docker(engine)) => {
                for id in gateways {
                    engine.remove_labelled(&format!("vendetta.gateway={id}"));
                }
            }
            Machine::Own(Shared::Lxc(engine)) => {
                for id in gateways {
                    engine.remove_labelled("user.vendetta.gateway", &id);
                }
            }
            // Agents and machines have it among their arguments.
            Machine::Own(Shared::Nothing) => {
                let workspaces = self.node.state_dir().join("w");
                for process in Process::with_argument(&workspaces.display().to_string()) {
                    process.signal(Signal::SIGKILL);
                }
            }
        }
    }
}
