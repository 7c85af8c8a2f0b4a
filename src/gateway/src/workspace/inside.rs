//! What is asked of the agent of a running workspace: its services, and what
//! they wrote.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use vendetta_proto::rpc::{
    Answer, ListeningPort, LogLine, Millis, Request, ServiceStatus, TerminalStatus,
};
use vendetta_proto::{ServiceName, TerminalName};

use super::entry::Entry;
use super::error::Explain;
use super::hook::Place;
use super::manager::{WorkspaceRef, Workspaces};
use super::service::{self, ServiceRequest};
use super::state::{Desired, Phase};
use super::{ErrorKind, Operation, ProgressSink, WorkspaceError};
use crate::access::Authorized;
use crate::agent::client::{AgentClient, Answers, Output};

/// How long the attach hook waits for the start that a session came with.
const START_LIMIT: Duration = Duration::from_secs(3600);

/// How long the attach hook may run.
const ATTACH_LIMIT: Duration = Duration::from_secs(600);

/// How long [`Workspaces::output`] waits.
const OUTPUT_LIMIT: Duration = Duration::from_secs(60);

/// How much it takes, in bytes.
const LONGEST_OUTPUT: usize = 256 * 1024;

/// Which lines of the services' logs to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceLogOptions {
    /// Whose; none: of all.
    pub services: BTreeSet<ServiceName>,
    /// Go on as long as the environment runs.
    pub follow: bool,
    /// Only so many of the last lines.
    pub tail: Option<u32>,
    /// Nothing older than this.
    pub since: Option<Millis>,
}

fn services(answer: Answer) -> Option<Vec<ServiceStatus>> {
    match answer {
        Answer::Services { services } => Some(services),
        _ => None,
    }
}

fn ports(answer: Answer) -> Option<Vec<ListeningPort>> {
    match answer {
        Answer::Ports { ports } => Some(ports),
        _ => None,
    }
}

/// What listens inside an environment.
pub type ListeningStream = BoxStream<'static, Result<Vec<ListeningPort>, WorkspaceError>>;

impl Workspaces {
    /// A conversation with the agent.
    async fn agent_client(&self, entry: &Entry) -> Result<Arc<AgentClient>, WorkspaceError> {
        let about = entry.context();
        let snapshot = entry.snapshot();
        let Some(target) = snapshot.target else {
            if snapshot.record.desired == Desired::Destroyed {
                return Err(entry.being_destroyed());
            }
            let problem = match snapshot.phase {
                Phase::Created | Phase::Stopped => {
                    format!("it is {}; bring it up first", snapshot.phase)
                }
                phase => format!("it is {phase}, so nothing in it can be asked"),
            };
            let up = format!("ssh vendetta workspace up {}", entry.reference.name);
            return Err(WorkspaceError::new(ErrorKind::Conflict, about, problem).with_remedy(up));
        };
        match AgentClient::connect(self.pool(), &target, None).await {
            Ok(client) => Ok(client),
            Err(error) => {
                // It may have ended and the engine not told us yet.
                self.agent_unreachable(&target.id).await;
                Err(error.explain(&about))
            }
        }
    }

