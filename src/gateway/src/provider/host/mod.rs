//! Directories of the node itself, without isolation: the agent is a process
//! of the node that outlives the gateway.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use vendetta_proto::spec::ProviderKind;

mod process;

use super::log_file::{Lives, LogFile};
use super::{
    Context, Endpoint, Environment, Exit, LogOptions, LogStream, Placement, Provider,
    ProviderError, run_dir,
};
use crate::node::{Command, NodeTransport};
use crate::workspace::{Found, WorkspaceId};
use process::{LAUNCH, Process, is_agent_of, parse_pid_file, start_time};

/// How often processes are looked at for [`Provider::changes`].
const LOOK: Duration = Duration::from_secs(1);

/// How often a process that is about to end is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long a process may take to write its pid file.
const LAUNCH_LIMIT: Duration = Duration::from_secs(15);

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Lines of its log that tell how an agent ended.
const LAST_LINES: u32 = 20;

/// What says that a directory is an environment of ours.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    gateway: String,
    generation: u64,
}

/// Directories of a node.
#[derive(Debug, Clone)]
pub struct Host {
    node: Arc<dyn NodeTransport>,
    gateway_id: String,
}

impl Host {
    /// Directories of `node`, for the gateway of this id.
    #[must_use]
    pub fn new(node: Arc<dyn NodeTransport>, gateway_id: String) -> Self {
        Self { node, gateway_id }
    }

    fn dir(&self, id: &WorkspaceId) -> PathBuf {
        run_dir(self.node.as_ref(), id)
    }

    async fn marker(&self, id: &WorkspaceId) -> Result<Option<Marker>, ProviderError> {
        let content = self
            .node
            .read(&self.dir(id).join("environment.json"))
            .await?;
        let marker = content.and_then(|content| serde_json::from_slice::<Marker>(&content).ok());
        Ok(marker.filter(|marker| marker.gateway == self.gateway_id))
    }

    /// The process that the pid file names.
    async fn recorded(&self, id: &WorkspaceId) -> Result<Option<Process>, ProviderError> {
        let content = self.node.read(&self.dir(id).join("agent.pid")).await?;
        Ok(content.and_then(|content| parse_pid_file(&content)))
    }

    /// The agent's process, or the one about to become it, when it lives.
    async fn process(&self, id: &WorkspaceId) -> Result<Option<Process>, ProviderError> {
        let Some(process) = self.recorded(id).await? else {
            return Ok(None);
        };
        let proc = PathBuf::from(format!("/proc/{}", process.pid));
        // A process may vanish between two reads, which is as good as gone before.
        let (Ok(Some(stat)), Ok(Some(arguments))) = (
            self.node.read(&proc.join("stat")).await,
            self.node.read(&proc.join("cmdline")).await,
        ) else {
            return Ok(None);
        };
        let ours =
            start_time(&stat) == Some(process.started) && is_agent_of(&arguments, &self.dir(id));
        Ok(ours.then_some(process))
    }

    async fn signal(&self, process: Process, signal: &str) -> Result<(), ProviderError> {
        let kill = [
            "sh",
            "-c",
            r#"kill -s "$1" "$2" 2>/dev/null || true"#,
            "sh",
            signal,
        ];
        let mut command = Command::new(kill);
        command.argv.push(process.pid.to_string());
        self.node.exec(&command).await?;
        Ok(())
    }

    async fn gone_within(&self, id: &WorkspaceId, limit: Duration) -> Result<bool, ProviderError> {
        let deadline = Instant::now() + limit;
        while self.process(id).await?.is_some() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(POLL).await;
        }
        Ok(true)
    }

    fn failed(&self, operation: &'static str, problem: impl Into<String>) -> ProviderError {
        ProviderError::Engine {
            provider: ProviderKind::Host,
            node: self.node.name(),
            operation,
            problem: problem.into(),
            remedy: None,
        }
    }

    async fn run(
        &self,
        operation: &'static str,
        argv: Vec<String>,
    ) -> Result<Vec<u8>, ProviderError> {
        let output = self.node.exec(&Command::new(argv)).await?;
        if output.status == Some(0) {
            Ok(output.stdout)
        } else {
            let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(self.failed(operation, problem))
        }
    }

    fn log(&self, id: &WorkspaceId) -> LogFile {
        LogFile {
            node: Arc::clone(&self.node),
            path: self.dir(id).join("agent.log"),
            provider: ProviderKind::Host,
        }
    }

    /// Lets its owner remove what is in a directory whose own directories are read-only,
    /// as in a module cache of Go.
    async fn make_writable(&self, dir: &Path) -> Result<(), ProviderError> {
        let mut command = Command::new(["chmod", "-R", "u+rwX", "--"]);
        command.argv.push(dir.display().to_string());
        // What it cannot change is what cannot be removed.
        self.node.exec(&command).await?;
        Ok(())
    }
}

