use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use vendetta_sshio::keys::PrivateKey;

use super::exec::processes_with;
use crate::node::ssh::LinkState;
use crate::node::testing::Sshd;
use crate::node::{Command, LinkError, NodeError, NodeTransport};

fn cause(error: &NodeError) -> &LinkError {
    match error {
        NodeError::Link { cause, .. } => cause,
        other => panic!("{other}"),
    }
}

async fn runs(node: &impl NodeTransport) -> Result<(), NodeError> {
    let output = node.exec(&Command::new(["true"])).await?;
    assert_eq!(output.status, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_connection_is_made_when_it_is_needed_and_then_kept() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let link = node.link();
    assert_eq!(*link.borrow(), LinkState::Idle);
    assert!(node.latency().await.unwrap() < Duration::from_secs(20));
    assert!(matches!(*link.borrow(), LinkState::Up { .. }));
    for _ in 0..5 {
        runs(&node).await.unwrap();
    }
    assert_eq!(sshd.log().matches("Accepted publickey").count(), 1);
    assert!(
        sshd.log()
            .contains("kex: client->server cipher: aes128-gcm")
    );
    // What goes through it keeps it.
    let (listener, mut stream) = silent_stream(&sshd, &node).await;
    drop(node);
    let (mut other, _) = listener.accept().await.unwrap();
    other.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    assert!(!sshd.log().contains("Closing connection to"));
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !sshd.log().contains("Closing connection to") && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = sshd.log();
    assert!(log.contains("Closing connection to"), "{log}");
}

#[tokio::test]
async fn another_host_key_is_refused_before_login_with_both_fingerprints() {
    let mut sshd = Sshd::start("");
    let node = sshd.node("n1");
    runs(&node).await.unwrap();
    let old = sshd.host_key.public().fingerprint();
    sshd.kill();
    sshd.set_host_key(PrivateKey::generate_ed25519("new").unwrap());
    let new = sshd.host_key.public().fingerprint();
    sshd.run();
    let begin = Instant::now();
    let error = runs(&node).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(8));
    let LinkError::HostKeyChanged { expected, got, .. } = cause(&error) else {
        panic!("{error}")
    };
    assert_eq!((expected, got), (&old, &new));
    let told = error.to_string();
    assert!(told.contains(&old) && told.contains(&new), "{told}");
    assert!(error.remedy().unwrap().contains("node add"));
    assert!(!sshd.log().contains("Postponed publickey") && !sshd.log().contains("Accepted"));
    // Asked again, it is told at once.
    let begin = Instant::now();
    runs(&node).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn of_several_host_keys_the_pinned_one_is_asked_for() {
    let sshd = Sshd::start("");
    let ecdsa = sshd.dir().join("ecdsa");
    let key = || PrivateKey::from_openssh(&std::fs::read_to_string(&ecdsa).ok()?).ok();
    // A key that the library does not read is not what this is about: another one then.
    while key().is_none() {
        let _ = std::fs::remove_file(&ecdsa);
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ecdsa", "-N", "", "-f"])
            .arg(&ecdsa)
            .status();
        assert!(made.unwrap().success());
    }
    let pinned = std::fs::read_to_string(sshd.dir().join("ecdsa.pub")).unwrap();
    let mut both = Sshd::start(&format!("HostKey {}", ecdsa.display()));
    runs(&both.node("n1")).await.unwrap();
    let own = std::mem::replace(
        &mut both.host_key,
        PrivateKey::from_openssh(&std::fs::read_to_string(&ecdsa).unwrap()).unwrap(),
    );
    assert_eq!(both.host_key.public(), pinned.parse().unwrap());
    assert_ne!(own.public(), both.host_key.public());
    runs(&both.node("n1")).await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_not_accepted_is_told_with_user_and_remedy() {
    let sshd = Sshd::start("");
    sshd.authorize(&[]);
    let node = sshd.node("n1");
    let error = runs(&node).await.unwrap_err();
    let LinkError::Authentication { user, key, .. } = cause(&error) else {
        panic!("{error}")
    };
    assert_eq!(user, &sshd.user);
    assert_eq!(key, &sshd.key.public().fingerprint());
    assert!(error.remedy().unwrap().contains("ssh vendetta node key"));
    for _ in 0..5 {
        runs(&node).await.unwrap_err();
    }
    let tries = sshd.log().matches("Connection from").count();
    assert!(
        tries <= 2,
        "one try for many callers, and the look at the port: {tries}"
    );
}

/// A stream through the node on which the other side says nothing.
async fn silent_stream(
    sshd: &Sshd,
    node: &impl NodeTransport,
) -> (UnixListener, Box<dyn crate::node::ByteStream>) {
    let path = sshd.dir().join("silent.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let stream = node.open_unix(&path).await.unwrap();
    (listener, stream)
}

#[tokio::test]
async fn a_killed_sshd_fails_its_streams_and_is_found_again_when_it_is_back() {
    let mut sshd = Sshd::start("");
    let node = sshd.node("n1");
    let (_listener, mut stream) = silent_stream(&sshd, &node).await;
    let sleeper = Command::new(["sleep", "63.25"]);
    let running = node.exec(&sleeper);
    let killer = async {
        while processes_with("63.25") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sshd.kill();
        Instant::now()
    };
    let (ran, killed) = tokio::join!(running, killer);
    let error = ran.unwrap_err();
    assert!(matches!(cause(&error), LinkError::Lost { .. }), "{error}");
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(stream.write_all(b"x").await.is_err());
    assert!(killed.elapsed() < Duration::from_secs(8));

    // Down for a moment: whoever needs it waits. Down for long: he is told.
    let back = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        sshd.run();
    };
    let (ran, ()) = tokio::join!(runs(&node), back);
    ran.unwrap();
    sshd.kill();
    let begin = Instant::now();
    let error = runs(&node).await.unwrap_err();
    assert!(matches!(cause(&error), LinkError::Dial { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(18));
    let begin = Instant::now();
    runs(&node).await.unwrap_err();
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    assert!(matches!(*node.link().borrow(), LinkState::Down { .. }));
    sshd.run();
    tokio::time::timeout(Duration::from_secs(20), runs(&node))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_stalled_sshd_is_noticed_soon() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let (_listener, mut stream) = silent_stream(&sshd, &node).await;
    let mut state = node.link();
    sshd.signal(Signal::SIGSTOP);
    let begin = Instant::now();
    let error = stream.read_u8().await.unwrap_err();
    eprintln!("noticed after {:?}: {error}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!(error.to_string().contains("no sign of life"), "{error}");
    assert!(matches!(*state.borrow_and_update(), LinkState::Down { .. }));
    let begin = Instant::now();
    let error = runs(&node).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(18), "{error}");
    sshd.signal(Signal::SIGCONT);
    runs(&node).await.unwrap();
}

#[tokio::test]
async fn nothing_that_is_sent_into_a_stall_holds_its_end_up() {
    let sshd = Sshd::start("");
    let node = sshd.node("n1");
    let (_listener, mut stream) = silent_stream(&sshd, &node).await;
    sshd.signal(Signal::SIGSTOP);
    let begin = Instant::now();
    let flood = async {
        loop {
            stream.write_all(&[0; 65536]).await?;
        }
    };
    let error: std::io::Result<()> = flood.await;
    assert!(begin.elapsed() < Duration::from_secs(30));
    eprintln!("{}", error.unwrap_err());
    sshd.signal(Signal::SIGCONT);
}

#[tokio::test]
async fn a_node_behind_another_is_reached_through_it_and_lost_with_it() {
    let mut outer = Sshd::start("");
    let inner = Sshd::start("");
    let through = Arc::new(outer.node("outer"));
    let node = inner.node_through("inner", Some(through));
    runs(&node).await.unwrap();
    assert_eq!(outer.log().matches("Accepted publickey").count(), 1);
    let (_listener, mut stream) = silent_stream(&inner, &node).await;
    outer.kill();
    let begin = Instant::now();
    assert!(stream.read_u8().await.is_err());
    assert!(begin.elapsed() < Duration::from_secs(8));
    let error = runs(&node).await.unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("node inner") && told.contains("node outer"),
        "{told}"
    );
    outer.run();
    runs(&node).await.unwrap();
}

#[tokio::test]
async fn what_answers_but_is_no_sshd_is_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut sshd = Sshd::start("");
    sshd.kill();
    sshd.port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = runs(&sshd.node("n1")).await.unwrap_err();
    assert!(
        matches!(cause(&error), LinkError::Handshake { .. }),
        "{error}"
    );
}
