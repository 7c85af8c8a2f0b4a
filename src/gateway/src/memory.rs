//! Gives memory back when connections have ended: an allocator keeps what was
//! freed for the next allocation, and a gateway that had 500 sessions at noon
//! would hold on to their memory all night.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// How long to let connections end together before looking.
const SETTLE: Duration = Duration::from_secs(1);

/// Trims the heap whenever `ended` says that a connection has ended. Runs until cancelled.
pub async fn give_back(ended: Arc<Notify>) {
    loop {
        ended.notified().await;
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
