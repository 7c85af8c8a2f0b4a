//! The life of a workspace as a pure state machine.
//!
//! ```text
//!             up, rebuild           done
//!   created ──────────────▶ starting ──▶ running
//!      │                     ▲  │ ▲         │  │
//!      │ down             up │  │ │ up,     │  │ ended by itself
//!      ▼           done      │  │ │ rebuild │  ▼
//!   stopping ──────────▶ stopped│ └─────────│─ stopped
//!      ▲ ▲                      │ down      │
//!      │ └──────────────────────┘ (cancels) │
//!      └────────────────────────────────────┘ down
//!
//!   running ── went idle ──▶ stopping
//!   running, failed ── restarted from inside ──▶ starting
//!   starting, stopping ── failed work ──▶ failed
//!   failed, since something was away ── found running ──▶ starting
//!   any ── destroy ──▶ destroying ── done ──▶ destroyed (the end)
//!                       │     ▲
//!            failed work└─────┘ looked at
//! ```
//!
//! A command changes the [`Record`], which is saved before anything is done
//! about it. One [`Work`] at most is under way. When it ends, the record says
//! what comes next, whatever the work was begun for: so a `down` during `up`
//! saves, cancels, and stops once the start has given up. Every work is
//! idempotent and may be cut off anywhere; [`Machine::recovered`] takes up the
//! saved record and what the engine has, and goes on from there.

use serde::Serialize;

/// What the workspace is meant to be; saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Never brought up yet.
    Created,
    /// Up.
    Running,
    /// Taken down on purpose.
    Down,
    /// Down because nobody used it.
    Idle,
    /// Gone, with all it holds.
    Destroyed,
}

impl Desired {
    /// The word in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Down => "down",
            Self::Idle => "idle",
            Self::Destroyed => "destroyed",
        }
    }

    /// The value that [`as_str`](Self::as_str) wrote.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [
            Self::Created,
            Self::Running,
            Self::Down,
            Self::Idle,
            Self::Destroyed,
        ]
        .into_iter()
        .find(|desired| desired.as_str() == word)
    }
}

/// What is saved of a workspace's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it is meant to be.
    pub desired: Desired,
    /// Which environment it is meant to have; a rebuild asks for the next one.
    /// The environment carries it as a label.
    pub generation: u64,
    /// Counts the starts.
    pub boot: u64,
}

impl Record {
    /// Of a workspace that was just created.
    pub const NEW: Self = Self {
        desired: Desired::Created,
        generation: 1,
        boot: 0,
    };
}

/// What somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Bring it up.
    Up,
    /// Take it down, keep its disk.
    Down,
    /// Take it down because nobody uses it; heeded only while it runs.
    Idle,
    /// Make its environment anew, keep `/workspace`, bring it up.
    Rebuild,
    /// Remove all of it.
    Destroy,
}

/// Work on the environment. Idempotent; may be cut off anywhere and done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// See that the environment of this generation, and no other, exists, runs and answers.
    Start {
        /// [`Record::generation`] when it began.
        generation: u64,
        /// [`Record::boot`] when it began.
        boot: u64,
    },
    /// See that it does not run.
    Stop,
    /// See that nothing is left of it.
    Destroy,
}

/// How work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is so.
    Done,
    /// It could not be done: something was away, or did not answer.
    Failed,
    /// It cannot be done as it is: doing it again would fail again.
    Refused,
    /// It was cut off by [`Effect::Cancel`].
    Cancelled,
}

/// What the engine has of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// No environment.
    Absent,
    /// One that does not run.
    Stopped,
    /// One that runs.
    Running,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody asks for something.
    Asked(Request),
    /// The work under way ended.
    Ended(Outcome),
    /// The engine was asked while no work was under way.
    Found(Found),
    /// The environment was restarted from inside: it runs, and what the last
    /// start brought up in it does not.
    Restarted,
}

