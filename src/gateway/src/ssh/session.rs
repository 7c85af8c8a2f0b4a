//! Session channels: bridged to an environment, or running a control command.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, server};
use tokio::io::{AsyncWriteExt, SimplexStream, WriteHalf};
use tokio::sync::watch;
use vendetta_sshio::relay::{self, ClientSide};
use vendetta_sshio::request::{answer, wants_reply};

use super::attach;
use super::environment::{Environment, stderr_line};
use super::reach::LinkError;
use super::shared::Shared;
use crate::control::{AgentAccess, ByteStream, Caller, Control, Io, Outcome, TerminalSize};

/// How long a client may take to say what it wants of a session that fails,
/// and to close one that has ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of standard input that wait for a control command.
const STDIN_BUFFER: usize = 64 * 1024;

/// Exit status of a command whose output nobody reads any more: that of a
/// program which SIGPIPE ended.
const EXIT_UNREAD: u8 = 141;

/// SSH_EXTENDED_DATA_STDERR (RFC 4254 section 5.2).
pub(super) const STDERR: u32 = 1;

/// Serves a session in an environment, bringing it up first if need be.
pub async fn workspace(side: ClientSide, environment: Environment) {
    let _in_use = environment.in_use();
    let mut stderr = side.channel.make_writer_ext(Some(STDERR));
    match environment.open_session(&mut stderr).await {
        Ok(session) => {
            let side = ClientSide {
                farewell: Some(session.farewell),
                ..side
            };
            relay::bridge(side, session.channel).await;
        }
        Err(error) => refuse(side, &error).await,
    }
}

/// Lets the client ask for its shell, command or subsystem and fails that with
/// `error` on standard error and as exit status.
async fn refuse(side: ClientSide, error: &LinkError) {
    let ClientSide {
        mut channel,
        connection,
        ..
    } = side;
    let id = channel.id();
    let asked = async {
        while let Some(message) = channel.wait().await {
            let start = match &message {
                ChannelMsg::RequestShell { .. }
                | ChannelMsg::Exec { .. }
                | ChannelMsg::RequestSubsystem { .. } => true,
                ChannelMsg::Close => return,
                _ => false,
            };
            let granted = !matches!(message, ChannelMsg::OtherRequest { .. });
            let answered = answer(&connection, id, wants_reply(&message), granted).await;
            if start || answered.is_none() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, asked).await;
    let (read, write) = channel.split();
    finish(read, &write, Some(&error.message), error.exit_code).await;
}

/// Ends a session: message, status, EOF, close, and the client's own close.
async fn finish(
    mut read: ChannelReadHalf,
    write: &ChannelWriteHalf<server::Msg>,
    message: Option<&str>,
    exit_code: u8,
) {
    let end = async {
        if let Some(message) = message {
            write
                .extended_data_bytes(STDERR, stderr_line(message))
                .await?;
        }
        write.exit_status(u32::from(exit_code)).await?;
        write.eof().await?;
        write.close().await?;
        while !matches!(read.wait().await, None | Some(ChannelMsg::Close)) {}
        Ok::<(), russh::Error>(())
    };
    // A client that takes nothing any more ends with its connection.
    let _ = tokio::time::timeout(PATIENCE, end).await;
}

/// What the client asked for on a control channel before it started something.
struct Setup {
    env: BTreeMap<String, String>,
    terminal: Option<(watch::Sender<TerminalSize>, watch::Receiver<TerminalSize>)>,
    agent: bool,
}

enum Start {
    Line(Vec<u8>),
    Shell,
}

/// Serves a session of the control plane. `unknown` is the login name when it
/// was neither a workspace nor a user: then only an exec line that begins with
/// a command is run.
pub async fn control(shared: Shared, side: ClientSide, unknown: Option<String>) {
    let ClientSide {
        mut channel,
        connection,
        events,
        ..
    } = side;
    let mut setup = Setup {
        env: BTreeMap::new(),
        terminal: None,
        agent: false,
    };
    let Some(mut start) = started(&mut channel, &connection, &mut setup, &shared).await else {
        let _ = channel.close().await;
        return;
    };
    if let Some(forced) = &shared.principal.permissions.force_command {
        start = Start::Line(forced.clone().into_bytes());
    }
    let (read, write) = channel.split();
    if let Some(name) = unknown
        && !matches!(&start, Start::Line(line) if Control::is_command(line))
    {
        let message = no_workspace(&shared, &name);
        return finish(read, &write, Some(&message), 3).await;
    }

    if let Start::Line(line) = &start
        && is_transfer(line)
    {
        let message = "files go to a workspace: scp FILE WORKSPACE@HOST:";
        return finish(read, &write, Some(message), 2).await;
    }

    let caller = Caller {
        principal: shared.principal.clone(),
        session_env: setup.env,
        reached: shared.reached,
    };
    let (stdin, stdin_writer) = tokio::io::simplex(STDIN_BUFFER);
    let (resize, terminal) = setup.terminal.unzip();
    let io = Io {
        stdin: Box::new(stdin),
        stdout: Box::new(write.make_writer()),
        stderr: Box::new(write.make_writer_ext(Some(STDERR))),
        terminal,
        agent: setup
            .agent
            .then(|| Arc::new(ClientAgent(connection.clone())) as _),
    };
    let control = shared.services.control.clone();
    let run = async {
        match start {
            Start::Line(line) => control.run(&caller, &line, io).await,
            Start::Shell => control.shell(&caller, io).await,
        }
    };
    let mut answering = Some(shared.answering.read().await);
    let session = async {
        match run.await {
            Outcome::Exit(code) => code,
            Outcome::Attach(attachment) => {
                answering = None;
                attach::run(&shared, &caller, &write, attachment).await
            }
        }
    };
    let mut read = read;
    let exit_code = tokio::select! {
        code = session => code,
        // The client left: it stops watching, the work goes on.
        () = feed(&mut read, (&connection, write.id()), stdin_writer, resize) => return drop(write.close().await),
        () = events.closed.cancelled() => return drop(write.close().await),
        () = events.unread.cancelled() => EXIT_UNREAD,
    };
    finish(read, &write, None, exit_code).await;
}

/// Reads requests up to the one that starts something.
async fn started(
    channel: &mut Channel<server::Msg>,
    connection: &server::Handle,
    setup: &mut Setup,
    shared: &Shared,
) -> Option<Start> {
    let id = channel.id();
    let answer = async |want_reply, granted| answer(connection, id, want_reply, granted).await;
    loop {
        match channel.wait().await? {
            ChannelMsg::SetEnv {
                want_reply,
                variable_name,
                variable_value,
            } => {
                let wanted = is_display_variable(&variable_name);
                if wanted {
                    setup.env.insert(variable_name, variable_value);
                }
                answer(want_reply, wanted).await?;
            }
            ChannelMsg::RequestPty {
                want_reply,
                term,
                col_width,
                row_height,
                ..
            } => {
                let allowed = shared.principal.permissions.pty;
                if allowed {
                    setup.env.insert("TERM".to_owned(), term);
                    setup.terminal = Some(watch::channel(size(col_width, row_height)));
                }
                answer(want_reply, allowed).await?;
            }
            ChannelMsg::WindowChange {
                col_width,
                row_height,
                ..
            } => {
                if let Some((resize, _)) = &setup.terminal {
                    resize.send_replace(size(col_width, row_height));
                }
            }
            ChannelMsg::RequestX11 { want_reply, .. } => answer(want_reply, false).await?,
            // A command uses it to open a node (`ssh -A vendetta node add`).
            ChannelMsg::AgentForward { want_reply } => {
                setup.agent = shared.principal.permissions.agent_forwarding;
                answer(want_reply, setup.agent).await?;
            }
            ChannelMsg::Exec {
                want_reply,
                command,
            } => {
                answer(want_reply, true).await?;
                return Some(Start::Line(command));
            }
            ChannelMsg::RequestSubsystem { want_reply, name } => {
                answer(want_reply, true).await?;
                return Some(Start::Line(name.into_bytes()));
            }
            ChannelMsg::RequestShell { want_reply } => {
                answer(want_reply, true).await?;
                return Some(Start::Shell);
            }
            ChannelMsg::Close => return None,
            other => answer(wants_reply(&other), false).await?,
        }
    }
}

/// The agent of a client that forwards it (OpenSSH PROTOCOL.agent).
struct ClientAgent(server::Handle);

impl std::fmt::Debug for ClientAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientAgent")
    }
}

