//! RUNNING: one process, its streams, and how both end.
//!
//! The exit status is sent when the process ends; EOF when nobody holds its
//! output open any more; CLOSE after both, as sshd does. So a job left in the
//! background with the session's output keeps the channel open, and one that
//! closed it does not.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::net::unix::pipe;
use tokio::time::timeout;
use vendetta_sshio::control::{END_OF_WRITE, Events};

use super::program;
use super::pty::{Master, Opened};
use super::setup::{Program, Setup, refuse_late, reply};
use super::signals;
use super::streams::{self, Input, STDERR, Stream};
use crate::connection::Connection;
use crate::process::{Child, Identity, Pipes, Stdio, hang_up_group, signal_group};

/// How long an exit status may come after the end of the output and still be
/// sent before EOF.
const STATUS_BEFORE_EOF: Duration = Duration::from_millis(100);

/// How long a process may live on after its client vanished and it was sent SIGHUP.
const HANGUP_GRACE: Duration = Duration::from_secs(10);

/// How long a goodbye may wait for the client's window.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(200);

/// Exit status of a shell that cannot run a command (POSIX.1-2024, sh, 2.8.2).
const EXIT_NOT_FOUND: u32 = 127;

/// Our ends of a process's streams.
pub(super) enum Streams {
    Pipes {
        stdin: pipe::Sender,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    },
    Terminal(Master),
}

impl Streams {
    /// None on a terminal.
    fn pipes(&self) -> Option<Pipes> {
        match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => Some(Pipes::of([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])),
            Self::Terminal(_) => None,
        }
    }
}

/// How RUNNING ended.
enum Ending {
    /// The process is gone and its output sent.
    Finished,
    /// The client closed the channel or its connection is lost.
    Vanished,
}

/// Runs `program` and serves the channel until the process has ended or was told to.
pub async fn run(
    connection: &Connection,
    reader: ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    mut events: Events,
    mut setup: Setup,
    program: Program,
) {
    let input_ended = setup.input_ended;
    let (child, streams) = match start(connection, &mut setup, program) {
        Ok(started) => started,
        Err(problem) => {
            refuse(writer, &problem).await;
            return;
        }
    };
    let mut session = Session {
        connection,
        writer,
        child,
        pipes: streams.pipes(),
        exited: AtomicBool::new(false),
    };
    match session
        .serve(reader, &mut events, streams, input_ended)
        .await
    {
        Ending::Finished => {}
        Ending::Vanished => session.hang_up().await,
    }
}

/// Says why nothing runs, as a shell would that cannot run a command.
pub(super) async fn refuse(writer: &ChannelWriteHalf<Msg>, problem: &str) {
    let text = format!("vendetta: {problem}\n");
    let _ = writer.extended_data_bytes(STDERR, text.into_bytes()).await;
    let _ = writer.exit_status(EXIT_NOT_FOUND).await;
    let _ = writer.eof().await;
}

/// Starts what the client asked for, on pipes or on its terminal.
pub(super) fn start(
    connection: &Connection,
    setup: &mut Setup,
    program: Program,
) -> Result<(Child, Streams), String> {
    let Setup {
        variables,
        terminal,
        agent,
        display,
        ..
    } = setup;
    let mut session = Vec::new();
    if let Some(socket) = connection.agent_socket.get().filter(|_| *agent) {
        session.push(("SSH_AUTH_SOCK", socket.into()));
    }
    if let Some(display) = display {
        session.extend(display.variables.iter().cloned());
    }
    let streams = match terminal.take() {
        None => pipes(),
        Some((
            term,
            Opened {
                master,
                slave,
                path,
                ..
            },
        )) => {
            // A client that has none sends an empty one.
            if !term.is_empty() {
                session.push(("TERM", term.into()));
            }
            session.push(("SSH_TTY", path.into()));
            Ok((Stdio::Terminal(slave), Streams::Terminal(master)))
        }
    };
    let (stdio, streams) = streams.map_err(|error| format!("cannot make pipes: {error}"))?;
    let launch = program::launch(connection, variables, session, program, stdio)
        .map_err(|unavailable| unavailable.to_string())?;
    let name = launch.program.clone();
    let child = connection.agent.reaper.spawn(launch).map_err(|error| {
        format!(
            "cannot run {} as {}: {error}",
            name.display(),
            connection.user.name.display()
        )
    })?;
    Ok((child, streams))
}

