//! What makes and runs environments: one trait, one implementation an engine.
//!
//! A provider knows nothing of users, names' owners or desired states. It is
//! told what must be so and sees to it. Every call may be cut off anywhere and
//! done again; everything it makes carries the id of the workspace and of the
//! gateway, so that what a crash left behind is found by [`Provider::list`].
//! tests/provider_contract.rs states what every provider must do.

mod docker;
mod error;
mod host;
mod image;
mod log_file;
mod lxc;
mod qemu;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use vendetta_proto::WorkspaceName;
use vendetta_proto::spec::{ProjectConfig, ProviderKind};

pub use docker::Docker;
pub use error::ProviderError;
pub use host::Host;
pub use image::{ImageReference, InvalidImage};
pub use lxc::{InvalidLxcImage, LXC_SOCKETS, Lxc, LxcImage};
pub use qemu::{InvalidMachineImage, MachineImage, Mirrors, Qemu, QemuSettings};

use crate::node::NodeTransport;
use crate::workspace::{Found, ProgressSink, WORKSPACE_DIR, WorkspaceId};

/// What one environment is to be.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Id of the workspace.
    pub id: WorkspaceId,
    /// Name of the workspace; the environment's host name.
    pub name: WorkspaceName,
    /// Which environment of the workspace it is; another one is replaced.
    pub generation: u64,
    /// The checked config.
    pub config: ProjectConfig,
    /// An archive, on the gateway's machine, of what its image is built from.
    pub build_context: Option<PathBuf>,
    /// The agent's executable on the node.
    pub agent: PathBuf,
    /// Directory on the node for the agent's config and socket.
    pub run_dir: PathBuf,
}

impl Environment {
    /// Where its disk is, for a provider that can place it freely.
    #[must_use]
    pub fn workspace_folder(&self) -> &str {
        let folder = self.config.workspace_folder.as_deref();
        folder.unwrap_or(WORKSPACE_DIR)
    }
}

/// How the agent of an environment that was made is to be told about it, and reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The socket as the agent sees it, or what stands for a port
    /// ([`vendetta_proto::agent::AgentConfig::listen`]).
    pub listen: PathBuf,
    /// The same as the node sees it.
    pub endpoint: Endpoint,
    /// Where the agent keeps its services' logs; none: beside the socket.
    pub log_dir: Option<PathBuf>,
    /// Working directory of sessions, as the agent sees it.
    pub workdir: PathBuf,
    /// Where its other disks are ([`vendetta_proto::agent::AgentConfig::volumes`]).
    pub volumes: Vec<PathBuf>,
    /// Environment variables of sessions and services: the config's.
    pub env: BTreeMap<String, String>,
    /// Whether the environment has a network of its own
    /// ([`vendetta_proto::agent::AgentConfig::own_network`]).
    pub own_network: bool,
    /// User of sessions, as an image's USER is written; none: the agent's own.
    pub user: Option<String>,
}

/// Where an agent is reached from its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// How an environment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, when known.
    pub status: Option<i64>,
    /// The last lines it logged.
    pub log: String,
}

/// Progress, and whether to give up.
#[derive(Debug, Clone)]
pub struct Context {
    /// Who watches.
    pub progress: ProgressSink,
    /// Cancelled when the work is no longer wanted. What takes long (a pull, a
    /// wait) gives up then with [`ProviderError::Cancelled`].
    pub cancel: CancellationToken,
    /// What is done before an environment that runs gives way to its successor.
    pub farewell: Farewell,
}

impl Context {
    /// To be called once all that a new environment needs is there, before one
    /// that runs is ended for it.
    ///
    /// # Errors
    /// [`ProviderError::Cancelled`].
    pub async fn take_leave(&self) -> Result<(), ProviderError> {
        let Some(farewell) = self.farewell.taken() else {
            return Ok(());
        };
        let taken = self.cancel.run_until_cancelled(farewell).await;
        taken.ok_or(ProviderError::Cancelled)
    }
}

