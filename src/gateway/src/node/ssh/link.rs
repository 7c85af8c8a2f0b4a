//! The connection to a node that is kept: one task makes it, watches it and
//! makes it again. [`policy`](super::policy) says when.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::LinkError;
use super::connection::{CONNECT_LIMIT, Connection, Connector};
use super::policy::{Event, Machine, Phase, STUBBORN_GAP};

/// How the connection to a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Nobody has needed it yet.
    Idle,
    /// It is being made for the first time.
    Connecting,
    /// It is there.
    Up {
        /// Since when.
        since: Instant,
    },
    /// It is not there; it is tried again and again.
    Down {
        /// Why the last try failed, or why it broke.
        cause: LinkError,
        /// Since when.
        since: Instant,
    },
}

/// What the owner tells.
#[derive(Debug, Clone)]
struct Snapshot {
    state: LinkState,
    connection: Option<Arc<Connection>>,
    /// How many tries have failed, and when the last of them did.
    failed: (u64, Option<Instant>),
}

/// The kept connection; its owner ends with `stop`.
#[derive(Debug)]
pub(super) struct Link {
    snapshot: watch::Receiver<Snapshot>,
    state: watch::Receiver<LinkState>,
    needed: Arc<Notify>,
    address: String,
}

impl Link {
    /// A connection that is made once it is needed, by a task in `tasks` until `stop`.
    pub(super) fn new(
        connector: Arc<Connector>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (snapshots, snapshot) = watch::channel(Snapshot {
            state: LinkState::Idle,
            connection: None,
            failed: (0, None),
        });
        let (states, state) = watch::channel(LinkState::Idle);
        let needed = Arc::new(Notify::new());
        let address = connector.address.to_string();
        let owner = Owner {
            connector,
            machine: Machine::new(),
            snapshots,
            states,
            needed: Arc::clone(&needed),
            stop,
        };
        tasks.spawn(owner.run());
        Self {
            snapshot,
            state,
            needed,
            address,
        }
    }

    /// How it stands, and every change of that.
    pub(super) fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Has it made, without waiting.
    pub(super) fn need(&self) {
        self.needed.notify_one();
    }

    /// The connection; waits for it while it is not there, at most [`CONNECT_LIMIT`].
    /// A node that has been down for longer than that gets one more try.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, LinkError> {
        let mut snapshot = self.snapshot.clone();
        let arrived = Instant::now();
        let deadline = arrived + CONNECT_LIMIT;
        let tries_before = snapshot.borrow().failed.0;
        loop {
            {
                let now = snapshot.borrow_and_update();
                if let Some(connection) = &now.connection
                    && connection.life().ended().is_none()
                {
                    return Ok(Arc::clone(connection));
                }
                if let LinkState::Down { cause, since } = &now.state {
                    let (tries, last) = now.failed;
                    let fresh = last.is_some_and(|last| last + STUBBORN_GAP > arrived);
                    let long = *since + CONNECT_LIMIT <= arrived;
                    if if cause.is_transient() {
                        long && tries > tries_before
                    } else {
                        fresh
                    } {
                        return Err(cause.clone());
                    }
                }
            }
            self.need();
            match timeout_at(deadline, snapshot.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    return Err(LinkError::Stopped {
                        address: self.address.clone(),
                    });
                }
                Err(_) => return Err(self.not_in_time()),
            }
        }
    }

    fn not_in_time(&self) -> LinkError {
        match &self.snapshot.borrow().state {
            LinkState::Down { cause, .. } => cause.clone(),
            LinkState::Idle | LinkState::Connecting | LinkState::Up { .. } => LinkError::TimedOut {
                address: self.address.clone(),
                limit: CONNECT_LIMIT,
            },
        }
    }
}

/// The task that owns the connection.
struct Owner {
    connector: Arc<Connector>,
    machine: Machine,
    snapshots: watch::Sender<Snapshot>,
    states: watch::Sender<LinkState>,
    needed: Arc<Notify>,
    stop: CancellationToken,
}

impl Owner {
    async fn run(mut self) {
        let stop = self.stop.clone();
        stop.run_until_cancelled(self.keep()).await;
        let connection = self.snapshots.borrow().connection.clone();
        if let Some(connection) = connection {
            connection.disconnect().await;
        }
    }

    async fn keep(&mut self) {
        loop {
            let event = match self.machine.phase {
                Phase::Idle => {
                    self.needed.notified().await;
                    Event::Need
                }
                Phase::Connecting => self.connect().await,
                Phase::Up => self.watch().await,
                Phase::Waiting(until) => tokio::select! {
                    () = sleep_until(until) => Event::Elapsed,
                    () = self.needed.notified() => Event::Need,
                },
            };
            let jitter = rand::random_range(0.0..1.0);
            self.machine = self.machine.step(event, Instant::now(), jitter);
        }
    }

    async fn connect(&mut self) -> Event {
        if matches!(self.snapshots.borrow().state, LinkState::Idle) {
            self.tell(LinkState::Connecting, None, None);
        }
        match self.connector.connect().await {
            Ok(connection) => {
                tracing::info!(address = %self.connector.address, "connected to the node");
                let since = Instant::now();
                self.tell(LinkState::Up { since }, Some(Arc::new(connection)), None);
                Event::Connected
            }
            Err(cause) => {
                tracing::debug!(%cause, "no connection to the node");
                let transient = cause.is_transient();
                self.down(cause, true);
                Event::Failed { transient }
            }
        }
    }

    async fn watch(&mut self) -> Event {
        let connection = self.snapshots.borrow().connection.clone();
        if let Some(connection) = connection {
            connection.life().over().await;
            let cause = connection.lost();
            tracing::warn!(%cause, "the connection to the node is lost");
            self.down(cause, false);
        }
        Event::Lost
    }

    fn down(&mut self, cause: LinkError, tried: bool) {
        let now = Instant::now();
        let since = match &self.snapshots.borrow().state {
            LinkState::Down { since, .. } => *since,
            LinkState::Idle | LinkState::Connecting | LinkState::Up { .. } => now,
        };
        self.tell(LinkState::Down { cause, since }, None, tried.then_some(now));
    }

    fn tell(&self, state: LinkState, connection: Option<Arc<Connection>>, failed: Option<Instant>) {
        // The connection first: whoever is told that it is up finds it.
        self.snapshots.send_modify(|snapshot| {
            snapshot.state = state.clone();
            snapshot.connection = connection;
            if failed.is_some() {
                snapshot.failed = (snapshot.failed.0 + 1, failed);
            }
        });
        self.states.send_replace(state);
    }
}
