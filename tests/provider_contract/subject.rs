//! A provider under test, and the ways to look at what it made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta::node::{LocalNode, NodeTransport};
use vendetta::provider::{
    Context, Docker, Endpoint, Environment, Host, Placement, Provider, run_dir,
};
use vendetta::workspace::{ProgressSink, WorkspaceId};
use vendetta_proto::agent::{AgentConfig, CONFIG_VERSION};
use vendetta_proto::spec::{DockerConfig, ProjectConfig};
use vendetta_sshio::keys::PrivateKey;
use vendetta_tests::{Engine, Gateway, Run, TOOLS};

/// A provider with a node of its own.
pub struct Subject {
    dir: TempDir,
    pub node: Arc<dyn NodeTransport>,
    pub provider: Arc<dyn Provider>,
    /// The same engine for another gateway.
    pub stranger: Arc<dyn Provider>,
    config: ProjectConfig,
    engine: Option<Arc<Engine>>,
    gateway_id: String,
    host_key: PrivateKey,
    make: Make,
}

type Make = Box<dyn Fn(Arc<dyn NodeTransport>, String) -> Arc<dyn Provider> + Send + Sync>;

/// The engine's socket: that of `VENDETTA_TEST_DOCKER_SOCKET`, else of an engine of our own.
fn docker_socket() -> (Option<Arc<Engine>>, PathBuf) {
    match std::env::var_os("VENDETTA_TEST_DOCKER_SOCKET") {
        Some(socket) => (None, socket.into()),
        None => {
            let engine = Engine::shared();
            let socket = engine.socket();
            (Some(engine), socket)
        }
    }
}

impl Subject {
    pub fn docker() -> Self {
        let (engine, socket) = docker_socket();
        let config = ProjectConfig {
            docker: Some(DockerConfig {
                image: TOOLS.to_owned(),
            }),
            ..ProjectConfig::default()
        };
        let make = move |node, gateway| -> Arc<dyn Provider> {
            let tracker = TaskTracker::new();
            Arc::new(Docker::new(node, socket.clone(), gateway, tracker))
        };
        Self::new(config, engine, Box::new(make))
    }

    pub fn host() -> Self {
        let make = |node, gateway| -> Arc<dyn Provider> { Arc::new(Host::new(node, gateway)) };
        Self::new(ProjectConfig::default(), None, Box::new(make))
    }

    fn new(config: ProjectConfig, engine: Option<Arc<Engine>>, make: Make) -> Self {
        // Not in target: unix socket paths must stay short.
        let dir = tempfile::Builder::new()
            .prefix("vendetta-p-")
            .tempdir_in("/tmp")
            .unwrap();
        let node: Arc<dyn NodeTransport> = Arc::new(LocalNode::new(dir.path().join("state")));
        let gateway_id = WorkspaceId::random().to_string();
        Run::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.path().join("key"))
            .ok();
        Self {
            provider: make(Arc::clone(&node), gateway_id.clone()),
            stranger: make(Arc::clone(&node), format!("{gateway_id}-stranger")),
            make,
            dir,
            node,
            config,
            engine,
            gateway_id,
            host_key: PrivateKey::generate_ed25519("test").unwrap(),
        }
    }

    /// The same provider as another process of the same gateway would make it.
    pub fn heir(&self) -> Arc<dyn Provider> {
        (self.make)(Arc::clone(&self.node), self.gateway_id.clone())
    }

    /// An environment that may be made.
    pub fn environment(&self) -> Environment {
        let id = WorkspaceId::random();
        let mut config = self.config.clone();
        config
            .env
            .insert("GREETING".to_owned(), "hello world".to_owned());
        Environment {
            run_dir: run_dir(self.node.as_ref(), &id),
            id,
            name: "web".parse().unwrap(),
            generation: 1,
            config,
            agent: Gateway::binary("vendetta-agent"),
        }
    }

    pub fn context(&self) -> Context {
        Context {
            progress: ProgressSink::new(),
            cancel: CancellationToken::new(),
        }
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

    /// Waits until the agent answers.
    pub async fn answers(&self, placement: &Placement) {
        for _ in 0..1000 {
            if self.ssh(placement, "true").finish().status.success() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the agent at {placement:?} does not answer");
    }

    /// A command in the environment, through its agent, as root.
    pub fn ssh(&self, placement: &Placement, command: &str) -> Run {
        self.ssh_as("root", placement, command)
    }

    /// A command in the environment, through its agent.
    pub fn ssh_as(&self, user: &str, placement: &Placement, command: &str) -> Run {
        let Endpoint::Unix(socket) = &placement.endpoint else {
            panic!("not a unix socket: {placement:?}");
        };
        let key = self.dir.path().join("key");
        let options = [
            format!("ProxyCommand=socat - UNIX-CONNECT:{}", socket.display()),
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
        match &self.engine {
            Some(engine) => {
                let name = format!("vendetta-{}-{}", environment.name, environment.id);
                engine.docker(&["kill", &name]).ok();
            }
            None => {
                let pid = pid_of(&environment.run_dir).expect("a pid file");
                kill(pid, Signal::SIGKILL).unwrap();
            }
        }
    }

    /// Whether anything is left of a workspace, wherever the provider keeps things.
    pub fn leftovers(&self, id: &WorkspaceId) -> Vec<String> {
        let mut left = Vec::new();
        let dir = run_dir(self.node.as_ref(), id);
        if dir.exists() {
            left.push(dir.display().to_string());
        }
        if let Some(engine) = &self.engine {
            left.extend(engine.labelled(&format!("vendetta.workspace={id}")));
        }
        let argument = dir.join("agent.json");
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let text = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            if text.contains(&*argument.to_string_lossy()) {
                left.push(format!("process {} {text}", entry.path().display()));
            }
        }
        left
    }

    pub fn state_dir(&self) -> &Path {
        self.node.state_dir()
    }
}

fn pid_of(dir: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(dir.join("agent.pid")).ok()?;
    let pid = text.split(' ').next()?.parse().ok()?;
    Some(Pid::from_raw(pid))
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(engine) = &self.engine {
            for id in [
                self.gateway_id.clone(),
                format!("{}-stranger", self.gateway_id),
            ] {
                engine.remove_labelled(&format!("vendetta.gateway={id}"));
            }
            return;
        }
        let workspaces = std::fs::read_dir(self.state_dir().join("w"));
        for dir in workspaces.into_iter().flatten().flatten() {
            if let Some(pid) = pid_of(&dir.path()) {
                let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if String::from_utf8_lossy(&cmdline).contains(&*dir.path().to_string_lossy()) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
    }
}
