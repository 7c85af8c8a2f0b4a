//! Gives memory back when connections have logged in or ended: an allocator keeps
//! what was freed for the next allocation, so a session would cost its handshake for
//! as long as it lasts, and a gateway that had 500 sessions at noon would hold on
//! to their memory all night.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// How long to let connections log in or end together before looking.
const SETTLE: Duration = Duration::from_secs(1);

/// Trims the heap whenever `freed` says that a connection has logged in or ended.
/// Runs until cancelled.
pub async fn give_back(freed: Arc<Notify>) {
    loop {
        freed.notified().await;
        tokio::time::sleep(SETTLE).await;
        // It walks all free memory: not on a thread that serves sessions.
        let _ = tokio::task::spawn_blocking(trim).await;
    }
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: malloc_trim(3) has no preconditions and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other C libraries give memory back by themselves, or not at all.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
