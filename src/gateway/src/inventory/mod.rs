//! The nodes that workspaces may run on: stored, connected to, watched.
//!
//! `local`, the gateway's own machine, is always one of them. The others come
//! and go with `node add` and `node remove`; who works with all nodes gets each
//! one, those of the start first, through the channel that
//! [`Inventory::start`] returns.

mod add;
mod address;
mod error;
mod health;
mod monitor;
mod node;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_proto::NodeName;
use vendetta_proto::spec::ProviderKind;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

pub use crate::node::enroll::{AgentAccess, AskPassword, Secret};
pub use crate::node::{ByteStream, Kvm, Probe};
pub use add::{Caller, NewNode, Operator, Reached, operator};
pub use address::{Address, InvalidAddress, SSH_PORT};
pub use error::InventoryError;
pub use health::{Engine, Health, NodeState, Trouble};
pub use node::{Node, Place};

use crate::access::{Authorized, Gateway};
use crate::events::{Events, Happening};
use crate::node::enroll;
use crate::node::ssh::SshNode;
use crate::node::{LocalNode, NodeTransport};
use crate::provider::{Docker, Host, LXC_SOCKETS, Lxc, Providers, Qemu, QemuSettings};
use crate::store::{NodeRow, Store};

/// Where a Docker engine listens unless something else was found.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// Nodes that may wait to be taken up by whoever works with all of them.
const ADDED: usize = 16;

/// What the inventory needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where nodes are stored.
    pub store: Store,
    /// Opens nodes.
    pub node_key: PrivateKey,
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
    /// What the operator has that may open a new node.
    pub operator: Operator,
    /// Where changes are told.
    pub events: Events,
    /// Owns every task.
    pub tracker: TaskTracker,
    /// Ends every task.
    pub cancel: CancellationToken,
}

/// All nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inventory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    nodes: RwLock<BTreeMap<NodeName, Arc<Node>>>,
    added: mpsc::Sender<Arc<Node>>,
}

