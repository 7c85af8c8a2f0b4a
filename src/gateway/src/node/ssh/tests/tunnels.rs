use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};

use crate::node::testing::{Account, Sshd};
use crate::node::{ByteStream, Command, NodeError, NodeTransport, Refusal};

/// Serves connections that get back what they send, and then the end.
fn echo(listener: UnixListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
}

async fn echoes(stream: Box<dyn ByteStream>, length: usize) {
    let data: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    read.read_to_end(&mut got).await.unwrap();
    sender.await.unwrap();
    assert!(got == data);
}

#[tokio::test]
async fn streams_to_a_socket_and_a_port_carry_bytes_both_ways_to_their_end() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let path = sshd.dir().join("echo.sock");
    echo(UnixListener::bind(&path).unwrap());
    for length in [0, 1, 5_000_000] {
        echoes(node.open_unix(&path).await.unwrap(), length).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
    });
    let mut said = String::new();
    let mut stream = node.open_tcp("localhost", port).await.unwrap();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello");
}

#[tokio::test]
async fn many_streams_are_open_at_once_whatever_max_sessions_says() {
    let sshd = Sshd::start("MaxSessions 1");
    let node = sshd.node("n1");
    let path = sshd.dir().join("echo.sock");
    echo(UnixListener::bind(&path).unwrap());
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(node.open_unix(&path).await.unwrap());
    }
    for stream in streams {
        echoes(stream, 1000).await;
    }
    let connections = sshd.log().matches("Accepted publickey").count();
    assert_eq!(connections, 1);
}

#[tokio::test]
async fn a_socket_that_cannot_be_opened_says_why_as_on_the_own_machine() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let at = |name: &str| sshd.dir().join(name);
    drop(UnixListener::bind(at("stale.sock")).unwrap());
    std::fs::write(at("plain"), "").unwrap();
    std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
    for (name, kind) in [
        ("absent.sock", ErrorKind::NotFound),
        ("dangling", ErrorKind::NotFound),
        ("stale.sock", ErrorKind::ConnectionRefused),
        ("plain", ErrorKind::ConnectionRefused),
    ] {
        let error = node.open_unix(&at(name)).await.err().unwrap();
        assert_eq!(error.io_kind(), Some(kind), "{error}");
    }
    let long = at(&"x".repeat(120));
    let error = node.open_unix(&long).await.err().unwrap();
    assert!(matches!(error, NodeError::SocketPath { max: 107, .. }));
}

#[tokio::test]
async fn a_socket_of_somebody_else_is_told_as_a_lack_of_permission() {
    let sshd = Sshd::start("");
    if sshd.user != "root" {
        return;
    }
    let node = sshd.node_as("n1", "nobody");
    let path = sshd.dir().join("engine.sock");
    let _engine = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = node.open_unix(&path).await.err().unwrap();
    // nobody's login shell lets it run nothing, so the cause cannot be asked for.
    assert!(matches!(error, NodeError::Refused { .. }), "{error}");
    let private = Path::new("/root/x.sock");
    assert!(node.open_unix(private).await.is_err());
}

#[tokio::test]
async fn a_user_who_has_joined_the_socket_s_group_needs_no_new_connection_of_ours() {
    let Some(account) = Account::new() else {
        return;
    };
    let mut sshd = account.sshd("");
    let path = sshd.dir().join("engine.sock");
    echo(UnixListener::bind(&path).unwrap());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
    std::os::unix::fs::chown(&path, None, Some(61_300)).unwrap();
    let lines = format!("{}\n", sshd.key.public());
    let file = account.authorized_keys();
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, lines).unwrap();
    sshd.user = Account::NAME.to_owned();
    let node = sshd.node("n1");
    let other = sshd.dir().join("other.sock");
    echo(UnixListener::bind(&other).unwrap());
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o666)).unwrap();
    let lasting = node.open_unix(&other).await.unwrap();

    let error = node.open_unix(&path).await.err().unwrap();
    assert_eq!(
        error.io_kind(),
        Some(ErrorKind::PermissionDenied),
        "{error}"
    );
    account.join("engine", 61_300);
    tokio::time::sleep(Duration::from_secs(16)).await;
    echoes(node.open_unix(&path).await.unwrap(), 100).await;
    // What was open stays open.
    echoes(lasting, 100).await;
    let run = node.exec(&Command::new(["id", "-Gn"])).await.unwrap();
    assert_eq!(run.stdout, b"newcomer engine\n");
}

#[tokio::test]
async fn ports_that_cannot_be_reached_say_why() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let error = node.open_tcp("127.0.0.1", port).await.err().unwrap();
    assert_eq!(
        error.io_kind(),
        Some(ErrorKind::ConnectionRefused),
        "{error}"
    );
    let error = node
        .open_tcp("no-such-host.invalid", 1)
        .await
        .err()
        .unwrap();
    assert!(error.io_kind().is_some(), "{error}");
}

fn directive(error: &NodeError) -> &'static str {
    match error {
        NodeError::Refused { refusal, .. } => refusal.directive(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_sshd_that_forbids_something_is_told_with_the_line_that_allows_it() {
    for (config, unix, tcp) in [
        ("AllowStreamLocalForwarding no", true, false),
        ("AllowStreamLocalForwarding remote", true, false),
        ("AllowTcpForwarding no", true, true),
        ("PermitOpen 127.0.0.1:9", true, true),
        ("DisableForwarding yes", true, true),
    ] {
        let sshd = Sshd::start(config);
        let node = sshd.node("n1");
        let path = sshd.dir().join("echo.sock");
        echo(UnixListener::bind(&path).unwrap());
        match node.open_unix(&path).await {
            Ok(stream) => {
                assert!(!unix, "{config}");
                echoes(stream, 10).await;
            }
            Err(error) => {
                assert!(unix, "{config}: {error}");
                assert_eq!(directive(&error), "AllowStreamLocalForwarding");
                let remedy = error.remedy().unwrap();
                assert!(
                    remedy.contains("AllowStreamLocalForwarding yes"),
                    "{remedy}"
                );
                assert!(remedy.contains("DisableForwarding"), "{remedy}");
            }
        }
        // An absent socket is absent all the same.
        let absent = node.open_unix(&sshd.dir().join("no.sock")).await;
        assert_eq!(absent.err().unwrap().io_kind(), Some(ErrorKind::NotFound));
        let opened = node.open_tcp("127.0.0.1", sshd.port).await;
        match opened {
            Ok(_) => assert!(!tcp, "{config}"),
            Err(error) => {
                assert!(tcp, "{config}: {error}");
                assert_eq!(directive(&error), "AllowTcpForwarding");
                assert!(error.remedy().unwrap().contains("PermitOpen"));
            }
        }
        let run = node.exec(&Command::new(["true"])).await.unwrap();
        assert_eq!(run.status, Some(0));
    }
}

#[tokio::test]
async fn a_restricted_key_is_told_too() {
    let sshd = Sshd::start("");
    let line = format!("restrict {} test\n", sshd.key.public());
    std::fs::write(sshd.authorized_keys(), line).unwrap();
    let node = sshd.node("n1");
    let path = sshd.dir().join("echo.sock");
    echo(UnixListener::bind(&path).unwrap());
    let error = node.open_unix(&path).await.err().unwrap();
    assert!(matches!(
        &error,
        NodeError::Refused {
            refusal: Refusal::StreamLocal,
            ..
        }
    ));
    assert!(error.remedy().unwrap().contains("restrict"));
}
