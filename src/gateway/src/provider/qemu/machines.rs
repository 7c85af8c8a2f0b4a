//! The machines on a node: what there is, and the scripts by which they are made,
//! started and ended. Knows nothing of images and seeds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::keep::Base;
use super::{ProviderError, failed, monitor, scripts};
use crate::node::{Command, NodeTransport};
use crate::provider::run_dir;
use crate::workspace::WorkspaceId;

/// Ports that lead to agents: below those that the kernel gives to whoever
/// connects (ip_local_port_range, ip(7)).
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// So many are tried to find one that is free.
const CANDIDATES: usize = 32;

/// How long a script may take that starts or makes something.
const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

/// How long QEMU may take from its start to its first answer.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How often a machine that is about to start or end is looked at.
const POLL: Duration = Duration::from_millis(100);

/// What machine.json says: whose a machine is, and which. Generation 0: disks only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    gateway: String,
    generation: u64,
}

/// QEMU's process, told apart from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: u32,
    /// Clock ticks since the node's boot.
    pub started: u64,
}

/// A machine, or what is left of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// Which one it is; none: only its disks are there.
    pub generation: Option<u64>,
    /// The node's loopback port that leads to its agent.
    pub port: Option<u16>,
    /// What runs it.
    pub process: Option<Process>,
}

/// The machines of one gateway on a node.
#[derive(Debug, Clone)]
pub(super) struct Machines {
    pub node: Arc<dyn NodeTransport>,
    pub gateway_id: String,
}

impl Machines {
    /// The directory of a machine.
    pub(super) fn dir(&self, id: &WorkspaceId) -> PathBuf {
        run_dir(self.node.as_ref(), id)
    }

    /// A machine, when it is there.
    pub(super) async fn look(&self, id: &WorkspaceId) -> Result<Option<Machine>, ProviderError> {
        Ok(self.read(Some(id)).await?.remove(id))
    }

    /// All that are there.
    pub(super) async fn look_at_all(
        &self,
    ) -> Result<BTreeMap<WorkspaceId, Machine>, ProviderError> {
        self.read(None).await
    }

    async fn read(
        &self,
        id: Option<&WorkspaceId>,
    ) -> Result<BTreeMap<WorkspaceId, Machine>, ProviderError> {
        let mut arguments = vec![self.node.state_dir().join("w").display().to_string()];
        arguments.extend(id.map(ToString::to_string));
        let script = scripts::look();
        let said = self.run("look at machines", &script, arguments).await?;
        Ok(parse(&said, &self.gateway_id))
    }

    /// Sees that a machine of this generation exists, on top of `base` when it is
    /// not there yet; returns its port.
    pub(super) async fn make(
        &self,
        id: &WorkspaceId,
        generation: u64,
        base: Option<&Base>,
        disk: u64,
    ) -> Result<u16, ProviderError> {
        let operation = "make disks";
        let marker = |generation| {
            let gateway = self.gateway_id.clone();
            let marker = Marker {
                gateway,
                generation,
            };
            serde_json::to_string(&marker)
                .map_err(|error| failed(self.node.as_ref(), operation, error.to_string()))
        };
        let mut arguments = vec![
            self.dir(id).display().to_string(),
            marker(generation)?,
            marker(0)?,
            base.map_or_else(String::new, |base| base.path.display().to_string()),
            base.map_or("", |base| base.format.as_str()).to_owned(),
            disk.max(base.map_or(0, |base| base.size)).to_string(),
            disk.to_string(),
        ];
        arguments.extend((0..CANDIDATES).map(|_| rand::random_range(PORTS).to_string()));
        let said = self.run(operation, &scripts::make(), arguments).await?;
        said.trim().parse().map_err(|_| {
            let problem = format!("{:?} is no port", said.trim());
            failed(self.node.as_ref(), operation, problem)
        })
    }

