//! Which engine of Incus and LXD is used, and what is told when it is away or hangs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;
use vendetta::node::LocalNode;
use vendetta::provider::{
    Environment, LXC_SOCKETS, LogOptions, Lxc as LxcProvider, Provider, ProviderError,
};
use vendetta::workspace::Found;
use vendetta_tests::{Lxc, Node, PATIENCE};

use crate::lxc::incarnation;
use crate::subject::Subject;

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_there_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(LocalNode::new(dir.path().to_owned()));
    let deaf = dir.path().join("unix.socket");
    drop(std::os::unix::net::UnixListener::bind(&deaf).unwrap());
    let tasks = TaskTracker::new();
    let provider = LxcProvider::new(node, vec![deaf.clone()], "id".to_owned(), tasks);
    let error = provider.probe().await.unwrap_err();
    assert!(
        matches!(error, ProviderError::Unavailable { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains(&deaf.display().to_string()),
        "{error}"
    );
    assert!(error.remedy().unwrap().contains("start it"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_an_engine_says_how_to_get_one_and_a_user_without_rights_how_to_get_them() {
    let bare = Subject::lxc_on(Node::start());
    let error = bare.provider.probe().await.unwrap_err();
    assert!(
        error.to_string().contains("neither Incus nor LXD"),
        "{error}"
    );
    assert!(error.remedy().unwrap().contains("apt-get install incus"));
    let node = Node::builder().lxc(Lxc::Incus).start();
    node.sh("gpasswd --delete dev incus-admin").ok();
    let denied = Subject::lxc_on(node);
    let error = denied.provider.probe().await.unwrap_err();
    assert!(error.to_string().contains("user dev may not"), "{error}");
    let remedy = error.remedy().unwrap();
    assert!(remedy.contains("usermod -aG incus-admin dev"), "{remedy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_found_at_each_of_its_usual_sockets() {
    let subject = Subject::lxc_on(Node::builder().lxc(Lxc::Incus).start());
    let node = subject.machine.node();
    let elsewhere = "/var/lib/incus/elsewhere";
    node.run(&["mv", LXC_SOCKETS[0], elsewhere]).ok();
    for socket in LXC_SOCKETS {
        let found = subject.heir().probe().await;
        assert!(found.is_err(), "{found:?}");
        let link = r#"mkdir -p "${2%/*}" && ln -s "$1" "$2""#;
        node.run(&["sh", "-c", link, "sh", elsewhere, socket]).ok();
        let found = subject.heir().probe().await;
        assert!(found.unwrap().contains("Incus"), "{socket}");
        node.run(&["rm", socket]).ok();
    }
}

/// What an engine that is away is told as, whatever is asked for.
async fn is_away(provider: &dyn Provider, environment: &Environment, remedy: &str) {
    let id = &environment.id;
    for error in [
        provider.inspect(id).await.map(drop).unwrap_err(),
        provider.list().await.map(drop).unwrap_err(),
        provider.stop(id, Duration::ZERO).await.unwrap_err(),
        provider.destroy(id).await.unwrap_err(),
        provider.start(environment).await.unwrap_err(),
    ] {
        assert!(
            matches!(error, ProviderError::Unavailable { .. }),
            "{error}"
        );
        assert!(error.remedy().unwrap().contains(remedy), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_away_is_never_mistaken_for_another_one() {
    let node = Node::builder().lxc(Lxc::Incus).lxc(Lxc::Lxd).start();
    let subject = Subject::lxc_on(node);
    let node = subject.machine.node();
    let environment = subject.environment();
    let placement = subject.up(&environment).await;
    subject.says(&placement, "echo kept >file; sync");
    node.kill_lxc();
    // As a crash leaves it, and as one that has not started yet.
    for leave in ["true", "rm /var/lib/incus/unix.socket"] {
        node.sh(leave).ok();
        is_away(subject.provider.as_ref(), &environment, "start incus").await;
        // A gateway that was started again has only what is stored.
        is_away(subject.heir().as_ref(), &environment, "start incus").await;
    }
    let another = subject.lxc_heir(&["/var/lib/lxd/unix.socket"]);
    is_away(&another, &environment, "/lxc-engine on the node").await;
    let others = node.run(&["lxc", "list", "--format=csv"]).ok().text();
    assert_eq!(others, "", "nothing is made in the other one");
    node.start_lxc();
    for provider in [&subject.provider, &subject.heir()] {
        let found = provider.inspect(&environment.id).await.unwrap();
        assert_eq!(found, Found::Running);
    }
    assert_eq!(subject.says(&placement, "cat file"), "kept");
    subject.provider.destroy(&environment.id).await.unwrap();
    assert!(subject.leftovers(&environment.id).is_empty());
    // One that is gone for good is let go of by hand, as the remedy says.
    node.kill_lxc();
    node.sh("rm /var/lib/incus/unix.socket").ok();
    is_away(subject.provider.as_ref(), &environment, "start incus").await;
    node.sh("rm /home/dev/.vendetta/*/lxc-engine").ok();
    let found = subject.provider.probe().await.unwrap();
    assert!(found.contains("LXD"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_before_an_engine_was_remembered_is_found_in_its_own() {
    let node = Node::builder().lxc(Lxc::Incus).lxc(Lxc::Lxd).start();
    let subject = Subject::lxc_on(node);
    let node = subject.machine.node();
    let environment = subject.environment();
    let lxd = subject.lxc_heir(&["/var/lib/lxd/unix.socket"]);
    subject.node.make_dir(&environment.run_dir).await.unwrap();
    let context = subject.context();
    lxd.create(&environment, &context).await.unwrap();
    let forget = || node.sh("rm /home/dev/.vendetta/*/lxc-engine").ok();
    forget();
    // One that is silent may be the one: nothing is concluded from what the other has not.
    node.kill_lxc();
    let heir = subject.heir();
    assert_eq!(
        heir.inspect(&environment.id).await.unwrap(),
        Found::Stopped,
        "what has it tells all"
    );
    lxd.destroy(&environment.id).await.unwrap();
    forget();
    is_away(subject.heir().as_ref(), &environment, "start incus").await;
    node.start_lxc();
    let heir = subject.heir();
    assert_eq!(heir.inspect(&environment.id).await.unwrap(), Found::Absent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_engine_is_given_up_and_serves_again_when_it_goes_on() {
    let subject = Subject::lxc_on(Node::builder().lxc(Lxc::Lxd).start());
    let provider = &subject.provider;
    let environment = subject.environment();
    let placement = subject.create(&environment).await;
    let node = subject.machine.node();
    // Wherever the start is by then.
    let freeze = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        node.freeze_lxc();
    };
    let start = tokio::time::timeout(PATIENCE * 3, provider.start(&environment));
    let (started, ()) = tokio::join!(start, freeze);
    // It may have been faster.
    if let Err(error) = started.expect("it gives up") {
        assert!(error.to_string().contains("no answer"), "{error}");
    }
    let id = &environment.id;
    let found = tokio::time::timeout(PATIENCE * 2, provider.inspect(id)).await;
    let error = found.expect("it gives up").unwrap_err();
    assert!(
        matches!(error, ProviderError::Unavailable { .. }),
        "{error}"
    );
    assert!(error.remedy().is_some());
    node.thaw_lxc();
    provider.start(&environment).await.unwrap();
    subject.answers(&placement).await;
    provider.stop(id, Duration::ZERO).await.unwrap();
}

/// A pipe where the engine or the agent looks for a file.
async fn a_pipe_in_the_way(engine: Lxc) {
    let subject = Subject::lxc(engine);
    let provider = &subject.provider;
    let environment = subject.environment();
    let id = &environment.id;
    let placement = subject.up(&environment).await;
    let pipe = |name: &str| {
        let command = format!("rm /.vendetta/{name} && mkfifo /.vendetta/{name}");
        subject.says(&placement, &command);
    };
    pipe("agent.json");
    provider.stop(id, Duration::ZERO).await.unwrap();
    subject.up(&environment).await;
    pipe("agent.log");
    let logs = provider.logs(id, LogOptions::default());
    let logs = tokio::time::timeout(PATIENCE * 2, logs).await;
    let error = logs.expect("it gives up").map(drop).unwrap_err();
    assert!(error.to_string().contains("agent.log"), "{error}");
    // Nor is the engine itself, though whoever asked for the log has gone: then it could
    // not end the container any more.
    let logs = provider.logs(id, LogOptions::default());
    let logs = tokio::time::timeout(Duration::from_secs(1), logs).await;
    assert!(logs.is_err());
    let destroyed = tokio::time::timeout(PATIENCE * 2, provider.destroy(id)).await;
    destroyed.unwrap().unwrap();
    assert!(subject.leftovers(id).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_the_way_holds_nobody_up_on_incus() {
    a_pipe_in_the_way(Lxc::Incus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_the_way_holds_nobody_up_on_lxd() {
    a_pipe_in_the_way(Lxc::Lxd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_outlives_its_engine_and_starts_again_after_its_node_lost_power() {
    let node = Node::builder().lxc(Lxc::Incus).start();
    let subject = Subject::lxc_on(node);
    let environment = subject.environment();
    let placement = subject.up(&environment).await;
    let before = incarnation(&subject, &placement);
    let node = subject.machine.node();
    node.kill_lxc();
    assert_eq!(incarnation(&subject, &placement), before);
    let error = subject.provider.inspect(&environment.id).await.unwrap_err();
    assert!(error.to_string().contains("listens at"), "{error}");
    node.start_lxc();
    subject.provider.start(&environment).await.unwrap();
    assert_eq!(incarnation(&subject, &placement), before);
    subject.says(&placement, "echo kept >file; sync");
    node.power_off();
    node.power_on();
    let began = Instant::now();
    while let Err(error) = subject.provider.probe().await {
        assert!(began.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let placement = subject.up(&environment).await;
    assert_eq!(subject.says(&placement, "cat file"), "kept");
}
