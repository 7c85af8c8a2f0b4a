//! One service: its phases, and what leads from one to the next. What needs to
//! know of others (may it launch, may it stop) is the policy's.

use std::time::Duration;

use vendetta_proto::rpc::{Millis, ServiceState};
use vendetta_proto::spec::Restart;

use super::{
    Act, EAGER_INTERVAL, End, LONG_PROOF, MANY_ENDS, News, Now, PROOF, Plan, Run, STABLE, Schedule,
    back_off,
};

/// What comes after a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Stay,
    Start,
}

#[derive(Debug, Clone)]
pub(super) enum Phase {
    Stopped,
    Waiting,
    Launching(Run),
    Running {
        run: Run,
        pid: u32,
        health: Health,
    },
    BackingOff {
        until: Duration,
        until_wall: Millis,
    },
    Stopping {
        run: Run,
        /// Its process, until that has ended.
        pid: Option<u32>,
        /// When it is killed; none once it was.
        kill_at: Option<Duration>,
        then: Then,
    },
    /// Ended well, and what it left behind is its own.
    EndedWell(Run),
    EndedBadly,
}

/// What is known of a running process.
#[derive(Debug, Clone)]
pub(super) struct Health {
    pub verdict: Verdict,
    /// It was healthy before in this run.
    proven: bool,
    /// It has been healthy for long enough to rely on it.
    pub settled: bool,
    /// Failures in a row that count.
    failures: u32,
    /// A failure counts from this time on, until it was healthy once.
    counts_from: Duration,
    /// When the check is tried; none while it is, and without one.
    probe_at: Option<Duration>,
    /// When it counts as healthy without a check.
    healthy_at: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Starting,
    Healthy { since: Duration },
    Unhealthy,
}

#[derive(Debug)]
pub(super) struct Unit {
    pub plan: Plan,
    pub phase: Phase,
    /// It is to stop, and has not begun to: its dependants stop first, or its
    /// launch is not over.
    pub asked: Option<Then>,
    /// Ends in a row, none after long health.
    ends: u32,
    pub restarts: u32,
    pub ended: Option<String>,
    /// The last failure of its check or its launch.
    pub trouble: Option<String>,
    /// The state that people were last shown, and since when.
    shown: ServiceState,
    pub since: Millis,
}

impl Unit {
    pub fn new(plan: Plan, now: Now) -> Self {
        Self {
            plan,
            phase: Phase::Stopped,
            asked: None,
            ends: 0,
            restarts: 0,
            ended: None,
            trouble: None,
            shown: ServiceState::Stopped,
            since: now.wall,
        }
    }

    pub fn state(&self) -> ServiceState {
        match &self.phase {
            Phase::Launching(_) | Phase::Running { .. } if self.asked.is_some() => {
                ServiceState::Stopping
            }
            Phase::Stopped => ServiceState::Stopped,
            Phase::Waiting => ServiceState::Waiting,
            Phase::Launching(_) => ServiceState::Starting,
            Phase::Running { health, .. } => match health.verdict {
                Verdict::Starting => ServiceState::Starting,
                Verdict::Healthy { .. } => ServiceState::Healthy,
                Verdict::Unhealthy => ServiceState::Unhealthy,
            },
            Phase::BackingOff { .. } => ServiceState::BackingOff,
            Phase::Stopping { .. } => ServiceState::Stopping,
            Phase::EndedWell(_) => ServiceState::Exited,
            Phase::EndedBadly => ServiceState::Failed,
        }
    }

    /// Those that depend on it may start.
    pub fn is_ready(&self) -> bool {
        match self.state() {
            ServiceState::Healthy => !self.plan.job,
            ServiceState::Exited => true,
            _ => false,
        }
    }

    pub fn waits(&self) -> bool {
        matches!(self.phase, Phase::Waiting)
    }

    /// It is being stopped, or waits for that.
    pub fn is_stopping(&self) -> bool {
        self.state() == ServiceState::Stopping
    }

