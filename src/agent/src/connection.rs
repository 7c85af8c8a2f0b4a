//! What the parts of the agent, and the channels of one connection, share.

use std::ffi::OsString;
use std::sync::Arc;

use russh::server::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Settings;
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
    /// Every task that a stop waits for.
    pub tasks: TaskTracker,
    /// Cancelled when the agent begins to stop.
    pub stopping: CancellationToken,
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
}
