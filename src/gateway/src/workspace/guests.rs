//! Lets those who may connect to a workspace log in to its agent themselves
//! (ProxyJump), with their own keys.
//!
//! The agent is told whose keys it may let in over a connection of ours, and
//! lets nobody in when that ends. It is made for the first who comes, shared by
//! all who come meanwhile, told of every change of users and keys, and given up
//! a while after the last of them.
//!
//! ```text
//!   closed ── the first comes ──▶ open ── a change of users or keys ──▶ open, agent told
//!     ▲                            │ ▲                                    │
//!     │                            │ └────────────────────────────────────┘
//!     └── nobody for LINGER, or the connection is lost
//! ```

use std::sync::{self, Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};
use vendetta_proto::rpc::{Guests, Request};
use vendetta_sshio::keys::PublicKey;

use super::manager::{AgentTarget, WorkspaceRef, Workspaces};
use super::services::Services;
use crate::access::{Action, Authorized, Permissions, Principal, authorize};
use crate::agent::client::{AgentClient, Answers};
use crate::agent::pool::AgentError;
use crate::node::ByteStream;

/// How long an agent may take to let somebody in.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long an agent stays open to guests when none is there: whoever comes
/// again soon does not wait for another handshake with it.
const LINGER: Duration = Duration::from_secs(30);

/// The latest admission of a workspace.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<Arc<Admission>>>);

/// The agent of one boot lets in who may connect, as long as this is there.
#[derive(Debug)]
struct Admission {
    boot: u64,
    /// The change of users and keys up to which the agent has been told; ends
    /// with the connection to it.
    told: watch::Receiver<u64>,
    visits: Arc<sync::Mutex<Visits>>,
}

/// Counts who uses an admission; pure, `now` is given.
#[derive(Debug)]
struct Visits {
    open: usize,
    /// When the last one ended.
    quiet_since: Instant,
    closed: bool,
}

impl Visits {
    fn new(now: Instant) -> Self {
        Self {
            open: 0,
            quiet_since: now,
            closed: false,
        }
    }

    /// Begins one, unless it is too late.
    fn begin(&mut self) -> bool {
        self.open += usize::from(!self.closed);
        !self.closed
    }

    fn end(&mut self, now: Instant) {
        self.open = self.open.saturating_sub(1);
        self.quiet_since = now;
    }

    /// Ends it all if nobody has been there for [`LINGER`].
    fn close(&mut self, now: Instant) -> bool {
        let quiet = now.saturating_duration_since(self.quiet_since);
        self.closed |= self.open == 0 && quiet >= LINGER;
        self.closed
    }
}

fn visits(visits: &sync::Mutex<Visits>) -> sync::MutexGuard<'_, Visits> {
    visits.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps an agent open to guests.
#[derive(Debug)]
pub struct Admitted(Arc<Admission>);

impl Admitted {
    /// Returns when the agent is gone, or lets nobody in any more.
    pub async fn ended(&self) {
        let mut told = self.0.told.clone();
        while told.changed().await.is_ok() {}
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        visits(&self.0.visits).end(Instant::now());
    }
}

/// A stream to an agent that lets in who may connect.
pub struct Pipe {
    /// The stream.
    pub stream: Box<dyn ByteStream>,
    /// To be kept as long as it.
    pub admitted: Admitted,
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}

impl Workspaces {
    /// A stream to the agent of a running workspace, which lets in who may connect
    /// to the workspace at this moment, until the result is dropped.
    ///
    /// # Errors
    /// When the agent cannot be reached, or does not let anybody in.
    pub async fn pipe(
        &self,
        workspace: &Authorized<WorkspaceRef>,
        target: &AgentTarget,
    ) -> Result<Pipe, AgentError> {
        let gone = || AgentError::Refused {
            workspace: workspace.name.to_string(),
            problem: "the workspace was destroyed".to_owned(),
            not_found: true,
        };
        let entry = self.entry(workspace).map_err(|_| gone())?;
        let services = self.shared();
        let admitted = {
            let mut latest = entry.gate.0.lock().await;
            match latest.as_ref().and_then(|latest| latest.visit(target)) {
                Some(admitted) => admitted,
                None => {
                    let begun = Admission::begin(services, workspace, target).await?;
                    let begun = latest.insert(Arc::new(begun));
                    begun.visit(target).ok_or_else(|| lost(target))?
                }
            }
        };
        admitted.0.knows_all(services, target).await?;
        let stream = self.pool().open(target).await?;
        Ok(Pipe { stream, admitted })
    }
}

impl Admission {
    async fn begin(
        services: &Arc<Services>,
        workspace: &WorkspaceRef,
        target: &AgentTarget,
    ) -> Result<Self, AgentError> {
        let client = AgentClient::connect(&services.pool, target, None).await?;
        let mut changes = services.store.people_changes();
        let change = *changes.borrow_and_update();
        let guests = guests(services, workspace);
        let standing = admit(&client, &guests).await?;
        let (tell, told) = watch::channel(change);
        let keeping = Keeping {
            services: Arc::clone(services),
            workspace: workspace.clone(),
            client,
            standing,
            guests,
            changes,
            tell,
            visits: Arc::new(sync::Mutex::new(Visits::new(Instant::now()))),
        };
        let visits = Arc::clone(&keeping.visits);
        services.tracker.spawn(keeping.run());
        Ok(Self {
            boot: target.boot,
            told,
            visits,
        })
    }

