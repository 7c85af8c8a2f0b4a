//! Virtual machines of QEMU, without libvirt.
//!
//! A machine is a process of the node that outlives the gateway, and a directory
//! ([`scripts`] lists what is in it). Its root disk is an overlay on an image that
//! is kept on the node; the workspace's is a disk of its own, which a rebuild keeps.
//! What starts the agent in it is on a third disk, the seed, and the agent's
//! executable is the fourth. The machine's network is QEMU's user mode: it gets out
//! as the gateway's user on the node would, to the node's loopback too, unless it is
//! isolated; nothing gets in but through one loopback port of the node, which leads to
//! the agent.
//!
//! ```text
//!   image ──kept──▶ state_dir/base/SHA256 ◀──overlay── root disk
//!   agent.json ──▶ seed ──▶ cloud-init or an init of the image ──boot.sh──▶ agent
//! ```

mod accelerator;
mod command;
mod image;
mod keep;
mod machines;
mod monitor;
mod scripts;
mod seed;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt as _};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use vendetta_proto::agent::LISTEN_TCP;
use vendetta_proto::spec::{Accel, ProviderKind};

use super::log_file::{Lives, LogFile};
use super::{
    Context, Endpoint, Environment, Exit, LogOptions, LogStream, Placement, Provider, ProviderError,
};
use crate::node::{Kvm, NodeError, NodeTransport};
use crate::workspace::{Found, WorkspaceId};
use accelerator::{Accelerator, Known};
use command::{AGENT_PORT, Hardware, Start};
pub use image::{InvalidMachineImage, MachineImage, Mirrors};
use machines::Machines;
use seed::Seed;

/// How often machines are looked at for [`Provider::changes`], and how often when there are none.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_FOR_ANY: Duration = Duration::from_secs(10);

/// How often one whose end is waited for is looked at.
const LOOK_FOR_END: Duration = Duration::from_millis(250);

/// How long what ended may take to say how.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// How often the power button is pressed: a system that is just booting does not notice.
const PRESS: Duration = Duration::from_secs(2);

/// How long QEMU may take to end when it was told to.
const QUIT_LIMIT: Duration = Duration::from_secs(10);

/// How long a machine that is replaced may take to shut down.
const REPLACE_GRACE: Duration = Duration::from_secs(60);

/// How long a cloud image may take until its agent answers, where nothing but
/// emulation runs it and the node has other things to do.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// How long a system may take to shut down before its power is cut.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// Lines of its console that tell how a machine ended.
const LAST_LINES: u32 = 20;

/// Where a node's ports lead to its machines' agents.
const LOOPBACK: &str = "127.0.0.1";

/// Where the agent keeps its services' logs in the machine.
const LOG_DIR: &str = "/var/log/vendetta";

/// What the gateway's config says about machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QemuSettings {
    /// Where the images of known names come from.
    pub mirrors: Mirrors,
    /// Directories of a node whose files may be images.
    pub image_dirs: Vec<PathBuf>,
    /// Machines reach nothing, and are reached by their agents' ports alone.
    pub isolated: bool,
}

/// QEMU on a node.
#[derive(Debug)]
pub struct Qemu {
    machines: Machines,
    settings: QemuSettings,
    /// Whether KVM works there; found out when it is needed, and held by whoever does.
    kvm: Mutex<Known>,
    /// Held by whoever downloads an image.
    downloading: Mutex<()>,
    /// Names what this process downloads.
    scratch: String,
}

impl Qemu {
    /// Machines on `node`, for the gateway of this id. What is known for sure about KVM
    /// there is not tried again.
    #[must_use]
    pub fn new(
        node: Arc<dyn NodeTransport>,
        gateway_id: String,
        settings: QemuSettings,
        kvm: Option<Kvm>,
    ) -> Self {
        Self {
            machines: Machines { node, gateway_id },
            settings,
            kvm: Mutex::new(Known::before(kvm, Instant::now())),
            downloading: Mutex::default(),
            scratch: WorkspaceId::random().to_string(),
        }
    }

