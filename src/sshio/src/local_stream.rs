//! A connection over a unix socket that is woken only for what it waits for.
//!
//! tokio watches its sockets for reading and writing from the start. On a unix
//! socket the kernel then wakes the sender whenever the receiver has taken
//! something, so that each message costs a wake-up of each end. This one is
//! watched for reading, and for writing only while a write has to wait.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The connection.
#[derive(Debug)]
pub struct LocalStream {
    read: AsyncFd<UnixStream>,
    /// The same socket, watched for writing.
    write: Option<AsyncFd<UnixStream>>,
}

/// Watches a socket for one thing.
#[allow(unsafe_code)]
fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a UnixStream owns one open descriptor as long as it lives, and is not replaced within.
    unsafe { AsyncFd::register_with_interest(stream, interest) }.map_err(io::Error::from)
}

impl LocalStream {
    /// Takes over a connected socket that does not block.
    ///
    /// # Errors
    /// When it cannot be watched by this runtime.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self {
            read: watch(stream, Interest::READABLE)?,
            write: None,
        })
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.read.poll_read_ready(context))?;
            let place = buffer.initialize_unfilled();
            let wanted = place.len();
            match guard.get_inner().read(place) {
                Ok(read) => {
                    // Less than was wanted: that was all there was (epoll(7), question 9).
                    if read > 0 && read < wanted {
                        guard.clear_ready();
                    }
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            match this.read.get_ref().write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => {
                    this.write = None;
                    return Poll::Ready(done);
                }
            }
            let writable = match &mut this.write {
                Some(watched) => watched,
                none => {
                    let same = this.read.get_ref().try_clone()?;
                    none.insert(watch(same, Interest::WRITABLE)?)
                }
            };
            // It was a moment ago; whether it still is, the next write tells.
            ready!(writable.poll_write_ready(context))?.clear_ready();
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.read.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (LocalStream, LocalStream) {
        let (one, other) = tokio::net::UnixStream::pair().unwrap();
        let new = |stream: tokio::net::UnixStream| LocalStream::new(stream.into_std().unwrap());
        (new(one).unwrap(), new(other).unwrap())
    }

    #[tokio::test]
    async fn megabytes_go_both_ways_at_once_and_end() {
        let (one, other) = pair();
        let data: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
        let side = |stream: LocalStream, data: Vec<u8>| async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let sent = data.clone();
            let writing = tokio::spawn(async move {
                for piece in sent.chunks(70_000) {
                    write.write_all(piece).await.unwrap();
                }
                write.shutdown().await.unwrap();
                write
            });
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            assert!(got == data);
            writing.await.unwrap();
        };
        tokio::join!(side(one, data.clone()), side(other, data));
    }

    #[tokio::test]
    async fn a_write_waits_for_a_reader_and_a_read_for_a_writer() {
        let (mut one, mut other) = pair();
        let mut place = [0; 4];
        let nothing = tokio::time::timeout(Duration::from_millis(50), other.read(&mut place));
        assert!(nothing.await.is_err());
        let flood = tokio::spawn(async move {
            one.write_all(&vec![7; 2_000_000]).await.unwrap();
            one
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!flood.is_finished(), "more than the socket takes");
        let mut all = vec![0; 2_000_000];
        other.read_exact(&mut all).await.unwrap();
        assert!(all.iter().all(|byte| *byte == 7));
        drop(flood.await.unwrap());
        assert_eq!(other.read(&mut place).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_to_write_to() {
        let (mut one, other) = pair();
        drop(other);
        assert!(one.write_all(b"x").await.is_err());
    }
}
