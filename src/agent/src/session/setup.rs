//! The requests before a process runs.

use std::sync::Arc;

use russh::{ChannelId, ChannelMsg, ChannelReadHalf};
use vendetta_proto::agent::ORIGINAL_COMMAND;
use vendetta_proto::rpc::SUBSYSTEM;
use vendetta_sshio::control::Size;
use vendetta_sshio::request::{answer, wants_reply};

use super::pty::{self, Opened};
use crate::admission::Peer;
use crate::connection::Connection;
use crate::environment::ClientVariables;
use crate::forward::agent_socket;
use crate::forward::x11::{self, Display};

/// What a client asked for before it started a process.
#[derive(Debug, Default)]
pub struct Setup {
    /// Variables it set.
    pub variables: ClientVariables,
    /// Its terminal: type, and our pseudo-terminal.
    pub terminal: Option<(String, Opened)>,
    /// It wants its ssh-agent reached from here.
    pub agent: bool,
    /// Its display.
    pub display: Option<Display>,
    /// It sent EOF already.
    pub input_ended: bool,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// The user's login shell.
    Shell,
    /// A command for the user's shell; any bytes.
    Command(Vec<u8>),
    /// The SFTP server.
    Sftp,
}

/// What the channel is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requested {
    /// A process.
    Process(Program),
    /// What the gateway asks of the agent itself.
    Rpc,
}

/// Answers requests until one says what the channel is for; none when the channel, or the
/// environment, ends before.
pub async fn receive(
    connection: &Arc<Connection>,
    reader: &mut ChannelReadHalf,
    id: ChannelId,
) -> Option<(Setup, Requested)> {
    let mut setup = Setup::default();
    loop {
        let message = tokio::select! {
            message = reader.wait() => message?,
            () = connection.agent.stopping.cancelled() => return None,
        };
        let (want_reply, accepted) = match message {
            ChannelMsg::SetEnv {
                want_reply,
                variable_name,
                variable_value,
            } => {
                let variables = &mut setup.variables;
                let accepted = match connection.peer {
                    // The gateway's own word: it lets none of a client's through.
                    Peer::Client if variable_name == ORIGINAL_COMMAND => {
                        variables.set_original_command(variable_value)
                    }
                    _ => variables.set(variable_name, variable_value),
                };
                (want_reply, accepted)
            }
            ChannelMsg::RequestPty {
                want_reply,
                term,
                col_width,
                row_height,
                pix_width,
                pix_height,
                terminal_modes,
            } => {
                let size = Size {
                    columns: col_width,
                    rows: row_height,
                    width: pix_width,
                    height: pix_height,
                };
                let tty_group = connection.agent.users.group_id("tty");
                let opened = match setup.terminal {
                    Some(_) => Err(std::io::Error::other("the session has one already")),
                    None => pty::open(&connection.user, tty_group, &terminal_modes, size),
                };
                let accepted = match opened {
                    Ok(opened) => {
                        setup.terminal = Some((term, opened));
                        true
                    }
                    Err(error) => {
                        tracing::warn!("cannot open a pseudo-terminal: {error}");
                        false
                    }
                };
                (want_reply, accepted)
            }
            ChannelMsg::RequestShell { want_reply } => {
                reply(connection, id, want_reply, true).await;
                return Some((setup, Requested::Process(Program::Shell)));
            }
            ChannelMsg::Exec {
                want_reply,
                command,
            } => {
                reply(connection, id, want_reply, true).await;
                return Some((setup, Requested::Process(Program::Command(command))));
            }
            ChannelMsg::RequestSubsystem { want_reply, name } => {
                let requested = match name.as_str() {
                    "sftp" => Some(Requested::Process(Program::Sftp)),
                    SUBSYSTEM if connection.peer == Peer::Gateway => Some(Requested::Rpc),
                    _ => None,
                };
                reply(connection, id, want_reply, requested.is_some()).await;
                match requested {
                    Some(requested) => return Some((setup, requested)),
                    None => continue,
                }
            }
            ChannelMsg::RequestX11 {
                want_reply,
                single_connection,
                x11_authentication_protocol,
                x11_authentication_cookie,
                x11_screen_number,
            } => {
                let request = x11::Request {
                    single: single_connection,
                    protocol: x11_authentication_protocol,
                    cookie: x11_authentication_cookie,
                    screen: x11_screen_number,
                };
                match x11::serve(connection, request).await {
                    Ok(display) => setup.display = Some(display),
                    Err(error) => tracing::warn!("cannot forward X11: {error}"),
                }
                (want_reply, setup.display.is_some())
            }
            ChannelMsg::OtherRequest { want_reply, .. } => (want_reply, false),
            ChannelMsg::AgentForward { want_reply } => {
                let socket = connection
                    .agent_socket
                    .get_or_try_init(|| agent_socket::serve(connection))
                    .await;
                if let Err(error) = &socket {
                    tracing::warn!("cannot forward the client's agent: {error}");
                }
                setup.agent |= socket.is_ok();
                (want_reply, socket.is_ok())
            }
            ChannelMsg::Eof => {
                setup.input_ended = true;
                continue;
            }
            ChannelMsg::Close => return None,
            // Data before a program has nowhere to go; sizes and signals come through Control.
            _ => continue,
        };
        reply(connection, id, want_reply, accepted).await;
    }
}

/// Refuses a request that comes when the program runs already.
pub async fn refuse_late(connection: &Connection, id: ChannelId, message: &ChannelMsg) {
    reply(connection, id, wants_reply(message), false).await;
}

/// Answers a request if the client wants an answer.
pub async fn reply(connection: &Connection, id: ChannelId, want_reply: bool, accepted: bool) {
    let _ = answer(&connection.handle, id, want_reply, accepted).await;
}
