//! What uses a workspace: channels of sessions and forwards, connections to its
//! ports, services that are declared busy.
//!
//! ```text
//!           a use begins              a use begins
//!   quiet ───────────────▶ in use     leaving ──▶ leaving, in use
//!     │ ▲                    │           │  it stays      │
//!     │ └────────────────────┘           └──▶ quiet       └──▶ in use
//!     │       the last ends
//!     └── quiet for the timeout ──▶ leaving (the workspace is about to stop)
//! ```
//!
//! Whoever begins a use while it is leaving must ask for the workspace again
//! before using it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Counts uses; pure, `now` is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meter {
    uses: usize,
    /// When the last use ended, or the counting began.
    quiet_since: Instant,
    leaving: bool,
}

/// What follows from a [`Meter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is in use.
    InUse,
    /// It has been quiet, but not for long enough: look again after so long.
    Wait(Duration),
    /// It has been quiet for the timeout.
    Idle,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self {
            uses: 0,
            quiet_since: now,
            leaving: false,
        }
    }

    fn began(&mut self) {
        self.uses += 1;
    }

    fn ended(&mut self, now: Instant) {
        self.uses = self.uses.saturating_sub(1);
        self.quiet_since = now;
    }

    /// Whether it is idle.
    pub(super) fn verdict(&self, timeout: Duration, now: Instant) -> Verdict {
        if self.uses > 0 {
            return Verdict::InUse;
        }
        let quiet = now.saturating_duration_since(self.quiet_since);
        match timeout.checked_sub(quiet) {
            None | Some(Duration::ZERO) => Verdict::Idle,
            Some(rest) => Verdict::Wait(rest),
        }
    }

    fn leave(&mut self, timeout: Duration, now: Instant) -> bool {
        let idle = self.verdict(timeout, now) == Verdict::Idle;
        self.leaving |= idle;
        idle
    }
}

/// Counts what uses a workspace. Clones share it.
#[derive(Debug, Clone)]
pub struct Activity(Arc<watch::Sender<Meter>>);

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Meter::new(Instant::now()))))
    }
}

impl Activity {
    /// Begins a use, which lasts until the result is dropped.
    #[must_use]
    pub fn begin(&self) -> InUse {
        self.0.send_modify(Meter::began);
        InUse(self.clone())
    }

    /// Begins to count quiet time anew: it came up now.
    pub(super) fn restart(&self) {
        let now = Instant::now();
        self.0.send_modify(|meter| meter.quiet_since = now);
    }

    /// Whether it is about to stop.
    pub(super) fn is_leaving(&self) -> bool {
        self.0.borrow().leaving
    }

    /// Says that it is about to stop, if nothing has used it for `timeout`.
    pub(super) fn leave(&self, timeout: Duration) -> bool {
        let now = Instant::now();
        let mut leaves = false;
        self.0.send_if_modified(|meter| {
            leaves = meter.leave(timeout, now);
            // It is as quiet as before.
            false
        });
        leaves
    }

    /// Takes [`leave`](Self::leave) back: it has stopped, or does not.
    pub(super) fn stay(&self) {
        self.0.send_if_modified(|meter| {
            meter.leaving = false;
            false
        });
    }

    /// The count as it changes.
    pub(super) fn watch(&self) -> watch::Receiver<Meter> {
        self.0.subscribe()
    }
}

/// A use of a workspace.
#[derive(Debug)]
pub struct InUse(Activity);

impl Drop for InUse {
    fn drop(&mut self) {
        let now = Instant::now();
        self.0.0.send_modify(|meter| meter.ended(now));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Begin,
        End,
        Pass(u64),
        Leave,
        Stay,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => Just(Step::Begin),
            2 => Just(Step::End),
            4 => (0..15u64).prop_map(Step::Pass),
            2 => Just(Step::Leave),
            1 => Just(Step::Stay),
        ]
    }

    proptest! {
        /// Against the plain history of uses: it is idle exactly when none is
        /// open and the last ended at least the timeout ago, `Wait` names the
        /// very moment, and it leaves only when idle.
        #[test]
        fn it_is_idle_when_nothing_has_used_it_for_the_timeout(
            steps in prop::collection::vec(step(), 0..40),
        ) {
            let start = Instant::now();
            let mut meter = Meter::new(start);
            let (mut now, mut open, mut last, mut leaving) = (start, 0u32, start, false);
            for step in steps {
                match step {
                    Step::Begin => {
                        open += 1;
                        meter.began();
                    }
                    Step::End if open > 0 => {
                        open -= 1;
                        last = now;
                        meter.ended(now);
                    }
                    Step::End => {}
                    Step::Pass(seconds) => now += Duration::from_secs(seconds),
                    Step::Leave => {
                        let idle = open == 0 && now - last >= TIMEOUT;
                        prop_assert_eq!(meter.leave(TIMEOUT, now), idle);
                        leaving |= idle;
                    }
                    Step::Stay => {
                        leaving = false;
                        meter.leaving = false;
                    }
                }
                prop_assert_eq!(meter.leaving, leaving);
                match meter.verdict(TIMEOUT, now) {
                    Verdict::InUse => prop_assert!(open > 0),
                    Verdict::Idle => prop_assert!(open == 0 && now - last >= TIMEOUT),
                    Verdict::Wait(rest) => {
                        prop_assert!(open == 0 && !rest.is_zero());
                        prop_assert_eq!(now + rest, last + TIMEOUT);
                        prop_assert_eq!(meter.verdict(TIMEOUT, now + rest), Verdict::Idle);
                    }
                }
            }
        }
    }
}
