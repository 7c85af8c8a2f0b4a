//! Many clients at once, and nothing left of them afterwards.

use std::time::Duration;

use vendetta_tests::{Gateway, Running, eventually};

const MIB: u64 = 1024 * 1024;
const LONG: Duration = Duration::from_secs(400);

/// Opens `count` connections, `at_once` at a time, each with a session that is
/// up and then idle.
fn open(gateway: &Gateway, count: usize, at_once: usize) -> Vec<Running> {
    let mut sessions = Vec::with_capacity(count);
    while sessions.len() < count {
        let batch = at_once.min(count - sessions.len());
        let starting: Vec<Running> = (0..batch)
            .map(|_| gateway.exec("ws", "echo up; exec cat").limit(LONG).spawn())
            .collect();
        for session in &starting {
            session.expect_stdout(0, "up\n");
        }
        sessions.extend(starting);
    }
    sessions
}

/// Each session says something of its own, hears it back, and ends.
fn close(sessions: Vec<Running>) {
    for (number, mut session) in sessions.into_iter().enumerate() {
        session.send(format!("session {number}\n"));
        let run = session.finish().ok();
        assert_eq!(run.text(), format!("up\nsession {number}"), "{run}");
    }
}

#[test]
fn a_hundred_clients_connect_at_once() {
    let gateway = Gateway::with_workspace();
    close(open(&gateway, 100, 100));
}

#[test]
fn five_hundred_idle_sessions_give_back_all_they_took() {
    let gateway = Gateway::with_workspace();
    close(open(&gateway, 40, 20)); // what the first sessions allocate for good is no session's
    let process = gateway.process();
    let descriptors = process.descriptors();
    std::thread::sleep(Duration::from_secs(3));
    let before = process.memory();
    let sessions = open(&gateway, 500, 20);
    assert_eq!(gateway.exec("ws", "echo alive").ok().text(), "alive");
    close(sessions);
    // But for a few connections to the agent that are kept ready.
    eventually("all descriptors are closed", || {
        process.descriptors() <= descriptors + 8
    });
    eventually("the memory is given back", || {
        process.memory() <= before + 8 * MIB
    });
    let left = gateway.exec("ws", "pgrep -xc cat || true").ok().text();
    assert_eq!(left, "0", "sessions are left in the environment");
}
