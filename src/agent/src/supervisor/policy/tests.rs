//! The policy in a world that answers, in whatever order and time it likes.

use super::*;
use proptest::prelude::*;
use vendetta_proto::rpc::{ServiceState, Settled};

/// How a service of the world behaves.
#[derive(Debug, Clone)]
struct Nature {
    depends_on: Vec<usize>,
    restart: Restart,
    checked: bool,
    /// Cannot be started.
    unstartable: bool,
    /// Ends right after its start: with status 0, or not.
    ends: Option<bool>,
    /// Its check passes.
    passes: bool,
    /// Ends on the stop signal.
    obeys: bool,
    /// Leaves a child behind that does not.
    leaves: bool,
}

impl Nature {
    fn job(&self) -> bool {
        self.restart == Restart::No && !self.checked
    }
}

/// What the world does.
#[derive(Debug, Clone)]
enum Move {
    Request(u8, Vec<usize>),
    Wait(u64),
    Answer(usize),
    Die(usize, bool),
    Passes(usize, bool),
}

/// What the world still has to say.
#[derive(Debug, Clone)]
enum Pending {
    Launch(usize, Run),
    Death(usize, Run, bool),
    Probe(usize, Run),
}

struct World {
    natures: Vec<Nature>,
    policy: Policy,
    now: Duration,
    pending: Vec<Pending>,
    /// The process of each service.
    alive: BTreeMap<usize, Run>,
    /// What processes that ended have left.
    left: BTreeMap<usize, Run>,
    clearing: BTreeSet<(usize, Run)>,
    /// Runs whose check has passed.
    passed: BTreeSet<Run>,
    /// Services whose process ended with status 0 last.
    done: BTreeSet<usize>,
    /// Services that somebody wants.
    wanted: BTreeSet<ServiceName>,
    launched: BTreeSet<Run>,
    log: Vec<String>,
}

fn name(at: usize) -> ServiceName {
    format!("s{at}").parse().unwrap()
}

impl World {
    fn new(natures: Vec<Nature>) -> Self {
        let plans = natures.iter().enumerate().map(|(at, nature)| {
            let plan = Plan {
                depends_on: nature.depends_on.iter().map(|d| name(*d)).collect(),
                job: nature.job(),
                restart: nature.restart,
                check: nature.checked.then_some(Schedule {
                    interval: Duration::from_secs(5),
                    retries: 3,
                    start_period: Duration::ZERO,
                }),
                grace: Duration::from_secs(10),
            };
            (name(at), plan)
        });
        let mut world = Self {
            policy: Policy::new(BTreeMap::new(), now(Duration::ZERO)),
            now: Duration::ZERO,
            pending: Vec::new(),
            alive: BTreeMap::new(),
            left: BTreeMap::new(),
            clearing: BTreeSet::new(),
            passed: BTreeSet::new(),
            done: BTreeSet::new(),
            wanted: BTreeSet::new(),
            launched: BTreeSet::new(),
            log: Vec::new(),
            natures: Vec::new(),
        };
        world.policy = Policy::new(plans.collect(), now(Duration::ZERO));
        world.natures = natures;
        world
    }

    fn status(&self, at: usize) -> ServiceStatus {
        self.policy.statuses()[at].clone()
    }

    fn step(&mut self, event: Event) {
        let effects = self.policy.step(event, now(self.now));
        for effect in effects {
            let at: usize = effect.service.as_str()[1..].parse().unwrap();
            self.carry_out(at, effect.act);
        }
        for status in self.policy.statuses() {
            if let Some(next) = status.next_start {
                let pause = next.saturating_sub(now(self.now).wall);
                assert!(pause <= 60_000, "a back-off of {pause} ms");
            }
        }
    }

