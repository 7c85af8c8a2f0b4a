//! What the actors share: store, nodes, providers, keys, and one another.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::ProviderKind;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::actor::Actor;
use super::entry::{Entry, Message, Snapshot};
use super::error::Explain;
use super::manager::{Settings, WorkspaceRef};
use super::state::{Desired, Machine, Phase, Record};
use super::{ErrorKind, Spec, WorkspaceError, WorkspaceId};
use crate::agent::install::Payloads;
use crate::node::{LocalNode, NodeTransport};
use crate::provider::{Docker, Host, Provider, Providers};
use crate::store::{Store, WorkspaceRow};

/// Messages that may wait for an actor.
const INBOX: usize = 64;

/// A node and one of its providers.
pub(super) type Place = (Arc<dyn NodeTransport>, Arc<dyn Provider>);

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
    pub(super) fn new(settings: Settings) -> Self {
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
        if self.allow_host || spec.provider != ProviderKind::Host {
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

    /// Has a workspace looked at some time soon.
    pub(super) async fn look_soon(&self, id: &WorkspaceId) {
        if let Some(entry) = self.by_id(id) {
            // Gone meanwhile: then there is nothing to look at.
            let _ = entry.inbox.send(Message::Look(None)).await;
        }
    }

    /// Has a workspace looked at, and waits for that.
    pub(super) async fn look(&self, id: &WorkspaceId) {
        if let Some(entry) = self.by_id(id) {
            // Gone meanwhile: then there is nothing to look at.
            let (done, looked) = oneshot::channel();
            if entry.inbox.send(Message::Look(Some(done))).await.is_ok() {
                let _ = looked.await;
            }
        }
    }

    /// Its name is free again.
    pub(super) fn forget(&self, entry: &Entry) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(entry.reference.name.as_str());
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&BTreeMap<String, Arc<Entry>>) -> T) -> T {
        read(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The providers that may have anything of ours.
    pub(super) fn watched(&self) -> Vec<Arc<dyn Provider>> {
        let used = |kind| self.read(|entries| entries.values().any(|e| e.spec.provider == kind));
        let watched = self
            .providers
            .iter()
            .filter(|(kind, _)| **kind != ProviderKind::Host || self.allow_host || used(**kind));
        watched.map(|(_, provider)| Arc::clone(provider)).collect()
    }

    /// Gives a workspace its actor.
    pub(super) fn adopt(
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
