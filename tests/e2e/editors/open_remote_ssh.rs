//! open-remote-ssh, which VS Code's kin come with: ssh2 of Node.js instead of OpenSSH. It
//! reads OpenSSH's configuration itself, and jumps by opening a channel of one connection
//! as the transport of another.

use std::path::Path;

use vendetta_tests::{Gateway, Run, clients, eventually, free_port};

use crate::jump::Jumper;

/// Where the editor's server listens in the environment.
const SERVER: &str = "7100";

/// SHA-256 of the host key that is at `port`, as OpenSSH writes it.
fn fingerprint(port: u16) -> Option<String> {
    let port = port.to_string();
    let scan = Run::new("ssh-keyscan").args(["-T", "30", "-t", "ed25519", "-p", &port]);
    let line = scan.arg("127.0.0.1").finish().stdout;
    let listed = Run::new("ssh-keygen").args(["-l", "-f", "-"]).stdin(line);
    let listed = listed.finish();
    (listed.code() == 0)
        .then(|| listed.text())?
        .split(' ')
        .nth(1)
        .map(str::to_owned)
}

/// Does what `open_remote_ssh.js` does, told of the gateway's port, its key and the path to
/// take.
fn works(gateway: &Gateway, path: &[&str]) {
    gateway.echo_server("ws", &format!("tcp 127.0.0.1 {SERVER}"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/editors/open_remote_ssh.js");
    let port = gateway.address().port();
    let admin = gateway.admin();
    admin
        .program("node")
        .env("NODE_PATH", clients().join("node_modules"))
        .arg(script)
        .arg(port.to_string())
        .arg(admin.key())
        .arg(SERVER)
        .arg(fingerprint(port).expect("the gateway's key"))
        .args(path)
        .ok();
}

#[test]
fn open_remote_ssh_runs_its_script_and_reaches_its_server() {
    works(&Gateway::with_workspace(), &["ws"]);
}

#[test]
fn open_remote_ssh_does_the_same_end_to_end() {
    let gateway = Gateway::with_workspace();
    // Whoever has no `@cert-authority` pins the environment's own key.
    let local = free_port();
    let jumper = Jumper::new(gateway.admin());
    let tunnel = jumper
        .tool("ssh")
        .args(["-N", "-L", &format!("{local}:ws:22")]);
    let tunnel = tunnel.arg("vendetta").spawn();
    let mut key = None;
    eventually("the environment's key is seen", || {
        key = fingerprint(local);
        key.is_some()
    });
    drop(tunnel);
    works(&gateway, &["vendetta", "root", "ws", &key.expect("a key")]);
}
