//! A client's streams, and the console that commands write to.
//!
//! A console is the one place that knows what a terminal needs: CRLF line ends
//! (the client's terminal is raw, RFC 4254 section 8), no control characters
//! from data, colour and line drawing only where the client can show them, and
//! Ctrl-C as a byte on stdin.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::inventory::{AgentAccess, Secret};

/// Bytes that a user may type ahead of a running command; a tty keeps as much.
const MAX_TYPE_AHEAD: usize = 4096;

/// Width of text that is written for nobody's terminal.
const DEFAULT_WIDTH: usize = 100;

/// Longest password, in bytes.
const MAX_SECRET: usize = 1024;

/// ETX, what Ctrl-C sends.
const INTERRUPT: u8 = 0x03;

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
    /// The client's agent; some when it forwards one.
    pub agent: Option<Arc<dyn AgentAccess>>,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}

/// [`Io`] with the manners of a terminal.
#[derive(Debug)]
pub(super) struct Console {
    io: Io,
    /// Read from stdin and not used yet.
    pub(super) pending: Vec<u8>,
    /// The client closed stdin.
    ended: bool,
    /// A terminal that understands escape sequences.
    pub(super) capable: bool,
    /// Colours are welcome.
    pub(super) color: bool,
    /// Characters beyond ASCII are.
    pub(super) unicode: bool,
}

impl Console {
    /// `env` is the client's: TERM, NO_COLOR (no-color.org), LC_ALL, LC_CTYPE, LANG.
    pub(super) fn new(io: Io, env: &BTreeMap<String, String>) -> Self {
        let set = |name: &str| {
            env.get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
        };
        let capable = io.terminal.is_some() && set("TERM").is_some_and(|term| term != "dumb");
        let locale = set("LC_ALL")
            .or_else(|| set("LC_CTYPE"))
            .or_else(|| set("LANG"));
        let utf8 = locale.is_none_or(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        Self {
            io,
            pending: Vec::new(),
            ended: false,
            capable,
            color: capable && set("NO_COLOR").is_none(),
            unicode: capable && utf8,
        }
    }

    /// The streams again, with what was typed ahead.
    pub(super) fn into_io(mut self) -> Io {
        if !self.pending.is_empty() {
            let pending = io::Cursor::new(std::mem::take(&mut self.pending));
            self.io.stdin = Box::new(pending.chain(self.io.stdin));
        }
        self.io
    }

    /// Whether the client has a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.io.terminal.is_some()
    }

    /// The client's agent, when it forwards one.
    pub(super) fn agent(&self) -> Option<Arc<dyn AgentAccess>> {
        self.io.agent.clone()
    }

    /// Asks for something that is not shown while it is typed; none when the
    /// user gives up (Ctrl-C, Ctrl-D, the end of input) or has no terminal.
    pub(super) async fn ask_secret(&mut self, prompt: &str) -> io::Result<Option<Secret>> {
        if !self.is_terminal() {
            return Ok(None);
        }
        self.out(prompt).await?;
        let mut typed = Zeroizing::new(Vec::new());
        let secret = loop {
            if self.pending.is_empty() && !self.fill().await? {
                break None;
            }
            let byte = self.pending.remove(0);
            match byte {
                b'\r' | b'\n' => break Some(typed),
                INTERRUPT | 0x04 => break None,
                // Backspace and Ctrl-U, as a tty has them.
                0x7f | 0x08 => while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
                0x15 => typed.clear(),
                _ if typed.len() < MAX_SECRET => typed.push(byte),
                _ => {}
            }
        };
        self.out("\n").await?;
        let text = secret.map(|typed| String::from_utf8_lossy(&typed).into_owned());
        Ok(text.map(Secret::new))
    }

    /// The terminal's size as it changes.
    pub(super) fn terminal(&self) -> Option<watch::Receiver<TerminalSize>> {
        self.io.terminal.clone()
    }

    /// Columns to write in.
    pub(super) fn width(&self) -> usize {
        match self
            .io
            .terminal
            .as_ref()
            .map(|size| usize::from(size.borrow().columns))
        {
            Some(0) => 80,
            Some(columns) => columns.max(20),
            None => DEFAULT_WIDTH,
        }
    }

    /// Writes text of our own to stdout; it may hold escape sequences.
    pub(super) async fn out(&mut self, text: &str) -> io::Result<()> {
        let bytes = self.line_ends(text.as_bytes());
        self.io.stdout.write_all(&bytes).await?;
        self.io.stdout.flush().await
    }

    /// Writes text of our own to stderr; it may hold escape sequences. On a
    /// terminal there is one stream, as with any pty, so that the order holds.
    pub(super) async fn err(&mut self, text: &str) -> io::Result<()> {
        if self.is_terminal() {
            return self.out(text).await;
        }
        let bytes = self.line_ends(text.as_bytes());
        self.io.stderr.write_all(&bytes).await?;
        self.io.stderr.flush().await
    }

