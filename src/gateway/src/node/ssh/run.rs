//! One script on the node, from its session's opening to its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::{Output, Refusal};
use super::capture::Marker;
use super::connection::{Connection, OpenError, Target};
use super::dialogue::Dialogue;
use super::quote;
use super::sessions::Sessions;
use super::trouble::Trouble;

/// How long sshd may take to end a process that it was told to kill.
const SIGNAL_LIMIT: Duration = Duration::from_millis(500);
/// How long it may take to kill it otherwise.
const KILL_LIMIT: Duration = Duration::from_secs(15);
/// How long the server may take to close a session that is given up.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Time limit of a script on a connection of its own.
const ONCE_LIMIT: Duration = Duration::from_secs(30);

/// A script for the node's `/bin/sh`.
pub(super) struct Job {
    /// What it does, once it has said the marker.
    pub script: Vec<u8>,
    /// What it reads on standard input.
    pub stdin: Bytes,
    /// It is killed after this long.
    pub limit: Duration,
}

/// Runs `job` in a session of its own. Dropping the future kills it: a task
/// of its own sees to that, and keeps the session's place until the server has
/// let it go.
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
    let gone = CancellationToken::new();
    let _gone_when_dropped = gone.clone().drop_guard();
    let (tell, told) = oneshot::channel();
    let run = Run {
        sessions: Arc::clone(sessions),
        marker,
        line,
        stdin: job.stdin,
        limit: job.limit,
        gone,
    };
    tasks.spawn(run.carry_out(tell));
    // Not told: the runtime that it ran on has ended.
    told.await
        .unwrap_or_else(|_| Err(Trouble::Io(io::ErrorKind::Interrupted.into())))
}

struct Run {
    sessions: Arc<Sessions>,
    marker: Marker,
    line: String,
    stdin: Bytes,
    limit: Duration,
    /// Nobody waits for it any more.
    gone: CancellationToken,
}

impl Run {
    async fn carry_out(self, tell: oneshot::Sender<Result<Output, Trouble>>) {
        let (channel, place) = match self.sessions.open(&self.gone).await {
            Ok(opened) => opened,
            Err(trouble) => {
                // Nobody waits: then nobody has to know.
                let _ = tell.send(Err(trouble));
                return;
            }
        };
        let mut dialogue = Dialogue::new(channel, &self.marker);
        let ended = tokio::select! {
            biased;
            () = self.gone.cancelled() => false,
            ended = timeout(self.limit, dialogue.run(self.line, self.stdin)) => ended.is_ok(),
        };
        if ended {
            let _ = tell.send(dialogue.result(place.connection()));
        } else {
            let _ = tell.send(Err(Trouble::TimedOut(self.limit)));
            // sshd kills the process group, but only since OpenSSH 7.9, and
            // not when its user is root.
            dialogue.signal_kill().await;
            if timeout(SIGNAL_LIMIT, dialogue.closed()).await.is_err()
                && let Some(process) = dialogue.process()
            {
                kill(&self.sessions, process).await;
            }
        }
        dialogue.close().await;
        // sshd closes late what was left running with its streams; the place is not held for that.
        let _ = timeout(CLOSE_LIMIT, dialogue.closed()).await;
        drop(place);
    }
}

/// Kills the group of a process of the node, which a session of sshd leads.
async fn kill(sessions: &Sessions, process: u32) {
    let script = format!("kill -KILL -{process} 2>/dev/null || kill -KILL {process}");
    let Some(line) = quote::command_line(script.as_bytes()) else {
        return;
    };
    if !matches!(timeout(KILL_LIMIT, sessions.aside(line)).await, Ok(Ok(()))) {
        tracing::warn!(
            process,
            "a program on a node could not be killed and may run on"
        );
    }
}

/// Runs a script without input on a connection that serves nothing else.
///
/// # Errors
/// When there is no session, the time is over, or something else ran in its place.
pub(in super::super) async fn run_once(
    connection: &Connection,
    script: Vec<u8>,
) -> Result<Output, Trouble> {
    let marker = Marker::random();
    let script = [marker.prologue(), script].concat();
    let line = quote::command_line(&script)
        .ok_or_else(|| Trouble::invalid("too long for a command line, or a NUL in it"))?;
    let channel = match connection.open(Target::Session).await {
        Ok(channel) => channel,
        Err(OpenError::Refused(..)) => return Err(Trouble::Refused(Refusal::Sessions)),
        Err(OpenError::Other(trouble)) => return Err(trouble),
    };
    let mut dialogue = Dialogue::new(channel, &marker);
    timeout(ONCE_LIMIT, dialogue.run(line, Bytes::new()))
        .await
        .map_err(|_| Trouble::TimedOut(ONCE_LIMIT))?;
    dialogue.close().await;
    dialogue.result(connection)
}
