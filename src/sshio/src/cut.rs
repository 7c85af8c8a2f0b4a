//! A stream that can be cut: the way to end a connection whose other end takes
//! nothing any more, and whatever state it is in.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A stream that reads as failed once its token is cancelled.
pub struct Cut<S> {
    stream: S,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Cut<S> {
    /// Wraps `stream`, which `end` ends.
    pub fn new(stream: S, end: CancellationToken) -> Self {
        Self {
            stream,
            ended: Box::pin(end.cancelled_owned()),
        }
    }

    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cut<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cut<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_read_that_waits_fails_when_the_stream_is_cut() {
        let (mut other, stream) = tokio::io::duplex(64);
        let end = CancellationToken::new();
        let mut stream = Cut::new(stream, end.clone());
        other.write_all(b"data").await.unwrap();
        let mut place = [0; 4];
        stream.read_exact(&mut place).await.unwrap();
        let (read, ()) = tokio::join!(stream.read(&mut place), async { end.cancel() });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
