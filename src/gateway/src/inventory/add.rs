//! Making a machine a node: getting in, looking around, storing it. The same
//! for a node that is there already changes how it is reached.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vendetta_proto::NodeName;
use vendetta_sshio::keys::PublicKey;

use super::{Address, Inventory, InventoryError, Node, Place, SSH_PORT};
use crate::access::{Authorized, Gateway};
use crate::events::Happening;
use crate::node::enroll::{self, AgentAccess, AskPassword, Enrolled, enroll};
use crate::node::ssh::{self, SshNode};
use crate::node::{CurrentName, NodeError, NodeTransport, Probe};
use crate::store::NodeRow;
use crate::workspace::ProgressSink;

/// A machine to make a node.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Its name.
    pub name: NodeName,
    /// Where its sshd is.
    pub address: Address,
    /// Fingerprint of the host key it must prove; none: the first one seen, or
    /// the pinned one of a node that is there already.
    pub host_key: Option<String>,
    /// The node through which it is reached.
    pub jump: Option<NodeName>,
    /// Whether it lets provider host run anything.
    pub allow_host: bool,
    /// Whether a node of this name that is elsewhere may be meant.
    pub moved: bool,
}

/// A machine that has let us in.
#[derive(Debug)]
pub struct Reached {
    new: NewNode,
    address: ssh::Address,
    enrolled: Enrolled,
}

impl Reached {
    /// What led in, for people.
    #[must_use]
    pub fn way(&self) -> String {
        self.enrolled.way.to_string()
    }

    /// The host key that it proved.
    #[must_use]
    pub fn host_key(&self) -> &PublicKey {
        &self.enrolled.host_key
    }
}

/// The operator of the gateway.
#[derive(Debug, Clone, Default)]
pub struct Operator {
    /// Login name; also the default one on new nodes.
    pub user: String,
    /// What may open a new node.
    pub has: enroll::Operator,
}

/// What the one who adds a node has that may open it.
#[derive(Debug, Default)]
pub struct Caller {
    /// Their agent, when they forward it.
    pub agent: Option<Arc<dyn AgentAccess>>,
    /// Asks them for a password, when somebody is there to be asked.
    pub password: Option<Arc<dyn AskPassword>>,
}

/// What the operator has, who is the user that this process runs as:
/// `$HOME/.ssh` and `$SSH_AUTH_SOCK`.
#[must_use]
pub fn operator() -> Operator {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    let user = user.ok().flatten();
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .or_else(|| user.as_ref().map(|user| user.dir.clone()));
    Operator {
        user: user.map_or_else(|| "root".to_owned(), |user| user.name),
        has: enroll::Operator {
            home,
            agent: std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from),
        },
    }
}

impl Inventory {
    /// The node at an address.
    #[must_use]
    pub fn at(&self, address: &Address) -> Option<Arc<Node>> {
        let (user, port) = self.whole(address);
        self.list().into_iter().find(|node| {
            node.place()
                .row
                .as_ref()
                .is_some_and(|row| row.host == address.host && row.port == port && row.user == user)
        })
    }

    /// Login name and port of an address, with those that were not given.
    fn whole(&self, address: &Address) -> (String, u16) {
        let user = address.user.clone();
        let user = user.unwrap_or_else(|| self.0.settings.operator.user.clone());
        (user, address.port.unwrap_or(SSH_PORT))
    }

    /// A free name for a machine that nobody has given one: the first label of
    /// its host name, or its address with dashes.
    #[must_use]
    pub fn name_for(&self, address: &Address) -> NodeName {
        let host = address.host.to_ascii_lowercase();
        let label = host.split('.').next().unwrap_or_default();
        let is_name = label.starts_with(|c: char| c.is_ascii_lowercase()) && !host.contains(':');
        let base: String = if is_name {
            label.to_owned()
        } else {
            format!("node-{host}")
        };
        let base: String = base
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(50)
            .collect();
        let base = base.trim_matches('-').to_owned();
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        let mut names = std::iter::once(base.clone())
            .chain(numbered)
            .filter_map(|name| name.parse::<NodeName>().ok())
            .filter(|name| name.as_str() != NodeName::LOCAL && self.find(name).is_none());
        // There are more numbers than nodes.
        names.next().unwrap_or_else(NodeName::local)
    }

    /// Whether a machine may get this name, for those who say first what they do.
    ///
    /// # Errors
    /// [`InventoryError::Local`] for the name of the gateway's own machine.
    pub fn addable(&self, name: &NodeName) -> Result<(), InventoryError> {
        match name.as_str() {
            NodeName::LOCAL => Err(InventoryError::Local("be added")),
            _ => Ok(()),
        }
    }

