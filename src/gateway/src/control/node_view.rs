//! How a node looks: a row, a page, JSON.

use serde_json::{Value, json};

use super::command::Session;
use super::text::{ago, printable, size, table};
use crate::inventory::{Engine, Health, Node, NodeState, Probe};

/// Its row in the list; with its address for those who may see it.
pub(super) fn row(session: &Session<'_>, node: &Node, admin: bool) -> Vec<String> {
    let (place, health) = (node.place(), node.health());
    let mut row = vec![
        place.name.to_string(),
        format!(
            "{} {}",
            health.state,
            ago(health.since, jiff::Timestamp::now())
        ),
        latency(&health),
        load(&health),
        memory(&health),
        disk(&health),
        engines(&health),
        session.control.workspaces.count_on(node).to_string(),
    ];
    if admin {
        row.push(place.address());
    }
    row
}

fn latency(health: &Health) -> String {
    health.latency_ms.map_or_else(String::new, |ms| match ms {
        ..10.0 => format!("{ms:.1} ms"),
        _ => format!("{ms:.0} ms"),
    })
}

fn load(health: &Health) -> String {
    health.facts.map_or_else(String::new, |facts| {
        let [one, ..] = facts.load;
        format!("{one:.2}/{}", facts.cores)
    })
}

/// The used part of a whole: "3.1 GiB of 15.6 GiB".
fn used(total: u64, available: u64) -> String {
    if total == 0 {
        return String::new();
    }
    format!(
        "{} of {}",
        size(total.saturating_sub(available)),
        size(total)
    )
}

fn memory(health: &Health) -> String {
    health.facts.map_or_else(String::new, |facts| {
        used(facts.memory_total, facts.memory_available)
    })
}

fn disk(health: &Health) -> String {
    health.facts.map_or_else(String::new, |facts| {
        used(facts.disk_total, facts.disk_available)
    })
}

/// The engines that answer, and those that should.
fn engines(health: &Health) -> String {
    let told = health
        .engines
        .iter()
        .filter_map(|(kind, engine)| match engine {
            Engine::Answers { .. } => Some(kind.to_string()),
            Engine::Fails(_) => health
                .needed
                .contains(kind)
                .then(|| format!("{kind} (fails)")),
        });
    told.collect::<Vec<_>>().join(", ")
}

/// A page about it.
pub(super) fn described(session: &Session<'_>, node: &Node) -> String {
    let (place, health) = (node.place(), node.health());
    let admin = super::node::permit(session, "see addresses").is_ok();
    let mut lines: Vec<(&str, String)> = Vec::new();
    let mut line = |name, value: String| {
        if !value.is_empty() {
            lines.push((name, value));
        }
    };
    line("Node", place.name.to_string());
    if admin {
        line("Address", place.address());
    }
    line(
        "State",
        format!(
            "{}, {}",
            health.state,
            ago(health.since, jiff::Timestamp::now())
        ),
    );
    for trouble in &health.troubles {
        line("Trouble", trouble.problem.clone());
        line("  hint", trouble.remedy.clone().unwrap_or_default());
    }
    line("Latency", latency(&health));
    if let Some(skew) = health.clock_skew_seconds
        && skew.abs() >= 2.0
    {
        line("Clock", format!("{skew:+.0} s"));
    }
    if let Some(facts) = health.facts {
        let [one, five, fifteen] = facts.load;
        line(
            "Load",
            format!("{one:.2} {five:.2} {fifteen:.2} on {} cores", facts.cores),
        );
    }
    line("Memory", memory(&health));
    line("Disk", disk(&health));
    for (kind, engine) in &health.engines {
        match engine {
            Engine::Answers { version } => line("Engine", format!("{kind}: {version}")),
            Engine::Fails(trouble) => line("Engine", format!("{kind}: {}", trouble.problem)),
        }
    }
    if let Some(probe) = &place.probe {
        line(
            "System",
            format!("{}, {}, {}", probe.os, probe.kernel, probe.arch),
        );
        line("Also there", also_there(probe));
    }
    if let Some(row) = &place.row {
        line("Host key", row.host_key.fingerprint());
        line(
            "Through",
            row.jump
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        );
    }
    let count = session.control.workspaces.count_on(node);
    line("Workspaces", count.to_string());
    lines
        .iter()
        .map(|(name, value)| printable(&format!("{name:12}{value}\n")))
        .collect()
}

/// What was seen on it beside Docker.
fn also_there(probe: &Probe) -> String {
    let mut parts = Vec::new();
    for (name, socket) in [("Incus", &probe.incus), ("LXD", &probe.lxd)] {
        if let Some(socket) = socket {
            let version = socket.version.as_deref().unwrap_or_default();
            parts.push(format!("{name} {version}").trim_end().to_owned());
        }
    }
    let mut emulators: Vec<_> = probe.qemu.iter().collect();
    emulators.sort();
    for (arch, version) in emulators {
        parts.push(format!("{version} ({arch})"));
    }
    parts.extend(probe.kvm.as_ref().map(ToString::to_string));
    parts.join(", ")
}

/// All of it as JSON.
pub(super) fn value(session: &Session<'_>, node: &Node) -> Value {
    let (place, health) = (node.place(), node.health());
    let admin = super::node::permit(session, "see addresses").is_ok();
    let mut value = json!({
        "name": place.name,
        "health": health,
        "workspaces": session.control.workspaces.count_on(node),
        "allow_host": place.allow_host,
    });
    let Some(object) = value.as_object_mut() else {
        return value;
    };
    if let Some(probe) = &place.probe {
        object.insert("probe".to_owned(), json!(probe));
    }
    if let (Some(row), true) = (&place.row, admin) {
        object.insert("user".to_owned(), json!(row.user));
        object.insert("host".to_owned(), json!(row.host));
        object.insert("port".to_owned(), json!(row.port));
        object.insert("jump".to_owned(), json!(row.jump));
        object.insert("host_key".to_owned(), json!(row.host_key.to_string()));
        object.insert(
            "host_key_fingerprint".to_owned(),
            json!(row.host_key.fingerprint()),
        );
    }
    value
}

/// The nodes on the page of the whole gateway.
pub(super) fn brief(session: &Session<'_>, nodes: &[std::sync::Arc<Node>]) -> String {
    let mut headings = vec![
        "NODE",
        "STATE",
        "LATENCY",
        "LOAD",
        "MEMORY",
        "ENGINES",
        "WORKSPACES",
    ];
    let troubles: Vec<_> = nodes.iter().map(|node| trouble(&node.health())).collect();
    let troubled = troubles.iter().any(Option::is_some);
    if troubled {
        headings.push("TROUBLE");
    }
    let rows = nodes.iter().zip(troubles).map(|(node, trouble)| {
        let health = node.health();
        let mut row = vec![
            node.name().to_string(),
            health.state.to_string(),
            latency(&health),
            load(&health),
            memory(&health),
            engines(&health),
            session.control.workspaces.count_on(node).to_string(),
        ];
        if troubled {
            row.push(trouble.unwrap_or_default());
        }
        row
    });
    table(session.console, &headings, rows.collect())
}

/// The first of what is wrong with it.
fn trouble(health: &Health) -> Option<String> {
    let first = health.troubles.first()?;
    (health.state != NodeState::Up).then(|| first.problem.clone())
}
