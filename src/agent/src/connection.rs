//! What the parts of the agent, and the channels of one connection, share.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use russh::ChannelId;
use russh::server::Handle;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Settings;
use crate::forward::{Listeners, Resolver};
use crate::process::Reaper;
use crate::users::{User, Users};

/// The agent, shared by all connections.
#[derive(Debug)]
pub struct Agent {
    /// Its configuration.
    pub settings: Settings,
    /// Users of the environment.
    pub users: Users,
    /// Starts and reaps processes.
    pub reaper: Reaper,
    /// Its own environment variables.
    pub inherited: Vec<(OsString, OsString)>,
    /// Resolves names that clients dial.
    pub resolver: Resolver,
    /// Tasks of session channels, to which a stop gives time.
    pub sessions: TaskTracker,
    /// All other tasks.
    pub tasks: TaskTracker,
    /// Cancelled when the agent begins to stop: sessions end.
    pub stopping: CancellationToken,
    /// Cancelled when the sessions have ended: connections end.
    pub closing: CancellationToken,
}

impl Agent {
    /// The user that `login` means, if there is one that the agent can be:
    /// unless it is root, it can only be itself.
    pub fn user(&self, login: &str) -> Option<User> {
        let own = nix::unistd::geteuid();
        let user = if login != vendetta_proto::agent::DEFAULT_USER {
            self.users.by_name(login)?
        } else if let Some(specification) = &self.settings.user {
            self.users.by_specification(specification)?
        } else {
            self.users
                .by_uid(own.as_raw(), nix::unistd::getegid().as_raw())
        };
        (own.is_root() || user.uid == own.as_raw()).then_some(user)
    }
}

/// One authenticated connection.
#[derive(Debug)]
pub struct Connection {
    /// The agent.
    pub agent: Arc<Agent>,
    /// Whom it logged in as.
    pub user: User,
    /// For what has no method on a channel.
    pub handle: Handle,
    /// Cancelled when the connection is over, however it ends.
    pub gone: CancellationToken,
    /// Sockets it listens on.
    pub listeners: Listeners,
    /// The socket of its forwarded ssh-agent, once a session asked for one.
    pub agent_socket: OnceCell<PathBuf>,
    closed: Mutex<HashMap<ChannelId, CancellationToken>>,
}

impl Connection {
    /// A connection that has just logged in.
    pub fn new(agent: Arc<Agent>, user: User, handle: Handle, gone: CancellationToken) -> Self {
        Self {
            agent,
            user,
            handle,
            gone,
            listeners: Listeners::default(),
            agent_socket: OnceCell::new(),
            closed: Mutex::default(),
        }
    }

    /// A token that the client's CHANNEL_CLOSE cancels. The message itself
    /// queues behind data that nobody may ever take.
    pub fn closed_token(&self, id: ChannelId) -> CancellationToken {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.entry(id).or_default().clone()
    }

    /// The client has closed a channel.
    pub fn channel_closed(&self, id: ChannelId) {
        let token = self
            .closed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
        if let Some(token) = token {
            token.cancel();
        }
    }
}
