//! One session at a time: a command or a shell in a container behaves as over
//! a plain SSH connection.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;
use vendetta_tests::{BUSYBOX, Gateway, Run, eventually, random_bytes, sha256};

use crate::jump::Jumper;

const MIB: usize = 1024 * 1024;

#[test]
fn output_is_the_command_s_own_and_nothing_of_ours() {
    let gateway = Gateway::with_workspace();
    let run = gateway.exec("ws", "printf out; printf err >&2").ok();
    assert_eq!((run.text(), run.error_text()), ("out".into(), "err".into()));
    let run = gateway.exec("ws", "true").ok();
    assert_eq!(
        (run.text(), run.error_text()),
        (String::new(), String::new())
    );
}

#[test]
fn stdout_and_stderr_of_64_mib_each_at_once_arrive_byte_for_byte() {
    let gateway = Gateway::with_workspace();
    let pour = "import hashlib,os,threading\n\
         def pour(fd):\n\
         \x20   digest = hashlib.sha256()\n\
         \x20   for _ in range(64):\n\
         \x20       block = memoryview(os.urandom(1 << 20))\n\
         \x20       digest.update(block)\n\
         \x20       while block: block = block[os.write(fd, block):]\n\
         \x20   open(f'/tmp/sum{fd}', 'w').write(digest.hexdigest())\n\
         other = threading.Thread(target=pour, args=(2,))\n\
         other.start(); pour(1); other.join()\n";
    gateway.put("ws", "/tmp/pour.py", pour);
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
fn death_by_a_signal_arrives_as_an_exit_signal() {
    let gateway = Gateway::with_workspace();
    // OpenSSH's client cannot die of it: it exits with 255, and tells the cause with -v.
    let run = gateway
        .ssh("ws")
        .args(["-v", "kill -KILL $$"])
        .finish()
        .exits(255);
    assert!(run.error_text().contains("rtype exit-signal"), "{run}");
    assert!(!run.error_text().contains("rtype exit-status"), "{run}");
}

#[test]
fn end_of_stdin_reaches_the_command_which_may_answer_after_it() {
    let gateway = Gateway::with_workspace();
    let run = gateway.exec("ws", "cat; echo done").stdin("hi\n").ok();
    assert_eq!(run.stdout, b"hi\ndone\n");
}

#[test]
fn a_command_may_close_its_stdin_early() {
    let gateway = Gateway::with_workspace();
    let input = random_bytes(1, 8 * MIB);
    let command = "head -c 3; exec <&-; sleep 1; echo; echo rest; exit 7";
    let run = gateway
        .exec("ws", command)
        .stdin(input.clone())
        .finish()
        .exits(7);
    assert_eq!(run.stdout, [&input[..3], b"\nrest\n"].concat());
}

#[test]
fn a_command_may_close_its_stdout_and_stderr_and_run_on() {
    let gateway = Gateway::with_workspace();
    let run = gateway
        .exec("ws", "echo first; exec >&- 2>&-; sleep 1; exit 5")
        .finish();
    assert_eq!(run.exits(5).stdout, b"first\n");
}

#[test]
fn a_command_need_not_be_utf_8() {
    let gateway = Gateway::with_workspace();
    let run = gateway
        .ssh("ws")
        .arg(OsStr::from_bytes(b"printf %s '\xff\xfe\xe9'"))
        .ok();
    assert_eq!(run.stdout, b"\xff\xfe\xe9");
}

#[test]
fn a_command_s_background_child_that_keeps_the_output_open_delays_the_end_as_in_openssh() {
    let gateway = Gateway::with_workspace();
    // sshd waits for the end of the output, not only for the command.
    let run = gateway
        .exec("ws", "(sleep 1; echo late) & echo early; exit 4")
        .finish();
    assert_eq!(run.exits(4).stdout, b"early\nlate\n");
}

#[test]
fn a_shell_without_a_terminal_runs_a_script_from_stdin() {
    let gateway = Gateway::with_workspace();
    let run = gateway
        .ssh("ws")
        .arg("-T")
        .stdin("echo $((6 * 7))\nexit 3\n")
        .finish()
        .exits(3);
    assert_eq!(run.stdout, b"42\n");
}

#[test]
fn an_unknown_subsystem_is_refused_and_the_connection_lives_on() {
    let gateway = Gateway::with_workspace();
    let master = gateway.admin().master("ws");
    let run = master.ssh().args(["-s", "no-such-subsystem"]).finish();
    assert_ne!(run.code(), 0, "{run}");
    assert_eq!(master.exec("echo alive").ok().text(), "alive");
}

#[test]
fn what_the_gateway_asks_of_an_agent_is_not_for_its_clients() {
    let gateway = Gateway::with_workspace();
    let ask = |subsystem: &str| {
        let run = gateway.ssh("ws").args(["-s", subsystem]);
        let run = run.stdin("{\"request\":\"terminals\"}\n").finish();
        (run.code(), run.text(), run.error_text())
    };
    let (code, output, error) = ask("agent@vendetta");
    assert_ne!(code, 0, "{output}");
    assert_eq!((code, output, error), ask("no-such-thing@vendetta"));
    // Nor under a name with which the gateway might be taken for one that asks for itself.
    for user in ["client:", "client:root"] {
        let login = format!("ws+{user}");
        let run = gateway.ssh(&login).args(["-s", "agent@vendetta"]);
        let run = run.stdin("{\"request\":\"terminals\"}\n").finish();
        assert_ne!(run.code(), 0, "{run}");
        assert_eq!(run.text(), "");
    }
    gateway.control("workspace ports ws").ok();
}

#[test]
fn a_terminal_is_there_with_tt_and_only_then() {
    let gateway = Gateway::with_workspace();
    let run = gateway
        .ssh("ws")
        .args(["-tt", "tty && exit 6"])
        .finish()
        .exits(6);
    assert!(run.text().starts_with("/dev/pts/"), "{run}");
    let run = gateway.exec("ws", "tty").finish().exits(1);
    assert_eq!(run.text(), "not a tty");
}

#[test]
fn a_terminal_has_the_client_s_size_and_follows_it() {
    let gateway = Gateway::with_workspace();
    let command = "trap 'stty size' WINCH; stty size; echo ready; while :; do sleep 0.1; done";
    let mut run = gateway
        .ssh("ws")
        .args(["-t", command])
        .start_on_terminal(33, 111);
    let at = run.expect_stdout(0, "33 111");
    let at = run.expect_stdout(at, "ready");
    run.resize(44, 222);
    run.expect_stdout(at, "44 222");
}

#[test]
fn a_terminal_has_the_client_s_modes_and_type() {
    let gateway = Gateway::with_workspace();
    let command = "stty -F \"$(tty)\" intr ^K -ixon && exec ssh \"$@\"";
    let config = gateway.admin().config();
    let shell = gateway
        .admin()
        .program("sh")
        .env("TERM", "vt220")
        .args(["-c", command, "sh", "-F"]);
    let run = shell
        .arg(config)
        .args(["-t", "ws@gateway", "echo $TERM; stty -a"])
        .start_on_terminal(24, 80);
    let run = run.finish().ok();
    for wanted in ["vt220", "intr = ^K", "-ixon"] {
        assert!(run.text().contains(wanted), "no {wanted}: {run}");
    }
}

#[test]
fn keys_typed_at_a_terminal_are_signals_to_the_command() {
    let gateway = Gateway::with_workspace();
    let command = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done";
    let mut run = gateway.ssh("ws").args(["-tt", command]).spawn();
    let at = run.expect_stdout(0, "ready");
    run.send([3]);
    run.expect_stdout(at, "caught");
    let _ = run.finish().exits(9);
}

#[test]
fn a_shell_at_a_terminal_is_the_user_s_login_shell() {
    let gateway = Gateway::with_workspace();
    for (login, asked, answer) in [
        ("ws", "shopt -q login_shell && echo is-$((40 + 2))", "is-42"),
        (
            "ws+dev",
            "shopt -q login_shell && echo \"is-$((40 + 2))-$USER\"",
            "is-42-dev",
        ),
        ("ws+dash", "echo \"is-$((40 + 2))-$0\"", "is-42--dash"),
        (
            "ws+fish",
            "status is-login; and echo is-(math 40 + 2)",
            "is-42",
        ),
    ] {
        let mut run = gateway
            .ssh(login)
            .env("TERM", "xterm")
            .start_on_terminal(24, 80);
        run.send(format!("{asked}\n"));
        run.expect_stdout(0, answer);
        run.send("exit\n");
        let _ = run.finish();
    }
}

#[test]
fn a_command_is_run_by_the_user_s_shell() {
    let gateway = Gateway::with_workspace();
    for (login, command, answer) in [
        ("ws", "echo ${BASH_VERSION:+bash}", "bash"),
        (
            "ws+fish",
            "test -n \"$FISH_VERSION\"; and echo fish",
            "fish",
        ),
        ("ws+dash", "echo \"$0\"", "dash"),
        (
            "ws+dev",
            "echo \"$USER $LOGNAME $HOME $SHELL\"; id -un",
            "dev dev /home/dev /bin/bash\ndev",
        ),
    ] {
        let run = gateway.exec(login, command).ok();
        assert!(run.text().ends_with(answer), "{run}");
    }
}

#[test]
fn an_image_with_nothing_but_busybox_serves_as_well() {
    let gateway = Gateway::docker();
    gateway.workspace("bb", BUSYBOX);
    let run = gateway
        .exec("bb", "cat; echo done; exit 3")
        .stdin("hi\n")
        .finish()
        .exits(3);
    assert_eq!(run.stdout, b"hi\ndone\n");
    let mut run = gateway.ssh("bb").start_on_terminal(24, 80);
    run.send("echo is-$((40 + 2)); exit\n");
    run.expect_stdout(0, "is-42");
    let _ = run.finish();
}

#[test]
fn an_unknown_user_of_the_environment_is_named_in_the_error() {
    let gateway = Gateway::with_workspace();
    let run = gateway.exec("ws+nobody-here", "true").finish();
    assert_ne!(run.code(), 0, "{run}");
    assert!(run.error_text().contains("nobody-here"), "{run}");
}

#[test]
fn the_locale_is_let_through_and_the_loader_s_variables_are_not() {
    let gateway = Gateway::with_workspace();
    let send = ["-o", "SendEnv=LC_* LANG LD_PRELOAD PATH BASH_ENV"];
    let run = gateway
        .ssh("ws")
        .args(send)
        .arg("echo \"$LC_MESSAGES|$LD_PRELOAD|$BASH_ENV|$PATH\"");
    let run = run
        .env("LC_MESSAGES", "de_DE.UTF-8")
        .env("BASH_ENV", "/evil")
        .env("LD_PRELOAD", "")
        .ok();
    let text = run.text();
    let fields: Vec<&str> = text.split('|').collect();
    assert_eq!(fields[..3], ["de_DE.UTF-8", "", ""], "{run}");
    assert!(fields[3].contains("/usr/bin"), "{run}");
    assert!(
        !fields[3].contains(".cargo"),
        "the client's PATH must not arrive: {run}"
    );
}

#[test]
fn the_workspace_s_env_is_in_every_session() {
    let gateway = Gateway::docker();
    let config = "provider: docker\ndocker: {image: vendetta-test/tools}\nenv: {RUST_LOG: info, GREETING: 'a b=c'}\n";
    gateway.create("ws", config);
    gateway.control("workspace up ws").ok();
    assert_eq!(
        gateway
            .exec("ws", "echo \"$RUST_LOG,$GREETING\"")
            .ok()
            .text(),
        "info,a b=c"
    );
    let run = gateway.ssh("ws").args(["-tt", "echo \"$GREETING\""]).ok();
    assert_eq!(run.text(), "a b=c");
}

/// How many processes of the workspace `ws` have a command line that is `pattern`.
fn count(gateway: &Gateway, pattern: &str) -> usize {
    let run = gateway
        .exec("ws", &format!("pgrep -xfc '{pattern}' || true"))
        .ok();
    run.text()
        .parse()
        .unwrap_or_else(|_| panic!("no number: {run}"))
}

#[test]
fn a_vanished_client_s_processes_end_and_a_detached_daemon_stays() {
    for login in ["ws", "ws+dev"] {
        a_detached_daemon_stays(login);
    }
}

fn a_detached_daemon_stays(login: &str) {
    let gateway = Gateway::with_workspace();
    let mut run = gateway
        .exec(
            login,
            "setsid -f sleep 4711; sleep 4710 >/dev/null 2>&1 & sleep 4712 & sleep 4713",
        )
        .start();
    eventually("the command runs", || count(&gateway, "sleep 4713") == 1);
    run.signal(Signal::SIGKILL);
    eventually("the client's processes end", || {
        count(&gateway, "sleep 4712") + count(&gateway, "sleep 4713") == 0
    });
    assert_eq!(
        count(&gateway, "sleep 4711"),
        1,
        "the daemon detached on purpose"
    );
    assert_eq!(
        count(&gateway, "sleep 4710"),
        1,
        "a job that let go of the session"
    );
}

/// As with sshd, in a pipe of whatever shell the user types it into.
#[test]
fn a_reader_that_has_enough_ends_the_command() {
    let gateway = Gateway::with_workspace();
    let jumper = Jumper::new(gateway.admin());
    for ssh in [gateway.ssh("ws"), jumper.tool("ssh").arg("ws.vendetta")] {
        let ssh = ssh.shell_line();
        for line in [
            format!("{ssh} yes </dev/null | head -c 100000 | wc -c"),
            // While it takes nothing of what it is sent.
            format!("yes | {ssh} yes | head -c 100000 | wc -c"),
            format!("{ssh} 'seq 1 1000000000' </dev/null | head -c 100000 | wc -c"),
            // Whose client has a whole window that it could not write.
            format!("{ssh} yes </dev/null | sleep 1; echo 100000"),
        ] {
            let run = Run::new("sh").args(["-c", &line]).ok();
            assert_eq!(run.text(), "100000", "{run}");
        }
    }
    eventually("the commands are gone", || {
        count(&gateway, "yes") + count(&gateway, "seq 1 1000000000") == 0
    });
    // A command of the gateway that follows something for ever.
    let follow = gateway.control("events").shell_line();
    let line = format!("{follow} </dev/null | head -n 1 | wc -l");
    let run = Run::new("sh").args(["-c", &line]).spawn();
    run.expect_stderr(0, "Watching");
    for change in ["down", "up"] {
        gateway.control(&format!("workspace {change} ws")).ok();
    }
    assert_eq!(run.finish().ok().text(), "1");
}

#[test]
fn a_vanished_terminal_hangs_up_its_jobs() {
    let gateway = Gateway::with_workspace();
    let mut run = gateway
        .ssh("ws")
        .args(["-tt", "sleep 4714 & sleep 4715"])
        .spawn();
    eventually("the command runs", || count(&gateway, "sleep 4715") == 1);
    run.signal(Signal::SIGKILL);
    eventually("the terminal's processes end", || {
        count(&gateway, "sleep 4714") + count(&gateway, "sleep 4715") == 0
    });
}

#[test]
fn orphans_are_reaped() {
    let gateway = Gateway::with_workspace();
    for _ in 0..20 {
        gateway
            .exec("ws", "setsid -f sh -c 'sh -c \"exit 3\" & exit 4'")
            .ok();
    }
    eventually("no zombie is left", || {
        gateway
            .exec("ws", "ps -eo stat=")
            .ok()
            .text()
            .lines()
            .all(|state| !state.starts_with('Z'))
    });
}
