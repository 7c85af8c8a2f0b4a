//! Bringing a workspace up and down, making it anew, removing it.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::json;
use vendetta_proto::ServiceName;
use vendetta_proto::rpc::ServiceState;

use super::command::{Done, Session};
use super::failure::Failure;
use super::progress::watch;
use super::service;
use super::workspace::find;
use crate::access::{Action, Authorized};
use crate::config::NotHonoured;
use crate::inventory::AgentAccess;
use crate::workspace::{
    NewConfig, Operation, ServiceRequest, WorkspaceRef, WorkspaceStatus, Workspaces,
};

/// What to do with a workspace.
#[derive(Debug)]
pub(super) enum Change {
    Up,
    Down,
    /// With what it is made from, from now on.
    Rebuild(Option<NewConfig>),
}

impl Change {
    async fn begin(
        self,
        workspaces: &Workspaces,
        workspace: &Authorized<WorkspaceRef>,
        ssh_agent: Option<Arc<dyn AgentAccess>>,
    ) -> Operation {
        match self {
            Self::Up => workspaces.up(workspace, ssh_agent).await,
            Self::Down => workspaces.down(workspace).await,
            Self::Rebuild(config) => workspaces.rebuild(workspace, config, ssh_agent).await,
        }
    }
}

/// Does it and shows how it goes.
pub(super) async fn run(
    session: &mut Session<'_>,
    name: &str,
    change: Change,
) -> Result<Done, Failure> {
    let workspace = find(session, Action::Operate, name)?;
    follow(session, &workspace, change, &[]).await
}

/// The same for a workspace that was found already; `not_honoured` is of its config.
pub(super) async fn follow(
    session: &mut Session<'_>,
    workspace: &Authorized<WorkspaceRef>,
    change: Change,
    not_honoured: &[NotHonoured],
) -> Result<Done, Failure> {
    let ssh_agent = session.console.agent();
    let (is_up, is_down) = (matches!(change, Change::Up), matches!(change, Change::Down));
    let operation = change
        .begin(&session.control.workspaces, workspace, ssh_agent)
        .await;
    let name = &workspace.name;
    let (subject, follow_up) = (
        format!("workspace {name}"),
        format!("ssh vendetta workspace status {name}"),
    );
    watch(
        session.console,
        session.json,
        operation,
        &subject,
        &follow_up,
    )
    .await?;
    if is_up {
        start_failed(session, workspace).await?;
    }
    let text = if session.json {
        result(&session.control.workspaces.status(workspace)?, not_honoured)
    } else if is_down {
        format!(
            "Workspace {name} is down; its disk stays. Bring it up with: ssh vendetta workspace up {name}\n"
        )
    } else {
        started(session, workspace).await?
    };
    session.console.out(&text).await?;
    Ok(Done::Ok)
}

/// The last line of JSON.
pub(super) fn result(status: &WorkspaceStatus, not_honoured: &[NotHonoured]) -> String {
    let mut result = json!({ "event": "result", "workspace": status });
    if let Some(result) = result.as_object_mut().filter(|_| !not_honoured.is_empty()) {
        result.insert("not_honoured".to_owned(), json!(not_honoured));
    }
    format!("{result}\n")
}

/// Starts the services that are not well any more in a workspace that was up
/// already; one that somebody stopped is left to them.
async fn start_failed(
    session: &mut Session<'_>,
    workspace: &Authorized<WorkspaceRef>,
) -> Result<(), Failure> {
    let workspaces = session.control.workspaces.clone();
    if workspaces.service_names(workspace)?.is_empty() {
        return Ok(());
    }
    let services = workspaces.services(workspace).await?.into_iter();
    let stopped = |state| matches!(state, ServiceState::Stopped | ServiceState::Stopping);
    let failed = services.filter(|service| !service::is_well(service) && !stopped(service.state));
    let failed: BTreeSet<ServiceName> = failed.map(|service| service.name).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let request = ServiceRequest::Start;
    let operation = workspaces
        .change_services(workspace, request, failed)
        .await?;
    let name = &workspace.name;
    let (subject, follow_up) = (
        format!("workspace {name}"),
        format!("ssh vendetta workspace services {name}"),
    );
    let (console, json) = (&mut session.console, session.json);
    watch(console, json, operation, &subject, &follow_up).await
}

/// What runs where, and how to use it.
async fn started(
    session: &mut Session<'_>,
    workspace: &Authorized<WorkspaceRef>,
) -> Result<String, Failure> {
    let connect = session.control.connect_command(&workspace.name);
    let workspaces = &session.control.workspaces;
    if workspaces.service_names(workspace)?.is_empty() {
        return Ok(format!("Environment started. Connect with: {connect}\n"));
    }
    let services = workspaces.services(workspace).await?;
    let table = service::listed(session, workspace, &services);
    let name = &workspace.name;
    // One that was stopped is left to its owner.
    let troubled: Vec<&str> = services
        .iter()
        .filter(|service| !service::is_well(service))
        .map(|service| service.name.as_str())
        .collect();
    let state = if troubled.is_empty() {
        "services ready".to_owned()
    } else {
        let troubled = troubled.join(" ");
        format!("but not all services are ready (ssh vendetta workspace restart {name} {troubled})")
    };
    let ports = if services.iter().any(|service| service.port.is_some()) {
        format!(
            "Bring its ports to your machine with: vendetta workspace connect {name}, or one by one: ssh vendetta workspace ports {name}\n"
        )
    } else {
        String::new()
    };
    Ok(format!(
        "{table}\n{ports}Environment started, {state}. Connect with: {connect}\n"
    ))
}

/// Removes a workspace, after asking.
pub(super) async fn destroy(
    session: &mut Session<'_>,
    name: &str,
    yes: bool,
) -> Result<Done, Failure> {
    let workspace = find(session, Action::Destroy, name)?;
    let name = &workspace.name;
    let subject = format!("workspace {name}");
    session
        .confirm(
            yes,
            &subject,
            &format!("Destroy workspace {name} and everything in it?"),
        )
        .await?;
    let operation = session.control.workspaces.destroy(&workspace).await;
    watch(
        session.console,
        session.json,
        operation,
        &subject,
        "ssh vendetta workspace list",
    )
    .await?;
    let text = if session.json {
        format!("{}\n", json!({ "event": "result", "destroyed": name }))
    } else {
        format!("Workspace {name} is gone.\n")
    };
    session.console.out(&text).await?;
    Ok(Done::Ok)
}