    fn carry_out(&mut self, at: usize, act: Act) {
        let nature = self.natures[at].clone();
        match act {
            Act::Start(run) => {
                assert!(
                    self.wanted.contains(&name(at)),
                    "s{at} started, and nobody wants it"
                );
                assert!(self.launched.insert(run), "a run was used twice");
                assert!(!self.alive.contains_key(&at), "s{at} runs twice");
                assert!(
                    !self.left.contains_key(&at),
                    "s{at} runs beside what it left"
                );
                for dependency in &nature.depends_on {
                    let ready = match self.alive.get(dependency) {
                        Some(run) => {
                            let nature = &self.natures[*dependency];
                            !nature.job() && (!nature.checked || self.passed.contains(run))
                        }
                        None => self.done.contains(dependency),
                    };
                    let state = self.status(*dependency).state;
                    assert!(
                        ready && matches!(state, ServiceState::Healthy | ServiceState::Exited),
                        "s{at} starts while s{dependency} is {state:?}"
                    );
                }
                self.pending.push(Pending::Launch(at, run));
            }
            Act::Ask(run) => {
                let lives = self.alive.contains_key(&at);
                for (other, nature) in self.natures.iter().enumerate() {
                    let state = self.status(other).state;
                    assert!(
                        !(lives
                            && nature.depends_on.contains(&at)
                            && state == ServiceState::Stopping),
                        "s{at} is asked to end before s{other}, which depends on it"
                    );
                }
                if self.alive.get(&at) == Some(&run) && nature.obeys {
                    self.pending.push(Pending::Death(at, run, false));
                }
                if self.left.get(&at) == Some(&run) && nature.obeys {
                    self.left.remove(&at);
                }
            }
            Act::Kill(run) => {
                if self.alive.get(&at) == Some(&run) {
                    self.pending.push(Pending::Death(at, run, false));
                }
                if self.left.get(&at) == Some(&run) {
                    self.left.remove(&at);
                }
            }
            Act::Clear(run) => {
                assert_ne!(self.alive.get(&at), Some(&run), "its process still lives");
                self.clearing.insert((at, run));
            }
            Act::Probe(run) => {
                assert!(nature.checked);
                self.pending.push(Pending::Probe(at, run));
            }
            Act::Note(text) => self.log.push(format!("s{at}: {text}")),
        }
    }

    fn news(&mut self, at: usize, run: Run, news: News) {
        self.step(Event::News(name(at), run, news));
    }

    fn answer(&mut self, pending: Pending) {
        match pending {
            Pending::Launch(at, run) if self.natures[at].unstartable => {
                self.done.remove(&at);
                self.news(at, run, News::NotStarted("no such program".to_owned()));
            }
            Pending::Launch(at, run) => {
                self.alive.insert(at, run);
                self.done.remove(&at);
                if let Some(success) = self.natures[at].ends {
                    self.pending.push(Pending::Death(at, run, success));
                }
                self.news(at, run, News::Started(1));
            }
            Pending::Death(at, run, success) => {
                // It may have been told twice.
                if self.alive.get(&at) == Some(&run) {
                    self.alive.remove(&at);
                    if success {
                        self.done.insert(at);
                    }
                    if self.natures[at].leaves {
                        self.left.insert(at, run);
                    }
                    let text = "exit status".to_owned();
                    self.news(at, run, News::Ended(End { success, text }));
                }
            }
            Pending::Probe(at, run) => {
                let passes = self.natures[at].passes;
                if passes {
                    self.passed.insert(run);
                }
                let result = passes.then_some(()).ok_or("refused".to_owned());
                self.news(at, run, News::Probed(result));
            }
        }
        let cleared: Vec<(usize, Run)> = self
            .clearing
            .iter()
            .filter(|(at, run)| self.left.get(at) != Some(run))
            .copied()
            .collect();
        for (at, run) in cleared {
            self.clearing.remove(&(at, run));
            self.news(at, run, News::Cleared);
        }
    }

    fn request(&mut self, change: Change, services: BTreeSet<ServiceName>) {
        match change {
            Change::Stop => {
                for name in self.policy.concerned(change, &services) {
                    self.wanted.remove(&name);
                }
            }
            Change::Start | Change::Restart => {
                let concerned = self.policy.concerned(Change::Start, &services);
                self.wanted.extend(concerned);
            }
        }
        self.step(Event::Request(change, services));
    }

