//! A rebuild from another config: what changes, what stays, and what is refused.

use std::fs;
use std::net::TcpListener;

use nix::sys::signal::Signal;
use serde_json::Value;
use vendetta_tests::{BUSYBOX, Finished, Gateway, Lxc, Run, TOOLS};

const REBUILD: &str = "workspace rebuild ws --config -";

/// What its services are called, sorted, and the ports of the gateway's machine that are theirs.
fn ports(gateway: &Gateway) -> Vec<(String, u64)> {
    let ports = gateway.control("workspace ports ws --json").ok().json();
    let ports = ports["mapped"].as_array().expect("a list").clone();
    let port = |port: &Value| {
        let name = port["service"].as_str().unwrap_or("none").to_owned();
        (name, port["host_port"].as_u64().expect("a port"))
    };
    let mut ports: Vec<_> = ports.iter().map(port).collect();
    ports.sort();
    ports
}

fn service(name: &str, port: u16, more: &str) -> String {
    let command = format!("exec socat TCP-LISTEN:{port},fork,reuseaddr EXEC:true");
    format!("  {name}: {{command: \"{command}\", port: {port}{more}}}\n")
}

#[test]
fn a_rebuild_from_another_config_changes_all_of_it_and_keeps_the_folder() {
    let mut gateway = Gateway::docker();
    let image = format!("docker: {{image: \"{TOOLS}\"}}\n");
    let config = |word: &str, services: &[String]| {
        let services = services.concat();
        format!("{image}env: {{WORD: {word}}}\nservices:\n{services}")
    };
    let (one, two) = (service("one", 7001, ""), service("two", 7002, ""));
    gateway.create("ws", &config("before", &[one.clone(), two]));
    gateway.control("workspace up ws").ok();
    gateway
        .exec("ws", "echo kept >file; echo lost >/root/file")
        .ok();
    let before = ports(&gateway);
    let [(_, port_of_one), (_, port_of_two)] = before[..] else {
        panic!("{before:?}")
    };

    // A service less, one more, and the port of the one that went wished for.
    let wish = format!(", host_port: {port_of_two}");
    let three = service("three", 7003, &wish);
    let changed = config("after", &[one, three]);
    let said = gateway.control(REBUILD).stdin(changed.as_str()).ok();
    assert!(said.text().contains("services ready"), "{said}");
    let now = "echo $WORD; cat file; ls /root | wc -l; echo $VENDETTA_SERVICE_THREE_PORT";
    let said = gateway.exec("ws", now).ok().text();
    assert_eq!(said, "after\nkept\n0\n7003");
    assert_eq!(
        ports(&gateway),
        [
            ("one".to_owned(), port_of_one),
            ("three".to_owned(), port_of_two)
        ]
    );

    // The two that are there change places.
    let wish = |port: u64| format!(", host_port: {port}");
    let one = service("one", 7001, &wish(port_of_two));
    let three = service("three", 7003, &wish(port_of_one));
    let swapped = config("after", &[one, three]);
    gateway.control(REBUILD).stdin(swapped).ok();
    assert_eq!(
        ports(&gateway),
        [
            ("one".to_owned(), port_of_two),
            ("three".to_owned(), port_of_one)
        ]
    );

    // Flags change what they name, and nothing else; of the files of another user it is
    // told what to do about them.
    let flags = "workspace rebuild ws --env WORD=flag --user dev";
    let said = gateway.control(flags).ok();
    let give = "workspace exec ws --user root -- chown -R dev /workspace";
    assert!(said.error_text().contains(give), "{said}");
    gateway.control(give).ok();
    gateway.exec("ws", "echo more >>file").ok();
    let now = "echo $WORD; id -un; echo $VENDETTA_SERVICE_THREE_PORT";
    assert_eq!(gateway.exec("ws", now).ok().text(), "flag\ndev\n7003");

    // It is what the workspace is from now on.
    gateway.control("workspace down ws").ok();
    gateway.kill();
    gateway.start();
    gateway.control("workspace up ws").ok();
    assert_eq!(gateway.exec("ws", now).ok().text(), "flag\ndev\n7003");
    gateway.control("workspace rebuild ws").ok();
    assert_eq!(gateway.exec("ws", now).ok().text(), "flag\ndev\n7003");
    gateway.control("workspace destroy ws --yes").ok();
    assert_eq!(gateway.resources(), Vec::<String>::new());
}

#[test]
fn the_environment_is_taken_leave_of_as_it_was_made() {
    let gateway = Gateway::docker();
    let image = format!("docker: {{image: \"{TOOLS}\"}}\n");
    let hooks = "hooks: {up: \"echo up >>log\", down: \"echo down >>log\"}\n";
    gateway.create("ws", &format!("{image}{hooks}"));
    gateway.control("workspace up ws").ok();
    let changed = hooks.replace("echo", "echo new");
    let changed = format!("{image}{changed}");
    gateway.control(REBUILD).stdin(changed).ok();
    gateway.control(REBUILD).stdin(image).ok();
    let log = gateway.exec("ws", "cat log").ok().text();
    assert_eq!(log, "up\ndown\nnew up\nnew down");
}

