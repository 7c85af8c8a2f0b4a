//! A channel and a socket, joined.
//!
//! Each direction ends on its own: EOF of the channel shuts the socket down for
//! writing, end of the socket's data sends EOF. The channel is closed when both
//! have ended. Whatever else ends it (a reset, CLOSE before EOF, a lost
//! connection) reaches the other side as a break and not as an orderly end: the
//! TCP peer gets a RST, so that it does not take a truncated stream for a whole one.

use std::time::Duration;

use bytes::BytesMut;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;

/// First size of a read buffer.
const SMALL_READ: usize = 8 * 1024;
/// Its size once a stream fills it.
const LARGE_READ: usize = 256 * 1024;

/// How long the socket may take the data that came before the client's CLOSE.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How a splice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    Broken,
}

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
    let (mut reader, writer) = channel.split();
    // The socket takes no more data.
    let deaf = CancellationToken::new();
    let both = async {
        let outward = socket_to_channel(from_socket, &writer);
        let inward = channel_to_socket(&mut reader, to_socket, &deaf);
        tokio::pin!(outward, inward);
        tokio::select! {
            end = &mut outward => {
                if end == End::Orderly {
                    tokio::select! {
                        _ = inward => {}
                        () = deaf.cancelled() => {}
                    }
                }
                end
            }
            end = &mut inward => match end {
                End::Orderly => outward.await,
                End::Broken => End::Broken,
            },
        }
    };
    let end = tokio::select! {
        end = both => end,
        () = connection.gone.cancelled() => End::Broken,
        () = async { closed.cancelled().await; sleep(DRAIN_TIMEOUT).await } => End::Broken,
    };
    let _ = writer.close().await;
    end
}

async fn socket_to_channel(mut from: impl AsyncRead + Unpin, to: &ChannelWriteHalf<Msg>) -> End {
    let mut size = SMALL_READ;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(size);
        match from.read_buf(&mut buffer).await {
            Ok(0) => {
                let _ = to.eof().await;
                return End::Orderly;
            }
            Ok(read) => {
                if to.data_bytes(buffer.split().freeze()).await.is_err() {
                    return End::Broken;
                }
                if read >= size && size < LARGE_READ {
                    size *= 2;
                }
            }
            Err(_) => return End::Broken,
        }
    }
}

/// When the socket takes no more data, the rest is dropped: it may still have
/// an answer to give.
async fn channel_to_socket(
    from: &mut ChannelReadHalf,
    mut to: impl AsyncWrite + Unpin,
    deaf: &CancellationToken,
) -> End {
    loop {
        match from.wait().await {
            Some(ChannelMsg::Data { data }) => {
                if !deaf.is_cancelled() && to.write_all(&data).await.is_err() {
                    deaf.cancel();
                }
            }
            Some(ChannelMsg::Eof) => {
                let _ = to.shutdown().await;
                return End::Orderly;
            }
            Some(ChannelMsg::Close) | None => return End::Broken,
            Some(_) => {}
        }
    }
}
