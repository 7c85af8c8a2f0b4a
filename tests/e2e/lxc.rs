//! Workspaces in system containers of Incus and LXD, here and on nodes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use vendetta_tests::{Gateway, Lxc, Node, PATIENCE, Run, eventually, random_bytes};

fn create(gateway: &Gateway, image: &str) {
    let line = format!("workspace create p --provider lxc --image {image}");
    gateway.control(&line).ok();
}

/// All that a day brings: sessions, files, forwards, down, up, rebuild, destroy.
fn one_day(engine: Lxc) {
    let gateway = Gateway::builder().lxc(engine).start();
    create(&gateway, "systemd");
    let up = gateway.control("workspace up p").ok();
    assert!(up.text().contains("ssh p@"), "{up}");
    let said = gateway.exec("p", "hostname; pwd; id -un; cat").stdin("in");
    assert_eq!(said.ok().text(), "p\n/workspace\nroot\nin");
    gateway.exec("p", "exit 7").finish().exits(7);
    assert_eq!(gateway.exec("p+dev", "id -un").ok().text(), "dev");
    let running = gateway.exec("p", "systemctl is-active vendetta-agent").ok();
    assert_eq!(running.text(), "active");
    files(&gateway);
    forwards(&gateway);

    gateway.exec("p", "echo lost >/root/file").ok();
    gateway.control("workspace down p").ok();
    assert_eq!(gateway.state("p"), "stopped");
    gateway.control("workspace up p").ok();
    let kept = gateway.exec("p", "cat /workspace/mine /root/file").ok();
    assert_eq!(kept.text(), "mine\nlost");
    gateway.control("workspace rebuild p").ok();
    let kept = gateway.exec("p", "cat /workspace/mine; test -e /root/file");
    assert_eq!(kept.finish().exits(1).text(), "mine");
    let logs = gateway.control("workspace logs p").ok();
    assert!(!logs.text().is_empty(), "{logs}");

    gateway.control("workspace destroy p --yes").ok();
    assert_eq!(gateway.lxc_resources(), Vec::<String>::new());
    gateway.control("workspace status p").finish().exits(3);
}

/// Files by scp and by rsync, both ways.
fn files(gateway: &Gateway) {
    let client = gateway.admin();
    let content = random_bytes(1, 3 << 20);
    let (there, back) = (
        gateway.scratch().join("there"),
        gateway.scratch().join("back"),
    );
    fs::write(&there, &content).expect("a file");
    let (from, to) = (there.display().to_string(), back.display().to_string());
    let rsh = client.ssh_command();
    let ways: [(&str, &dyn Fn() -> Run); 2] = [
        ("scp", &|| client.tool("scp").arg("-q")),
        ("rsync", &|| {
            client.program("rsync").args(["-a", "-e", &rsh])
        }),
    ];
    for (name, way) in ways {
        let copy = |from: &str, to: &str| {
            way().args([from, to]).ok();
        };
        copy(&from, "p@gateway:copy");
        copy("p@gateway:copy", &to);
        assert!(fs::read(&back).expect("a copy") == content, "{name}");
        fs::remove_file(&back).expect("removing it");
        gateway.exec("p", "rm -f copy ~/copy").ok();
    }
    gateway.exec("p", "echo mine >/workspace/mine").ok();
}

/// What a local port gets goes to one inside and comes back.
fn forwards(gateway: &Gateway) {
    gateway.echo_server("p", "tcp 127.0.0.1 7000");
    let free = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = free.local_addr().expect("its address").port();
    drop(free);
    let forward = format!("{port}:localhost:7000");
    let tunnel = gateway
        .ssh("p")
        .args(["-o", "ExitOnForwardFailure=yes", "-L", &forward]);
    let tunnel = tunnel.arg("echo ready; cat").spawn();
    tunnel.expect_stdout(0, "ready");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connecting");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream.write_all(b"there and back").expect("writing");
    stream.shutdown(Shutdown::Write).expect("half-closing");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("reading");
    assert_eq!(said, "there and back");
    let _ = tunnel.finish();
}

#[test]
fn a_workspace_lives_from_create_to_destroy_on_incus() {
    one_day(Lxc::Incus);
}

#[test]
fn a_workspace_lives_from_create_to_destroy_on_lxd() {
    one_day(Lxc::Lxd);
}

/// The same through a node's ssh, by a user there who is not root.
fn one_day_on_a_node(engine: Lxc) {
    let node = Node::builder().lxc(engine).start();
    let gateway = Gateway::builder().operator_key(node.user_key()).start();
    let line = format!("node add n1 dev@{}", node.address());
    let added = gateway.control(&line).ok();
    let found = format!("{}{}", added.text(), added.error_text());
    assert!(found.contains(&engine.to_string()), "{found}");
    let line = "workspace create p --provider lxc --image busybox --remote n1 --user dev --up";
    gateway.control(line).ok();
    let said = gateway.exec("p", "hostname; id -un; cat >mine && cat mine");
    assert_eq!(said.stdin("mine").ok().text(), "p\ndev\nmine");
    gateway.control("workspace down p").ok();
    gateway.control("workspace rebuild p").ok();
    gateway.control("workspace up p").ok();
    let kept = gateway.exec("p", "cat /workspace/mine").ok();
    assert_eq!(kept.text(), "mine");
    gateway.control("workspace destroy p --yes").ok();
    for left in [
        &["list", "--format=csv"][..],
        &[
            "storage",
            "volume",
            "list",
            "default",
            "type=custom",
            "--format=csv",
        ],
    ] {
        assert_eq!(node.lxc(left).ok().text(), "");
    }
    let profiles = node.lxc(&["query", "/1.0/profiles"]).ok().json();
    assert!(
        !profiles.to_string().contains("vendetta"),
        "no profile of ours: {profiles}"
    );
    let images = node.lxc(&["image", "list", "--format=csv"]).ok().text();
    assert_eq!(images.lines().count(), 1, "no image of ours: {images}");
}

