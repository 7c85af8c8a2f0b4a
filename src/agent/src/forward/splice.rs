//! A channel and a socket of the environment, joined ([`vendetta_sshio::splice`]).

use std::time::Duration;

use russh::Channel;
use russh::server::Msg;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vendetta_sshio::splice::{self, End};

use crate::connection::Connection;

/// How long the socket may take the data that came before the client's CLOSE.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Splices a TCP connection.
pub async fn tcp(
    connection: &Connection,
    mut stream: TcpStream,
    channel: Channel<Msg>,
    closed: CancellationToken,
) {
    let (from_socket, to_socket) = stream.split();
    if splice(connection, from_socket, to_socket, channel, closed).await == End::Broken {
        let _ = stream.set_zero_linger();
    }
}

/// Splices a unix socket.
pub async fn unix(
    connection: &Connection,
    mut stream: UnixStream,
    channel: Channel<Msg>,
    closed: CancellationToken,
) {
    let (from_socket, to_socket) = stream.split();
    splice(connection, from_socket, to_socket, channel, closed).await;
}

async fn splice(
    connection: &Connection,
    from_socket: impl AsyncRead + Unpin,
    to_socket: impl AsyncWrite + Unpin,
    channel: Channel<Msg>,
    closed: CancellationToken,
) -> End {
    let given_up = async {
        tokio::select! {
            () = connection.gone.cancelled() => {}
            () = async { closed.cancelled().await; sleep(DRAIN_TIMEOUT).await } => {}
        }
    };
    splice::splice(from_socket, to_socket, channel, given_up).await
}
