//! Processes of the environment: starting, reaping and ending them.

mod attached;
mod launch;
mod reaper;
#[allow(unsafe_code)]
mod sys;
mod table;

pub use attached::Pipes;
pub use launch::{Identity, Launch, Stdio, base_name};
pub use reaper::{Child, Reaper};
pub use sys::{open_pty_peer, run_as, set_controlling_size, watch};
pub use table::{Known, Table, descendants};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Sends `signal` to the process group that `leader` started, if there still is one.
///
/// Once the leader has been reaped its number stays reserved as long as a
/// member of the group lives; so when a process has that number again it is a
/// stranger, and nothing is sent.
pub fn signal_group(leader: Pid, signal: Signal, leader_reaped: bool) {
    if !is_stranger(leader, leader_reaped) {
        let _ = killpg(leader, signal);
    }
}

/// See [`signal_group`].
fn is_stranger(leader: Pid, leader_reaped: bool) -> bool {
    leader_reaped && kill(leader, None) != Err(Errno::ESRCH)
}

/// Sends it SIGHUP; a stopped process gets that only once it continues.
pub fn hang_up_group(leader: Pid, leader_reaped: bool) {
    signal_group(leader, Signal::SIGHUP, leader_reaped);
    signal_group(leader, Signal::SIGCONT, leader_reaped);
}
