//! The way to the agent of a workspace, which is brought up first if need be.

use std::sync::Arc;

use crate::access::Authorized;
use crate::agent::pool::AgentError;
use crate::workspace::{
    Agent, AgentTarget, Operation, Progress, WorkspaceError, WorkspaceRef, Workspaces,
};

/// Why the agent is not reached, as the user is told.
#[derive(Debug, Clone)]
pub struct LinkError {
    /// Problem and remedy, one or two lines.
    pub message: String,
    /// Exit code of the session.
    pub exit_code: u8,
}

/// What `connect` makes of the agent of `workspace`, once there is one.
/// `tell` hears what is done to bring it up.
///
/// # Errors
/// When it is not to be brought up, cannot be, or `connect` fails.
pub async fn reach<T, C>(
    workspaces: &Workspaces,
    workspace: &Authorized<WorkspaceRef>,
    tell: impl Fn(Progress),
    connect: impl Fn(Arc<AgentTarget>) -> C,
) -> Result<T, LinkError>
where
    C: Future<Output = Result<T, AgentError>>,
{
    // It must not go idle between its agent and our connection to it.
    let activity = workspaces.activity(workspace);
    let _in_use = activity.as_ref().map(|activity| activity.begin());
    let mut looked_again = false;
    loop {
        let target = match workspaces.agent(workspace).await {
            Ok(Agent::Ready(target)) => target,
            Ok(Agent::Starting(operation)) => {
                match wait_for(workspaces, workspace, &tell, operation).await? {
                    Some(target) => target,
                    None => continue,
                }
            }
            Err(error) => return Err(LinkError::from(&error)),
        };
        let error = match connect(Arc::clone(&target)).await {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        // It may have died since anybody looked: look, and try once more.
        if !looked_again && !is_final(&error) {
            tracing::info!(workspace = %target.workspace, %error, "agent unreachable, looking at the environment");
            looked_again = true;
            workspaces.agent_unreachable(&target.id).await;
        } else {
            return Err(LinkError::from(error));
        }
    }
}

/// Whether a look at the environment would not change it.
fn is_final(error: &AgentError) -> bool {
    matches!(
        error,
        AgentError::NoUser { .. } | AgentError::NoTerminal { .. } | AgentError::Refused { .. }
    ) || error.is_node_away()
}

/// Waits until sessions can be opened, or the operation has ended.
async fn wait_for(
    workspaces: &Workspaces,
    workspace: &Authorized<WorkspaceRef>,
    tell: &impl Fn(Progress),
    mut operation: Operation,
) -> Result<Option<Arc<AgentTarget>>, LinkError> {
    let mut reachable = std::pin::pin!(workspaces.reachable(workspace));
    loop {
        tokio::select! {
            biased;
            target = &mut reachable => {
                return target.map(Some).map_err(|error| LinkError::from(&error));
            }
            progress = operation.next() => match progress {
                Some(progress) => tell(progress),
                None => break,
            }
        }
    }
    let ended = operation.outcome().await;
    ended
        .map(|()| None)
        .map_err(|error| LinkError::from(&error))
}

impl From<AgentError> for LinkError {
    fn from(error: AgentError) -> Self {
        let exit_code = match error {
            AgentError::NoTerminal { .. } => 2,
            AgentError::NoUser { .. } => 3,
            _ => 5,
        };
        let message = match error.remedy() {
            Some(remedy) => format!("{error}\n{remedy}"),
            None => error.to_string(),
        };
        Self { message, exit_code }
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
