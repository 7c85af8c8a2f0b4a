//! The control plane: one command tree, reached over SSH as an exec line, a
//! subsystem name, a line at the prompt or a script on stdin, and through the
//! local CLI.

pub mod command;
mod complete;
pub mod config;
pub mod create;
mod dialog;
mod doctor;
mod editor;
mod events;
mod failure;
pub mod git;
mod history;
mod io;
pub mod key;
mod lifecycle;
pub mod node;
mod node_view;
mod ports;
mod progress;
mod prompt;
pub mod rebuild;
mod redraw;
pub mod service;
pub mod settings;
pub mod ssh_config;
mod status;
mod terminal;
mod terminals;
mod text;
pub mod user;
mod words;
pub mod workspace;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use std::time::Instant;

use serde_json::json;
use vendetta_proto::WorkspaceName;

use crate::access::{Authorized, Principal};
use crate::config::Config;
use crate::events::Events;
use crate::store::{AuditEvent, Store};
use crate::workspace::{WorkspaceRef, Workspaces};
use command::{CommandLine, Done, Session};
use io::Console;
use prompt::Next;
use words::Parsed;

pub use crate::inventory::{AgentAccess, ByteStream};
pub use io::{Io, TerminalSize};
pub use ports::local_port;
pub use ssh_config::HostKeys;
pub use words::{help_in_json, suggest, wants_json};

/// Who asks, and what their session brought along.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whom the verified key belongs to.
    pub principal: Arc<Principal>,
    /// Environment of the session: TERM (of the pty), LANG, LC_ALL, NO_COLOR.
    pub session_env: BTreeMap<String, String>,
    /// The gateway's address that they connected to, when it is known.
    pub reached: Option<SocketAddr>,
}

/// How a session on the control plane ends.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each session, and it is moved twice"
)]
pub enum Outcome {
    /// With this exit status: 0, 2 usage, 3 not found or not yours, 4 conflict,
    /// 5 node or engine unavailable, 70 internal, 130 watching stopped by Ctrl-C.
    Exit(u8),
    /// By becoming a session of a workspace.
    Attach(Attach),
}

/// A session that `workspace connect` or `workspace exec` asked for.
#[derive(Debug)]
pub struct Attach {
    /// Where to.
    pub workspace: Authorized<WorkspaceRef>,
    /// User inside the environment; none: its own.
    pub user: Option<String>,
    /// Command line for the user's shell; none: a login shell.
    pub command: Option<Vec<u8>>,
    /// The client's streams, byte for byte.
    pub io: Io,
}

/// The control plane.
#[derive(Debug)]
pub struct Control {
    config: Config,
    store: Store,
    workspaces: Workspaces,
    events: Events,
    bound: SocketAddr,
    host_keys: HostKeys,
    started: Instant,
}

impl Control {
    /// `bound` is the address the gateway listens on, `host_keys` what its
    /// clients know it and its agents by.
    #[must_use]
    pub fn new(
        config: &Config,
        store: Store,
        workspaces: Workspaces,
        events: Events,
        bound: SocketAddr,
        host_keys: HostKeys,
    ) -> Self {
        Self {
            config: config.clone(),
            store,
            workspaces,
            events,
            bound,
            host_keys,
            started: Instant::now(),
        }
    }

    /// Runs one command line: an exec request's, or a subsystem's name.
    /// Dropping the future stops watching, not the work.
    pub async fn run(&self, caller: &Caller, line: &[u8], io: Io) -> Outcome {
        let mut console = Console::new(io, &caller.session_env);
        match self.run_line(caller, line, &mut console, false).await {
            Next::Line(code) => Outcome::Exit(code),
            Next::Attach(done) => match done.attach(console.into_io()) {
                Some(attach) => Outcome::Attach(attach),
                None => Outcome::Exit(0),
            },
        }
    }

    /// Runs lines until the client leaves: an interactive prompt when it has a
    /// terminal, else a script on stdin.
    pub async fn shell(&self, caller: &Caller, io: Io) -> Outcome {
        prompt::run(self, caller, io).await
    }

    /// Whether the first word of `line` names a command of the tree.
    #[must_use]
    pub fn is_command(line: &[u8]) -> bool {
        words::is_command(line)
    }

    async fn run_line(
        &self,
        caller: &Caller,
        line: &[u8],
        console: &mut Console,
        scripted: bool,
    ) -> Next {
        let words = match words::split(line) {
            Ok(words) => words,
            Err(failure) => {
                failure.tell(console, false).await;
                return Next::Line(failure.exit_code());
            }
        };
        self.store.audit(AuditEvent {
            user: Some(caller.principal.user.clone()),
            event: "command",
            detail: json!({ "line": words::for_audit(&words), "key": caller.principal.key_fingerprint }),
        });
        let CommandLine { json, command } = match words::parse(words, console) {
            Parsed::Command(command) => command,
            Parsed::Help(text) => {
                let _ = console.out(&text).await;
                return Next::Line(0);
            }
            Parsed::Usage(text) => {
                let _ = console.err(&text).await;
                return Next::Line(2);
            }
        };
        let mut session = Session {
            control: self,
            caller,
            console,
            json,
            scripted,
        };
        match Box::pin(command.run(&mut session)).await {
            Ok(Done::Ok) => Next::Line(0),
            Ok(attach @ Done::Attach { .. }) => Next::Attach(attach),
            Err(failure) => {
                failure.tell(console, json).await;
                Next::Line(failure.exit_code())
            }
        }
    }

    /// The command that opens a shell in a workspace, for people to copy.
    fn connect_command(&self, workspace: &WorkspaceName) -> String {
        format!("ssh {}", self.destination(workspace.as_str()))
    }

    /// The command that brings a port of a workspace to the user's machine.
    /// `host` is its service, or an address as the environment knows it.
    fn forward_command(&self, workspace: &WorkspaceName, host: &str, port: u16) -> String {
        let local = local_port(port);
        let to = self.destination(workspace.as_str());
        format!("ssh -N -L {local}:{host}:{port} {to}")
    }

    /// The words by which ssh reaches a workspace, as WORKSPACE or WORKSPACE+ENVUSER.
    fn destination(&self, workspace: &str) -> String {
        match self.config.address(self.bound) {
            (host, 22) => format!("{workspace}@{host}"),
            (host, port) => format!("{workspace}@{host} -p {port}"),
        }
    }
}

#[cfg(test)]
mod tests;
