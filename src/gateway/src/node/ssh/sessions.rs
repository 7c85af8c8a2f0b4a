//! Sessions within what a node's sshd allows: so many a connection
//! (MaxSessions, sshd_config(5)), and as few connections as that takes.
//!
//! ```text
//!   a place is free on a connection ──▶ open a session there
//!       refused, and again after a round trip ──▶ as many as are open is the limit
//!   no place is free ──▶ one more connection in the background (up to MAX_CONNECTIONS),
//!                        and wait for whichever comes first: that, or a place
//! ```
//!
//! A place is taken until the server has let go of its session, and given out in
//! the order of asking. The round trip is there because sshd frees a session
//! a little after it has closed its channel.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::Channel;
use russh::client::Msg;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::{LinkError, Refusal};
use super::connection::{Connection, Connector, OpenError, Target};
use super::link::Link;
use super::trouble::Trouble;

/// Sessions at once on a connection until its sshd has refused one: two less
/// than the default of MaxSessions, so that an operator's own use of the
/// connection limit is not met by ours.
const FIRST_LIMIT: usize = 8;
/// Most connections to one node.
const MAX_CONNECTIONS: usize = 4;
/// How long a connection beside the first stays without a session.
const IDLE: Duration = Duration::from_secs(60);
/// How long no further connection is tried after one could not be made.
const RETRY: Duration = Duration::from_secs(5);
/// How long anybody waits for a place.
const PLACE_LIMIT: Duration = Duration::from_secs(60);

/// The sessions of one node.
#[derive(Debug)]
pub(super) struct Sessions {
    link: Arc<Link>,
    connector: Arc<Connector>,
    book: Mutex<Book>,
    /// Held by the one whose turn it is to get the next place.
    turn: tokio::sync::Mutex<()>,
    /// Held by the one that uses a connection of its own.
    aside: tokio::sync::Mutex<()>,
    /// A place has become free, or a connection was added.
    changed: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Book {
    /// Sessions at once on one connection.
    limit: usize,
    /// The kept one first.
    used: Vec<Used>,
    /// A further one is being made.
    making: bool,
    /// When a further one could not be made.
    failed: Option<Instant>,
}

#[derive(Debug)]
struct Used {
    connection: Arc<Connection>,
    /// The link keeps it.
    kept: bool,
    /// Places taken.
    busy: usize,
    /// Those of them in which the server has opened a session.
    open: usize,
    /// Since when no place is taken.
    idle: Instant,
}

impl Book {
    fn of(&mut self, connection: &Arc<Connection>) -> Option<&mut Used> {
        self.used
            .iter_mut()
            .find(|used| Arc::ptr_eq(&used.connection, connection))
    }

    fn add(&mut self, at: usize, connection: &Arc<Connection>, kept: bool) {
        let used = Used {
            connection: Arc::clone(connection),
            kept,
            busy: 0,
            open: 0,
            idle: Instant::now(),
        };
        self.used.insert(at.min(self.used.len()), used);
    }
}

impl Sessions {
    /// No session yet.
    pub(super) fn new(
        link: Arc<Link>,
        connector: Arc<Connector>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            link,
            connector,
            book: Mutex::new(Book {
                limit: FIRST_LIMIT,
                used: Vec::new(),
                making: false,
                failed: None,
            }),
            turn: tokio::sync::Mutex::default(),
            aside: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            tasks,
            stop,
        }
    }

