//! Lets those who may connect to a workspace log in to its agent themselves
//! (ProxyJump), with their own keys.
//!
//! The agent is told whose keys it may let in over a connection of ours, and
//! lets nobody in when that ends. It is made for the first who comes, shared by
//! all who come meanwhile, told of every change of users and keys, and given up
//! with the last of them.
//!
//! ```text
//!   nobody ── the first comes ──▶ admitted ── a change ──▶ admitted anew
//!     ▲                              │                         │
//!     └── the last leaves, or the connection is lost ──────────┘
//! ```

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::task::AbortOnDropHandle;
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

/// The admission of a workspace that somebody comes to.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Weak<Admission>>);

/// The agent of one boot lets in who may connect, as long as this is there.
#[derive(Debug)]
struct Admission {
    boot: u64,
    /// The change of users and keys up to which the agent has been told; ends
    /// with the connection to it.
    told: watch::Receiver<u64>,
    _keeping: AbortOnDropHandle<()>,
}

/// Keeps an agent open to guests.
#[derive(Debug, Clone)]
pub struct Admitted {
    _admission: Arc<Admission>,
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
        let admission = {
            let mut kept = entry.gate.0.lock().await;
            let usable = |admission: &Arc<Admission>| {
                admission.boot == target.boot && admission.told.has_changed().is_ok()
            };
            match kept.upgrade().filter(usable) {
                Some(admission) => admission,
                None => {
                    let begun = Admission::begin(services, workspace, target).await?;
                    let begun = Arc::new(begun);
                    *kept = Arc::downgrade(&begun);
                    begun
                }
            }
        };
        admission.knows_all(services, target).await?;
        let stream = self.pool().open(target).await?;
        Ok(Pipe {
            stream,
            admitted: Admitted {
                _admission: admission,
            },
        })
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
        };
        let task = services.tracker.spawn(keeping.run());
        Ok(Self {
            boot: target.boot,
            told,
            _keeping: AbortOnDropHandle::new(task),
        })
    }

    /// Waits until the agent knows of all that has changed so far.
    async fn knows_all(&self, services: &Services, target: &AgentTarget) -> Result<(), AgentError> {
        let change = *services.store.people_changes().borrow();
        let mut told = self.told.clone();
        let waited = tokio::time::timeout(ADMIT_TIMEOUT, told.wait_for(|told| *told >= change));
        match waited.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(AgentError::Refused {
                workspace: target.workspace.to_string(),
                problem: "the connection to the agent was lost".to_owned(),
                not_found: false,
            }),
            Err(_) => Err(AgentError::TimedOut {
                workspace: target.workspace.to_string(),
                limit: ADMIT_TIMEOUT,
            }),
        }
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
}

impl Keeping {
    /// Tells the agent of every change until the connection to it is lost.
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
