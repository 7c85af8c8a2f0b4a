//! Programs run with a time limit, from their start to what they said.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use nix::unistd::ttyname;
use sha2::{Digest, Sha256};

use crate::{PATIENCE, Process};

/// A program about to be run. It sees an empty stdin and none of this process's
/// environment but PATH, unless told otherwise.
#[derive(Debug)]
pub struct Run {
    command: Command,
    stdin: Input,
    stdout: Option<File>,
    digest: bool,
    limit: Duration,
}

/// What a running program reads from.
type Stdin = Box<dyn Write + Send + Sync>;

#[derive(Debug)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Repeat(Vec<u8>, usize),
    Kept,
    File(File),
}

impl Run {
    /// Prepares to run `program`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear().env("LANG", "C.UTF-8");
        command.env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
        );
        Self {
            command,
            stdin: Input::Nothing,
            stdout: None,
            digest: false,
            limit: PATIENCE,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in `dir`.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives it `bytes` on stdin, then end of file.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Gives it `bytes` `times` times over on stdin, then end of file.
    #[must_use]
    pub fn stdin_repeated(mut self, bytes: impl Into<Vec<u8>>, times: usize) -> Self {
        self.stdin = Input::Repeat(bytes.into(), times);
        self
    }

    /// Gives it `file` as stdin.
    #[must_use]
    pub fn stdin_file(mut self, file: File) -> Self {
        self.stdin = Input::File(file);
        self
    }

    /// Sends its stdout into `file` instead of keeping it.
    #[must_use]
    pub fn stdout_file(mut self, file: File) -> Self {
        self.stdout = Some(file);
        self
    }

    /// Keeps length and SHA-256 of its stdout instead of the bytes.
    #[must_use]
    pub fn digest_stdout(mut self) -> Self {
        self.digest = true;
        self
    }

    /// Ends it with a panic after `limit` instead of after [`PATIENCE`].
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// What a shell has to be told to run it, with the environment variables set for it.
    #[must_use]
    pub fn shell_line(&self) -> String {
        let quoted = |word: &OsStr| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"));
        let variables = self.command.get_envs().filter_map(|(name, value)| {
            let mut variable = name.to_owned();
            variable.push("=");
            variable.push(value?);
            Some(quoted(&variable))
        });
        let program = std::iter::once(self.command.get_program());
        let words = program.chain(self.command.get_args()).map(quoted);
        let line = std::iter::once("env".to_owned())
            .chain(variables)
            .chain(words);
        line.collect::<Vec<_>>().join(" ")
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, or has not ended within the limit.
    #[must_use]
    pub fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Runs it to its end, which must be exit status 0.
    ///
    /// # Panics
    /// As [`Run::finish`], and when it fails.
    pub fn ok(self) -> Finished {
        self.finish().ok()
    }

    /// Starts it with a stdin that stays open until [`Running::close_stdin`].
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(mut self) -> Running {
        self.stdin = Input::Kept;
        self.start()
    }

    /// Starts it, its stdin as prepared.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(mut self) -> Running {
        let line = Line::of(&self.command);
        self.command.stderr(Stdio::piped());
        self.command
            .stdout(self.stdout.take().map_or_else(Stdio::piped, Stdio::from));
        let input = match self.stdin {
            Input::Nothing => {
                self.command.stdin(Stdio::null());
                None
            }
            Input::File(file) => {
                self.command.stdin(file);
                None
            }
            Input::Bytes(bytes) => Some((bytes, 1)),
            Input::Repeat(bytes, times) => Some((bytes, times)),
            Input::Kept => Some((Vec::new(), 0)),
        };
        if input.is_some() {
            self.command.stdin(Stdio::piped());
        }
        let mut child = started(&mut self.command);
        let mut stdin = child.stdin.take().map(|pipe| Box::new(pipe) as Stdin);
        if let Some((bytes, times)) = input
            && times > 0
            && let Some(mut pipe) = stdin.take()
        {
            // Ends when the program has read all or closed its end: that it does not read all is its right.
            std::thread::spawn(move || {
                for _ in 0..times {
                    if pipe.write_all(&bytes).is_err() {
                        break;
                    }
                }
            });
        }
        let stdout = child
            .stdout
            .take()
            .map(|pipe| Sink::fill(pipe, self.digest))
            .unwrap_or_default();
        let stderr = child
            .stderr
            .take()
            .map(|pipe| Sink::fill(pipe, false))
            .unwrap_or_default();
        Running {
            child,
            line,
            stdin,
            stdout,
            stderr,
            terminal: None,
            started: Instant::now(),
            limit: self.limit,
            ended: None,
        }
    }

    /// Starts it with stdin and stdout on a new terminal of `rows` and `columns`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_on_terminal(mut self, rows: u16, columns: u16) -> Running {
        let line = Line::of(&self.command);
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).expect("opening a terminal");
        let terminal = ttyname(&pty.slave).expect("a terminal has a name");
        let slave = || pty.slave.try_clone().expect("duplicating a terminal");
        self.command
            .stdin(slave())
            .stdout(slave())
            .stderr(Stdio::piped());
        let mut child = started(&mut self.command);
        // The command keeps its copies of the terminal; with them its end would never be seen.
        drop(self.command);
        let stderr = child
            .stderr
            .take()
            .map(|pipe| Sink::fill(pipe, false))
            .unwrap_or_default();
        let master = File::from(pty.master);
        let reader = master.try_clone().expect("duplicating a terminal");
        Running {
            child,
            line,
            stdin: Some(Box::new(master)),
            stdout: Sink::fill(reader, self.digest),
            stderr,
            terminal: Some(terminal),
            started: Instant::now(),
            limit: self.limit,
            ended: None,
        }
    }
}

