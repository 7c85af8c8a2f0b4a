//! When a connection is made, as a pure machine.
//!
//! ```text
//!   idle ──need──▶ connecting ──connected──▶ up
//!                   ▲      │                 │
//!        elapsed or │      │ failed          │ lost
//!        need       │      ▼                 │
//!                  waiting ◀─────────────────┘
//! ```
//!
//! The wait doubles with every failure in a row, with jitter, so that many
//! gateways do not come back to a node at one moment. A need cuts it short,
//! but not more often than once in a [`GAP`]. A connection that did not last
//! counts as one more failure, and so does one whose cause does not pass by
//! itself at once for many: sshd bars an address that fails to authenticate
//! too often (PerSourcePenalties).

use std::time::Duration;

use tokio::time::Instant;

/// Longest first wait.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait of all.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// A connection that lasted this long starts the waits anew.
const STEADY: Duration = Duration::from_secs(10);
/// Least time from one try to the next that somebody's need brings about.
pub(super) const GAP: Duration = Duration::from_secs(1);
/// The same when the last try failed for a reason that does not pass by itself.
pub(super) const STUBBORN_GAP: Duration = Duration::from_secs(10);

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody has needed it.
    Idle,
    /// It is being made.
    Connecting,
    /// It is there.
    Up,
    /// The next try is at that time.
    Waiting(Instant),
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody needs it.
    Need,
    /// It was made.
    Connected,
    /// It could not be made.
    Failed {
        /// Whether the reason may pass by itself.
        transient: bool,
    },
    /// It broke.
    Lost,
    /// The wait is over.
    Elapsed,
}

/// The machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// Where it stands.
    pub phase: Phase,
    failures: u32,
    gap: Duration,
    /// When the last try began.
    tried: Option<Instant>,
    /// When the connection was made.
    up: Option<Instant>,
}

impl Machine {
    /// Not needed so far.
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Idle,
            failures: 0,
            gap: GAP,
            tried: None,
            up: None,
        }
    }

    /// What follows from `event` at `now`; `jitter` is a random number from 0 to 1.
    /// An event that does not fit the phase changes nothing.
    pub(super) fn step(self, event: Event, now: Instant, jitter: f64) -> Self {
        match (self.phase, event) {
            (Phase::Idle, Event::Need) | (Phase::Waiting(_), Event::Elapsed) => self.connect(now),
            (Phase::Waiting(next), Event::Need) => {
                let allowed = self.tried.map_or(now, |tried| tried + self.gap);
                if allowed <= now {
                    self.connect(now)
                } else {
                    let phase = Phase::Waiting(next.min(allowed));
                    Self { phase, ..self }
                }
            }
            (Phase::Connecting, Event::Connected) => Self {
                phase: Phase::Up,
                gap: GAP,
                up: Some(now),
                ..self
            },
            (Phase::Connecting, Event::Failed { transient }) => {
                let failures = self.failures.saturating_add(1);
                let (wait, gap) = if transient {
                    (wait(failures, jitter), GAP)
                } else {
                    (wait(u32::MAX, jitter), STUBBORN_GAP)
                };
                let phase = Phase::Waiting(now + wait);
                Self {
                    phase,
                    failures,
                    gap,
                    ..self
                }
            }
            (Phase::Up, Event::Lost) => {
                let lasted = self.up.is_some_and(|up| now >= up + STEADY);
                let failures = if lasted {
                    1
                } else {
                    self.failures.saturating_add(1)
                };
                let phase = Phase::Waiting(now + wait(failures, jitter));
                Self {
                    phase,
                    failures,
                    ..self
                }
            }
            _ => self,
        }
    }

    fn connect(self, now: Instant) -> Self {
        Self {
            phase: Phase::Connecting,
            tried: Some(now),
            ..self
        }
    }
}

