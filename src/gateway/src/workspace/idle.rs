//! Notices that nothing uses a workspace that runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use vendetta_proto::ServiceName;
use vendetta_proto::rpc::{Answer, Request, ServiceState, ServiceStatus};

use super::activity::{Activity, InUse, Verdict};
use super::entry::{Entry, Message};
use super::manager::AgentTarget;
use crate::agent::client::AgentClient;
use crate::agent::pool::{AgentError, Pool};

/// Time between two tries to follow the services of an environment.
const RETRY: Duration = Duration::from_secs(10);

/// Tells the actor whenever nothing has used the workspace for `limit`; for as
/// long as it is told so and stays, again after as long.
pub(super) async fn watch(entry: Arc<Entry>, limit: Duration) {
    let mut meter = entry.activity.watch();
    loop {
        let verdict = meter.borrow_and_update().verdict(limit, Instant::now());
        let wait = match verdict {
            Verdict::InUse => Duration::MAX,
            Verdict::Wait(rest) => rest,
            Verdict::Idle => {
                // Gone meanwhile: then so are we.
                let _ = entry.inbox.send(Message::Idle).await;
                limit
            }
        };
        // Cannot fail: the entry keeps the sender.
        let _ = timeout(wait, meter.changed()).await;
    }
}

/// Counts it as one use as long as any of the services `busy` runs, or cannot
/// be told.
pub(super) async fn follow_busy(
    pool: Pool,
    target: Arc<AgentTarget>,
    activity: Activity,
    busy: BTreeSet<ServiceName>,
) {
    let mut in_use = Some(activity.begin());
    loop {
        let followed = follow(&pool, &target, &activity, &busy, &mut in_use).await;
        if let Err(error) = followed {
            tracing::debug!(workspace = %target.workspace, %error, "following busy services");
        }
        in_use.get_or_insert_with(|| activity.begin());
        sleep(RETRY).await;
    }
}

async fn follow(
    pool: &Pool,
    target: &AgentTarget,
    activity: &Activity,
    busy: &BTreeSet<ServiceName>,
    in_use: &mut Option<InUse>,
) -> Result<(), AgentError> {
    let client = AgentClient::connect(pool, target, None).await?;
    let mut answers = client.ask(&Request::Services { follow: true }).await?;
    while let Some(answer) = answers.next().await? {
        if let Answer::Services { services } = answer {
            let mut services = services.iter();
            if services.any(|service| busy.contains(&service.name) && runs(service)) {
                in_use.get_or_insert_with(|| activity.begin());
            } else {
                *in_use = None;
            }
        }
    }
    Ok(())
}

/// Whether a service has a process.
fn runs(service: &ServiceStatus) -> bool {
    match service.state {
        ServiceState::Starting
        | ServiceState::Healthy
        | ServiceState::Unhealthy
        | ServiceState::Stopping => true,
        ServiceState::Stopped
        | ServiceState::Waiting
        | ServiceState::BackingOff
        | ServiceState::Exited
        | ServiceState::Failed => false,
    }
}
