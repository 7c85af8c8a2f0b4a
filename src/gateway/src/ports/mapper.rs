//! The listeners of a workspace in which sessions can be opened.
//!
//! ```text
//!            bound
//!   closed ────────▶ open ───────────┐
//!      │              ▲              │ the workspace goes down
//!      │ cannot be    │ bound        ▼
//!      └──────────▶ taken ───────▶ closed
//!                     (tried again every RETRY)
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use vendetta_sshio::splice::{End, splice};

use super::link::Link;
use super::{Mapping, PortState, PortStatus, Ports, machine};
use crate::agent::pool::Pool;
use crate::workspace::{Activity, AgentTarget};

/// Connections to a workspace's ports at once; more are refused.
const CONNECTIONS: usize = 1024;

/// Time between two tries to listen on a port that was taken.
const RETRY: Duration = Duration::from_secs(5);

/// Pause after a connection that could not be accepted (accept(2): EMFILE and others).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often it is asked whether the connection to the agent is still of use.
const SWEEP: Duration = Duration::from_secs(60);

/// What is opened, and what for.
#[derive(Debug)]
pub struct Opening {
    /// The ports.
    pub mappings: Vec<Mapping>,
    /// Connects to agents.
    pub pool: Pool,
    /// The agent of the workspace.
    pub target: Arc<AgentTarget>,
    /// Told of every connection while it lasts.
    pub activity: Activity,
    /// Told how each port is.
    pub status: watch::Sender<Vec<PortStatus>>,
    /// Owns the tasks.
    pub tracker: TaskTracker,
    /// Ends them.
    pub cancel: CancellationToken,
}

/// The open ports of a workspace; dropping it closes them.
#[derive(Debug)]
pub struct Open {
    cancel: DropGuard,
    /// Closed when everything has ended.
    ended: watch::Receiver<()>,
}

impl Open {
    /// Closes the ports and everything that came over them, without waiting for it.
    pub fn end(&self) {
        // `DropGuard` has no other way to its token.
        self.cancel.token().cancel();
    }

    /// Closes them and returns when they are free for others.
    pub async fn ended(mut self) {
        self.end();
        // An error says that the sender is gone, and with it everything else.
        let _ = self.ended.wait_for(|()| false).await;
    }
}

impl Ports {
    /// Listens on ports; returns when each has been tried once.
    pub async fn open(&self, opening: Opening) -> Open {
        let cancel = opening.cancel.child_token();
        let (told, ended) = watch::channel(());
        let mapper = Arc::new(Mapper {
            bind: self.settings.bind,
            link: Link::new(opening.pool, opening.target),
            slots: Arc::new(Semaphore::new(CONNECTIONS)),
            activity: opening.activity,
            status: opening.status,
            cancel: cancel.clone(),
            tasks: TaskTracker::new(),
        });
        let closed = opening.mappings.iter().cloned().map(PortStatus::from);
        mapper.status.send_replace(closed.collect());
        for mapping in opening.mappings {
            let listener = mapper.listen(&mapping).await;
            mapper.spawn(Arc::clone(&mapper).serve(mapping, listener));
        }
        opening.tracker.spawn(async move {
            let sweeps = async {
                let mut ticks = interval(SWEEP);
                loop {
                    ticks.tick().await;
                    mapper.link.sweep().await;
                }
            };
            mapper.cancel.run_until_cancelled(sweeps).await;
            mapper.tasks.close();
            mapper.tasks.wait().await;
            mapper.status.send_modify(|ports| {
                for port in ports {
                    (port.state, port.problem) = (PortState::Closed, None);
                }
            });
            drop(told);
        });
        Open {
            cancel: cancel.drop_guard(),
            ended,
        }
    }
}

/// What the tasks of a workspace's ports share.
struct Mapper {
    bind: std::net::IpAddr,
    link: Link,
    slots: Arc<Semaphore>,
    activity: Activity,
    status: watch::Sender<Vec<PortStatus>>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Mapper {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(task).await;
        });
    }

    /// Tries to listen, and tells how that went.
    async fn listen(&self, mapping: &Mapping) -> Option<TcpListener> {
        let address = SocketAddr::new(self.bind, mapping.host_port);
        let listener = TcpListener::bind(address).await;
        let (state, problem) = match &listener {
            Ok(_) => (PortState::Open, None),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = machine::holder(address).await;
                (PortState::Taken, Some(format!("held by {holder}")))
            }
            Err(error) => (PortState::Taken, Some(format!("not to be had: {error}"))),
        };
        self.status.send_if_modified(|ports| {
            let port = ports.iter_mut().find(|port| port.mapping == *mapping);
            port.is_some_and(|port| {
                let changed = (port.state, &port.problem) != (state, &problem);
                (port.state, port.problem) = (state, problem);
                changed
            })
        });
        listener.ok()
    }

    /// Serves a port until it is cancelled.
    async fn serve(self: Arc<Self>, mapping: Mapping, mut listener: Option<TcpListener>) {
        loop {
            let Some(bound) = &listener else {
                sleep(RETRY).await;
                listener = self.listen(&mapping).await;
                continue;
            };
            match bound.accept().await {
                Ok((stream, peer)) => self.accepted(mapping.port, stream, peer),
                Err(error) => {
                    tracing::warn!(port = mapping.host_port, %error, "accepting");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accepted(self: &Arc<Self>, port: u16, stream: TcpStream, peer: SocketAddr) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            tracing::warn!(port, %peer, "more than {CONNECTIONS} connections: refused");
            // So that it is told at once, by a reset.
            let _ = stream.set_zero_linger();
            return;
        };
        let in_use = self.activity.begin();
        let mapper = Arc::clone(self);
        self.tasks.spawn(async move {
            mapper.carry(port, stream, peer).await;
            drop((slot, in_use));
        });
    }

    /// Joins a connection to one inside the environment. One that cannot be
    /// made there, or breaks, is reset.
    async fn carry(&self, port: u16, mut stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let dialled = self.link.dial(port, peer);
        let end = match self.cancel.run_until_cancelled(dialled).await {
            Some(Ok(carried)) => {
                let (from, to) = stream.split();
                splice(from, to, carried.channel, self.cancel.cancelled()).await
            }
            Some(Err(error)) => {
                tracing::debug!(port, %peer, %error, "not connected");
                End::Broken
            }
            None => End::Broken,
        };
        if end == End::Broken {
            let _ = stream.set_zero_linger();
        }
    }
}