/// How long to wait after `failures` in a row: between half and whole of what
/// doubles from [`FIRST_WAIT`] to [`MAX_WAIT`].
fn wait(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let whole = FIRST_WAIT.saturating_mul(1 << doublings).min(MAX_WAIT);
    whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Need),
            Just(Event::Connected),
            any::<bool>().prop_map(|transient| Event::Failed { transient }),
            Just(Event::Lost),
            Just(Event::Elapsed),
        ]
    }

    proptest! {
        #[test]
        fn waits_grow_from_a_quarter_second_to_half_a_minute(failures in 1..100u32, jitter in 0.0..1.0f64) {
            let this = wait(failures, jitter);
            prop_assert!(this >= Duration::from_millis(250) && this <= MAX_WAIT);
            prop_assert!(wait(failures + 1, jitter) >= this);
            prop_assert!(wait(failures, 1.0) <= 2 * wait(failures, 0.0));
        }

        #[test]
        fn whatever_happens_a_need_never_brings_tries_closer_together_than_the_gap(
            events in prop::collection::vec((any_event(), 0..3000u64, 0.0..1.0f64), 0..60),
        ) {
            let mut now = Instant::now();
            let mut machine = Machine::new();
            let mut last_try: Option<Instant> = None;
            for (event, pause, jitter) in events {
                now += Duration::from_millis(pause);
                let next = machine.step(event, now, jitter);
                let tries = machine.phase != Phase::Connecting && next.phase == Phase::Connecting;
                if tries {
                    if event == Event::Need && let Some(last) = last_try {
                        prop_assert!(now - last >= GAP);
                    }
                    last_try = Some(now);
                }
                if let Phase::Waiting(until) = next.phase {
                    prop_assert!(until <= now + MAX_WAIT, "a wait ends");
                }
                machine = next;
            }
        }

        #[test]
        fn wherever_it_stands_there_is_a_way_to_up(
            events in prop::collection::vec(any_event(), 0..40),
        ) {
            let mut now = Instant::now();
            let mut machine = Machine::new();
            for event in events {
                machine = machine.step(event, now, 0.5);
            }
            now += MAX_WAIT;
            for event in [Event::Need, Event::Elapsed, Event::Connected] {
                machine = machine.step(event, now, 0.5);
            }
            prop_assert_eq!(machine.phase, Phase::Up);
        }
    }

    fn failed_once(now: Instant, transient: bool) -> Machine {
        Machine::new()
            .step(Event::Need, now, 0.0)
            .step(Event::Failed { transient }, now, 0.0)
    }

    #[test]
    fn a_need_cuts_a_wait_short_but_only_so_often() {
        let start = Instant::now();
        let mut machine = failed_once(start, true);
        for _ in 0..6 {
            let Phase::Waiting(until) = machine.phase else {
                panic!("{machine:?}")
            };
            machine = machine.step(Event::Elapsed, until, 1.0).step(
                Event::Failed { transient: true },
                until,
                1.0,
            );
        }
        let Phase::Waiting(until) = machine.phase else {
            panic!("{machine:?}")
        };
        let tried = machine.tried.unwrap();
        assert!(until - tried > Duration::from_secs(10));
        let too_soon = machine.step(Event::Need, tried + GAP / 2, 1.0);
        assert_eq!(too_soon.phase, Phase::Waiting(tried + GAP));
        let soon = machine.step(Event::Need, tried + GAP, 1.0);
        assert_eq!(soon.phase, Phase::Connecting);
    }

    #[test]
    fn a_refused_key_is_not_tried_again_and_again() {
        let now = Instant::now();
        let machine = failed_once(now, false);
        assert_eq!(machine.phase, Phase::Waiting(now + MAX_WAIT / 2));
        let needed = machine.step(Event::Need, now + GAP, 0.0);
        assert_eq!(needed.phase, Phase::Waiting(now + STUBBORN_GAP));
    }

    #[test]
    fn a_connection_that_lasted_starts_the_waits_anew_and_a_short_one_does_not() {
        let now = Instant::now();
        let mut machine = failed_once(now, true);
        for _ in 0..5 {
            machine = machine.step(Event::Elapsed, now, 0.0);
            machine = machine.step(Event::Failed { transient: true }, now, 0.0);
        }
        let up = machine
            .step(Event::Elapsed, now, 0.0)
            .step(Event::Connected, now, 0.0);
        let brief = up.step(Event::Lost, now + STEADY / 2, 0.0);
        let lasting = up.step(Event::Lost, now + STEADY, 0.0);
        assert!(matches!(brief.phase, Phase::Waiting(until) if until - now > STEADY));
        assert_eq!(lasting.phase, Phase::Waiting(now + STEADY + FIRST_WAIT / 2));
    }
}
