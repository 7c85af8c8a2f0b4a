//! One script on the node, from its session's opening to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::{Output, Refusal};
use super::capture::{Capture, Marker};
use super::quote;
use super::sessions::{Place, Sessions};
use super::trouble::Trouble;

/// How long the server may take to close a session that is given up.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A script for the node's `/bin/sh`.
pub(super) struct Job {
    /// What it does, once it has said the marker.
    pub script: Vec<u8>,
    /// What it reads on standard input.
    pub stdin: Bytes,
    /// It is killed after this long.
    pub limit: Duration,
}

/// Runs `job` in a session of its own. Dropping the future kills it.
///
/// # Errors
/// When there is no session, the time is over, or something else ran in its place.
pub(super) async fn run(
    sessions: &Arc<Sessions>,
    tasks: &TaskTracker,
    job: Job,
) -> Result<Output, Trouble> {
    let marker = Marker::random();
    let mut script = marker.prologue();
    script.extend_from_slice(&job.script);
    let line = quote::command_line(&script)
        .ok_or_else(|| Trouble::invalid("too long for a command line, or a NUL in it"))?;
    let (channel, place) = sessions.open().await?;
    let (read, write) = channel.split();
    let session = Session {
        read,
        write,
        place,
        line,
        stdin: job.stdin,
        stdout: Capture::new(&marker),
        stderr: Capture::new(&marker),
        status: None,
        refused: false,
    };
    let gone = CancellationToken::new();
    let _gone_when_dropped = gone.clone().drop_guard();
    let (tell, told) = oneshot::channel();
    tasks.spawn(session.run(job.limit, gone, tell));
    // Not told: the runtime that it ran on has ended.
    told.await
        .unwrap_or_else(|_| Err(Trouble::Io(std::io::ErrorKind::Interrupted.into())))
}

/// How a program ended (RFC 4254 section 6.10).
enum Ended {
    Status(u32),
    Signal,
}

struct Session {
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    place: Place,
    line: String,
    stdin: Bytes,
    stdout: Capture,
    stderr: Capture,
    status: Option<Ended>,
    refused: bool,
}

impl Session {
    /// Runs to the end; the place is free when the server has let the session go.
    async fn run(
        mut self,
        limit: Duration,
        gone: CancellationToken,
        tell: oneshot::Sender<Result<Output, Trouble>>,
    ) {
        let ended = tokio::select! {
            ended = timeout(limit, self.talk()) => ended.is_ok(),
            () = gone.cancelled() => false,
        };
        if ended {
            let result = self.result();
            let _ = tell.send(result);
            let _ = self.write.close().await;
        } else {
            let _ = tell.send(Err(Trouble::TimedOut(limit)));
            // sshd kills the process group (since OpenSSH 7.9); to an older one
            // its streams are closed, which ends most programs.
            let _ = self.write.signal(Sig::KILL).await;
            let _ = self.write.close().await;
        }
        let closed = async { while self.read.wait().await.is_some() {} };
        let _ = timeout(CLOSE_LIMIT, closed).await;
        drop(self.place);
    }

    /// Sends the command and its input, and takes what comes until the channel is closed.
    async fn talk(&mut self) {
        let (line, stdin) = (
            std::mem::take(&mut self.line),
            std::mem::take(&mut self.stdin),
        );
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
        loop {
            let message = tokio::select! {
                message = self.read.wait() => message,
                // A program that reads no more has ended, or will: its status says how.
                _ = &mut feed, if !fed => {
                    fed = true;
                    continue;
                }
            };
            match message {
                None | Some(ChannelMsg::Close) => return,
                Some(ChannelMsg::Failure) => {
                    self.refused = true;
                    return;
                }
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

    fn result(&mut self) -> Result<Output, Trouble> {
        let connection = self.place.connection();
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
