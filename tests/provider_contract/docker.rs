//! What only a container engine can do wrong.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;
use vendetta::node::LocalNode;
use vendetta::provider::{Docker, Provider, ProviderError};
use vendetta::workspace::Progress;
use vendetta_proto::spec::{Build, DockerConfig};
use vendetta_tests::{Engine, PATIENCE, Run, TOOLS, eventually};

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
    // A registry that accepts and never answers, where the engine looks for it.
    let mute = "import socket, sys, time
server = socket.create_server(('127.0.0.1', 0))
print(server.getsockname()[1], flush=True)
server.accept()
print('asked', flush=True)
time.sleep(600)";
    let engine = Engine::shared();
    let mute = engine.inside(&["setpriv", "--pdeathsig", "KILL", "python3", "-c", mute]);
    let mute = mute.limit(Duration::MAX).start();
    mute.expect_stdout(0, "\n");
    let port = String::from_utf8(mute.stdout()).unwrap();
    let image = format!("localhost:{}/mute", port.trim());
    environment.config.docker = Some(DockerConfig::from_image(image));
    subject.node.make_dir(&environment.run_dir).await.unwrap();
    let context = subject.context();
    let cancel = context.cancel.clone();
    let asked = tokio::task::spawn_blocking(move || {
        mute.expect_stdout(0, "asked");
        cancel.cancel();
    });
    let created = subject.provider.create(&environment, &context);
    let error = tokio::time::timeout(PATIENCE, created)
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, ProviderError::Cancelled), "{error}");
    asked.await.unwrap();
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

/// An archive with a Dockerfile of these lines after its FROM.
fn context(subject: &Subject, lines: &str) -> std::path::PathBuf {
    let dir = subject.scratch().join("context");
    std::fs::create_dir_all(&dir).unwrap();
    let dockerfile = format!("FROM {TOOLS}\n{lines}\n");
    std::fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    let archive = subject.scratch().join("context.tar");
    Run::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(&dir)
        .arg(".")
        .ok();
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_given_up_ends_and_can_be_done_again_and_leaves_nothing() {
    let subject = Subject::docker();
    let mut environment = subject.environment();
    environment.config.docker = Some(DockerConfig {
        build: Some(Build::default()),
        ..DockerConfig::default()
    });
    let sleep = format!("sleep 600 # {}", environment.id);
    environment.build_context = Some(context(&subject, &format!("RUN {sleep}")));
    subject.node.make_dir(&environment.run_dir).await.unwrap();
    let given_up = subject.context();
    let create = subject.provider.create(&environment, &given_up);
    let cancel = async {
        let mut watch = given_up.progress.watch();
        while let Some(progress) = watch.next().await {
            if matches!(&progress, Progress::Started { step } if step.contains("sleep 600")) {
                break;
            }
        }
        given_up.cancel.cancel();
    };
    let (created, ()) = tokio::join!(create, cancel);
    let error = created.unwrap_err();
    assert!(matches!(error, ProviderError::Cancelled), "{error}");
    eventually("the command of the build ends", || {
        let engine = Engine::shared();
        let list = engine.docker(&["ps", "--all", "--no-trunc", "--format", "{{.Command}}"]);
        !list.ok().text().contains(&sleep)
    });
    environment.build_context = Some(context(&subject, "RUN echo built >/built"));
    let placement = subject.up(&environment).await;
    assert_eq!(subject.says(&placement, "cat /built"), "built");
    assert_eq!(
        subject.provider.list().await.unwrap(),
        [environment.id.clone()]
    );
    subject.provider.destroy(&environment.id).await.unwrap();
    assert_eq!(subject.provider.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_container_is_found_and_removed() {
    let subject = Subject::docker();
    let mut environment = subject.environment();
    environment.config.docker = Some(DockerConfig {
        build: Some(Build::default()),
        ..DockerConfig::default()
    });
    environment.build_context = Some(context(&subject, "RUN true"));
    subject.up(&environment).await;
    // As a crash in the middle of the removal leaves it.
    let label = format!("label=vendetta.workspace={}", environment.id);
    let engine = Engine::shared();
    let ids = engine
        .docker(&["ps", "-aq", "--filter", &label])
        .ok()
        .text();
    engine.docker(&["rm", "--force", &ids]).ok();
    let names = engine
        .docker(&["volume", "ls", "-q", "--filter", &label])
        .ok()
        .text();
    engine.docker(&["volume", "rm", &names]).ok();
    assert_eq!(
        subject.provider.list().await.unwrap(),
        [environment.id.clone()]
    );
    assert_eq!(subject.stranger.list().await.unwrap(), []);
    subject.provider.destroy(&environment.id).await.unwrap();
    assert_eq!(subject.provider.list().await.unwrap(), []);
}
