//! What OpenSSH's client sees of a session is what it sees of a real sshd in the same
//! container: the same scripts against both.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream};

use vendetta_tests::{Finished, Gateway, Run, eventually, free_port};

use crate::jump::Jumper;

/// A workspace, and in its container OpenSSH's sshd, for the same user and the same key.
struct Both {
    gateway: Gateway,
}

/// One question: options of ssh, the command, and what it reads.
struct Case {
    options: &'static [&'static str],
    command: &'static str,
    input: &'static [u8],
}

const fn case(options: &'static [&'static str], command: &'static str) -> Case {
    Case {
        options,
        command,
        input: b"",
    }
}

impl Both {
    fn new() -> Self {
        let gateway = Gateway::with_workspace();
        let key = gateway.admin().public_key();
        gateway.put("ws", "/tmp/keys", key);
        let start = "ssh-keygen -q -t ed25519 -N '' -f /tmp/host && mkdir -p /run/sshd && \
                     chmod 755 /run/sshd && chmod 600 /tmp/keys && /usr/sbin/sshd -f /dev/null \
                     -h /tmp/host -p 2022 -o AuthorizedKeysFile=/tmp/keys -o StrictModes=no \
                     -o AcceptEnv='LANG LC_*' -o Subsystem='sftp internal-sftp' -o UsePAM=no \
                     -o PidFile=none && cat /tmp/host.pub";
        let host = gateway.exec("ws", start).ok().text();
        let known = gateway.admin().home().join("sshd_known_hosts");
        fs::write(&known, format!("sshd {host}\n")).expect("known_hosts");
        let both = Self { gateway };
        eventually("sshd answers", || {
            let run = both.theirs().arg("true").finish();
            run.status.success()
        });
        both
    }