    /// Writes bytes that are not ours (logs) to stdout.
    pub(super) async fn out_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let bytes = self.line_ends(bytes);
        self.io.stdout.write_all(&bytes).await?;
        self.io.stdout.flush().await
    }

    /// Writes what an editor or a progress bar drew, as it is.
    pub(super) async fn draw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.stdout.write_all(bytes).await?;
        self.io.stdout.flush().await
    }

    fn line_ends<'a>(&self, bytes: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        if !self.is_terminal() {
            return bytes.into();
        }
        let mut translated = Vec::with_capacity(bytes.len() + 16);
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => {
                    translated.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
                    translated.extend_from_slice(b"\r\n");
                }
                None => translated.extend_from_slice(line),
            }
        }
        translated.into()
    }

    /// Reads more of stdin into [`Console::pending`]; false at its end. Safe to
    /// cancel.
    pub(super) async fn fill(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let mut buffer = [0; 1024];
        let count = self.io.stdin.read(&mut buffer).await?;
        self.pending
            .extend_from_slice(buffer.get(..count).unwrap_or_default());
        self.ended = count == 0;
        Ok(count > 0)
    }

    /// All of stdin; none when it is longer than `limit` bytes.
    pub(super) async fn read_to_end(&mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        while self.pending.len() <= limit {
            if !self.fill().await? {
                return Ok(Some(std::mem::take(&mut self.pending)));
            }
        }
        Ok(None)
    }

    /// The next line of stdin without its end; none at the end of stdin.
    /// An error when it is longer than `limit` bytes.
    pub(super) async fn read_line(&mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(Some(line));
            }
            if self.pending.len() > limit {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "line too long"));
            }
            if !self.fill().await? {
                let rest = std::mem::take(&mut self.pending);
                return Ok((!rest.is_empty()).then_some(rest));
            }
        }
    }

    /// Returns when somebody at a terminal presses Ctrl-C; never without a
    /// terminal, or after the end of stdin. What is typed meanwhile is kept.
    /// Safe to cancel.
    pub(super) async fn interrupted(&mut self) {
        if !self.is_terminal() {
            return std::future::pending().await;
        }
        loop {
            if let Some(at) = self.pending.iter().position(|&byte| byte == INTERRUPT) {
                self.pending.drain(..=at);
                return;
            }
            self.pending.truncate(MAX_TYPE_AHEAD);
            if !matches!(self.fill().await, Ok(true)) {
                return std::future::pending().await;
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A client: what it sends is given, what it gets is read from the other ends.
    pub(crate) struct Client {
        pub(crate) stdin: tokio::io::DuplexStream,
        pub(crate) stdout: tokio::io::DuplexStream,
        pub(crate) stderr: tokio::io::DuplexStream,
        pub(crate) size: Option<watch::Sender<TerminalSize>>,
    }

    pub(crate) fn client(terminal: bool) -> (Client, Io) {
        let (stdin, server_stdin) = tokio::io::duplex(1 << 20);
        let (stdout, server_stdout) = tokio::io::duplex(1 << 20);
        let (stderr, server_stderr) = tokio::io::duplex(1 << 20);
        let size = terminal.then(|| {
            watch::Sender::new(TerminalSize {
                columns: 80,
                rows: 24,
            })
        });
        let io = Io {
            stdin: Box::new(server_stdin),
            stdout: Box::new(server_stdout),
            stderr: Box::new(server_stderr),
            terminal: size.as_ref().map(watch::Sender::subscribe),
            agent: None,
        };
        (
            Client {
                stdin,
                stdout,
                stderr,
                size,
            },
            io,
        )
    }

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[tokio::test]
    async fn lines_end_in_crlf_on_a_terminal_and_in_lf_elsewhere() {
        for (terminal, want) in [(true, "a\r\nb\r\nc"), (false, "a\nb\r\nc")] {
            let (mut client, io) = client(terminal);
            let mut console = Console::new(io, &BTreeMap::new());
            console.out("a\nb\r\nc").await.unwrap();
            drop(console);
            let mut text = String::new();
            client.stdout.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, want);
        }
    }

    #[tokio::test]
    async fn colour_needs_a_capable_terminal_and_no_objection() {
        for (terminal, env, want) in [
            (true, env(&[("TERM", "xterm")]), (true, true)),
            (
                true,
                env(&[("TERM", "xterm"), ("NO_COLOR", "1")]),
                (false, true),
            ),
            (true, env(&[("TERM", "dumb")]), (false, false)),
            (true, env(&[]), (false, false)),
            (
                true,
                env(&[("TERM", "xterm"), ("LANG", "C")]),
                (true, false),
            ),
            (false, env(&[("TERM", "xterm")]), (false, false)),
        ] {
            let (_client, io) = client(terminal);
            let console = Console::new(io, &env);
            assert_eq!((console.color, console.unicode), want, "{terminal} {env:?}");
        }
    }

    #[tokio::test]
    async fn what_is_typed_ahead_of_ctrl_c_is_dropped_and_what_follows_is_kept() {
        let (mut client, io) = client(true);
        let mut console = Console::new(io, &BTreeMap::new());
        client.stdin.write_all(b"abc\x03next").await.unwrap();
        console.interrupted().await;
        drop(client.stdin);
        let mut rest = String::new();
        console
            .into_io()
            .stdin
            .read_to_string(&mut rest)
            .await
            .unwrap();
        assert_eq!(rest, "next");
    }

    #[tokio::test]
    async fn a_console_never_keeps_more_than_its_limit_of_an_endless_line() {
        let (mut client, io) = client(false);
        let mut console = Console::new(io, &BTreeMap::new());
        client.stdin.write_all(&[b'x'; 10_000]).await.unwrap();
        assert!(console.read_line(1000).await.is_err());
        assert!(console.read_to_end(1000).await.unwrap().is_none());
    }
}
