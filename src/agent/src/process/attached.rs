//! Who of a process group still has to do with the client it was started for.
//!
//! A member that has none of the session's pipes as a standard stream detached
//! on purpose, as the server of `nohup server >log 2>&1 </dev/null &` does.
//! sshd leaves it alone, and so must a hang-up here: not every program keeps
//! the signal ignored that nohup had it ignore (Node.js, and so the servers of
//! editors, takes its default action back).

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::fstat;
use nix::unistd::Pid;

use super::{Identity, Table, is_stranger, run_as};

/// The pipes that are a session's streams, told apart by their inodes, which
/// both ends of a pipe have in common.
#[derive(Debug, Clone, Default)]
pub struct Pipes(Vec<u64>);

impl Pipes {
    /// Those of these ends; what is no open descriptor is left out.
    #[must_use]
    pub fn of(ends: [BorrowedFd<'_>; 3]) -> Self {
        let inodes = ends.iter().filter_map(|end| fstat(end.as_fd()).ok());
        Self(inodes.map(|stat| stat.st_ino).collect())
    }

    /// Sends `signal` to the process that `leader` was, and to those of the group
    /// that it started which have one of the pipes. They are looked into as
    /// `identity`, who they run as: root may not, where it lacks the capability
    /// (CAP_SYS_PTRACE). Once the leader has been reaped, a process with its
    /// number is a stranger (see [`super::signal_group`]).
    pub async fn signal(
        &self,
        identity: Option<Identity>,
        leader: Pid,
        signal: Signal,
        leader_reaped: bool,
    ) {
        if is_stranger(leader, leader_reaped) {
            return;
        }
        let pipes = self.clone();
        let found = run_as(identity, move || {
            let table = Table::now();
            let members = table.group(leader);
            let attached = members.filter(|member| *member == leader || pipes.held_by(*member));
            Ok(attached.collect::<Vec<_>>())
        });
        for member in found.await.unwrap_or_else(|_| vec![leader]) {
            let _ = kill(member, signal);
            if signal == Signal::SIGHUP {
                // A stopped process gets it only once it continues.
                let _ = kill(member, Signal::SIGCONT);
            }
        }
    }

    /// Whether a process has one of them as a standard stream. Of one that may not
    /// be looked into it is taken for granted.
    fn held_by(&self, process: Pid) -> bool {
        (0..3).any(
            |fd| match std::fs::read_link(format!("/proc/{process}/fd/{fd}")) {
                Ok(target) => self
                    .0
                    .iter()
                    .any(|inode| target.as_os_str() == format!("pipe:[{inode}]").as_str()),
                Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_holds_the_pipes_that_are_its_standard_streams() {
        let (ours, theirs) = std::io::pipe().unwrap();
        let (other, _theirs) = std::io::pipe().unwrap();
        let pipes = Pipes::of([ours.as_fd(); 3]);
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .stdout(theirs)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(pipes.held_by(pid));
        assert!(!Pipes::of([other.as_fd(); 3]).held_by(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!pipes.held_by(pid), "nor has one that is gone");
    }
}
