//! Terminals that outlive their clients.

use nix::sys::signal::Signal;
use vendetta_tests::{Gateway, Running, eventually};

/// `ssh -t LOGIN` on a terminal of its own.
fn attach(gateway: &Gateway, login: &str) -> Running {
    gateway.ssh(login).arg("-tt").start_on_terminal(24, 80)
}

fn terminals(gateway: &Gateway) -> serde_json::Value {
    let listed = gateway.control("workspace terminals ws --json").ok();
    listed.json()["terminals"].clone()
}

/// Loses its link.
fn cut_off(client: Running) {
    let mut client = client;
    client.signal(Signal::SIGKILL);
    let _ = client.finish();
}

#[test]
fn a_terminal_loses_neither_its_program_nor_its_screen() {
    let mut gateway = Gateway::with_workspace();
    let mut client = attach(&gateway, "ws++main");
    client.send("PS1=; x=kept; echo $((40 + 2)) is on the screen; stty size\n");
    let seen = client.expect_stdout(0, "42 is on the screen");
    client.expect_stdout(seen, "24 80");
    client.send("(sleep 2; echo said while nobody was there) &\n");
    // The keystrokes have arrived, and their echo.
    client.expect_stdout(seen, "while nobody was there");
    cut_off(client);
    eventually("nobody is attached", || {
        terminals(&gateway)[0]["attached"] == 0
    });

    // Whatever becomes of the gateway.
    gateway.kill();
    gateway.start();
    let login = "ws++main";
    let mut client = gateway.ssh(login).arg("-tt").start_on_terminal(30, 100);
    client.expect_stdout(0, "42 is on the screen");
    client.expect_stdout(0, "said while nobody was there\r\n");
    client.send("echo is-$x; stty size\n");
    let seen = client.expect_stdout(0, "is-kept");
    client.expect_stdout(seen, "30 100");
    let listed = terminals(&gateway);
    assert_eq!(listed[0]["name"], "main");
    assert_eq!(listed[0]["user"], "root");
    assert_eq!(listed[0]["attached"], 1);
    client.send("exit 7\n");
    assert_eq!(client.finish().code(), 7);
    eventually("it is gone", || {
        terminals(&gateway) == serde_json::json!([])
    });
}

#[test]
fn two_who_are_attached_see_the_same_and_a_third_user_has_one_of_their_own() {
    let gateway = Gateway::with_workspace();
    let mut first = attach(&gateway, "ws+dev+pair");
    first.send("echo $((1 + 1))nd\n");
    first.expect_stdout(0, "2nd");
    let mut second = attach(&gateway, "ws+dev+pair");
    second.expect_stdout(0, "2nd");
    second.send("echo from $((1 + 2))\n");
    first.expect_stdout(0, "from 3");
    second.expect_stdout(0, "from 3");
    let other = attach(&gateway, "ws++pair");
    eventually("both are there", || {
        terminals(&gateway).as_array().map(Vec::len) == Some(2)
    });
    let end = "workspace terminals ws --end pair --user dev";
    gateway.control(end).ok();
    let _ = (first.finish(), second.finish());
    eventually("only one is left", || {
        let listed = terminals(&gateway);
        listed.as_array().map(Vec::len) == Some(1) && listed[0]["user"] == "root"
    });
    gateway
        .control("workspace terminals ws --end nobody")
        .finish()
        .exits(3);
    let text = gateway.control("workspace terminals ws").ok().text();
    assert!(text.contains("ssh -t ws+root+pair@"), "{text}");
    cut_off(other);
}

#[test]
fn one_who_takes_nothing_holds_up_neither_the_program_nor_another() {
    let gateway = Gateway::with_workspace();
    let mut stalled = attach(&gateway, "ws++main");
    stalled.send("PS1=; echo ready\n");
    stalled.expect_stdout(0, "ready");
    stalled.signal(Signal::SIGSTOP);
    let mut other = attach(&gateway, "ws++main");
    // More than everything on the way can hold.
    other.send("seq 3000000; echo $((20 + 3)) done; touch /tmp/done\n");
    eventually("the program has ended", || {
        gateway
            .exec("ws", "test -e /tmp/done")
            .finish()
            .status
            .success()
    });
    eventually("it is shown", || {
        String::from_utf8_lossy(&other.stdout()).contains("23 done")
    });
    stalled.signal(Signal::SIGCONT);
    stalled.expect_stdout(0, "23 done");
    cut_off(stalled);
    cut_off(other);
}

#[test]
fn what_is_no_shell_on_a_terminal_stays_plain() {
    let gateway = Gateway::with_workspace();
    let run = gateway.exec("ws++main", "echo plain; exit 3").finish();
    assert_eq!(run.exits(3).text(), "plain");
    let run = gateway.ssh("ws+dev+main").arg("-T").stdin("id -un\n").ok();
    assert_eq!(run.text(), "dev");
    let client = gateway.admin();
    let copy = gateway.scratch().join("copy").display().to_string();
    client
        .tool("scp")
        .args(["-q", "ws++main@gateway:/etc/passwd", &copy])
        .ok();
    assert_eq!(terminals(&gateway), serde_json::json!([]));
    let run = gateway.ssh("ws++Wrong").arg("-tt").finish();
    assert_ne!(run.code(), 0, "{run}");
}
