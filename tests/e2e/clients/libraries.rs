//! Libraries of Python and of Node.js, each by a script of `tests/fixtures/clients`, with
//! the jump that the library has.

use std::path::Path;

use vendetta_tests::clients;

use super::fixture;
use super::lab::{ECHO, Visit};

/// Runs a script, which is told the way, the gateway's port, the key, what is known of
/// hosts, and the port of the echo server.
fn script(visit: &Visit<'_>, interpreter: impl AsRef<Path>, script: &str) {
    let run = visit.run(interpreter);
    let run = run
        .env("NODE_PATH", clients().join("node_modules"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TMPDIR", visit.here(""))
        .arg(fixture(script))
        .args([&visit.way.to_string(), &visit.port()]);
    run.arg(visit.key()).arg(visit.known_hosts()).arg(ECHO).ok();
}

fn python(visit: &Visit<'_>, name: &str) {
    script(visit, clients().join("venv/bin/python"), name);
}

pub(super) fn paramiko(visit: &Visit<'_>) {
    python(visit, "use_paramiko.py");
}

pub(super) fn asyncssh(visit: &Visit<'_>) {
    python(visit, "use_asyncssh.py");
}

pub(super) fn fabric(visit: &Visit<'_>) {
    python(visit, "use_fabric.py");
}

pub(super) fn ssh2_of_node(visit: &Visit<'_>) {
    script(visit, "node", "use_ssh2.js");
}

pub(super) fn ssh2_sftp_client_of_node(visit: &Visit<'_>) {
    script(visit, "node", "use_ssh2_sftp_client.js");
}