    fn play(&mut self, move_: Move) {
        let count = self.natures.len();
        match move_ {
            Move::Request(change, services) => {
                let change =
                    [Change::Start, Change::Stop, Change::Restart][usize::from(change % 3)];
                self.request(change, services.iter().map(|at| name(at % count)).collect());
            }
            Move::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.step(Event::Tick);
            }
            Move::Answer(_) if self.pending.is_empty() => {}
            Move::Answer(at) => {
                let pending = self.pending.remove(at % self.pending.len());
                self.answer(pending);
            }
            Move::Die(at, success) => {
                if let Some(run) = self.alive.get(&(at % count)) {
                    self.answer(Pending::Death(at % count, *run, success));
                }
            }
            Move::Passes(at, passes) => self.natures[at % count].passes = passes,
        }
    }

    /// Lets the world answer all, and time pass, until everything is settled.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            while let Some(pending) = self.pending.pop() {
                self.answer(pending);
                if self.pending.len() > 100 {
                    panic!("too much to do");
                }
            }
            if self
                .policy
                .statuses()
                .iter()
                .all(|status| status.settled != Settled::NotYet)
            {
                return;
            }
            // An answer may be the last thing that was missing for a stop.
            let next = self.policy.next().unwrap_or(self.now);
            self.now = self.now.max(next);
            self.answer_cleared();
            self.step(Event::Tick);
        }
        panic!("not settled: {:#?}", self.policy.statuses());
    }

    fn answer_cleared(&mut self) {
        let cleared: Vec<(usize, Run)> = self.clearing.iter().copied().collect();
        for (at, run) in cleared {
            if self.left.get(&at) != Some(&run) {
                self.clearing.remove(&(at, run));
                self.news(at, run, News::Cleared);
            }
        }
    }

    fn states(&self) -> Vec<ServiceState> {
        self.policy
            .statuses()
            .iter()
            .map(|status| status.state)
            .collect()
    }
}

fn now(steady: Duration) -> Now {
    Now {
        steady,
        wall: 1_700_000_000_000 + u64::try_from(steady.as_millis()).unwrap(),
    }
}

fn nature(at: usize) -> impl Strategy<Value = Nature> {
    let restart = prop_oneof![
        Just(Restart::No),
        Just(Restart::OnFailure),
        Just(Restart::Always)
    ];
    (
        proptest::collection::vec(0..at.max(1), 0..3),
        restart,
        any::<bool>(),
        proptest::bool::weighted(0.1),
        proptest::option::weighted(0.3, any::<bool>()),
        proptest::bool::weighted(0.8),
        proptest::bool::weighted(0.7),
        any::<bool>(),
    )
        .prop_map(
            move |(depends_on, restart, checked, unstartable, ends, passes, obeys, leaves)| {
                Nature {
                    depends_on: depends_on.into_iter().filter(|d| *d < at).collect(),
                    restart,
                    checked,
                    unstartable,
                    // A job ends.
                    ends: ends.or((restart == Restart::No && !checked).then_some(true)),
                    passes,
                    obeys,
                    leaves,
                }
            },
        )
}

