//! A connection's link to the environment its login name leads to: found,
//! brought up if need be, connected once and then shared by all channels of
//! the connection.
//!
//! ```text
//!   connecting ──▶ ready(agent connection)
//!       │ └── the environment is being brought up: progress to whoever watches
//!       └──▶ failed(message, exit code)
//! ```

use std::sync::Arc;

use russh::client::Handle;
use tokio::sync::{broadcast, mpsc, watch};

use crate::access::Authorized;
use crate::agent::pool::{AgentConnection, AgentError, AgentHandler, EnvironmentOpen, Pool};
use crate::workspace::{Agent, Progress, WorkspaceError, WorkspaceRef, Workspaces};

/// Progress lines a slow watcher may be behind before it misses some.
const PROGRESS_LINES: usize = 64;

/// Why there is no link, as the user is told.
#[derive(Debug, Clone)]
pub struct LinkError {
    /// Problem and remedy, one or two lines.
    pub message: String,
    /// Exit code of the session.
    pub exit_code: u8,
}

/// The agent's side of a connection.
pub type Link = Arc<Handle<AgentHandler>>;

type Outcome = Option<Result<Link, LinkError>>;

/// The link of one connection; clones share it.
#[derive(Clone)]
pub struct Environment {
    outcome: watch::Receiver<Outcome>,
    progress: broadcast::Sender<Progress>,
}

/// The task that makes the link; run it, it ends when the link is made or failed.
pub struct Connecting {
    workspaces: Workspaces,
    pool: Pool,
    workspace: Authorized<WorkspaceRef>,
    user: String,
    outcome: watch::Sender<Outcome>,
    progress: broadcast::Sender<Progress>,
}

impl Environment {
    /// A link to `workspace` as `user`, to be made by the returned task.
    #[must_use]
    pub fn new(
        workspaces: Workspaces,
        pool: Pool,
        workspace: Authorized<WorkspaceRef>,
        user: String,
    ) -> (Self, Connecting) {
        let (sender, outcome) = watch::channel(None);
        let (progress, _) = broadcast::channel(PROGRESS_LINES);
        let connecting = Connecting {
            workspaces,
            pool,
            workspace,
            user,
            outcome: sender,
            progress: progress.clone(),
        };
        (Self { outcome, progress }, connecting)
    }

    /// Waits for the link.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn link(&self) -> Result<Link, LinkError> {
        let mut outcome = self.outcome.clone();
        let gone = || LinkError {
            message: "the gateway is stopping".to_owned(),
            exit_code: 5,
        };
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(gone())),
            Err(_) => Err(gone()),
        }
    }

    /// The progress of bringing the environment up, from now on.
    #[must_use]
    pub fn progress(&self) -> broadcast::Receiver<Progress> {
        self.progress.subscribe()
    }
}

impl Connecting {
    /// Makes the link; returns the channels that the environment opens.
    pub async fn run(self) -> Option<mpsc::Receiver<EnvironmentOpen>> {
        match self.connect().await {
            Ok(AgentConnection { handle, opens }) => {
                self.outcome.send_replace(Some(Ok(Arc::new(handle))));
                Some(opens)
            }
            Err(error) => {
                self.outcome.send_replace(Some(Err(error)));
                None
            }
        }
    }

    async fn connect(&self) -> Result<AgentConnection, LinkError> {
        let mut looked_again = false;
        loop {
            let target = match self.workspaces.agent(&self.workspace).await {
                Ok(Agent::Ready(target)) => target,
                Ok(Agent::Starting(mut operation)) => {
                    while let Some(progress) = operation.next().await {
                        // Nobody watching is fine.
                        let _ = self.progress.send(progress);
                    }
                    operation
                        .outcome()
                        .await
                        .map_err(|error| LinkError::from(&error))?;
                    continue;
                }
                Err(error) => return Err(LinkError::from(&error)),
            };
            match self.pool.take(&target, &self.user).await {
                Ok(connection) => return Ok(connection),
                Err(error @ AgentError::NoUser { .. }) => {
                    return Err(LinkError {
                        message: error.to_string(),
                        exit_code: 3,
                    });
                }
                // It may have died since anybody looked: look, and try once more.
                Err(error) if !looked_again => {
                    tracing::info!(workspace = %target.workspace, %error, "agent unreachable, looking at the environment");
                    looked_again = true;
                    self.workspaces.agent_unreachable(&target.id).await;
                }
                Err(error) => {
                    let message = match error.remedy() {
                        Some(remedy) => format!("{error}\n{remedy}"),
                        None => error.to_string(),
                    };
                    return Err(LinkError {
                        message,
                        exit_code: 5,
                    });
                }
            }
        }
    }
}

impl From<&WorkspaceError> for LinkError {
    fn from(error: &WorkspaceError) -> Self {
        let message = match &error.remedy {
            Some(remedy) => format!("{error}\n{remedy}"),
            None => error.to_string(),
        };
        Self {
            message,
            exit_code: error.exit_code(),
        }
    }
}
