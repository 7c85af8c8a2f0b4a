//! `workspace ports`: where the ports of a workspace are, and how they are
//! brought to the user's machine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::sync::watch;
use vendetta_proto::WorkspaceName;
use vendetta_proto::rpc::ListeningPort;

use super::command::{Done, Session};
use super::failure::Failure;
use super::redraw::redraw;
use super::text::table;
use super::workspace::find;
use crate::access::{Action, Authorized};
use crate::workspace::{
    ErrorKind, ListeningStream, PortState, PortStatus, WorkspaceRef, Workspaces,
};

/// Time between two tries to follow what listens.
const RETRY: Duration = Duration::from_secs(2);

/// Ports below this one need privileges on most machines.
const UNPRIVILEGED: u16 = 1024;

/// Added to a port below [`UNPRIVILEGED`] for one that needs none.
const RAISE: u16 = 8000;

/// The port of the user's machine that a port of a workspace is brought to.
#[must_use]
pub fn local_port(port: u16) -> u16 {
    if port < UNPRIVILEGED {
        port + RAISE
    } else {
        port
    }
}

/// What listens inside: none while that cannot be told.
type Listening = Option<Vec<ListeningPort>>;

pub(super) async fn ports(
    session: &mut Session<'_>,
    name: &str,
    follow: bool,
) -> Result<Done, Failure> {
    let workspace = find(session, Action::View, name)?;
    let workspaces = session.control.workspaces.clone();
    let mapped = workspaces.ports(&workspace)?;
    if !follow {
        let listening = match workspaces.listening(&workspace).await {
            Ok(listening) => Some(listening),
            // It does not run.
            Err(error) if error.kind == ErrorKind::Conflict => None,
            Err(error) => {
                let text = format!("What listens inside cannot be told: {}\n", error.problem);
                session.note(&text).await?;
                None
            }
        };
        let mapped = mapped.borrow().clone();
        let (text, value) = page(session, &workspace.name, &mapped, &listening);
        return session.answer(&text, value).await;
    }
    let shown = Arc::new(Mutex::new(None));
    let mut watcher = Watcher {
        mapped: mapped.clone(),
        listening: follow_listening(workspaces, workspace.clone()),
        shown: Arc::clone(&shown),
    };
    let changed = async move || watcher.changed().await;
    redraw(session, changed, |session| {
        let listening = shown.lock().unwrap_or_else(PoisonError::into_inner);
        page(session, &workspace.name, &mapped.borrow(), &listening)
    })
    .await
}

/// Waits for changes of what is shown.
struct Watcher {
    mapped: watch::Receiver<Vec<PortStatus>>,
    listening: BoxStream<'static, Listening>,
    shown: Arc<Mutex<Listening>>,
}

impl Watcher {
    /// Returns when there is something new; false when there never will be.
    async fn changed(&mut self) -> bool {
        let told = tokio::select! {
            changed = self.mapped.changed() => return changed.is_ok(),
            told = self.listening.next() => told,
        };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = told.flatten();
        true
    }
}