fn natures() -> impl Strategy<Value = Vec<Nature>> {
    (1usize..7).prop_flat_map(|count| (0..count).map(nature).collect::<Vec<_>>())
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        2 => (any::<u8>(), proptest::collection::vec(any::<usize>(), 0..3))
            .prop_map(|(change, services)| Move::Request(change, services)),
        3 => (0u64..12_000).prop_map(Move::Wait),
        8 => any::<usize>().prop_map(Move::Answer),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(at, success)| Move::Die(at, success)),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(at, passes)| Move::Passes(at, passes)),
    ];
    proptest::collection::vec(one, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The checks of each step are in [`World::carry_out`].
    #[test]
    fn whatever_happens_all_settles_and_a_stop_leaves_nothing(
        natures in natures(), moves in moves()
    ) {
        let mut world = World::new(natures);
        for move_ in moves {
            world.play(move_);
        }
        world.settle();
        world.request(Change::Stop, BTreeSet::new());
        world.settle();
        prop_assert!(world.states().iter().all(|state| *state == ServiceState::Stopped));
        prop_assert!(world.alive.is_empty(), "alive: {:?}", world.alive);
        prop_assert!(world.left.is_empty(), "left: {:?}", world.left);
        let quiet = world.policy.next();
        prop_assert_eq!(quiet, None);
    }

    #[test]
    fn a_second_start_of_what_runs_changes_nothing(natures in natures()) {
        let natures: Vec<Nature> = natures
            .into_iter()
            .map(|nature| Nature {
                unstartable: false,
                ends: nature.ends.and((nature.restart != Restart::Always).then_some(true)),
                passes: true,
                ..nature
            })
            .collect();
        let mut world = World::new(natures);
        world.request(Change::Start, BTreeSet::new());
        world.settle();
        let before = world.policy.statuses();
        prop_assert!(before.iter().all(|status| status.settled == Settled::Well), "{before:#?}");
        world.request(Change::Start, BTreeSet::new());
        prop_assert_eq!(world.policy.statuses(), before);
        prop_assert!(world.pending.is_empty());
    }

    #[test]
    fn a_back_off_grows_up_to_its_ceiling(ends in 1u32..) {
        prop_assert!(back_off(ends) <= LONGEST_BACK_OFF);
        prop_assert!(back_off(ends) >= FIRST_BACK_OFF);
        prop_assert!(back_off(ends) <= back_off(ends.saturating_add(1)));
    }
}

fn plain(depends_on: &[usize]) -> Nature {
    Nature {
        depends_on: depends_on.to_vec(),
        restart: Restart::OnFailure,
        checked: false,
        unstartable: false,
        ends: None,
        passes: true,
        obeys: true,
        leaves: false,
    }
}

#[test]
fn a_job_that_ended_well_is_a_dependency_that_is_there() {
    let job = Nature {
        ends: Some(true),
        ..plain(&[])
    };
    let mut world = World::new(vec![job, plain(&[0])]);
    world.request(Change::Start, BTreeSet::from([name(1)]));
    world.settle();
    assert_eq!(
        world.states(),
        [ServiceState::Exited, ServiceState::Healthy]
    );
    let runs = world.launched.len();
    world.request(Change::Start, BTreeSet::new());
    world.settle();
    assert_eq!(
        world.launched.len(),
        runs,
        "asked for all, what is done stays done"
    );
    world.request(Change::Start, BTreeSet::from([name(0)]));
    world.settle();
    assert_eq!(
        world.launched.len(),
        runs + 1,
        "asked for by name, it is done again"
    );
}

#[test]
fn one_that_crashes_is_settled_badly_and_tried_on() {
    let crashing = Nature {
        ends: Some(false),
        ..plain(&[])
    };
    let mut world = World::new(vec![crashing, plain(&[0])]);
    world.request(Change::Start, BTreeSet::new());
    world.settle();
    let status = world.status(0);
    assert_eq!(
        (status.state, status.settled),
        (ServiceState::BackingOff, Settled::Badly)
    );
    assert_eq!(status.reason.as_deref(), Some("it ended 3 times in a row"));
    let runs = world.launched.len();
    world.now = world.policy.next().unwrap();
    world.step(Event::Tick);
    assert_eq!(world.launched.len(), runs + 1);
    // Once it stays, it is as good as new.
    world.natures[0].ends = None;
    while let Some(pending) = world.pending.pop() {
        world.answer(pending);
    }
    world.now += PROOF;
    world.step(Event::Tick);
    assert_eq!(world.states()[0], ServiceState::Healthy);
    assert_eq!(world.status(0).settled, Settled::Badly);
    world.now += LONG_PROOF;
    world.step(Event::Tick);
    assert_eq!(world.status(0).settled, Settled::Well);
}

