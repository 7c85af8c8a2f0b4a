//! What only a container engine can do wrong.

use std::sync::Arc;

use tokio_util::task::TaskTracker;
use vendetta::node::LocalNode;
use vendetta::provider::{Docker, Provider, ProviderError};
use vendetta_proto::spec::DockerConfig;

use crate::subject::Subject;

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_there_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(LocalNode::new(dir.path().to_owned()));
    let socket = dir.path().join("docker.sock");
    let provider = Docker::new(node, socket.clone(), "id".to_owned(), TaskTracker::new());
    let error = provider.probe().await.unwrap_err();
    assert!(
        matches!(error, ProviderError::Unavailable { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains(&socket.display().to_string()),
        "{error}"
    );
    assert!(error.remedy().unwrap().contains("start docker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_had_is_an_error_and_leaves_nothing() {
    let subject = Subject::docker();
    let mut environment = subject.environment();
    environment.config.docker = Some(DockerConfig::from_image("localhost:1/no/such-image:v1"));
    subject.node.make_dir(&environment.run_dir).await.unwrap();
    let context = subject.context();
    let error = subject
        .provider
        .create(&environment, &context)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("pull image"), "{error}");
    assert!(
        error
            .remedy()
            .unwrap()
            .contains("localhost:1/no/such-image:v1"),
        "{error}"
    );
    assert!(subject.provider.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_no_longer_wanted_is_given_up() {
    let subject = Subject::docker();
    let mut environment = subject.environment();
    // A registry that accepts and never answers.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    environment.config.docker = Some(DockerConfig::from_image(format!("localhost:{port}/mute")));
    subject.node.make_dir(&environment.run_dir).await.unwrap();
    let context = subject.context();
    context.cancel.cancel();
    let error = subject
        .provider
        .create(&environment, &context)
        .await
        .unwrap_err();
    assert!(matches!(error, ProviderError::Cancelled), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_engine_cannot_give_is_refused() {
    let subject = Subject::docker();
    let mut environment = subject.environment();
    environment.config.resources.cpu = Some(4000.0);
    subject.node.make_dir(&environment.run_dir).await.unwrap();
    let context = subject.context();
    let error = subject
        .provider
        .create(&environment, &context)
        .await
        .unwrap_err();
    assert!(matches!(error, ProviderError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("CPU"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_name_and_user_reach_the_container() {
    let subject = Subject::docker();
    let mut environment = subject.environment();
    environment.config.resources.cpu = Some(0.5);
    environment.config.resources.memory = Some("64M".parse().unwrap());
    let placement = subject.up(&environment).await;
    assert_eq!(
        subject.says(&placement, "cat /proc/sys/kernel/hostname"),
        "web"
    );
    let memory = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(subject.says(&placement, memory), (64 << 20).to_string());
    let cpu = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
    assert_eq!(subject.says(&placement, cpu), "50000");
    assert_eq!(subject.says(&placement, "id -u"), "0");
    assert_eq!(
        subject
            .says(&placement, "tr '\\0' ' ' </proc/1/cmdline")
            .split(' ')
            .next(),
        Some("/.vendetta/agent")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_disk_belongs_to_the_user_of_the_config_and_a_used_one_stays_as_it_is() {
    let subject = Subject::docker();
    let mut environment = subject.environment();
    environment.config.user = Some("dev".to_owned());
    let placement = subject.up(&environment).await;
    assert_eq!(placement.user.as_deref(), Some("dev"));
    let owner = subject.ssh_as("dev", &placement, "touch mine && stat -c %U . mine");
    assert_eq!(owner.ok().text(), "dev\ndev");
    subject.says(&placement, "chown root:root .");
    environment.generation = 2;
    let placement = subject.up(&environment).await;
    assert_eq!(subject.says(&placement, "stat -c %U . mine"), "root\ndev");
}
