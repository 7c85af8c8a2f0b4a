//! The services of a running environment: asking its agent for them, and
//! showing how they come up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use vendetta_proto::ServiceName;
use vendetta_proto::rpc::{Answer, LogLine, Request, ServiceState, ServiceStatus, Settled, Stream};

use super::error::Explain;
use super::operation::Step;
use super::{ErrorKind, ProgressSink, WorkspaceError};
use crate::agent::client::AgentClient;

/// How many of a failed service's last lines are told.
const LAST_LINES: u32 = 10;

/// How long an agent may take to say a service's last lines.
const LOG_LIMIT: Duration = Duration::from_secs(5);

/// What is asked of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceRequest {
    /// See that they run.
    Start,
    /// See that they do not.
    Stop,
    /// Stop and start them.
    Restart,
}

impl ServiceRequest {
    fn of(self, services: BTreeSet<ServiceName>) -> Request {
        match self {
            Self::Start => Request::Start { services },
            Self::Stop => Request::Stop { services },
            Self::Restart => Request::Restart { services },
        }
    }
}

/// Has the agent do it, shows each service as a step, and waits until all
/// of them have come to rest.
///
/// # Errors
/// When one has not become what was asked; the last lines it wrote are told.
pub(super) async fn change(
    about: &str,
    workspace: &str,
    client: &Arc<AgentClient>,
    request: ServiceRequest,
    services: BTreeSet<ServiceName>,
    progress: &ProgressSink,
) -> Result<(), WorkspaceError> {
    let explain = |error: crate::agent::pool::AgentError| error.explain(about);
    let mut answers = client.ask(&request.of(services)).await.map_err(explain)?;
    let mut view = View::new(request, progress);
    let mut latest = Vec::new();
    while let Some(answer) = answers.next().await.map_err(explain)? {
        match answer {
            Answer::Services { services } => {
                view.show(&services);
                latest = services;
            }
            Answer::Done => {
                let trouble = view.end(&latest);
                return match trouble {
                    None => Ok(()),
                    Some(service) => Err(failed(about, workspace, client, service).await),
                };
            }
            _ => {}
        }
    }
    let lost = "its agent stopped answering before the services had come to rest";
    Err(WorkspaceError::new(ErrorKind::Unavailable, about, lost))
}

/// Tells how a service is, and what it said last.
async fn failed(
    about: &str,
    workspace: &str,
    client: &Arc<AgentClient>,
    service: &ServiceStatus,
) -> WorkspaceError {
    let mut problem = format!("service {} is {}", service.name, described(service));
    let lines = tokio::time::timeout(LOG_LIMIT, last_lines(client, &service.name)).await;
    let lines = lines.unwrap_or_default();
    if lines.is_empty() {
        problem.push_str("; it wrote nothing");
    } else {
        problem.push_str("; the last it wrote:");
        for line in lines {
            problem.push('\n');
            problem.push_str(&line.text);
        }
    }
    let remedy = format!("ssh vendetta workspace logs {workspace} {}", service.name);
    WorkspaceError::new(ErrorKind::Unavailable, about, problem).with_remedy(remedy)
}

async fn last_lines(client: &Arc<AgentClient>, service: &ServiceName) -> Vec<LogLine> {
    let request = Request::Logs {
        services: [service.clone()].into(),
        follow: false,
        // Some of them are the supervisor's own.
        tail: Some(3 * LAST_LINES),
        since: None,
    };
    let mut lines = Vec::new();
    let Ok(mut answers) = client.ask(&request).await else {
        return lines;
    };
    while let Ok(Some(answer)) = answers.next().await {
        if let Answer::Log(line) = answer
            && line.stream != Stream::Supervisor
        {
            lines.push(line);
        }
    }
    let skip = lines.len().saturating_sub(LAST_LINES as usize);
    lines.split_off(skip)
}

