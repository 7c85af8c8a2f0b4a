use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::node::testing::Sshd;
use crate::node::{Command, NodeError, NodeTransport, Refusal};

/// Fifty commands at once, of which each gives back its number.
async fn fifty(node: &Arc<dyn NodeTransport>) {
    let all = (0..50).map(|number| {
        let node = Arc::clone(node);
        tokio::spawn(async move {
            let script = format!("sleep 0.05; echo {number}");
            let output = node.exec(&Command::new(["sh", "-c", &script])).await?;
            assert_eq!(output.stdout, format!("{number}\n").as_bytes());
            Result::<(), NodeError>::Ok(())
        })
    });
    for done in join_all(all).await {
        done.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_commands_at_once_succeed_whatever_max_sessions_allows() {
    for (max, most_connections) in [("1", 4), ("2", 4), ("10", 4), ("100", 4)] {
        let sshd = Sshd::start(&format!("MaxSessions {max}"));
        let node: Arc<dyn NodeTransport> = Arc::new(sshd.node("n1"));
        node.arch().await.unwrap();
        for round in 0..3 {
            let begin = Instant::now();
            fifty(&node).await;
            eprintln!("MaxSessions {max}, round {round}: {:?}", begin.elapsed());
        }
        let log = sshd.log();
        let connections = log.matches("Accepted publickey").count();
        assert!(connections <= most_connections, "{connections} for {max}");
        // Near the limit sshd may not have let go of sessions that are over.
        if max == "100" {
            let refused = log.matches("no more sessions").count()
                + log.matches("session open failed").count();
            assert_eq!(refused, 0, "the limit is never met");
        }
    }
}

#[tokio::test]
async fn one_after_the_other_needs_one_connection_however_low_the_limit() {
    let sshd = Sshd::start("MaxSessions 1");
    let node = sshd.node("n1");
    for _ in 0..30 {
        let output = node.exec(&Command::new(["true"])).await.unwrap();
        assert_eq!(output.status, Some(0));
    }
    // The server frees a session a moment after its answer.
    let connections = sshd.log().matches("Accepted publickey").count();
    assert!(connections <= 4, "{connections}");
}

#[tokio::test]
async fn an_sshd_without_sessions_is_told_with_the_directive() {
    let sshd = Sshd::start("MaxSessions 0");
    let node = sshd.node("n1");
    let begin = Instant::now();
    let error = node.exec(&Command::new(["true"])).await.unwrap_err();
    assert!(
        matches!(
            &error,
            NodeError::Refused {
                refusal: Refusal::Sessions,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.remedy().unwrap().contains("MaxSessions 10"));
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_gives_its_place_back() {
    let sshd = Sshd::start("MaxSessions 2");
    let node: Arc<dyn NodeTransport> = Arc::new(sshd.node("n1"));
    for pause in 0..40u64 {
        let slow = Command::new(["sleep", "30"]);
        let run = node.exec(&slow);
        let _ = tokio::time::timeout(Duration::from_millis(pause), run).await;
    }
    let begin = Instant::now();
    fifty(&node).await;
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "{:?}",
        begin.elapsed()
    );
}
