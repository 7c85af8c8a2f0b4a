//! The SSH side of the gateway: who connects, where their login name leads,
//! and the bridge between their channels and an environment's.
//!
//! [`listener`] accepts and limits, [`handler`] receives russh's callbacks and
//! holds no policy, [`shared`] is what a connection's tasks have of it, [`auth`] turns a verified key into a principal, [`route`]
//! reads the login name, [`standing`] ends
//! whose key is removed, [`environment`] is a connection's link to the agent,
//! [`session`] runs control commands, [`attach`] joins one to a workspace, [`jump`]
//! pipes a client that comes end to end to an agent.

pub mod attach;
pub mod auth;
pub mod environment;
pub mod forward;
pub mod handler;
pub mod jump;
pub mod listener;
pub mod reach;
pub mod restrict;
pub mod route;
pub mod server_config;
pub mod session;
pub mod shared;
pub mod standing;

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use vendetta_sshio::workers::Workers;

use crate::agent::pool::Pool;
use crate::control::Control;
use crate::store::Store;
use crate::workspace::Workspaces;

/// What every connection uses.
pub struct Services {
    /// Users, keys, audit.
    pub store: Store,
    /// Workspaces.
    pub workspaces: Workspaces,
    /// Connections to agents.
    pub pool: Pool,
    /// Control commands.
    pub control: Arc<Control>,
    /// Keys and certificates to principals.
    pub authenticator: auth::Authenticator,
    /// Channels one connection may have open at once.
    pub channels_per_connection: usize,
    /// Told whenever a connection has logged in or ended, and freed memory.
    pub freed: Arc<Notify>,
    /// The threads that serve connections.
    pub workers: Workers,
    /// Every task of every connection.
    pub tasks: TaskTracker,
}