    /// What there is of QEMU, and the firmware for machines that need one.
    async fn tools(&self) -> Result<(String, Option<String>), ProviderError> {
        let node = self.machines.node.as_ref();
        let arch = node.arch().await?.to_string();
        let limit = Duration::from_secs(30);
        let output = machines::run(node, scripts::TOOLS, [arch.clone()], limit).await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let find = |key: &str| {
            let mut lines = said.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
        };
        let arm = arch == "aarch64";
        let package = if arm {
            "qemu-system-arm qemu-efi-aarch64"
        } else {
            "qemu-system-x86"
        };
        let missing = match (find("qemu"), find("img"), find("firmware")) {
            (None, ..) => format!("qemu-system-{arch} is not installed"),
            (_, None, _) => "qemu-img is not installed".to_owned(),
            (.., None) if arm => "no UEFI firmware for machines is installed".to_owned(),
            (Some(version), _, firmware) => return Ok((version, firmware)),
        };
        Err(ProviderError::Unavailable {
            provider: ProviderKind::Qemu,
            node: node.name(),
            problem: missing,
            remedy: Some(format!("on the node: apt install {package} qemu-utils")),
        })
    }

    /// What runs the machine's processor: KVM only where a guest was seen to run.
    async fn accelerator(&self, accel: Accel) -> Result<Accelerator, ProviderError> {
        if accel == Accel::Tcg {
            return Ok(Accelerator::Tcg);
        }
        let node = self.machines.node.as_ref();
        let mut known = self.kvm.lock().await;
        let kvm = match known.recall(accel, Instant::now()) {
            Some(kvm) => kvm.clone(),
            None => {
                let probe = crate::node::probe(node).await?;
                let kvm = probe.kvm.unwrap_or(Kvm::Absent);
                known.learn(kvm.clone(), Instant::now());
                kvm
            }
        };
        match (kvm, accel) {
            (Kvm::Works, _) => Ok(Accelerator::Kvm),
            (kvm, Accel::Kvm) => Err(ProviderError::Refused {
                operation: "read qemu.accel",
                problem: format!(
                    "{kvm} on node {}; take accel: auto, or tcg for emulation",
                    node.name()
                ),
            }),
            _ => Ok(Accelerator::Tcg),
        }
    }

    /// Sees that a machine that wants `accel` can have it.
    async fn look_for_kvm(&self, accel: Accel, context: &Context) -> Result<(), ProviderError> {
        let known = (self.kvm.lock().await.recall(accel, Instant::now())).is_some();
        if accel == Accel::Tcg || known {
            return self.accelerator(accel).await.map(drop);
        }
        // Where KVM hangs, that takes some seconds to be seen.
        let step = context.progress.step("look whether KVM works");
        step.end(self.accelerator(accel).await.map(drop))
    }

    fn console(&self, id: &WorkspaceId) -> LogFile {
        LogFile {
            node: Arc::clone(&self.machines.node),
            path: self.machines.dir(id).join("serial.log"),
            provider: ProviderKind::Qemu,
        }
    }

    fn failed(&self, operation: &'static str, problem: impl Into<String>) -> ProviderError {
        failed(self.machines.node.as_ref(), operation, problem.into())
    }
}

/// That something on the node did not work.
fn failed(node: &dyn NodeTransport, operation: &'static str, problem: String) -> ProviderError {
    ProviderError::Engine {
        provider: ProviderKind::Qemu,
        node: node.name(),
        operation,
        problem,
        remedy: None,
    }
}

