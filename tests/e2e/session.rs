//! One session at a time: a command or a shell in a container behaves as over
//! a plain SSH connection.

use std::time::Duration;

use nix::sys::signal::Signal;
use vendetta_tests::{Gateway, TOOLS, random_bytes, sha256};

const MIB: usize = 1024 * 1024;

#[test]
fn a_command_s_output_is_its_own_and_nothing_of_ours() {
    let gateway = Gateway::with_workspace();
    let run = gateway.exec("ws", "printf out; printf err >&2").ok();
    assert_eq!(
        (run.stdout.as_slice(), run.stderr.as_slice()),
        (&b"out"[..], &b"err"[..])
    );
    let run = gateway.exec("ws", "true").ok();
    assert_eq!(
        (run.stdout.as_slice(), run.stderr.as_slice()),
        (&b""[..], &b""[..])
    );
}

#[test]
fn stdout_and_stderr_of_64_mib_each_at_once_arrive_byte_for_byte() {
    let gateway = Gateway::with_workspace();
    // Two streams that differ, made by a cipher-like generator inside, read at once.
    let program = "import os,sys,hashlib,threading\n\
                   def pour(fd):\n\
                   \x20h=hashlib.sha256()\n\
                   \x20for _ in range(64):\n\
                   \x20 b=os.urandom(1<<20); h.update(b)\n\
                   \x20 v=memoryview(b)\n\
                   \x20 while v: v=v[os.write(fd,v):]\n\
                   \x20open('/tmp/sum%d'%fd,'w').write(h.hexdigest())\n\
                   t=threading.Thread(target=pour,args=(2,)); t.start(); pour(1); t.join()\n";
    gateway.exec("ws", "cat > /tmp/pour.py").stdin(program).ok();
    let run = gateway
        .exec("ws", "python3 /tmp/pour.py")
        .limit(Duration::from_secs(180))
        .ok();
    assert_eq!((run.stdout.len(), run.stderr.len()), (64 * MIB, 64 * MIB));
    assert_eq!(
        sha256(&run.stdout),
        gateway.exec("ws", "cat /tmp/sum1").ok().text()
    );
    assert_eq!(
        sha256(&run.stderr),
        gateway.exec("ws", "cat /tmp/sum2").ok().text()
    );
}

#[test]
fn every_exit_status_from_0_to_255_arrives() {
    let gateway = Gateway::with_workspace();
    let master = gateway.admin().master("ws");
    for status in 0..=255 {
        master
            .exec(&format!("exit {status}"))
            .finish()
            .exits(status);
    }
}

#[test]
fn death_by_a_signal_is_told_as_an_exit_signal() {
    let gateway = Gateway::with_workspace();
    let run = gateway.exec("ws", "kill -TERM $$").arg("-v").finish();
    // OpenSSH has no way to pass a signal on: it exits 255, and tells with -v.
    assert_eq!(run.code(), 255, "{run}");
    let run = gateway.ssh("ws").args(["-vv", "kill -KILL $$"]).finish();
    assert!(
        run.error_text().contains("exit-signal"),
        "no exit-signal: {run}"
    );
}

#[test]
fn end_of_stdin_reaches_the_command_which_may_answer_after_it() {
    let gateway = Gateway::with_workspace();
    let run = gateway.exec("ws", "cat; echo done").stdin("hi\n").ok();
    assert_eq!(run.stdout, b"hi\ndone\n");
}

#[test]
fn a_command_that_closes_its_stdin_early_ends_with_its_own_status() {
    let gateway = Gateway::with_workspace();
    let run = gateway
        .exec("ws", "head -c 3; exec <&-; echo; echo rest; exit 7")
        .stdin(random_bytes(1, 8 * MIB));
    let run = run.finish().exits(7);
    assert_eq!(&run.stdout[..3], &random_bytes(1, 3)[..]);
    assert!(run.stdout.ends_with(b"\nrest\n"), "{run}");
}

#[test]
fn a_command_need_not_be_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let gateway = Gateway::with_workspace();
    let run = gateway
        .ssh("ws")
        .arg(OsStr::from_bytes(b"printf '%s' '\xff\xfe\xe9'"))
        .ok();
    assert_eq!(run.stdout, b"\xff\xfe\xe9");
}

#[test]
fn a_signal_from_the_client_s_terminal_reaches_the_command() {
    let gateway = Gateway::with_workspace();
    let mut run = gateway
        .ssh("ws")
        .args([
            "-tt",
            "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done",
        ])
        .spawn();
    let at = run.expect_stdout(0, "ready");
    run.send([3]); // ^C, which the remote terminal makes a SIGINT
    run.expect_stdout(at, "caught");
    let _ = run.finish().exits(9);
}

#[test]
fn a_vanished_client_takes_its_process_group_with_it_but_not_a_daemon() {
    let gateway = Gateway::with_workspace();
    let mut run = gateway
        .exec("ws", "setsid -f sleep 4711; (sleep 4712 & sleep 4713)")
        .spawn();
    let count = |what: &str| {
        gateway
            .exec("ws", &format!("pgrep -fc '[s]leep {what}' || true"))
            .ok()
            .text()
    };
    vendetta_tests::eventually("the command runs", || count("4713") == "1");
    run.signal(Signal::SIGKILL);
    vendetta_tests::eventually("the client's processes end", || {
        count("4712") == "0" && count("4713") == "0"
    });
    assert_eq!(
        count("4711"),
        "1",
        "the daemon that detached on purpose must stay"
    );
}

#[test]
fn the_image_s_tools_are_those_of_the_tests() {
    let gateway = Gateway::docker();
    gateway.workspace("tools", TOOLS);
    gateway
        .exec(
            "tools",
            "git --version && rsync --version && python3 --version",
        )
        .ok();
}