/// "unhealthy: GET /health: connection refused".
#[must_use]
pub fn described(service: &ServiceStatus) -> String {
    let mut text = service.state.as_str().replace('-', " ");
    let details = [service.ended.as_deref(), service.reason.as_deref()];
    let details: Vec<&str> = match service.state {
        // How it ended once says nothing about one that runs again.
        ServiceState::Healthy | ServiceState::Starting | ServiceState::Unhealthy => {
            details.into_iter().skip(1).flatten().collect()
        }
        _ => details.into_iter().flatten().collect(),
    };
    if !details.is_empty() {
        text.push_str(": ");
        text.push_str(&details.join("; "));
    }
    text
}

/// A step for each service that has something to do.
struct View<'a> {
    request: ServiceRequest,
    progress: &'a ProgressSink,
    steps: BTreeMap<ServiceName, Step>,
}

impl<'a> View<'a> {
    fn new(request: ServiceRequest, progress: &'a ProgressSink) -> Self {
        Self {
            request,
            progress,
            steps: BTreeMap::new(),
        }
    }

    fn word(&self, service: &ServiceName) -> String {
        match self.request {
            ServiceRequest::Start => format!("service {service}"),
            ServiceRequest::Stop => format!("stop service {service}"),
            ServiceRequest::Restart => format!("restart service {service}"),
        }
    }

    fn show(&mut self, services: &[ServiceStatus]) {
        for service in services {
            let moves = match service.settled {
                Settled::NotYet => service.state != ServiceState::Waiting,
                Settled::Well | Settled::Badly => false,
            };
            if moves && !self.steps.contains_key(&service.name) {
                let step = self.progress.step(self.word(&service.name));
                self.steps.insert(service.name.clone(), step);
            }
            if service.settled != Settled::NotYet
                && let Some(step) = self.steps.remove(&service.name)
            {
                // Whoever watches is told; what follows from it is decided at the end.
                let _ = step.end(outcome(service));
            }
        }
    }

    /// Ends what is left, and says which service is to blame: the first that
    /// is in trouble itself, rather than one that waits for it.
    fn end(mut self, services: &[ServiceStatus]) -> Option<&ServiceStatus> {
        self.show(services);
        let bad = |service: &&ServiceStatus| service.settled == Settled::Badly;
        let own = |service: &&ServiceStatus| service.state != ServiceState::Waiting;
        let mut all = services.iter().filter(bad);
        all.clone().find(own).or_else(|| all.next())
    }
}

fn outcome(service: &ServiceStatus) -> Result<(), String> {
    match service.settled {
        Settled::Badly => Err(described(service)),
        Settled::Well | Settled::NotYet => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Progress;

    fn status(name: &str, state: ServiceState, settled: Settled) -> ServiceStatus {
        ServiceStatus {
            name: name.parse().unwrap(),
            state,
            settled,
            since: 0,
            pid: None,
            port: None,
            restarts: 0,
            ended: None,
            reason: None,
            next_start: None,
        }
    }

    #[tokio::test]
    async fn a_service_is_a_step_and_the_one_in_trouble_is_to_blame() {
        use ServiceState::{Healthy, Starting, Unhealthy, Waiting};
        let sink = ProgressSink::new();
        let mut view = View::new(ServiceRequest::Start, &sink);
        view.show(&[
            status("db", Starting, Settled::NotYet),
            status("api", Waiting, Settled::NotYet),
        ]);
        let last = [
            ServiceStatus {
                reason: Some("waits for db".to_owned()),
                ..status("api", Waiting, Settled::Badly)
            },
            ServiceStatus {
                reason: Some("GET /: refused".to_owned()),
                ..status("db", Unhealthy, Settled::Badly)
            },
            status("web", Healthy, Settled::Well),
        ];
        let blamed = view.end(&last).unwrap();
        assert_eq!(described(blamed), "unhealthy: GET /: refused");
        sink.end(Ok(()));
        let mut operation = sink.watch();
        let mut seen = Vec::new();
        while let Some(progress) = operation.next().await {
            seen.push(match progress {
                Progress::Started { step } => format!("+{step}"),
                Progress::Failed { step, cause } => format!("!{step}: {cause}"),
                other => format!("{other:?}"),
            });
        }
        assert_eq!(
            seen,
            ["+service db", "!service db: unhealthy: GET /: refused"]
        );
    }
}
