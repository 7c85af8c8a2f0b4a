//! Workspaces from their creation to their end.

use nix::sys::signal::Signal;
use vendetta_tests::{BUSYBOX, Gateway, PATIENCE, TOOLS, eventually};

fn docker(image: &str) -> String {
    format!("provider: docker\ndocker: {{image: \"{image}\"}}\n")
}

#[test]
fn a_workspace_lives_from_create_to_destroy() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS));
    assert_eq!(gateway.state("ws"), "created");
    let up = gateway.control("workspace up ws").ok();
    assert!(up.text().contains("ssh "), "it says how to connect: {up}");
    assert_eq!(gateway.state("ws"), "running");
    assert_eq!(gateway.exec("ws", "echo hi").ok().text(), "hi");
    gateway.control("workspace down ws").ok();
    assert_eq!(gateway.state("ws"), "stopped");
    gateway.control("workspace up ws").ok();
    assert_eq!(gateway.state("ws"), "running");
    gateway.control("workspace destroy ws --yes").ok();
    assert_eq!(gateway.workspaces(), Vec::<String>::new());
    assert_eq!(gateway.resources(), Vec::<String>::new());
    gateway.control("workspace status ws").finish().exits(3);
}

#[test]
fn one_that_nothing_was_ever_made_of_is_destroyed_without_its_engine() {
    let config = "[docker]\nsocket = \"/no/such/docker.sock\"\n";
    let mut gateway = Gateway::builder().config(config).start();
    for (provider, image) in [("docker", "debian:12"), ("lxc", "images:debian/12")] {
        let create = format!("workspace create p --image {image} --provider {provider} --up");
        for restart in [false, true] {
            let created = gateway.control(&create).finish().exits(5);
            assert!(created.error_text().contains(provider), "{created}");
            assert_eq!(gateway.state("p"), "failed");
            if restart {
                gateway.kill();
                gateway.start();
            }
            gateway.control("workspace destroy p --yes").ok();
            gateway.control("workspace status p").finish().exits(3);
            // Its name is free again.
            gateway
                .control(&format!("workspace create p --image {BUSYBOX}"))
                .ok();
            gateway.control("workspace destroy p --yes").ok();
        }
    }
    assert_eq!(gateway.workspaces(), Vec::<String>::new());
}

#[test]
fn flags_make_a_workspace_as_a_config_does() {
    let gateway = Gateway::docker();
    let flags =
        format!("--image {BUSYBOX} --cpu 0.5 --memory 128M --env GREETING=hello --user dev --up");
    gateway
        .control(&format!("workspace create ws {flags}"))
        .ok();
    assert_eq!(
        gateway.exec("ws", "echo $GREETING; id -un").ok().text(),
        "hello\ndev"
    );
}

#[test]
fn a_user_that_the_image_has_not_is_named_by_the_start_and_by_sessions() {
    let gateway = Gateway::docker();
    gateway.create("ws", &format!("{}user: ghost\n", docker(TOOLS)));
    let up = gateway.control("workspace up ws").finish().exits(3);
    for words in ["log in", "no user \"ghost\"", "rebuild ws --user NAME"] {
        assert!(up.error_text().contains(words), "{words}: {up}");
    }
    assert_eq!(gateway.state("ws"), "failed");
    let session = gateway.exec("ws", "true").finish().exits(3);
    let told = session.error_text();
    assert!(told.contains("no user \"ghost\""), "{session}");
    let asked = gateway.exec("ws+specter", "true").finish().exits(3);
    let told = asked.error_text();
    assert!(told.contains("no user \"specter\""), "{asked}");
    // Somebody else gets in, and can add them.
    let line = "ghost:x:4711:4711::/tmp:/bin/sh";
    let add = format!("echo {line} >>/etc/passwd");
    gateway.exec("ws+root", &add).ok();
    gateway.control("workspace up ws").ok();
    assert_eq!(gateway.exec("ws", "id -u").ok().text(), "4711");
    gateway.control("workspace rebuild ws --user dev").ok();
    assert_eq!(gateway.exec("ws", "id -un").ok().text(), "dev");
}

