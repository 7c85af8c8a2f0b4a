//! Pseudo-terminals: modes, sizes, the controlling terminal, hang-up.

use std::process::{Command, Stdio};

use crate::fixture::{Agent, finish, first_line, lives, wait_until};

/// Runs a local script on a local terminal, with the client in $SSH.
fn on_a_terminal(agent: &Agent, script: &str) -> String {
    let output = Command::new("script")
        .args(["-qec", script, "/dev/null"])
        .env(
            "SSH",
            format!("ssh -F {}", agent.path("ssh_config").display()),
        )
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn modes_and_size_are_the_clients() {
    let agent = Agent::start();
    let text = on_a_terminal(
        &agent,
        "stty rows 41 cols 101 intr ^X erase ^H -ixon iutf8 -echoctl; $SSH -tt ws 'stty -a; echo $TERM; tty; echo $SSH_TTY'",
    );
    for expected in [
        "rows 41; columns 101",
        "intr = ^X",
        "erase = ^H",
        "-ixon",
        "\r\niutf8",
        "-echoctl",
        "xterm-256color",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let terminals: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("/dev/pts/"))
        .collect();
    assert_eq!(terminals.len(), 2);
    assert_eq!(terminals.first(), terminals.last());
}

#[test]
fn a_resize_reaches_the_program() {
    let agent = Agent::start();
    // Again and again: the first may come before the program is ready for it.
    let text = on_a_terminal(
        &agent,
        "(for n in $(seq 60); do sleep 0.5; stty rows 33 cols $((76 + n % 2)) </dev/tty; done) & \
         $SSH -tt ws 'trap \"stty size; exit\" WINCH; echo ready; while :; do sleep 0.1; done'; \
         kill $!",
    );
    assert!(text.contains("ready") && text.contains("33 7"), "{text}");
}

#[test]
fn exit_statuses_survive_a_terminal() {
    let agent = Agent::start();
    for status in [0, 3, 255] {
        let output = agent
            .ssh()
            .args(["-tt", "ws", &format!("exit {status}")])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status));
    }
}

#[test]
fn output_is_whole_though_the_program_ends_at_once() {
    let agent = Agent::start();
    for _ in 0..10 {
        let output = agent
            .ssh()
            .args(["-tt", "ws", "seq 1 5000"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.ends_with("5000\r\n"),
            "{:?}",
            text.get(text.len().saturating_sub(20)..)
        );
        assert_eq!(text.lines().count(), 5000);
    }
}

#[test]
fn the_session_has_a_controlling_terminal_that_interrupts() {
    let agent = Agent::start();
    let mut client = agent
        .ssh()
        .args([
            "-tt",
            "ws",
            "trap 'echo interrupted; exit 6' INT; echo ready; sleep 30 & wait",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(first_line(&mut client), "ready");
    std::io::Write::write_all(client.stdin.as_mut().unwrap(), b"\x03").unwrap();
    assert_eq!(finish(&mut client).code(), Some(6));
}

#[test]
fn a_job_in_the_background_does_not_hold_the_terminal() {
    let agent = Agent::start();
    let mut client = agent
        .ssh()
        .args(["-tt", "ws", "sleep 300 & exit 8"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(finish(&mut client).code(), Some(8));
}

#[test]
fn input_that_nobody_has_read_does_not_hold_the_terminal() {
    let agent = Agent::start();
    // More than a terminal keeps, which is full when its program ends.
    let pasted = "a line of what is pasted\n".repeat(8_000);
    let mut client = agent
        .ssh()
        .args(["-tt", "ws", "stty -echo; echo ready; sleep 1; exit 4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(first_line(&mut client), "ready");
    std::io::Write::write_all(client.stdin.as_mut().unwrap(), pasted.as_bytes()).unwrap();
    assert_eq!(finish(&mut client).code(), Some(4));
}

#[test]
fn a_client_that_vanishes_hangs_up_its_terminal() {
    let agent = Agent::start();
    let mut client = agent
        .ssh()
        .args(["-tt", "ws", "echo $$; exec sleep 300"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = first_line(&mut client);
    assert!(lives(&pid));
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("the program is gone", || !lives(&pid));
}
