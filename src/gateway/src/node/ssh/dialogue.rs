//! What is said on the channel of one session.

use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};

use super::super::{Output, Refusal};
use super::capture::{Capture, Marker};
use super::connection::Connection;
use super::trouble::Trouble;

/// How a program ended (RFC 4254 section 6.10).
enum Ended {
    Status(u32),
    Signal,
}

/// What is said on the channel of one session.
pub(super) struct Dialogue {
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    stdout: Capture,
    stderr: Capture,
    status: Option<Ended>,
    refused: bool,
    closed: bool,
}

impl Dialogue {
    /// Nothing so far; the script that is going to run says `marker` first.
    pub(super) fn new(channel: Channel<Msg>, marker: &Marker) -> Self {
        let (read, write) = channel.split();
        Self {
            read,
            write,
            stdout: Capture::new(marker),
            stderr: Capture::new(marker),
            status: None,
            refused: false,
            closed: false,
        }
    }

    /// Has `line` run with `stdin` for its input, and takes what comes until the
    /// server has closed the channel.
    pub(super) async fn run(&mut self, line: String, stdin: Bytes) {
        let write = &self.write;
        let feed = async {
            write.exec(true, line).await?;
            if !stdin.is_empty() {
                write.data_bytes(stdin).await?;
            }
            write.eof().await
        };
        tokio::pin!(feed);
        let mut fed = false;
        while !(self.closed || self.refused) {
            let message = tokio::select! {
                message = self.read.wait() => message,
                // A program that reads no more has ended, or will: its status says how.
                _ = &mut feed, if !fed => {
                    fed = true;
                    continue;
                }
            };
            match message {
                None | Some(ChannelMsg::Close) => self.closed = true,
                Some(ChannelMsg::Failure) => self.refused = true,
                Some(ChannelMsg::Data { data }) => self.stdout.push(&data),
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => self.stderr.push(&data),
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    self.status = Some(Ended::Status(exit_status));
                }
                Some(ChannelMsg::ExitSignal { .. }) => self.status = Some(Ended::Signal),
                Some(_) => {}
            }
        }
    }

    /// Waits until the server has closed the channel: the process has ended and
    /// nobody holds its streams any more.
    pub(super) async fn closed(&mut self) {
        while !self.closed {
            match self.read.wait().await {
                None | Some(ChannelMsg::Close) => self.closed = true,
                Some(ChannelMsg::Data { data }) => self.stdout.push(&data),
                Some(_) => {}
            }
        }
    }

    /// Asks sshd to kill the process group.
    pub(super) async fn signal_kill(&self) {
        // A channel that is gone has nothing to kill.
        let _ = self.write.signal(Sig::KILL).await;
    }

    /// Closes our side.
    pub(super) async fn close(&self) {
        // Gone is as good as closed.
        let _ = self.write.close().await;
    }

    /// The number of the script's process, once it has said it.
    pub(super) fn process(&self) -> Option<u32> {
        self.stdout.process()
    }

    /// What came of it.
    ///
    /// # Errors
    /// When `connection` was lost meanwhile, or something else ran in the script's place.
    pub(super) fn result(&mut self, connection: &Connection) -> Result<Output, Trouble> {
        if self.status.is_none() && connection.life().ended().is_some() {
            return Err(connection.lost().into());
        }
        let stdout = std::mem::take(&mut self.stdout).kept();
        let stderr = std::mem::take(&mut self.stderr).kept();
        match (stdout, stderr) {
            (Ok(stdout), Ok(stderr)) if !self.refused => Ok(Output {
                status: match self.status {
                    Some(Ended::Status(status)) => i32::try_from(status).ok(),
                    Some(Ended::Signal) | None => None,
                },
                stdout,
                stderr,
            }),
            (stdout, stderr) => {
                let said = [stdout.err(), stderr.err()].into_iter().flatten();
                let said: Vec<String> = said.filter(|said| !said.is_empty()).collect();
                Err(Trouble::Refused(Refusal::Command(said.join("; "))))
            }
        }
    }
}