#[test]
fn the_container_is_labelled_limited_and_has_the_agent_as_its_first_process() {
    let gateway = Gateway::docker();
    let config = format!("{}resources: {{cpu: 0.5, memory: 256M}}\n", docker(TOOLS));
    gateway.create("ws", &config);
    gateway.control("workspace up ws").ok();
    let id = gateway.control("workspace status ws --json").ok().json()["workspace"]["id"].clone();
    let id = id.as_str().expect("an id");
    let containers = gateway
        .engine()
        .labelled(&format!("vendetta.workspace={id}"));
    let [container, volume] = &containers[..] else {
        panic!("not one container and volume: {containers:?}")
    };
    let container = container.strip_prefix("container ").expect("a container");
    assert!(container.starts_with("vendetta-ws-"), "{container}");
    assert!(volume.starts_with("volume "), "{volume}");
    let format = "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.Privileged}}";
    let inspect = gateway
        .engine()
        .docker(&["inspect", "--format", format, container])
        .ok();
    assert_eq!(inspect.text(), "500000000 268435456 false");
    let first = gateway.exec("ws", "tr '\\0' ' ' </proc/1/cmdline").ok();
    assert!(first.text().contains("agent serve"), "{first}");
    // Neither the agent's keys nor those of the gateway are the environment's to read.
    gateway
        .exec("ws+dev", "! cat /.vendetta/run/agent.json 2>/dev/null")
        .ok();
}

#[test]
fn the_folder_workspace_survives_a_rebuild_and_nothing_else_does() {
    let gateway = Gateway::with_workspace();
    gateway
        .exec("ws", "echo kept >/workspace/file; echo lost >/root/file")
        .ok();
    gateway.control("workspace down ws").ok();
    gateway.control("workspace up ws").ok();
    assert_eq!(
        gateway
            .exec("ws", "cat /workspace/file /root/file")
            .ok()
            .text(),
        "kept\nlost"
    );
    gateway.control("workspace rebuild ws").ok();
    let run = gateway
        .exec("ws", "cat /workspace/file; test -e /root/file")
        .finish()
        .exits(1);
    assert_eq!(run.text(), "kept");
}

#[test]
fn two_ups_at_once_join_and_both_see_the_progress() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS));
    let ups: Vec<_> = (0..3)
        .map(|_| gateway.control("workspace up ws").start())
        .collect();
    for up in ups {
        let up = up.finish().ok();
        let progress = format!("{}{}", up.text(), up.error_text());
        assert!(
            progress.to_lowercase().contains("start"),
            "no progress: {up}"
        );
    }
    let containers = gateway
        .resources()
        .iter()
        .filter(|name| name.starts_with("container "))
        .count();
    assert_eq!(containers, 1);
    // What is up already stays as it is.
    let pid = gateway
        .exec(
            "ws",
            "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat",
        )
        .ok()
        .text();
    gateway.control("workspace up ws").ok();
    assert_eq!(
        gateway
            .exec(
                "ws",
                "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat"
            )
            .ok()
            .text(),
        pid
    );
}

#[test]
fn connecting_brings_up_a_workspace_that_was_never_started() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS));
    let run = gateway.exec("ws", "cat; echo done").stdin("hi\n").ok();
    assert_eq!(
        run.stdout, b"hi\ndone\n",
        "the progress is no part of stdout"
    );
    assert!(!run.stderr.is_empty(), "nothing told why it took a while");
    // Once it runs nothing is said any more.
    assert_eq!(gateway.exec("ws", "true").ok().error_text(), "");
}

#[test]
fn a_hundred_that_connect_to_a_stopped_workspace_start_it_once() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS));
    let runs: Vec<_> = (0..20)
        .map(|i| {
            gateway
                .exec("ws", &format!("echo {i}"))
                .limit(PATIENCE * 2)
                .start()
        })
        .collect();
    for (i, run) in runs.into_iter().enumerate() {
        assert_eq!(run.finish().ok().text(), i.to_string());
    }
    let containers = gateway
        .resources()
        .iter()
        .filter(|name| name.starts_with("container "))
        .count();
    assert_eq!(containers, 1);
}

#[test]
fn a_workspace_taken_down_stays_down_and_says_how_to_bring_it_up() {
    let gateway = Gateway::with_workspace();
    gateway.control("workspace down ws").ok();
    for _ in 0..2 {
        let run = gateway.exec("ws", "true").finish();
        assert!(![0, 255].contains(&run.code()), "{run}");
        assert!(run.error_text().contains("workspace up ws"), "{run}");
    }
    assert_eq!(gateway.state("ws"), "stopped");
}

