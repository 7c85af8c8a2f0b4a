//! Start, stop, reaping, host certificates.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use vendetta_sshio::keys::{PrivateKey, certify_host};

use crate::fixture::{Agent, Environment, finish, first_line, is_root, lives, wait_until};

#[test]
fn the_socket_is_open_to_all_within_its_directory_and_gone_after_a_stop() {
    let mut agent = Agent::start();
    let socket = agent.path("agent.sock");
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o666
    );
    agent.terminate();
    assert!(agent.process.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn a_tcp_port_serves_as_well_as_a_socket() {
    let mut agent = Agent::configured(|config| config.listen = "tcp:127.0.0.1:0".into());
    let log = agent.log();
    let port = log.split("listen=tcp:127.0.0.1:").nth(1).unwrap();
    let port = port.split_whitespace().next().unwrap();
    let address = ["HostName=127.0.0.1", "HostKeyAlias=ws", "ProxyCommand=none"];
    let options = address.iter().flat_map(|option| ["-o", option]);
    let output = (agent.ssh().args(options).args(["-p", port, "ws"]))
        .arg("echo $FROM_WORKSPACE")
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"yes\n", "{output:?}");
    agent.terminate();
    assert!(agent.process.wait().unwrap().success());
    assert!(std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_err());
}

#[test]
fn an_address_that_is_none_is_refused() {
    let agent = Agent::start();
    let config = std::fs::read_to_string(agent.path("agent.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["listen"] = "tcp:nowhere".into();
    std::fs::write(agent.path("bad.json"), config.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vendetta-agent"))
        .args(["serve", "--config"])
        .arg(agent.path("bad.json"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("listen is not usable"), "{said}");
}

#[test]
fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
    let mut agent = Agent::start();
    let second = Command::new(env!("CARGO_BIN_EXE_vendetta-agent"))
        .args(["serve", "--config"])
        .arg(agent.path("agent.json"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent serves it"));
    assert_eq!(agent.text("echo alive"), "alive\n");

    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    assert!(agent.path("agent.sock").exists());
    let third = Command::new(env!("CARGO_BIN_EXE_vendetta-agent"))
        .args(["serve", "--config"])
        .arg(agent.path("agent.json"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    agent.process = third;
    wait_until("the new agent answers", || {
        agent.run("true").status.success()
    });
}

#[test]
fn a_stop_tells_sessions_and_ends_all_processes() {
    let mut agent = Agent::start();
    let command = "trap '' TERM HUP; setsid sleep 300 >/dev/null 2>&1 </dev/null & echo $! $$; while :; do sleep 1; done";
    let mut client = agent
        .ssh()
        .args(["ws", command])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let line = first_line(&mut client);
    let (daemon, shell) = line.split_once(' ').unwrap();
    agent.terminate();
    assert!(agent.process.wait().unwrap().success());
    wait_until("all processes are gone", || !lives(daemon) && !lives(shell));
    finish(&mut client);
    let mut errors = String::new();
    std::io::Read::read_to_string(client.stderr.as_mut().unwrap(), &mut errors).unwrap();
    assert!(errors.contains("workspace demo is stopping"), "{errors}");
}

#[test]
fn a_stop_asks_each_process_once_and_waits_for_it() {
    let mut agent = Agent::start();
    let count = agent.path("count");
    let command = format!(
        "trap 'echo asked >>{0}; for i in 1 2 3 4 5 6; do sleep 0.1; done; echo ended >>{0}; exit' TERM; trap '' HUP; echo ready; while :; do sleep 0.1; done",
        count.display()
    );
    let mut client = agent
        .ssh()
        .args(["ws", &command])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(first_line(&mut client), "ready");
    agent.terminate();
    assert!(agent.process.wait().unwrap().success());
    finish(&mut client);
    assert_eq!(std::fs::read_to_string(count).unwrap(), "asked\nended\n");
}

#[test]
fn as_pid_1_it_reaps_orphans_and_keeps_its_own_statuses() {
    if !is_root() {
        return;
    }
    let prepare = "test \"$VENDETTA_TEST_PID_1\" = yes || exec env VENDETTA_TEST_PID_1=yes unshare --pid --fork --mount-proc --kill-child sh -c 'exec \"$0\" \"$@\"' \"$0\" \"$@\"";
    let mut agent = Agent::start_with(
        Environment {
            prepare: Some(prepare),
        },
        |_| {},
    );
    assert_eq!(agent.text("cat /proc/1/comm"), "vendetta-agent\n");
    let orphans = "for i in $(seq 20); do (setsid sh -c 'sleep 0.1; exit 3' >/dev/null 2>&1 </dev/null &); done";
    for status in 0..10 {
        let output = agent.run(&format!("{orphans}; exit {status}"));
        assert_eq!(output.status.code(), Some(status));
    }
    wait_until("no zombie is left", || {
        agent
            .text("cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true")
            .trim()
            == "0"
    });
    agent.run("kill -TERM 1");
    assert!(agent.process.wait().unwrap().success());
}

#[test]
fn the_host_key_can_be_certified() {
    let authority = PrivateKey::generate_ed25519("ca").unwrap();
    let agent = Agent::configured(|config| {
        let key = PrivateKey::from_openssh(&config.host_key).unwrap();
        let principals = ["ws".to_owned()];
        config.host_certificate =
            Some(certify_host(&authority, &key.public(), &principals, "demo").unwrap());
    });
    std::fs::write(
        agent.path("known_hosts"),
        format!("@cert-authority ws {}\n", authority.public()),
    )
    .unwrap();
    assert_eq!(agent.text("echo certified"), "certified\n");
}

#[test]
fn bad_configurations_are_refused_with_their_reason() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.json");
    let refused = |content: &str, reason: &str| {
        std::fs::write(&file, content).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_vendetta-agent"))
            .args(["serve", "--config"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(reason), "{reason} in {text}");
    };
    refused("{", "is not an agent configuration");
    refused(r#"{"version":1,"unknown":2}"#, "unknown field");
    refused(
        r#"{"version":9,"workspace":"w","host_key":"","gateway_keys":[],"listen":"/x"}"#,
        "has version 9",
    );
    refused(
        r#"{"version":2,"workspace":"w","host_key":"nonsense","gateway_keys":[],"listen":"/x"}"#,
        "host_key is not usable",
    );
    std::fs::remove_file(&file).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vendetta-agent"))
        .arg("serve")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