/// What is to be done, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Save the record durably, before the effects that follow.
    Save(Record),
    /// Begin work; its end comes back as [`Event::Ended`].
    Begin(Work),
    /// Cut the work under way off; it still ends with an [`Event::Ended`].
    Cancel,
    /// Delete the record: nothing is left of the workspace.
    Forget,
}

/// What a workspace is doing, for people and for those who want to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Never brought up yet.
    Created,
    /// On its way up.
    Starting,
    /// Up; its agent answers.
    Running,
    /// On its way down.
    Stopping,
    /// Down, disk kept.
    Stopped,
    /// The last work on it failed.
    Failed,
    /// Being removed, or to be removed as soon as that can be done.
    Destroying,
    /// Gone.
    Destroyed,
}

impl Phase {
    /// The word shown to people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where in its life a workspace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Created,
    Running,
    Stopped,
    Failed(Retry),
    Working(Work),
    Destroyed,
}

/// What makes a failed workspace be tried again before somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// Nothing.
    Never,
    /// That it is found to run, though the start did not see it.
    Running,
    /// Whatever is found: the engine could not be asked at the gateway's start,
    /// so the record is still to be acted upon.
    Found,
}

/// A workspace's life: what is saved, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    record: Record,
    life: Life,
}

impl Machine {
    /// A workspace that was just created.
    #[must_use]
    pub fn new() -> Self {
        Self {
            record: Record::NEW,
            life: Life::Created,
        }
    }

    /// Takes up a saved record after a restart of the gateway, with what the
    /// engine has (none: it could not be asked).
    #[must_use]
    pub fn recovered(record: Record, found: Option<Found>) -> (Self, Vec<Effect>) {
        let rest = |life| (Self { record, life }, Vec::new());
        let up = found == Some(Found::Running);
        match record.desired {
            Desired::Created if !up => rest(Life::Created),
            Desired::Down | Desired::Idle if !up => rest(Life::Stopped),
            Desired::Running | Desired::Destroyed if found.is_none() => {
                rest(Life::Failed(Retry::Found))
            }
            _ => Self::pursue(record, false),
        }
    }

    /// What is saved of it.
    #[must_use]
    pub fn record(&self) -> Record {
        self.record
    }

    /// The work under way.
    #[must_use]
    pub fn work(&self) -> Option<Work> {
        match self.life {
            Life::Working(work) => Some(work),
            _ => None,
        }
    }

