//! What the actors share: store, nodes, providers, keys, and one another.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::ProviderKind;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::actor::Actor;
use super::context::Contexts;
use super::entry::{Entry, Message, Snapshot};
use super::error::Explain;
use super::manager::Settings;
use super::state::{Desired, Machine, Phase, Record};
use super::{ErrorKind, WorkspaceError, WorkspaceId};
use crate::agent::install::Payloads;
use crate::agent::pool::Pool;
use crate::events::Events;
use crate::inventory::{Inventory, Node, Place};
use crate::ports::{Mapping, Ports};
use crate::store::{Store, WorkspaceRow};

/// Messages that may wait for an actor.
const INBOX: usize = 64;

/// What actors work with.
#[derive(Debug)]
pub(super) struct Services {
    pub store: Store,
    pub host_ca: PrivateKey,
    pub agent_login_key: PublicKey,
    pub user_authorities: Vec<PublicKey>,
    pub payloads: Payloads,
    pub pool: Pool,
    pub ports: Ports,
    pub inventory: Inventory,
    pub contexts: Contexts,
    pub events: Events,
    pub tracker: TaskTracker,
    pub cancel: CancellationToken,
    entries: RwLock<BTreeMap<String, Arc<Entry>>>,
}

impl Services {
    pub(super) fn new(settings: Settings, inventory: Inventory) -> Self {
        Self {
            ports: Ports::new(settings.ports, settings.store.clone()),
            store: settings.store,
            host_ca: settings.host_ca,
            agent_login_key: settings.agent_key.public(),
            user_authorities: settings.user_authorities,
            payloads: Payloads::new(settings.agent_dir),
            pool: Pool::new(
                &settings.agent_key,
                settings.tracker.clone(),
                settings.cancel.clone(),
            ),
            inventory,
            contexts: Contexts::new(&settings.state_dir),
            events: settings.events,
            tracker: settings.tracker,
            cancel: settings.cancel,
            entries: RwLock::default(),
        }
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
        self.contexts.remove(&entry.reference.id);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.remove(entry.reference.name.as_str());
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&BTreeMap<String, Arc<Entry>>) -> T) -> T {
        read(&self.entries.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The workspaces on a node.
    pub(super) fn on(&self, node: &Node) -> Vec<Arc<Entry>> {
        let mut entries = self.entries();
        entries.retain(|entry| std::ptr::eq(Arc::as_ptr(&entry.node), node));
        entries
    }

    /// Whether a provider of a node may have anything of ours.
    pub(super) fn may_have_ours(&self, node: &Node, kind: ProviderKind) -> bool {
        let used = || self.on(node).iter().any(|entry| entry.provider == kind);
        kind != ProviderKind::Host || node.place().allow_host || used()
    }

    /// Gives a workspace its actor.
    pub(super) fn adopt(
        self: &Arc<Self>,
        row: WorkspaceRow,
        node: Arc<Node>,
        ports: Vec<Mapping>,
        is_new: bool,
    ) -> Result<Arc<Entry>, WorkspaceError> {
        let about = format!("workspace {}", row.name);
        let host_key = PrivateKey::from_openssh(&row.host_key);
        let host_key = host_key.map_err(|error| error.explain(&about))?;
        let (inbox, messages) = mpsc::channel(INBOX);
        let mut snapshot = Snapshot::new(&Machine::new(), first_phase(row.record));
        snapshot.record = row.record;
        let record = row.record;
        let entry = Arc::new(Entry::new(row, node, host_key, inbox, snapshot));
        entry.set_ports(ports);
        let name = entry.reference.name.to_string();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.insert(name, Arc::clone(&entry));
        drop(entries);
        let actor = Actor::new(Arc::clone(self), Arc::clone(&entry), messages);
        self.tracker.spawn(actor.run((!is_new).then_some(record)));
        Ok(entry)
    }
}

/// What a stored workspace is shown as until its engine was asked.
fn first_phase(record: Record) -> Phase {
    match record.desired {
        Desired::Created => Phase::Created,
        Desired::Running => Phase::Starting,
        Desired::Down | Desired::Idle => Phase::Stopped,
        Desired::Destroyed => Phase::Destroying,
    }
}

/// Whether a place lets the provider run anything.
pub(super) fn allowed(place: &Place, provider: ProviderKind) -> Result<(), WorkspaceError> {
    if place.allow_host || provider != ProviderKind::Host {
        return Ok(());
    }
    let remedy = match &place.row {
        None => "set allow_host = true in section [local] of the gateway's config".to_owned(),
        Some(row) => format!(
            "an admin allows it with: ssh vendetta node add {} {}@{} --port {} --allow-host",
            place.name, row.user, row.host, row.port
        ),
    };
    Err(WorkspaceError::new(
        ErrorKind::Conflict,
        "config",
        format!(
            "node {} does not allow provider {provider}, which runs without isolation",
            place.name
        ),
    )
    .with_remedy(remedy))
}
