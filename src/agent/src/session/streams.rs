//! Between a channel and the streams of a process.
//!
//! Output is read only when what was read before has gone into the channel's
//! window, so a client that does not read stops its own process and costs one
//! buffer.

use std::io;
use std::os::fd::AsFd;

use bytes::BytesMut;
use nix::fcntl::{FcntlArg, fcntl};
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::net::unix::pipe;

use super::pty::Master;

/// First size of a read buffer: an answer of a few lines fits.
const SMALL_READ: usize = 16 * 1024;
/// Size of a read buffer, and of a pipe, once a stream fills them.
const LARGE_READ: usize = 256 * 1024;

/// SSH_EXTENDED_DATA_STDERR (RFC 4254 section 5.2).
pub const STDERR: u32 = 1;

/// Which of the channel's streams output goes to.
#[derive(Debug, Clone, Copy)]
pub enum Stream {
    /// Ordinary data.
    Output,
    /// Extended data.
    Error,
}

async fn send(
    writer: &ChannelWriteHalf<Msg>,
    stream: Stream,
    data: bytes::Bytes,
) -> Result<(), russh::Error> {
    match stream {
        Stream::Output => writer.data_bytes(data).await,
        Stream::Error => writer.extended_data_bytes(STDERR, data).await,
    }
}

/// Lets a busy pipe hold as much as one large read. Refused beyond the user's
/// allowance (pipe(7)), which only makes it slower.
pub fn widen(pipe: impl AsFd) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(LARGE_READ as i32));
}

/// Sends everything from `pipe` until its end, or until the channel takes no more.
pub async fn pump_pipe(pipe: pipe::Receiver, writer: &ChannelWriteHalf<Msg>, stream: Stream) {
    let mut size = SMALL_READ;
    let mut buffer = BytesMut::new();
    loop {
        if pipe.readable().await.is_err() {
            return;
        }
        buffer.reserve(size);
        match pipe.try_read_buf(&mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                if send(writer, stream, buffer.split().freeze()).await.is_err() {
                    return;
                }
                if read >= size && size < LARGE_READ {
                    if size == SMALL_READ {
                        widen(&pipe);
                    }
                    size *= 4;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Sends everything that appears on the terminal.
pub async fn pump_terminal(master: &Master, writer: &ChannelWriteHalf<Msg>) {
    let mut buffer = vec![0; SMALL_READ];
    loop {
        match master.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                let data = bytes::Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
                if send(writer, Stream::Output, data).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Where a client's data goes.
#[derive(Debug)]
pub enum Input<'a> {
    /// A pipe; none once it is closed.
    Pipe(Option<pipe::Sender>),
    /// A terminal, which has no end of input of its own.
    Terminal(&'a Master),
}

impl Input<'_> {
    /// Gives `data` to the process. False, once, when it takes no more: then
    /// the stream is closed and later data is dropped, as for a local pipe.
    pub async fn write(&mut self, data: &[u8]) -> bool {
        let written = match self {
            Self::Pipe(None) => Ok(()),
            Self::Pipe(Some(pipe)) => write_pipe(pipe, data).await,
            Self::Terminal(master) => master.write_all(data).await,
        };
        if written.is_err() {
            self.end();
        }
        written.is_ok()
    }

    /// Sends a break (RFC 4335); false when there is no terminal.
    pub fn send_break(&self) -> bool {
        match self {
            Self::Pipe(_) => false,
            Self::Terminal(master) => master.send_break(),
        }
    }

    /// The client sends no more.
    pub fn end(&mut self) {
        if let Self::Pipe(pipe) = self {
            *pipe = None;
        }
    }
}

async fn write_pipe(pipe: &pipe::Sender, mut data: &[u8]) -> io::Result<()> {
    let mut widened = data.len() < SMALL_READ;
    while !data.is_empty() {
        match pipe.try_write(data) {
            Ok(written) => data = data.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !widened {
                    widen(pipe);
                    widened = true;
                    continue;
                }
                pipe.writable().await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
