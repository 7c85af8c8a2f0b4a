//! RUNNING, when what runs outlives its client ([`crate::terminal`]).

use std::future::pending;

use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::mpsc;
use vendetta_proto::TerminalName;
use vendetta_sshio::control::{Events, Size};

use super::run::{self, report, say_goodbye};
use super::setup::{Program, Setup, refuse_late};
use super::signals;
use crate::connection::Connection;
use crate::terminal::{self, OUTPUTS, Order, Output, Reach};

/// Shows the terminal `name` to the client, which starts it if it is the first, until
/// either ends.
pub async fn run(
    connection: &Connection,
    mut reader: ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    mut events: Events,
    setup: Setup,
    name: &TerminalName,
) {
    let size = setup.terminal.as_ref().map(|(_, opened)| opened.size);
    let size = size.unwrap_or_default();
    let reach = match reach(connection, setup, size, name) {
        Ok(reach) => reach,
        Err(problem) => {
            run::refuse(writer, &problem).await;
            return;
        }
    };
    let (sender, mut output) = mpsc::channel(OUTPUTS);
    let attach = Order::Attach {
        size,
        output: sender,
    };
    let attached = tokio::select! {
        sent = reach.orders.send(attach) => sent.is_ok(),
        () = connection.gone.cancelled() => return,
        () = events.closed.cancelled() => return,
    };
    if !attached {
        run::refuse(writer, "the terminal has just ended; connect again").await;
        return;
    }
    let shown = async {
        while let Some(output) = output.recv().await {
            match output {
                Output::Data(data) => {
                    if writer.data_bytes(data).await.is_err() {
                        break;
                    }
                }
                Output::Ended(status) => {
                    report(connection, writer, status).await;
                    break;
                }
                Output::Stopping => {
                    say_goodbye(connection, writer).await;
                    break;
                }
            }
        }
        let _ = writer.eof().await;
    };
    let typed = async {
        while let Some(message) = reader.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    let _ = reach.typed.send(data).await;
                }
                message => refuse_late(connection, writer.id(), &message).await,
            }
        }
        pending::<()>().await;
    };
    let controlled = async {
        loop {
            let order = tokio::select! {
                Some(signal) = events.signals.recv() => match signals::to_kernel(&signal) {
                    Some(signal) => Order::Signal(signal),
                    None => continue,
                },
                Ok(()) = events.size.changed() => {
                    Order::Resize(*events.size.borrow_and_update())
                }
                else => pending().await,
            };
            let _ = reach.orders.send(order).await;
        }
    };
    tokio::select! {
        () = shown => {}
        () = typed => {}
        () = controlled => {}
        () = connection.gone.cancelled() => {}
        () = events.closed.cancelled() => {}
    }
}

/// Where the terminal is reached; it is started if it is not there.
fn reach(
    connection: &Connection,
    mut setup: Setup,
    size: Size,
    name: &TerminalName,
) -> Result<Reach, String> {
    let (agent, user) = (&connection.agent, &connection.user);
    let owner = (user.uid, user.name.to_string_lossy().into_owned());
    agent.terminals.find_or_start(agent, owner, name, || {
        let (child, streams) = run::start(connection, &mut setup, Program::Shell)?;
        let run::Streams::Terminal(master) = streams else {
            return Err("a terminal is kept for who has one: ssh -t".to_owned());
        };
        Ok(terminal::Program {
            master,
            child,
            size,
        })
    })
}
