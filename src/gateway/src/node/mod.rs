//! The machines that workspaces run on, and the one way to reach them.
//!
//! A provider sees its node through [`NodeTransport`] only, so that it does
//! not know whether the node is the gateway's own machine or one behind SSH.
//! Every call is bounded by a time limit and safe to repeat.

pub mod enroll;
mod error;
mod kvm;
mod local;
mod name;
mod probe;
pub mod ssh;
#[cfg(test)]
mod testing;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use vendetta_proto::NodeName;

pub use enroll::AgentAccess;
pub use error::{LinkError, NodeError, Refusal};
pub use kvm::{Kvm, try_guest};
pub use local::LocalNode;
pub use name::CurrentName;
pub use probe::{Facts, Probe, Socket, facts, probe};
pub use ssh::{LinkState, SshNode};

/// Most bytes of output that [`NodeTransport::exec`] keeps of each stream.
pub const MAX_OUTPUT: usize = 256 * 1024;

/// Longest path a unix socket can be bound to: sun_path less its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// A two-way stream of bytes.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A machine that workspaces run on.
#[async_trait]
pub trait NodeTransport: Send + Sync + fmt::Debug {
    /// Its name now.
    fn name(&self) -> NodeName;

    /// Where this gateway's files live on the node; nobody else's.
    fn state_dir(&self) -> &Path;

    /// Connects to a unix socket of the node. An environment can write below
    /// [`state_dir`](Self::state_dir) and could put a link to another of the node's
    /// sockets there. On the gateway's own machine such a link is not followed; on
    /// another sshd opens the path, and follows it. So whoever opens a path
    /// there has the other end prove who it is before it says anything that
    /// matters, as agents do with their host key.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the cause, such as no such file, refused or no permission.
    async fn open_unix(&self, path: &Path) -> Result<Box<dyn ByteStream>, NodeError>;

    /// Connects to a TCP port as seen from the node.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the cause.
    async fn open_tcp(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, NodeError>;

    /// Runs a program to its end with a small, clean environment.
    ///
    /// # Errors
    /// When it cannot be run or takes too long; an exit status other than 0 is an [`Output`].
    async fn exec(&self, command: &Command) -> Result<Output, NodeError>;

    /// Writes a whole file or nothing (temporary file and rename), making
    /// missing parents with mode 0700. A link in its place is replaced, not followed.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the cause.
    async fn put(&self, path: &Path, mode: u32, content: &[u8]) -> Result<(), NodeError>;

    /// Makes a directory with mode 0700, and its parents; there already is fine.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the cause.
    async fn make_dir(&self, path: &Path) -> Result<(), NodeError>;

    /// Content of a small file (at most [`MAX_OUTPUT`]); none when there is no such file.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the cause.
    async fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, NodeError>;

    /// Names in a directory; empty when there is no such directory.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the cause.
    async fn list_dir(&self, path: &Path) -> Result<Vec<String>, NodeError>;

    /// Whether there is something at `path`.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the cause.
    async fn exists(&self, path: &Path) -> Result<bool, NodeError>;

    /// Removes a file or a directory with all it holds, following no link; gone already is fine.
    ///
    /// # Errors
    /// [`NodeError::Io`] with the cause.
    async fn remove_tree(&self, path: &Path) -> Result<(), NodeError>;

    /// The machine's architecture.
    ///
    /// # Errors
    /// When the node cannot be asked.
    async fn arch(&self) -> Result<Arch, NodeError>;
}

/// A program to run on a node.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments; never passed through a shell.
    pub argv: Vec<String>,
    /// What it reads on standard input.
    pub stdin: Vec<u8>,
    /// It is killed after this long.
    pub time_limit: Duration,
}

impl Command {
    /// A program with arguments, nothing on standard input and 30 seconds.
    pub fn new<I, S>(argv: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            stdin: Vec::new(),
            time_limit: Duration::from_secs(30),
        }
    }
}

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; none when a signal ended it.
    pub status: Option<i32>,
    /// Standard output, cut at [`MAX_OUTPUT`].
    pub stdout: Vec<u8>,
    /// Standard error, cut at [`MAX_OUTPUT`].
    pub stderr: Vec<u8>,
}

/// The architecture of a machine, in the words of `uname -m`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Arch(String);

impl Arch {
    /// The architecture that `uname -m` calls `machine`.
    pub fn new(machine: impl Into<String>) -> Self {
        Self(machine.into())
    }

    /// The word, such as "x86_64" or "aarch64".
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
