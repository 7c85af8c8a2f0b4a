//! Who else of the gateway's machine listens on a port.

use std::net::{SocketAddr, TcpListener};

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};

/// Whether nothing listens on `address`.
pub(super) fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

/// Who listens on `address`, for people: a program and its process where that
/// can be told (proc(5) shows the processes of other users to root alone).
pub(super) async fn holder(address: SocketAddr) -> String {
    let found = tokio::task::spawn_blocking(move || process_at(address)).await;
    match found {
        Ok(Some((program, pid))) => format!("program {program} (pid {pid})"),
        _ => "another program".to_owned(),
    }
}

fn process_at(address: SocketAddr) -> Option<(String, i32)> {
    // A machine may have no IPv6.
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let sockets: Vec<u64> = tables
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| collides(entry, address))
        .map(|entry| entry.inode)
        .collect();
    let has_one = |process: &Process| {
        // It may be gone, or not ours to look into.
        process.fd().is_ok_and(|mut files| {
            files.any(|file| {
                file.is_ok_and(
                    |file| matches!(file.target, FDTarget::Socket(inode) if sockets.contains(&inode)),
                )
            })
        })
    };
    let holders = procfs::process::all_processes().ok()?.flatten();
    let holder = holders.filter(has_one).min_by_key(Process::pid)?;
    Some((holder.stat().ok()?.comm, holder.pid()))
}

/// Whether a socket keeps others from listening on `address`.
fn collides(entry: &TcpNetEntry, address: SocketAddr) -> bool {
    let (theirs, ours) = (entry.local_address, address);
    entry.state == TcpState::Listen
        && theirs.port() == ours.port()
        && (theirs.ip().is_unspecified() || ours.ip().is_unspecified() || theirs.ip() == ours.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_we_listen_on_is_taken_by_us_and_free_again_after() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!is_free(address));
        let holder = holder(address).await;
        let pid = format!("(pid {})", std::process::id());
        assert!(holder.ends_with(&pid), "{holder}");
        // Whoever listens on one address keeps others from all of them.
        let everywhere = SocketAddr::new([0, 0, 0, 0].into(), address.port());
        assert!(!is_free(everywhere));
        drop(listener);
        assert!(is_free(address));
    }
}
