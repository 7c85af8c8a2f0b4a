//! JetBrains Gateway: short commands, a backend that is uploaded and started, and a
//! forward to it, all over one connection. The backend is one of ours that echoes: the
//! protocol of theirs is its own business, and it speaks it through the forward alone.

use std::fs;
use std::ops::RangeFrom;

use vendetta_tests::{Gateway, Run, eventually, free_port};

use super::{LOGINS, Login, Way, connect, echoes};

/// Where a backend listens in the environment: the first of these that is free.
const BACKENDS: RangeFrom<u16> = 5990..;

fn uploads_starts_and_reaches_a_backend(
    gateway: &Gateway,
    way: &Way<'_>,
    login: &Login,
    port: u16,
) {
    let Login { user, home, shell } = login;
    let destination = way.destination(user);
    let control = gateway.scratch().join(format!("control-{user}"));
    let open = way.tool("ssh").args(["-M", "-N", "-S"]).arg(&control);
    let master = open.arg(&destination).spawn();
    let ssh = || way.tool("ssh").arg("-S").arg(&control).arg(&destination);
    let check = || ssh().args(["-O", "check"]).finish();
    eventually("the connection is there", || check().code() == 0);
    let exec = |command: &str| ssh().arg(command).ok().text();

    for n in 0..20 {
        let probe = exec(&format!("uname -sm; echo $SHELL {n}"));
        assert!(probe.ends_with(&format!("{shell} {n}")), "{probe}");
    }
    let backend = gateway.scratch().join("backend.py");
    fs::write(&backend, include_str!("../../fixtures/echo-server.py")).expect("a file");
    let dist = format!("{home}/.cache/JetBrains");
    let batch = format!(
        "-mkdir {home}/.cache\n-mkdir {dist}\nput {} {dist}/backend.part\n\
         rename {dist}/backend.part {dist}/backend.py\nchmod 700 {dist}/backend.py\n",
        backend.display()
    );
    let sftp = |batch: String| -> Run {
        let sftp = way
            .tool("sftp")
            .arg(format!("-oControlPath={}", control.display()));
        sftp.args(["-b", "-", &destination]).stdin(batch)
    };
    sftp(batch).ok();
    assert_eq!(exec(&format!("stat -c %a {dist}/backend.py")), "700");
    exec(&format!("python3 {dist}/backend.py tcp 127.0.0.1 {port}"));

    let local = free_port();
    let forward = format!("{local}:127.0.0.1:{port}");
    ssh().args(["-O", "forward", "-L", &forward]).ok();
    std::thread::scope(|scope| {
        for n in 0..16 {
            scope.spawn(move || echoes(connect(local), n));
        }
    });
    drop(master);
}

/// As each user in turn: the first one's backend stays where it is.
fn everybody_works(gateway: &Gateway, way: &Way<'_>) {
    for (login, port) in LOGINS.iter().zip(BACKENDS) {
        uploads_starts_and_reaches_a_backend(gateway, way, login, port);
    }
}

#[test]
fn jetbrains_gateway_uploads_starts_and_reaches_its_backend() {
    let gateway = Gateway::with_workspace();
    everybody_works(&gateway, &Way::Relayed(gateway.admin()));
}

#[test]
fn jetbrains_gateway_does_the_same_end_to_end() {
    let gateway = Gateway::with_workspace();
    everybody_works(&gateway, &Way::end_to_end(gateway.admin()));
}