#[async_trait]
impl AgentAccess for ClientAgent {
    async fn open(&self) -> io::Result<Box<dyn ByteStream>> {
        let channel = self.0.channel_open_agent().await;
        Ok(Box::new(channel.map_err(io::Error::other)?.into_stream()))
    }
}

/// Whether a client wants to copy files: with the subsystem of sftp and scp, or
/// what scp -O and rsync run at the far end.
fn is_transfer(line: &[u8]) -> bool {
    let begins = [&b"scp -"[..], b"rsync --server"];
    line == b"sftp" || begins.iter().any(|words| line.starts_with(words))
}

/// The variables that decide how output looks; no others reach a control command.
fn is_display_variable(name: &str) -> bool {
    matches!(name, "LANG" | "TERM" | "COLORTERM" | "NO_COLOR" | "COLUMNS")
        || name.starts_with("LC_")
}

fn size(columns: u32, rows: u32) -> TerminalSize {
    // A terminal of no size (0x0, as emacs says) is taken for the traditional one.
    let or = |given: u32, default: u16| match u16::try_from(given) {
        Ok(0) | Err(_) => default,
        Ok(given) => given,
    };
    TerminalSize {
        columns: or(columns, 80),
        rows: or(rows, 24),
    }
}

/// Feeds a control command until the client closes or is gone, and refuses
/// requests that come too late.
async fn feed(
    read: &mut ChannelReadHalf,
    (connection, id): (&server::Handle, ChannelId),
    stdin: WriteHalf<SimplexStream>,
    resize: Option<watch::Sender<TerminalSize>>,
) {
    let mut stdin = Some(stdin);
    while let Some(message) = read.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                // The command may have stopped reading; the rest is dropped.
                if let Some(writer) = &mut stdin
                    && writer.write_all(&data).await.is_err()
                {
                    stdin = None;
                }
            }
            ChannelMsg::Eof => {
                if let Some(mut writer) = stdin.take() {
                    let _ = writer.shutdown().await;
                }
            }
            ChannelMsg::WindowChange {
                col_width,
                row_height,
                ..
            } => {
                if let Some(resize) = &resize {
                    resize.send_replace(size(col_width, row_height));
                }
            }
            ChannelMsg::Close => return,
            late => {
                if answer(connection, id, wants_reply(&late), false)
                    .await
                    .is_none()
                {
                    return;
                }
            }
        }
    }
}

/// The same for a workspace that does not exist and one that is not the caller's.
pub(super) fn no_workspace(shared: &Shared, name: &str) -> String {
    let names = shared.services.workspaces.names(&shared.principal);
    match vendetta_proto::nearest(name, &names) {
        Some(nearest) => format!(
            "no workspace {name:?}; did you mean {:?}?",
            nearest.as_str()
        ),
        None => {
            format!("no workspace {name:?}\nlist yours with: ssh vendetta workspace list")
        }
    }
}
