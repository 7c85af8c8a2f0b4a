//! The one place that waits for children.
//!
//! As PID 1 (or a subreaper) the agent inherits every orphan of the
//! environment, so it must wait for any child, not only for its own; and a
//! status taken by `waitpid(-1)` is gone for everybody else. Therefore nothing
//! else waits: a session's child is registered here, under the lock that the
//! reaper takes to look for ended children, so that neither can miss the other.

use std::collections::HashMap;
use std::io;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};

use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::launch::Launch;
use super::sys;

/// Starts processes and delivers their exit statuses.
#[derive(Debug, Default)]
pub struct Reaper {
    waiting: Mutex<HashMap<libc::pid_t, oneshot::Sender<ExitStatus>>>,
}

/// A started process.
#[derive(Debug)]
pub struct Child {
    /// Its id, which is also that of its session and process group.
    pub pid: Pid,
    /// Its status, once.
    pub exit: oneshot::Receiver<ExitStatus>,
}

impl Reaper {
    /// Starts a process. Blocks for the time of fork and exec.
    ///
    /// # Errors
    /// When the process cannot be made, changed into its user, or its program not run.
    pub fn spawn(&self, launch: Launch) -> io::Result<Child> {
        let mut command = launch.into_command()?;
        let (sender, exit) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = command.spawn()?.id().cast_signed();
        waiting.insert(pid, sender);
        Ok(Child {
            pid: Pid::from_raw(pid),
            exit,
        })
    }

    /// Reaps until the runtime ends.
    ///
    /// # Errors
    /// When SIGCHLD cannot be caught.
    pub async fn run(&self) -> io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            self.reap();
            if ended.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap(&self) {
        loop {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((pid, status)) = sys::wait_any() else {
                return;
            };
            if let Some(waiter) = waiting.remove(&pid) {
                let _ = waiter.send(status);
            }
        }
    }
}
