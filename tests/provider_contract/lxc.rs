//! What only Incus and LXD can do wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;
use vendetta::node::LocalNode;
use vendetta::provider::{Environment, Lxc as LxcProvider, Placement, Provider, ProviderError};
use vendetta::workspace::Progress;
use vendetta_proto::spec::LxcConfig;
use vendetta_tests::{Lxc, Node, PATIENCE, Run};

use crate::subject::Subject;

fn with_image(subject: &Subject, image: &str) -> Environment {
    let mut environment = subject.environment();
    environment.config.lxc = Some(LxcConfig {
        image: image.to_owned(),
    });
    environment
}

async fn refused(subject: &Subject, environment: &Environment) -> ProviderError {
    subject.node.make_dir(&environment.run_dir).await.unwrap();
    let context = subject.context();
    let created = subject.provider.create(environment, &context).await;
    created.unwrap_err()
}

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
async fn an_image_that_cannot_be_had_is_an_error_and_leaves_nothing() {
    for engine in [Lxc::Incus, Lxc::Lxd] {
        let subject = Subject::lxc(engine);
        let environment = with_image(&subject, "no/such-image");
        let error = refused(&subject, &environment).await;
        assert!(matches!(error, ProviderError::NoImage { .. }), "{error}");
        assert!(error.remedy().unwrap().contains("image import"), "{error}");
        let environment = with_image(&subject, "images:no/such-image");
        let error = refused(&subject, &environment).await;
        assert!(matches!(error, ProviderError::NoImage { .. }), "{error}");
        // The engines of the tests do not reach it.
        let environment = with_image(&subject, "ubuntu:24.04");
        let error = refused(&subject, &environment).await;
        assert!(error.to_string().contains("fetch image"), "{error}");
        let remedy = error.remedy().unwrap();
        assert!(remedy.contains("cloud-images.ubuntu.com"), "{remedy}");
        let instances = subject.machine.lxc(&["list", "--format=json"]).ok().text();
        assert!(!instances.contains(environment.id.as_str()), "{instances}");
        subject.provider.destroy(&environment.id).await.unwrap();
        assert!(subject.leftovers(&environment.id).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_from_its_server_with_progress() {
    for engine in [Lxc::Incus, Lxc::Lxd] {
        let subject = Subject::lxc(engine);
        let environment = with_image(&subject, "images:debian/12");
        subject.node.make_dir(&environment.run_dir).await.unwrap();
        let context = subject.context();
        let created = subject.provider.create(&environment, &context).await;
        created.unwrap();
        context.progress.end(Ok(()));
        let mut reports = context.progress.watch();
        let mut steps = Vec::new();
        while let Some(report) = reports.next().await {
            if let Progress::Started { step } = report {
                steps.push(step);
            }
        }
        assert_eq!(steps, ["create container from images:debian/12"]);
        let placement = subject.up(&environment).await;
        assert_eq!(subject.says(&placement, "echo hi"), "hi");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_no_longer_wanted_is_given_up_and_removed() {
    for engine in [Lxc::Incus, Lxc::Lxd] {
        let subject = Subject::lxc(engine);
        let environment = with_image(&subject, "images:mute");
        subject.node.make_dir(&environment.run_dir).await.unwrap();
        let context = subject.context();
        let cancel = context.cancel.clone();
        let created = subject.provider.create(&environment, &context);
        let (created, ()) = tokio::join!(created, async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cancel.cancel();
        });
        let error = created.unwrap_err();
        assert!(matches!(error, ProviderError::Cancelled), "{error}");
        let destroyed = subject.provider.destroy(&environment.id);
        let destroyed = tokio::time::timeout(PATIENCE, destroyed).await;
        destroyed.unwrap().unwrap();
        assert!(subject.leftovers(&environment.id).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_init_nobody_knows_is_refused_and_what_was_there_runs_on() {
    let subject = Subject::lxc(Lxc::Incus);
    let mut environment = subject.environment();
    let placement = subject.up(&environment).await;
    let dir = tempfile::tempdir().unwrap();
    let alias = format!("odd-{}", environment.id);
    let make = "mkdir -p rootfs/sbin && echo 'architecture: x86_64' >metadata.yaml && \
                echo 'creation_date: 1' >>metadata.yaml && ln -s /sbin/odd rootfs/sbin/init && \
                touch rootfs/sbin/odd && tar -cf image.tar metadata.yaml rootfs";
    Run::new("sh")
        .args(["-c", make])
        .current_dir(dir.path())
        .ok();
    let image = dir.path().join("image.tar").display().to_string();
    let import = ["image", "import", &image, "--alias", &alias];
    subject.machine.lxc(&import).ok();
    environment.generation = 2;
    environment.config.lxc = Some(LxcConfig {
        image: alias.clone(),
    });
    let error = refused(&subject, &environment).await;
    subject.machine.lxc(&["image", "delete", &alias]).ok();
    assert!(matches!(error, ProviderError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("/sbin/odd"), "{error}");
    assert_eq!(subject.says(&placement, "echo unharmed"), "unharmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_name_and_user_reach_the_container_which_is_unprivileged() {
    for engine in [Lxc::Incus, Lxc::Lxd] {
        let subject = Subject::lxc(engine);
        let mut environment = subject.environment();
        environment.config.resources.cpu = Some(0.5);
        environment.config.resources.memory = Some("64M".parse().unwrap());
        environment.config.user = Some("dev".to_owned());
        let placement = subject.up(&environment).await;
        assert_eq!(placement.user.as_deref(), Some("dev"));
        let says = |command| subject.says(&placement, command);
        assert_eq!(says("hostname; cat /etc/hostname"), "web\nweb");
        assert_eq!(says("id -u"), "0");
        // Root inside is somebody without rights outside (user_namespaces(7)).
        let outside = says("awk '$1 == 0 {print $2}' /proc/self/uid_map");
        assert_ne!(outside, "0");
        let name = subject.instance(&environment);
        let get = |key| subject.machine.lxc(&["config", "get", &name, key]).ok();
        assert_eq!(get("limits.memory").text(), (64 << 20).to_string());
        assert_eq!(get("limits.cpu.allowance").text(), "50ms/100ms");
        assert_eq!(get("boot.autostart").text(), "false");
        // A fresh disk is for whom the config names.
        let owner = subject.ssh_as("dev", &placement, "touch mine && stat -c %U . mine");
        assert_eq!(owner.ok().text(), "dev\ndev");
    }
}

/// Start time of the container's first process and pid of the agent.
fn incarnation(subject: &Subject, placement: &Placement) -> String {
    subject.says(placement, "cut -d' ' -f22 /proc/1/stat; echo $PPID")
}

/// Waits for an answer of an agent that is another than `before`.
async fn returns(subject: &Subject, placement: &Placement, before: &str, why: &str) {
    let began = Instant::now();
    loop {
        let command = "cut -d' ' -f22 /proc/1/stat; echo $PPID";
        let said = subject.ssh(placement, command).finish();
        if said.status.success() && said.text() != before {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{why}: {said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An agent killed and a container restarted by itself come back, whoever starts things in it.
async fn comes_back(engine: Lxc, image: &str) {
    let subject = Subject::lxc(engine);
    let environment = with_image(&subject, image);
    let placement = subject.up(&environment).await;
    let before = incarnation(&subject, &placement);
    let _ = subject.ssh(&placement, "kill -9 $PPID").finish();
    returns(&subject, &placement, &before, "killed").await;
    let before = incarnation(&subject, &placement);
    subject.says(&placement, "echo kept >file; sync");
    let name = subject.instance(&environment);
    let reboot: &[&str] = match image {
        "openrc" => &["openrc-shutdown", "--reboot", "now"],
        _ => &["reboot"],
    };
    let reboot = subject.machine.lxc(&["exec", &name, "--"]).args(reboot);
    let _ = reboot.finish();
    returns(&subject, &placement, &before, "rebooted").await;
    assert_eq!(subject.says(&placement, "cat file"), "kept");
    let began = Instant::now();
    let grace = Duration::from_secs(180);
    let stopped = subject.provider.stop(&environment.id, grace).await;
    stopped.unwrap();
    assert!(began.elapsed() < grace, "it ends when asked");
    subject.provider.destroy(&environment.id).await.unwrap();
    assert!(subject.leftovers(&environment.id).is_empty());
}

/// Makes each init a test of each engine.
macro_rules! inits {
    ($($init:ident),*) => {
        mod comes_back_with {
            $(mod $init {
                use vendetta_tests::Lxc;

                #[tokio::test(flavor = "multi_thread")]
                async fn on_incus() {
                    super::super::comes_back(Lxc::Incus, stringify!($init)).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                async fn on_lxd() {
                    super::super::comes_back(Lxc::Lxd, stringify!($init)).await;
                }
            })*
        }
    };
}

inits!(busybox, systemd, sysvinit, openrc);

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
