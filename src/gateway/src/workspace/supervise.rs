//! Watches what an engine does by itself, and removes what belongs to no
//! workspace.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{MissedTickBehavior, interval, sleep};

use vendetta_proto::spec::ProviderKind;

use super::WorkspaceId;
use super::entry::Message;
use super::services::Services;
use crate::inventory::{Node, NodeState};
use crate::provider::{Provider, ProviderError};

/// Everything is looked at so often, whatever the engine reports.
const SWEEP: Duration = Duration::from_secs(300);

/// Longest pause before an engine that does not answer is asked again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Runs until the node leaves or the gateway ends.
pub(super) async fn supervise(services: Arc<Services>, node: Arc<Node>, kind: ProviderKind) {
    let watching = async {
        let mut pause = Duration::from_secs(1);
        loop {
            if services.may_have_ours(&node, kind)
                && let Some(provider) = node.place().providers.get(&kind).cloned()
            {
                let watched = watch(&services, &node, provider.as_ref(), &mut pause).await;
                if let Err(error) = watched {
                    tracing::debug!(node = %node.name(), provider = %kind, %error, "watching");
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = comes_back(&node) => {}
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    };
    tokio::select! {
        () = watching => {}
        () = node.gone() => {}
    }
}

/// Waits until a node that is down is so no more.
async fn comes_back(node: &Node) {
    let mut health = node.watch();
    let is = |down: bool| {
        move |health: &crate::inventory::Health| (health.state == NodeState::Down) == down
    };
    // It cannot end while we hold the node.
    let _ = health.wait_for(is(true)).await;
    let _ = health.wait_for(is(false)).await;
}

/// Watches until the engine goes away.
async fn watch(
    services: &Services,
    node: &Node,
    provider: &dyn Provider,
    pause: &mut Duration,
) -> Result<(), ProviderError> {
    let mut changes = provider.changes().await?;
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // The first tick is at once: what happened before the watch began is seen too.
            _ = sweeps.tick() => {
                sweep(services, node, provider).await?;
                *pause = Duration::from_secs(1);
            }
            change = changes.next() => match change {
                Some(id) => {
                    let id = id?;
                    if services.by_id(&id).is_some() {
                        services.look_soon(&id).await;
                    } else {
                        remove(provider, &id).await;
                    }
                }
                None => return Ok(()),
            },
        }
    }
}

/// Removes what is left of no workspace, and has every workspace looked at.
async fn sweep(
    services: &Services,
    node: &Node,
    provider: &dyn Provider,
) -> Result<(), ProviderError> {
    // In this order: a row is there before, and gone after, anything it stands for.
    let found = provider.list().await?;
    for id in found {
        if services.by_id(&id).is_none() {
            tracing::warn!(%id, provider = %provider.kind(), "left of no workspace");
            remove(provider, &id).await;
        }
    }
    for entry in services.on(node) {
        if entry.provider == provider.kind() {
            // One that is too busy to be told has something better to do.
            let _ = entry.inbox.try_send(Message::Look(None));
        }
    }
    Ok(())
}

/// Removes what is left of no workspace; the next sweep tries again.
async fn remove(provider: &dyn Provider, id: &WorkspaceId) {
    if let Err(error) = provider.destroy(id).await {
        tracing::warn!(%id, %error, "removing what is left of no workspace");
    }
}