impl Inventory {
    /// Takes up `local` and every stored node, without waiting for any of
    /// them. The receiver gets each node once.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(
        settings: Settings,
    ) -> Result<(Self, mpsc::Receiver<Arc<Node>>), InventoryError> {
        let mut rows = settings.store.nodes().await?;
        let (added, nodes) = mpsc::channel(ADDED.max(rows.len() + 1));
        let inventory = Self(Arc::new(Shared {
            settings,
            nodes: RwLock::default(),
            added,
        }));
        inventory.enter(inventory.local_place()).await;
        // A node behind another one comes after it.
        while !rows.is_empty() {
            let known = |name: &NodeName| inventory.find(name).is_some();
            let (ready, rest): (Vec<_>, Vec<_>) = rows
                .into_iter()
                .partition(|row: &NodeRow| row.jump.as_ref().is_none_or(known));
            if ready.is_empty() {
                // The store refers to nodes that it has, and to none in a circle.
                tracing::error!(nodes = ?rest, "reached through no known node");
                break;
            }
            for row in ready {
                inventory.enter(inventory.remote_place(row)?).await;
            }
            rows = rest;
        }
        Ok((inventory, nodes))
    }

    /// The node of this name.
    #[must_use]
    pub fn find(&self, name: &NodeName) -> Option<Arc<Node>> {
        self.read(|nodes| nodes.get(name).cloned())
    }

    /// The node of this name, or what to do when there is none.
    ///
    /// # Errors
    /// [`InventoryError::NoNode`] with the name that was probably meant.
    pub fn get(&self, name: &str) -> Result<Arc<Node>, InventoryError> {
        let found = name.parse().ok().and_then(|name| self.find(&name));
        found.ok_or_else(|| {
            let names: Vec<String> =
                self.read(|nodes| nodes.keys().map(NodeName::to_string).collect());
            InventoryError::NoNode {
                name: name.to_owned(),
                meant: vendetta_proto::nearest(name, &names).cloned(),
            }
        })
    }

    /// All nodes, `local` first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<_> = self.read(|nodes| nodes.values().cloned().collect());
        nodes.sort_by_key(|node: &Arc<Node>| node.name().as_str() != NodeName::LOCAL);
        nodes
    }

    /// The public key with which the gateway logs in to nodes.
    #[must_use]
    pub fn node_key(&self) -> PublicKey {
        self.0.settings.node_key.public()
    }

    /// The nodes that are reached through this one.
    #[must_use]
    pub fn behind(&self, name: &NodeName) -> Vec<NodeName> {
        let through = |node: &Arc<Node>| {
            let row = node.place().row.clone()?;
            (row.jump.as_ref() == Some(name)).then_some(row.name)
        };
        self.list().iter().filter_map(through).collect()
    }

    /// Whether a node is one that may ever be removed, for those who have
    /// something to give up first.
    ///
    /// # Errors
    /// [`InventoryError::Local`] for the gateway's own machine.
    pub fn removable(&self, name: &NodeName) -> Result<(), InventoryError> {
        match name.as_str() {
            NodeName::LOCAL => Err(InventoryError::Local("be removed")),
            _ => Ok(()),
        }
    }

    /// Removes a node from the inventory. What is on it stays, but for the
    /// gateway's key in its authorized_keys, which is removed when the node
    /// can be reached; says whether it was.
    ///
    /// # Errors
    /// [`InventoryError::NoNode`]; when a workspace is on it, or a node behind it.
    pub async fn remove(
        &self,
        _permit: &Authorized<Gateway>,
        name: &NodeName,
    ) -> Result<bool, InventoryError> {
        self.removable(name)?;
        let node = self.get(name.as_str())?;
        self.0.settings.store.remove_node(name).await?;
        self.write(|nodes| nodes.remove(name));
        let place = node.place();
        let key_removed = match &place.ssh {
            Some(ssh) => self.take_key_back(ssh).await,
            None => false,
        };
        node.gone.cancel();
        self.0
            .settings
            .events
            .tell(Happening::NodeRemoved { node: name.clone() });
        Ok(key_removed)
    }

    async fn take_key_back(&self, node: &SshNode) -> bool {
        let removed = enroll::withdraw(node, &self.node_key()).await;
        if let Err(error) = &removed {
            tracing::warn!(%error, "the node keeps the gateway's key in its authorized_keys");
        }
        removed.is_ok()
    }

    /// Gives a node another name. Sessions on it go on.
    ///
    /// # Errors
    /// [`InventoryError::NoNode`]; a name that is taken.
    pub async fn rename(
        &self,
        _permit: &Authorized<Gateway>,
        from: &NodeName,
        to: &NodeName,
    ) -> Result<(), InventoryError> {
        if from.as_str() == NodeName::LOCAL {
            return Err(InventoryError::Local("be renamed"));
        }
        let node = self.get(from.as_str())?;
        self.0.settings.store.rename_node(from, to).await?;
        self.write(|nodes| {
            nodes.remove(from);
            nodes.insert(to.clone(), Arc::clone(&node));
        });
        if let Some(ssh) = &node.place().ssh {
            ssh.current_name().set(to.clone());
        }
        // Its own place has the name, and those behind it. The ways stay as they are.
        for other in self.list() {
            let place = other.place();
            let Some(mut row) = place.row.clone() else {
                continue;
            };
            if row.name == *from {
                row.name = to.clone();
            } else if row.jump.as_ref() == Some(from) {
                row.jump = Some(to.clone());
            } else {
                continue;
            }
            other.moved(Place {
                name: row.name.clone(),
                row: Some(row),
                ..Place::clone(&place)
            });
        }
        self.0.settings.events.tell(Happening::NodeRenamed {
            from: from.clone(),
            to: to.clone(),
        });
        Ok(())
    }

    fn read<T>(&self, read: impl FnOnce(&BTreeMap<NodeName, Arc<Node>>) -> T) -> T {
        read(&self.0.nodes.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut BTreeMap<NodeName, Arc<Node>>) -> T) -> T {
        write(&mut self.0.nodes.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a node up: it is found, looked at, and handed on.
    async fn enter(&self, place: Place) -> Arc<Node> {
        let name = place.name.clone();
        let node = Arc::new(Node::new(place, self.0.settings.cancel.child_token()));
        self.write(|nodes| nodes.insert(name, Arc::clone(&node)));
        let events = self.0.settings.events.clone();
        self.0
            .settings
            .tracker
            .spawn(monitor::run(Arc::clone(&node), events));
        // Whoever takes nodes up ends with the gateway.
        let _ = self.0.added.send(Arc::clone(&node)).await;
        node
    }

    fn local_place(&self) -> Place {
        let settings = &self.0.settings;
        let transport: Arc<dyn NodeTransport> =
            Arc::new(LocalNode::new(settings.state_dir.clone()));
        Place {
            name: NodeName::local(),
            providers: self.providers(
                &transport,
                settings.docker_socket.clone(),
                settings.lxc_socket.clone(),
                None,
            ),
            transport,
            ssh: None,
            allow_host: settings.allow_host,
            row: None,
            here: settings.cancel.clone(),
            probe: None,
        }
    }

    fn remote_place(&self, row: NodeRow) -> Result<Place, InventoryError> {
        let probe = serde_json::from_value::<Probe>(row.probe.clone()).unwrap_or_default();
        let before = self.find(&row.name).map(|node| node.place());
        let stays = before.as_ref().filter(|before| before.is_at(&row));
        let cancel = &self.0.settings.cancel;
        let here = stays.map_or_else(|| cancel.child_token(), |before| before.here.clone());
        let ssh = self.connect(&row, &probe, &here)?;
        let transport: Arc<dyn NodeTransport> = Arc::clone(&ssh) as _;
        let socket = probe
            .docker_socket()
            .unwrap_or(Path::new(DOCKER_SOCKET))
            .to_owned();
        Ok(Place {
            name: row.name.clone(),
            providers: self.providers(&transport, socket, None, Some(&probe)),
            transport,
            ssh: Some(ssh),
            allow_host: row.allow_host,
            row: Some(row),
            here,
            probe: Some(probe),
        })
    }

    fn providers(
        &self,
        transport: &Arc<dyn NodeTransport>,
        docker_socket: PathBuf,
        lxc_socket: Option<PathBuf>,
        probe: Option<&Probe>,
    ) -> Providers {
        let settings = &self.0.settings;
        let gateway_id = settings.store.gateway_id().to_owned();
        let docker = Docker::new(
            Arc::clone(transport),
            docker_socket,
            gateway_id.clone(),
            settings.tracker.clone(),
        );
        let lxc = Lxc::new(
            Arc::clone(transport),
            match lxc_socket {
                Some(socket) => vec![socket],
                None => LXC_SOCKETS.map(PathBuf::from).to_vec(),
            },
            gateway_id.clone(),
            settings.tracker.clone(),
        );
        let qemu = Qemu::new(
            Arc::clone(transport),
            gateway_id.clone(),
            settings.qemu.clone(),
            probe.and_then(|probe| probe.kvm.clone()),
        );
        let host = Host::new(Arc::clone(transport), gateway_id);
        Providers::from([
            (ProviderKind::Docker, Arc::new(docker) as _),
            (ProviderKind::Lxc, Arc::new(lxc) as _),
            (ProviderKind::Qemu, Arc::new(qemu) as _),
            (ProviderKind::Host, Arc::new(host) as _),
        ])
    }
}
