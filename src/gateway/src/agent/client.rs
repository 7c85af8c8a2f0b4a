//! The gateway's own conversation with an agent: requests to its supervisor,
//! and commands run in the environment for the workspace's owner (hooks, the
//! clone of a repository).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::client::{self, Handle};
use russh::{Channel, ChannelMsg};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use vendetta_proto::rpc::{Answer, MAX_LINE, Request, SUBSYSTEM};

use super::opens::{AgentHandler, EnvironmentOpen, OpenKind};
use super::pool::{AgentError, Pool, Use};
use crate::node::AgentAccess;
use crate::workspace::AgentTarget;

/// How long an agent may take to answer a request that it can answer at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an agent may take to say whether it could dial; longer than it
/// tries each of two addresses itself.
const DIAL_TIMEOUT: Duration = Duration::from_secs(45);

/// SSH_EXTENDED_DATA_STDERR (RFC 4254 section 5.2).
const STDERR: u32 = 1;

/// A connection made inside an environment.
pub type Dialled = Channel<client::Msg>;

/// A connection to an agent.
pub struct AgentClient {
    workspace: String,
    handle: Handle<AgentHandler>,
    /// Joins channels to the caller's ssh-agent.
    _opens: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for AgentClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentClient")
            .field("workspace", &self.workspace)
            .finish_non_exhaustive()
    }
}

impl AgentClient {
    /// Connects. Commands that are run with it may use `ssh_agent`.
    ///
    /// # Errors
    /// When the agent cannot be reached or does not prove its host key.
    pub async fn connect(
        pool: &Pool,
        target: &AgentTarget,
        ssh_agent: Option<Arc<dyn AgentAccess>>,
    ) -> Result<Arc<Self>, AgentError> {
        let user = vendetta_proto::agent::DEFAULT_USER;
        let connection = pool.connect(target, user, Use::Gateway).await?;
        let opens = tokio::spawn(serve(connection.opens, ssh_agent));
        Ok(Arc::new(Self {
            workspace: target.workspace.to_string(),
            handle: connection.handle,
            _opens: AbortOnDropHandle::new(opens),
        }))
    }

    fn failed(&self, source: russh::Error) -> AgentError {
        AgentError::Session {
            workspace: self.workspace.clone(),
            source,
        }
    }

    fn garbled(&self, problem: impl Into<String>) -> AgentError {
        AgentError::Answer {
            workspace: self.workspace.clone(),
            problem: problem.into(),
        }
    }

    async fn in_time<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, AgentError> {
        let timed_out = |_| AgentError::TimedOut {
            workspace: self.workspace.clone(),
            limit,
        };
        tokio::time::timeout(limit, work).await.map_err(timed_out)?
    }

    async fn session(&self) -> Result<Channel<client::Msg>, AgentError> {
        let opening = async {
            let opened = self.handle.channel_open_session().await;
            opened.map_err(|source| self.failed(source))
        };
        self.in_time(ANSWER_TIMEOUT, opening).await
    }

    /// Asks for something; the answers come as the agent has them.
    ///
    /// # Errors
    /// When the agent cannot be asked.
    pub async fn ask(self: &Arc<Self>, request: &Request) -> Result<Answers, AgentError> {
        let channel = self.session().await?;
        let mut line =
            serde_json::to_vec(request).map_err(|error| self.garbled(error.to_string()))?;
        line.push(b'\n');
        let asked = async {
            channel.request_subsystem(true, SUBSYSTEM).await?;
            channel.data_bytes(line).await
        };
        asked.await.map_err(|source| self.failed(source))?;
        Ok(Answers {
            client: Arc::clone(self),
            channel,
            buffer: BytesMut::new(),
            ended: false,
        })
    }

    /// Asks for what has one answer.
    ///
    /// # Errors
    /// When the agent cannot be asked, says nothing in time, or refuses.
    pub async fn ask_one(self: &Arc<Self>, request: &Request) -> Result<Answer, AgentError> {
        self.ask_first(request).await.map(|(answer, _)| answer)
    }

    /// Asks for something whose first answer comes at once; the others follow.
    ///
    /// # Errors
    /// When the agent cannot be asked, says nothing in time, or refuses.
    pub async fn ask_first(
        self: &Arc<Self>,
        request: &Request,
    ) -> Result<(Answer, Answers), AgentError> {
        let asked = async {
            let mut answers = self.ask(request).await?;
            let answer = answers.next().await?;
            let answer = answer.ok_or_else(|| self.garbled("it ended without an answer"))?;
            Ok((answer, answers))
        };
        self.in_time(ANSWER_TIMEOUT, asked).await
    }

    /// Whether the connection is lost.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Opens a connection from inside the environment to `host`:`port`, for
    /// somebody at `peer`.
    ///
    /// # Errors
    /// When nothing accepts there, or the agent cannot be asked.
    pub async fn dial(
        &self,
        host: &str,
        port: u16,
        peer: SocketAddr,
    ) -> Result<Dialled, AgentError> {
        let (from, from_port) = (peer.ip().to_string(), peer.port());
        let opening = async {
            let opened = self
                .handle
                .channel_open_direct_tcpip(host, port.into(), from, from_port.into())
                .await;
            opened.map_err(|source| self.failed(source))
        };
        self.in_time(DIAL_TIMEOUT, opening).await
    }