    /// It runs, and is to go on.
    pub fn runs_on(&self) -> bool {
        matches!(self.phase, Phase::Running { .. }) && self.asked.is_none()
    }

    /// It ends over and over.
    pub fn is_crashing(&self) -> bool {
        self.ends >= MANY_ENDS
    }

    pub fn ends(&self) -> u32 {
        self.ends
    }

    /// Notes since when it is in the state that it is in.
    pub fn date(&mut self, now: Now) {
        if self.shown != self.state() {
            self.shown = self.state();
            self.since = now.wall;
        }
    }

    /// When [`Unit::tick`] has something to do.
    pub fn next(&self) -> Option<Duration> {
        match &self.phase {
            Phase::BackingOff { until, .. } => Some(*until),
            Phase::Stopping { kill_at, .. } => *kill_at,
            Phase::Running { health, .. } => {
                let settles = match health.verdict {
                    Verdict::Healthy { since } if !health.settled => Some(since + self.proof()),
                    _ => None,
                };
                let times = [health.probe_at, health.healthy_at, settles];
                times.into_iter().flatten().min()
            }
            _ => None,
        }
    }

    /// How long it must have been healthy for that to be relied on.
    fn proof(&self) -> Duration {
        if self.ends > 0 {
            LONG_PROOF
        } else {
            Duration::ZERO
        }
    }

    /// From now on it is as if it had never run.
    fn renew(&mut self) {
        self.phase = Phase::Waiting;
        self.asked = None;
        self.ends = 0;
        self.restarts = 0;
        self.trouble = None;
    }

    /// It is to run. One that has done its work does it again only when it was `named`.
    pub fn want(&mut self, named: bool, now: Now, acts: &mut Vec<Act>) {
        match &mut self.phase {
            Phase::Stopped | Phase::EndedBadly | Phase::BackingOff { .. } => self.renew(),
            Phase::EndedWell(run) if named => {
                let run = *run;
                self.stop_rest(run, Then::Start, now, acts);
            }
            Phase::Stopping { then, .. } => *then = Then::Start,
            Phase::Launching(_) | Phase::Running { .. } if self.asked == Some(Then::Stay) => {
                self.asked = None;
            }
            // Something may have been mended meanwhile: its check is tried at once.
            Phase::Running { health, .. } if health.verdict == Verdict::Unhealthy => {
                health.doubt(now);
            }
            Phase::EndedWell(_) | Phase::Waiting | Phase::Launching(_) | Phase::Running { .. } => {}
        }
    }

    /// It is to stop.
    pub fn unwant(&mut self, now: Now, acts: &mut Vec<Act>) {
        match &mut self.phase {
            Phase::Stopped => {}
            Phase::Waiting | Phase::BackingOff { .. } | Phase::EndedBadly => {
                self.phase = Phase::Stopped;
            }
            Phase::Launching(_) | Phase::Running { .. } => self.asked = Some(Then::Stay),
            Phase::Stopping { then, .. } => *then = Then::Stay,
            Phase::EndedWell(run) => {
                let run = *run;
                self.stop_rest(run, Then::Stay, now, acts);
            }
        }
    }

    /// It is to stop and to run.
    pub fn again(&mut self, now: Now, acts: &mut Vec<Act>) {
        match &mut self.phase {
            Phase::Stopped | Phase::Waiting | Phase::BackingOff { .. } | Phase::EndedBadly => {
                self.renew()
            }
            Phase::Launching(_) | Phase::Running { .. } => self.asked = Some(Then::Start),
            Phase::Stopping { then, .. } => *then = Then::Start,
            Phase::EndedWell(run) => {
                let run = *run;
                self.stop_rest(run, Then::Start, now, acts);
            }
        }
    }

    /// All it depends on is ready.
    pub fn launch(&mut self, run: Run, acts: &mut Vec<Act>) {
        self.phase = Phase::Launching(run);
        acts.push(Act::Start(run));
    }