/// Something that is done once at most.
#[derive(Clone, Default)]
pub struct Farewell(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Farewell {
    /// This, to be done.
    #[must_use]
    pub fn new(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(work.boxed()))))
    }

    /// Whether there is something, and nobody has begun it.
    #[must_use]
    pub fn is_to_come(&self) -> bool {
        self.slot().is_some()
    }

    fn taken(&self) -> Option<BoxFuture<'static, ()>> {
        self.slot().take()
    }

    fn slot(&self) -> MutexGuard<'_, Option<BoxFuture<'static, ()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Farewell").field(&self.is_to_come()).finish()
    }
}

/// Which of the log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Go on as long as the environment runs.
    pub follow: bool,
    /// Only so many of the last lines.
    pub tail: Option<u32>,
}

/// Bytes of a log, as the agent wrote them.
pub type LogStream = BoxStream<'static, Result<Bytes, ProviderError>>;

/// An engine on a node.
#[async_trait]
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// Which one it is.
    fn kind(&self) -> ProviderKind;

    /// How long an environment may take from its start until its agent answers.
    fn ready_limit(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// How long an environment whose agent answers may take to add its users.
    fn users_limit(&self) -> Duration {
        Duration::ZERO
    }

    /// How long an environment may take to end before it is made to.
    fn stop_grace(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Asks the engine whether it is there, and what it is.
    ///
    /// # Errors
    /// [`ProviderError::Unavailable`] with the remedy.
    async fn probe(&self) -> Result<String, ProviderError>;

    /// Sees that the environment of this generation, and no other, exists. The
    /// disk at [`Environment::workspace_folder`] is kept from one generation to the next. An
    /// environment that exists, running or not, is left as it is.
    ///
    /// # Errors
    /// Among others [`ProviderError::NoImage`].
    async fn create(
        &self,
        environment: &Environment,
        context: &Context,
    ) -> Result<Placement, ProviderError>;

    /// Sees that it runs.
    ///
    /// # Errors
    /// When it does not exist or the engine cannot start it.
    async fn start(&self, environment: &Environment) -> Result<(), ProviderError>;

    /// Waits until it does not run.
    ///
    /// # Errors
    /// When the engine cannot be asked.
    async fn exited(&self, id: &WorkspaceId) -> Result<Exit, ProviderError>;

    /// Sees that it does not run: asks it to end, and after `grace` makes it.
    /// Not there is fine.
    ///
    /// # Errors
    /// When the engine cannot be asked.
    async fn stop(&self, id: &WorkspaceId, grace: Duration) -> Result<(), ProviderError>;

    /// Sees that nothing is left of it, its disk included. Not there is fine.
    ///
    /// # Errors
    /// When the engine cannot be asked, or something cannot be removed.
    async fn destroy(&self, id: &WorkspaceId) -> Result<(), ProviderError>;

    /// What there is of a workspace.
    ///
    /// # Errors
    /// When the engine cannot be asked.
    async fn inspect(&self, id: &WorkspaceId) -> Result<Found, ProviderError>;

    /// Every workspace of this gateway of which anything is left here, a disk
    /// without an environment included.
    ///
    /// # Errors
    /// When the engine cannot be asked.
    async fn list(&self) -> Result<Vec<WorkspaceId>, ProviderError>;

    /// Its log.
    ///
    /// # Errors
    /// When it does not exist or the engine cannot be asked.
    async fn logs(&self, id: &WorkspaceId, options: LogOptions)
    -> Result<LogStream, ProviderError>;

    /// Reports a workspace whenever it may have started or ended. Ends with an
    /// error when the engine goes away.
    ///
    /// # Errors
    /// When the engine cannot be asked.
    async fn changes(
        &self,
    ) -> Result<BoxStream<'static, Result<WorkspaceId, ProviderError>>, ProviderError>;
}

/// Where the agent's config and socket of a workspace are on a node.
#[must_use]
pub fn run_dir(node: &dyn NodeTransport, id: &WorkspaceId) -> PathBuf {
    node.state_dir().join("w").join(id.as_str())
}

/// The providers of a node.
pub type Providers = BTreeMap<ProviderKind, Arc<dyn Provider>>;
