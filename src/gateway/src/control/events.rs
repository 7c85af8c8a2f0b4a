//! `events`: what happens on the gateway, as it happens.

use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::command::{Done, Session};
use super::failure::Failure;
use super::text::printable;
use crate::access::{Account, Action, authorize};
use crate::events::{Event, Happening};

pub(super) async fn events(session: &mut Session<'_>) -> Result<Done, Failure> {
    let mut events = session.control.events.watch();
    if !session.json {
        session.note("Watching; Ctrl-C ends it.\n").await?;
    }
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = session.console.interrupted() => return Ok(Done::Ok),
        };
        let text = match event {
            Ok(event) if !concerns(session, &event) => continue,
            Ok(event) if session.json => {
                format!("{}\n", serde_json::to_value(&event).unwrap_or_default())
            }
            Ok(event) => told(&event),
            Err(RecvError::Lagged(missed)) if session.json => {
                format!("{}\n", json!({ "event": "missed", "count": missed }))
            }
            Err(RecvError::Lagged(missed)) => format!("({missed} events were missed)\n"),
            Err(RecvError::Closed) => return Ok(Done::Ok),
        };
        session.console.out(&text).await?;
    }
}

/// Members see what happens to nodes and to their own workspaces.
fn concerns(session: &Session<'_>, event: &Event) -> bool {
    let principal = &session.caller.principal;
    event
        .what
        .owner()
        .is_none_or(|owner| authorize(principal, Action::View, Account(owner.clone())).is_ok())
}

fn told(event: &Event) -> String {
    let cause = |cause: &Option<String>| match cause {
        Some(cause) => format!(": {}", cause.lines().next().unwrap_or_default()),
        None => String::new(),
    };
    let text = match &event.what {
        Happening::WorkspaceState {
            workspace,
            to,
            cause: why,
            ..
        } => {
            format!("workspace {workspace} is {to}{}", cause(why))
        }
        Happening::NodeState {
            node,
            to,
            cause: why,
            ..
        } => {
            format!("node {node} is {to}{}", cause(why))
        }
        Happening::NodeAdded { node } => format!("node {node} was added"),
        Happening::NodeRemoved { node } => format!("node {node} was removed"),
        Happening::NodeRenamed { from, to } => format!("node {from} is now called {to}"),
    };
    let at = event.at.strftime("%H:%M:%S");
    printable(&format!("{at}  {text}\n"))
}
