//! What is to be done about the services of an environment. Pure: it is told
//! what happened and what time it is, and says what to do.
//!
//! ```text
//!              start                dependencies ready           started
//!   STOPPED ──────────▶ WAITING ──────────────────▶ LAUNCHING ──────────▶ RUNNING
//!      ▲                   ▲                             │           starting, healthy,
//!      │                   │ back-off over,              │ not started     unhealthy
//!      │                   │ start                       ▼                   │
//!      │                   └───────────────────── BACKING OFF ◀──────────────┤ ended, and is
//!      │                   │ restart                                         │ to run again
//!      │ all gone          │                                                 │
//!      └────────────── STOPPING ◀───────── stop ─────────────────────────────┤
//!                          ▲                                                 │ ended for good
//!                          └────────────── stop ──────── ENDED ◀─────────────┘
//!                                                  well | badly
//! ```
//!
//! - A service is *ready* while it is healthy and nobody asked it to stop, or
//!   after it ended well for good; a *job* only then. It is launched, for the
//!   first time or again, only while all it depends on is ready.
//! - A stop or restart waits until those of its dependants that are to stop
//!   too have stopped; [`Event::Hurry`] ends that.
//! - To stop: the stop signal goes to the process group, after the grace
//!   SIGKILL to all that is left of it; it is over when nothing is left.
//! - When a process ends by itself, what is left of its group is killed at
//!   once; but after a good end for good it is left alone, as it may be the
//!   daemon that the command was to start, and ends with the service's stop.
//! - Until a service was healthy once its check is tried often, and failures
//!   count once an interval; so it has start_period + retries × interval.

mod status;
#[cfg(test)]
mod tests;
mod unit;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vendetta_proto::ServiceName;
use vendetta_proto::rpc::{Millis, ServiceStatus};
use vendetta_proto::spec::Restart;

use unit::Unit;

/// Back-off after the first end; doubled with each further one in a row.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// Longest back-off.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// After so long in health the next end is the first in a row again.
const STABLE: Duration = Duration::from_secs(10);
/// So many ends in a row are crashing over and over.
const MANY_ENDS: u32 = 3;
/// Time between two tries of a check until the service was healthy once.
const EAGER_INTERVAL: Duration = Duration::from_millis(500);
/// How long a service without a check must have run to be healthy: a command
/// that does not exist ends sooner.
const PROOF: Duration = Duration::from_millis(250);
/// How long one that ended before must have been healthy to count as settled.
const LONG_PROOF: Duration = Duration::from_secs(2);

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since some moment, and never set.
    pub steady: Duration,
    /// For people.
    pub wall: Millis,
}

/// What the life of a service depends on.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What must be ready before it starts.
    pub depends_on: BTreeSet<ServiceName>,
    /// It has work to do and to end, so what depends on it waits for that.
    pub job: bool,
    /// When it is started again.
    pub restart: Restart,
    /// When its check is tried, if it has one.
    pub check: Option<Schedule>,
    /// Time between the stop signal and SIGKILL.
    pub grace: Duration,
}

/// When a health check is tried, and what its failures mean.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Time between two tries.
    pub interval: Duration,
    /// Failures in a row that make the service unhealthy.
    pub retries: u32,
    /// Time after the start in which failures do not count.
    pub start_period: Duration,
}

/// One run of a service, from its launch on; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run(u64);

/// What may be asked of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Run them and what they depend on.
    Start,
    /// Stop them and what depends on them.
    Stop,
    /// Stop and run them.
    Restart,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// With status 0.
    pub success: bool,
    /// For people: "exit status 1".
    pub text: String,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something is asked of these services; of all, when the set is empty.
    Request(Change, BTreeSet<ServiceName>),
    /// Something became known of a run.
    News(ServiceName, Run, News),
    /// There is no more time to stop in order.
    Hurry,
    /// Time passed, up to what [`Policy::next`] said.
    Tick,
}

/// What became known of a run.
#[derive(Debug, Clone)]
pub enum News {
    /// Answer to [`Act::Start`]: its process.
    Started(u32),
    /// Answer to [`Act::Start`]: why there is no process.
    NotStarted(String),
    /// The process has ended and was reaped.
    Ended(End),
    /// Answer to [`Act::Clear`]: nothing is left.
    Cleared,
    /// Answer to [`Act::Probe`], with what failed.
    Probed(Result<(), String>),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// For which service.
    pub service: ServiceName,
    /// What.
    pub act: Act,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Start it.
    Start(Run),
    /// Send the stop signal to its process group.
    Ask(Run),
    /// Kill all that is left of it.
    Kill(Run),
    /// Say when nothing is left of it; its process has ended.
    Clear(Run),
    /// Try its health check.
    Probe(Run),
    /// Write a line into its log.
    Note(String),
}

/// All services of an environment.
#[derive(Debug)]
pub struct Policy {
    units: BTreeMap<ServiceName, Unit>,
    /// Each after what it depends on.
    order: Vec<ServiceName>,
    runs: u64,
    hurry: bool,
}

impl Policy {
    /// All stopped. What a plan depends on must be among the plans, and not in
    /// a circle: else those services wait for ever.
    #[must_use]
    pub fn new(plans: BTreeMap<ServiceName, Plan>, now: Now) -> Self {
        let mut order: Vec<ServiceName> = Vec::with_capacity(plans.len());
        loop {
            let next = plans.iter().find(|(name, plan)| {
                !order.contains(name) && plan.depends_on.iter().all(|d| order.contains(d))
            });
            let Some((name, _)) = next else { break };
            order.push(name.clone());
        }
        let units = plans.into_iter();
        Self {
            units: units
                .map(|(name, plan)| (name, Unit::new(plan, now)))
                .collect(),
            order,
            runs: 0,
            hurry: false,
        }
    }