    /// Gets into a machine and installs the gateway's key there. Nothing is stored yet.
    ///
    /// # Errors
    /// When it is another node already, is not reached, proves another host
    /// key, or lets nobody in.
    pub async fn reach(
        &self,
        _permit: &Authorized<Gateway>,
        new: NewNode,
        caller: Caller,
    ) -> Result<Reached, InventoryError> {
        self.addable(&new.name)?;
        if let Some(other) = self.at(&new.address)
            && other.name() != new.name
        {
            return Err(InventoryError::Known {
                address: new.address.to_string(),
                name: other.name().to_string(),
            });
        }
        let known = self
            .find(&new.name)
            .and_then(|node| node.place().row.clone());
        let (user, port) = self.whole(&new.address);
        if let Some(row) = &known
            && !new.moved
            && (&row.host, row.port, &row.user) != (&new.address.host, port, &user)
        {
            return Err(InventoryError::Taken {
                name: row.name.to_string(),
                address: format!("{}@{} port {}", row.user, row.host, row.port),
            });
        }
        if let Some(jump) = &new.jump
            && self.way_to(jump).contains(&new.name)
        {
            return Err(InventoryError::Circle {
                name: new.name.to_string(),
                jump: jump.to_string(),
            });
        }
        // A machine that has moved proves the same key.
        let pinned = known.map(|row| row.host_key);
        let host_key = new.host_key.clone();
        let host_key = host_key.or_else(|| pinned.map(|key| key.fingerprint()));
        let address = ssh::Address {
            user,
            host: new.address.host.clone(),
            port,
            jump: self.transport_to(new.jump.as_ref())?,
        };
        let settings = &self.0.settings;
        let request = enroll::Request {
            address: address.clone(),
            host_key,
        };
        let ways = enroll::Ways {
            node_key: settings.node_key.clone(),
            operator: settings.operator.has.clone(),
            caller_agent: caller.agent,
            password: caller.password,
        };
        let enrolled = enroll(request, ways).await?;
        Ok(Reached {
            new,
            address,
            enrolled,
        })
    }

    /// A node and those through which it is reached.
    fn way_to(&self, name: &NodeName) -> Vec<NodeName> {
        let through = |name: &NodeName| self.find(name)?.place().row.clone()?.jump;
        std::iter::successors(Some(name.clone()), through).collect()
    }

    fn transport_to(
        &self,
        jump: Option<&NodeName>,
    ) -> Result<Option<Arc<dyn NodeTransport>>, InventoryError> {
        match jump {
            Some(jump) => Ok(Some(Arc::clone(
                &self.get(jump.as_str())?.place().transport,
            ))),
            None => Ok(None),
        }
    }

    /// Looks around on a machine that has let us in, and makes it a node. It
    /// goes on when nobody waits for it.
    pub fn take_in(
        &self,
        _permit: &Authorized<Gateway>,
        reached: Reached,
        sink: ProgressSink,
    ) -> JoinHandle<Result<Arc<Node>, InventoryError>> {
        let inventory = self.clone();
        self.0.settings.tracker.spawn(async move {
            let taken = inventory.look_and_store(reached, &sink).await;
            // Why it failed is in the result.
            sink.end(Ok(()));
            taken
        })
    }

    async fn look_and_store(
        &self,
        reached: Reached,
        sink: &ProgressSink,
    ) -> Result<Arc<Node>, InventoryError> {
        let Reached {
            new,
            address,
            enrolled,
        } = reached;
        let known = self.find(&new.name);
        let (user, host, port) = (address.user.clone(), address.host.clone(), address.port);
        let provisional = SshNode::new(
            ssh::Settings {
                name: new.name.clone().into(),
                address,
                host_keys: vec![enrolled.host_key.clone()],
                key: self.0.settings.node_key.clone(),
                // Nothing is put there before it is known where our home is.
                state_dir: PathBuf::from("/nonexistent"),
            },
            self.0.settings.tracker.clone(),
            &self.0.settings.cancel,
        );
        let probe = look_around(&provisional, sink).await?;
        let row = NodeRow {
            name: new.name,
            user,
            host,
            port,
            jump: new.jump,
            host_key: enrolled.host_key,
            allow_host: new.allow_host,
            probe: serde_json::to_value(&probe).unwrap_or_default(),
            created: jiff::Timestamp::now(),
        };
        self.0.settings.store.save_node(&row).await?;
        let name = row.name.clone();
        let place = self.remote_place(row)?;
        let node = match known {
            Some(node) => {
                self.lead_to(&node, place)?;
                node
            }
            None => {
                let node = self.enter(place).await;
                self.0
                    .settings
                    .events
                    .tell(Happening::NodeAdded { node: name });
                node
            }
        };
        ask_engines(&node, sink).await;
        Ok(node)
    }

