//! What services write, kept in files and read from them.
//!
//! A service's log is a folder with files that are numbered and only appended
//! to; when the last one is full the next is begun, and the oldest removed. A
//! reader has a position (file and offset) and never goes beyond the end that
//! the writer has published, so it sees whole lines only, holds nothing that
//! the writer needs, and when it is too slow it loses what was removed and
//! nothing else.

mod line;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use vendetta_proto::ServiceName;
use vendetta_proto::rpc::Millis;

pub use line::{Batch, Splitter};
pub use reader::Reader;
pub use writer::Log;

/// The logs of all services.
#[derive(Debug)]
pub struct Logs {
    logs: BTreeMap<ServiceName, Arc<Log>>,
    /// Changes whenever anything was written.
    activity: watch::Sender<()>,
}

impl Logs {
    /// The logs of `services`, each in a folder of its name below `directory`.
    /// Nothing is made there until something is written.
    pub fn new<'a>(directory: &Path, services: impl Iterator<Item = &'a ServiceName>) -> Self {
        let activity = watch::Sender::new(());
        Self {
            logs: services
                .map(|name| {
                    let log = Log::new(name, directory.join(name.as_str()), activity.clone());
                    (name.clone(), Arc::new(log))
                })
                .collect(),
            activity,
        }
    }

    /// The log of a service.
    #[must_use]
    pub fn get(&self, service: &ServiceName) -> Option<&Arc<Log>> {
        self.logs.get(service)
    }

    /// All logs, by service.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Log>> {
        self.logs.values()
    }

    /// Follows what is written.
    #[must_use]
    pub fn activity(&self) -> watch::Receiver<()> {
        self.activity.subscribe()
    }
}

/// The time of day.
#[must_use]
pub fn wall_clock() -> Millis {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
        })
}
