//! The connection to a node that is kept: one task makes it, watches it and
//! makes it again. [`policy`](super::policy) says when.

use std::sync::Arc;
use std::time::Duration;

use russh::Channel;
use russh::client::Msg;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::LinkError;
use super::connection::{CONNECT_LIMIT, Connection, Connector, OpenError, Target};
use super::policy::{Event, Machine, Phase, STUBBORN_GAP};
use super::trouble::Trouble;

/// Renewals that may wait for the owner.
const RENEWALS: usize = 4;

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
    /// How many tries have begun.
    tries: u64,
    /// The last try that has failed, and when.
    failed: Option<(u64, Instant)>,
}

impl Snapshot {
    /// What somebody gets who arrived at that time, when so many tries had begun;
    /// none while he has to wait.
    fn answer(&self, arrived: Instant, tries: u64) -> Option<Result<Arc<Connection>, LinkError>> {
        if let Some(connection) = &self.connection
            && connection.life().ended().is_none()
        {
            return Some(Ok(Arc::clone(connection)));
        }
        let LinkState::Down { cause, since } = &self.state else {
            return None;
        };
        let enough = self.failed.is_some_and(|(failed, when)| {
            let own_try = failed > tries;
            if cause.is_transient() {
                own_try && *since + CONNECT_LIMIT <= arrived
            } else {
                own_try || when + STUBBORN_GAP > arrived
            }
        });
        enough.then(|| Err(cause.clone()))
    }
}

/// What ends the owner of a connection.
#[derive(Debug)]
pub(super) struct Ends {
    /// Nobody uses the node any more; also cancelled with the other. What goes
    /// through the connection goes on, which ends with the last of that.
    pub unused: CancellationToken,
    /// The connection is to be closed.
    pub closed: CancellationToken,
}

/// The kept connection; its owner ends as [`Ends`] says.
#[derive(Debug)]
pub(super) struct Link {
    snapshot: watch::Receiver<Snapshot>,
    state: watch::Receiver<LinkState>,
    needed: Arc<Notify>,
    renewals: mpsc::Sender<Renewal>,
    address: String,
    limit: Duration,
}

/// A request to replace the connection when it is older than this; tells whether that was done.
type Renewal = (Duration, oneshot::Sender<bool>);

impl Link {
    /// A connection that is made once it is needed, by a task in `tasks` until `ends`.
    pub(super) fn new(connector: Arc<Connector>, tasks: &TaskTracker, ends: Ends) -> Self {
        let (snapshots, snapshot) = watch::channel(Snapshot {
            state: LinkState::Idle,
            connection: None,
            tries: 0,
            failed: None,
        });
        let (states, state) = watch::channel(LinkState::Idle);
        let needed = Arc::new(Notify::new());
        let (renewals, renewed) = mpsc::channel(RENEWALS);
        let (address, limit) = (connector.address.to_string(), connector.limit());
        let owner = Owner {
            connector,
            machine: Machine::new(),
            snapshots,
            states,
            needed: Arc::clone(&needed),
            renewed,
            ends,
        };
        tasks.spawn(owner.run());
        Self {
            snapshot,
            state,
            needed,
            renewals,
            address,
            limit,
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

    /// The connection; waits for it while it is not there, at most as long as a
    /// try takes. A node that has been down for long gets one more try.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, LinkError> {
        let mut snapshot = self.snapshot.clone();
        let arrived = Instant::now();
        let tries = snapshot.borrow().tries;
        loop {
            if let Some(answer) = snapshot.borrow_and_update().answer(arrived, tries) {
                return answer;
            }
            self.need();
            match timeout_at(arrived + self.limit, snapshot.changed()).await {
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

    /// Opens a channel on the connection. The loss of a connection is often
    /// noticed by using it: then nothing was done yet, and a new one is waited for.
    pub(super) async fn open(
        &self,
        target: Target<'_>,
    ) -> Result<(Channel<Msg>, Arc<Connection>), OpenError> {
        let mut lost = false;
        loop {
            let connection = self.connection().await;
            let connection = connection.map_err(|error| OpenError::Other(error.into()))?;
            match connection.open(target).await {
                Ok(channel) => return Ok((channel, connection)),
                Err(OpenError::Other(Trouble::Link(_))) if !lost => lost = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a new connection and keeps that in the place of the present one, when
    /// that is older than `age`. What goes on there goes on. Whether it was done.
    pub(super) async fn renew(&self, age: Duration) -> bool {
        let (done, outcome) = oneshot::channel();
        self.renewals.send((age, done)).await.is_ok() && outcome.await.unwrap_or(false)
    }

    fn not_in_time(&self) -> LinkError {
        match &self.snapshot.borrow().state {
            LinkState::Down { cause, .. } => cause.clone(),
            LinkState::Idle | LinkState::Connecting | LinkState::Up { .. } => LinkError::TimedOut {
                address: self.address.clone(),
                limit: self.limit,
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
    renewed: mpsc::Receiver<Renewal>,
    ends: Ends,
}

impl Owner {
    async fn run(mut self) {
        let unused = self.ends.unused.clone();
        unused.run_until_cancelled(self.keep()).await;
        if !self.ends.closed.is_cancelled() {
            return;
        }
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
            self.tell(LinkState::Connecting, None);
        }
        self.snapshots.send_modify(|snapshot| snapshot.tries += 1);
        match self.connector.connect().await {
            Ok(connection) => {
                tracing::info!(address = %self.connector.address, "connected to the node");
                let since = Instant::now();
                self.tell(LinkState::Up { since }, Some(Arc::new(connection)));
                Event::Connected
            }
            Err(cause) => {
                tracing::debug!(%cause, "no connection to the node");
                let transient = cause.is_transient();
                self.down(cause);
                let now = Instant::now();
                self.snapshots
                    .send_modify(|snapshot| snapshot.failed = Some((snapshot.tries, now)));
                Event::Failed { transient }
            }
        }
    }

    async fn watch(&mut self) -> Event {
        loop {
            let Some(connection) = self.snapshots.borrow().connection.clone() else {
                return Event::Lost;
            };
            tokio::select! {
                _ = connection.life().over() => {
                    let cause = connection.lost();
                    tracing::warn!(%cause, "the connection to the node is lost");
                    self.down(cause);
                    return Event::Lost;
                }
                Some((age, done)) = self.renewed.recv() => {
                    // Nobody waits for it any more: then nobody has to know.
                    let _ = done.send(connection.age() > age && self.renew().await);
                }
            }
        }
    }

    /// The old connection ends with the last channel on it.
    async fn renew(&mut self) -> bool {
        match self.connector.connect().await {
            Ok(connection) => {
                let since = Instant::now();
                self.tell(LinkState::Up { since }, Some(Arc::new(connection)));
                true
            }
            Err(cause) => {
                tracing::debug!(%cause, "the connection to the node stays as it is");
                false
            }
        }
    }

    fn down(&mut self, cause: LinkError) {
        let since = match &self.snapshots.borrow().state {
            LinkState::Down { since, .. } => *since,
            LinkState::Idle | LinkState::Connecting | LinkState::Up { .. } => Instant::now(),
        };
        self.tell(LinkState::Down { cause, since }, None);
    }

    fn tell(&self, state: LinkState, connection: Option<Arc<Connection>>) {
        // The connection first: whoever is told that it is up finds it.
        self.snapshots.send_modify(|snapshot| {
            snapshot.state = state.clone();
            snapshot.connection = connection;
        });
        self.states.send_replace(state);
    }
}