    /// Makes use of it, if it is that of the agent `target` and not over.
    fn visit(self: &Arc<Self>, target: &AgentTarget) -> Option<Admitted> {
        let stands = self.boot == target.boot && self.told.has_changed().is_ok();
        (stands && visits(&self.visits).begin()).then(|| Admitted(Arc::clone(self)))
    }

    /// Waits until the agent knows of all that has changed so far.
    async fn knows_all(&self, services: &Services, target: &AgentTarget) -> Result<(), AgentError> {
        let change = *services.store.people_changes().borrow();
        let mut told = self.told.clone();
        let waited = tokio::time::timeout(ADMIT_TIMEOUT, told.wait_for(|told| *told >= change));
        match waited.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(lost(target)),
            Err(_) => Err(AgentError::TimedOut {
                workspace: target.workspace.to_string(),
                limit: ADMIT_TIMEOUT,
            }),
        }
    }
}

fn lost(target: &AgentTarget) -> AgentError {
    AgentError::Lost {
        workspace: target.workspace.to_string(),
    }
}

/// The task of an admission.
struct Keeping {
    services: Arc<Services>,
    workspace: WorkspaceRef,
    client: Arc<AgentClient>,
    /// The agent lets them in as long as this channel is open.
    standing: Answers,
    guests: Guests,
    changes: watch::Receiver<u64>,
    tell: watch::Sender<u64>,
    visits: Arc<sync::Mutex<Visits>>,
}

impl Keeping {
    /// Tells the agent of every change until nobody comes any more, or the
    /// connection to it is lost.
    async fn run(mut self) {
        let cancel = self.services.cancel.clone();
        let kept = cancel.run_until_cancelled(self.keep()).await;
        if let Some(Err(error)) = kept {
            tracing::info!(workspace = %self.workspace.name, %error, "its agent lets nobody in any more");
        }
    }

    async fn keep(&mut self) -> Result<(), AgentError> {
        loop {
            tokio::select! {
                // There is nothing more to come: its end is the connection's.
                answer = self.standing.next() => {
                    answer?;
                    return Ok(());
                }
                changed = self.changes.changed() => if changed.is_err() {
                    return Ok(());
                },
                () = sleep(LINGER) => if visits(&self.visits).close(Instant::now()) {
                    return Ok(());
                } else {
                    continue;
                },
            }
            let change = *self.changes.borrow_and_update();
            let now = guests(&self.services, &self.workspace);
            if now != self.guests {
                self.standing = admit(&self.client, &now).await?;
                self.guests = now;
            }
            self.tell.send_replace(change);
        }
    }
}

/// Has the agent let in `guests` and nobody else.
async fn admit(client: &Arc<AgentClient>, guests: &Guests) -> Result<Answers, AgentError> {
    let request = Request::Admit {
        guests: guests.clone(),
    };
    // There is but one answer to it.
    let (_, standing) = client.ask_first(&request).await?;
    Ok(standing)
}

/// Who may connect to a workspace.
fn guests(services: &Services, workspace: &WorkspaceRef) -> Guests {
    let may_connect =
        |principal: &Principal| authorize(principal, Action::Connect, workspace.clone()).is_ok();
    let principals = services.store.principals().into_iter();
    let keys = principals
        .filter(|principal| may_connect(principal))
        .map(|principal| principal.key_fingerprint.clone());
    let authorities = services.user_authorities.iter();
    let users = services.store.users().into_iter().filter(|user| {
        may_connect(&Principal {
            user: user.name.clone(),
            role: user.role,
            key_fingerprint: String::new(),
            permissions: Permissions::default(),
        })
    });
    Guests {
        keys: keys.collect(),
        authorities: authorities.map(PublicKey::fingerprint).collect(),
        users: users.map(|user| user.name.to_string()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Begin,
        End,
        Pass(u64),
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Begin),
            Just(Step::End),
            (0..40u64).prop_map(Step::Pass),
            Just(Step::Close),
        ]
    }

    proptest! {
        #[test]
        fn it_closes_when_nobody_was_there_for_long_and_then_for_good(
            steps in prop::collection::vec(step(), 0..40),
        ) {
            let mut now = Instant::now();
            let mut visits = Visits::new(now);
            let (mut open, mut last, mut closed) = (0u32, now, false);
            for step in steps {
                match step {
                    Step::Begin => {
                        prop_assert_eq!(visits.begin(), !closed);
                        open += u32::from(!closed);
                    }
                    Step::End if open > 0 => {
                        open -= 1;
                        last = now;
                        visits.end(now);
                    }
                    Step::End => {}
                    Step::Pass(seconds) => now += Duration::from_secs(seconds),
                    Step::Close => {
                        closed |= open == 0 && now - last >= LINGER;
                        prop_assert_eq!(visits.close(now), closed);
                    }
                }
            }
        }
    }
}
