//! The sockets one connection listens on, until they are cancelled or it ends.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// What a client asked to have forwarded, as it named it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Address as given, port as bound.
    Tcp(String, u32),
    /// Path of a unix socket.
    Unix(String),
}

/// Most sockets one connection may listen on.
const MOST_LISTENERS: usize = 256;

/// The listening sockets of one connection.
#[derive(Debug, Default)]
pub struct Listeners(Mutex<HashMap<Target, CancellationToken>>);

impl Listeners {
    /// Takes note of a listener; none when there is one for this target
    /// already, or too many.
    pub fn add(&self, target: Target, gone: &CancellationToken) -> Option<CancellationToken> {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if listeners.len() >= MOST_LISTENERS || listeners.contains_key(&target) {
            return None;
        }
        let cancelled = gone.child_token();
        listeners.insert(target, cancelled.clone());
        Some(cancelled)
    }

    /// Ends a listener; false when there is none.
    pub fn cancel(&self, target: &Target) -> bool {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners
            .remove(target)
            .map(|cancelled| cancelled.cancel())
            .is_some()
    }
}
