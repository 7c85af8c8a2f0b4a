//! Many sessions over one connection (OpenSSH's ControlMaster): no exit status
//! is lost, in a row or at once.

use vendetta_tests::Gateway;

#[test]
fn the_exit_statuses_of_1000_sessions_in_a_row_all_arrive() {
    let gateway = Gateway::with_workspace();
    let master = gateway.admin().master("ws");
    for number in 0..1000 {
        // Every status from 0 to 255, three times and more.
        master
            .exec(&format!("exit {}", number % 256))
            .finish()
            .exits(number % 256);
    }
    master.order("check").ok();
}

#[test]
fn the_exit_statuses_of_20_sessions_at_once_all_arrive() {
    let gateway = Gateway::with_workspace();
    let master = gateway.admin().master("ws");
    for round in 0..10 {
        std::thread::scope(|scope| {
            for number in 0..20 {
                let status = (round * 20 + number) % 256;
                let run = master.exec(&format!("echo {status}; exit {status}"));
                scope.spawn(move || {
                    let run = run.finish().exits(status);
                    assert_eq!(run.text(), status.to_string(), "{run}");
                });
            }
        });
    }
    master.order("check").ok();
}

#[test]
fn closed_sessions_leave_nothing_behind_in_the_gateway() {
    let gateway = Gateway::with_workspace();
    let master = gateway.admin().master("ws");
    let sessions = |count| {
        for _ in 0..count {
            master.exec("true").ok();
        }
    };
    sessions(100);
    let (memory, descriptors) = (gateway.process().memory(), gateway.process().descriptors());
    sessions(400);
    let grown = gateway.process().memory().saturating_sub(memory);
    assert!(grown < 4 * 1024 * 1024, "400 sessions left {grown} bytes");
    // But for a few connections to the agent that are kept ready.
    vendetta_tests::eventually("all descriptors are closed", || {
        gateway.process().descriptors() <= descriptors + 8
    });
}
