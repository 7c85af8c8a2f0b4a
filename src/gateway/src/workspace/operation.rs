//! Something under way with a workspace, which any number of people may watch.
//!
//! The work is the workspace's; an [`Operation`] only watches. A late joiner
//! reads the progress from its start, and dropping one stops watching, not
//! the work. What is kept is bounded: of the transfer reports of one step only
//! the latest is, and of too many messages the oldest go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use super::WorkspaceError;

/// Most messages that are kept for late joiners.
const MAX_EVENTS: usize = 500;

/// One report of progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Progress {
    /// A step began.
    Started {
        /// The step.
        step: String,
    },
    /// Something worth saying.
    Message {
        /// The step.
        step: String,
        /// One line of text.
        text: String,
    },
    /// Bytes moved.
    Transfer {
        /// The step.
        step: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, when known.
        total: Option<u64>,
    },
    /// A step ended well.
    Finished {
        /// The step.
        step: String,
        /// How long it took.
        #[serde(rename = "took_ms", serialize_with = "as_millis")]
        took: Duration,
    },
    /// A step failed.
    Failed {
        /// The step.
        step: String,
        /// Why.
        cause: String,
    },
}

fn as_millis<S: serde::Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

#[derive(Debug, Default)]
struct State {
    /// Reports with the revision at which each was made, oldest first.
    events: Vec<(u64, Progress)>,
    revision: u64,
    outcome: Option<Result<(), WorkspaceError>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned list of reports is still a list of reports.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let revision = {
            let mut state = self.lock();
            if state.outcome.is_some() {
                return;
            }
            state.revision += 1;
            change(&mut state);
            state.revision
        };
        self.revision.send_replace(revision);
    }
}

/// The end that reports. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ProgressSink(Arc<Shared>);

impl Default for ProgressSink {
    fn default() -> Self {
        Self::new()
    }
}

impl ProgressSink {
    /// A new operation, nothing reported yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            revision: watch::Sender::new(0),
        }))
    }

    /// Somebody to watch it, from its start.
    #[must_use]
    pub fn watch(&self) -> Operation {
        Operation {
            changed: self.0.revision.subscribe(),
            shared: Arc::clone(&self.0),
            seen: 0,
        }
    }

    /// Reports that `step` began; its end is reported through the result.
    #[must_use]
    pub fn step(&self, step: impl Into<String>) -> Step {
        let step = step.into();
        self.report(Progress::Started { step: step.clone() });
        Step {
            sink: self.clone(),
            step,
            began: Instant::now(),
        }
    }

    /// Reports one line of text.
    pub fn message(&self, step: impl Into<String>, text: impl Into<String>) {
        self.report(Progress::Message {
            step: step.into(),
            text: text.into(),
        });
    }

    fn report(&self, progress: Progress) {
        self.0.change(|state| {
            if let Progress::Transfer { step, .. } = &progress {
                state.events.retain(
                    |(_, old)| !matches!(old, Progress::Transfer { step: s, .. } if s == step),
                );
            }
            if state.events.len() >= MAX_EVENTS {
                let is_message =
                    |(_, old): &(u64, Progress)| matches!(old, Progress::Message { .. });
                let oldest = state.events.iter().position(is_message).unwrap_or(0);
                state.events.remove(oldest);
            }
            state.events.push((state.revision, progress));
        });
    }

    /// Ends the operation. Only the first end counts.
    pub fn end(&self, outcome: Result<(), WorkspaceError>) {
        self.0.change(|state| state.outcome = Some(outcome));
    }
}

/// A step under way. Dropped without an end (the work was given up), it says nothing.
#[derive(Debug)]
pub struct Step {
    sink: ProgressSink,
    step: String,
    began: Instant,
}

impl Step {
    /// Reports one line of text.
    pub fn message(&self, text: impl Into<String>) {
        self.sink.message(self.step.clone(), text);
    }

    /// Reports bytes moved.
    pub fn transfer(&self, done: u64, total: Option<u64>) {
        self.sink.report(Progress::Transfer {
            step: self.step.clone(),
            done,
            total,
        });
    }