#[async_trait]
impl Provider for Qemu {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Qemu
    }

    fn ready_limit(&self) -> Duration {
        READY_LIMIT
    }

    fn stop_grace(&self) -> Duration {
        STOP_GRACE
    }

    async fn probe(&self) -> Result<String, ProviderError> {
        Ok(self.tools().await?.0)
    }

    async fn create(
        &self,
        environment: &Environment,
        context: &Context,
    ) -> Result<Placement, ProviderError> {
        let id = &environment.id;
        let dir = self.machines.dir(id);
        if !machines::socket_fits(&dir) {
            let problem = format!("{} is too long for a socket in it", dir.display());
            return Err(self.failed("make disks", problem));
        }
        let qemu = environment.config.qemu.as_ref();
        let image = qemu.map(|qemu| qemu.image.as_str()).unwrap_or_default();
        let image = MachineImage::parse(image).map_err(|error| ProviderError::Refused {
            operation: "read qemu.image",
            problem: error.to_string(),
        })?;
        self.tools().await?;
        let accel = qemu.and_then(|qemu| qemu.accel).unwrap_or_default();
        let there = self.machines.look(id).await?;
        let is_there = (there.as_ref())
            .is_some_and(|machine| machine.generation == Some(environment.generation));
        if !is_there || there.is_none_or(|machine| machine.process.is_none()) {
            self.look_for_kvm(accel, context).await?;
        }
        // First the image: what cannot be replaced is not removed.
        let base = if is_there {
            None
        } else {
            Some(self.keep(&image, context).await?)
        };
        if base.is_some() {
            context.take_leave().await?;
        }
        let step = base.is_some().then(|| context.progress.step("make disks"));
        let made = async {
            if !is_there {
                self.stop(id, REPLACE_GRACE).await?;
            }
            let disk = Hardware::of(&environment.config).disk;
            let base = base.as_ref();
            self.machines
                .make(id, environment.generation, base, disk)
                .await
        };
        let port = match step {
            Some(step) => step.end(made.await)?,
            None => made.await?,
        };
        Ok(Placement {
            listen: PathBuf::from(format!("{LISTEN_TCP}0.0.0.0:{AGENT_PORT}")),
            endpoint: Endpoint::Tcp {
                host: LOOPBACK.to_owned(),
                port,
            },
            workdir: PathBuf::from(environment.workspace_folder()),
            volumes: Vec::new(),
            log_dir: Some(PathBuf::from(LOG_DIR)),
            own_network: true,
            env: environment.config.env.clone(),
            user: environment.config.user.clone(),
        })
    }

    async fn start(&self, environment: &Environment) -> Result<(), ProviderError> {
        let id = &environment.id;
        let machine = self.machines.look(id).await?;
        let port = match machine {
            Some(machine) if machine.process.is_some() => return Ok(()),
            Some(machine) if machine.generation.is_some() => machine.port,
            _ => return Err(ProviderError::NoEnvironment),
        };
        let port = port.ok_or_else(|| self.failed("start machine", "it has no port"))?;
        let node = self.machines.node.as_ref();
        // Before anything is booted: nothing listens there yet, but the node's sshd
        // says when it would let nobody through.
        if let Err(error @ NodeError::Refused { .. }) = node.open_tcp(LOOPBACK, port).await {
            return Err(error.into());
        }
        let dir = self.machines.dir(id);
        let agent_config = node.read(&dir.join("agent.json")).await?;
        let agent_config = agent_config
            .ok_or_else(|| self.failed("make seed", "the agent's config is not there"))?;
        let config = &environment.config;
        let seed = Seed {
            instance: &format!("{id}-{}", environment.generation),
            name: environment.name.as_str(),
            folder: environment.workspace_folder(),
            user: config.user.as_deref(),
            agent_config: &agent_config,
        };
        let seed =
            seed::image(&seed).map_err(|error| self.failed("make seed", error.to_string()))?;
        node.put(&dir.join("seed.img"), 0o600, &seed).await?;
        let accel = config.qemu.as_ref().and_then(|qemu| qemu.accel);
        let (_, firmware) = self.tools().await?;
        let line = command::arguments(&Start {
            arch: &node.arch().await?,
            accelerator: self.accelerator(accel.unwrap_or_default()).await?,
            hardware: Hardware::of(config),
            firmware: firmware.as_deref(),
            id,
            name: environment.name.as_str(),
            dir: &dir,
            agent: &environment.agent,
            port,
            isolated: self.settings.isolated,
        });
        self.machines.launch(id, line).await
    }

    async fn exited(&self, id: &WorkspaceId) -> Result<Exit, ProviderError> {
        while self.machines.runs(id).await? {
            sleep(LOOK_FOR_END).await;
        }
        // The shell that waits for it says a moment later how it ended.
        let mut status = self.machines.status(id).await?;
        let deadline = Instant::now() + STATUS_LIMIT;
        while status.is_none() && Instant::now() < deadline {
            sleep(STATUS_LIMIT / 20).await;
            status = self.machines.status(id).await?;
        }
        let log = self.console(id).last_lines(LAST_LINES).await?;
        // A console's lines end as a terminal wants them to.
        let mut log = log.replace('\r', "");
        let complaint = self.machines.complaint(id).await?;
        if !complaint.is_empty() {
            log = format!("{log}\n{complaint}");
        }
        Ok(Exit {
            status,
            log: log.trim().to_owned(),
        })
    }

    async fn stop(&self, id: &WorkspaceId, grace: Duration) -> Result<(), ProviderError> {
        let node = self.machines.node.as_ref();
        let socket = self.machines.socket(id);
        let deadline = Instant::now() + grace;
        // What cannot be told may be ending, or be told something by somebody else.
        let ignore = |error: std::io::Error| tracing::debug!(%id, %error, "monitor");
        while Instant::now() < deadline && self.machines.runs(id).await? {
            monitor::power_down(node, &socket)
                .await
                .unwrap_or_else(ignore);
            let left = deadline.saturating_duration_since(Instant::now());
            if self.machines.gone_within(id, PRESS.min(left)).await? {
                return Ok(());
            }
        }
        if !self.machines.runs(id).await? {
            return Ok(());
        }
        monitor::quit(node, &socket).await.unwrap_or_else(ignore);
        if self.machines.gone_within(id, QUIT_LIMIT).await? {
            return Ok(());
        }
        self.machines.kill(id).await?;
        if self.machines.gone_within(id, QUIT_LIMIT).await? {
            return Ok(());
        }
        Err(self.failed("stop machine", "QEMU does not end"))
    }

    async fn destroy(&self, id: &WorkspaceId) -> Result<(), ProviderError> {
        self.stop(id, Duration::ZERO).await?;
        let (node, dir) = (self.machines.node.as_ref(), self.machines.dir(id));
        // The shell that waited for QEMU may still be writing how that ended.
        for _ in 0..10 {
            if node.remove_tree(&dir).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(node.remove_tree(&dir).await?)
    }

    async fn inspect(&self, id: &WorkspaceId) -> Result<Found, ProviderError> {
        Ok(match self.machines.look(id).await? {
            Some(machine) if machine.process.is_some() => Found::Running,
            Some(machine) if machine.generation.is_some() => Found::Stopped,
            _ => Found::Absent,
        })
    }

    async fn list(&self) -> Result<Vec<WorkspaceId>, ProviderError> {
        Ok(self.machines.look_at_all().await?.into_keys().collect())
    }

    async fn logs(
        &self,
        id: &WorkspaceId,
        options: LogOptions,
    ) -> Result<LogStream, ProviderError> {
        let there = self.machines.look(id).await?;
        if there.is_none_or(|machine| machine.generation.is_none()) {
            return Err(ProviderError::NoEnvironment);
        }
        let (machines, id_there) = (self.machines.clone(), id.clone());
        let lives: Lives = Box::new(move || {
            let (machines, id) = (machines.clone(), id_there.clone());
            Box::pin(async move { machines.runs(&id).await })
        });
        let log = self.console(id).stream(options, lives).await?;
        let without_returns = |bytes: Bytes| {
            bytes
                .iter()
                .filter(|byte| **byte != b'\r')
                .copied()
                .collect()
        };
        Ok(log.map_ok(without_returns).boxed())
    }

    async fn changes(
        &self,
    ) -> Result<BoxStream<'static, Result<WorkspaceId, ProviderError>>, ProviderError> {
        let first = self.machines.look_at_all().await?;
        let looks = stream::try_unfold((self.machines.clone(), first), |(machines, known)| {
            let pause = if known.is_empty() { LOOK_FOR_ANY } else { LOOK };
            async move {
                sleep(pause).await;
                let now = machines.look_at_all().await?;
                let process = |of: &BTreeMap<WorkspaceId, machines::Machine>, id| {
                    of.get(id).map(|machine| machine.process)
                };
                let mut changed: Vec<_> = (now.keys().chain(known.keys()))
                    .filter(|id| process(&now, id) != process(&known, id))
                    .cloned()
                    .collect();
                changed.sort();
                changed.dedup();
                let changed = stream::iter(changed.into_iter().map(Ok));
                Ok::<_, ProviderError>(Some((changed, (machines, now))))
            }
        });
        Ok(looks
            .flat_map(|looked| match looked {
                Ok(changed) => changed.left_stream(),
                Err(error) => stream::once(std::future::ready(Err(error))).right_stream(),
            })
            .boxed())
    }
}
