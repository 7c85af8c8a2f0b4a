//! RUNNING, when what runs is SFTP and needs no process ([`crate::sftp::ChannelServer`]).

use futures::FutureExt as _;
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use vendetta_sshio::control::Events;

use super::program::directories;
use super::setup::refuse_late;
use crate::connection::Connection;
use crate::sftp::{ChannelServer, is_local};

/// Exit status of a server whose client does not speak SFTP.
const EXIT_PROTOCOL: u32 = 1;

/// Whether the agent itself can serve this connection's user.
pub fn serves(connection: &Connection) -> bool {
    connection.user.uid == nix::unistd::geteuid().as_raw() && is_local()
}

/// Serves until the client has no more to ask, or is gone.
pub async fn run(
    connection: &Connection,
    reader: ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    events: Events,
) {
    let status = tokio::select! {
        biased;
        () = connection.gone.cancelled() => return,
        () = events.closed.cancelled() => return,
        () = connection.agent.stopping.cancelled() => return,
        status = serve(connection, reader, writer) => status,
    };
    let _ = writer.exit_status(status).await;
    let _ = writer.eof().await;
}

async fn serve(
    connection: &Connection,
    mut reader: ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
) -> u32 {
    let directory = directories(connection).find(|path| path.is_dir());
    let home = connection.user.home.clone();
    let mut server = ChannelServer::new(directory.unwrap_or_default(), home);
    loop {
        let Some(message) = reader.wait().await else {
            return 0;
        };
        let mut next = Some(message);
        let mut ended = false;
        // With what else has come, so that many requests get one answer.
        while let Some(message) = next {
            match message {
                ChannelMsg::Data { data } => server.push(&data),
                ChannelMsg::Eof | ChannelMsg::Close => ended = true,
                message => refuse_late(connection, writer.id(), &message).await,
            }
            next = if ended {
                None
            } else {
                reader.wait().now_or_never().flatten()
            };
        }
        loop {
            match server.answer().await {
                Ok(answers) if answers.is_empty() => break,
                Ok(answers) => {
                    if writer.data_bytes(answers).await.is_err() {
                        return 0;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "sftp");
                    return EXIT_PROTOCOL;
                }
            }
        }
        if ended {
            return 0;
        }
    }
}
