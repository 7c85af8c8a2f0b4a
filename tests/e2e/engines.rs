//! One project on every engine: the same config and the same commands, and nothing that
//! its user sees tells which engine it is.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use serde_json::Value;
use vendetta_tests::{
    Agent, BOOT, BUSYBOX, Finished, Gateway, Lxc, MachineImage, Node, PATIENCE, Run, eventually,
    free_port, random_bytes,
};

/// A project whose services need no more than busybox.
const PROJECT: &str = "
env: {WORD: hello}
services:
  web:
    command: exec busybox httpd -f -p 127.0.0.1:8000 -h www
    port: 8000
    health_check: /index.html
    depends_on: [beat]
  beat: {command: \"while :; do echo beat $WORD; sleep 1; done\"}
hooks:
  create: mkdir -p www && echo made $WORD >www/index.html
  up: echo up >>www/log
  down: echo down >>www/log
";

/// What its user asks for, in a session.
const QUESTIONS: &str =
    "hostname; pwd; id -un; echo $WORD $VENDETTA_SERVICE_WEB_PORT; cat www/log; cat; exit 3";

/// An answer to HTTP.
fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("connecting");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream
        .write_all(b"GET /index.html HTTP/1.0\r\n\r\n")
        .expect("asking");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn services(gateway: &Gateway) -> Value {
    let listed = gateway.control("workspace services my-project --json");
    listed.ok().json()["services"].clone()
}

/// A command that an emulated machine boots or shuts down in.
fn slow(gateway: &Gateway, command: &str) -> Finished {
    let line = format!("workspace {command} my-project");
    gateway.control(&line).limit(2 * BOOT).ok()
}

/// From `node add` to `destroy`. `engine` is the part of the config that says where it runs;
/// `left` is what is there of it when all should be gone.
fn a_day(node: &Node, engine: &str, left: &dyn Fn() -> String) {
    let mut gateway = Gateway::builder().operator_key(node.user_key()).start();
    let line = format!("node add node1 {} --user dev", node.address());
    gateway.control(&line).ok();
    let create = "workspace create my-project --remote node1 --config -";
    let config = format!("{engine}{PROJECT}");
    gateway.control(create).stdin(config).ok();
    let up = slow(&gateway, "up");
    assert!(up.text().contains("services ready"), "{up}");

    let asked = || gateway.exec("my-project", QUESTIONS).stdin("input");
    let said = asked().finish().exits(3).text();
    let expected = |log: &str| format!("my-project\n/workspace\nroot\nhello 8000\n{log}\ninput");
    assert_eq!(said, expected("up"));
    reached_from_everywhere(&gateway);
    files(&gateway);

    // The gateway's end is nobody else's.
    let before = services(&gateway);
    gateway.kill();
    gateway.start();
    eventually("its services are known again", || {
        let listed = gateway.control("workspace services my-project --json");
        listed.finish().status.success()
    });
    assert_eq!(services(&gateway), before);

    slow(&gateway, "down");
    let refused = gateway.exec("my-project", "true").finish();
    assert!(
        refused.error_text().contains("workspace up my-project"),
        "{refused}"
    );
    slow(&gateway, "up");
    let asked = || gateway.exec("my-project", QUESTIONS).stdin("input");
    let said = asked().finish().exits(3).text();
    assert_eq!(said, expected("up\ndown\nup"));
    gateway.exec("my-project", "echo lost >/root/file").ok();
    slow(&gateway, "rebuild");
    let kept = gateway.exec(
        "my-project",
        "cat www/index.html copy | wc -c; test -e /root/file",
    );
    assert_eq!(kept.finish().exits(1).text(), (11 + (1 << 20)).to_string());

    slow(&gateway, "destroy --yes");
    assert_eq!(left(), "");
    gateway
        .control("workspace status my-project")
        .finish()
        .exits(3);
}

/// A service from the gateway's machine, from the user's, and what it wrote.
fn reached_from_everywhere(gateway: &Gateway) {
    let states = services(gateway);
    let states = states.as_array().expect("services");
    assert!(
        states.iter().all(|service| service["state"] == "healthy"),
        "{states:?}"
    );
    let log = gateway.control("workspace logs my-project beat --tail 1");
    assert!(log.ok().text().ends_with("beat hello"));

    let ports = gateway.control("workspace ports my-project --json").ok();
    let port = ports.json()["mapped"][0]["host_port"].as_u64();
    let port = u16::try_from(port.expect("a port")).expect("a port");
    let answer = get(SocketAddr::new(gateway.ports_address(), port));
    assert!(answer.ends_with("made hello\n"), "{answer}");

    let local = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), free_port());
    let agent = Agent::with(&[gateway.admin().home().join("id_ed25519")]);
    let agent_option = format!("IdentityAgent={}", agent.socket().display());
    let tunnel = gateway.ssh("my-project").args([
        "-A",
        "-o",
        &agent_option,
        "-o",
        "ExitOnForwardFailure=yes",
        "-L",
        &format!("{local}:web:8000"),
    ]);
    // What a session leaves in the background, with its agent at hand.
    let there = "test -S \"$SSH_AUTH_SOCK\" && busybox httpd -p 9000 && echo ready; cat";
    let tunnel = tunnel.arg(there).spawn();
    tunnel.expect_stdout(0, "ready");
    let answer = get(local);
    assert!(answer.ends_with("made hello\n"), "{answer}");
    eventually("its port is found", || {
        let ports = gateway.control("workspace ports my-project --json").ok();
        ports.json()["discovered"].to_string().contains("9000")
    });
    let _ = tunnel.finish();
}

