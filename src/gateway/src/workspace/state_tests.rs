use proptest::prelude::*;

use super::*;

/// An engine, a store and the machine between them, in miniature.
#[derive(Debug)]
struct World {
    machine: Machine,
    saved: Option<Record>,
    /// Generation of the environment, and whether it runs.
    environment: Option<(u64, bool)>,
    in_flight: Option<Work>,
    cancelled: bool,
}

/// What may happen to a [`World`].
#[derive(Debug, Clone, Copy)]
enum Happening {
    Asked(Request),
    /// It is found to be used by nobody.
    WentIdle,
    /// The work under way ends: all of it done, or only some and then failed or cut off.
    WorkEnds {
        whole: bool,
    },
    /// The same in part, since it cannot be done as it is.
    WorkIsRefused,
    /// The environment ends by itself, or somebody starts it behind our back.
    EndsByItself,
    StartedByHand,
    /// Somebody looks.
    Look,
    /// It restarts itself.
    Restarts,
    /// `kill -9` of the gateway, with the work under way done in part.
    Crash {
        engine_answers: bool,
    },
}

impl World {
    fn new() -> Self {
        Self {
            machine: Machine::new(),
            saved: Some(Record::NEW),
            environment: None,
            in_flight: None,
            cancelled: false,
        }
    }

    fn found(&self) -> Found {
        match self.environment {
            None => Found::Absent,
            Some((_, false)) => Found::Stopped,
            Some((_, true)) => Found::Running,
        }
    }

    fn apply(&mut self, (machine, effects): (Machine, Vec<Effect>)) {
        let before = self.machine;
        self.machine = machine;
        for effect in effects {
            match effect {
                Effect::Save(record) => self.saved = Some(record),
                Effect::Begin(work) => {
                    assert_eq!(self.in_flight, None, "one work at a time");
                    assert_eq!(self.saved, Some(machine.record()), "saved before done");
                    self.in_flight = Some(work);
                    self.cancelled = false;
                }
                Effect::Cancel => {
                    assert!(self.in_flight.is_some(), "only work under way is cancelled");
                    self.cancelled = true;
                }
                Effect::Forget => {
                    assert_eq!(
                        self.environment, None,
                        "forgotten only when nothing is left"
                    );
                    self.saved = None;
                }
            }
        }
        if machine.phase() == Phase::Destroyed {
            assert_eq!(self.saved, None);
        } else {
            assert_eq!(
                self.saved,
                Some(machine.record()),
                "nothing decided is unsaved"
            );
        }
        assert_eq!(machine.work(), self.in_flight);
        if before.record().desired == Desired::Destroyed {
            assert_eq!(
                machine.record().desired,
                Desired::Destroyed,
                "destroyed is for good"
            );
        }
        assert!(machine.record().generation >= before.record().generation);
        assert!(machine.record().boot >= before.record().boot);
    }

    fn event(&mut self, event: Event) {
        self.apply(self.machine.step(event));
    }

