//! The threads that serve connections: each with a runtime of its own, so that
//! a message between the tasks of one connection (in the gateway the client's
//! session, the bridge and the agent's session) is a queue push and never wakes
//! another processor. What is not a connection runs on the main runtime.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// How long blocking work of a worker may take to end with it.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Stack of a thread, in bytes; only what is used of it takes memory. Building
/// and parsing the gateway's command tree alone takes more than a megabyte in a
/// build without optimization.
const STACK_SIZE: usize = 8 << 20;

/// The threads.
pub struct Workers {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    next: AtomicUsize,
    end: CancellationToken,
}

impl Workers {
    /// One thread a processor, until [`Workers::stop`].
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start() -> io::Result<Self> {
        let mut workers = Self {
            handles: Vec::new(),
            threads: Vec::new(),
            next: AtomicUsize::new(0),
            end: CancellationToken::new(),
        };
        for number in 0..std::thread::available_parallelism()?.get() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let end = workers.end.clone();
            workers.handles.push(runtime.handle().clone());
            workers.threads.push(
                std::thread::Builder::new()
                    .name(format!("connections-{number}"))
                    .stack_size(STACK_SIZE)
                    .spawn(move || {
                        runtime.block_on(end.cancelled());
                        runtime.shutdown_timeout(END_TIMEOUT);
                    })?,
            );
        }
        Ok(workers)
    }

    /// The worker whose turn it is.
    #[must_use]
    pub fn next(&self) -> Option<&Handle> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles.get(turn % self.handles.len().max(1))
    }

    /// Ends the threads and what is left running on them, and waits for that.
    pub fn stop(self) {
        self.end.cancel();
        for thread in self.threads {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}
