//! What the rest of the gateway sees of workspaces.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::ProjectConfig;
use vendetta_proto::{UserName, WorkspaceName};
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::{ErrorKind, Operation, Overrides, WorkspaceError, WorkspaceId, WorkspaceStatus};
use crate::access::{Action, Authorized, Principal, Resource};
use crate::node::NodeTransport;
use crate::store::Store;

pub use crate::provider::{Endpoint, LogOptions};

/// What workspaces need to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where they are stored.
    pub store: Store,
    /// Certifies the host keys of agents.
    pub host_ca: PrivateKey,
    /// The key with which the gateway logs in to agents.
    pub agent_login_key: PublicKey,
    /// Where the agents' executables are; none: beside the gateway's own, or
    /// in `../libexec/vendetta` from there.
    pub agent_dir: Option<PathBuf>,
    /// Where our files live on the node `local`.
    pub state_dir: PathBuf,
    /// The Docker engine's socket on the node `local`.
    pub docker_socket: PathBuf,
    /// Whether the node `local` allows provider host.
    pub allow_host: bool,
    /// Owns every task.
    pub tracker: TaskTracker,
    /// Ends every task.
    pub cancel: CancellationToken,
}

/// A workspace, to ask permission for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceRef {
    /// Its id.
    pub id: WorkspaceId,
    /// Its name.
    pub name: WorkspaceName,
    /// Whose it is.
    pub owner: UserName,
}

impl Resource for WorkspaceRef {
    fn owner(&self) -> Option<&UserName> {
        Some(&self.owner)
    }
}

/// Where the agent of a running workspace is, and who it must prove to be.
#[derive(Debug, Clone)]
pub struct AgentTarget {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its id.
    pub id: WorkspaceId,
    /// Another one at every start: an agent of another boot is another agent.
    pub boot: u64,
    /// The node it is on.
    pub node: Arc<dyn NodeTransport>,
    /// Where it is on that node.
    pub endpoint: Endpoint,
    /// Its host key.
    pub host_key: PublicKey,
}

/// The agent of a workspace, or the work that will bring it.
#[derive(Debug)]
pub enum Agent {
    /// It runs.
    Ready(Arc<AgentTarget>),
    /// It is on its way up; ask again when the operation has ended.
    Starting(Operation),
}

/// Bytes of a log.
pub type LogStream = futures::stream::BoxStream<'static, Result<bytes::Bytes, WorkspaceError>>;

/// All workspaces. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workspaces(Arc<Settings>);

fn not_built() -> WorkspaceError {
    WorkspaceError::new(ErrorKind::Internal, "workspace", "being built")
}

impl Workspaces {
    /// Takes up every stored workspace: adopts what runs, resumes what was
    /// interrupted, removes what is left of none.
    ///
    /// # Errors
    /// When the store or the agents' executables cannot be read.
    pub async fn start(settings: Settings) -> Result<Self, WorkspaceError> {
        Ok(Self(Arc::new(settings)))
    }

    /// Stores a new workspace; it is not brought up yet.
    ///
    /// # Errors
    /// A config that is refused (2), a name that is taken (4).
    pub async fn create(
        &self,
        _caller: &Principal,
        _name: Option<WorkspaceName>,
        _config: ProjectConfig,
        _overrides: Overrides,
    ) -> Result<WorkspaceStatus, WorkspaceError> {
        Err(not_built())
    }

    /// A workspace by name, for one action. From memory.
    ///
    /// # Errors
    /// Not there and not the caller's are the same error (3).
    pub fn find(
        &self,
        _caller: &Principal,
        _action: Action,
        name: &str,
    ) -> Result<Authorized<WorkspaceRef>, WorkspaceError> {
        Err(WorkspaceError::not_found(name))
    }

    /// Names of the workspaces that the caller may see, sorted. From memory.
    #[must_use]
    pub fn names(&self, _caller: &Principal) -> Vec<WorkspaceName> {
        Vec::new()
    }

    /// Brings it up.
    pub async fn up(&self, _workspace: &Authorized<WorkspaceRef>) -> Operation {
        Operation::ended(Err(not_built()), None)
    }

    /// Takes it down; its disk stays.
    pub async fn down(&self, _workspace: &Authorized<WorkspaceRef>) -> Operation {
        Operation::ended(Err(not_built()), None)
    }

    /// Makes its environment anew and brings it up; `/workspace` stays.
    pub async fn rebuild(&self, _workspace: &Authorized<WorkspaceRef>) -> Operation {
        Operation::ended(Err(not_built()), None)
    }

    /// Removes all of it.
    pub async fn destroy(&self, _workspace: &Authorized<WorkspaceRef>) -> Operation {
        Operation::ended(Err(not_built()), None)
    }

    /// How it is. From memory.
    ///
    /// # Errors
    /// When it was destroyed since it was found (3).
    pub fn status(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<WorkspaceStatus, WorkspaceError> {
        Err(WorkspaceError::not_found(workspace.name.as_str()))
    }

    /// How every workspace is that the caller may see, by name. From memory.
    #[must_use]
    pub fn list(&self, _caller: &Principal) -> Vec<WorkspaceStatus> {
        Vec::new()
    }

    /// Its log.
    ///
    /// # Errors
    /// When it has no environment, or its engine cannot be asked.
    pub async fn logs(
        &self,
        _workspace: &Authorized<WorkspaceRef>,
        _options: LogOptions,
    ) -> Result<LogStream, WorkspaceError> {
        Err(not_built())
    }

    /// Its agent, to connect to. One that does not run is brought up, as its
    /// `auto_up` allows.
    ///
    /// # Errors
    /// When it is down on purpose or not to be brought up by connecting (4).
    pub async fn agent(
        &self,
        _workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Agent, WorkspaceError> {
        Err(not_built())
    }

    /// To be called when a running workspace's agent could not be reached:
    /// the engine is asked, and the state corrected.
    pub async fn agent_unreachable(&self, _id: &WorkspaceId) {}
}