    /// Reports the end of the step and hands its result on.
    pub fn end<T, E: std::fmt::Display>(self, result: Result<T, E>) -> Result<T, E> {
        self.sink.report(match &result {
            Ok(_) => Progress::Finished {
                step: self.step.clone(),
                took: self.began.elapsed(),
            },
            Err(error) => Progress::Failed {
                step: self.step.clone(),
                cause: error.to_string(),
            },
        });
        result
    }
}

/// Somebody watching an operation.
#[derive(Debug)]
pub struct Operation {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    seen: u64,
}

impl Operation {
    /// An operation that ended before it began, such as `up` of what is up.
    pub(super) fn ended(
        outcome: Result<(), WorkspaceError>,
        message: Option<(&str, String)>,
    ) -> Self {
        let sink = ProgressSink::new();
        if let Some((step, text)) = message {
            sink.message(step, text);
        }
        sink.end(outcome);
        sink.watch()
    }

    /// The next report; none when the operation has ended and all is told.
    /// Safe to cancel.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            {
                let state = self.shared.lock();
                let next = state.events.iter().find(|(at, _)| *at > self.seen);
                if let Some((at, progress)) = next {
                    self.seen = *at;
                    return Some(progress.clone());
                }
                if state.outcome.is_some() {
                    return None;
                }
            }
            // Fails only when the sender is gone, and `shared` keeps it.
            self.changed.changed().await.ok()?;
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// What the operation failed with.
    pub async fn outcome(mut self) -> Result<(), WorkspaceError> {
        loop {
            if let Some(outcome) = self.shared.lock().outcome.clone() {
                return outcome;
            }
            if self.changed.changed().await.is_err() {
                return Err(WorkspaceError::new(
                    super::ErrorKind::Internal,
                    "operation",
                    "given up without a result",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(events: &[Progress]) -> Vec<String> {
        events
            .iter()
            .map(|event| match event {
                Progress::Started { step } => format!("started {step}"),
                Progress::Message { text, .. } => text.clone(),
                Progress::Transfer { done, .. } => format!("{done} bytes"),
                Progress::Finished { step, .. } => format!("finished {step}"),
                Progress::Failed { cause, .. } => format!("failed {cause}"),
            })
            .collect()
    }

    async fn all(mut operation: Operation) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = operation.next().await {
            events.push(event);
        }
        texts(&events)
    }

    #[tokio::test]
    async fn a_late_joiner_reads_everything_from_the_start() {
        let sink = ProgressSink::new();
        let early = tokio::spawn(all(sink.watch()));
        let step = sink.step("pull");
        for done in [1, 2, 3] {
            step.transfer(done, None);
        }
        step.end(Ok::<_, WorkspaceError>(())).unwrap();
        sink.end(Ok(()));
        let late = all(sink.watch()).await;
        assert_eq!(late, ["started pull", "3 bytes", "finished pull"]);
        let early = early.await.unwrap();
        assert_eq!(early.first(), late.first());
        assert_eq!(early.last(), late.last());
    }

    #[tokio::test]
    async fn everybody_gets_the_outcome_and_nothing_comes_after_it() {
        let sink = ProgressSink::new();
        let (one, two) = (sink.watch(), sink.watch());
        let error = WorkspaceError::new(ErrorKind::Conflict, "workspace x", "taken down");
        sink.end(Err(error.clone()));
        sink.end(Ok(()));
        sink.message("late", "not told");
        assert_eq!(one.outcome().await, Err(error.clone()));
        assert_eq!(two.outcome().await, Err(error));
        assert!(all(sink.watch()).await.is_empty());
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let sink = ProgressSink::new();
        let step = sink.step("step");
        for n in 0..10 * MAX_EVENTS {
            step.message(n.to_string());
        }
        step.end(Ok::<_, WorkspaceError>(())).unwrap();
        sink.end(Ok(()));
        let kept = all(sink.watch()).await;
        assert_eq!(kept.len(), MAX_EVENTS);
        assert_eq!(kept.first().unwrap(), "started step");
        assert_eq!(kept.last().unwrap(), "finished step");
        let newest = (10 * MAX_EVENTS - 1).to_string();
        assert!(kept.contains(&newest));
    }

    use super::super::ErrorKind;
}
