//! Directories of the node itself, without isolation: the agent is a process
//! of the node that outlives the gateway.
//!
//! The process is known by its pid file, the start time in it and its
//! arguments, so that a number that the kernel gave to somebody else is never
//! taken for it. It writes the pid file itself before it becomes the agent, and
//! gives up when the file names one that lives; so a crash of the gateway at
//! any point leaves neither an unknown agent nor two.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use vendetta_proto::spec::ProviderKind;

use super::{
    Context, Endpoint, Environment, Exit, LogOptions, LogStream, Placement, Provider,
    ProviderError, run_dir,
};
use crate::node::{Command, NodeTransport};
use crate::workspace::{Found, WorkspaceId};

/// How often processes are looked at for [`Provider::changes`].
const LOOK: Duration = Duration::from_secs(1);

/// How often a process that is about to end is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long a process may take to write its pid file.
const LAUNCH_LIMIT: Duration = Duration::from_secs(15);

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// `sh -c LAUNCH sh RUN_DIR AGENT`: starts the agent in a session of its own
/// and returns. proc(5): in /proc/PID/stat, after the command in parentheses,
/// the state is the first field (Z: dead, but not waited for) and the start time
/// the 20th.
const LAUNCH: &str = r#"
cd "$1/workspace" || exit 1
[ "$(wc -c <"$1/agent.log" 2>/dev/null || echo 0)" -lt 10485760 ] || mv -f "$1/agent.log" "$1/agent.log.1"
exec </dev/null >>"$1/agent.log" 2>&1 || exit 1
setsid sh -c '
    started() {
        IFS= read -r stat <"/proc/$1/stat" || return 1
        set -- ${stat##*) }
        [ "$1" != Z ] && echo "${20}"
    } 2>/dev/null
    exec 9>"$1/agent.lock" && flock -w 10 9 || exit 1
    if read -r pid start <"$1/agent.pid" && [ "$(started "$pid")" = "$start" ]; then exit 0; fi 2>/dev/null
    echo "$$ $(started $$)" >"$1/agent.pid.new" && mv -f "$1/agent.pid.new" "$1/agent.pid" || exit 1
    exec 9>&-
    exec "$2" serve --config "$1/agent.json"
' agent "$1" "$2" &
"#;

/// What says that a directory is an environment of ours.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    gateway: String,
    generation: u64,
}

/// A process, told apart from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: u32,
    /// Clock ticks since the node's boot.
    started: u64,
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
            node: self.node.name().clone(),
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

    async fn tail(&self, id: &WorkspaceId, how: &str) -> Result<Vec<u8>, ProviderError> {
        let log = self.dir(id).join("agent.log");
        if !self.node.exists(&log).await? {
            return Ok(Vec::new());
        }
        let argv = ["tail", how, "--"].map(str::to_owned).into_iter();
        let argv = argv.chain([log.display().to_string()]).collect();
        self.run("read log", argv).await
    }

    async fn log_length(&self, id: &WorkspaceId) -> Result<u64, ProviderError> {
        let log = self.dir(id).join("agent.log").display().to_string();
        let script = r#"wc -c <"$1" 2>/dev/null || echo 0"#;
        let argv = ["sh", "-c", script, "sh", &log].map(str::to_owned).to_vec();
        let length = self.run("read log", argv).await?;
        Ok(String::from_utf8_lossy(&length).trim().parse().unwrap_or(0))
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
            workdir: dir.join("workspace"),
            default_user: None,
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
        let log = self.tail(id, "-n20").await?;
        Ok(Exit {
            status: None,
            log: String::from_utf8_lossy(&log).trim_end().to_owned(),
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
            if self.node.remove_tree(&dir).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
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
        let length = self.log_length(id).await?;
        let how = options
            .tail
            .map_or_else(|| "-c+1".to_owned(), |lines| format!("-n{lines}"));
        let first = Bytes::from(self.tail(id, &how).await?);
        let first = stream::once(std::future::ready(Ok(first)));
        if !options.follow {
            return Ok(first.boxed());
        }
        let followed = stream::try_unfold((self.clone(), id.clone(), length), |state| async move {
            let (host, id, from) = state;
            loop {
                let lives = host.process(&id).await?.is_some();
                let length = host.log_length(&id).await?;
                // Shorter than before: it was rotated.
                let from = if length < from { 0 } else { from };
                if length > from {
                    let more = host.tail(&id, &format!("-c+{}", from + 1)).await?;
                    let read = from + u64::try_from(more.len()).unwrap_or(0);
                    return Ok(Some((Bytes::from(more), (host, id, read))));
                }
                if !lives {
                    return Ok(None);
                }
                sleep(Duration::from_millis(250)).await;
            }
        });
        Ok(first.chain(followed).boxed())
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

fn parse_pid_file(content: &[u8]) -> Option<Process> {
    let text = std::str::from_utf8(content).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    Some(Process {
        pid: pid.parse().ok()?,
        started: started.parse().ok()?,
    })
}

/// Start time in /proc/PID/stat (proc(5), field 22).
fn start_time(stat: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(stat);
    let (_, after) = text.rsplit_once(") ")?;
    after.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether /proc/PID/cmdline is that of the agent of this directory, or of the
/// shell that becomes it: one argument is the directory, or the config in it.
fn is_agent_of(cmdline: &[u8], dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let config = dir.join("agent.json");
    cmdline.split(|byte| *byte == 0).any(|argument| {
        argument == config.as_os_str().as_bytes() || argument == dir.as_os_str().as_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_start_time_and_arguments() {
        assert_eq!(
            parse_pid_file(b"12 345\n"),
            Some(Process {
                pid: 12,
                started: 345
            })
        );
        for bad in [&b""[..], b"12", b"12 x", b"-1 5", b"\xff 1"] {
            assert_eq!(parse_pid_file(bad), None);
        }
        let stat = b"12 (odd ) name) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 345 0 0";
        assert_eq!(start_time(stat), Some(345));
        assert_eq!(start_time(b"12 (x)"), None);
        let dir = Path::new("/s/w/0a1b2c3d");
        let cmdline = b"/s/agent/abc\0serve\0--config\0/s/w/0a1b2c3d/agent.json\0";
        assert!(is_agent_of(cmdline, dir));
        assert!(is_agent_of(
            b"sh\0-c\0...\0agent\0/s/w/0a1b2c3d\0/s/agent/abc\0",
            dir
        ));
        assert!(!is_agent_of(cmdline, Path::new("/s/w/ffffffff")));
        assert!(!is_agent_of(b"", dir));
    }

    #[test]
    fn our_own_start_time_is_read_as_the_kernel_writes_it() {
        let stat = std::fs::read("/proc/self/stat").unwrap();
        assert!(start_time(&stat).is_some());
    }
}
