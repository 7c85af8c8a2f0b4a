//! What the rest of the gateway sees of workspaces.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::{AutoUp, ProjectConfig, ProviderKind};
use vendetta_proto::{UserName, WorkspaceName};
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::actor::Actor;
use super::entry::{Entry, Message, Snapshot};
use super::error::Explain;
use super::state::{Desired, Machine, Phase, Record, Request};
use super::supervise::supervise;
use super::work::{Place, needs_permission};
use super::{
    ErrorKind, Operation, Overrides, Spec, WorkspaceError, WorkspaceId, WorkspaceStatus, spec,
};
use crate::access::{Account, Action, Authorized, Principal, Resource, authorize};
use crate::agent::install::Payloads;
use crate::node::{LocalNode, NodeTransport};
use crate::provider::{Docker, Host, Providers};
use crate::store::{Store, WorkspaceRow};

pub use crate::provider::{Endpoint, LogOptions};

/// Messages that may wait for an actor.
const INBOX: usize = 64;

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

/// What actors work with.
#[derive(Debug)]
pub(super) struct Services {
    pub store: Store,
    pub host_ca: PrivateKey,
    pub agent_login_key: PublicKey,
    pub payloads: Payloads,
    pub tracker: TaskTracker,
    pub cancel: CancellationToken,
    allow_host: bool,
    local: Arc<dyn NodeTransport>,
    providers: Providers,
    entries: RwLock<BTreeMap<String, Arc<Entry>>>,
}

impl Services {
    fn new(settings: Settings) -> Self {
        let gateway_id = settings.store.gateway_id().to_owned();
        let local: Arc<dyn NodeTransport> = Arc::new(LocalNode::new(settings.state_dir));
        let docker = Docker::new(
            Arc::clone(&local),
            settings.docker_socket,
            gateway_id.clone(),
            settings.tracker.clone(),
        );
        let mut providers = Providers::new();
        providers.insert(ProviderKind::Docker, Arc::new(docker));
        providers.insert(
            ProviderKind::Host,
            Arc::new(Host::new(Arc::clone(&local), gateway_id)),
        );
        Self {
            store: settings.store,
            host_ca: settings.host_ca,
            agent_login_key: settings.agent_login_key,
            payloads: Payloads::new(settings.agent_dir),
            tracker: settings.tracker,
            cancel: settings.cancel,
            allow_host: settings.allow_host,
            local,
            providers,
            entries: RwLock::default(),
        }
    }

    /// Node and provider of a spec.
    pub(super) fn of(&self, spec: &Spec) -> Result<Place, WorkspaceError> {
        let provider = self.providers.get(&spec.provider);
        match provider {
            Some(provider) if spec.node == *self.local.name() => {
                Ok((Arc::clone(&self.local), Arc::clone(provider)))
            }
            _ => Err(WorkspaceError::new(
                ErrorKind::Unavailable,
                "config",
                format!("node {} has no provider {}", spec.node, spec.provider),
            )),
        }
    }

