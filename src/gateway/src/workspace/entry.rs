//! A workspace as everybody but its actor sees it: what never changes, the
//! latest of what does, and the way to ask for something.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use vendetta_proto::spec::ProviderKind;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::activity::Activity;
use super::guests::Gate;
use super::manager::{AgentTarget, WorkspaceRef};
use super::state::{Machine, Phase, Record, Request};
use super::{ErrorKind, Failure, Operation, Overrides, Spec, WorkspaceError, WorkspaceStatus};
use crate::inventory::{Node, NodeState};
use crate::node::{AgentAccess, NodeTransport};
use crate::ports::{Mapping, PortStatus};
use crate::provider::Provider;
use crate::store::WorkspaceRow;

/// What an actor is told.
#[derive(Debug)]
pub(super) enum Message {
    /// Somebody asks for something and wants to watch it.
    Ask(Ask),
    /// Something may have happened to the environment: look, and tell whoever
    /// waits for it.
    Look(Option<oneshot::Sender<()>>),
    /// The agent that the start of this number reached has given way to another one.
    Restarted {
        /// The number of the start.
        boot: u64,
    },
    /// Nothing has used it for as long as its `idle_timeout`.
    Idle,
    /// Its node is removed: give it up, leave what there is of it, and say when
    /// that is done.
    Forget(oneshot::Sender<()>),
}

/// What a workspace is to be made from, from its next environment on.
#[derive(Debug)]
pub enum NewConfig {
    /// What it is made from now, with these changes.
    Changed(Overrides),
    /// Another config, whose provider is the workspace's own.
    Replaced {
        /// It.
        spec: Box<Spec>,
        /// An archive of the files that its image is built from, when it is.
        context: Option<Vec<u8>>,
    },
}

/// Something that is asked for.
#[derive(Debug)]
pub(super) struct Ask {
    pub request: Request,
    /// What it is to be made from, from now on.
    pub config: Option<NewConfig>,
    /// The caller's ssh-agent, for what may need their keys.
    pub ssh_agent: Option<Arc<dyn AgentAccess>>,
    /// Where to watch it.
    pub reply: oneshot::Sender<Operation>,
}

/// What changes, as of the actor's latest step.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub phase: Phase,
    pub record: Record,
    pub since: Timestamp,
    pub failure: Option<Failure>,
    pub note: Option<String>,
    /// Its agent, once it answers and the environment has been set up.
    pub target: Option<Arc<AgentTarget>>,
}

impl Snapshot {
    pub(super) fn new(machine: &Machine, phase: Phase) -> Self {
        Self {
            phase,
            record: machine.record(),
            since: Timestamp::now(),
            failure: None,
            note: None,
            target: None,
        }
    }
}

/// The way to a node, and one of its engines.
type Engine = (Arc<dyn NodeTransport>, Arc<dyn Provider>);

/// A workspace.
#[derive(Debug)]
pub(super) struct Entry {
    pub reference: WorkspaceRef,
    /// What runs it.
    pub provider: ProviderKind,
    spec: RwLock<Arc<Spec>>,
    /// The node it is on.
    pub node: Arc<Node>,
    pub created: Timestamp,
    pub host_key: PrivateKey,
    pub host_public: PublicKey,
    pub inbox: mpsc::Sender<Message>,
    /// The generation of the environment that was set up last.
    provisioned: AtomicU64,
    /// Whether anything of it may be on its node.
    begun: AtomicBool,
    /// What uses it.
    pub activity: Activity,
    /// Who comes to its agent end to end.
    pub gate: Gate,
    /// The ports of the gateway's machine that lead to it.
    pub ports: watch::Sender<Vec<PortStatus>>,
    snapshot: watch::Sender<Snapshot>,
}

impl Entry {
    pub(super) fn new(
        row: WorkspaceRow,
        node: Arc<Node>,
        host_key: PrivateKey,
        inbox: mpsc::Sender<Message>,
        snapshot: Snapshot,
    ) -> Self {
        Self {
            reference: WorkspaceRef {
                id: row.id,
                name: row.name,
                owner: row.owner,
            },
            provider: row.provider,
            spec: RwLock::new(Arc::new(Spec::stored(row.provider, row.config))),
            node,
            created: row.created,
            host_public: host_key.public(),
            host_key,
            inbox,
            provisioned: AtomicU64::new(row.provisioned),
            begun: AtomicBool::new(row.begun),
            activity: Activity::default(),
            gate: Gate::default(),
            ports: watch::Sender::default(),
            snapshot: watch::Sender::new(snapshot),
        }
    }