    /// Nothing that depends on it has to stop first any more.
    pub fn stop_if_asked(&mut self, now: Now, acts: &mut Vec<Act>) {
        if let (Some(then), &Phase::Running { run, pid, .. }) = (self.asked, &self.phase) {
            self.asked = None;
            self.phase = Phase::Stopping {
                run,
                pid: Some(pid),
                kill_at: Some(now.steady + self.plan.grace),
                then,
            };
            acts.push(Act::Note("stopping".to_owned()));
            acts.push(Act::Ask(run));
        }
    }

    /// Its process is gone; ends what that left behind.
    fn stop_rest(&mut self, run: Run, then: Then, now: Now, acts: &mut Vec<Act>) {
        self.asked = None;
        self.phase = Phase::Stopping {
            run,
            pid: None,
            kill_at: Some(now.steady + self.plan.grace),
            then,
        };
        acts.push(Act::Ask(run));
        acts.push(Act::Clear(run));
    }

    pub fn tick(&mut self, now: Now, acts: &mut Vec<Act>) {
        let proof = self.proof();
        match &mut self.phase {
            Phase::BackingOff { until, .. } if *until <= now.steady => {
                self.restarts += 1;
                self.phase = Phase::Waiting;
            }
            Phase::Stopping { run, kill_at, .. } if kill_at.is_some_and(|at| at <= now.steady) => {
                *kill_at = None;
                let grace = self.plan.grace.as_secs();
                acts.push(Act::Note(format!("killed: it did not end within {grace}s")));
                acts.push(Act::Kill(*run));
            }
            Phase::Running { run, health, .. } => {
                if health.probe_at.is_some_and(|at| at <= now.steady) {
                    health.probe_at = None;
                    acts.push(Act::Probe(*run));
                }
                if health.healthy_at.is_some_and(|at| at <= now.steady) {
                    health.healthy_at = None;
                    health.verdict = Verdict::Healthy { since: now.steady };
                }
                if let Verdict::Healthy { since } = health.verdict {
                    health.settled |= since + proof <= now.steady;
                }
            }
            _ => {}
        }
    }

