//! Commands, streams, statuses, signals, variables, users.

use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::fixture::{Agent, Environment, finish, first_line, is_root, lives, wait_until};

#[test]
fn every_exit_status_arrives() {
    let agent = Agent::start();
    for status in [0, 1, 2, 42, 126, 127, 128, 200, 254, 255] {
        assert_eq!(
            agent.run(&format!("exit {status}")).status.code(),
            Some(status)
        );
    }
}

#[test]
fn the_signal_that_ended_a_command_is_told() {
    let agent = Agent::start();
    let output = agent
        .ssh()
        .args(["-v", "ws", "kill -TERM $$"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("rtype exit-signal"), "{log}");
}

#[test]
fn output_and_errors_stay_apart_and_nothing_is_added() {
    let agent = Agent::start();
    let output = agent.run("printf out; printf err >&2");
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out"[..], &b"err"[..])
    );
}

#[test]
fn sixty_four_mebibytes_of_output_and_of_errors_arrive_whole() {
    let agent = Agent::start();
    let count = 64 * 1024 * 1024;
    let command = format!(
        "(head -c {count} /dev/zero | tr '\\0' a >&2) & head -c {count} /dev/zero | tr '\\0' b; wait"
    );
    let output = agent.run(&command);
    assert_eq!(output.stdout.len(), count);
    assert_eq!(output.stderr.len(), count);
    assert!(output.stdout.iter().all(|byte| *byte == b'b'));
    assert!(output.stderr.iter().all(|byte| *byte == b'a'));
}

#[test]
fn input_arrives_whole_and_its_end_is_seen() {
    let agent = Agent::start();
    let mut client = agent
        .ssh()
        .args(["ws", "cat; echo done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sent: Vec<u8> = (0..8 * 1024 * 1024u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut stdin = client.stdin.take().unwrap();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let mut received = Vec::new();
    client
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut received)
        .unwrap();
    writer.join().unwrap().unwrap();
    assert!(finish(&mut client).success());
    assert!(
        received.strip_suffix(b"done\n") == Some(&sent[..]),
        "{} bytes",
        received.len()
    );
}

#[test]
fn a_command_that_reads_no_input_ends_though_more_is_sent() {
    let agent = Agent::start();
    let mut client = agent
        .ssh()
        .args(["ws", "head -c 1 >/dev/null; exit 7"])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .spawn()
        .unwrap();
    assert_eq!(finish(&mut client).code(), Some(7));
}

#[test]
fn a_client_is_told_that_nobody_reads_its_input() {
    let agent = Agent::start();
    let client = agent
        .ssh()
        .args(["-v", "ws", "exec <&-; sleep 1; exit 7"])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("rtype eow@openssh.com"), "{log}");
}