    /// Opens a session; waits for its place until `gone`. An opening that has begun is
    /// seen to its end, so that no session is open of which nobody knows.
    ///
    /// # Errors
    /// When there is no connection, no place in time, or sshd allows no session at all.
    pub(super) async fn open(
        self: &Arc<Self>,
        gone: &CancellationToken,
    ) -> Result<(Channel<Msg>, Place), Trouble> {
        let mut lost = false;
        'place: loop {
            let mut place = tokio::select! {
                place = timeout(PLACE_LIMIT, self.place()) => {
                    place.map_err(|_| Trouble::TimedOut(PLACE_LIMIT))??
                }
                () = gone.cancelled() => return Err(Trouble::Io(io::ErrorKind::Interrupted.into())),
            };
            for again in [false, true] {
                match place.connection.open(Target::Session).await {
                    Ok(channel) => {
                        place.opened();
                        return Ok((channel, place));
                    }
                    Err(OpenError::Refused(..)) if again => {}
                    Err(OpenError::Refused(..)) => {
                        place.connection.ping().await?;
                    }
                    // The loss of a connection is often noticed by using it: then
                    // nothing was done yet, and there may be a new one.
                    Err(OpenError::Other(Trouble::Link(_))) if !lost => {
                        lost = true;
                        continue 'place;
                    }
                    Err(OpenError::Other(trouble)) => return Err(trouble),
                }
            }
            if !self.learn(&place.connection) {
                return Err(Trouble::Refused(Refusal::Sessions));
            }
        }
    }

    /// Runs a command line on a connection of its own, one at a time, and waits for its end:
    /// for what has to be done though every place may be taken.
    ///
    /// # Errors
    /// When there is no connection.
    pub(super) async fn aside(&self, line: String) -> Result<(), Trouble> {
        let _one = self.aside.lock().await;
        let connection = self.connector.connect().await?;
        let session = connection.open(Target::Session).await;
        if let Ok(mut channel) = session
            && channel.exec(false, line).await.is_ok()
        {
            while channel.wait().await.is_some() {}
        }
        connection.disconnect().await;
        Ok(())
    }

    /// Takes a place on a connection.
    async fn place(self: &Arc<Self>) -> Result<Place, LinkError> {
        let _turn = self.turn.lock().await;
        loop {
            let kept = self.link.connection().await?;
            if let Some(connection) = self.take(&kept) {
                return Ok(Place {
                    sessions: Arc::clone(self),
                    connection,
                    opened: false,
                });
            }
            self.grow();
            tokio::select! {
                () = self.changed.notified() => {}
                _ = kept.life().over() => {}
            }
        }
    }

    fn take(&self, kept: &Arc<Connection>) -> Option<Arc<Connection>> {
        self.with(|book| {
            book.used
                .retain(|used| used.connection.life().ended().is_none());
            if book.of(kept).is_none() {
                // Its sshd may have been configured anew meanwhile. One that it was
                // kept in the place of ends with its last session.
                book.limit = FIRST_LIMIT;
                book.used.retain(|used| !used.kept);
                book.add(0, kept, true);
            }
            let limit = book.limit;
            let free = book.used.iter_mut().find(|used| used.busy < limit)?;
            free.busy += 1;
            Some(Arc::clone(&free.connection))
        })
    }

    /// sshd has refused a session on this connection beyond doubt: as many as
    /// are open are its limit. Whether it has one: not when it refused the only one.
    fn learn(&self, connection: &Arc<Connection>) -> bool {
        self.with(|book| {
            let Some((busy, open)) = book.of(connection).map(|used| (used.busy, used.open)) else {
                return true;
            };
            let limit = book.limit.min(open.max(1));
            if limit < book.limit {
                tracing::info!(address = %self.connector.address, limit, "sshd allows only so many sessions a connection");
                book.limit = limit;
            }
            busy > 1
        })
    }

    /// Makes one more connection in the background, where that is allowed.
    fn grow(self: &Arc<Self>) {
        let may = self.with(|book| {
            let recent = book.failed.is_some_and(|failed| failed.elapsed() < RETRY);
            let may = !book.making && !recent && book.used.len() < MAX_CONNECTIONS;
            book.making |= may;
            may
        });
        if may {
            let (sessions, stop) = (Arc::clone(self), self.stop.clone());
            self.tasks.spawn(async move {
                stop.run_until_cancelled(sessions.keep_one_more()).await;
            });
        }
    }

    /// Makes a connection and keeps it until it is lost or idle. When the gateway
    /// stops it is dropped with its last session, which closes it.
    async fn keep_one_more(&self) {
        let made = self.connector.connect().await.map(Arc::new);
        self.with(|book| {
            book.making = false;
            match &made {
                Ok(connection) => book.add(MAX_CONNECTIONS, connection, false),
                Err(_) => book.failed = Some(Instant::now()),
            }
        });
        self.changed.notify_one();
        let connection = match made {
            Ok(connection) => connection,
            Err(cause) => return tracing::debug!(%cause, "no further connection to the node"),
        };
        loop {
            tokio::select! {
                _ = connection.life().over() => return,
                () = sleep(IDLE / 4) => {
                    if self.remove_idle(&connection) {
                        return connection.disconnect().await;
                    }
                }
            }
        }
    }

    fn remove_idle(&self, connection: &Arc<Connection>) -> bool {
        self.with(|book| {
            let idle = |used: &Used| used.busy == 0 && used.idle.elapsed() >= IDLE;
            let position = book
                .used
                .iter()
                .position(|used| Arc::ptr_eq(&used.connection, connection) && idle(used));
            position.map(|at| book.used.remove(at)).is_some()
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        change(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The place of one session; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    sessions: Arc<Sessions>,
    connection: Arc<Connection>,
    opened: bool,
}

impl Place {
    /// The connection that it is on.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    fn opened(&mut self) {
        self.opened = true;
        self.sessions.with(|book| {
            if let Some(used) = book.of(&self.connection) {
                used.open += 1;
            }
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.with(|book| {
            if let Some(used) = book.of(&self.connection) {
                used.busy = used.busy.saturating_sub(1);
                used.open = used.open.saturating_sub(usize::from(self.opened));
                used.idle = Instant::now();
            }
        });
        self.sessions.changed.notify_one();
    }
}