/// What listens inside, again whenever that changed; it never ends, whatever
/// becomes of the workspace.
fn follow_listening(
    workspaces: Workspaces,
    workspace: Authorized<WorkspaceRef>,
) -> BoxStream<'static, Listening> {
    // A stream keeps what is under way when it is not polled for a while.
    futures::stream::unfold((workspaces, workspace, None), |state| async {
        let (workspaces, workspace, mut open): (_, _, Option<ListeningStream>) = state;
        let told = loop {
            if let Some(stream) = &mut open {
                match stream.next().await {
                    Some(Ok(ports)) => break Some(ports),
                    Some(Err(_)) | None => {
                        open = None;
                        break None;
                    }
                }
            }
            if workspaces.reachable(&workspace).await.is_err() {
                // It was destroyed.
                std::future::pending::<()>().await;
            }
            match workspaces.follow_listening(&workspace).await {
                Ok(stream) => open = Some(stream),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        if told.is_none() {
            tokio::time::sleep(RETRY).await;
        }
        Some((told, (workspaces, workspace, open)))
    })
    .boxed()
}

/// Text and JSON.
fn page(
    session: &Session<'_>,
    workspace: &WorkspaceName,
    mapped: &[PortStatus],
    listening: &Listening,
) -> (String, Value) {
    let forward = |host: &str, port| session.control.forward_command(workspace, host, port);
    let forward_mapped = |status: &PortStatus| {
        let service = status.mapping.key.service();
        let host = service.map_or("localhost", |service| service.as_str());
        forward(host, status.mapping.port)
    };
    let found = found(mapped, listening);

    let mut rows = Vec::new();
    let mut values = Vec::new();
    for status in mapped {
        let mapping = &status.mapping;
        let service = mapping.key.service();
        let listens = listens(mapping.port, listening);
        let state = match &status.problem {
            Some(problem) => format!("{}: {problem}", status.state.as_str()),
            None if status.state == PortState::Open && listens == Some(false) => {
                "open, nothing listens inside".to_owned()
            }
            None => status.state.as_str().to_owned(),
        };
        rows.push(vec![
            service.map_or("-", |service| service.as_str()).to_owned(),
            mapping.port.to_string(),
            mapping.host_port.to_string(),
            state,
            mapping.url.clone(),
            forward_mapped(status),
        ]);
        let mut value = serde_json::to_value(status).unwrap_or_default();
        if let Some(value) = value.as_object_mut() {
            value.insert("forward".to_owned(), json!(forward_mapped(status)));
            value.insert("listening".to_owned(), json!(listens));
        }
        values.push(value);
    }
    let mut text = String::new();
    if rows.is_empty() {
        text.push_str("No ports: the project config has no services with a port, and no ports.\n");
    } else {
        let headings = ["SERVICE", "PORT", "ON GATEWAY", "STATE", "URL", "FORWARD"];
        text.push_str(&table(session.console, &headings, rows));
    }
    if !found.is_empty() {
        text.push_str("\nAlso open inside; each can be forwarded at once:\n");
        let rows = found.iter().map(|port| {
            let program = match (&port.program, port.pid) {
                (Some(program), Some(pid)) => format!("{program} ({pid})"),
                (Some(program), None) => program.clone(),
                (None, _) => "-".to_owned(),
            };
            let (number, address) = (port.port.to_string(), port.address.clone());
            vec![number, address, program, forward(inside(port), port.port)]
        });
        let headings = ["PORT", "ADDRESS", "PROGRAM", "FORWARD"];
        text.push_str(&table(session.console, &headings, rows.collect()));
    }
    let discovered: Vec<Value> = found
        .iter()
        .map(|port| {
            json!({
                "port": port.port,
                "address": port.address,
                "program": port.program,
                "pid": port.pid,
                "service": port.service,
                "forward": forward(inside(port), port.port),
            })
        })
        .collect();
    let value = json!({
        "workspace": workspace,
        "mapped": values,
        "discovered": listening.is_some().then_some(discovered),
    });
    (text, value)
}

/// Whether a program listens on a port inside; none while that cannot be told.
fn listens(port: u16, listening: &Listening) -> Option<bool> {
    let listening = listening.as_ref()?;
    Some(listening.iter().any(|listener| listener.port == port))
}

/// What listens inside besides what is mapped, each port once.
fn found<'a>(mapped: &[PortStatus], listening: &'a Listening) -> Vec<&'a ListeningPort> {
    let mut found: Vec<&ListeningPort> = listening.iter().flatten().collect();
    found.retain(|port| !mapped.iter().any(|status| status.mapping.port == port.port));
    found.sort_by_key(|port| port.port);
    found.dedup_by_key(|port| port.port);
    found
}

/// Where a port is reached from inside the environment.
fn inside(port: &ListeningPort) -> &str {
    match port.address.as_str() {
        "0.0.0.0" | "::" | "127.0.0.1" | "::1" => "localhost",
        other => other,
    }
}

/// The mapped ports in one line, for `workspace status`; none when there are none.
pub(super) fn brief(ports: &[PortStatus]) -> Option<String> {
    let parts: Vec<String> = ports
        .iter()
        .map(|status| {
            let mapping = &status.mapping;
            let to = format!("{} on {}", mapping.key, mapping.host_port);
            match status.state {
                PortState::Open | PortState::Closed => to,
                PortState::Taken => format!("{to} (taken)"),
            }
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_privileges_is_brought_to_a_port_that_needs_none() {
        assert_eq!(local_port(80), 8080);
        assert_eq!(local_port(443), 8443);
        assert_eq!(local_port(1024), 1024);
        assert_eq!(local_port(65535), 65535);
    }

    #[test]
    fn a_port_is_found_once_and_not_when_it_is_mapped() {
        let port = |port, address: &str| ListeningPort {
            port,
            address: address.to_owned(),
            pid: None,
            program: None,
            service: None,
        };
        let mapping = crate::workspace::PortMapping {
            key: crate::workspace::PortKey::Port(80),
            port: 80,
            host_port: 20000,
            url: String::new(),
        };
        let listening = Some(vec![port(80, "::"), port(22, "::"), port(22, "0.0.0.0")]);
        let found = found(&[mapping.into()], &listening);
        let ports: Vec<u16> = found.iter().map(|port| port.port).collect();
        assert_eq!(ports, [22]);
        assert_eq!(inside(&port(5000, "10.0.0.1")), "10.0.0.1");
        assert_eq!(inside(&port(5000, "::1")), "localhost");
    }
}
