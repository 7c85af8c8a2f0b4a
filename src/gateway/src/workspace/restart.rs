//! Notices that an environment was restarted from inside (`reboot` in a machine
//! or a system container), or its agent alone: its engine sees it run on, but
//! what the last start brought up in it is gone.
//!
//! A start leaves a mark with the agent before it brings anything up, and an
//! agent remembers its marks until it ends: one without it is another agent.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use vendetta_proto::rpc::{Answer, Request};

use super::entry::{Entry, Message};
use super::manager::AgentTarget;
use crate::agent::client::AgentClient;
use crate::agent::pool::{AgentError, Pool};

/// The word by which an agent remembers that a start has come to it.
const STARTED: &str = "started";

/// Time between two tries to reach an agent, at first; then twice as long each time.
const RETRY: Duration = Duration::from_millis(500);

/// Longest time between two tries.
const MAX_RETRY: Duration = Duration::from_secs(10);

/// Leaves the mark.
pub(super) async fn mark(client: &Arc<AgentClient>) -> Result<(), AgentError> {
    let mark = STARTED.to_owned();
    client.ask_one(&Request::Mark { mark }).await.map(|_| ())
}

/// Tells the actor when the agent of `target` is another one, and again for as
/// long as that is so.
pub(super) async fn watch(entry: Arc<Entry>, pool: Pool, target: Arc<AgentTarget>) {
    let mut pause = RETRY;
    loop {
        match follow(&pool, &target).await {
            Ok(Agent::Ended) => pause = RETRY,
            Ok(Agent::Another) => {
                let restarted = Message::Restarted { boot: target.boot };
                // Gone meanwhile: then so are we.
                let _ = entry.inbox.send(restarted).await;
            }
            Err(error) => {
                tracing::debug!(workspace = %target.workspace, %error, "watching its agent");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(MAX_RETRY);
    }
}

/// Whether a start is needed for the environment to be as the last one left it:
/// its agent does not answer, or is another one.
pub(super) async fn is_undone(pool: &Pool, target: &AgentTarget) -> bool {
    let known = async {
        let client = AgentClient::connect(pool, target, None).await?;
        is_marked(&client).await
    };
    match known.await {
        Ok(marked) => !marked,
        // Nothing can be done about it either.
        Err(error) => !error.is_node_away(),
    }
}

/// What became of an agent.
enum Agent {
    /// It was the one, and does not answer any more.
    Ended,
    /// It is not the one.
    Another,
}

/// Stays with an agent until it ends.
async fn follow(pool: &Pool, target: &AgentTarget) -> Result<Agent, AgentError> {
    let client = AgentClient::connect(pool, target, None).await?;
    if !is_marked(&client).await? {
        return Ok(Agent::Another);
    }
    // What it says does not matter, only that it is there to say it.
    let mut answers = client.ask(&Request::Services { follow: true }).await?;
    while let Ok(Some(_)) = answers.next().await {}
    Ok(Agent::Ended)
}

async fn is_marked(client: &Arc<AgentClient>) -> Result<bool, AgentError> {
    let mark = STARTED.to_owned();
    let answer = client.ask_one(&Request::IsMarked { mark }).await?;
    Ok(answer == Answer::Marked { before: true })
}