#[test]
fn auto_up_is_the_owner_s_choice() {
    let gateway = Gateway::docker();
    gateway.create("never", &format!("{}auto_up: false\n", docker(BUSYBOX)));
    let run = gateway.exec("never", "true").finish();
    assert!(![0, 255].contains(&run.code()), "{run}");
    assert!(run.error_text().contains("workspace up never"), "{run}");
    gateway.create("always", &format!("{}auto_up: always\n", docker(BUSYBOX)));
    gateway.exec("always", "true").ok();
    gateway.control("workspace down always").ok();
    gateway.exec("always", "true").ok();
}

#[test]
fn a_container_that_was_killed_comes_back_at_the_next_connection() {
    let gateway = Gateway::with_workspace();
    gateway.exec("ws", "echo kept >/workspace/file").ok();
    let container = gateway.container().expect("a container");
    let engine = gateway.engine();
    engine.docker(&["kill", &container]).ok();
    assert_eq!(
        gateway.exec("ws", "cat /workspace/file").ok().text(),
        "kept"
    );
    // Even when somebody removed it altogether.
    engine.docker(&["rm", "--force", &container]).ok();
    assert_eq!(
        gateway.exec("ws", "cat /workspace/file").ok().text(),
        "kept"
    );
}

#[test]
fn a_container_that_is_paused_is_started_anew_by_what_its_clients_are_told() {
    let gateway = Gateway::docker();
    gateway.workspace("ws", BUSYBOX);
    let container = gateway.container().expect("a container");
    gateway.engine().docker(&["pause", &container]).ok();
    // Another user than the default: no connection is ready for him.
    let refused = gateway.exec("ws+root", "true").finish().exits(5);
    for remedy in ["status ws", "down ws", "up ws"] {
        let remedy = format!("workspace {remedy}");
        let told = format!("ssh vendetta {remedy}");
        assert!(refused.error_text().contains(&told), "{refused}");
        gateway.control(&remedy).ok();
    }
    gateway.exec("ws", "true").ok();
}

#[test]
fn a_client_that_leaves_stops_watching_and_not_the_work() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker(TOOLS));
    let mut up = gateway.control("workspace up ws").start();
    eventually("the work begins", || gateway.state("ws") != "created");
    up.signal(Signal::SIGKILL);
    drop(up);
    eventually("the workspace runs", || gateway.state("ws") == "running");
}

#[test]
fn an_image_that_cannot_be_had_fails_with_cause_and_remedy_and_can_be_tried_again() {
    let gateway = Gateway::docker();
    gateway.create("ws", &docker("no-such-registry.invalid/image:1"));
    for _ in 0..2 {
        let run = gateway
            .control("workspace up ws")
            .limit(PATIENCE * 2)
            .finish()
            .exits(5);
        assert!(
            run.error_text()
                .contains("no-such-registry.invalid/image:1"),
            "{run}"
        );
        assert_eq!(gateway.state("ws"), "failed");
    }
    let run = gateway.exec("ws", "true").limit(PATIENCE * 2).finish();
    assert!(![0, 255].contains(&run.code()), "{run}");
    gateway.control("workspace destroy ws --yes").ok();
    assert_eq!(gateway.resources(), Vec::<String>::new());
}

#[test]
fn sessions_end_when_their_workspace_goes_down() {
    let gateway = Gateway::with_workspace();
    let run = gateway
        .exec(
            "ws",
            "echo up; trap 'echo told; exit 1' TERM HUP; sleep 600 & wait",
        )
        .spawn();
    run.expect_stdout(0, "up\n");
    gateway.control("workspace down ws").ok();
    assert_ne!(run.finish().code(), 0);
}

#[test]
fn an_engine_that_does_not_run_is_named_with_exit_status_5() {
    let gateway = Gateway::builder()
        .config("[docker]\nsocket = \"/no/such/docker.sock\"\n")
        .start();
    gateway.create("ws", &docker(TOOLS));
    let run = gateway.control("workspace up ws").finish().exits(5);
    assert!(run.error_text().contains("/no/such/docker.sock"), "{run}");
    let run = gateway.exec("ws", "true").finish().exits(5);
    assert!(run.error_text().contains("/no/such/docker.sock"), "{run}");
}

