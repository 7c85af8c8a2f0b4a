//! What a former agent left when it was killed: its services run on, hold
//! their ports, and nobody looks after them. An agent that is PID 1 takes them
//! with it; any other notes each leader in a file beside the service's log,
//! and the next one ends what is noted there before it starts anything.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vendetta_proto::ServiceName;

use crate::process::{Known, Table, signal_group};

fn path(log_dir: &Path, service: &ServiceName) -> PathBuf {
    log_dir.join(service.as_str()).join("process")
}

/// Notes the leader of a service.
///
/// # Errors
/// When the file cannot be written.
pub fn note(log_dir: &Path, service: &ServiceName, leader: Pid) -> io::Result<()> {
    if Pid::this().as_raw() == 1 {
        return Ok(());
    }
    match Known::of(leader) {
        // It has ended already.
        None => Ok(()),
        Some(known) => {
            let path = path(log_dir, service);
            std::fs::create_dir_all(path.with_file_name(""))?;
            std::fs::write(path, known.to_string())
        }
    }
}

/// Ends what a former agent left of a service; false when that is nothing.
pub fn end(log_dir: &Path, service: &ServiceName) -> bool {
    let path = path(log_dir, service);
    let noted = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.parse::<Known>().ok());
    let _ = std::fs::remove_file(path);
    let Some(leader) = noted.filter(Known::lives) else {
        return false;
    };
    for pid in Table::now().below(leader.pid) {
        let _ = kill(pid, Signal::SIGKILL);
    }
    signal_group(leader.pid, Signal::SIGKILL, false);
    true
}