#[test]
fn one_that_is_unhealthy_is_judged_anew_when_it_is_asked_for_again() {
    let failing = Nature {
        checked: true,
        passes: false,
        ..plain(&[])
    };
    let mut world = World::new(vec![failing]);
    world.request(Change::Start, BTreeSet::new());
    world.settle();
    let status = world.status(0);
    assert_eq!(
        (status.state, status.settled),
        (ServiceState::Unhealthy, Settled::Badly)
    );
    // Mended from outside, without another start.
    world.natures[0].passes = true;
    world.request(Change::Start, BTreeSet::new());
    assert_eq!(world.status(0).settled, Settled::NotYet);
    world.settle();
    assert_eq!(world.states(), [ServiceState::Healthy]);
    assert_eq!(world.status(0).settled, Settled::Well);
    assert_eq!(world.launched.len(), 1);
}

#[test]
fn those_that_depend_on_what_fails_run_on_and_are_told() {
    let db = Nature {
        checked: true,
        ..plain(&[])
    };
    let mut world = World::new(vec![db, plain(&[0])]);
    world.request(Change::Start, BTreeSet::new());
    world.settle();
    assert_eq!(world.states(), [ServiceState::Healthy; 2]);
    world.natures[0].passes = false;
    for _ in 0..3 {
        world.now = world.policy.next().unwrap();
        world.step(Event::Tick);
        let pending = world.pending.pop().unwrap();
        world.answer(pending);
    }
    assert_eq!(
        world.states(),
        [ServiceState::Unhealthy, ServiceState::Healthy]
    );
    assert!(
        world
            .log
            .contains(&"s1: s0, which it depends on, is unhealthy".to_owned())
    );
    assert_eq!(
        world.status(1).reason.as_deref(),
        Some("runs without what it depends on: s0 (unhealthy)")
    );
    world.natures[0].passes = true;
    world.settle();
    world.now = world.policy.next().unwrap();
    world.step(Event::Tick);
    let pending = world.pending.pop().unwrap();
    world.answer(pending);
    assert!(
        world
            .log
            .contains(&"s1: s0, which it depends on, is healthy again".to_owned())
    );
    assert_eq!(world.status(1).reason, None);
}

#[test]
fn failures_count_once_an_interval_until_it_was_healthy() {
    let slow = Nature {
        checked: true,
        passes: false,
        ..plain(&[])
    };
    let mut world = World::new(vec![slow]);
    world.request(Change::Start, BTreeSet::new());
    let mut tries = 0;
    while world.status(0).state != ServiceState::Unhealthy {
        while let Some(pending) = world.pending.pop() {
            tries += u32::from(matches!(pending, Pending::Probe(..)));
            world.answer(pending);
        }
        if world.status(0).state == ServiceState::Starting {
            world.now = world.policy.next().unwrap();
            world.step(Event::Tick);
        }
    }
    assert_eq!(world.now, Duration::from_secs(15));
    assert_eq!(tries, 31);
    assert_eq!(world.status(0).settled, Settled::Badly);
    assert_eq!(world.status(0).reason.as_deref(), Some("refused"));
}

#[test]
fn in_a_hurry_all_are_asked_at_once() {
    let stubborn = Nature {
        obeys: false,
        ..plain(&[0])
    };
    let mut world = World::new(vec![plain(&[]), stubborn]);
    world.request(Change::Start, BTreeSet::new());
    world.settle();
    world.request(Change::Stop, BTreeSet::new());
    assert_eq!(world.status(0).reason.as_deref(), Some("stops after s1"));
    assert!(world.pending.is_empty());
    let effects = world.policy.step(Event::Hurry, now(world.now));
    let asked = |effect: &&Effect| matches!(effect.act, Act::Ask(_));
    assert_eq!(effects.iter().find(asked).unwrap().service, name(0));
}