    /// Has a node, and those behind it, reached in another way from now on.
    fn lead_to(&self, node: &Node, place: Place) -> Result<(), InventoryError> {
        let name = place.name.clone();
        let before = node.place();
        let stays = place.row.as_ref().is_some_and(|row| before.is_at(row));
        node.moved(place);
        if !stays {
            before.here.cancel();
        }
        for behind in self.behind(&name) {
            if let Some(node) = self.find(&behind)
                && let Some(row) = node.place().row.clone()
            {
                let place = self.remote_place(row)?;
                self.lead_to(&node, place)?;
                node.check_soon();
            }
        }
        Ok(())
    }

    /// Tries a node: connects anew, looks around, and has it looked at. It goes
    /// on when nobody waits for it.
    pub fn test(
        &self,
        _permit: &Authorized<Gateway>,
        node: &Arc<Node>,
        sink: ProgressSink,
    ) -> JoinHandle<Result<(), InventoryError>> {
        let (inventory, node) = (self.clone(), Arc::clone(node));
        self.0.settings.tracker.spawn(async move {
            let tested = inventory.try_anew(&node, &sink).await;
            // Why it failed is in the result.
            sink.end(Ok(()));
            tested
        })
    }

    async fn try_anew(&self, node: &Arc<Node>, sink: &ProgressSink) -> Result<(), InventoryError> {
        let place = node.place();
        match place.row.clone() {
            None => {
                let probe = look_around(place.transport.as_ref(), sink).await?;
                node.moved(Place {
                    probe: Some(probe),
                    ..self.local_place()
                });
            }
            Some(mut row) => {
                // On a connection of its own: groups and limits of the login are those of today.
                let place = self.remote_place(row.clone())?;
                let step = sink.step(format!("connect to {}", place.address()));
                let connected = match &place.ssh {
                    Some(ssh) => ssh.latency().await.map(drop),
                    None => Ok(()),
                };
                step.end(connected)?;
                let probe = look_around(place.transport.as_ref(), sink).await?;
                if place.probe.as_ref() == Some(&probe) {
                    node.moved(place);
                } else {
                    row.probe = serde_json::to_value(&probe).unwrap_or_default();
                    self.0.settings.store.save_node(&row).await?;
                    node.moved(self.remote_place(row)?);
                }
            }
        }
        ask_engines(node, sink).await;
        Ok(())
    }

    pub(super) fn connect(
        &self,
        row: &NodeRow,
        probe: &Probe,
        here: &CancellationToken,
    ) -> Result<Arc<SshNode>, InventoryError> {
        let settings = &self.0.settings;
        let home = match probe.home.is_absolute() {
            true => probe.home.clone(),
            false => PathBuf::from("/tmp"),
        };
        // What still uses the one before it hears of another name, too.
        let before = self
            .find(&row.name)
            .and_then(|node| node.place().ssh.clone());
        let name = before.map_or_else(
            || CurrentName::from(row.name.clone()),
            |ssh| ssh.current_name().clone(),
        );
        let node = SshNode::new(
            ssh::Settings {
                name,
                address: ssh::Address {
                    user: row.user.clone(),
                    host: row.host.clone(),
                    port: row.port,
                    jump: self.transport_to(row.jump.as_ref())?,
                },
                host_keys: vec![row.host_key.clone()],
                key: settings.node_key.clone(),
                state_dir: home.join(".vendetta").join(settings.store.gateway_id()),
            },
            settings.tracker.clone(),
            here,
        );
        Ok(Arc::new(node))
    }
}

/// Has the node looked at, so that whoever waits sees it as it is now.
async fn ask_engines(node: &Node, sink: &ProgressSink) {
    let step = sink.step("ask its engines");
    let mut health = node.watch();
    health.mark_unchanged();
    node.check_soon();
    // A look has its own limits, and always says something.
    let _ = health.changed().await;
    let _ = step.end(Ok::<_, NodeError>(()));
}

async fn look_around(
    node: &dyn NodeTransport,
    sink: &ProgressSink,
) -> Result<Probe, InventoryError> {
    // A guest that hangs takes ten seconds to be told from one that starts.
    let step = sink.step("look at its engines, and try KVM with a guest");
    Ok(step.end(crate::node::probe(node).await)?)
}