fn pipes() -> io::Result<(Stdio, Streams)> {
    let (stdin, our_stdin) = io::pipe()?;
    let (our_stdout, stdout) = io::pipe()?;
    let (our_stderr, stderr) = io::pipe()?;
    Ok((
        Stdio::Pipes {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
        },
        Streams::Pipes {
            stdin: pipe::Sender::from_owned_fd(OwnedFd::from(our_stdin))?,
            stdout: pipe::Receiver::from_owned_fd(OwnedFd::from(our_stdout))?,
            stderr: pipe::Receiver::from_owned_fd(OwnedFd::from(our_stderr))?,
        },
    ))
}

struct Session<'a> {
    connection: &'a Connection,
    writer: &'a ChannelWriteHalf<Msg>,
    child: Child,
    pipes: Option<Pipes>,
    /// The process has been reaped.
    exited: AtomicBool,
}

impl Session<'_> {
    async fn serve(
        &mut self,
        reader: ChannelReadHalf,
        events: &mut Events,
        streams: Streams,
        input_ended: bool,
    ) -> Ending {
        let Self {
            connection,
            writer,
            child,
            exited,
            ..
        } = self;
        let (connection, writer, exited) = (*connection, *writer, &*exited);
        let leader = child.pid;
        let (stdin, output, master) = match streams {
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => (Some(stdin), Some((stdout, stderr)), None),
            Streams::Terminal(master) => (None, None, Some(master)),
        };
        let input = match &master {
            Some(master) => Input::Terminal(master),
            None => Input::Pipe(stdin.filter(|_| !input_ended)),
        };
        // Nothing reads the client's data any more: its CLOSE is no hang-up.
        let half_closed = AtomicBool::new(false);

        let unread = events.unread.clone();
        let output = async {
            if let Some((stdout, stderr)) = output {
                // A pipe whose reader is gone is gone here too: SIGPIPE is the program's to get.
                let stdout = async {
                    tokio::select! {
                        () = streams::pump_pipe(stdout, writer, Stream::Output) => {}
                        () = unread.cancelled() => {}
                    }
                };
                tokio::join!(stdout, streams::pump_pipe(stderr, writer, Stream::Error),);
            } else if let Some(master) = &master {
                streams::pump_terminal(master, writer).await;
            }
        };
        let exit = async {
            if let Ok(status) = (&mut child.exit).await {
                exited.store(true, Ordering::Relaxed);
                report(connection, writer, status).await;
            }
        };
        let finished = async {
            tokio::pin!(exit, output);
            tokio::select! {
                () = &mut exit => {
                    output.await;
                    let _ = writer.eof().await;
                }
                () = &mut output => {
                    let in_time = timeout(STATUS_BEFORE_EOF, &mut exit).await.is_ok();
                    // Before the EOF, which a client answers with its CLOSE at once.
                    half_closed.store(!in_time, Ordering::Relaxed);
                    let _ = writer.eof().await;
                    if !in_time {
                        exit.await;
                    }
                }
            }
        };
        let closed = events.closed.clone();
        let hung_up = async {
            closed.cancelled().await;
            if half_closed.load(Ordering::Relaxed) {
                pending::<()>().await;
            }
        };
        let controlled = async {
            loop {
                tokio::select! {
                    Some(signal) = events.signals.recv() => {
                        if let Some(signal) = signals::to_kernel(&signal) {
                            signal_group(leader, signal, exited.load(Ordering::Relaxed));
                        }
                    }
                    Ok(()) = events.size.changed() => {
                        let size = *events.size.borrow_and_update();
                        if let Some(master) = &master {
                            let _ = master.resize(size);
                        }
                    }
                    else => pending::<()>().await,
                }
            }
        };
        tokio::select! {
            biased;
            () = finished => Ending::Finished,
            () = connection.gone.cancelled() => Ending::Vanished,
            () = hung_up => Ending::Vanished,
            () = stopped(connection, writer, leader, exited) => Ending::Vanished,
            () = controlled => Ending::Vanished,
            () = feed(connection, reader, writer, input) => Ending::Vanished,
        }
    }

    /// Ends the process group of a client that is gone: SIGHUP, and after a
    /// grace SIGKILL. A daemon in a session of its own is in no group of ours,
    /// and one that only let go of the session's pipes is left alone.
    async fn hang_up(&mut self) {
        let reaped = self.exited.load(Ordering::Relaxed);
        self.signal(Signal::SIGHUP, reaped).await;
        if reaped {
            return;
        }
        match timeout(HANGUP_GRACE, &mut self.child.exit).await {
            Ok(Ok(status)) => {
                // Whom it started while it was hung up.
                self.signal(Signal::SIGHUP, true).await;
                report(self.connection, self.writer, status).await;
            }
            _ => self.signal(Signal::SIGKILL, false).await,
        }
    }

    async fn signal(&self, signal: Signal, reaped: bool) {
        let leader = self.child.pid;
        match &self.pipes {
            Some(pipes) => {
                let identity = Identity::of(&self.connection.user);
                pipes.signal(identity, leader, signal, reaped).await;
            }
            None if signal == Signal::SIGHUP => hang_up_group(leader, reaped),
            None => signal_group(leader, signal, reaped),
        }
    }
}

