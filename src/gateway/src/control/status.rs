//! `status`, `whoami`, `version`: the gateway and the caller.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::command::{Done, Session};
use super::failure::Failure;
use super::node_view;
use super::redraw::redraw;

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn status(session: &mut Session<'_>, watch: bool) -> Result<Done, Failure> {
    if !watch {
        let (text, value) = page(session);
        return session.answer(&text, value).await;
    }
    let events = session.control.events.clone();
    let mut events = events.watch();
    let happened = async move || {
        // Missed some: then something has changed all the same.
        !matches!(events.recv().await, Err(RecvError::Closed))
    };
    redraw(session, happened, page).await
}

/// The whole gateway on one screen.
fn page(session: &Session<'_>) -> (String, Value) {
    let control = session.control;
    let principal = &session.caller.principal;
    let (host, port) = control.config.address(control.bound);
    let mut states: BTreeMap<&'static str, usize> = BTreeMap::new();
    for workspace in control.workspaces.list(principal) {
        *states.entry(workspace.state.as_str()).or_default() += 1;
    }
    let total: usize = states.values().sum();
    let uptime = control.started.elapsed().as_secs();
    let parts: Vec<String> = states
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let workspaces = if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(", ")
    };
    let nodes = control.workspaces.inventory().list();
    let mut text = format!(
        "Gateway     {host} port {port}\nVersion     {VERSION}\nUp          {}\nYou         {} ({})\nWorkspaces  {workspaces}\n\n",
        super::text::duration(i64::try_from(uptime).unwrap_or(i64::MAX)),
        principal.user,
        principal.role,
    );
    text.push_str(&node_view::brief(session, &nodes));
    let value = json!({
        "gateway": { "host": host, "port": port, "version": VERSION, "uptime_seconds": uptime },
        "user": { "name": principal.user, "role": principal.role },
        "workspaces": { "total": total, "by_state": states },
        "nodes": nodes.iter().map(|node| node_view::value(session, node)).collect::<Vec<_>>(),
    });
    (text, value)
}

pub(super) async fn whoami(session: &mut Session<'_>) -> Result<Done, Failure> {
    let principal = &session.caller.principal;
    let text = format!(
        "{} ({}), key {}\n",
        principal.user, principal.role, principal.key_fingerprint
    );
    let value = json!({
        "user": principal.user,
        "role": principal.role,
        "key_fingerprint": principal.key_fingerprint,
    });
    session.answer(&text, value).await
}

pub(super) async fn version(session: &mut Session<'_>) -> Result<Done, Failure> {
    session
        .answer(
            &format!("vendetta {VERSION}\n"),
            json!({ "name": "vendetta", "version": VERSION }),
        )
        .await
}