#[test]
fn output_can_end_before_the_command_does() {
    let agent = Agent::start();
    let mut client = agent
        .ssh()
        .args([
            "ws",
            "echo first; exec >&- 2>&-; cat >/dev/null; sleep 0.5; exit 9",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = String::new();
    // Ends although input is still open: EOF came by itself.
    client
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    assert_eq!(output, "first\n");
    assert_eq!(client.try_wait().unwrap(), None);
    drop(client.stdin.take());
    assert_eq!(finish(&mut client).code(), Some(9));
}

#[test]
fn a_job_that_keeps_the_output_open_keeps_the_session_open() {
    let agent = Agent::start();
    let start = Instant::now();
    assert_eq!(agent.run("(sleep 1; echo late) & exit 5").stdout, b"late\n");
    assert!(start.elapsed() >= Duration::from_secs(1));
    let start = Instant::now();
    assert_eq!(
        agent.run("sleep 30 >/dev/null 2>&1 & exit 5").status.code(),
        Some(5)
    );
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn commands_are_bytes() {
    let agent = Agent::start();
    let command = std::ffi::OsString::from_vec(b"printf %s '\xff\xfe\x80'".to_vec());
    let output = agent.ssh().arg("ws").arg(command).output().unwrap();
    assert_eq!(output.stdout, b"\xff\xfe\x80");
}

#[test]
fn a_shell_without_a_terminal_reads_its_script_from_input() {
    let agent = Agent::start();
    let mut client = agent
        .ssh()
        .arg("ws")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client
        .stdin
        .take()
        .unwrap()
        .write_all(b"echo $0; exit 4\n")
        .unwrap();
    assert!(first_line(&mut client).starts_with('-'), "a login shell");
    assert_eq!(finish(&mut client).code(), Some(4));
}

#[test]
fn the_environment_is_a_login_and_the_clients_part_is_limited() {
    let agent = Agent::start();
    let output = agent
        .ssh()
        .args([
            "-o",
            "SetEnv=LC_TEST=a LD_PRELOAD=b VENDETTA_X=c",
            "ws",
            "env",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let has = |line: &str| text.lines().any(|found| found == line);
    assert!(has("LC_TEST=a"), "{text}");
    assert!(
        has("FROM_WORKSPACE=yes") && has("VENDETTA_WORKSPACE=demo"),
        "{text}"
    );
    assert!(
        !text.contains("LD_PRELOAD") && !text.contains("VENDETTA_X"),
        "{text}"
    );
    for name in [
        "HOME=",
        "USER=",
        "LOGNAME=",
        "SHELL=",
        "PATH=",
        "SSH_CONNECTION=",
        "SSH_CLIENT=",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(name)),
            "{name} in {text}"
        );
    }
    assert!(!text.contains("SSH_TTY="));
}

#[test]
fn a_client_that_vanishes_takes_its_process_group_along_but_no_daemon() {
    let agent = Agent::start();
    let daemon = agent.path("daemon");
    let command = format!(
        "setsid sh -c 'echo $$ > {0}; exec sleep 300' >/dev/null 2>&1 </dev/null & sleep 300 & \
         while [ ! -s {0} ]; do sleep 0.05; done; echo $!; wait",
        daemon.display()
    );
    let mut client = agent
        .ssh()
        .args(["ws", &command])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let job = first_line(&mut client);
    let daemon = std::fs::read_to_string(daemon).unwrap();
    assert!(lives(&job) && lives(&daemon));
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("the job is gone", || !lives(&job));
    assert!(lives(&daemon));
}

#[test]
fn a_client_that_vanishes_ends_a_command_that_takes_no_input() {
    let agent = Agent::start();
    let mut client = agent
        .ssh()
        .args(["ws", "echo $$; exec sleep 300"])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = first_line(&mut client);
    // Time for the window to fill.
    std::thread::sleep(Duration::from_millis(500));
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("the command is gone", || !lives(&pid));
}

#[test]
fn sessions_of_one_connection_do_not_wait_for_each_other() {
    let agent = Agent::start();
    let mut master = agent.ssh().args(["-M", "-N", "ws"]).spawn().unwrap();
    wait_until("the connection is up", || agent.path("control").exists());
    // Takes nothing of what is sent to it.
    let mut stalled = agent
        .ssh()
        .args(["ws", "sleep 300"])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let clients: Vec<_> = (0..20)
        .map(|number| {
            agent
                .ssh()
                .args(["ws", &format!("sleep 0.2; exit {number}")])
                .spawn()
                .unwrap()
        })
        .collect();
    for (number, mut client) in clients.into_iter().enumerate() {
        assert_eq!(finish(&mut client).code(), i32::try_from(number).ok());
    }
    for client in [&mut stalled, &mut master] {
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

#[test]
fn sessions_run_as_the_configured_user() {
    if !is_root() {
        return;
    }
    let prepare = "passwd=$(mktemp) group=$(mktemp) && echo 'root:x:0:0::/root:/bin/sh\ndev:x:4242:4343::/nowhere:/bin/dash' >$passwd \
                   && echo 'dev:x:4343:\nextra:x:4444:dev' >$group && chmod 644 $passwd $group \
                   && mount --bind $passwd /etc/passwd && mount --bind $group /etc/group && rm $passwd $group";
    let agent = Agent::start_with(
        Environment {
            prepare: Some(prepare),
        },
        |config| {
            config.user = Some("dev".to_owned());
            config.workdir = Some("/no/such/place".into());
        },
    );
    let run = |user: &str, command: &str| {
        let output = agent
            .ssh()
            .args(["-o", &format!("User={user}"), "ws", command])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        run("dev", "id -u; id -g; id -G; pwd; echo $HOME $SHELL"),
        "4242\n4343\n4343 4444\n/\n/nowhere /bin/dash\n"
    );
    assert_eq!(run("root", "id -u"), "0\n");
    let output = agent
        .ssh()
        .args(["-o", "User=no-such-user", "ws", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Permission denied"),
        "{output:?}"
    );
    assert!(agent.log().contains("no such user here"));
}

#[test]
fn a_login_shell_that_does_not_exist_is_replaced() {
    if !is_root() {
        return;
    }
    let prepare = "passwd=$(mktemp) && echo root:x:0:0::/:/no/such/shell >$passwd && chmod 644 $passwd \
                   && mount --bind $passwd /etc/passwd && rm $passwd";
    let agent = Agent::start_with(
        Environment {
            prepare: Some(prepare),
        },
        |_| {},
    );
    assert_eq!(agent.text("echo $SHELL"), "/bin/sh\n");
}

#[test]
fn every_shell_serves_commands_and_logins() {
    if !is_root() {
        return;
    }
    for (shell, program) in [
        ("/bin/sh", "/bin/sh"),
        ("/bin/dash", "/bin/dash"),
        ("/usr/bin/fish", "/usr/bin/fish"),
        ("/tmp/vendetta-shells/ash", "/usr/bin/busybox"),
    ] {
        if !std::path::Path::new(program).exists() {
            continue;
        }
        let prepare = format!(
            "mkdir -p /tmp/vendetta-shells && ln -sf /usr/bin/busybox /tmp/vendetta-shells/ash \
             && passwd=$(mktemp) && echo root:x:0:0::/root:{shell} >$passwd && chmod 644 $passwd \
             && mount --bind $passwd /etc/passwd && rm $passwd"
        );
        let agent = Agent::start_with(
            Environment {
                prepare: Some(&prepare),
            },
            |_| {},
        );
        let text = agent.text("echo $SHELL $HOME; echo \"a  b\" | cat");
        assert_eq!(text, format!("{shell} /root\na  b\n"));
        let mut login = agent
            .ssh()
            .arg("ws")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        login
            .stdin
            .take()
            .unwrap()
            .write_all(b"echo in $SHELL\nexit 3\n")
            .unwrap();
        assert_eq!(first_line(&mut login), format!("in {shell}"));
        assert_eq!(finish(&mut login).code(), Some(3));
    }
}

#[test]
fn other_keys_are_refused() {
    let agent = Agent::start();
    let other = agent.path("other");
    let key = vendetta_sshio::keys::PrivateKey::generate_ed25519("x").unwrap();
    crate::fixture::write_private(&other, key.to_openssh().unwrap().as_bytes());
    let config = std::fs::read_to_string(agent.path("ssh_config")).unwrap();
    let changed = config.replace(
        &agent.path("key").display().to_string(),
        &other.display().to_string(),
    );
    std::fs::write(agent.path("ssh_config"), changed).unwrap();
    let output = agent.run("true");
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"));
}

#[test]
fn unknown_requests_are_refused_and_the_session_lives() {
    let agent = Agent::start();
    let output = agent
        .ssh()
        .args(["-s", "ws", "no-such-subsystem"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    // keepalive@openssh.com wants an answer, whichever.
    let options = [
        "-o",
        "ServerAliveInterval=1",
        "-o",
        "ServerAliveCountMax=4",
        "ws",
        "sleep 8; echo alive",
    ];
    assert_eq!(
        agent.ssh().args(options).output().unwrap().stdout,
        b"alive\n"
    );
}