    /// Runs a command line in the environment, with the shell, directory and
    /// variables of a session of the workspace's user, and no standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn run(
        self: &Arc<Self>,
        command: Vec<u8>,
        with_ssh_agent: bool,
    ) -> Result<Running, AgentError> {
        let channel = self.session().await?;
        let started = async {
            if with_ssh_agent {
                channel.agent_forward(false).await?;
            }
            channel.exec(false, command).await?;
            channel.eof().await
        };
        started.await.map_err(|source| self.failed(source))?;
        Ok(Running {
            client: Arc::clone(self),
            channel,
            end: None,
        })
    }
}

/// The answers to one request.
#[derive(Debug)]
pub struct Answers {
    client: Arc<AgentClient>,
    channel: Channel<client::Msg>,
    buffer: BytesMut,
    ended: bool,
}

impl Answers {
    /// The next answer; none after the last. Safe to cancel.
    ///
    /// # Errors
    /// When the connection is lost, or the agent refuses the request.
    pub async fn next(&mut self) -> Result<Option<Answer>, AgentError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                let answer = serde_json::from_slice(&line)
                    .map_err(|error| self.client.garbled(format!("{error}")))?;
                return match answer {
                    Answer::Error { problem, not_found } => Err(AgentError::Refused {
                        workspace: self.client.workspace.clone(),
                        problem,
                        not_found,
                    }),
                    answer => Ok(Some(answer)),
                };
            }
            if self.buffer.len() > MAX_LINE {
                return Err(self.client.garbled("a line without end"));
            }
            if self.ended {
                return Ok(None);
            }
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => self.buffer.extend_from_slice(&data),
                Some(ChannelMsg::Eof | ChannelMsg::Close) => self.ended = true,
                Some(ChannelMsg::Failure) => {
                    return Err(self.client.garbled("it does not know the request"));
                }
                Some(_) => {}
                None => return Err(self.client.failed(russh::Error::Disconnect)),
            }
        }
    }
}

/// What a command wrote, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// Its exit status; 128 and the signal's number when a signal ended it, as a shell says.
    Ended(u32),
}

/// A command under way; dropping it hangs it up.
#[derive(Debug)]
pub struct Running {
    client: Arc<AgentClient>,
    channel: Channel<client::Msg>,
    end: Option<u32>,
}

impl Running {
    /// What comes next; [`Output::Ended`] is the last. Safe to cancel.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn next(&mut self) -> Result<Output, AgentError> {
        loop {
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => return Ok(Output::Stdout(data)),
                Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => {
                    return Ok(Output::Stderr(data));
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => self.end = Some(exit_status),
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    self.end = Some(128 + u32::from(signal_number(&signal_name)));
                }
                Some(ChannelMsg::Close) | None => {
                    return match self.end {
                        Some(status) => Ok(Output::Ended(status)),
                        None => Err(self.client.failed(russh::Error::Disconnect)),
                    };
                }
                Some(_) => {}
            }
        }
    }
}

/// Lines out of the output of a command, however it comes in pieces.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

/// Longest line that is told whole, in bytes.
const LONGEST_LINE: usize = 8 * 1024;

impl Lines {
    /// Takes more output; returns the lines that are whole now.
    pub fn push(&mut self, data: &[u8]) -> VecDeque<String> {
        let mut lines = VecDeque::new();
        let pieces = data.split_inclusive(|byte| *byte == b'\n');
        for piece in pieces.flat_map(|piece| piece.chunks(LONGEST_LINE)) {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.rest.len() >= LONGEST_LINE {
                lines.extend(self.finish());
            }
        }
        lines
    }

    /// What is left without an end of line.
    pub fn finish(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.rest);
        if line.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(&line);
        Some(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// The number of a signal on Linux, for the shell's 128+n.
#[must_use]
pub fn signal_number(signal: &russh::Sig) -> u8 {
    use russh::Sig;
    match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(_) => 0,
    }
}

/// Joins what the environment opens towards an ssh-agent to the caller's, and
/// refuses everything else.
async fn serve(mut opens: mpsc::Receiver<EnvironmentOpen>, agent: Option<Arc<dyn AgentAccess>>) {
    let mut joined = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            open = opens.recv() => match open {
                Some(open) if open.kind == OpenKind::Agent => {
                    if let Some(agent) = &agent {
                        joined.spawn(join(open, Arc::clone(agent)));
                    }
                }
                // Dropping it refuses it.
                Some(_) => {}
                None => break,
            },
            Some(_) = joined.join_next() => {}
        }
    }
}

async fn join(open: EnvironmentOpen, agent: Arc<dyn AgentAccess>) {
    let Ok(mut stream) = agent.open().await else {
        return;
    };
    open.reply.accept().await;
    let mut channel = open.channel.into_stream();
    // Ends with either side; there is nobody to tell.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut channel).await;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_output_is_cut(
            text in "[a-z\n]{0,200}",
            piece in 1..20usize,
        ) {
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for piece in text.as_bytes().chunks(piece) {
                got.extend(lines.push(piece));
            }
            got.extend(lines.finish());
            let expected: Vec<&str> = text.lines().collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Lines::default();
        let flood = vec![b'x'; 5 * LONGEST_LINE / 2];
        let mut got = lines.push(&flood);
        assert!(got.iter().all(|line| line.len() <= LONGEST_LINE));
        got.extend(lines.finish());
        let all: usize = got.iter().map(String::len).sum();
        assert_eq!(all, flood.len());
    }
}