/// Tells the client that the workspace is stopping.
pub(super) async fn say_goodbye(connection: &Connection, writer: &ChannelWriteHalf<Msg>) {
    let workspace = &connection.agent.settings.workspace;
    let text = format!("\r\nvendetta: workspace {workspace} is stopping\r\n");
    let goodbye = writer.extended_data_bytes(STDERR, text.into_bytes());
    let _ = timeout(GOODBYE_TIMEOUT, goodbye).await;
}

/// When the agent stops, says so and hangs up the process group, whose last
/// words still reach the client. Never ends: the stop ends the processes.
async fn stopped(
    connection: &Connection,
    writer: &ChannelWriteHalf<Msg>,
    leader: Pid,
    exited: &AtomicBool,
) {
    connection.agent.stopping.cancelled().await;
    say_goodbye(connection, writer).await;
    hang_up_group(leader, exited.load(Ordering::Relaxed));
    pending().await
}

/// Gives the client's data to the process, and refuses requests that come too
/// late. Never ends: that the client is gone is told by other means.
async fn feed(
    connection: &Connection,
    mut reader: ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    mut input: Input<'_>,
) {
    while let Some(message) = reader.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                let taken = input.write(&data).await;
                if !taken {
                    // The client may stop to send (OpenSSH PROTOCOL section 2.1).
                    let _ = writer.request(false, END_OF_WRITE, Vec::new()).await;
                }
            }
            ChannelMsg::OtherRequest {
                name, want_reply, ..
            } if name == "break" => {
                reply(connection, writer.id(), want_reply, input.send_break()).await;
            }
            ChannelMsg::Eof | ChannelMsg::Close => input.end(),
            message => refuse_late(connection, writer.id(), &message).await,
        }
    }
    input.end();
    pending().await
}

/// Tells the client how the process ended (RFC 4254 section 6.10).
pub(super) async fn report(
    connection: &Connection,
    writer: &ChannelWriteHalf<Msg>,
    status: ExitStatus,
) {
    match (status.code(), status.signal()) {
        (Some(code), _) => {
            let _ = writer.exit_status(code.cast_unsigned()).await;
        }
        (None, Some(signal)) => {
            let name = signals::from_kernel(signal);
            let core = status.core_dumped();
            let _ = connection
                .handle
                .exit_signal_request(writer.id(), name, core, String::new(), String::new())
                .await;
        }
        (None, None) => {}
    }
}
