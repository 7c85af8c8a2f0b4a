//! What to start, as whom, and with which standard streams.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sys;
use crate::users::User;

/// The ids a process gets; only root can give any but its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
}

impl Identity {
    /// What a process of `user` must change into; none when the agent is not
    /// root and so can be nobody else.
    #[must_use]
    pub fn of(user: &User) -> Option<Self> {
        nix::unistd::geteuid().is_root().then(|| Self {
            uid: user.uid,
            gid: user.gid,
            groups: std::iter::once(user.gid)
                .chain(user.groups.iter().copied())
                .collect(),
        })
    }
}

/// Standard streams of a process.
#[derive(Debug)]
pub enum Stdio {
    /// The three streams, apart.
    Pipes {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal that becomes the controlling one.
    Terminal(OwnedFd),
}

/// A process to start: a session leader of its own, with default signal
/// dispositions, umask 022, and no descriptors but its standard streams.
#[derive(Debug)]
pub struct Launch {
    /// Path of the program.
    pub program: PathBuf,
    /// Its name for itself (`-bash` for a login shell).
    pub argv0: OsString,
    /// The arguments after that.
    pub arguments: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory: the first of these that can be entered.
    pub directories: Vec<PathBuf>,
    /// Ids to change into.
    pub identity: Option<Identity>,
    /// Standard streams.
    pub stdio: Stdio,
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

impl Launch {
    /// The command, ready to be spawned.
    pub(super) fn into_command(self) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        command
            .arg0(&self.argv0)
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment);
        let terminal = match self.stdio {
            Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
                false
            }
            Stdio::Terminal(terminal) => {
                command
                    .stdin(terminal.try_clone()?)
                    .stdout(terminal.try_clone()?)
                    .stderr(terminal);
                true
            }
        };
        let directories = self
            .directories
            .iter()
            .map(|path| c_string(path))
            .collect::<io::Result<Vec<_>>>()?;
        sys::in_child(
            &mut command,
            sys::ChildSetup {
                terminal,
                identity: self.identity,
                directories,
            },
        );
        Ok(command)
    }
}

/// The last component of a path, as a program calls itself.
#[must_use]
pub fn base_name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(path.as_os_str())
}