    /// What it is made from; another one after a rebuild with a new config.
    pub(super) fn spec(&self) -> Arc<Spec> {
        Arc::clone(&self.spec.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// To be called by the actor, once that is saved.
    pub(super) fn set_spec(&self, spec: Spec) {
        *self.spec.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(spec);
    }

    /// "workspace NAME", for errors.
    pub(super) fn context(&self) -> String {
        format!("workspace {}", self.reference.name)
    }

    /// The way to its node, and its engine there.
    pub(super) fn place(&self) -> Result<Engine, WorkspaceError> {
        let place = self.node.place();
        match place.providers.get(&self.provider) {
            Some(provider) => Ok((Arc::clone(&place.transport), Arc::clone(provider))),
            None => Err(WorkspaceError::new(
                ErrorKind::Unavailable,
                self.context(),
                format!("node {} has no provider {}", place.name, self.provider),
            )),
        }
    }

    /// That its node cannot be reached, when it cannot.
    fn node_trouble(&self) -> Option<String> {
        let health = self.node.health();
        (health.state == NodeState::Down).then(|| {
            let problem = health
                .troubles
                .first()
                .map(|trouble| trouble.problem.as_str());
            let problem = problem.unwrap_or("it cannot be reached");
            format!("node {} is down: {problem}", self.node.name())
        })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Waits until sessions can be opened in the environment.
    pub(super) async fn reachable(&self) -> Arc<AgentTarget> {
        let mut snapshots = self.snapshot.subscribe();
        loop {
            if let Some(target) = &snapshots.borrow_and_update().target {
                return Arc::clone(target);
            }
            if snapshots.changed().await.is_err() {
                // Cannot be: we hold the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until it is not on its way up.
    pub(super) async fn started(&self) {
        let mut snapshots = self.snapshot.subscribe();
        // Fails only when the sender is gone, and we hold it.
        let _ = snapshots
            .wait_for(|snapshot| snapshot.phase != Phase::Starting)
            .await;
    }

    /// The generation of the environment that was set up last; 0: none.
    pub(super) fn provisioned(&self) -> u64 {
        self.provisioned.load(Ordering::Relaxed)
    }

    /// To be called once that is saved.
    pub(super) fn set_provisioned(&self, generation: u64) {
        self.provisioned.store(generation, Ordering::Relaxed);
    }

    /// Whether anything of it may be on its node. When not, it is destroyed
    /// without a word to its engine.
    pub(super) fn begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// To be called once that is saved, and before anything is put there.
    pub(super) fn set_begun(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// What a destroy that could not be done now waits for.
    fn awaited(&self) -> String {
        let node = self.node.name();
        let away = self.node.health().state == NodeState::Down;
        match self.provider {
            ProviderKind::Docker | ProviderKind::Lxc if !away => {
                format!("{} on node {node} answers", self.provider)
            }
            _ => format!("node {node} is back"),
        }
    }

    /// What those are told who ask something else of a workspace that is being destroyed.
    pub(super) fn being_destroyed(&self) -> WorkspaceError {
        let problem = match self.snapshot().failure {
            Some(failure) => format!(
                "it is being destroyed, which goes on when {}: {}",
                self.awaited(),
                failure.cause
            ),
            None => "it is being destroyed".to_owned(),
        };
        let status = format!("ssh vendetta workspace status {}", self.reference.name);
        WorkspaceError::new(ErrorKind::Conflict, self.context(), problem).with_remedy(status)
    }

    /// What those are told who asked for a destroy that `error` holds up.
    pub(super) fn held_up(&self, error: WorkspaceError) -> WorkspaceError {
        if error.kind != ErrorKind::Unavailable {
            return error;
        }
        let problem = format!(
            "it is being destroyed, which goes on by itself when {}: {}",
            self.awaited(),
            error.problem
        );
        WorkspaceError { problem, ..error }
    }

    /// What it was given, before anything listens there.
    pub(super) fn set_ports(&self, mappings: Vec<Mapping>) {
        let closed = mappings.into_iter().map(PortStatus::from);
        self.ports.send_replace(closed.collect());
    }

    /// Only the actor calls this.
    pub(super) fn publish(&self, snapshot: Snapshot) {
        self.snapshot.send_replace(snapshot);
    }

    /// Asks the actor; none when the workspace is gone.
    pub(super) async fn ask(
        &self,
        request: Request,
        config: Option<NewConfig>,
        ssh_agent: Option<Arc<dyn AgentAccess>>,
    ) -> Option<Operation> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask {
            request,
            config,
            ssh_agent,
            reply,
        };
        self.inbox.send(Message::Ask(ask)).await.ok()?;
        answer.await.ok()
    }

    pub(super) fn status(&self) -> WorkspaceStatus {
        let (snapshot, spec) = (self.snapshot(), self.spec());
        WorkspaceStatus {
            name: self.reference.name.clone(),
            id: self.reference.id.clone(),
            owner: self.reference.owner.clone(),
            provider: self.provider,
            node: self.node.name(),
            image: spec.made_from(),
            state: snapshot.phase,
            desired: snapshot.record.desired,
            auto_up: spec.auto_up,
            created: self.created,
            since: snapshot.since,
            failure: snapshot.failure,
            note: snapshot.note.or_else(|| self.node_trouble()),
            idle_timeout: spec.config.idle_timeout,
            ports: self.ports.borrow().clone(),
            inactive: spec.inactive(),
            host_key: self.host_public.clone(),
            host_key_fingerprint: self.host_public.fingerprint(),
        }
    }
}