    /// Takes note of what became known of `run`, unless that is a former one.
    pub fn learn(&mut self, run: Run, news: News, now: Now, acts: &mut Vec<Act>) {
        match (&mut self.phase, news) {
            (Phase::Launching(current), News::Started(pid)) if *current == run => {
                acts.push(Act::Note(format!("started, process {pid}")));
                self.trouble = None;
                self.phase = Phase::Running {
                    run,
                    pid,
                    health: Health::new(self.plan.check.as_ref(), now),
                };
            }
            (Phase::Launching(current), News::NotStarted(problem)) if *current == run => {
                acts.push(Act::Note(format!("cannot be started: {problem}")));
                self.trouble = Some(format!("cannot be started: {problem}"));
                match self.asked.take() {
                    Some(Then::Stay) => self.phase = Phase::Stopped,
                    Some(Then::Start) => self.renew(),
                    None => self.ended_badly(now, acts),
                }
            }
            (
                Phase::Running {
                    run: current,
                    health,
                    ..
                },
                News::Ended(end),
            ) if *current == run => {
                let stable = matches!(health.verdict, Verdict::Healthy { since } if since + STABLE <= now.steady);
                acts.push(Act::Note(format!("ended: {}", end.text)));
                self.ended = Some(end.text.clone());
                match self.asked {
                    Some(then) => self.stop_rest(run, then, now, acts),
                    None => self.ended(run, &end, stable, now, acts),
                }
            }
            (
                Phase::Stopping {
                    run: current,
                    pid,
                    kill_at,
                    ..
                },
                News::Ended(end),
            ) if *current == run && pid.is_some() => {
                *pid = None;
                acts.push(Act::Note(format!("ended: {}", end.text)));
                if kill_at.is_none() {
                    // What it started in its last moment.
                    acts.push(Act::Kill(run));
                }
                acts.push(Act::Clear(run));
                self.ended = Some(end.text);
            }
            (
                Phase::Stopping {
                    run: current,
                    pid: None,
                    then,
                    ..
                },
                News::Cleared,
            ) if *current == run => match then {
                Then::Stay => self.phase = Phase::Stopped,
                Then::Start => self.renew(),
            },
            (
                Phase::Running {
                    run: current,
                    health,
                    ..
                },
                News::Probed(result),
            ) if *current == run => {
                if let Some(schedule) = &self.plan.check {
                    let before = health.verdict;
                    self.trouble = result.as_ref().err().cloned();
                    health.learn(result.is_ok(), schedule, now);
                    match (before, health.verdict) {
                        (Verdict::Healthy { .. }, Verdict::Healthy { .. }) => {}
                        (_, Verdict::Healthy { .. }) => acts.push(Act::Note("healthy".to_owned())),
                        (Verdict::Unhealthy, _) => {}
                        (_, Verdict::Unhealthy) => {
                            let problem = result.err().unwrap_or_default();
                            acts.push(Act::Note(format!("unhealthy: {problem}")));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// Its process ended by itself.
    fn ended(&mut self, run: Run, end: &End, stable: bool, now: Now, acts: &mut Vec<Act>) {
        if stable {
            self.ends = 0;
        }
        self.trouble = None;
        match (end.success, self.plan.restart) {
            (true, Restart::No | Restart::OnFailure) => self.phase = Phase::EndedWell(run),
            (true, Restart::Always) | (false, _) => {
                acts.push(Act::Kill(run));
                self.ended_badly(now, acts);
            }
        }
    }

    /// It is not as it should be; it starts again, if it is to.
    fn ended_badly(&mut self, now: Now, acts: &mut Vec<Act>) {
        if self.plan.restart == Restart::No {
            self.phase = Phase::EndedBadly;
            return;
        }
        self.ends = self.ends.saturating_add(1);
        let pause = back_off(self.ends);
        acts.push(Act::Note(format!(
            "starts again in {}s",
            pause.as_secs_f32()
        )));
        self.phase = Phase::BackingOff {
            until: now.steady + pause,
            until_wall: now.wall + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        };
    }
}

impl Health {
    fn new(check: Option<&Schedule>, now: Now) -> Self {
        Self {
            verdict: Verdict::Starting,
            proven: false,
            settled: false,
            failures: 0,
            counts_from: check.map_or(now.steady, |schedule| {
                now.steady + schedule.start_period + schedule.interval
            }),
            probe_at: check.map(|_| now.steady),
            healthy_at: check.is_none().then_some(now.steady + PROOF),
        }
    }

    /// What was said of it before no longer counts.
    fn doubt(&mut self, now: Now) {
        self.verdict = Verdict::Starting;
        self.settled = false;
        self.failures = 0;
        self.counts_from = now.steady;
        if self.probe_at.is_some() {
            self.probe_at = Some(now.steady);
        }
    }

    fn learn(&mut self, passed: bool, schedule: &Schedule, now: Now) {
        if passed {
            if !matches!(self.verdict, Verdict::Healthy { .. }) {
                self.verdict = Verdict::Healthy { since: now.steady };
                self.settled = false;
            }
            self.proven = true;
            self.failures = 0;
        } else if self.proven || now.steady >= self.counts_from {
            self.failures = self.failures.saturating_add(1);
            self.counts_from = now.steady + schedule.interval;
            if self.failures >= schedule.retries {
                self.verdict = Verdict::Unhealthy;
            }
        }
        let pause = if self.proven {
            schedule.interval
        } else {
            schedule.interval.min(EAGER_INTERVAL)
        };
        self.probe_at = Some(now.steady + pause);
    }
}
