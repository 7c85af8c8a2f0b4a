//! The control plane: one command tree, reached over SSH as an exec line, a
//! subsystem name, a line at the prompt or a script on stdin, and through the
//! local CLI.

mod io;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::access::{Authorized, Principal};
use crate::config::Config;
use crate::store::Store;
use crate::workspace::{WorkspaceRef, Workspaces};

pub use io::{Io, TerminalSize};

/// Who asks, and what their session brought along.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whom the verified key belongs to.
    pub principal: Arc<Principal>,
    /// Environment of the session: TERM (of the pty), LANG, LC_ALL, NO_COLOR.
    pub session_env: BTreeMap<String, String>,
}

/// How a session on the control plane ends.
#[derive(Debug)]
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
    bound: SocketAddr,
}

impl Control {
    /// `bound` is the address the gateway listens on.
    #[must_use]
    pub fn new(config: &Config, store: Store, workspaces: Workspaces, bound: SocketAddr) -> Self {
        Self {
            config: config.clone(),
            store,
            workspaces,
            bound,
        }
    }

    /// Runs one command line: an exec request's, or a subsystem's name.
    /// Dropping the future stops watching, not the work.
    pub async fn run(&self, caller: &Caller, line: &[u8], io: Io) -> Outcome {
        let _ = (
            caller,
            line,
            io,
            &self.config,
            &self.store,
            &self.workspaces,
            self.bound,
        );
        Outcome::Exit(70)
    }

    /// Runs lines until the client leaves: an interactive prompt when it has a
    /// terminal, else a script on stdin.
    pub async fn shell(&self, caller: &Caller, io: Io) -> Outcome {
        let _ = (caller, io);
        Outcome::Exit(70)
    }

    /// Whether the first word of `line` names a command of the tree.
    #[must_use]
    pub fn is_command(line: &[u8]) -> bool {
        const COMMANDS: [&[u8]; 8] = [
            b"workspace",
            b"user",
            b"key",
            b"status",
            b"version",
            b"whoami",
            b"help",
            b"completion",
        ];
        let word = line
            .split(u8::is_ascii_whitespace)
            .find(|word| !word.is_empty());
        word.is_some_and(|word| COMMANDS.contains(&word))
    }
}
