//! One node: where it is now, and how it is.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use vendetta_proto::NodeName;
use vendetta_proto::spec::ProviderKind;

use super::health::Health;
use crate::node::{NodeTransport, Probe, SshNode};
use crate::provider::{Provider, Providers};
use crate::store::NodeRow;

/// A node of the inventory. It stays the same when it is renamed or reached
/// in another way, which makes another [`Place`] of it.
#[derive(Debug)]
pub struct Node {
    place: RwLock<Arc<Place>>,
    health: watch::Sender<Health>,
    pub(super) check: Notify,
    /// Cancelled when it leaves the inventory, or the gateway ends.
    pub(super) gone: CancellationToken,
}

/// Where a node is, and what runs workspaces there.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub name: NodeName,
    /// The way to it.
    pub transport: Arc<dyn NodeTransport>,
    /// The same with what only a node behind SSH has; none: the gateway's own machine.
    pub ssh: Option<Arc<SshNode>>,
    /// Its engines.
    pub providers: Providers,
    /// Whether it lets provider host run anything.
    pub allow_host: bool,
    /// How it is stored; none: the gateway's own machine.
    pub row: Option<NodeRow>,
    /// Cancelled when it is elsewhere, or the gateway ends.
    pub here: CancellationToken,
    /// What was found on it when it was added or tested last; none: neither yet.
    pub probe: Option<Probe>,
}

impl Place {
    /// "user@host port 22", or what the gateway's own machine is called.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.row {
            None => "this machine".to_owned(),
            Some(row) if row.port == 22 => format!("{}@{}", row.user, row.host),
            Some(row) => format!("{}@{} port {}", row.user, row.host, row.port),
        }
    }

    /// Whether it is reached as `row` says.
    pub(super) fn is_at(&self, row: &NodeRow) -> bool {
        self.row.as_ref().is_some_and(|own| {
            (&own.host, own.port, &own.user, &own.jump)
                == (&row.host, row.port, &row.user, &row.jump)
        })
    }

    /// The providers that may run something: host only where it is allowed.
    pub fn usable(&self) -> impl Iterator<Item = &Arc<dyn Provider>> {
        self.providers
            .values()
            .filter(|provider| provider.kind() != ProviderKind::Host || self.allow_host)
    }
}

impl Node {
    pub(super) fn new(place: Place, gone: CancellationToken) -> Self {
        Self {
            place: RwLock::new(Arc::new(place)),
            health: watch::Sender::new(Health::unknown()),
            check: Notify::new(),
            gone,
        }
    }

    /// Where it is now.
    #[must_use]
    pub fn place(&self) -> Arc<Place> {
        Arc::clone(&self.place.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn moved(&self, place: Place) {
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(place);
    }

    /// Its name now.
    #[must_use]
    pub fn name(&self) -> NodeName {
        self.place().name.clone()
    }

    /// How it is, as of the latest look.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// The same, as it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(super) fn publish(&self, health: Health) {
        self.health.send_replace(health);
    }

    /// Resolves when it has left the inventory.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Has it looked at now instead of at the next turn.
    pub fn check_soon(&self) {
        self.check.notify_one();
    }
}
