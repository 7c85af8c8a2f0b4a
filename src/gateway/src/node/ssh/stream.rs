//! A byte stream through a node's connection, which fails when that is lost.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use russh::client::Msg;
use russh::{Channel, ChannelStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;

/// A byte stream through a node's connection. russh ends its streams in the
/// same way whether the other side has finished or the connection is gone;
/// this one tells the two apart.
pub(super) struct LinkStream {
    stream: ChannelStream<Msg>,
    connection: Arc<Connection>,
    finished: bool,
}

impl LinkStream {
    /// The stream that `channel` of `connection` carries.
    pub(super) fn new(channel: Channel<Msg>, connection: Arc<Connection>) -> Self {
        Self {
            stream: channel.into_stream(),
            connection,
            finished: false,
        }
    }

    fn lost(&self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionReset, self.connection.lost())
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let ended = buffer.filled().len() == before && buffer.remaining() > 0;
        if ended && !self.finished {
            if self.connection.life().ended().is_some() {
                return Poll::Ready(Err(self.lost()));
            }
            self.finished = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, data));
        Poll::Ready(match written {
            Err(_) if self.connection.life().ended().is_some() => Err(self.lost()),
            other => other,
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