    /// The ways to ours: `ssh`, its options and the destination.
    fn ours(&self) -> [(&'static str, Run); 2] {
        let admin = self.gateway.admin();
        let direct = Jumper::new(admin).tool("ssh");
        [
            ("relayed", admin.tool("ssh").args(["-l", "ws", "gateway"])),
            ("end to end", direct.args(["-l", "root", "ws.vendetta"])),
        ]
    }

    /// The same to sshd, through a pipe into the container.
    fn theirs(&self) -> Run {
        let admin = self.gateway.admin();
        let proxy = format!(
            "ProxyCommand={} -W 127.0.0.1:2022 ws@gateway",
            admin.ssh_command()
        );
        let known = admin.home().join("sshd_known_hosts");
        let known = format!("UserKnownHostsFile={}", known.display());
        admin.tool("ssh").args(["-o", &proxy, "-o", &known]).args([
            "-o",
            "HostKeyAlias=sshd",
            "-l",
            "root",
            "gateway",
        ])
    }
}

/// Asks one question of `ssh`.
fn ask(ssh: Run, case: &Case) -> Finished {
    let run = ssh.args(["-o", "LogLevel=ERROR"]).args(case.options);
    let run = if case.command.is_empty() {
        run
    } else {
        run.arg(case.command)
    };
    run.stdin(case.input).finish()
}

/// Status, output and errors of a run, as lines to compare.
fn seen(run: &Finished) -> (i32, String, String) {
    (run.code(), run.text(), run.error_text())
}

const CASES: [Case; 25] = [
    case(&[], "exit 0"),
    case(&[], "exit 7"),
    case(&[], "exit 255"),
    case(&[], "kill -TERM $$"),
    case(&[], "kill -KILL $$"),
    case(&[], "sh -c 'kill -SEGV $$'"),
    case(&[], "no-such-program"),
    case(&[], "/etc"),
    case(&[], "echo out; echo err >&2"),
    case(&[], "printf '\\377\\0\\n' | od -c"),
    case(&[], "umask; ulimit -n; ulimit -c; ulimit -u; ulimit -l"),
    case(&[], "id; cd; pwd; echo $0 $- $#"),
    case(
        &[],
        "test -t 0 || echo no terminal; test -t 1 || echo nor there",
    ),
    case(
        &["-tt"],
        "stty -a; test -t 0 && test -t 1 && test -t 2 && echo all three",
    ),
    case(&["-tt"], "ps -o stat= -p $$ | cut -c1-2; exit 5"),
    case(&["-tt"], "kill -INT $$"),
    case(
        &["-o", "SendEnv=LANG LC_ALL SECRET"],
        "echo $LANG/$LC_ALL/$SECRET",
    ),
    case(
        &["-o", "SetEnv=LC_PARITY=yes FOO=no"],
        "echo $LC_PARITY/$FOO",
    ),
    case(
        &["-o", "SetEnv=TERM=dumb", "-tt"],
        "echo $TERM; test -c $SSH_TTY && echo tty",
    ),
    case(&["-s"], "no-such-subsystem"),
    case(
        &[
            "-o",
            "ExitOnForwardFailure=yes",
            "-R",
            "127.0.0.1:2022:127.0.0.1:1",
        ],
        "true",
    ),
    case(&["-T"], "sh -s a b"),
    case(&[], "sleep 60 </dev/null >/dev/null 2>&1 & echo left"),
    case(&[], "exec >&- 2>&-; exit 9"),
    case(&["-x", "-a"], "echo [$DISPLAY] [$SSH_AUTH_SOCK]"),
];

/// Through the gateway, and end to end.
#[test]
fn a_session_is_to_the_client_what_sshd_makes_of_it() {
    let both = Both::new();
    let mut differ = Vec::new();
    let scripted = [Case {
        options: &["-T"],
        command: "",
        input: b"echo a script; cd; pwd; exit 4\n",
    }];
    for case in CASES.iter().chain(&scripted) {
        let theirs = seen(&ask(both.theirs(), case));
        for (way, ssh) in both.ours() {
            let ours = seen(&ask(ssh, case));
            if ours != theirs {
                differ.push(format!(
                    "{way} {:?} {:?}\n  ours:   {ours:?}\n  theirs: {theirs:?}",
                    case.options, case.command,
                ));
            }
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// What ssh says of a forward, but for what names the host or what ours says more: the target.
fn told(run: &Finished, target: &str) -> Vec<String> {
    let text = run
        .error_text()
        .replace(&format!("connect to {target}: "), "");
    let lines = text.lines().filter(|line| !line.contains("onnection to"));
    lines.map(str::to_owned).collect()
}

/// What becomes of one who connects to a port that `ssh` forwards to `target`.
fn forwarded(ssh: Run, target: &str) -> Vec<String> {
    let port = free_port();
    let forward = format!("{port}:{target}");
    let mut ssh = ssh.args(["-L", &forward, "echo ready; cat"]).spawn();
    ssh.expect_stdout(0, "ready");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.is_empty(), "{got:?}");
    ssh.expect_stderr(0, "open failed");
    ssh.close_stdin();
    told(&ssh.finish().ok(), target)
}

#[test]
fn a_forward_that_is_refused_is_refused_as_sshd_does_and_says_why() {
    let both = Both::new();
    let refused = "open failed: connect failed: Connection refused";
    let missing = "open failed: connect failed: No such file or directory";
    for (target, reason) in [("127.0.0.1:1", refused), ("/tmp/nobody-listens", missing)] {
        let theirs = forwarded(both.theirs(), target);
        // Of a socket it does not say why.
        let theirs: Vec<_> = theirs
            .iter()
            .map(|line| {
                line.replace(
                    "connect failed: open failed",
                    "connect failed: No such file or directory",
                )
            })
            .collect();
        assert!(theirs.concat().contains(reason), "{theirs:?}");
        for (way, ssh) in both.ours() {
            assert_eq!(forwarded(ssh, target), theirs, "{way} -L {target}");
        }
    }
    for (target, reason) in [
        ("127.0.0.1:1", refused),
        ("no-such-name.example.org:80", "failure in name resolution"),
    ] {
        let one_way = |ssh: Run| {
            let run = ssh.args(["-W", target]).finish();
            (run.code(), told(&run, target))
        };
        let theirs = one_way(both.theirs());
        assert!(theirs.1.concat().contains(reason), "{theirs:?}");
        for (way, ssh) in both.ours() {
            assert_eq!(one_way(ssh), theirs, "{way} -W {target}");
        }
    }
}

#[test]
fn a_terminal_has_the_modes_and_the_size_of_the_client_s_as_with_sshd() {
    let both = Both::new();
    for modes in [
        "rows 41 cols 101",
        "intr ^X erase ^H susp undef -ixon ixoff",
        "iutf8 -echoctl -echoe -onlcr",
        "-iutf8 raw -echo",
    ] {
        // On a terminal of this machine, whose modes the client sends.
        let on_a_terminal = |ssh: Run| {
            let ssh = ssh.args(["-tt", "-o", "LogLevel=ERROR", "stty -a"]);
            let script = format!("stty {modes}; {}", ssh.shell_line());
            let run = Run::new("sh").args(["-c", &script]);
            run.start_on_terminal(24, 80).finish().ok().text()
        };
        let theirs = on_a_terminal(both.theirs());
        assert!(theirs.contains("intr = "), "{theirs}");
        for (way, ssh) in both.ours() {
            assert_eq!(on_a_terminal(ssh), theirs, "{way} {modes}");
        }
    }
}

/// The variables of a session that begins at home.
fn variables(ssh: Run) -> BTreeMap<String, String> {
    let ssh = ssh.args(["-o", "LogLevel=ERROR", "cd; unset OLDPWD; env -0"]);
    let run = ssh.ok();
    let text = run.text();
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A value without the addresses, ports and numbers of a connection.
fn shape(name: &str, value: &str) -> String {
    if !name.starts_with("SSH_") {
        return value.to_owned();
    }
    let words = value.split(' ').map(|word| {
        let is_address = word.parse::<std::net::IpAddr>().is_ok();
        match word.strip_prefix("/dev/pts/") {
            _ if is_address => "ADDRESS",
            Some(number) if number.parse::<u32>().is_ok() => "/dev/pts/N",
            None if word.parse::<u16>().is_ok() => "PORT",
            _ => word,
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_session_has_the_variables_that_sshd_sets_and_those_of_its_workspace() {
    let both = Both::new();
    for options in [&[][..], &["-tt"], &["-tt", "-o", "SetEnv=TERM=vt220"]] {
        let theirs = variables(both.theirs().args(options));
        for name in [
            "HOME",
            "LOGNAME",
            "PATH",
            "PWD",
            "SHELL",
            "SSH_CLIENT",
            "USER",
        ] {
            assert!(theirs.contains_key(name), "{name}: {theirs:?}");
        }
        for (way, ssh) in both.ours() {
            let ours = variables(ssh.args(options));
            for (name, value) in &theirs {
                // Nobody gets mail in there.
                let expected = (name != "MAIL").then(|| shape(name, value));
                let found = ours.get(name).map(|value| shape(name, value));
                assert_eq!(found, expected, "{way} {options:?} {name}");
            }
            let more = ours.keys().filter(|name| !theirs.contains_key(*name));
            assert!(more.eq(["VENDETTA_WORKSPACE"]), "{way} {ours:?} {theirs:?}");
        }
    }
}