#[test]
fn rebuilds_at_once_lose_no_change_of_one_another() {
    let gateway = Gateway::docker();
    gateway.create("ws", &format!("docker: {{image: \"{BUSYBOX}\"}}\n"));
    let rebuild = |env: &str| gateway.control(&format!("workspace rebuild ws --env {env}"));
    // Before it was ever up, and while the other is under way.
    let (one, two) = (rebuild("ONE=1").spawn(), rebuild("TWO=2").spawn());
    let (one, two) = (one.finish(), two.finish());
    let given_up = |run: &Finished| run.code() == 4 && run.error_text().contains("given up");
    assert!(one.status.success() || given_up(&one), "{one}");
    assert!(two.status.success() || given_up(&two), "{two}");
    gateway.control("workspace up ws").ok();
    assert_eq!(gateway.exec("ws", "echo $ONE$TWO").ok().text(), "12");
    // One that nobody waits for is done as well; so is one of a workspace that is down.
    let mut left = rebuild("THREE=3").start();
    left.expect_stderr(0, "container");
    left.signal(Signal::SIGKILL);
    drop(left);
    gateway.control("workspace down ws").ok();
    rebuild("FOUR=4").ok();
    let said = gateway.exec("ws", "echo $ONE$TWO$THREE$FOUR").ok();
    assert_eq!(said.text(), "1234");
}

/// Whatever the engine is: nothing ends before all is there that replaces it.
fn serves_on_until_it_can_be_replaced(gateway: &Gateway, config: &str) {
    gateway.create(
        "ws",
        &format!("{config}hooks: {{down: \"echo down >>log\"}}\nports: [8000]\n"),
    );
    gateway.control("workspace up ws").ok();
    let mut session = gateway.exec("ws", "cat").spawn();
    session.send("on\n");
    session.expect_stdout(0, "on");
    let rebuild = gateway.control("workspace rebuild ws --image no-such-image");
    let failed = rebuild.finish();
    let remedy = "workspace rebuild ws --image IMAGE";
    assert!(failed.error_text().contains(remedy), "{failed}");
    assert_eq!(gateway.state("ws"), "failed");
    let status = gateway.control("workspace status ws").ok();
    assert!(status.text().contains("no-such-image"), "{status}");
    // The session of before, a new one, and the port are as they were.
    session.send("still\n");
    session.expect_stdout(0, "still");
    let said = gateway.exec("ws", "cat log 2>/dev/null; echo here").ok();
    assert_eq!(said.text(), "here");
    let ports = gateway.control("workspace ports ws --json").ok().json();
    assert_eq!(ports["mapped"][0]["state"], "open");
    drop(session);
    // It is taken leave of when it is replaced.
    gateway.control(REBUILD).stdin(config).ok();
    let said = gateway.exec("ws", "cat log").ok();
    assert_eq!(said.text(), "down");
    gateway.control("workspace destroy ws --yes").ok();
}

#[test]
fn a_container_serves_on_until_it_can_be_replaced() {
    let config = format!("docker: {{image: \"{BUSYBOX}\"}}\n");
    serves_on_until_it_can_be_replaced(&Gateway::docker(), &config);
}

#[test]
fn a_container_of_incus_serves_on_until_it_can_be_replaced() {
    let gateway = Gateway::builder().lxc(Lxc::Incus).start();
    serves_on_until_it_can_be_replaced(&gateway, "lxc: {image: busybox}\n");
}

#[test]
fn a_container_of_lxd_serves_on_until_it_can_be_replaced() {
    let gateway = Gateway::builder().lxc(Lxc::Lxd).start();
    serves_on_until_it_can_be_replaced(&gateway, "lxc: {image: busybox}\n");
}

