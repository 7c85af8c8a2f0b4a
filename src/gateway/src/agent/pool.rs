//! SSH connections to the agents of running workspaces, some of them made
//! ahead of need, so that a client does not wait for a second handshake.
//!
//! Each client connection takes one agent connection and keeps it to its end.
//! What a workspace keeps ready grows with misses and shrinks when nobody came
//! for a while:
//!
//! ```text
//!   take: ready one left ──▶ hand it out, refill in the background
//!         none left      ──▶ connect now, want one more ready (up to MAX_READY)
//!   every IDLE: want one fewer ready; a workspace nobody came to for FORGET wants none
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use russh::Channel;
use russh::client::{self, Handle};
use russh::keys::PrivateKeyWithHashAlg;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_proto::agent::FOR_CLIENT;
use vendetta_proto::name::InvalidName;
use vendetta_proto::{NodeName, TerminalName};
use vendetta_sshio::keys::PrivateKey;
use vendetta_sshio::read_ahead::ReadAhead;
use vendetta_sshio::transport;

use super::opens::{AgentHandler, EnvironmentOpen};
use crate::node::{ByteStream, NodeError};
use crate::workspace::{AgentTarget, Endpoint, WorkspaceId};

/// Most connections kept ready for one workspace.
const MAX_READY: usize = 4;
/// How long a workspace goes without clients before one connection fewer is kept.
const IDLE: Duration = Duration::from_secs(20);
/// How long a workspace goes without clients before none is kept.
const FORGET: Duration = Duration::from_secs(600);
/// Limit of one handshake with an agent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection to an agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The node could not reach the agent's socket.
    #[error("reaching the agent of workspace {workspace}: {source}")]
    Unreachable {
        /// The workspace.
        workspace: String,
        /// The cause.
        source: Box<NodeError>,
    },
    /// The handshake failed.
    #[error("handshake with the agent of workspace {workspace}: {source}")]
    Handshake {
        /// The workspace.
        workspace: String,
        /// The cause.
        source: russh::Error,
    },
    /// The agent refused the gateway's key or the user.
    #[error("the environment of workspace {workspace} has no user {user:?}")]
    NoUser {
        /// The workspace.
        workspace: String,
        /// The user asked for.
        user: String,
        /// Nobody asked for them: it is the user that the workspace is meant for.
        is_default: bool,
    },
    /// A login whose terminal cannot be called so, and that is no user's as it is.
    #[error("workspace {workspace}: {source}")]
    NoTerminal {
        /// The workspace.
        workspace: String,
        /// The cause.
        source: InvalidName,
    },
    /// A session with the agent broke off.
    #[error("asking the agent of workspace {workspace}: {source}")]
    Session {
        /// The workspace.
        workspace: String,
        /// The cause.
        source: russh::Error,
    },
    /// The connection over which it was asked is lost.
    #[error("the connection to the agent of workspace {workspace} was lost")]
    Lost {
        /// The workspace.
        workspace: String,
    },
    /// What the agent said is no answer.
    #[error("the agent of workspace {workspace} answered what is none: {problem}")]
    Answer {
        /// The workspace.
        workspace: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The agent refuses a request.
    #[error("{problem}")]
    Refused {
        /// The workspace.
        workspace: String,
        /// Why.
        problem: String,
        /// Whether it names what is not there.
        not_found: bool,
    },
    /// Nothing came in time.
    #[error("the agent of workspace {workspace} did not answer within {} s", limit.as_secs())]
    TimedOut {
        /// The workspace.
        workspace: String,
        /// How long was waited.
        limit: Duration,
    },
}

/// Why the agent refused `login`, `[USER][+TERMINAL]`; `default` is who is meant
/// by one without a user.
fn refused(workspace: String, default: Option<&str>, login: &str) -> AgentError {
    let (user, terminal) = match login.rsplit_once('+') {
        Some((user, terminal)) => (user, terminal.parse::<TerminalName>().map(drop)),
        None => (login, Ok(())),
    };
    match terminal {
        Err(source) => AgentError::NoTerminal { workspace, source },
        Ok(()) => AgentError::NoUser {
            workspace,
            user: match user {
                "" => default.unwrap_or_default().to_owned(),
                user => user.to_owned(),
            },
            is_default: user.is_empty(),
        },
    }
}