    /// Sees that a machine runs, which `line` starts, and waits until its monitor answers.
    pub(super) async fn launch(
        &self,
        id: &WorkspaceId,
        line: Vec<String>,
    ) -> Result<(), ProviderError> {
        let operation = "start machine";
        let mut arguments = vec![self.dir(id).display().to_string()];
        arguments.extend(line);
        self.run(operation, &scripts::launch(), arguments).await?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let answered = monitor::ask(self.node.as_ref(), &self.socket(id)).await;
            let Err(trouble) = answered else {
                return Ok(());
            };
            if !self.runs(id).await? {
                // Ended, or begun and ended: then what QEMU said tells why.
                return match self.complaint(id).await? {
                    complaint if complaint.is_empty() => Ok(()),
                    complaint => Err(failed(self.node.as_ref(), operation, complaint)),
                };
            }
            if Instant::now() >= deadline {
                let problem = format!("its monitor does not answer: {trouble}");
                return Err(failed(self.node.as_ref(), operation, problem));
            }
            sleep(POLL).await;
        }
    }

    /// What QEMU itself said last.
    pub(super) async fn complaint(&self, id: &WorkspaceId) -> Result<String, ProviderError> {
        let log = self.node.read(&self.dir(id).join("qemu.log")).await?;
        let log = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(5)..);
        Ok(last.unwrap_or_default().join("\n"))
    }

    /// The exit status of the QEMU that ran last, as a shell tells it: 128 and
    /// more for a signal.
    pub(super) async fn status(&self, id: &WorkspaceId) -> Result<Option<i64>, ProviderError> {
        let status = self.node.read(&self.dir(id).join("status")).await?;
        Ok(status.and_then(|status| String::from_utf8(status).ok()?.trim().parse().ok()))
    }

    /// The socket of QEMU's monitor.
    pub(super) fn socket(&self, id: &WorkspaceId) -> PathBuf {
        self.dir(id).join("qmp.sock")
    }

    /// Whether QEMU lives.
    pub(super) async fn runs(&self, id: &WorkspaceId) -> Result<bool, ProviderError> {
        let machine = self.look(id).await?;
        Ok(machine.is_some_and(|machine| machine.process.is_some()))
    }

    /// Waits until it does not run; false: it still does after `limit`.
    pub(super) async fn gone_within(
        &self,
        id: &WorkspaceId,
        limit: Duration,
    ) -> Result<bool, ProviderError> {
        let deadline = Instant::now() + limit;
        while self.runs(id).await? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(POLL).await;
        }
        Ok(true)
    }

    /// Ends it without asking.
    pub(super) async fn kill(&self, id: &WorkspaceId) -> Result<(), ProviderError> {
        let dir = self.dir(id).display().to_string();
        self.run("end machine", &scripts::kill(), vec![dir]).await?;
        Ok(())
    }

    async fn run(
        &self,
        operation: &'static str,
        script: &str,
        arguments: Vec<String>,
    ) -> Result<String, ProviderError> {
        let output = run(self.node.as_ref(), script, arguments, SCRIPT_LIMIT).await?;
        if output.status == Some(0) {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed(self.node.as_ref(), operation, problem))
    }
}

/// Runs a script with arguments on a node.
pub(super) async fn run(
    node: &dyn NodeTransport,
    script: &str,
    arguments: impl IntoIterator<Item = String>,
    limit: Duration,
) -> Result<crate::node::Output, ProviderError> {
    let mut command = Command::new(["sh", "-c", script, "sh"]);
    command.argv.extend(arguments);
    command.time_limit = limit;
    Ok(node.exec(&command).await?)
}

/// Reads what [`scripts::look`] says; the machines of other gateways are none of ours.
fn parse(said: &str, gateway_id: &str) -> BTreeMap<WorkspaceId, Machine> {
    let machine = |line: &str| {
        let mut words = line.splitn(5, ' ');
        let id = WorkspaceId::parse(words.next()?)?;
        let [pid, started, port] = [words.next()?, words.next()?, words.next()?];
        let marker: Marker = serde_json::from_str(words.next()?).ok()?;
        if marker.gateway != gateway_id {
            return None;
        }
        let process = match (pid.parse(), started.parse()) {
            (Ok(pid), Ok(started)) => Some(Process { pid, started }),
            _ => None,
        };
        let machine = Machine {
            generation: (marker.generation > 0).then_some(marker.generation),
            port: port.parse().ok(),
            process,
        };
        Some((id, machine))
    };
    said.lines().filter_map(machine).collect()
}

/// Whether a path is short enough for the socket of a machine's monitor.
pub(super) fn socket_fits(dir: &Path) -> bool {
    // sun_path less its NUL (unix(7)).
    dir.join("qmp.sock").as_os_str().len() <= 107
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn machines_are_read_as_the_script_tells_them_and_only_our_own() {
        let said = "0a1b2c3d 12 345 20022 {\"gateway\":\"us\",\"generation\":2}\n\
                    0a1b2c3e - - 20023 {\"gateway\":\"us\",\"generation\":0}\n\
                    0a1b2c3f - - - {\"gateway\":\"them\",\"generation\":1}\n\
                    * - - - {\"gateway\":\"us\",\"generation\":1}\n\
                    0a1b2c40 - - - \n";
        let found = parse(said, "us");
        let ids: Vec<_> = found.keys().map(WorkspaceId::as_str).collect();
        assert_eq!(ids, ["0a1b2c3d", "0a1b2c3e"]);
        let mut machines = found.into_values();
        let running = machines.next().unwrap();
        assert_eq!((running.generation, running.port), (Some(2), Some(20022)));
        let process = Process {
            pid: 12,
            started: 345,
        };
        assert_eq!(running.process, Some(process));
        let disks = machines.next().unwrap();
        assert_eq!((disks.generation, disks.process), (None, None));
    }

    proptest! {
        #[test]
        fn what_a_node_says_never_panics(said in "\\PC*\n?\\PC*") {
            let _ = parse(&said, "us");
        }
    }
}