/// A script of tests/fixtures, told where this checkout is built.
pub(crate) fn fixture(name: &str) -> Run {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name);
    let run = Run::new(script);
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => run.env("CARGO_TARGET_DIR", target),
        None => run,
    }
}

fn started(command: &mut Command) -> Child {
    command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", Line::of(command)))
}

/// A command line as one would type it, for messages.
struct Line(Vec<OsString>);

impl Line {
    fn of(command: &Command) -> Self {
        Self(
            std::iter::once(command.get_program())
                .chain(command.get_args())
                .map(OsStr::to_owned)
                .collect(),
        )
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .0
            .iter()
            .map(|word| {
                let word = word.to_string_lossy();
                if word.contains([' ', '\n', '"', '$', ';', '&']) {
                    format!("'{word}'")
                } else {
                    word.into_owned()
                }
            })
            .collect();
        f.write_str(&words.join(" "))
    }
}

/// What came out of a pipe so far.
#[derive(Default)]
struct Sink {
    got: Arc<(Mutex<Got>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Got {
    bytes: Vec<u8>,
    length: u64,
    digest: Option<Sha256>,
    ended: bool,
}

impl Sink {
    fn fill(mut pipe: impl Read + Send + 'static, digest: bool) -> Self {
        let got = Arc::new((
            Mutex::new(Got {
                digest: digest.then(Sha256::new),
                ..Got::default()
            }),
            Condvar::new(),
        ));
        let shared = Arc::clone(&got);
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut got = shared.0.lock().unwrap();
                got.length += count as u64;
                got.ended = count == 0;
                match &mut got.digest {
                    Some(digest) => digest.update(&buffer[..count]),
                    None => got.bytes.extend_from_slice(&buffer[..count]),
                }
                shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Self {
            got,
            reader: Some(reader),
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        self.got.0.lock().unwrap().bytes.clone()
    }

    fn join(&mut self) -> (Vec<u8>, u64, Option<String>) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        let mut got = self.got.0.lock().unwrap();
        let digest = got
            .digest
            .take()
            .map(|digest| hex::encode(digest.finalize()));
        (std::mem::take(&mut got.bytes), got.length, digest)
    }
}

/// A program that runs. Dropped, it is killed.
pub struct Running {
    child: Child,
    line: Line,
    stdin: Option<Stdin>,
    stdout: Sink,
    stderr: Sink,
    terminal: Option<PathBuf>,
    started: Instant,
    limit: Duration,
    ended: Option<ExitStatus>,
}

impl Running {
    /// The process.
    #[must_use]
    pub fn process(&self) -> Process {
        Process(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Writes to its stdin.
    ///
    /// # Panics
    /// When stdin was closed on either side.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self
            .stdin
            .as_mut()
            .unwrap_or_else(|| panic!("stdin of {} is closed", self.line));
        stdin
            .write_all(bytes.as_ref())
            .and_then(|()| stdin.flush())
            .unwrap_or_else(|error| {
                panic!(
                    "cannot write to {}: {error}\n{}",
                    self.line,
                    String::from_utf8_lossy(&self.stderr.snapshot())
                )
            });
    }

    /// Ends its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Changes the size of its terminal and tells it so.
    ///
    /// # Panics
    /// When it was not started on one.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        let terminal = self.terminal.as_ref().expect("it runs on a terminal");
        let (rows, columns) = (rows.to_string(), columns.to_string());
        Run::new("stty")
            .arg("-F")
            .arg(terminal)
            .args(["rows", &rows, "cols", &columns])
            .ok();
        self.signal(Signal::SIGWINCH);
    }

    /// What stdout has given so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.snapshot()
    }

    /// What stderr has given so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<u8> {
        self.stderr.snapshot()
    }

    /// Number of bytes that stdout has given so far.
    #[must_use]
    pub fn stdout_length(&self) -> u64 {
        self.stdout.got.0.lock().unwrap().length
    }

