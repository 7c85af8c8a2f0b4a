//! The task that watches a node. It alone says how the node is.
//!
//! A look is a round trip, one small script, and now and then a word with each
//! engine. Each has a time limit, and looks at different nodes never wait for
//! one another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout};
use vendetta_proto::spec::ProviderKind;

use super::health::{Engine, Health, Look, NodeState, Trouble};
use super::node::{Node, Place};
use crate::events::{Events, Happening};
use crate::node::{LinkState, NodeError};
use crate::provider::ProviderError;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// Time between two words with the engines.
const ENGINES: Duration = Duration::from_secs(60);

/// How long a node or an engine may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Watches `node` until it leaves the inventory.
pub(super) async fn run(node: Arc<Node>, events: Events) {
    let watching = async {
        let mut engines_due = Instant::now();
        loop {
            let place = node.place();
            let next = Instant::now() + LOOK;
            let with_engines = Instant::now() >= engines_due;
            let look = look(&node, &place, with_engines).await;
            if with_engines && look.facts.is_ok() {
                engines_due = Instant::now() + ENGINES;
            }
            publish(&node, look, &events);
            tokio::select! {
                () = sleep_until(next) => {}
                () = node.check.notified() => engines_due = Instant::now(),
                () = turned(&node, &place) => {}
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = node.gone() => {}
    }
}

/// Waits until the connection to the node is lost or made again: as soon as
/// that is known, everybody should.
async fn turned(node: &Node, place: &Place) {
    let Some(ssh) = &place.ssh else {
        return std::future::pending().await;
    };
    let was_down = node.health().state == NodeState::Down;
    let mut link = ssh.link();
    let other = |state: &LinkState| match state {
        LinkState::Up { .. } => was_down,
        LinkState::Down { .. } => !was_down,
        LinkState::Idle | LinkState::Connecting => false,
    };
    if link.wait_for(other).await.is_err() {
        std::future::pending().await
    }
}

async fn look(node: &Node, place: &Place, with_engines: bool) -> Look {
    let (latency, facts, skew) = ask(place).await;
    let mut look = Look {
        facts,
        latency,
        skew_seconds: skew,
        engines: BTreeMap::new(),
        needed: needed(&node.health(), place),
    };
    if with_engines && look.facts.is_ok() {
        for provider in place.usable() {
            let engine = match timeout(LIMIT, provider.probe()).await {
                Ok(Ok(version)) => Engine::Answers { version },
                Ok(Err(error)) => Engine::Fails(engine_trouble(&error)),
                Err(_) => Engine::Fails(Trouble {
                    problem: format!("{} does not answer", provider.kind()),
                    remedy: None,
                }),
            };
            look.engines.insert(provider.kind(), engine);
        }
        // What has answered once is meant to be there.
        look.needed = needed_after(look.needed, &look.engines);
    } else {
        look.engines.clone_from(&node.health().engines);
    }
    look
}

/// A round trip, the facts, and how far the node's clock is ahead.
async fn ask(
    place: &Place,
) -> (
    Option<Duration>,
    Result<crate::node::Facts, Trouble>,
    Option<f64>,
) {
    let latency = match &place.ssh {
        None => None,
        Some(ssh) => match ssh.latency().await {
            Ok(latency) => Some(latency),
            Err(error) => return (None, Err(node_trouble(&error)), None),
        },
    };
    let before = Timestamp::now();
    match timeout(LIMIT, crate::node::facts(place.transport.as_ref())).await {
        Ok(Ok(facts)) => {
            let after = Timestamp::now();
            let between = (before.as_millisecond() + after.as_millisecond()) / 2;
            #[allow(clippy::cast_precision_loss)]
            let skew = facts.clock as f64 - between as f64 / 1e3;
            // The node tells whole seconds only, and of a clock that it has none.
            let skew = (facts.clock > 0).then_some(if skew.abs() < 2.0 { 0.0 } else { skew });
            (latency, Ok(facts), skew)
        }
        Ok(Err(error)) => (latency, Err(node_trouble(&error)), None),
        Err(_) => {
            let problem = format!("it does not answer within {} s", LIMIT.as_secs());
            (
                latency,
                Err(Trouble {
                    problem,
                    remedy: None,
                }),
                None,
            )
        }
    }
}

/// The engines whose silence is trouble: those that answered before, or that we
/// were let into when the node was added.
fn needed(health: &Health, place: &Place) -> Vec<ProviderKind> {
    let answered = health
        .engines
        .iter()
        .filter_map(|(kind, engine)| match engine {
            Engine::Answers { .. } => Some(*kind),
            Engine::Fails(_) => health.needed.contains(kind).then_some(*kind),
        });
    let mut needed: Vec<_> = answered.collect();
    if let Some(probe) = &place.probe {
        for (kind, socket) in [
            (ProviderKind::Docker, &probe.docker),
            (ProviderKind::Lxc, &probe.incus),
            (ProviderKind::Lxc, &probe.lxd),
        ] {
            let usable = socket.as_ref().is_some_and(|socket| socket.usable);
            if usable && !needed.contains(&kind) {
                needed.push(kind);
            }
        }
    }
    needed.retain(|kind| place.providers.contains_key(kind));
    needed
}

fn needed_after(
    mut needed: Vec<ProviderKind>,
    engines: &BTreeMap<ProviderKind, Engine>,
) -> Vec<ProviderKind> {
    for (kind, engine) in engines {
        if matches!(engine, Engine::Answers { .. }) && !needed.contains(kind) {
            needed.push(*kind);
        }
    }
    needed
}

fn node_trouble(error: &NodeError) -> Trouble {
    Trouble {
        problem: error.to_string(),
        remedy: error.remedy(),
    }
}

fn engine_trouble(error: &ProviderError) -> Trouble {
    Trouble {
        problem: error.to_string(),
        remedy: error.remedy(),
    }
}

fn publish(node: &Node, look: Look, events: &Events) {
    let before = node.health();
    let after = before.after(look, Timestamp::now());
    if before.state != after.state {
        let cause = after
            .troubles
            .first()
            .map(|trouble| trouble.problem.clone());
        tracing::info!(node = %node.name(), from = %before.state, to = %after.state, cause, "node");
        events.tell(Happening::NodeState {
            node: node.name(),
            from: before.state.as_str(),
            to: after.state.as_str(),
            cause,
        });
    }
    node.publish(after);
}
