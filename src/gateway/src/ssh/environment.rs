//! A connection's link to the environment its login name leads to: found,
//! brought up if need be, connected and then shared by all channels of the
//! connection; and made again for the next channel when it was lost, since the
//! environment may have gone idle under a client that stays.
//!
//! ```text
//!       ┌──────── a channel is opened ◀──────── lost
//!       ▼                                        ▲
//!   connecting ──▶ ready(agent connection) ──────┘
//!       │ └── the environment is being brought up: progress to whoever watches
//!       └──▶ failed(message, exit code)
//! ```

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use russh::Channel;
use russh::client::{self, Handle};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc, watch};
use vendetta_sshio::relay::Farewell;

use super::forward;
use super::reach::{LinkError, reach};
use super::shared::Shared;
use crate::access::Authorized;
use crate::agent::opens::{AgentHandler, EnvironmentOpen};
use crate::agent::pool::{AgentConnection, Pool};
use crate::workspace::{Activity, AgentTarget, InUse, Progress, WorkspaceRef, Workspaces};

/// Progress lines a slow watcher may be behind before it misses some.
const PROGRESS_LINES: usize = 64;

/// The agent's side of a connection; clones share it.
#[derive(Clone)]
pub struct Link(Arc<Linked>);

struct Linked {
    agent: Handle<AgentHandler>,
    /// Where the agent is.
    target: Arc<AgentTarget>,
    /// A session that was opened ahead of need.
    spare: Mutex<Option<Channel<client::Msg>>>,
}

impl Deref for Link {
    type Target = Handle<AgentHandler>;

    fn deref(&self) -> &Self::Target {
        &self.0.agent
    }
}

impl Link {
    async fn open_session(&self) -> Result<Channel<client::Msg>, russh::Error> {
        let spare = self
            .0
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match spare {
            Some(session) => Ok(session),
            None => self.channel_open_session().await,
        }
    }
}

/// A session in an environment.
pub struct OpenedSession {
    /// The environment's side of it.
    pub channel: Channel<client::Msg>,
    /// What its user reads on standard error when the connection to the
    /// environment is lost.
    pub farewell: Farewell,
}

type Outcome = Option<Result<Link, LinkError>>;

/// The link of one connection; clones share it.
#[derive(Clone)]
pub struct Environment(Arc<Inner>);

struct Inner {
    shared: Shared,
    workspace: Authorized<WorkspaceRef>,
    user: String,
    activity: Option<Activity>,
    attempt: Mutex<Attempt>,
    /// It has had a session.
    attached: AtomicBool,
}

/// The making of a link, as it is watched.
#[derive(Clone)]
struct Attempt {
    outcome: watch::Receiver<Outcome>,
    progress: broadcast::Sender<Progress>,
}

impl Attempt {
    /// One that begins when the returned task is run.
    fn new(
        shared: &Shared,
        workspace: &Authorized<WorkspaceRef>,
        user: &str,
    ) -> (Self, Connecting) {
        let (sender, outcome) = watch::channel(None);
        let (progress, _) = broadcast::channel(PROGRESS_LINES);
        let connecting = Connecting {
            workspaces: shared.services.workspaces.clone(),
            pool: shared.services.pool.clone(),
            workspace: workspace.clone(),
            user: user.to_owned(),
            outcome: sender,
            progress: progress.clone(),
        };
        (Self { outcome, progress }, connecting)
    }

    /// Waits for its link.
    async fn link(mut self) -> Result<Link, LinkError> {
        let gone = || LinkError {
            message: "the gateway is stopping".to_owned(),
            exit_code: 5,
        };
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(gone())),
            Err(_) => Err(gone()),
        }
    }

    /// Whether it made a link that is lost.
    fn is_lost(&self) -> bool {
        matches!(&*self.outcome.borrow(), Some(Ok(link)) if link.is_closed())
    }
}

/// The task that makes a link.
struct Connecting {
    workspaces: Workspaces,
    pool: Pool,
    workspace: Authorized<WorkspaceRef>,
    user: String,
    outcome: watch::Sender<Outcome>,
    progress: broadcast::Sender<Progress>,
}