#[test]
fn a_workspace_lives_from_create_to_destroy_on_a_node_with_incus() {
    one_day_on_a_node(Lxc::Incus);
}

#[test]
fn a_workspace_lives_from_create_to_destroy_on_a_node_with_lxd() {
    one_day_on_a_node(Lxc::Lxd);
}

#[test]
fn a_workspace_waits_for_its_own_engine_though_another_one_answers() {
    let node = Node::builder().lxc(Lxc::Incus).lxc(Lxc::Lxd).start();
    let mut gateway = Gateway::builder().operator_key(node.user_key()).start();
    let line = format!("node add n1 dev@{}", node.address());
    gateway.control(&line).ok();
    let line = "workspace create p --provider lxc --image busybox --remote n1 --up";
    gateway.control(line).ok();
    gateway.exec("p", "echo kept >/workspace/file; sync").ok();
    gateway.kill();
    node.kill_lxc();
    node.sh("rm /var/lib/incus/unix.socket").ok();
    gateway.start();
    for command in ["workspace up p", "workspace destroy p --yes"] {
        let said = gateway.control(command).finish().exits(5);
        assert!(
            said.error_text().contains("systemctl start incus"),
            "{said}"
        );
        if command.ends_with("up p") {
            node.start_lxc();
            gateway.control("workspace up p").ok();
            let kept = gateway.exec("p", "cat /workspace/file").ok();
            assert_eq!(kept.text(), "kept");
            node.kill_lxc();
        }
    }
    // A destroy is for good.
    node.start_lxc();
    eventually("nothing is left", || {
        gateway.workspaces().is_empty()
            && node.lxc(&["list", "--format=csv"]).ok().text().is_empty()
    });
}

#[test]
fn a_container_that_restarts_itself_comes_back_with_its_agent() {
    let gateway = Gateway::builder().lxc(Lxc::Incus).start();
    create(&gateway, "systemd");
    gateway.control("workspace up p").ok();
    let boot = "cut -d' ' -f22 /proc/1/stat";
    let before = gateway.exec("p", boot).ok().text();
    let _ = gateway.exec("p", "reboot").finish();
    eventually("it has restarted and answers", || {
        let said = gateway.exec("p", boot).finish();
        said.status.success() && said.text() != before
    });
    assert_eq!(gateway.state("p"), "running");
    // Nobody who looks for it in the meantime takes it for ended.
    gateway.control("workspace up p").ok();
    assert_eq!(gateway.exec("p", "echo hi").ok().text(), "hi");
}

#[test]
fn services_and_the_up_hook_come_back_when_it_restarts_itself() {
    let gateway = Gateway::builder().lxc(Lxc::Incus).start();
    let config = "provider: lxc
lxc: {image: systemd}
hooks: {up: \"echo up >>/workspace/ups\"}
services: {web: {command: \"echo on >>/workspace/starts; exec sleep infinity\"}}
";
    gateway.create("p", config);
    gateway.control("workspace up p").ok();
    // Asked of the engine: the gateway, asked for a session, would look at what there is.
    let resources = gateway.lxc_resources();
    let mut instances = resources
        .iter()
        .filter_map(|of| of.strip_prefix("instance "));
    let instance = instances.next().expect("a container");
    let lines = || {
        let count = "cat /workspace/starts | wc -l; cat /workspace/ups | wc -l";
        let client = gateway.lxc();
        let said = client.client(&["exec", instance, "--", "sh", "-c", count]);
        said.finish().text()
    };
    assert_eq!(lines(), "1\n1");
    let _ = gateway.exec("p", "reboot").finish();
    eventually("what ran in it runs again, unasked", || lines() == "2\n2");
    eventually("it is up", || gateway.state("p") == "running");
    // So it does when the agent alone was restarted …
    let kill = "systemctl kill --signal=KILL vendetta-agent";
    let _ = gateway.exec("p", kill).finish();
    eventually("it runs again, unasked", || lines() == "3\n3");
    eventually("it is up", || gateway.state("p") == "running");
    // … and whoever asks at once waits for it.
    let _ = gateway.exec("p", kill).finish();
    let up = gateway.control("workspace up p").ok();
    assert!(up.text().contains("services ready"), "{up}");
    assert_eq!(lines(), "4\n4");
}

#[test]
fn one_that_is_shut_down_from_inside_is_stopped_and_comes_back_when_asked() {
    let gateway = Gateway::builder().lxc(Lxc::Lxd).start();
    create(&gateway, "busybox");
    gateway.control("workspace up p").ok();
    let _ = gateway.exec("p", "poweroff").finish();
    eventually("it is known to have ended", || {
        gateway.state("p") != "running"
    });
    assert_eq!(gateway.exec("p", "echo hi").ok().text(), "hi");
}

#[test]
fn what_is_missing_is_named() {
    let gateway = Gateway::builder().start();
    create(&gateway, "busybox");
    let up = gateway.control("workspace up p").finish().exits(5);
    for words in ["no engine listens at", "no-lxc.sock", "section [lxc]"] {
        assert!(up.error_text().contains(words), "{words}: {up}");
    }
    let line = "workspace create q --provider lxc --image nowhere:debian";
    let refused = gateway.control(line).finish().exits(2);
    assert!(refused.error_text().contains("images:"), "{refused}");
    let gateway = Gateway::builder().lxc(Lxc::Incus).start();
    create(&gateway, "no-such-image");
    let up = gateway.control("workspace up p").finish().exits(3);
    assert!(up.error_text().contains("no-such-image"), "{up}");
}
