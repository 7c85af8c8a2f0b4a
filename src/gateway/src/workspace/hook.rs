//! Running commands inside an environment for its owner: hooks, and the
//! scripts that set an environment up.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::future::{BoxFuture, try_join_all};
use vendetta_proto::spec::HookCommand;

use super::error::Explain;
use super::operation::Step;
use super::{ErrorKind, WorkspaceError};
use crate::agent::client::{AgentClient, Lines, Output};

/// How many of a failed command's last lines are told.
const LAST_LINES: usize = 20;

/// Where commands run, and where their output is shown.
pub(super) struct Place<'a> {
    /// "workspace NAME", for errors.
    pub about: &'a str,
    /// The environment.
    pub client: &'a Arc<AgentClient>,
    /// Whether a command may use the caller's ssh-agent.
    pub with_ssh_agent: bool,
}

/// Why a command did not do its part.
#[derive(Debug)]
pub(super) enum CommandError {
    /// It ended with a status that is not 0, and the last it said.
    Status(u32, VecDeque<String>),
    /// It could not be run, or watched to its end.
    Lost(WorkspaceError),
}

impl CommandError {
    /// As a failure of `what` ("hook create").
    pub(super) fn explain(self, about: &str, what: &str) -> WorkspaceError {
        match self {
            Self::Lost(error) => error,
            Self::Status(status, last) => {
                let mut problem = format!("{what} ended with status {status}");
                if !last.is_empty() {
                    problem.push_str("; the last it said:");
                    for line in last {
                        problem.push('\n');
                        problem.push_str(&line);
                    }
                }
                WorkspaceError::new(ErrorKind::Unavailable, about, problem)
            }
        }
    }
}

impl Place<'_> {
    /// Runs a hook; each line it says becomes a message of the step.
    pub(super) async fn hook(
        &self,
        step: &Step,
        command: &HookCommand,
    ) -> Result<(), CommandError> {
        self.run(step, command, String::new()).await
    }

    fn run<'a>(
        &'a self,
        step: &'a Step,
        command: &'a HookCommand,
        prefix: String,
    ) -> BoxFuture<'a, Result<(), CommandError>> {
        Box::pin(async move {
            match command {
                HookCommand::Line(line) => self.command(step, line, &prefix).await,
                HookCommand::Program(words) => {
                    let line = shlex::try_join(words.iter().map(String::as_str));
                    let line = line.map_err(|error| {
                        let problem = format!("a word of a hook cannot be sent: {error}");
                        CommandError::Lost(WorkspaceError::new(
                            ErrorKind::Usage,
                            self.about,
                            problem,
                        ))
                    })?;
                    self.command(step, &line, &prefix).await
                }
                HookCommand::Sequence(commands) => {
                    for command in commands {
                        self.run(step, command, prefix.clone()).await?;
                    }
                    Ok(())
                }
                HookCommand::Parallel(commands) => {
                    let all = commands.iter().map(|(name, command)| {
                        self.run(step, command, format!("{prefix}{name}: "))
                    });
                    try_join_all(all).await.map(|_| ())
                }
            }
        })
    }

    /// Runs one command line.
    pub(super) async fn command(
        &self,
        step: &Step,
        line: &str,
        prefix: &str,
    ) -> Result<(), CommandError> {
        let lost =
            |error: crate::agent::pool::AgentError| CommandError::Lost(error.explain(self.about));
        let command = line.as_bytes().to_vec();
        let running = self.client.run(command, self.with_ssh_agent).await;
        let mut running = running.map_err(lost)?;
        let (mut out, mut err) = (Lines::default(), Lines::default());
        let mut last = VecDeque::with_capacity(LAST_LINES);
        let mut tell = |line: String| {
            step.message(format!("{prefix}{line}"));
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line);
        };
        loop {
            match running.next().await.map_err(lost)? {
                Output::Stdout(data) => out.push(&data).into_iter().for_each(&mut tell),
                Output::Stderr(data) => err.push(&data).into_iter().for_each(&mut tell),
                Output::Ended(status) => {
                    out.finish().into_iter().for_each(&mut tell);
                    err.finish().into_iter().for_each(&mut tell);
                    return match status {
                        0 => Ok(()),
                        status => Err(CommandError::Status(status, last)),
                    };
                }
            }
        }
    }
}
