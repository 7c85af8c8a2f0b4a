//! A channel and a socket, joined.
//!
//! Each direction ends on its own: EOF of the channel shuts the socket down for
//! writing, end of the socket's data sends EOF. The channel is closed when both
//! have ended; one that its other end has closed is as good as ended, once what
//! came before is delivered. Whatever else ends it (a reset, CLOSE before EOF, a lost
//! connection) is a break and not an orderly end: a caller with a TCP socket
//! resets it, so that its peer does not take a truncated stream for a whole one.

use std::time::Duration;

use bytes::BytesMut;
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long a socket's peer may send to a channel that is closed, and read the
/// end of what it was sent.
const LINGER: Duration = Duration::from_secs(5);

/// First size of a read buffer.
const SMALL_READ: usize = 8 * 1024;
/// Its size once a stream fills it.
const LARGE_READ: usize = 256 * 1024;

/// How a splice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Each side has said that it sends no more.
    Orderly,
    /// Otherwise.
    Broken,
}

/// Joins them until both directions have ended, one breaks, or `given_up` returns.
pub async fn splice<M>(
    from_socket: impl AsyncRead + Unpin,
    to_socket: impl AsyncWrite + Unpin,
    channel: Channel<M>,
    given_up: impl Future<Output = ()>,
) -> End
where
    M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
{
    let (mut reader, writer) = channel.split();
    // The socket takes no more data.
    let deaf = CancellationToken::new();
    // The channel takes no more data.
    let closed = CancellationToken::new();
    let both = async {
        let outward = socket_to_channel(from_socket, &writer, &closed);
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
                End::Orderly => tokio::select! {
                    end = outward => end,
                    () = async { closed.cancelled().await; sleep(LINGER).await } => End::Broken,
                },
                End::Broken => End::Broken,
            },
        }
    };
    let end = tokio::select! {
        end = both => end,
        () = given_up => End::Broken,
    };
    let _ = writer.close().await;
    end
}

/// When the channel takes no more data, the rest is dropped: what its other end
/// sent before it closed is still to be delivered, and a socket that is closed
/// with unread data resets its peer.
async fn socket_to_channel<M>(
    mut from: impl AsyncRead + Unpin,
    to: &ChannelWriteHalf<M>,
    closed: &CancellationToken,
) -> End
where
    M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
{
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
                let data = buffer.split().freeze();
                if !closed.is_cancelled() && to.data_bytes(data).await.is_err() {
                    closed.cancel();
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
