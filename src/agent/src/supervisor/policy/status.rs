//! What is said about services.

use std::collections::BTreeMap;

use vendetta_proto::ServiceName;
use vendetta_proto::rpc::{ServiceState, ServiceStatus, Settled};

use super::unit::{Phase, Unit, Verdict};

/// How all services are, by name; `order` has each after what it depends on.
pub(super) fn all(
    units: &BTreeMap<ServiceName, Unit>,
    order: &[ServiceName],
) -> Vec<ServiceStatus> {
    let mut settled: BTreeMap<&ServiceName, Settled> = BTreeMap::new();
    for name in order {
        if let Some(unit) = units.get(name) {
            let of = |name: &ServiceName| settled.get(name).copied().unwrap_or(Settled::Badly);
            let hopeless = unit.plan.depends_on.iter().any(|dependency| {
                of(dependency) == Settled::Badly
                    || units
                        .get(dependency)
                        .is_none_or(|unit| unit.state() == ServiceState::Stopped)
            });
            settled.insert(name, settle(unit, hopeless));
        }
    }
    units
        .iter()
        .map(|(name, unit)| {
            let (pid, next_start) = match &unit.phase {
                Phase::Running { pid, .. } => (Some(*pid), None),
                Phase::Stopping { pid, .. } => (*pid, None),
                Phase::BackingOff { until_wall, .. } => (None, Some(*until_wall)),
                _ => (None, None),
            };
            ServiceStatus {
                name: name.clone(),
                state: unit.state(),
                settled: settled.get(name).copied().unwrap_or(Settled::Badly),
                since: unit.since,
                pid,
                port: None,
                restarts: unit.restarts,
                ended: unit.ended.clone(),
                reason: reason(name, unit, units),
                next_start,
            }
        })
        .collect()
}

/// Whether what was asked of `unit` is so; `hopeless` when something it
/// depends on is not as it should be.
fn settle(unit: &Unit, hopeless: bool) -> Settled {
    let under_way = if unit.is_crashing() {
        Settled::Badly
    } else {
        Settled::NotYet
    };
    match (&unit.phase, unit.state()) {
        (_, ServiceState::Stopping) => Settled::NotYet,
        (_, ServiceState::Stopped | ServiceState::Exited) => Settled::Well,
        (_, ServiceState::Failed | ServiceState::Unhealthy) => Settled::Badly,
        (_, ServiceState::Waiting) if hopeless => Settled::Badly,
        (Phase::Running { health, .. }, ServiceState::Healthy) if health.settled => Settled::Well,
        _ => under_way,
    }
}

fn reason(name: &ServiceName, unit: &Unit, units: &BTreeMap<ServiceName, Unit>) -> Option<String> {
    let missing = || {
        let missing = unit.plan.depends_on.iter().filter_map(|dependency| {
            let other = units.get(dependency)?;
            let state = match other.state() {
                ServiceState::Healthy => "not done yet",
                state => state.as_str(),
            };
            (!other.is_ready()).then(|| format!("{dependency} ({state})"))
        });
        let missing: Vec<String> = missing.collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    };
    let crashing = || {
        unit.is_crashing()
            .then(|| format!("it ended {} times in a row", unit.ends()))
    };
    match &unit.phase {
        Phase::Waiting => missing().map(|missing| format!("waits for {missing}")),
        Phase::Launching(_) | Phase::Running { .. } if unit.asked.is_some() => {
            let before = units
                .iter()
                .filter(|(_, other)| other.plan.depends_on.contains(name) && other.is_stopping());
            let before: Vec<&str> = before.map(|(name, _)| name.as_str()).collect();
            (!before.is_empty()).then(|| format!("stops after {}", before.join(", ")))
        }
        Phase::Running { health, .. } => match (health.verdict, &unit.trouble) {
            (Verdict::Starting | Verdict::Unhealthy, Some(trouble)) => Some(trouble.clone()),
            _ => missing()
                .map(|missing| format!("runs without what it depends on: {missing}"))
                .or_else(|| (!health.settled).then(crashing).flatten()),
        },
        Phase::BackingOff { .. } | Phase::EndedBadly | Phase::Launching(_) => {
            unit.trouble.clone().or_else(crashing)
        }
        Phase::Stopped | Phase::Stopping { .. } | Phase::EndedWell(_) => None,
    }
}
