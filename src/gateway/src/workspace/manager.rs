//! What the rest of the gateway sees of workspaces.

use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::AutoUp;
use vendetta_proto::{UserName, WorkspaceName};
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::activity::Activity;
use super::entry::{Entry, Message, NewConfig};
use super::error::Explain;
use super::services::{Services, allowed};
use super::state::{Desired, Phase, Record, Request};
use super::supervise::supervise;
use super::{ErrorKind, Operation, Spec, WorkspaceError, WorkspaceId, WorkspaceStatus, spec};
use crate::access::{Account, Action, Authorized, Gateway, Principal, Resource, authorize};
use crate::agent::pool::Pool;
use crate::events::Events;
use crate::inventory::{self, Inventory, Node};
use crate::node::{AgentAccess, NodeTransport};
use crate::ports::{self, PortStatus};
use crate::provider::QemuSettings;
use crate::store::{Store, WorkspaceRow};

pub use crate::provider::{Endpoint, LogOptions};

/// What workspaces need to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where they are stored.
    pub store: Store,
    /// Certifies the host keys of agents.
    pub host_ca: PrivateKey,
    /// The key with which the gateway logs in to agents.
    pub agent_key: PrivateKey,
    /// The authorities whose user certificates are taken.
    pub user_authorities: Vec<PublicKey>,
    /// Where the agents' executables are; none: beside the gateway's own, or
    /// in `../libexec/vendetta` from there.
    pub agent_dir: Option<PathBuf>,
    /// Where our files live on the node `local`.
    pub state_dir: PathBuf,
    /// The Docker engine's socket on the node `local`.
    pub docker_socket: PathBuf,
    /// The Incus's or LXD's socket on the node `local`; none: looked for.
    pub lxc_socket: Option<PathBuf>,
    /// What the config says about machines of QEMU.
    pub qemu: QemuSettings,
    /// Whether the node `local` allows provider host.
    pub allow_host: bool,
    /// Where ports of the gateway's machine that lead to workspaces are taken from.
    pub ports: ports::Settings,
    /// Opens nodes.
    pub node_key: PrivateKey,
    /// Where changes are told.
    pub events: Events,
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
    /// Which environment of the workspace it is in.
    pub generation: u64,
    /// The user of sessions whose login names none; none: the agent's own.
    pub user: Option<String>,
    /// The node it is on.
    pub node: Arc<Node>,
    /// Where it is on that node.
    pub endpoint: Endpoint,
    /// Its host key.
    pub host_key: PublicKey,
    /// What its environment was made from.
    pub spec: Arc<Spec>,
}

impl AgentTarget {
    /// The way to its node, which may be another one the next time.
    #[must_use]
    pub fn way(&self) -> Arc<dyn NodeTransport> {
        Arc::clone(&self.node.place().transport)
    }
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
pub struct Workspaces(Arc<Services>);

impl Workspaces {
    /// Takes up every stored workspace: adopts what runs, resumes what was
    /// interrupted, removes what is left of none. Does not wait for engines.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(settings: Settings) -> Result<Self, WorkspaceError> {
        let (inventory, mut nodes) = Inventory::start(inventory::Settings {
            store: settings.store.clone(),
            node_key: settings.node_key.clone(),
            state_dir: settings.state_dir.clone(),
            docker_socket: settings.docker_socket.clone(),
            lxc_socket: settings.lxc_socket.clone(),
            qemu: settings.qemu.clone(),
            allow_host: settings.allow_host,
            operator: inventory::operator(),
            events: settings.events.clone(),
            tracker: settings.tracker.clone(),
            cancel: settings.cancel.clone(),
        })
        .await
        .map_err(|error| error.explain("nodes"))?;
        let services = Arc::new(Services::new(settings, inventory));
        let given = services.store.ports().await;
        let given = given.map_err(|error| error.explain("ports"))?;
        let rows = services.store.workspaces().await;
        let rows = rows.map_err(|error| error.explain("workspaces"))?;
        let kept = rows.iter().map(|row| (&row.id, row.record.generation));
        services.contexts.keep_only(kept);
        for row in rows {
            match services.inventory.find(&row.node) {
                Some(node) => {
                    let ports = services.ports.of(&row.id, &row.config, &given);
                    services.adopt(row, node, ports, false)?;
                }
                // The store removes no node that a workspace is on.
                None => {
                    tracing::error!(workspace = %row.name, node = %row.node, "on no known node")
                }
            }
        }
        let watched = Arc::clone(&services);
        services.tracker.spawn(async move {
            let shutdown = watched.cancel.clone();
            let watching = async {
                while let Some(node) = nodes.recv().await {
                    for kind in node.place().providers.keys().copied() {
                        let watch = supervise(Arc::clone(&watched), Arc::clone(&node), kind);
                        watched.tracker.spawn(watch);
                    }
                }
            };
            shutdown.run_until_cancelled(watching).await;
        });
        Ok(Self(services))
    }

