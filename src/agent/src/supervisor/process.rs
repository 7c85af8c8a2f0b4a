//! The processes of one run: its leader, the process group, and what has left
//! the group but stems from the leader.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::policy::Run;
use crate::process::{Known, Table, signal_group};

/// How often to look whether anything is left.
const POLL: Duration = Duration::from_millis(50);
/// How often to look, at most, after SIGKILL: what is left then cannot be
/// killed, such as a process that waits for a disk.
const LOOKS_AFTER_KILL: u32 = 40;

/// The processes of one run.
#[derive(Debug)]
pub struct Process {
    /// Which run.
    pub run: Run,
    /// The first process, whose id is that of the group.
    pub leader: Pid,
    /// Cancelled when the leader has ended.
    pub over: CancellationToken,
    signal: Signal,
    reaped: AtomicBool,
    killed: AtomicBool,
    /// Descendants of the leader in groups of their own, as of when it was asked to end.
    outside: Mutex<Vec<Known>>,
}

impl Process {
    /// A run that has just started, and ends on `signal`.
    #[must_use]
    pub fn new(run: Run, leader: Pid, signal: Signal) -> Self {
        Self {
            run,
            leader,
            over: CancellationToken::new(),
            signal,
            reaped: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            outside: Mutex::default(),
        }
    }

    /// The leader has ended.
    pub fn has_ended(&self) {
        self.reaped.store(true, Ordering::Relaxed);
        self.over.cancel();
    }

    fn signal_group(&self, signal: Signal) {
        signal_group(self.leader, signal, self.reaped.load(Ordering::Relaxed));
    }

    /// Sends the stop signal to the group; a stopped process gets it only once it continues.
    pub fn ask(&self) {
        self.look_outside();
        self.signal_group(self.signal);
        self.signal_group(Signal::SIGCONT);
    }

    /// Kills all that is left.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        self.look_outside();
        self.signal_group(Signal::SIGKILL);
        self.signal_outside(Signal::SIGKILL);
    }

    /// Ends what is left of the run after its leader, and returns when nothing is.
    pub async fn clear(&self) {
        // Those outside of the group were the leader's to end; now nobody is left to do it.
        self.signal_outside(self.signal);
        let mut looks = 0;
        while self.has_left() {
            sleep(POLL).await;
            if self.killed.load(Ordering::Relaxed) {
                self.signal_group(Signal::SIGKILL);
                self.signal_outside(Signal::SIGKILL);
                looks += 1;
                if looks > LOOKS_AFTER_KILL {
                    return;
                }
            }
        }
    }

    fn has_left(&self) -> bool {
        let stranger = kill(self.leader, None) != Err(Errno::ESRCH);
        let group = !stranger && killpg(self.leader, None) != Err(Errno::ESRCH);
        let outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        group || outside.iter().any(Known::lives)
    }

    fn signal_outside(&self, signal: Signal) {
        let outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        for process in outside.iter().filter(|process| process.lives()) {
            let _ = kill(process.pid, signal);
        }
    }

    /// Takes note of descendants that the group's signals do not reach.
    fn look_outside(&self) {
        if self.reaped.load(Ordering::Relaxed) {
            return;
        }
        let table = Table::now();
        let below = table.below(self.leader);
        let outside = below
            .into_iter()
            .filter(|pid| table.group_of(*pid) != Some(self.leader))
            .filter_map(|pid| table.known(pid));
        let mut seen = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        for process in outside {
            if !seen.contains(&process) {
                seen.push(process);
            }
        }
    }
}