    fn do_work(&mut self, work: Work, whole: bool) {
        match work {
            // In part: the old environment is gone, the new one made but not started.
            Work::Start { generation, .. } => self.environment = Some((generation, whole)),
            Work::Stop => {
                if let (Some((_, running)), true) = (&mut self.environment, whole) {
                    *running = false;
                }
            }
            Work::Destroy => {
                self.environment = match self.environment {
                    Some((generation, _)) if !whole => Some((generation, false)),
                    _ => None,
                }
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Asked(request) => {
                // As the actor does: what runs may have ended unseen.
                if request == Request::Up && self.machine.phase() == Phase::Running {
                    self.happen(Happening::Look);
                }
                let before = self.machine.record();
                self.event(Event::Asked(request));
                let after = self.machine.record();
                if before.desired == Desired::Destroyed {
                    return;
                }
                let desired = match request {
                    Request::Up => Desired::Running,
                    Request::Down => Desired::Down,
                    Request::Idle => panic!("nobody asks for that"),
                    Request::Destroy => Desired::Destroyed,
                    Request::Rebuild => {
                        assert_eq!(after.generation, before.generation + 1);
                        Desired::Running
                    }
                };
                assert_eq!(after.desired, desired, "every request is remembered");
            }
            Happening::WentIdle => {
                let before = self.machine;
                self.event(Event::Asked(Request::Idle));
                if before.phase() == Phase::Running {
                    assert_eq!(self.machine.record().desired, Desired::Idle);
                    assert_eq!(self.machine.phase(), Phase::Stopping);
                } else {
                    assert_eq!(self.machine, before, "only what runs goes idle");
                }
            }
            Happening::WorkEnds { whole } => {
                if let Some(work) = self.in_flight.take() {
                    self.do_work(work, whole);
                    let outcome = match (whole, self.cancelled) {
                        (true, _) => Outcome::Done,
                        (false, true) => Outcome::Cancelled,
                        (false, false) => Outcome::Failed,
                    };
                    self.event(Event::Ended(outcome));
                }
            }
            Happening::WorkIsRefused => {
                if let Some(work) = self.in_flight.take() {
                    self.do_work(work, false);
                    let outcome = match self.cancelled {
                        true => Outcome::Cancelled,
                        false => Outcome::Refused,
                    };
                    self.event(Event::Ended(outcome));
                }
            }
            Happening::EndsByItself => {
                if let Some((_, running)) = &mut self.environment {
                    *running = false;
                }
            }
            Happening::StartedByHand => {
                if let Some((_, running)) = &mut self.environment {
                    *running = true;
                }
            }
            Happening::Look => {
                let found = self.found();
                self.event(Event::Found(found));
            }
            Happening::Restarts => {
                let before = self.machine;
                self.event(Event::Restarted);
                let resting = matches!(before.phase(), Phase::Running | Phase::Failed);
                if resting && before.record().desired == Desired::Running {
                    assert_eq!(self.machine.phase(), Phase::Starting);
                } else {
                    assert_eq!(self.machine, before, "only what is meant to run is started");
                }
            }
            Happening::Crash { engine_answers } => {
                if let Some(work) = self.in_flight.take() {
                    self.do_work(work, false);
                }
                if let Some(record) = self.saved {
                    let found = engine_answers.then(|| self.found());
                    self.machine = Machine {
                        record,
                        life: Life::Created,
                    };
                    self.apply(Machine::recovered(record, found));
                }
            }
        }
    }

    /// Lets everything come to rest, nothing failing any more.
    fn settle(&mut self) {
        for _ in 0..8 {
            self.happen(Happening::Look);
            self.happen(Happening::WorkEnds { whole: true });
        }
        assert_eq!(self.in_flight, None);
    }
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        4 => Just(Request::Up),
        3 => Just(Request::Down),
        2 => Just(Request::Rebuild),
        1 => Just(Request::Destroy),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => request().prop_map(Happening::Asked),
        6 => any::<bool>().prop_map(|whole| Happening::WorkEnds { whole }),
        2 => Just(Happening::WorkIsRefused),
        2 => Just(Happening::WentIdle),
        1 => Just(Happening::EndsByItself),
        1 => Just(Happening::StartedByHand),
        2 => Just(Happening::Look),
        1 => Just(Happening::Restarts),
        2 => any::<bool>().prop_map(|engine_answers| Happening::Crash { engine_answers }),
    ]
}

proptest! {
    /// The assertions of [`World::apply`] and [`World::happen`] hold whatever
    /// happens, and whatever happened, the last request is what comes to be.
    #[test]
    fn no_decision_is_lost_and_the_last_one_comes_to_be(
        happenings in prop::collection::vec(happening(), 0..60),
        last in request(),
    ) {
        let mut world = World::new();
        for happening in happenings {
            world.happen(happening);
        }
        // A failure waits for somebody to ask again: so somebody does.
        world.happen(Happening::Asked(last));
        world.settle();
        let expected = match (world.saved.map(|r| r.desired), last) {
            (None, _) => Phase::Destroyed,
            (_, Request::Up | Request::Rebuild) => Phase::Running,
            (_, Request::Down | Request::Idle) => Phase::Stopped,
            (_, Request::Destroy) => Phase::Destroyed,
        };
        prop_assert_eq!(world.machine.phase(), expected);
        match expected {
            Phase::Running => prop_assert_eq!(
                world.environment,
                Some((world.machine.record().generation, true))
            ),
            Phase::Stopped => prop_assert_ne!(world.found(), Found::Running),
            _ => prop_assert_eq!(world.environment, None),
        }
    }

    /// A crash at any point and a restart carry on with what was asked for.
    #[test]
    fn a_crash_at_any_point_carries_on(
        requests in prop::collection::vec((request(), any::<bool>(), any::<bool>()), 1..12),
        engine_answers: bool,
    ) {
        let mut world = World::new();
        for (request, ends, idle) in requests {
            world.happen(Happening::Asked(request));
            if ends {
                world.happen(Happening::WorkEnds { whole: true });
            }
            if idle {
                world.happen(Happening::WentIdle);
            }
        }
        let desired = world.saved.map(|record| record.desired);
        world.happen(Happening::Crash { engine_answers });
        world.settle();
        let phase = world.machine.phase();
        match desired {
            None | Some(Desired::Destroyed) => {
                prop_assert_eq!(phase, Phase::Destroyed);
                prop_assert_eq!(world.environment, None);
            }
            Some(Desired::Running) => {
                prop_assert_eq!(phase, Phase::Running);
                let generation = world.machine.record().generation;
                prop_assert_eq!(world.environment, Some((generation, true)));
            }
            Some(Desired::Down | Desired::Idle) => {
                prop_assert_eq!(phase, Phase::Stopped);
                prop_assert_ne!(world.found(), Found::Running);
            }
            Some(Desired::Created) => prop_assert_eq!(phase, Phase::Created),
        }
    }
}