    /// Whether the node lets the provider run anything.
    pub(super) fn allowed(&self, spec: &Spec) -> Result<(), WorkspaceError> {
        if self.allow_host || !needs_permission(spec.provider) {
            return Ok(());
        }
        Err(WorkspaceError::new(
            ErrorKind::Conflict,
            "config",
            format!(
                "node {} does not allow provider {}, which runs without isolation",
                spec.node, spec.provider
            ),
        )
        .with_remedy("set allow_host = true in section [local] of the gateway's config"))
    }

    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.read(|entries| entries.values().cloned().collect())
    }

    pub(super) fn by_id(&self, id: &WorkspaceId) -> Option<Arc<Entry>> {
        self.read(|entries| {
            let mut all = entries.values();
            all.find(|entry| entry.reference.id == *id).cloned()
        })
    }

    /// Has a workspace looked at.
    pub(super) async fn look(&self, id: &WorkspaceId) {
        if let Some(entry) = self.by_id(id) {
            // Gone meanwhile: then there is nothing to look at.
            let _ = entry.inbox.send(Message::Look).await;
        }
    }

    /// Its name is free again.
    pub(super) fn forget(&self, entry: &Entry) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(entry.reference.name.as_str());
    }

    fn read<T>(&self, read: impl FnOnce(&BTreeMap<String, Arc<Entry>>) -> T) -> T {
        read(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives a workspace its actor.
    fn adopt(
        self: &Arc<Self>,
        row: WorkspaceRow,
        is_new: bool,
    ) -> Result<Arc<Entry>, WorkspaceError> {
        let about = format!("workspace {}", row.name);
        let host_key = PrivateKey::from_openssh(&row.host_key);
        let host_key = host_key.map_err(|error| error.explain(&about))?;
        let (inbox, messages) = mpsc::channel(INBOX);
        let mut snapshot = Snapshot::new(&Machine::new(), first_phase(row.record));
        snapshot.record = row.record;
        let entry = Arc::new(Entry::new(
            WorkspaceRef {
                id: row.id,
                name: row.name,
                owner: row.owner,
            },
            Spec::stored(row.provider, row.node, row.config),
            row.created,
            host_key,
            inbox,
            snapshot,
        ));
        let name = entry.reference.name.to_string();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(name, Arc::clone(&entry));
        drop(entries);
        let actor = Actor::new(Arc::clone(self), Arc::clone(&entry), messages);
        self.tracker
            .spawn(actor.run((!is_new).then_some(row.record)));
        Ok(entry)
    }
}

/// What a stored workspace is shown as until its engine was asked.
fn first_phase(record: Record) -> Phase {
    match record.desired {
        Desired::Created => Phase::Created,
        Desired::Running => Phase::Starting,
        Desired::Down => Phase::Stopped,
        Desired::Destroyed => Phase::Destroying,
    }
}

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
        let services = Arc::new(Services::new(settings));
        let rows = services.store.workspaces().await;
        for row in rows.map_err(|error| error.explain("workspaces"))? {
            services.adopt(row, false)?;
        }
        for provider in services.providers.values() {
            let watch = supervise(Arc::clone(&services), Arc::clone(provider));
            services.tracker.spawn(watch);
        }
        Ok(Self(services))
    }

    /// Stores a new workspace; it is not brought up yet.
    ///
    /// # Errors
    /// A config that is refused (2), a name that is taken (4).
    pub async fn create(
        &self,
        caller: &Principal,
        name: Option<WorkspaceName>,
        config: ProjectConfig,
        overrides: Overrides,
    ) -> Result<WorkspaceStatus, WorkspaceError> {
        let name = spec::name_of(name, &config)?;
        let about = format!("workspace {name}");
        let account = Account(caller.user.clone());
        let owner = authorize(caller, Action::Create, account)
            .map_err(|_| WorkspaceError::not_found(name.as_str()))?;
        let spec = Spec::resolve(config, overrides)?;
        self.0.allowed(&spec)?;
        let host_key = PrivateKey::generate_ed25519(name.as_str())
            .and_then(|key| key.to_openssh())
            .map_err(|error| error.explain(&about))?;
        let row = WorkspaceRow {
            id: WorkspaceId::random(),
            name,
            owner: owner.0.clone(),
            node: spec.node,
            provider: spec.provider,
            config: spec.config,
            record: Record::NEW,
            host_key,
            created: jiff::Timestamp::now(),
        };
        let services = Arc::clone(&self.0);
        // A task of its own: a caller that leaves between row and actor must
        // not leave a row without one.
        let created = self.0.tracker.spawn(async move {
            let added = services.store.add_workspace(&row).await;
            added.map_err(|error| error.explain(&about))?;
            services.adopt(row, true)
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

    fn entry(&self, workspace: &WorkspaceRef) -> Result<Arc<Entry>, WorkspaceError> {
        let name = workspace.name.as_str();
        let found = self.0.read(|entries| entries.get(name).cloned());
        found
            .filter(|entry| entry.reference.id == workspace.id)
            .ok_or_else(|| WorkspaceError::not_found(name))
    }

    async fn ask(&self, workspace: &WorkspaceRef, request: Request) -> Operation {
        let answer = match self.entry(workspace) {
            Ok(entry) => entry.ask(request).await.ok_or_else(|| {
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

    /// Brings it up.
    pub async fn up(&self, workspace: &Authorized<WorkspaceRef>) -> Operation {
        self.ask(workspace, Request::Up).await
    }

    /// Takes it down; its disk stays.
    pub async fn down(&self, workspace: &Authorized<WorkspaceRef>) -> Operation {
        self.ask(workspace, Request::Down).await
    }

    /// Makes its environment anew and brings it up; `/workspace` stays.
    pub async fn rebuild(&self, workspace: &Authorized<WorkspaceRef>) -> Operation {
        self.ask(workspace, Request::Rebuild).await
    }

    /// Removes all of it.
    pub async fn destroy(&self, workspace: &Authorized<WorkspaceRef>) -> Operation {
        self.ask(workspace, Request::Destroy).await
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
        let (_, provider) = self.0.of(&entry.spec)?;
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
    /// When it is down on purpose or not to be brought up by connecting (4).
    pub async fn agent(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Agent, WorkspaceError> {
        let entry = self.entry(workspace)?;
        let snapshot = entry.snapshot();
        if let Some(target) = snapshot.target {
            return Ok(Agent::Ready(target));
        }
        let (desired, auto_up) = (snapshot.record.desired, entry.spec.auto_up);
        let starts = snapshot.phase == Phase::Starting && desired == Desired::Running;
        let refuse = |problem: String| {
            let up = format!("ssh vendetta workspace up {}", workspace.name);
            let error = WorkspaceError::new(ErrorKind::Conflict, entry.context(), problem);
            Err(error.with_remedy(up))
        };
        match (desired, auto_up) {
            (Desired::Destroyed, _) => Err(WorkspaceError::not_found(workspace.name.as_str())),
            (Desired::Down, AutoUp::Unless | AutoUp::Never) => {
                refuse("it was taken down on purpose".to_owned())
            }
            (_, AutoUp::Never) if !starts => refuse(format!(
                "it is {}, and its auto_up is false",
                snapshot.phase
            )),
            _ => Ok(Agent::Starting(self.up(workspace).await)),
        }
    }

    /// To be called when a running workspace's agent could not be reached:
    /// the engine is asked, and the state corrected.
    pub async fn agent_unreachable(&self, id: &WorkspaceId) {
        self.0.look(id).await;
    }
}