    /// The names of its services, as its config has them. From memory.
    ///
    /// # Errors
    /// When it was destroyed since it was found (3).
    pub fn service_names(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Vec<ServiceName>, WorkspaceError> {
        let entry = self.entry(workspace)?;
        Ok(entry.spec().config.services.keys().cloned().collect())
    }

    /// How its services are.
    ///
    /// # Errors
    /// When it does not run (4), or its agent does not answer.
    pub async fn services(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Vec<ServiceStatus>, WorkspaceError> {
        let request = Request::Services { follow: false };
        self.answer(workspace, &request, services).await
    }

    /// How its services are, now and whenever that changes.
    ///
    /// # Errors
    /// When it does not run (4), or its agent cannot be asked.
    pub async fn follow_services(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<BoxStream<'static, Result<Vec<ServiceStatus>, WorkspaceError>>, WorkspaceError>
    {
        let request = Request::Services { follow: true };
        self.answers(workspace, &request, services).await
    }

    /// What its services wrote.
    ///
    /// # Errors
    /// When it does not run (4), or its agent cannot be asked.
    pub async fn service_logs(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        options: ServiceLogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, WorkspaceError>>, WorkspaceError> {
        let request = Request::Logs {
            services: options.services,
            follow: options.follow,
            tail: options.tail,
            since: options.since,
        };
        self.answers(workspace, &request, |answer| match answer {
            Answer::Log(line) => Some(line),
            _ => None,
        })
        .await
    }

    /// The TCP ports on which programs listen inside it.
    ///
    /// # Errors
    /// When it does not run (4), or its agent does not answer.
    pub async fn listening(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Vec<ListeningPort>, WorkspaceError> {
        let request = Request::Ports { follow: false };
        self.answer(workspace, &request, ports).await
    }

    /// The TCP ports on which programs listen inside it, now and whenever
    /// that changes.
    ///
    /// # Errors
    /// When it does not run (4), or its agent cannot be asked.
    pub async fn follow_listening(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<ListeningStream, WorkspaceError> {
        let request = Request::Ports { follow: true };
        self.answers(workspace, &request, ports).await
    }

    /// Terminals inside it that outlive their clients.
    ///
    /// # Errors
    /// When it does not run (4), or its agent does not answer.
    pub async fn terminals(
        &self,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Vec<TerminalStatus>, WorkspaceError> {
        self.answer(workspace, &Request::Terminals, |answer| match answer {
            Answer::Terminals { terminals } => Some(terminals),
            _ => None,
        })
        .await
    }

    /// Ends the programs of the terminals of this name; of one user only, if named.
    ///
    /// # Errors
    /// When there is none (3), it does not run (4), or its agent does not answer.
    pub async fn end_terminal(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        name: &TerminalName,
        user: Option<String>,
    ) -> Result<(), WorkspaceError> {
        let name = name.clone();
        let request = Request::EndTerminal { name, user };
        self.answer(workspace, &request, |answer| {
            matches!(answer, Answer::Done).then_some(())
        })
        .await
    }

    /// Asks the agent for what has one answer.
    async fn answer<T>(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        request: &Request,
        pick: fn(Answer) -> Option<T>,
    ) -> Result<T, WorkspaceError> {
        let entry = self.entry(workspace)?;
        let about = entry.context();
        let client = self.agent_client(&entry).await?;
        let answer = client.ask_one(request).await;
        let answer = answer.map_err(|error| error.explain(&about))?;
        pick(answer).ok_or_else(|| {
            let problem = "its agent answered something else than was asked";
            WorkspaceError::new(ErrorKind::Internal, about, problem)
        })
    }

    /// Asks the agent, and picks what is wanted of its answers.
    async fn answers<T: Send + 'static>(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        request: &Request,
        pick: fn(Answer) -> Option<T>,
    ) -> Result<BoxStream<'static, Result<T, WorkspaceError>>, WorkspaceError> {
        let entry = self.entry(workspace)?;
        let about = entry.context();
        let client = self.agent_client(&entry).await?;
        let answers = client.ask(request).await;
        let answers = answers.map_err(|error| error.explain(&about))?;
        let next = async move |mut answers: Answers| {
            let answer = answers.next().await.transpose()?;
            Some((answer, answers))
        };
        let picked = futures::stream::unfold(answers, next).filter_map(move |answer| {
            let picked = match answer {
                Ok(answer) => pick(answer).map(Ok),
                Err(error) => Some(Err(error.explain(&about))),
            };
            std::future::ready(picked)
        });
        Ok(picked.boxed())
    }

    /// What a command line says in the environment, for the workspace's user;
    /// how it ends does not matter.
    ///
    /// # Errors
    /// When it does not run (4), its agent cannot be asked, or the command says
    /// more than [`LONGEST_OUTPUT`] or does not end in [`OUTPUT_LIMIT`].
    pub async fn output(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        command: &str,
    ) -> Result<String, WorkspaceError> {
        let entry = self.entry(workspace)?;
        let about = entry.context();
        let client = self.agent_client(&entry).await?;
        let said = async {
            let running = client.run(command.as_bytes().to_vec(), false).await;
            let mut running = running.map_err(|error| error.explain(&about))?;
            let mut said = Vec::new();
            loop {
                match running
                    .next()
                    .await
                    .map_err(|error| error.explain(&about))?
                {
                    Output::Stdout(data) if said.len() + data.len() > LONGEST_OUTPUT => {
                        let problem = "a command in it says more than it should";
                        let kind = ErrorKind::Unavailable;
                        return Err(WorkspaceError::new(kind, about.as_str(), problem));
                    }
                    Output::Stdout(data) => said.extend_from_slice(&data),
                    Output::Stderr(_) => {}
                    Output::Ended(_) => return Ok(String::from_utf8_lossy(&said).into_owned()),
                }
            }
        };
        let said = tokio::time::timeout(OUTPUT_LIMIT, said).await;
        said.unwrap_or_else(|_| {
            let problem = "a command in it does not end";
            let kind = ErrorKind::Unavailable;
            Err(WorkspaceError::new(kind, about.as_str(), problem))
        })
    }

    /// To be called when a client has its first session in the environment:
    /// runs the attach hook beside it, after the services and the up hook of a
    /// start that is under way. What becomes of it is in the gateway's log.
    pub fn attached(&self, workspace: &Authorized<WorkspaceRef>) {
        let Ok(entry) = self.entry(workspace) else {
            return;
        };
        let Some(hook) = entry.spec().config.hooks.attach.clone() else {
            return;
        };
        let (workspaces, cancel) = (self.clone(), self.cancellation());
        self.tasks().spawn(async move {
            let about = entry.context();
            let run = async {
                let client = workspaces.agent_client(&entry).await?;
                let place = Place {
                    about: &about,
                    client: &client,
                    with_ssh_agent: false,
                };
                let step = ProgressSink::new().step("hook attach");
                let ran = place.hook(&step, &hook).await;
                ran.map_err(|error| error.explain(&about, "hook attach"))
            };
            let attach = async {
                // One that takes longer is not waited for.
                let _ = tokio::time::timeout(START_LIMIT, entry.started()).await;
                tokio::time::timeout(ATTACH_LIMIT, run).await
            };
            match cancel.run_until_cancelled(attach).await {
                Some(Ok(Err(error))) => tracing::warn!(workspace = %entry.reference.name, %error, "hook attach"),
                Some(Err(_)) => tracing::warn!(workspace = %entry.reference.name, "hook attach took too long: given up"),
                Some(Ok(Ok(()))) | None => {}
            }
        });
    }

    /// Starts, stops or restarts services (none named: all) and shows how that
    /// goes. What was asked for goes on when nobody watches any more.
    ///
    /// # Errors
    /// When it does not run (4), or its agent cannot be reached.
    pub async fn change_services(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        request: ServiceRequest,
        services: BTreeSet<ServiceName>,
    ) -> Result<Operation, WorkspaceError> {
        let entry = self.entry(workspace)?;
        let client = self.agent_client(&entry).await?;
        let sink = ProgressSink::new();
        let operation = sink.watch();
        let cancel = self.cancellation();
        self.tasks().spawn(async move {
            let about = entry.context();
            let name = entry.reference.name.as_str();
            let change = service::change(&about, name, &client, request, services, &sink);
            let outcome = cancel.run_until_cancelled(change).await;
            sink.end(outcome.unwrap_or_else(|| {
                let stopping = "the gateway is stopping; the services go on with this";
                Err(WorkspaceError::new(
                    ErrorKind::Unavailable,
                    about.as_str(),
                    stopping,
                ))
            }));
        });
        Ok(operation)
    }
}
