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
use vendetta_proto::TerminalName;

use crate::admission::{Admission, Peer};
use crate::config::Settings;
use crate::forward::agent_socket::AgentSockets;
use crate::forward::{Listeners, Resolver};
use crate::ports::Ports;
use crate::process::Reaper;
use crate::rpc::Marks;
use crate::supervisor::Supervisor;
use crate::terminal::Terminals;
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
    /// What every process is told about the services.
    pub service_variables: Vec<(String, String)>,
    /// Looks after the services.
    pub services: Supervisor,
    /// The ports on which processes listen.
    pub ports: Ports,
    /// What the gateway wants remembered.
    pub marks: Marks,
    /// Terminals that outlive their clients.
    pub terminals: Terminals,
    /// Who may log in besides the gateway.
    pub admission: Admission,
    /// Where users reach the ssh-agents of their clients.
    pub agent_sockets: AgentSockets,
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
        if login == vendetta_proto::agent::DEFAULT_USER {
            self.user_as(self.settings.user.as_deref())
        } else {
            self.users.by_name(login).filter(may_be)
        }
    }

    /// The user and the terminal that a login name `[USER][+TERMINAL]` means.
    pub fn login(&self, login: &str) -> Option<(User, Option<TerminalName>)> {
        let (user, terminal) = self.terminal_of(login);
        Some((self.user(user)?, terminal))
    }

    /// The same for a guest. People's local user names come this way, since clients
    /// send them by default, so one that is no user here is the default user, and so
    /// is the gateway's own name.
    pub fn login_of_guest(&self, login: &str) -> Option<(User, Option<TerminalName>)> {
        use vendetta_proto::{agent::DEFAULT_USER, name::RESERVED};
        let (user, terminal) = self.terminal_of(login);
        let user = if user == RESERVED || self.users.by_name(user).is_none() {
            self.user(DEFAULT_USER)
        } else {
            self.user(user)
        };
        Some((user?, terminal))
    }

    /// Takes a login name apart, unless it is a user's as it is.
    fn terminal_of<'a>(&self, login: &'a str) -> (&'a str, Option<TerminalName>) {
        if let Some((user, terminal)) = login.rsplit_once('+')
            && let Ok(terminal) = terminal.parse()
            && self.users.by_name(login).is_none()
        {
            return (user, Some(terminal));
        }
        (login, None)
    }

    /// The user that a specification (name or id, with or without a group)
    /// means, in the same way; the agent's own when there is none.
    pub fn user_as(&self, specification: Option<&str>) -> Option<User> {
        let user = match specification {
            Some(specification) => self.users.by_specification(specification)?,
            None => {
                let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
                self.users.by_uid(uid.as_raw(), gid.as_raw())
            }
        };
        Some(user).filter(may_be)
    }
}

/// Whether the agent can be this user.
fn may_be(user: &User) -> bool {
    let own = nix::unistd::geteuid();
    own.is_root() || user.uid == own.as_raw()
}

/// One authenticated connection.
#[derive(Debug)]
pub struct Connection {
    /// The agent.
    pub agent: Arc<Agent>,
    /// Whom it logged in as.
    pub user: User,
    /// The terminal that its shells on terminals are.
    pub terminal: Option<TerminalName>,
    /// Who logged in.
    pub peer: Peer,
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
    pub fn new(
        agent: Arc<Agent>,
        (user, terminal): (User, Option<TerminalName>),
        peer: Peer,
        handle: Handle,
        gone: CancellationToken,
    ) -> Self {
        Self {
            agent,
            user,
            terminal,
            peer,
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
