//! How a node is, judged from what was seen of it.
//!
//! ```text
//!   unknown ── seen ──▶ up ◀──▶ degraded
//!      │                │           │
//!      └── unreachable ─┴──▶ down ◀─┘
//! ```
//!
//! Degraded is reachable, but something is wrong that people should see: an
//! engine that does not answer, a full disk, a clock that is off.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use vendetta_proto::spec::ProviderKind;

use crate::node::Facts;

/// Least part of a node's disk that should be free.
const LEAST_FREE: f64 = 0.05;

/// Most that a node's clock may be off: certificates and logs stop making sense beyond.
const MOST_SKEW: Duration = Duration::from_secs(30);

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Not looked at yet.
    Unknown,
    /// Reachable, and all is well.
    Up,
    /// Reachable, and something is wrong.
    Degraded,
    /// Not reachable.
    Down,
}

impl NodeState {
    /// The word shown to people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something wrong with a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// What is wrong.
    pub problem: String,
    /// What to do, where there is something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// An engine of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Engine {
    /// It answers.
    Answers {
        /// What it says of itself.
        version: String,
    },
    /// It does not.
    Fails(Trouble),
}

/// What one look at a node saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// Load, memory, disk, clock; or why the node could not be asked.
    pub facts: Result<Facts, Trouble>,
    /// Time of a round trip.
    pub latency: Option<Duration>,
    /// How far its clock is ahead of ours (negative: behind), in seconds.
    pub skew_seconds: Option<f64>,
    /// Its engines; as they were where they were not asked.
    pub engines: BTreeMap<ProviderKind, Engine>,
    /// Engines that have answered once; the others may be missing.
    pub needed: Vec<ProviderKind>,
}

/// How a node is, as of the latest look.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// How it is.
    pub state: NodeState,
    /// Since when.
    pub since: Timestamp,
    /// When it was looked at last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked: Option<Timestamp>,
    /// What is wrong, worst first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Trouble>,
    /// Time of a round trip, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// How far its clock is ahead of ours (negative: behind), in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<f64>,
    /// Load, memory, disk as of the latest look that saw them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
    /// Its engines as of the latest look that saw them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub engines: BTreeMap<ProviderKind, Engine>,
    /// Engines that have answered, and whose silence is trouble therefore.
    #[serde(skip)]
    pub needed: Vec<ProviderKind>,
}

impl Health {
    pub(super) fn unknown() -> Self {
        Self {
            state: NodeState::Unknown,
            since: Timestamp::now(),
            checked: None,
            troubles: Vec::new(),
            latency_ms: None,
            clock_skew_seconds: None,
            facts: None,
            engines: BTreeMap::new(),
            needed: Vec::new(),
        }
    }

    /// How it is after `look`, taken at `now`.
    #[must_use]
    pub fn after(&self, look: Look, now: Timestamp) -> Self {
        let (state, troubles) = judge(&look);
        Self {
            state,
            since: if state == self.state { self.since } else { now },
            checked: Some(now),
            troubles,
            latency_ms: look.latency.map(|latency| latency.as_secs_f64() * 1e3),
            clock_skew_seconds: look.skew_seconds,
            facts: look.facts.ok().or(self.facts),
            engines: look.engines,
            needed: look.needed,
        }
    }
}

fn judge(look: &Look) -> (NodeState, Vec<Trouble>) {
    let facts = match &look.facts {
        Ok(facts) => facts,
        Err(trouble) => return (NodeState::Down, vec![trouble.clone()]),
    };
    let mut troubles = Vec::new();
    for (kind, engine) in &look.engines {
        if let Engine::Fails(trouble) = engine
            && look.needed.contains(kind)
        {
            troubles.push(trouble.clone());
        }
    }
    if let Some(free) = facts.disk_free()
        && free < LEAST_FREE
    {
        troubles.push(Trouble {
            problem: format!("its disk is full to {:.0} %", (1.0 - free) * 100.0),
            remedy: Some("make room on the node, for instance: docker system prune".to_owned()),
        });
    }
    if let Some(skew) = look.skew_seconds
        && skew.abs() > MOST_SKEW.as_secs_f64()
    {
        let direction = if skew > 0.0 { "ahead" } else { "behind" };
        troubles.push(Trouble {
            problem: format!("its clock is {:.0} s {direction}", skew.abs()),
            remedy: Some(
                "set it on the node, for instance: sudo timedatectl set-ntp true".to_owned(),
            ),
        });
    }
    let state = if troubles.is_empty() {
        NodeState::Up
    } else {
        NodeState::Degraded
    };
    (state, troubles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            disk_total: 100,
            disk_available: 50,
            ..Facts::default()
        }
    }

    fn look(facts: Result<Facts, Trouble>) -> Look {
        Look {
            facts,
            latency: None,
            skew_seconds: Some(0.0),
            engines: BTreeMap::new(),
            needed: Vec::new(),
        }
    }

    fn trouble(problem: &str) -> Trouble {
        Trouble {
            problem: problem.to_owned(),
            remedy: None,
        }
    }

    #[test]
    fn a_node_that_cannot_be_asked_is_down_and_keeps_what_was_known() {
        let then = Timestamp::from_second(1000).unwrap();
        let now = Timestamp::from_second(1010).unwrap();
        let up = Health::unknown().after(look(Ok(facts())), then);
        assert_eq!((up.state, up.since), (NodeState::Up, then));
        let down = up.after(look(Err(trouble("gone"))), now);
        assert_eq!((down.state, down.since), (NodeState::Down, now));
        assert_eq!(down.facts, Some(facts()));
        assert_eq!(down.troubles, [trouble("gone")]);
        let still = down.after(
            look(Err(trouble("gone"))),
            Timestamp::from_second(1020).unwrap(),
        );
        assert_eq!(still.since, now);
    }

    #[test]
    fn a_full_disk_a_wrong_clock_and_a_silent_engine_are_trouble() {
        let now = Timestamp::now();
        let full = Facts {
            disk_available: 4,
            ..facts()
        };
        let mut clock = look(Ok(facts()));
        clock.skew_seconds = Some(-90.0);
        let mut engine = look(Ok(facts()));
        engine
            .engines
            .insert(ProviderKind::Docker, Engine::Fails(trouble("silent")));
        let absent = engine.clone();
        engine.needed.push(ProviderKind::Docker);
        for (look, word) in [
            (look(Ok(full)), "disk"),
            (clock, "behind"),
            (engine, "silent"),
        ] {
            let health = Health::unknown().after(look, now);
            assert_eq!(health.state, NodeState::Degraded, "{word}");
            assert!(health.troubles[0].problem.contains(word), "{health:?}");
        }
        let without = Health::unknown().after(absent, now);
        assert_eq!(
            without.state,
            NodeState::Up,
            "an engine that never was there is not missed"
        );
    }
}