fn running() -> World {
    let mut world = World::new();
    world.happen(Happening::Asked(Request::Up));
    world.happen(Happening::WorkEnds { whole: true });
    assert_eq!(world.machine.phase(), Phase::Running);
    world
}

#[test]
fn a_second_up_joins_the_first() {
    let mut world = World::new();
    world.happen(Happening::Asked(Request::Up));
    let (machine, effects) = world.machine.step(Event::Asked(Request::Up));
    assert_eq!(machine, world.machine);
    assert!(effects.is_empty());
}

#[test]
fn down_during_up_cancels_and_then_stops() {
    let mut world = World::new();
    world.happen(Happening::Asked(Request::Up));
    world.happen(Happening::Asked(Request::Down));
    assert!(world.cancelled);
    world.happen(Happening::WorkEnds { whole: false });
    assert_eq!(world.machine.phase(), Phase::Stopping);
    world.happen(Happening::WorkEnds { whole: true });
    assert_eq!(world.machine.phase(), Phase::Stopped);
}

#[test]
fn down_and_up_again_during_up_starts_again() {
    let mut world = World::new();
    world.happen(Happening::Asked(Request::Up));
    world.happen(Happening::Asked(Request::Down));
    world.happen(Happening::Asked(Request::Up));
    world.happen(Happening::WorkEnds { whole: false });
    assert_eq!(world.machine.phase(), Phase::Starting);
}

#[test]
fn one_that_went_idle_comes_up_again_and_one_taken_down_meanwhile_stays_down() {
    let mut world = running();
    world.happen(Happening::WentIdle);
    world.happen(Happening::Asked(Request::Up));
    assert!(world.cancelled, "somebody came while it stopped");
    world.happen(Happening::WorkEnds { whole: false });
    world.happen(Happening::WorkEnds { whole: true });
    assert_eq!(world.machine.phase(), Phase::Running);
    world.happen(Happening::WentIdle);
    world.happen(Happening::WorkEnds { whole: true });
    assert_eq!(world.machine.phase(), Phase::Stopped);
    world.happen(Happening::Asked(Request::Down));
    assert_eq!(
        world.saved.map(|record| record.desired),
        Some(Desired::Down)
    );
    assert_eq!(world.in_flight, None, "it is down already");
    world.happen(Happening::WentIdle);
    assert_eq!(world.machine.record().desired, Desired::Down);
}

#[test]
fn one_that_ends_by_itself_is_stopped_and_still_meant_to_run() {
    let mut world = running();
    world.happen(Happening::EndsByItself);
    world.happen(Happening::Look);
    assert_eq!(world.machine.phase(), Phase::Stopped);
    assert_eq!(world.machine.record().desired, Desired::Running);
}

#[test]
fn what_was_meant_to_run_is_taken_up_when_the_engine_comes_back() {
    let mut world = running();
    world.happen(Happening::EndsByItself);
    world.happen(Happening::Crash {
        engine_answers: false,
    });
    assert_eq!(world.machine.phase(), Phase::Failed);
    world.happen(Happening::Look);
    assert_eq!(world.machine.phase(), Phase::Starting);
}

#[test]
fn a_failed_destroy_is_tried_again_when_somebody_looks() {
    let mut world = running();
    world.happen(Happening::Asked(Request::Destroy));
    world.happen(Happening::WorkEnds { whole: false });
    assert_eq!(world.machine.phase(), Phase::Destroying);
    assert!(world.machine.has_failed());
    world.happen(Happening::Look);
    assert_eq!(world.machine.work(), Some(Work::Destroy));
}

#[test]
fn a_start_that_failed_is_tried_again_when_it_runs_and_one_that_was_refused_is_not() {
    for (ends, after) in [
        (Happening::WorkEnds { whole: false }, Phase::Starting),
        (Happening::WorkIsRefused, Phase::Failed),
    ] {
        let mut world = running();
        world.happen(Happening::Asked(Request::Rebuild));
        world.happen(ends);
        assert_eq!(world.machine.phase(), Phase::Failed);
        // What it was to replace.
        world.environment = Some((1, true));
        world.happen(Happening::Look);
        assert_eq!(world.machine.phase(), after);
        world.happen(Happening::Asked(Request::Up));
        assert_eq!(world.machine.phase(), Phase::Starting);
    }
}

#[test]
fn every_start_is_a_new_boot() {
    let mut world = running();
    let first = world.machine.record().boot;
    world.happen(Happening::Asked(Request::Down));
    world.happen(Happening::WorkEnds { whole: true });
    world.happen(Happening::Asked(Request::Up));
    assert!(world.machine.record().boot > first);
}