    /// Connections to their agents.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// The nodes.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.0.inventory
    }

    /// The state of every workspace there is, whoever's. From memory.
    #[must_use]
    pub fn states(&self) -> Vec<Phase> {
        let entries = self.0.entries().into_iter();
        entries.map(|entry| entry.snapshot().phase).collect()
    }

    /// How many workspaces are on a node.
    #[must_use]
    pub fn count_on(&self, node: &Node) -> usize {
        self.0.on(node).len()
    }

    /// Gives up every workspace on a node and leaves what there is of them;
    /// returns their names.
    pub async fn forget_all_on(
        &self,
        _permit: &Authorized<Gateway>,
        node: &Node,
    ) -> Vec<WorkspaceName> {
        let mut names = Vec::new();
        for entry in self.0.on(node) {
            let (done, forgotten) = oneshot::channel();
            if entry.inbox.send(Message::Forget(done)).await.is_ok() && forgotten.await.is_ok() {
                names.push(entry.reference.name.clone());
            }
        }
        names
    }

    /// Stores a new workspace; it is not brought up yet. `context` is an archive
    /// of the files that its image is built from.
    ///
    /// # Errors
    /// No name (2), a name that is taken (4).
    pub async fn create(
        &self,
        caller: &Principal,
        name: Option<WorkspaceName>,
        spec: Spec,
        context: Option<Vec<u8>>,
    ) -> Result<WorkspaceStatus, WorkspaceError> {
        let name = spec::name_of(name, &spec.config)?;
        let about = format!("workspace {name}");
        let account = Account(caller.user.clone());
        let owner = authorize(caller, Action::Create, account)
            .map_err(|_| WorkspaceError::not_found(name.as_str()))?;
        let node = self.0.inventory.get(spec.remote());
        let node = node.map_err(|error| error.explain("config"))?;
        allowed(&node.place(), spec.provider)?;
        let host_key = PrivateKey::generate_ed25519(name.as_str())
            .and_then(|key| key.to_openssh())
            .map_err(|error| error.explain(&about))?;
        let row = WorkspaceRow {
            id: WorkspaceId::random(),
            name,
            owner: owner.0.clone(),
            node: node.name(),
            provider: spec.provider,
            config: spec.config,
            record: Record::NEW,
            provisioned: 0,
            begun: false,
            host_key,
            created: jiff::Timestamp::now(),
        };
        let services = Arc::clone(&self.0);
        // A task of its own: a caller that leaves between row and actor must
        // not leave a row without one.
        let created = self.0.tracker.spawn(async move {
            // Before the row, so that a row means that there is all it needs.
            let (id, generation) = (&row.id, row.record.generation);
            services.contexts.put(id, generation, context).await?;
            let added = services.store.add_workspace(&row).await;
            if let Err(error) = added {
                services.contexts.remove(&row.id);
                return Err(error.explain(&about));
            }
            match ports_for(&services, &row).await {
                Ok(ports) => services.adopt(row, node, ports, true),
                Err(error) => {
                    services.contexts.remove(&row.id);
                    let forgotten = services.store.forget_workspace(&row.id).await;
                    forgotten.map_err(|error| error.explain(&about))?;
                    Err(error)
                }
            }
        });
        let entry = created.await.map_err(|error| {
            WorkspaceError::new(ErrorKind::Internal, "create", error.to_string())
        })??;
        Ok(entry.status())
    }

    /// A workspace by name, for one action. From memory.
    ///
    /// # Errors
    /// Not there and not the caller's are the same error (3).
    pub fn find(
        &self,
        caller: &Principal,
        action: Action,
        name: &str,
    ) -> Result<Authorized<WorkspaceRef>, WorkspaceError> {
        let found = self
            .0
            .read(|entries| entries.get(name).map(|entry| entry.reference.clone()));
        found
            .and_then(|reference| authorize(caller, action, reference).ok())
            .ok_or_else(|| WorkspaceError::not_found(name))
    }

    /// Names of the workspaces that the caller may see, sorted. From memory.
    #[must_use]
    pub fn names(&self, caller: &Principal) -> Vec<WorkspaceName> {
        let visible = self.visible(caller).into_iter();
        visible.map(|entry| entry.reference.name.clone()).collect()
    }

    fn visible(&self, caller: &Principal) -> Vec<Arc<Entry>> {
        let mut entries = self.0.entries();
        entries.retain(|entry| authorize(caller, Action::View, entry.reference.clone()).is_ok());
        entries
    }

    /// What the actors share.
    pub(super) fn shared(&self) -> &Arc<Services> {
        &self.0
    }

    /// Ends every task.
    pub(super) fn cancellation(&self) -> CancellationToken {
        self.0.cancel.clone()
    }

    /// Owns every task.
    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.0.tracker
    }

    pub(super) fn entry(&self, workspace: &WorkspaceRef) -> Result<Arc<Entry>, WorkspaceError> {
        let name = workspace.name.as_str();
        let found = self.0.read(|entries| entries.get(name).cloned());
        found
            .filter(|entry| entry.reference.id == workspace.id)
            .ok_or_else(|| WorkspaceError::not_found(name))
    }

    async fn ask(
        &self,
        workspace: &WorkspaceRef,
        request: Request,
        config: Option<NewConfig>,
        ssh_agent: Option<Arc<dyn AgentAccess>>,
    ) -> Operation {
        let answer = match self.entry(workspace) {
            Ok(entry) => entry.ask(request, config, ssh_agent).await.ok_or_else(|| {
                if self.0.cancel.is_cancelled() {
                    let context = entry.context();
                    WorkspaceError::new(ErrorKind::Unavailable, context, "the gateway is stopping")
                } else {
                    WorkspaceError::not_found(workspace.name.as_str())
                }
            }),
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| Operation::ended(Err(error), None))
    }

    /// Brings it up; `ssh_agent` is the caller's, for a repository that wants
    /// their key.
    pub async fn up(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        ssh_agent: Option<Arc<dyn AgentAccess>>,
    ) -> Operation {
        self.ask(workspace, Request::Up, None, ssh_agent).await
    }

    /// Takes it down; its disk stays.
    pub async fn down(&self, workspace: &Authorized<WorkspaceRef>) -> Operation {
        self.ask(workspace, Request::Down, None, None).await
    }

    /// Makes its environment anew, from `config` if there is one, and brings it
    /// up; `/workspace` stays.
    pub async fn rebuild(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        config: Option<NewConfig>,
        ssh_agent: Option<Arc<dyn AgentAccess>>,
    ) -> Operation {
        self.ask(workspace, Request::Rebuild, config, ssh_agent)
            .await
    }

    /// Removes all of it.
    pub async fn destroy(&self, workspace: &Authorized<WorkspaceRef>) -> Operation {
        self.ask(workspace, Request::Destroy, None, None).await
    }

    /// What it is made from. From memory.
    ///
    /// # Errors
    /// When it was destroyed since it was found (3).
    pub fn spec(&self, workspace: &Authorized<WorkspaceRef>) -> Result<Arc<Spec>, WorkspaceError> {
        Ok(self.entry(workspace)?.spec())
    }

    /// How it is. From memory.
    ///
    /// # Errors
    /// When it was destroyed since it was found (3).
    pub fn status(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<WorkspaceStatus, WorkspaceError> {
        Ok(self.entry(workspace)?.status())
    }

    /// How every workspace is that the caller may see, by name. From memory.
    #[must_use]
    pub fn list(&self, caller: &Principal) -> Vec<WorkspaceStatus> {
        let visible = self.visible(caller).into_iter();
        visible.map(|entry| entry.status()).collect()
    }

    /// Its log.
    ///
    /// # Errors
    /// When it has no environment, or its engine cannot be asked.
    pub async fn logs(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        options: LogOptions,
    ) -> Result<LogStream, WorkspaceError> {
        let entry = self.entry(workspace)?;
        let about = entry.context();
        let (_, provider) = entry.place()?;
        let log = provider.logs(&workspace.id, options).await;
        let log = log.map_err(|error| error.explain(&about))?;
        Ok(log
            .map(move |bytes| bytes.map_err(|error| error.explain(&about)))
            .boxed())
    }

    /// Its agent, to connect to. One that does not run is brought up, as its
    /// `auto_up` allows.
    ///
    /// # Errors
    /// When it is down on purpose, not to be brought up by connecting, or being
    /// destroyed (4).
    pub async fn agent(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Agent, WorkspaceError> {
        let entry = self.entry(workspace)?;
        let snapshot = entry.snapshot();
        if let Some(target) = snapshot.target
            && !entry.activity.is_leaving()
        {
            return Ok(Agent::Ready(target));
        }
        let (desired, auto_up) = (snapshot.record.desired, entry.spec().auto_up);
        let starts = snapshot.phase == Phase::Starting && desired == Desired::Running;
        let refuse = |problem: String| {
            let up = format!("ssh vendetta workspace up {}", workspace.name);
            let error = WorkspaceError::new(ErrorKind::Conflict, entry.context(), problem);
            Err(error.with_remedy(up))
        };
        match (desired, auto_up) {
            (Desired::Destroyed, _) => Err(entry.being_destroyed()),
            (Desired::Down, AutoUp::Unless | AutoUp::Never) => {
                refuse("it was taken down on purpose".to_owned())
            }
            (_, AutoUp::Never) if !starts => refuse(format!(
                "it is {}, and its auto_up is false",
                snapshot.phase
            )),
            _ => Ok(Agent::Starting(self.up(workspace, None).await)),
        }
    }

    /// Waits until sessions can be opened in it, which may be before the work
    /// that brings it up has ended.
    ///
    /// # Errors
    /// When it was destroyed since it was found (3).
    pub async fn reachable(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Arc<AgentTarget>, WorkspaceError> {
        Ok(self.entry(workspace)?.reachable().await)
    }

    /// Counts what uses it.
    ///
    /// # Errors
    /// When it was destroyed since it was found (3).
    pub fn activity(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Activity, WorkspaceError> {
        Ok(self.entry(workspace)?.activity.clone())
    }

    /// The ports of the gateway's machine that lead to it, and how they are.
    ///
    /// # Errors
    /// When it was destroyed since it was found (3).
    pub fn ports(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<watch::Receiver<Vec<PortStatus>>, WorkspaceError> {
        Ok(self.entry(workspace)?.ports.subscribe())
    }

    /// To be called when a running workspace's agent could not be reached:
    /// the engine is asked, and the state corrected.
    pub async fn agent_unreachable(&self, id: &WorkspaceId) {
        self.0.look(id).await;
    }
}

/// The ports of a new workspace, all of which it must be given.
async fn ports_for(
    services: &Services,
    row: &WorkspaceRow,
) -> Result<Vec<ports::Mapping>, WorkspaceError> {
    let about = format!("workspace {}", row.name);
    let assigned = services.ports.assign(&row.id, &row.owner, &row.config);
    let assigned = assigned.await.map_err(|error| error.explain(&about))?;
    match assigned.refused.into_iter().next() {
        None => Ok(assigned.mappings),
        Some(refused) => Err(refused.explain(&about)),
    }
}