impl AgentError {
    /// Whether the node cannot be reached: then nobody can say more about the agent.
    #[must_use]
    pub fn is_node_away(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if matches!(**source, NodeError::Link { .. }))
    }

    /// What to do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Unreachable { source, .. } => source.remedy(),
            Self::NoUser {
                workspace,
                is_default: true,
                ..
            } => Some(format!(
                "use an image that has this user, or another user: ssh vendetta workspace rebuild {workspace} --user NAME"
            )),
            Self::TimedOut { workspace, .. } => Some(format!(
                "its environment may be paused or out of resources: ssh vendetta workspace status {workspace}; \
                 to start it anew, which ends what runs in it: ssh vendetta workspace down {workspace}; \
                 ssh vendetta workspace up {workspace}"
            )),
            Self::Handshake { .. }
            | Self::NoUser { .. }
            | Self::NoTerminal { .. }
            | Self::Session { .. }
            | Self::Lost { .. }
            | Self::Answer { .. }
            | Self::Refused { .. } => None,
        }
    }
}

/// Whose a connection to an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The gateway's own, which may manage the environment.
    Gateway,
    /// For a client's channels, which may not.
    Client,
}

/// A connection to an agent, authenticated as one user of the environment.
pub struct AgentConnection {
    /// The SSH client.
    pub handle: Handle<AgentHandler>,
    /// Channels that the environment opens.
    pub opens: mpsc::Receiver<EnvironmentOpen>,
    /// A session that was opened ahead of need: on a far node its first
    /// command comes back a round trip earlier.
    pub spare: Option<Channel<client::Msg>>,
}

/// The pool; clones share it.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