/// A file by scp, there and back.
fn files(gateway: &Gateway) {
    let content = random_bytes(1, 1 << 20);
    let (there, back) = (
        gateway.scratch().join("there"),
        gateway.scratch().join("back"),
    );
    fs::write(&there, &content).expect("a file");
    let scp =
        |from: &str, to: &str| -> Run { gateway.admin().tool("scp").arg("-q").args([from, to]) };
    let (there, copy) = (there.display().to_string(), back.display().to_string());
    scp(&there, "my-project@gateway:copy").ok();
    scp("my-project@gateway:copy", &copy).ok();
    assert!(fs::read(&back).expect("a copy") == content);
}

#[test]
fn a_day_in_a_container_of_docker() {
    let node = Node::with_docker();
    let engine = format!("provider: docker\ndocker: {{image: \"{BUSYBOX}\"}}");
    let left = || {
        let containers = node.docker(&["ps", "--all", "--quiet"]).ok().text();
        containers + &node.docker(&["volume", "ls", "--quiet"]).ok().text()
    };
    a_day(&node, &engine, &left);
}

fn a_day_in_a_system_container(engine: Lxc) {
    let node = Node::builder().lxc(engine).start();
    let left = || {
        let instances = node.lxc(&["list", "--format=csv"]).ok().text();
        let volumes = "storage volume list default type=custom --format=csv";
        let volumes: Vec<&str> = volumes.split(' ').collect();
        instances + &node.lxc(&volumes).ok().text()
    };
    a_day(&node, "provider: lxc\nlxc: {image: busybox}", &left);
}

#[test]
fn a_day_in_a_container_of_incus() {
    a_day_in_a_system_container(Lxc::Incus);
}

#[test]
fn a_day_in_a_container_of_lxd() {
    a_day_in_a_system_container(Lxc::Lxd);
}

#[test]
fn a_day_in_a_machine_of_qemu() {
    let node = Node::start();
    let image = "/var/lib/vendetta/images/small.qcow2";
    let copy = format!("mkdir -p /var/lib/vendetta/images && cat >{image}");
    let file = fs::File::open(MachineImage::Small.path()).expect("the image");
    node.sh(&copy).stdin_file(file).ok();
    let engine =
        format!("provider: qemu\nqemu: {{image: {image}, cpu: 1, memory: 256M, accel: tcg}}");
    let left = || {
        let there = "pgrep -l qemu-system; ls /home/dev/.local/state/vendetta*/w /home/dev/.vendetta/w 2>/dev/null";
        node.sh(there).finish().text()
    };
    a_day(&node, &engine, &left);
}