#[test]
fn a_host_workspace_serves_like_a_container_where_the_node_allows_it() {
    let gateway = Gateway::builder().host().start();
    gateway.create("box", "provider: host\n");
    gateway.control("workspace up box").ok();
    assert_eq!(
        gateway
            .exec("box", "cat; exit 3")
            .stdin("hi")
            .finish()
            .exits(3)
            .text(),
        "hi"
    );
    gateway.control("workspace down box").ok();
    gateway.control("workspace destroy box --yes").ok();
    let gateway = Gateway::builder().start();
    let create = gateway
        .control("workspace create box --config -")
        .stdin("provider: host\n")
        .finish();
    assert_ne!(create.code(), 0, "{create}");
    assert!(create.error_text().contains("host"), "{create}");
    assert_eq!(gateway.workspaces(), Vec::<String>::new());
}

#[test]
fn logs_show_what_the_environment_wrote() {
    let gateway = Gateway::with_workspace();
    let run = gateway.control("workspace logs ws").ok();
    assert!(!run.text().is_empty(), "{run}");
    let last = gateway.control("workspace logs ws --tail 1").ok();
    assert_eq!(last.text().lines().count(), 1, "{last}");
}

#[test]
fn exec_and_connect_lead_into_the_workspace() {
    let gateway = Gateway::with_workspace();
    let run = gateway
        .control("workspace exec ws -- 'cat; exit 9'")
        .stdin("in")
        .finish()
        .exits(9);
    assert_eq!(run.stdout, b"in");
    let run = gateway
        .control("workspace exec ws --user dev -- id -un")
        .ok();
    assert_eq!(run.text(), "dev");
    let mut run = gateway
        .ssh("vendetta")
        .args(["-t", "workspace connect ws"])
        .start_on_terminal(24, 80);
    run.send("echo is-$((40 + 2)); exit 4\n");
    run.expect_stdout(0, "is-42");
    let _ = run.finish().exits(4);
}

#[test]
fn an_image_that_is_not_there_is_pulled_and_how_far_it_is_is_told() {
    let gateway = Gateway::docker();
    let engine = gateway.engine();
    // A registry in the engine's own network, for which it needs no TLS. It ends
    // with the process that we end.
    let config = gateway.scratch().join("registry.yml");
    let files = gateway.scratch().join("registry");
    let settings = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:5001\"}}\n",
        files.display()
    );
    std::fs::write(&config, settings).expect("the registry's configuration");
    let path = config.display().to_string();
    let registry = engine
        .inside(&[
            "setpriv",
            "--pdeathsig",
            "KILL",
            "docker-registry",
            "serve",
            &path,
        ])
        .limit(std::time::Duration::MAX)
        .start();
    let image = "localhost:5001/fresh:v1";
    let name = format!("fresh-{}", std::process::id());
    let fill = "dd if=/dev/urandom of=/big bs=1M count=24";
    engine
        .docker(&[
            "run",
            "--name",
            &name,
            "--network",
            "none",
            BUSYBOX,
            "sh",
            "-c",
            fill,
        ])
        .ok();
    engine.docker(&["commit", &name, image]).ok();
    engine.docker(&["rm", &name]).ok();
    eventually("the registry takes the image", || {
        engine
            .docker(&["push", "--quiet", image])
            .finish()
            .status
            .success()
    });
    engine.docker(&["rmi", image]).ok();

    gateway.create("ws", &docker(image));
    let up = gateway.control("workspace up ws --json").ok().text();
    let events: Vec<serde_json::Value> = up
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect();
    let of = |kind: &'static str| events.iter().filter(move |event| event["event"] == kind);
    let transferred = of("transfer")
        .filter_map(|event| event["done"].as_u64())
        .max();
    assert!(transferred.is_some_and(|bytes| bytes > 1 << 20), "{up}");
    assert!(
        of("finished").any(|event| event["step"]
            .as_str()
            .is_some_and(|step| step.contains("pull"))),
        "{up}"
    );
    assert_eq!(gateway.exec("ws", "ls /big").ok().text(), "/big");
    gateway.control("workspace destroy ws --yes").ok();
    engine.docker(&["rmi", image]).ok();
    drop(registry);
}