#[test]
fn what_a_rebuild_cannot_do_is_refused_and_changes_nothing() {
    let gateway = Gateway::docker();
    let config = format!("docker: {{image: \"{BUSYBOX}\"}}\nenv: {{WORD: before}}\n");
    gateway.create("ws", &config);
    gateway.control("workspace up ws").ok();
    let started = "cut -d' ' -f22 /proc/1/stat; echo $WORD";
    let before = gateway.exec("ws", started).ok().text();
    let after = config.replace("before", "after");
    let taken = TcpListener::bind((gateway.ports_address(), 0)).expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let held = format!(
        "services:\n{}",
        service("web", 80, &format!(", host_port: {port}"))
    );
    for (wrong, status, words) in [
        ("provider: qemu\n", 4, ["not qemu", "--provider docker"]),
        (
            "remote: {node: 192.0.2.7}\n",
            4,
            ["not on 192.0.2.7", "--remote local"],
        ),
        (
            "remote: {node: elsewhere}\n",
            3,
            ["no node elsewhere", "node list"],
        ),
        (&held, 4, ["is held by", "host_port"]),
        ("services: {a: {comand: x}}\n", 2, ["3:16", "command"]),
        ("user: \"no such user\"\n", 2, ["3:7", "user"]),
    ] {
        let config = format!("{after}{wrong}");
        let run = gateway
            .control(REBUILD)
            .stdin(config)
            .finish()
            .exits(status);
        for word in words {
            assert!(run.error_text().contains(word), "{word}: {run}");
        }
    }
    let run = gateway.control("workspace rebuild ws --cpu 0").finish();
    let run = run.exits(2);
    for word in ["cpu", "workspace rebuild --help"] {
        assert!(run.error_text().contains(word), "{word}: {run}");
    }
    // A file of the gateway's machine is none of its callers' business.
    let run = gateway.control("workspace rebuild ws --config /etc/passwd");
    assert!(run.finish().exits(2).error_text().contains("--config - <"));
    assert_eq!(gateway.exec("ws", started).ok().text(), before);

    // What the image has not is known once it starts, and can be changed back.
    let absent = gateway.control("workspace rebuild ws --user ada").finish();
    assert!(absent.exits(3).error_text().contains("ada"));
    // That it is somebody else's is told, and no more.
    let whole = format!("name: other\n{after}provider: docker\nremote: {{node: local}}\n");
    let said = gateway.control(REBUILD).stdin(whole).ok();
    assert!(said.error_text().contains("that of other"), "{said}");
    assert_eq!(gateway.exec("ws", "echo $WORD").ok().text(), "after");
    // As it was created, from a config that says something else.
    let other = format!("{config}provider: qemu\nremote: {{node: elsewhere}}\n");
    let flags = format!("{REBUILD} --provider docker --remote local");
    gateway.control(&flags).stdin(other).ok();
    assert_eq!(gateway.exec("ws", "echo $WORD").ok().text(), "before");
}

#[test]
fn an_image_is_built_anew_from_what_is_sent() {
    let gateway = Gateway::docker();
    let root = gateway.scratch().join("project");
    fs::create_dir_all(root.join(".vendetta")).expect("a folder");
    let put = |path: &str, content: &str| fs::write(root.join(path), content).expect("a file");
    put(".vendetta/config.yaml", "docker: {build: {}}\n");
    put(
        "Dockerfile",
        &format!("FROM {TOOLS}\nRUN echo one >/which\n"),
    );
    let create = ["workspace", "create", "ws", "--up"];
    gateway.front().current_dir(&root).args(create).ok();
    let which = || gateway.exec("ws", "cat /which").ok().text();
    assert_eq!(which(), "one");

    put(
        "Dockerfile",
        &format!("FROM {TOOLS}\nRUN echo two >/which\n"),
    );
    let archive = Run::new("tar").current_dir(&root).args(["c", "."]).ok();
    gateway.control(REBUILD).stdin(archive.stdout).ok();
    assert_eq!(which(), "two");
    put(
        "Dockerfile",
        &format!("FROM {TOOLS}\nRUN echo three >/which\n"),
    );
    // Without a config what was sent last serves, wherever the command is given.
    let rebuild = ["workspace", "rebuild", "ws"];
    gateway.front().current_dir(&root).args(rebuild).ok();
    assert_eq!(which(), "two");
    let config = [&rebuild[..], &["--config", ".vendetta/config.yaml"]].concat();
    gateway.front().current_dir(&root).args(&config).ok();
    assert_eq!(which(), "three");

    // A Dockerfile that is wrong is mended as its remedy says.
    put("Dockerfile", &format!("FROM {TOOLS}\nRUN false\n"));
    let wrong = gateway.front().current_dir(&root).args(&config).finish();
    assert!(wrong.error_text().contains("workspace rebuild"), "{wrong}");
    put(
        "Dockerfile",
        &format!("FROM {TOOLS}\nRUN echo four >/which\n"),
    );
    gateway.front().current_dir(&root).args(&config).ok();
    assert_eq!(which(), "four");

    // An image instead: what it was built from goes.
    let kept = gateway.state_dir().join("contexts");
    assert_eq!(fs::read_dir(&kept).expect("a folder").count(), 1);
    let image = format!("workspace rebuild ws --image {TOOLS}");
    gateway.control(&image).ok();
    gateway.exec("ws", "cat /which").finish().exits(1);
    let resources = gateway.resources();
    assert!(
        resources.iter().all(|one| !one.starts_with("image ")),
        "{resources:?}"
    );
    assert_eq!(fs::read_dir(&kept).expect("a folder").count(), 0);
    gateway.control("workspace destroy ws --yes").ok();
    assert_eq!(gateway.resources(), Vec::<String>::new());
}