impl Environment {
    /// A link to `workspace` as `user`, made by a task of the connection.
    #[must_use]
    pub fn connect(shared: Shared, workspace: Authorized<WorkspaceRef>, user: String) -> Self {
        // None: it was destroyed since it was found.
        let activity = shared.services.workspaces.activity(&workspace).ok();
        let (attempt, connecting) = Attempt::new(&shared, &workspace, &user);
        let environment = Self(Arc::new(Inner {
            shared,
            workspace,
            user,
            activity,
            attempt: Mutex::new(attempt),
            attached: AtomicBool::new(false),
        }));
        environment.spawn(connecting);
        environment
    }

    fn spawn(&self, connecting: Connecting) {
        // Not the link itself: it ends with the last who holds it.
        let (shared, activity) = (self.0.shared.clone(), self.0.activity.clone());
        self.0.shared.spawn(async move {
            // Boxed, so that its many states are gone while the connection lasts.
            if let Some(opens) = Box::pin(connecting.run()).await {
                forward::serve(shared, activity, opens).await;
            }
        });
    }

    /// The latest attempt; another one when its link is lost.
    fn attempt(&self) -> Attempt {
        let inner = &self.0;
        let mut latest = inner.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.is_lost() {
            let (next, connecting) = Attempt::new(&inner.shared, &inner.workspace, &inner.user);
            *latest = next;
            self.spawn(connecting);
        }
        latest.clone()
    }

    /// Counts the workspace as in use until the result is dropped.
    #[must_use]
    pub fn in_use(&self) -> Option<InUse> {
        self.0.activity.as_ref().map(Activity::begin)
    }

    /// Waits for the link.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn link(&self) -> Result<Link, LinkError> {
        self.attempt().link().await
    }

    /// Opens a session in the environment. Until there is a link, `stderr` gets
    /// what a person who waits for it is to read.
    ///
    /// # Errors
    /// When there is no link, or the agent refuses the session.
    pub async fn open_session(
        &self,
        stderr: &mut (impl AsyncWrite + Unpin),
    ) -> Result<OpenedSession, LinkError> {
        let attempt = self.attempt();
        let mut progress = attempt.progress.subscribe();
        let mut link = std::pin::pin!(attempt.link());
        let link = loop {
            tokio::select! {
                biased;
                link = &mut link => break link?,
                Ok(event) = progress.recv() => match event {
                    Progress::Started { step: text } | Progress::Message { text, .. } => {
                        // A client that is gone is noticed once there is a session.
                        let _ = stderr.write_all(stderr_line(&text).as_bytes()).await;
                    }
                    Progress::Transfer { .. } | Progress::Finished { .. } | Progress::Failed { .. } => {}
                }
            }
        };
        let opened = link.open_session().await;
        if opened.is_ok() && !self.0.attached.swap(true, Ordering::Relaxed) {
            let workspaces = &self.0.shared.services.workspaces;
            workspaces.attached(&self.0.workspace);
        }
        // Not the link itself: it ends with the last who holds it.
        let target = Arc::clone(&link.0.target);
        match opened {
            Ok(channel) => Ok(OpenedSession {
                channel,
                farewell: Box::new(move || {
                    stderr_line(&format!(
                        "the connection to the environment on node {} was lost",
                        target.node.name()
                    ))
                }),
            }),
            Err(error) => Err(LinkError {
                message: format!("opening a session in the environment: {error}"),
                exit_code: 5,
            }),
        }
    }
}

/// What the gateway itself says on a session's standard error. Ends in CRLF:
/// the client's terminal may be raw already.
#[must_use]
pub fn stderr_line(message: &str) -> String {
    format!("vendetta: {}\r\n", message.replace('\n', "\r\nvendetta: "))
}

impl Connecting {
    /// Makes the link; returns the channels that the environment opens.
    async fn run(self) -> Option<mpsc::Receiver<EnvironmentOpen>> {
        match self.connect().await {
            Ok((connection, target)) => {
                let link = Link(Arc::new(Linked {
                    agent: connection.handle,
                    target,
                    spare: Mutex::new(connection.spare),
                }));
                self.outcome.send_replace(Some(Ok(link)));
                Some(connection.opens)
            }
            Err(error) => {
                self.outcome.send_replace(Some(Err(error)));
                None
            }
        }
    }

    async fn connect(&self) -> Result<(AgentConnection, Arc<AgentTarget>), LinkError> {
        let connect = |target: Arc<AgentTarget>| async move {
            let connection = self.pool.take(&target, &self.user).await?;
            Ok((connection, target))
        };
        // Nobody watching is fine.
        let tell = |progress| drop(self.progress.send(progress));
        reach(&self.workspaces, &self.workspace, tell, connect).await
    }
}
