//! `workspace services|start|stop|restart`, and the services' part of
//! `workspace logs`.

use std::collections::BTreeSet;

use clap::Args;
use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::json;
use vendetta_proto::rpc::{LogLine, ServiceState, ServiceStatus, Stream};
use vendetta_proto::value::Span;
use vendetta_proto::{ServiceName, nearest};

use super::command::{Done, Session};
use super::failure::Failure;
use super::progress::watch;
use super::text::{ago, printable, table};
use super::workspace::{Target, find};
use crate::access::{Action, Authorized};
use crate::workspace::{
    ErrorKind, LogOptions, PortKey, PortState, PortStatus, ServiceLogOptions, ServiceRequest,
    WorkspaceError, WorkspaceRef, described,
};

/// Services of a workspace.
#[derive(Debug, Args)]
pub struct Services {
    /// Which workspace.
    #[command(flatten)]
    target: Target,
    /// Which of its services; all when omitted
    #[arg(value_name = "SERVICE")]
    services: Vec<ServiceName>,
}

/// Which lines to show.
#[derive(Debug, Args)]
pub struct Logs {
    /// Which workspace.
    #[command(flatten)]
    target: Target,
    /// Which of its services; all when omitted
    #[arg(value_name = "SERVICE")]
    services: Vec<ServiceName>,
    /// Go on as long as the environment runs
    #[arg(long, short)]
    follow: bool,
    /// Only so many of the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    /// Nothing older than this: a length of time (10m) or a time (2026-11-24T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// Show when each line was written
    #[arg(long, short)]
    timestamps: bool,
    /// The log of the environment itself rather than of its services
    #[arg(long, conflicts_with_all = ["services", "since", "timestamps"])]
    environment: bool,
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(span) = text.parse::<Span>() {
        let seconds = i64::try_from(span.as_duration().as_secs()).unwrap_or(i64::MAX);
        let ago = jiff::SignedDuration::from_secs(seconds);
        return Timestamp::now()
            .checked_sub(ago)
            .map_err(|error| error.to_string());
    }
    text.parse().map_err(|_| {
        "write a length of time such as 10m, or a time such as 2026-11-24T12:00:00Z".to_owned()
    })
}

/// Finds the services that are named, or says which were probably meant.
fn named(
    session: &Session<'_>,
    workspace: &Authorized<WorkspaceRef>,
    services: Vec<ServiceName>,
) -> Result<BTreeSet<ServiceName>, Failure> {
    let known = session.control.workspaces.service_names(workspace)?;
    for service in &services {
        if known.contains(service) {
            continue;
        }
        let failure = Failure::new(
            ErrorKind::NotFound,
            format!("workspace {}", workspace.name),
            format!("it has no service {service}"),
        );
        let near = nearest(service.as_str(), &known);
        return Err(failure.remedy(match near {
            Some(near) => format!("did you mean {near}?"),
            None => format!("ssh vendetta workspace services {}", workspace.name),
        }));
    }
    Ok(services.into_iter().collect())
}

/// `workspace services`.
pub(super) async fn list(
    session: &mut Session<'_>,
    name: &str,
    follow: bool,
) -> Result<Done, Failure> {
    let workspace = find(session, Action::View, name)?;
    if session
        .control
        .workspaces
        .service_names(&workspace)?
        .is_empty()
    {
        session
            .note("It has no services; they are written in its config.\n")
            .await?;
        return if session.json {
            session.list("", "services", &[(); 0]).await
        } else {
            Ok(Done::Ok)
        };
    }
    let workspaces = &session.control.workspaces;
    if !follow {
        let services = workspaces.services(&workspace).await?;
        let text = listed(session, &workspace, &services);
        return session.list(&text, "services", &services).await;
    }
    let mut states = workspaces.follow_services(&workspace).await?;
    loop {
        let services = tokio::select! {
            services = states.next() => services,
            () = session.console.interrupted() => return Ok(Done::Ok),
        };
        let Some(services) = services else {
            return Ok(Done::Ok);
        };
        let services = services?;
        let text = listed(session, &workspace, &services);
        session.list(&text, "services", &services).await?;
    }
}

/// One row a service.
pub(super) fn listed(
    session: &Session<'_>,
    workspace: &Authorized<WorkspaceRef>,
    services: &[ServiceStatus],
) -> String {
    let now = Timestamp::now();
    let ports = session.control.workspaces.ports(workspace);
    let ports = ports.map_or_else(|_| Vec::new(), |ports| ports.borrow().clone());
    let on_gateway = |name: &ServiceName| {
        let mapped = |status: &&PortStatus| matches!(&status.mapping.key, PortKey::Service(service) if service == name);
        let status = ports.iter().find(mapped)?;
        (status.state == PortState::Open).then(|| status.mapping.url.clone())
    };
    let rows = services
        .iter()
        .map(|service| {
            let since = i64::try_from(service.since).unwrap_or(i64::MAX);
            let since = Timestamp::from_millisecond(since).unwrap_or(now);
            let port = service.port.map(|port| port.to_string());
            vec![
                service.name.to_string(),
                described(service),
                ago(since, now),
                service.restarts.to_string(),
                port.unwrap_or_default(),
                on_gateway(&service.name).unwrap_or_default(),
            ]
        })
        .collect();
    let headings = [
        "SERVICE",
        "STATE",
        "SINCE",
        "RESTARTS",
        "PORT",
        "ON GATEWAY",
    ];
    table(session.console, &headings, rows)
}

