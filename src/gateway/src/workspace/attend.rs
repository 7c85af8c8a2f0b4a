//! What is there for an environment as long as sessions can be opened in it:
//! its ports on the gateway's machine, and the watches for going idle and for a
//! restart from inside.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;
use vendetta_proto::ServiceName;

use super::entry::Entry;
use super::manager::AgentTarget;
use super::services::Services;
use super::{ProgressSink, Spec, idle, restart};
use crate::ports::{Open, Opening};

/// Dropped, it ends.
pub(super) struct Attendance {
    ports: Open,
    watches: Vec<AbortOnDropHandle<()>>,
}

impl Attendance {
    /// Ends it without waiting for that.
    pub(super) fn end(&self) {
        self.ports.end();
        for watch in &self.watches {
            watch.abort();
        }
    }

    /// Ends it and returns when its ports are free for others.
    pub(super) async fn ended(self) {
        self.end();
        self.ports.ended().await;
    }
}

/// Begins it; a port that is not open is told.
pub(super) async fn attend(
    services: &Services,
    entry: &Arc<Entry>,
    target: &Arc<AgentTarget>,
    progress: &ProgressSink,
) -> Attendance {
    let ports = entry.ports.borrow().clone();
    let mappings = ports.into_iter().map(|port| port.mapping).collect();
    let opening = Opening {
        mappings,
        pool: services.pool.clone(),
        target: Arc::clone(target),
        activity: entry.activity.clone(),
        status: entry.ports.clone(),
        tracker: services.tracker.clone(),
        cancel: services.cancel.clone(),
    };
    let ports = services.ports.open(opening).await;
    for port in entry.ports.borrow().iter() {
        if let Some(problem) = &port.problem {
            let (key, host_port) = (&port.mapping.key, port.mapping.host_port);
            progress.message("ports", format!("{key}: port {host_port} is {problem}"));
        }
    }
    let spec = &target.spec;
    let mut watches = Vec::new();
    if spec.starts_something() {
        let (entry, pool) = (Arc::clone(entry), services.pool.clone());
        let watching = restart::watch(entry, pool, Arc::clone(target));
        watches.push(AbortOnDropHandle::new(services.tracker.spawn(watching)));
    }
    if let Some(limit) = spec.idle_timeout() {
        let watching = idle::watch(Arc::clone(entry), limit);
        watches.push(AbortOnDropHandle::new(services.tracker.spawn(watching)));
        let busy = busy(spec);
        if !busy.is_empty() {
            let (pool, activity) = (services.pool.clone(), entry.activity.clone());
            let following = idle::follow_busy(pool, Arc::clone(target), activity, busy);
            watches.push(AbortOnDropHandle::new(services.tracker.spawn(following)));
        }
    }
    Attendance { ports, watches }
}

/// The services that count as use of the workspace while they run.
fn busy(spec: &Spec) -> BTreeSet<ServiceName> {
    let services = spec.config.services.iter();
    let busy = services.filter(|(_, service)| service.busy);
    busy.map(|(name, _)| name.clone()).collect()
}
