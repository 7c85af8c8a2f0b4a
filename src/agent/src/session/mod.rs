//! A session channel (RFC 4254 section 6): requests, then one process.
//!
//! ```text
//!   SETUP ── shell | exec | subsystem ──▶ RUNNING ── exit, output drained ──▶ DONE
//!     │                                     │
//!     └── CLOSE, connection gone ──▶ DONE ◀─┴── CLOSE, connection gone: process group hung up
//! ```
//!
//! What let go of the session's streams is not hung up: sshd leaves it alone, and
//! an editor's server must be there for the client that comes back.
//!
//! In SETUP requests are answered in order. In RUNNING the only requests that
//! still mean something are window-change and signal.

mod modes;
mod program;
mod pty;
mod run;
mod setup;
mod sftp;
mod signals;
mod streams;
mod terminal;

pub use pty::Master;
pub use vendetta_sshio::control::Size;

use std::sync::Arc;

use russh::Channel;
use russh::server::Msg;
use vendetta_sshio::control::Events;

use crate::connection::Connection;
use crate::rpc;
use setup::{Program, Requested};

/// Serves one session channel to its end.
pub async fn serve(connection: Arc<Connection>, channel: Channel<Msg>, events: Events) {
    let (mut reader, writer) = channel.split();
    if let Some((setup, requested)) = setup::receive(&connection, &mut reader, writer.id()).await {
        match requested {
            Requested::Rpc => rpc::serve(&connection, reader, &writer, &events.closed).await,
            Requested::Process(Program::Sftp)
                if !setup.input_ended && sftp::serves(&connection) =>
            {
                sftp::run(&connection, reader, &writer, events).await;
            }
            Requested::Process(Program::Shell)
                if let Some(name) = connection.terminal.as_ref()
                    && setup.terminal.is_some() =>
            {
                terminal::run(&connection, reader, &writer, events, setup, name).await;
            }
            Requested::Process(program) => {
                run::run(&connection, reader, &writer, events, setup, program).await;
            }
        }
    }
    let _ = writer.close().await;
}
