//! What OpenSSH's client sees of a session is what it sees of a real sshd in the same
//! container: the same scripts against both.

use std::fs;

use vendetta_tests::{Finished, Gateway, Run, eventually};

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

    fn ours(&self) -> Run {
        self.gateway
            .admin()
            .tool("ssh")
            .args(["-o", "LogLevel=ERROR"])
    }

    /// Options for sshd, through a pipe into the container.
    fn theirs(&self) -> Run {
        let admin = self.gateway.admin();
        let proxy = format!(
            "ProxyCommand={} -W 127.0.0.1:2022 ws@gateway",
            admin.ssh_command()
        );
        let known = admin.home().join("sshd_known_hosts");
        let known = format!("UserKnownHostsFile={}", known.display());
        admin
            .tool("ssh")
            .args(["-o", "LogLevel=ERROR", "-o", &proxy, "-o", &known])
            .args(["-o", "HostKeyAlias=sshd", "-l", "root", "gateway"])
    }
}

/// Asks one question of `ssh`.
fn ask(ssh: Run, case: &Case) -> Finished {
    let run = ssh.args(case.options);
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

const CASES: [Case; 26] = [
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
    case(&["-W", "127.0.0.1:1"], ""),
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
    let jumper = Jumper::new(both.gateway.admin());
    let mut differ = Vec::new();
    let scripted = [Case {
        options: &["-T"],
        command: "",
        input: b"echo a script; cd; pwd; exit 4\n",
    }];
    for case in CASES.iter().chain(&scripted) {
        let theirs = seen(&ask(both.theirs(), case));
        let jump = jumper.tool("ssh").args(["-o", "LogLevel=ERROR"]);
        let ways = [
            ("relayed", both.ours().args(["-l", "ws", "gateway"])),
            ("end to end", jump.args(["-l", "root", "ws.vendetta"])),
        ];
        for (way, ssh) in ways {
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

/// Names of the variables of a session.
fn variables(run: Run) -> Vec<String> {
    let text = run
        .arg("env -0 | cut -z -d= -f1 | sort -z | tr '\\0' '\\n'")
        .ok()
        .text();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_session_has_the_variables_that_sshd_sets_and_those_of_its_workspace() {
    let both = Both::new();
    for options in [&[][..], &["-tt"]] {
        let ours = variables(both.ours().args(["-l", "ws", "gateway"]).args(options));
        let theirs = variables(both.theirs().args(options));
        let lacking = theirs.iter().filter(|name| !ours.contains(name));
        // Nobody gets mail in there.
        assert!(lacking.eq(["MAIL"]), "{ours:?} {theirs:?}");
        let more = ours.iter().filter(|name| !theirs.contains(name));
        // The engine's, and the workspace's own.
        assert!(
            more.eq(["HOSTNAME", "VENDETTA_WORKSPACE"]),
            "{ours:?} {theirs:?}"
        );
    }
}