    /// What it is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.life {
            Life::Created => Phase::Created,
            Life::Running => Phase::Running,
            Life::Stopped => Phase::Stopped,
            // Nothing else comes of it, however long it takes.
            Life::Failed(_) if self.record.desired == Desired::Destroyed => Phase::Destroying,
            Life::Failed(_) => Phase::Failed,
            Life::Working(Work::Start { .. }) => Phase::Starting,
            Life::Working(Work::Stop) => Phase::Stopping,
            Life::Working(Work::Destroy) => Phase::Destroying,
            Life::Destroyed => Phase::Destroyed,
        }
    }

    /// Whether the last work on it failed, and nothing has been tried since.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.life, Life::Failed(_))
    }

    /// The same, failed: an effect could not be carried out, and what was
    /// under way is not.
    #[must_use]
    pub fn failed(self) -> Self {
        Self {
            life: Life::Failed(Retry::Running),
            ..self
        }
    }

    /// What follows from an event.
    #[must_use]
    pub fn step(self, event: Event) -> (Self, Vec<Effect>) {
        match event {
            Event::Asked(request) => self.asked(request),
            Event::Ended(outcome) => self.ended(outcome),
            Event::Found(found) => self.found(found),
            Event::Restarted => self.restarted(),
        }
    }

    fn asked(self, request: Request) -> (Self, Vec<Effect>) {
        let mut record = self.record;
        if record.desired == Desired::Destroyed && request != Request::Destroy {
            return (self, Vec::new());
        }
        let runs = self.life == Life::Running && record.desired == Desired::Running;
        if request == Request::Idle && !runs {
            return (self, Vec::new());
        }
        record.desired = match request {
            Request::Up | Request::Rebuild => Desired::Running,
            Request::Down => Desired::Down,
            Request::Idle => Desired::Idle,
            Request::Destroy => Desired::Destroyed,
        };
        if request == Request::Rebuild {
            record.generation += 1;
        }
        let changed = record != self.record;
        match self.life {
            Life::Destroyed => (self, Vec::new()),
            Life::Working(_) if !changed => (self, Vec::new()),
            Life::Working(_) => (
                Self { record, ..self },
                vec![Effect::Save(record), Effect::Cancel],
            ),
            Life::Running if !changed => (self, Vec::new()),
            Life::Stopped if record.desired == Desired::Down => {
                let save = changed.then_some(Effect::Save(record));
                (Self { record, ..self }, save.into_iter().collect())
            }
            _ => Self::pursue(record, changed),
        }
    }

    fn ended(self, outcome: Outcome) -> (Self, Vec<Effect>) {
        let Life::Working(work) = self.life else {
            return (self, Vec::new());
        };
        let record = self.record;
        let wanted = match (work, record.desired) {
            (Work::Start { generation, .. }, Desired::Running) => generation == record.generation,
            (Work::Stop, Desired::Down | Desired::Idle | Desired::Created)
            | (Work::Destroy, Desired::Destroyed) => true,
            _ => false,
        };
        let life = match (wanted, outcome, work) {
            (false, ..) | (true, Outcome::Cancelled, _) => return Self::pursue(record, false),
            (true, Outcome::Failed, _) => Life::Failed(Retry::Running),
            (true, Outcome::Refused, _) => Life::Failed(Retry::Never),
            (true, Outcome::Done, Work::Start { .. }) => Life::Running,
            (true, Outcome::Done, Work::Stop) => Life::Stopped,
            (true, Outcome::Done, Work::Destroy) => {
                let gone = Self {
                    record,
                    life: Life::Destroyed,
                };
                return (gone, vec![Effect::Forget]);
            }
        };
        (Self { record, life }, Vec::new())
    }

    fn found(self, found: Found) -> (Self, Vec<Effect>) {
        let record = self.record;
        let rest = |life| (Self { record, life }, Vec::new());
        let up = found == Found::Running;
        match (self.life, record.desired) {
            (Life::Working(_) | Life::Destroyed, _) => rest(self.life),
            (Life::Running, _) if up => rest(self.life),
            (Life::Running, _) => rest(Life::Stopped),
            (_, Desired::Destroyed) => Self::pursue(record, false),
            (Life::Failed(Retry::Found), _) => Self::pursue(record, false),
            (Life::Failed(_), Desired::Down | Desired::Idle) if !up => rest(Life::Stopped),
            (Life::Failed(Retry::Never), Desired::Running) => rest(self.life),
            _ if up => Self::pursue(record, false),
            _ => rest(self.life),
        }
    }

    fn restarted(self) -> (Self, Vec<Effect>) {
        match (self.life, self.record.desired) {
            (Life::Running | Life::Failed(_), Desired::Running) => Self::pursue(self.record, false),
            // Work under way sees to it, or ends what there is.
            _ => (self, Vec::new()),
        }
    }

    /// Begins what the record asks for.
    fn pursue(mut record: Record, mut changed: bool) -> (Self, Vec<Effect>) {
        let work = match record.desired {
            Desired::Created | Desired::Down | Desired::Idle => Work::Stop,
            Desired::Destroyed => Work::Destroy,
            Desired::Running => {
                record.boot += 1;
                changed = true;
                Work::Start {
                    generation: record.generation,
                    boot: record.boot,
                }
            }
        };
        let save = changed.then_some(Effect::Save(record));
        let machine = Self {
            record,
            life: Life::Working(work),
        };
        (
            machine,
            save.into_iter().chain([Effect::Begin(work)]).collect(),
        )
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