    /// Waits until stdout has given `text` at or after byte `from`; returns the
    /// position behind it.
    ///
    /// # Panics
    /// When stdout ends without it, or within [`PATIENCE`] does not give it.
    pub fn expect_stdout(&self, from: usize, text: impl AsRef<[u8]>) -> usize {
        self.expect(&self.stdout, "stdout", from, text.as_ref())
    }

    /// As [`Running::expect_stdout`], of stderr.
    ///
    /// # Panics
    /// When stderr ends without it, or within [`PATIENCE`] does not give it.
    pub fn expect_stderr(&self, from: usize, text: impl AsRef<[u8]>) -> usize {
        self.expect(&self.stderr, "stderr", from, text.as_ref())
    }

    fn expect(&self, sink: &Sink, name: &str, from: usize, text: &[u8]) -> usize {
        let until = Instant::now() + PATIENCE;
        let mut got = sink.got.0.lock().unwrap();
        // What was looked at is not looked at again: its reader waits meanwhile.
        let mut looked = from;
        loop {
            let start = looked.min(got.bytes.len());
            if let Some(found) = got.bytes[start..]
                .windows(text.len())
                .position(|window| window == text)
            {
                return start + found + text.len();
            }
            looked = from.max((got.bytes.len() + 1).saturating_sub(text.len()));
            let left = until.saturating_duration_since(Instant::now());
            if got.ended || left.is_zero() {
                let said =
                    String::from_utf8_lossy(&got.bytes[from.min(got.bytes.len())..]).into_owned();
                let why = if got.ended { "ended" } else { "went silent" };
                drop(got);
                panic!(
                    "{name} of {} {why} without {:?}; it gave {said:?}, stderr {:?}",
                    self.line,
                    String::from_utf8_lossy(text),
                    String::from_utf8_lossy(&self.stderr.snapshot()),
                );
            }
            got = sink.got.1.wait_timeout(got, left).unwrap().0;
        }
    }

    /// Whether it has not ended yet.
    pub fn runs(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// Sends it `signal`.
    pub fn signal(&mut self, signal: Signal) {
        if self.runs() {
            self.process().signal(signal);
        }
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("waiting for a child of ours");
        }
        self.ended
    }

    /// Waits for its end. Its stdin, if still ours, is closed first.
    ///
    /// # Panics
    /// When it has not ended within the limit.
    #[must_use]
    pub fn finish(mut self) -> Finished {
        self.stdin = None;
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = self.try_wait() {
                break status;
            }
            if self.started.elapsed() > self.limit {
                let _ = self.child.kill();
                panic!(
                    "hangs: {} has not ended after {:?}; stdout so far {} bytes {}; stderr {}",
                    self.line,
                    self.limit,
                    self.stdout_length(),
                    excerpt(&self.stdout.snapshot()),
                    excerpt(&self.stderr.snapshot()),
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let took = self.started.elapsed();
        // A descendant may keep the pipes open after the program has ended: that is a hang too.
        for (sink, name) in [(&self.stdout, "stdout"), (&self.stderr, "stderr")] {
            while sink
                .reader
                .as_ref()
                .is_some_and(|reader| !reader.is_finished())
            {
                assert!(
                    self.started.elapsed() < self.limit,
                    "hangs: {name} of {} stays open after its end",
                    self.line
                );
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let (stdout, stdout_length, stdout_sha256) = self.stdout.join();
        let (stderr, ..) = self.stderr.join();
        Finished {
            line: self.line.to_string(),
            status,
            stdout,
            stdout_length,
            stdout_sha256,
            stderr,
            took,
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({})", self.line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its stdout, unless it went to a file or a digest.
    pub stdout: Vec<u8>,
    /// Length of its stdout, in bytes.
    pub stdout_length: u64,
    /// SHA-256 of its stdout, with [`Run::digest_stdout`].
    pub stdout_sha256: Option<String>,
    /// Its stderr.
    pub stderr: Vec<u8>,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// Its exit status; 128 + n when signal n ended it, as shells say.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Its stdout as text, without white space at the end.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Its stdout as one JSON value.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {self}"))
    }

    /// Its stderr as text, without white space at the end.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Itself, having exited with 0.
    ///
    /// # Panics
    /// When it did not.
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Itself, having exited with `code`.
    ///
    /// # Panics
    /// When it did not.
    pub fn exits(self, code: i32) -> Self {
        assert!(self.code() == code, "expected exit status {code}: {self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            status,
            stdout,
            stderr,
            took,
            ..
        } = self;
        write!(
            f,
            "{line}: {status} after {took:?}\nstdout: {}\nstderr: {}",
            excerpt(stdout),
            excerpt(stderr)
        )
    }
}

/// The end of what a program said, for messages.
fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 2000;
    let start = bytes.len().saturating_sub(SHOWN);
    let dots = if start > 0 { "…" } else { "" };
    format!("{dots}{:?}", String::from_utf8_lossy(&bytes[start..]))
}