/// `workspace start`, `stop` and `restart`.
pub(super) async fn change(
    session: &mut Session<'_>,
    services: Services,
    request: ServiceRequest,
) -> Result<Done, Failure> {
    let workspace = find(session, Action::Operate, services.target.name())?;
    let names = named(session, &workspace, services.services)?;
    let workspaces = session.control.workspaces.clone();
    let operation = workspaces.change_services(&workspace, request, names.clone());
    let operation = operation.await?;
    let name = &workspace.name;
    watch(
        session.console,
        session.json,
        operation,
        &format!("workspace {name}"),
        &format!("ssh vendetta workspace services {name}"),
    )
    .await?;
    let mut services = workspaces.services(&workspace).await?;
    services.retain(|service| names.is_empty() || names.contains(&service.name));
    let text = if session.json {
        super::progress::result_line("services", &services)
    } else {
        listed(session, &workspace, &services)
    };
    session.console.out(&text).await?;
    Ok(Done::Ok)
}

/// `workspace logs`.
pub(super) async fn logs(session: &mut Session<'_>, logs: Logs) -> Result<Done, Failure> {
    let workspace = find(session, Action::View, logs.target.name())?;
    let services = named(session, &workspace, logs.services)?;
    let has_services = !session
        .control
        .workspaces
        .service_names(&workspace)?
        .is_empty();
    let (follow, tail) = (logs.follow, logs.tail);
    if logs.environment || !has_services {
        return environment(session, &workspace, LogOptions { follow, tail }).await;
    }
    let one = services.len() == 1;
    let options = ServiceLogOptions {
        services,
        follow,
        tail,
        since: logs
            .since
            .map(|since| u64::try_from(since.as_millisecond()).unwrap_or(0)),
    };
    let lines = session.control.workspaces.service_logs(&workspace, options);
    let mut lines = lines.await.map_err(|error| stopped(error, &workspace))?;
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = session.console.interrupted() => return Ok(Done::Ok),
        };
        let Some(line) = line else {
            return Ok(Done::Ok);
        };
        let line = line?;
        let text = if session.json {
            format!("{}\n", json!(line))
        } else {
            shown(&line, !one, logs.timestamps)
        };
        session.console.out(&text).await?;
    }
}

/// The log of the environment can be read when its services' cannot.
fn stopped(error: WorkspaceError, workspace: &WorkspaceRef) -> Failure {
    let is_stopped = error.kind == ErrorKind::Conflict;
    let failure = Failure::from(error);
    if is_stopped {
        let name = &workspace.name;
        return failure.remedy(format!(
            "ssh vendetta workspace up {name}, or for what its environment said: ssh vendetta workspace logs {name} --environment"
        ));
    }
    failure
}

fn shown(line: &LogLine, with_name: bool, with_time: bool) -> String {
    let mut text = String::new();
    if with_time {
        let time = i64::try_from(line.time).unwrap_or(i64::MAX);
        if let Ok(time) = Timestamp::from_millisecond(time) {
            text.push_str(&format!("{time:.3} "));
        }
    }
    if with_name {
        text.push_str(&format!("{:<12}| ", line.service));
    }
    if line.stream == Stream::Supervisor {
        text.push_str("-- ");
    }
    text.push_str(&printable(&line.text));
    text.push('\n');
    text
}

async fn environment(
    session: &mut Session<'_>,
    workspace: &Authorized<WorkspaceRef>,
    options: LogOptions,
) -> Result<Done, Failure> {
    let mut log = session.control.workspaces.logs(workspace, options).await?;
    loop {
        let chunk = tokio::select! {
            chunk = log.next() => match chunk {
                Some(chunk) => chunk?,
                None => return Ok(Done::Ok),
            },
            () = session.console.interrupted() => return Ok(Done::Ok),
        };
        if session.json {
            let text = String::from_utf8_lossy(&chunk);
            let line = format!("{}\n", json!({ "event": "log", "text": text }));
            session.console.out(&line).await?;
        } else {
            session.console.out_bytes(&chunk).await?;
        }
    }
}

/// Whether a service is as it should be while its workspace runs.
pub(super) fn is_well(service: &ServiceStatus) -> bool {
    matches!(service.state, ServiceState::Healthy | ServiceState::Exited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_length_of_time_or_a_time() {
        let ago = since("10m").unwrap();
        let minutes = Timestamp::now().duration_since(ago).as_mins();
        assert!((9..=11).contains(&minutes), "{minutes}");
        assert_eq!(
            since("2026-11-24T12:00:00Z").unwrap().to_string(),
            "2026-11-24T12:00:00Z"
        );
        for wrong in ["", "yesterday", "10", "-3m"] {
            assert!(since(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_line_says_whose_it_is_and_cannot_play_tricks_on_a_terminal() {
        let line = LogLine {
            service: "db".parse().unwrap(),
            time: 1_000,
            stream: Stream::Stdout,
            text: "a\x1b[2Jb".to_owned(),
        };
        assert_eq!(shown(&line, true, false), "db          | a\u{fffd}[2Jb\n");
        assert_eq!(
            shown(&line, false, true),
            "1970-01-01T00:00:01.000Z a\u{fffd}[2Jb\n"
        );
        let supervisor = LogLine {
            stream: Stream::Supervisor,
            text: "started".to_owned(),
            ..line
        };
        assert_eq!(shown(&supervisor, false, false), "-- started\n");
    }
}