#[async_trait]
impl Provider for Host {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Host
    }

    async fn probe(&self) -> Result<String, ProviderError> {
        let argv = ["uname", "-sr"].map(str::to_owned).to_vec();
        let kernel = self.run("ask its kernel", argv).await?;
        Ok(String::from_utf8_lossy(&kernel).trim().to_owned())
    }

    async fn create(
        &self,
        environment: &Environment,
        context: &Context,
    ) -> Result<Placement, ProviderError> {
        let id = &environment.id;
        let dir = self.dir(id);
        let wanted = Marker {
            gateway: self.gateway_id.clone(),
            generation: environment.generation,
        };
        if self.marker(id).await?.as_ref() != Some(&wanted) {
            context.take_leave().await?;
            let step = context.progress.step("create directory");
            let made = async {
                self.stop(id, Duration::from_secs(5)).await?;
                self.node.make_dir(&dir.join("workspace")).await?;
                let marker = serde_json::to_vec(&wanted)
                    .map_err(|error| self.failed("create directory", error.to_string()))?;
                // Last, so that a marker means a whole environment.
                self.node
                    .put(&dir.join("environment.json"), 0o600, &marker)
                    .await?;
                Ok::<_, ProviderError>(())
            };
            step.end(made.await)?;
        }
        Ok(Placement {
            listen: dir.join("agent.sock"),
            endpoint: Endpoint::Unix(dir.join("agent.sock")),
            log_dir: None,
            own_network: false,
            workdir: dir.join("workspace"),
            volumes: Vec::new(),
            env: environment.config.env.clone(),
            user: None,
        })
    }

    async fn start(&self, environment: &Environment) -> Result<(), ProviderError> {
        let id = &environment.id;
        if self.marker(id).await?.is_none() {
            return Err(ProviderError::NoEnvironment);
        }
        if self.process(id).await?.is_some() {
            return Ok(());
        }
        let before = self.recorded(id).await?;
        let paths = [&self.dir(id), &environment.agent].map(|path| path.display().to_string());
        let argv = ["sh", "-c", LAUNCH, "sh"].map(str::to_owned).into_iter();
        self.run("start agent", argv.chain(paths).collect()).await?;
        let deadline = Instant::now() + LAUNCH_LIMIT;
        loop {
            // One that was there and is gone again has been started too.
            if self.process(id).await?.is_some() || self.recorded(id).await? != before {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.failed("start agent", "it did not write its pid file"));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn exited(&self, id: &WorkspaceId) -> Result<Exit, ProviderError> {
        while self.process(id).await?.is_some() {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(Exit {
            status: None,
            log: self.log(id).last_lines(LAST_LINES).await?,
        })
    }

    async fn stop(&self, id: &WorkspaceId, grace: Duration) -> Result<(), ProviderError> {
        let Some(process) = self.process(id).await? else {
            return Ok(());
        };
        self.signal(process, "TERM").await?;
        if self.gone_within(id, grace).await? {
            return Ok(());
        }
        self.signal(process, "KILL").await?;
        if self.gone_within(id, KILL_LIMIT).await? {
            return Ok(());
        }
        Err(self.failed(
            "stop agent",
            format!("process {} does not end", process.pid),
        ))
    }

    async fn destroy(&self, id: &WorkspaceId) -> Result<(), ProviderError> {
        self.stop(id, Duration::from_secs(2)).await?;
        let dir = self.dir(id);
        // What a session left running may still write there for a moment.
        for _ in 0..10 {
            match self.node.remove_tree(&dir).await {
                Ok(()) => return Ok(()),
                Err(error) if error.io_kind() == Some(ErrorKind::PermissionDenied) => {
                    self.make_writable(&dir).await?;
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
        Ok(self.node.remove_tree(&dir).await?)
    }

    async fn inspect(&self, id: &WorkspaceId) -> Result<Found, ProviderError> {
        Ok(if self.process(id).await?.is_some() {
            Found::Running
        } else if self.marker(id).await?.is_some() {
            Found::Stopped
        } else {
            Found::Absent
        })
    }

    async fn list(&self) -> Result<Vec<WorkspaceId>, ProviderError> {
        let names = self.node.list_dir(&self.node.state_dir().join("w")).await?;
        let mut found = Vec::new();
        for id in names.iter().filter_map(|name| WorkspaceId::parse(name)) {
            if self.marker(&id).await?.is_some() {
                found.push(id);
            }
        }
        found.sort();
        Ok(found)
    }

    async fn logs(
        &self,
        id: &WorkspaceId,
        options: LogOptions,
    ) -> Result<LogStream, ProviderError> {
        if self.marker(id).await?.is_none() {
            return Err(ProviderError::NoEnvironment);
        }
        let (host, id_there) = (self.clone(), id.clone());
        let lives: Lives = Box::new(move || {
            let (host, id) = (host.clone(), id_there.clone());
            Box::pin(async move { Ok(host.process(&id).await?.is_some()) })
        });
        self.log(id).stream(options, lives).await
    }

    async fn changes(
        &self,
    ) -> Result<BoxStream<'static, Result<WorkspaceId, ProviderError>>, ProviderError> {
        let known: BTreeMap<WorkspaceId, Option<Process>> = BTreeMap::new();
        let looks = stream::try_unfold((self.clone(), known), |(host, known)| async move {
            sleep(LOOK).await;
            let mut now = BTreeMap::new();
            for id in host.list().await? {
                let process = host.process(&id).await?;
                now.insert(id, process);
            }
            let mut changed: Vec<_> = now
                .iter()
                .filter(|(id, process)| known.get(*id) != Some(*process))
                .map(|(id, _)| id.clone())
                .collect();
            changed.extend(known.into_keys().filter(|id| !now.contains_key(id)));
            let changed = stream::iter(changed.into_iter().map(Ok));
            Ok::<_, ProviderError>(Some((changed, (host, now))))
        });
        Ok(looks
            .flat_map(|looked| match looked {
                Ok(changed) => changed.left_stream(),
                Err(error) => stream::once(std::future::ready(Err(error))).right_stream(),
            })
            .boxed())
    }
}