    /// Takes note of what happened and says what to do, in this order.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        let ready = self.ready();
        match event {
            Event::Request(change, services) => self.request(change, &services, now, &mut effects),
            Event::News(service, run, news) => {
                self.with(&service, &mut effects, |unit, acts| {
                    unit.learn(run, news, now, acts);
                });
            }
            Event::Hurry => self.hurry = true,
            Event::Tick => {}
        }
        for name in self.order.clone() {
            self.with(&name, &mut effects, |unit, acts| unit.tick(now, acts));
        }
        self.advance(now, &mut effects);
        self.tell(&ready, &mut effects);
        for unit in self.units.values_mut() {
            unit.date(now);
        }
        effects
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.units.values().filter_map(Unit::next).min()
    }

    /// How all services are, by name.
    #[must_use]
    pub fn statuses(&self) -> Vec<ServiceStatus> {
        status::all(&self.units, &self.order)
    }

    /// The services that a change of `services` is about.
    #[must_use]
    pub fn concerned(
        &self,
        change: Change,
        services: &BTreeSet<ServiceName>,
    ) -> BTreeSet<ServiceName> {
        if services.is_empty() {
            return self.units.keys().cloned().collect();
        }
        match change {
            Change::Restart => services.clone(),
            Change::Start => self.closure(services, |name| {
                let unit = self.units.get(name);
                unit.map_or_else(BTreeSet::new, |unit| unit.plan.depends_on.clone())
            }),
            Change::Stop => self.closure(services, |name| self.dependants(name)),
        }
    }

    fn dependants(&self, of: &ServiceName) -> BTreeSet<ServiceName> {
        let depend = |unit: &Unit| unit.plan.depends_on.contains(of);
        let dependants = self.units.iter().filter(|(_, unit)| depend(unit));
        dependants.map(|(name, _)| name.clone()).collect()
    }

    fn closure(
        &self,
        from: &BTreeSet<ServiceName>,
        next: impl Fn(&ServiceName) -> BTreeSet<ServiceName>,
    ) -> BTreeSet<ServiceName> {
        let mut found = BTreeSet::new();
        let mut frontier: Vec<ServiceName> = from.iter().cloned().collect();
        while let Some(name) = frontier.pop() {
            if self.units.contains_key(&name) && !found.contains(&name) {
                frontier.extend(next(&name));
                found.insert(name);
            }
        }
        found
    }

    fn with(
        &mut self,
        name: &ServiceName,
        effects: &mut Vec<Effect>,
        work: impl FnOnce(&mut Unit, &mut Vec<Act>),
    ) {
        if let Some(unit) = self.units.get_mut(name) {
            let mut acts = Vec::new();
            work(unit, &mut acts);
            effects.extend(acts.into_iter().map(|act| Effect {
                service: name.clone(),
                act,
            }));
        }
    }

    fn request(
        &mut self,
        change: Change,
        services: &BTreeSet<ServiceName>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let concerned = self.concerned(change, services);
        if change == Change::Restart {
            for name in self.concerned(Change::Start, services) {
                if !concerned.contains(&name) {
                    self.with(&name, effects, |unit, acts| unit.want(false, now, acts));
                }
            }
        }
        for name in concerned {
            let named = services.contains(&name);
            self.with(&name, effects, |unit, acts| match change {
                Change::Start => unit.want(named, now, acts),
                Change::Stop => unit.unwant(now, acts),
                Change::Restart => unit.again(now, acts),
            });
        }
    }

    /// Does what has become possible: launches and stops.
    fn advance(&mut self, now: Now, effects: &mut Vec<Effect>) {
        for name in self.order.clone() {
            let Some(unit) = self.units.get(&name) else {
                continue;
            };
            if unit.waits() && unit.plan.depends_on.iter().all(|name| self.is_ready(name)) {
                self.runs += 1;
                let run = Run(self.runs);
                self.with(&name, effects, |unit, acts| unit.launch(run, acts));
            }
        }
        for name in self.order.iter().rev().cloned().collect::<Vec<_>>() {
            let is_last = |policy: &Self| {
                !policy
                    .units
                    .values()
                    .any(|other| other.plan.depends_on.contains(&name) && other.is_stopping())
            };
            if self.hurry || is_last(self) {
                self.with(&name, effects, |unit, acts| unit.stop_if_asked(now, acts));
            }
        }
    }

    fn is_ready(&self, name: &ServiceName) -> bool {
        self.units.get(name).is_some_and(Unit::is_ready)
    }

    fn ready(&self) -> BTreeSet<ServiceName> {
        let ready = self.units.iter().filter(|(_, unit)| unit.is_ready());
        ready.map(|(name, _)| name.clone()).collect()
    }

    /// Tells those that run without what they depend on, and when they have it again.
    fn tell(&self, before: &BTreeSet<ServiceName>, effects: &mut Vec<Effect>) {
        for (name, unit) in &self.units {
            if before.contains(name) == unit.is_ready() {
                continue;
            }
            let state = unit.state().as_str();
            let text = if unit.is_ready() {
                format!("{name}, which it depends on, is {state} again")
            } else {
                format!("{name}, which it depends on, is {state}")
            };
            for (dependant, other) in &self.units {
                if other.plan.depends_on.contains(name) && other.runs_on() {
                    effects.push(Effect {
                        service: dependant.clone(),
                        act: Act::Note(text.clone()),
                    });
                }
            }
        }
    }
}

/// How long to wait after so many ends in a row.
fn back_off(ends: u32) -> Duration {
    let doublings = ends.saturating_sub(1).min(16);
    (FIRST_BACK_OFF * (1 << doublings)).min(LONGEST_BACK_OFF)
}
