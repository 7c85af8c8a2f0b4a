//! What only Incus and LXD can do wrong.

use std::time::{Duration, Instant};

use vendetta::provider::{Environment, Placement, ProviderError};
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

/// Fingerprint and server of the images that an engine fetched under an alias.
fn fetched(subject: &Subject, alias: &str) -> Vec<(String, String)> {
    let images = subject.machine.lxc(&["query", "/1.0/images?recursion=1"]);
    let images = images.ok().json();
    let images = images.as_array().expect("a list").iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    images
        .filter(|image| image["update_source"]["alias"] == alias)
        .map(|image| {
            let server = &image["update_source"]["server"];
            (text(&image["fingerprint"]), text(server))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_from_its_engine_s_own_server_with_progress() {
    for (engine, server) in [
        (Lxc::Incus, "https://images.linuxcontainers.org"),
        (Lxc::Lxd, "https://images.lxd.canonical.com"),
    ] {
        let subject = Subject::lxc(engine);
        let alias = "ubuntu/22.04";
        // Of an earlier run.
        for (fingerprint, _) in fetched(&subject, alias) {
            let delete = ["image", "delete", &fingerprint];
            subject.machine.lxc(&delete).ok();
        }
        let environment = with_image(&subject, &format!("images:{alias}"));
        subject.node.make_dir(&environment.run_dir).await.unwrap();
        let context = subject.context();
        let created = subject.provider.create(&environment, &context).await;
        created.unwrap();
        context.progress.end(Ok(()));
        let mut reports = context.progress.watch();
        let (mut steps, mut said) = (Vec::new(), Vec::new());
        while let Some(report) = reports.next().await {
            match report {
                Progress::Started { step } => steps.push(step),
                Progress::Message { text, .. } => said.push(text),
                _ => {}
            }
        }
        assert_eq!(steps, ["create container from images:ubuntu/22.04"]);
        assert!(said.iter().any(|text| text.contains('%')), "{said:?}");
        let fetched = fetched(&subject, alias);
        assert!(
            matches!(&fetched[..], [(_, from)] if from == server),
            "{fetched:?}"
        );
        let placement = subject.up(&environment).await;
        assert_eq!(subject.says(&placement, "echo hi"), "hi");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_engine_has_is_named_by_its_alias_or_its_fingerprint() {
    for engine in [Lxc::Incus, Lxc::Lxd] {
        let subject = Subject::lxc(engine);
        let alias = ["query", "/1.0/images/aliases/busybox"];
        let alias = subject.machine.lxc(&alias).ok().json();
        let fingerprint = alias["target"].as_str().expect("a fingerprint");
        for image in ["local:busybox", fingerprint, &fingerprint[..12]] {
            let environment = with_image(&subject, image);
            subject.create(&environment).await;
            let name = subject.instance(&environment);
            let made_of = ["config", "get", &name, "volatile.base_image"];
            let made_of = subject.machine.lxc(&made_of).ok().text();
            assert_eq!(made_of, fingerprint, "{image}");
            subject.provider.destroy(&environment.id).await.unwrap();
        }
    }
}

/// The default profile is the operator's, who may change it at any time.
async fn a_profile_that_changes(engine: Lxc) {
    let subject = Subject::lxc_on(Node::builder().lxc(engine).start());
    let mut environment = subject.environment();
    let placement = subject.up(&environment).await;
    subject.says(&placement, "echo kept >file; sync");
    let name = subject.instance(&environment);
    for change in [
        // No engine takes a root disk's pool away from an instance.
        &["delete", "--force", &name][..],
        &["storage", "create", "other", "dir"],
        &["profile", "device", "set", "default", "root", "pool=other"],
        &["profile", "set", "default", "security.privileged=true"],
    ] {
        subject.machine.lxc(change).ok();
    }
    environment.generation = 2;
    let placement = subject.up(&environment).await;
    assert_eq!(subject.says(&placement, "cat file"), "kept");
    let outside = subject.says(&placement, "awk '$1 == 0 {print $2}' /proc/self/uid_map");
    assert_ne!(outside, "0", "it is unprivileged");
    subject.provider.destroy(&environment.id).await.unwrap();
    assert!(subject.leftovers(&environment.id).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_changes_moves_no_disk_and_gives_no_rights_on_incus() {
    a_profile_that_changes(Lxc::Incus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_changes_moves_no_disk_and_gives_no_rights_on_lxd() {
    a_profile_that_changes(Lxc::Lxd).await;
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
pub fn incarnation(subject: &Subject, placement: &Placement) -> String {
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
