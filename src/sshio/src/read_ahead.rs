//! Reading ahead of an SSH connection, which asks for a packet's first bytes
//! and then for the rest: two system calls a packet without it.
//!
//! The buffer starts small and doubles while reads fill it, so that a bulk
//! transfer reads up to [`MAX`] at once and an idle connection holds [`MIN`].
//! A run of small reads, as of somebody typing, shrinks it again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Smallest buffer, in bytes.
const MIN: usize = 4 * 1024;
/// Largest buffer, in bytes.
const MAX: usize = 256 * 1024;
/// Reads in a row that use less than an eighth of the buffer before it is halved.
const SMALL_READS: u8 = 32;

/// A stream with a read buffer that grows and shrinks with its use.
pub struct ReadAhead<S> {
    stream: S,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    small_reads: u8,
}

impl<S> ReadAhead<S> {
    /// Wraps `stream`.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: vec![0; MIN].into_boxed_slice(),
            start: 0,
            end: 0,
            small_reads: 0,
        }
    }

    /// Fits the empty buffer to how much of it the last read used.
    fn resize(&mut self, used: usize) {
        let capacity = self.buffer.len();
        if used == capacity && capacity < MAX {
            self.small_reads = 0;
            self.buffer = vec![0; capacity * 2].into_boxed_slice();
        } else if used < capacity / 8 && capacity > MIN {
            self.small_reads += 1;
            if self.small_reads == SMALL_READS {
                self.small_reads = 0;
                self.buffer = vec![0; capacity / 2].into_boxed_slice();
            }
        } else {
            self.small_reads = 0;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.start == this.end {
            // What the last fill was tells what the next should be.
            let used = this.end;
            (this.start, this.end) = (0, 0);
            if used > 0 {
                this.resize(used);
            }
            if out.remaining() >= this.buffer.len() {
                return Pin::new(&mut this.stream).poll_read(context, out);
            }
            let mut fill = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut fill))?;
            this.end = fill.filled().len();
        }
        let ready = this.buffer.get(this.start..this.end).unwrap_or_default();
        let taken = ready.len().min(out.remaining());
        out.put_slice(ready.get(..taken).unwrap_or_default());
        this.start += taken;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
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
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_whatever_the_sizes(
            writes in prop::collection::vec(1..40_000usize, 1..40),
            reads in prop::collection::vec(1..70_000usize, 1..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut near, far) = tokio::io::duplex(300_000);
                let total: usize = writes.iter().sum();
                let data: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
                let sent = data.clone();
                let writer = tokio::spawn(async move {
                    let mut rest = sent.as_slice();
                    for size in writes {
                        let (now, later) = rest.split_at(size);
                        near.write_all(now).await.unwrap();
                        rest = later;
                    }
                });
                let mut reader = ReadAhead::new(far);
                let mut got = Vec::new();
                for size in reads.iter().cycle() {
                    let mut piece = vec![0; *size];
                    let read = reader.read(&mut piece).await.unwrap();
                    if read == 0 {
                        break;
                    }
                    got.extend_from_slice(&piece[..read]);
                }
                writer.await.unwrap();
                assert!(got == data);
            });
        }
    }

    #[tokio::test]
    async fn bulk_grows_the_buffer_and_typing_shrinks_it() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut reader = ReadAhead::new(far);
        near.write_all(&vec![7; 1 << 20]).await.unwrap();
        let mut all = vec![0; 1 << 20];
        let mut read = 0;
        while read < all.len() {
            let end = (read + 1000).min(all.len());
            reader.read_exact(&mut all[read..end]).await.unwrap();
            read = end;
        }
        assert_eq!(reader.buffer.len(), MAX);
        for _ in 0..10 * usize::from(SMALL_READS) {
            near.write_all(b"x").await.unwrap();
            assert_eq!(reader.read_u8().await.unwrap(), b'x');
        }
        assert_eq!(reader.buffer.len(), MIN);
    }
}
