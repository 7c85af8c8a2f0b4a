//! The gateway as a program: its first start, its files, its end.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use vendetta_tests::{Gateway, PATIENCE, Run, eventually};

fn serve() -> Run {
    Run::new(Gateway::binary("vendetta")).arg("serve")
}

/// Everything below `dir`, with its permission bits.
fn modes(dir: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        let metadata = fs::symlink_metadata(&path).expect("its metadata");
        found.push((
            path.display().to_string(),
            metadata.permissions().mode() & 0o777,
        ));
        if metadata.is_dir() {
            found.extend(modes(&path));
        }
    }
    found
}

#[test]
fn the_first_start_makes_keys_and_state_that_only_its_user_can_read() {
    let gateway = Gateway::builder().start();
    let state = gateway.state_dir();
    let mode = fs::metadata(&state)
        .expect("a state directory")
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o700);
    let modes = modes(&state);
    assert!(modes.len() >= 5, "keys and a database: {modes:?}");
    for (path, mode) in &modes {
        let secret =
            ["key", "ca", ".db"].iter().any(|part| path.contains(part)) && !path.ends_with(".pub");
        assert!(!secret || mode & 0o077 == 0, "{path} has mode {mode:o}");
    }
}

#[test]
fn a_restart_keeps_host_key_users_and_workspaces() {
    let mut gateway = Gateway::builder().host().start();
    gateway.member("alice");
    gateway.create("box", "provider: host\n");
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    gateway.start();
    // The client's known_hosts is as it was: another key would be refused.
    assert_eq!(gateway.workspaces(), ["box"]);
    let users = gateway.control("user list --json").ok().json();
    assert_eq!(users["users"].as_array().map(Vec::len), Some(2), "{users}");
}

#[test]
fn without_admin_key_the_operator_s_own_public_keys_are_the_first_admin() {
    let home = tempfile::tempdir().expect("a home");
    let run = || {
        serve()
            .env("HOME", home.path())
            .args(["--listen", "127.0.0.1:0", "--state-dir"])
    };
    let failed = run().arg(home.path().join("state")).finish();
    let failed = failed.exits(2);
    assert!(failed.error_text().contains("--admin-key"), "{failed}");

    fs::create_dir(home.path().join(".ssh")).expect("a folder");
    let key = home.path().join(".ssh/id_ed25519");
    Run::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .ok();
    let private = run().arg(home.path().join("state"));
    let private = private.arg("--admin-key").arg(&key).finish().exits(2);
    for words in ["private key", "id_ed25519.pub"] {
        assert!(private.error_text().contains(words), "{private}");
    }
    let mut running = run().arg(home.path().join("state")).start();
    let log = running.expect_stderr(0, "listening");
    let line = running.expect_stderr(log, "\n");
    let text = String::from_utf8_lossy(&running.stderr()[..line]).into_owned();
    let digits = text.split("127.0.0.1:").last().expect("an address");
    let port: String = digits.chars().take_while(char::is_ascii_digit).collect();
    let ssh = Run::new("ssh").args([
        "-F",
        "none",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ]);
    let ssh = ssh
        .args([
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "IdentityAgent=none",
            "-o",
            "BatchMode=yes",
            "-i",
        ])
        .arg(&key);
    let me = ssh
        .args(["-p", &port, "vendetta@127.0.0.1", "whoami --json"])
        .ok();
    assert_eq!(me.json()["role"], "admin");
    running.signal(Signal::SIGTERM);
    let _ = running.finish().ok();
}

#[test]
fn sigterm_lets_sessions_end_and_accepts_nobody_new() {
    let mut gateway = Gateway::builder().host().start();
    gateway.create("box", "provider: host\n");
    gateway.control("workspace up box").ok();
    let mut session = gateway.exec("box", "echo up; cat; echo done").spawn();
    session.expect_stdout(0, "up\n");
    gateway.signal(Signal::SIGTERM);
    eventually("nobody is accepted any more", || {
        TcpStream::connect(gateway.address()).is_err()
    });
    session.send("still served\n");
    session.expect_stdout(0, "still served\n");
    assert!(gateway.runs(), "the gateway must wait for its session");
    assert_eq!(session.finish().ok().text(), "up\nstill served\ndone");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_second_sigterm_stops_at_once() {
    let mut gateway = Gateway::builder()
        .host()
        .config("drain_seconds = 3600\n")
        .start();
    gateway.create("box", "provider: host\n");
    gateway.control("workspace up box").ok();
    let session = gateway.exec("box", "echo up; cat").spawn();
    session.expect_stdout(0, "up\n");
    gateway.signal(Signal::SIGTERM);
    eventually("nobody is accepted any more", || {
        TcpStream::connect(gateway.address()).is_err()
    });
    assert!(gateway.runs());
    gateway.signal(Signal::SIGTERM);
    let _ = gateway.wait();
    assert_ne!(session.finish().code(), 0);
}

#[test]
fn sessions_that_do_not_end_are_cut_off_when_the_time_is_over() {
    let mut gateway = Gateway::builder()
        .host()
        .config("drain_seconds = 1\n")
        .start();
    gateway.create("box", "provider: host\n");
    gateway.control("workspace up box").ok();
    let session = gateway.exec("box", "echo up; cat").spawn();
    session.expect_stdout(0, "up\n");
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert_ne!(session.finish().code(), 0);
}

#[test]
fn what_is_wrong_with_its_own_settings_is_told_before_anything_is_made() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("vendetta.toml");
    let state = dir.path().join("state");
    let run = |toml: &str| {
        fs::write(&config, toml).expect("a configuration");
        let run = serve()
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(&state)
            .finish();
        assert!(!state.exists(), "a state directory was made: {run}");
        run
    };
    let wrong = run("[limits]\nconections = 5\n").exits(2);
    for told in ["vendetta.toml", "2", "conections", "connections"] {
        assert!(
            wrong.error_text().contains(told),
            "{told} is not told: {wrong}"
        );
    }
    assert!(
        run("listen = \"nowhere\"\n")
            .exits(2)
            .error_text()
            .contains("listen")
    );
    assert!(
        run("[log\n")
            .exits(2)
            .error_text()
            .contains("vendetta.toml")
    );
    serve().args(["--listen", "nowhere"]).finish().exits(2);
    serve().arg("--no-such-flag").finish().exits(2);
    serve()
        .args(["--config", "/no/such/file"])
        .finish()
        .exits(2);
}

