//! A client's streams.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// Size of the client's terminal in characters, 0 where the client did not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// The streams of one client session.
pub struct Io {
    /// What the client sends.
    pub stdin: Box<dyn AsyncRead + Send + Unpin>,
    /// The session's standard output.
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    /// The session's standard error.
    pub stderr: Box<dyn AsyncWrite + Send + Unpin>,
    /// The terminal's size as it changes; some when the client has a pty.
    pub terminal: Option<watch::Receiver<TerminalSize>>,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}