struct Shared {
    key: Arc<russh::keys::PrivateKey>,
    config: Arc<client::Config>,
    ready: Mutex<HashMap<Place, Ready>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Connections are kept for the thread that made them, since it serves them
/// (see [`crate::ssh::workers`]).
type Place = (ThreadId, WorkspaceId);

struct Ready {
    boot: u64,
    connections: Vec<AgentConnection>,
    /// Handshakes under way for this entry.
    filling: usize,
    /// How many to keep ready.
    want: usize,
    last_taken: Instant,
}

impl Ready {
    fn take(&mut self) -> Option<AgentConnection> {
        self.connections
            .retain(|connection| !connection.handle.is_closed());
        self.connections.pop()
    }
}

impl Pool {
    /// A pool that authenticates with `key`; its tasks run in `tasks` until `stop`.
    #[must_use]
    pub fn new(key: &PrivateKey, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let config = client::Config {
            limits: transport::link_limits(),
            window_size: transport::LINK_WINDOW,
            maximum_packet_size: transport::LINK_PACKET,
            preferred: transport::link_algorithms(),
            keepalive_interval: Some(Duration::from_secs(15)),
            keepalive_max: 3,
            ..client::Config::default()
        };
        let pool = Self {
            shared: Arc::new(Shared {
                key: Arc::new(key.as_russh().clone()),
                config: Arc::new(config),
                ready: Mutex::default(),
                tasks: tasks.clone(),
                stop: stop.clone(),
            }),
        };
        let sweeper = pool.clone();
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(IDLE);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return sweeper.lock().clear(),
                    _ = tick.tick() => sweeper.shrink(),
                }
            }
        });
        pool
    }

    /// A connection to the agent of `target` for a client's channels, as `user`
    /// ([`vendetta_proto::agent::DEFAULT_USER`] or a user of the environment).
    ///
    /// # Errors
    /// When the agent cannot be reached, does not prove its host key, or has no such user.
    pub async fn take(
        &self,
        target: &AgentTarget,
        user: &str,
    ) -> Result<AgentConnection, AgentError> {
        if user == vendetta_proto::agent::DEFAULT_USER {
            let connection = self.take_ready(target);
            self.refill(target);
            if let Some(connection) = connection {
                return Ok(connection);
            }
        }
        self.connect(target, user, Use::Client).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Place, Ready>> {
        self.shared
            .ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn entry<T>(&self, target: &AgentTarget, change: impl FnOnce(&mut Ready) -> T) -> T {
        let mut all = self.lock();
        let fresh = || Ready {
            boot: target.boot,
            connections: Vec::new(),
            filling: 0,
            want: 1,
            last_taken: Instant::now(),
        };
        let ready = all
            .entry((std::thread::current().id(), target.id.clone()))
            .or_insert_with(fresh);
        if ready.boot != target.boot {
            *ready = fresh();
        }
        change(ready)
    }

    fn take_ready(&self, target: &AgentTarget) -> Option<AgentConnection> {
        let own = self.entry(target, |ready| {
            ready.last_taken = Instant::now();
            let connection = ready.take();
            if connection.is_none() {
                ready.want = (ready.want + 1).min(MAX_READY);
            }
            connection
        });
        if own.is_some() || target.node.name().as_str() == NodeName::LOCAL {
            return own;
        }
        // Another thread's connection costs a little with every message, a
        // handshake with a node that is far away several round trips.
        let mut all = self.lock();
        let same = |(_, id): &&Place| *id == target.id;
        let mut others = all.iter_mut().filter(|(place, _)| same(place));
        others.find_map(|(_, ready)| (ready.boot == target.boot).then(|| ready.take()).flatten())
    }

    fn refill(&self, target: &AgentTarget) {
        let missing = self.entry(target, |ready| {
            let missing = ready
                .want
                .saturating_sub(ready.connections.len() + ready.filling);
            ready.filling += missing;
            missing
        });
        for _ in 0..missing {
            let (pool, target) = (self.clone(), target.clone());
            self.shared.tasks.spawn(async move {
                let connection = tokio::select! {
                    () = pool.shared.stop.cancelled() => return,
                    connection = pool.prepare(&target) => connection,
                };
                pool.entry(&target, |ready| {
                    ready.filling = ready.filling.saturating_sub(1);
                    match connection {
                        Ok(connection) => ready.connections.push(connection),
                        // Whoever comes next connects himself and is told why.
                        Err(error) => tracing::debug!(workspace = %target.workspace, %error, "no connection ahead of need"),
                    }
                });
            });
        }
    }

    fn shrink(&self) {
        self.lock().retain(|_, ready| {
            let idle = ready.last_taken.elapsed();
            if idle >= IDLE {
                ready.want = ready.want.saturating_sub(1).max(usize::from(idle < FORGET));
                ready.connections.truncate(ready.want);
            }
            ready
                .connections
                .retain(|connection| !connection.handle.is_closed());
            ready.want > 0 || ready.filling > 0
        });
    }

    /// A connection to be kept ready; to a node that may be far away with a
    /// session in stock.
    async fn prepare(&self, target: &AgentTarget) -> Result<AgentConnection, AgentError> {
        let user = vendetta_proto::agent::DEFAULT_USER;
        let mut connection = self.connect(target, user, Use::Client).await?;
        if target.node.name().as_str() == NodeName::LOCAL {
            return Ok(connection);
        }
        let opening = connection.handle.channel_open_session();
        let spare = tokio::time::timeout(CONNECT_TIMEOUT, opening).await;
        connection.spare = spare.ok().and_then(Result::ok);
        Ok(connection)
    }

    /// A stream to the agent of `target`, on which nothing has been said.
    ///
    /// # Errors
    /// When the agent cannot be reached.
    pub async fn open(&self, target: &AgentTarget) -> Result<Box<dyn ByteStream>, AgentError> {
        let node = target.way();
        let opened = match &target.endpoint {
            Endpoint::Unix(path) => node.open_unix(path).await,
            Endpoint::Tcp { host, port } => node.open_tcp(host, *port).await,
        };
        opened.map_err(|source| AgentError::Unreachable {
            workspace: target.workspace.to_string(),
            source: Box::new(source),
        })
    }

    /// A connection made now.
    pub(super) async fn connect(
        &self,
        target: &AgentTarget,
        user: &str,
        purpose: Use,
    ) -> Result<AgentConnection, AgentError> {
        let login = match purpose {
            Use::Gateway => user.to_owned(),
            Use::Client => format!("{FOR_CLIENT}{user}"),
        };
        let workspace = || target.workspace.to_string();
        let handshake = |source| AgentError::Handshake {
            workspace: workspace(),
            source,
        };
        let connect = async {
            let stream = self.open(target).await?;
            let (handler, opens) = AgentHandler::new(target.host_key.clone());
            let mut handle =
                client::connect_stream(self.shared.config.clone(), ReadAhead::new(stream), handler)
                    .await
                    .map_err(handshake)?;
            let key = PrivateKeyWithHashAlg::new(self.shared.key.clone(), None);
            let authenticated = handle
                .authenticate_publickey(login, key)
                .await
                .map_err(handshake)?;
            if !authenticated.success() {
                return Err(refused(workspace(), target.user.as_deref(), user));
            }
            Ok(AgentConnection {
                handle,
                opens,
                spare: None,
            })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .unwrap_or_else(|_| {
                Err(AgentError::TimedOut {
                    workspace: workspace(),
                    limit: CONNECT_TIMEOUT,
                })
            })
    }
}