#[test]
fn a_port_in_use_and_a_state_directory_in_use_are_told_as_such() {
    let gateway = Gateway::builder().start();
    let other = gateway.scratch().join("other");
    let key = gateway.admin().home().join("id_ed25519.pub");
    let serve = || serve().arg("--admin-key").arg(&key);
    let address = gateway.address().to_string();
    let run = serve()
        .args(["--listen", &address, "--state-dir"])
        .arg(&other)
        .finish();
    let run = run.exits(4);
    for words in [&address, "--listen", "ss -ltnp"] {
        assert!(run.error_text().contains(words), "{run}");
    }
    let run = serve()
        .args(["--listen", "127.0.0.1:0", "--state-dir"])
        .arg(gateway.state_dir())
        .finish();
    let run = run.exits(4);
    assert!(run.error_text().contains("another gateway"), "{run}");
    let run = serve()
        .args(["--listen", "192.0.2.1:0", "--state-dir"])
        .arg(&other)
        .finish()
        .exits(2);
    assert!(run.error_text().contains("--listen"), "{run}");
}

#[test]
fn garbage_and_silence_before_login_hurt_nobody() {
    let gateway = Gateway::builder()
        .config("[limits]\nlogin_grace_seconds = 10\n")
        .start();
    let connect = || TcpStream::connect(gateway.address()).expect("connecting");
    let silent: Vec<TcpStream> = (0..50).map(|_| connect()).collect();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        b"SSH-2.0-x\r\n\xff\xff\xff\xff\xff\xff\xff\xff",
        b"SSH-2.0-x\r\n\x00\x00\x00\x01\x00",
        b"SSH-1.5-old\r\n",
        &[b'x'; 100_000],
    ] {
        let mut stream = connect();
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time limit");
        // The gateway may have closed before all is written, or read.
        let _ = stream.write_all(garbage);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    gateway.control("whoami").ok();
    for mut stream in silent {
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time limit");
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        let cut = ended
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(
            ended.is_ok() || cut,
            "the login grace time did not end a silent connection: {ended:?}"
        );
    }
    gateway.control("whoami").ok();
}

#[test]
fn more_connections_than_allowed_are_refused_and_the_others_served() {
    let gateway = Gateway::builder()
        .config("[limits]\nunauthenticated = 5\nlogin_grace_seconds = 5\n")
        .start();
    let mut held: Vec<TcpStream> = (0..50)
        .filter_map(|_| TcpStream::connect(gateway.address()).ok())
        .collect();
    // What is refused is closed without a word.
    eventually("most are refused", || {
        held.retain_mut(|stream| {
            let limit = Some(Duration::from_millis(1));
            stream.set_read_timeout(limit).expect("a limit");
            let heard = stream.read(&mut [0; 64]);
            !matches!(heard, Ok(0))
                && !heard.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
        });
        held.len() <= 5
    });
    let before = gateway.process().descriptors();
    assert!(
        before < 50,
        "{before} descriptors for 50 connections of which 5 are allowed"
    );
    drop(held);
    eventually("somebody can log in again", || {
        gateway.control("whoami").finish().code() == 0
    });
}

#[test]
fn a_log_in_json_is_a_value_a_line() {
    let gateway = Gateway::builder()
        .host()
        .config("[log]\nformat = \"json\"\n")
        .start();
    gateway.create("box", "provider: host\n");
    gateway.exec("box", "true").ok();
    let log = gateway.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    for field in ["timestamp", "level", "target"] {
        assert!(lines.iter().all(|line| line[field].is_string()), "{log}");
    }
    let has = |field: &str, value: &str| lines.iter().any(|line| line["fields"][field] == value);
    assert!(has("workspace", "box") && has("user", "admin"), "{log}");
}
