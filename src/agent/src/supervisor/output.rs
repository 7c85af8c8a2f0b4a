//! From the output of a process to its log, line by line.
//!
//! What was read is written before more is read, so a service that writes
//! faster than the disk waits in its own write(2), as at any full pipe.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use vendetta_proto::rpc::Stream;

use crate::logs::{Batch, Log, Splitter, wall_clock};

/// Size of one read, in bytes: that of a pipe.
const READ: usize = 64 * 1024;

/// One stream of a process.
struct Source {
    stream: Stream,
    pipe: Option<pipe::Receiver>,
    splitter: Splitter,
    buffer: BytesMut,
}

impl Source {
    fn new(stream: Stream, pipe: pipe::Receiver) -> Self {
        Self {
            stream,
            pipe: Some(pipe),
            splitter: Splitter::default(),
            buffer: BytesMut::new(),
        }
    }

    /// Waits for data, or the end of it. Nothing is lost when this is dropped.
    async fn read(&mut self) {
        if let Some(pipe) = &mut self.pipe {
            self.buffer.reserve(READ);
            if !matches!(pipe.read_buf(&mut self.buffer).await, Ok(1..)) {
                self.pipe = None;
            }
        }
    }

    /// Moves what was read into `batch`, as lines.
    fn take(&mut self, batch: &mut Batch) {
        let time = wall_clock();
        let stream = self.stream;
        self.splitter
            .push(&self.buffer, |line| batch.push(time, stream, line));
        self.buffer.clear();
        if self.pipe.is_none() {
            self.splitter.end(|line| batch.push(time, stream, line));
        }
    }
}

/// Writes all that comes from both pipes, until nobody holds their other ends.
pub async fn keep(log: Arc<Log>, stdout: pipe::Receiver, stderr: pipe::Receiver) {
    let mut stdout = Source::new(Stream::Stdout, stdout);
    let mut stderr = Source::new(Stream::Stderr, stderr);
    while stdout.pipe.is_some() || stderr.pipe.is_some() {
        tokio::select! {
            () = stdout.read(), if stdout.pipe.is_some() => {}
            () = stderr.read(), if stderr.pipe.is_some() => {}
        }
        let mut batch = Batch::default();
        stdout.take(&mut batch);
        stderr.take(&mut batch);
        if !batch.is_empty() {
            let log = Arc::clone(&log);
            let _ = tokio::task::spawn_blocking(move || log.append(&batch)).await;
        }
    }
}
