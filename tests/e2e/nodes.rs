//! Nodes: machines with sshd that become the gateway's by one command.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vendetta::node::{Kvm, LocalNode, try_guest};
use vendetta_tests::{
    Agent, BUSYBOX, Gateway, Link, Node, Run, Running, TOOLS, eventually, random_bytes,
};

/// A gateway whose operator has the lab's key.
fn gateway(node: &Node) -> Gateway {
    Gateway::builder().operator_key(node.user_key()).start()
}

/// A gateway and on it the node `n1` with Docker.
fn with_docker() -> (Node, Gateway) {
    let node = Node::with_docker();
    let gateway = gateway(&node);
    add(&gateway, "n1", &node);
    (node, gateway)
}

fn add(gateway: &Gateway, name: &str, node: &Node) {
    let line = format!("node add {name} dev@{}", node.address());
    gateway.control(&line).ok();
}

/// The state of a node, as `node status` tells it.
fn state(gateway: &Gateway, name: &str) -> String {
    let status = gateway
        .control(&format!("node status {name} --json"))
        .ok()
        .json();
    status["health"]["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn becomes(gateway: &Gateway, name: &str, wanted: &str) {
    eventually(&format!("node {name} is {wanted}"), || {
        state(gateway, name) == wanted
    });
}

/// Brings up the workspace `name` on `node`.
fn workspace(gateway: &Gateway, name: &str, node: &str) {
    let line = format!("workspace create {name} --image {BUSYBOX} --remote {node} --up");
    gateway.control(&line).ok();
}

/// The flow that everybody begins with, through the local command and through ssh.
fn flow(delay: Option<Duration>) {
    let node = Node::with_docker();
    let gateway = gateway(&node);
    if let Some(each_way) = delay {
        node.delay(each_way);
    }
    let said = gateway
        .control(&format!("node add node1 {} --user dev", node.address()))
        .ok();
    let fingerprint = node.host_key_fingerprint();
    assert!(said.error_text().contains(&fingerprint), "{said}");

    let project = gateway.scratch().join("project");
    let config = format!("docker: {{image: \"{TOOLS}\"}}\n");
    fs::create_dir_all(project.join(".vendetta")).expect("a folder");
    fs::write(project.join(".vendetta/config.yaml"), &config).expect("a config");
    let local = |words: &str| gateway.front().current_dir(&project).args(words.split(' '));
    let create = "workspace create my-project --provider docker --remote node1";
    local(create).ok();
    one_day(&gateway, &node, &local);
    gateway
        .control(&format!("{create} --config -"))
        .stdin(config)
        .ok();
    one_day(&gateway, &node, &|words: &str| gateway.control(words));
}

/// From `up` to `destroy`.
fn one_day(gateway: &Gateway, node: &Node, vendetta: &dyn Fn(&str) -> Run) {
    let up = vendetta("workspace up my-project").ok();
    assert!(up.text().contains("ssh my-project@"), "{up}");
    let command = "hostname; cat > /workspace/kept";
    let shell = gateway.exec("my-project", command).stdin("x").ok();
    assert_eq!(shell.text(), "my-project");
    let kept = vendetta("workspace exec my-project -- cat /workspace/kept").ok();
    assert_eq!(kept.text(), "x");
    let connected = vendetta("workspace connect my-project")
        .stdin("echo $((40 + 2))\n")
        .ok();
    assert!(connected.text().contains("42"), "{connected}");
    let containers = node.docker(&["ps", "--format", "{{.Names}}"]).ok();
    assert!(containers.text().contains("my-project"), "{containers}");
    vendetta("workspace down my-project").ok();
    assert_eq!(gateway.state("my-project"), "stopped");
    vendetta("workspace destroy my-project --yes").ok();
    for left in [["ps", "--all", "--quiet"], ["volume", "ls", "--quiet"]] {
        assert_eq!(node.docker(&left).ok().text(), "");
    }
}

#[test]
fn the_flow_of_a_day_works_on_a_node_word_for_word() {
    flow(None);
}

#[test]
fn the_flow_of_a_day_works_on_a_node_50_ms_away() {
    flow(Some(Duration::from_millis(50)));
}

#[test]
fn everything_of_ssh_works_on_a_node_50_ms_away() {
    let (node, gateway) = with_docker();
    let line = format!("workspace create ws --image {TOOLS} --remote n1 --up");
    gateway.control(&line).ok();
    node.delay(Duration::from_millis(50));
    let sent = random_bytes(7, 4 << 20);
    let echoed = gateway
        .exec("ws", "cat; echo done >&2; exit 7")
        .stdin(sent.clone());
    let echoed = echoed.finish().exits(7);
    assert!(
        echoed.stdout == sent,
        "{} bytes came back",
        echoed.stdout.len()
    );
    assert_eq!(echoed.error_text().trim(), "done");
    let file = gateway.scratch().join("sent");
    fs::write(&file, &sent).expect("a file");
    let scp = |args: &[&str]| gateway.admin().tool("scp").args(args).ok();
    let path = file.display().to_string();
    scp(&["-q", &path, "ws@gateway:/workspace/got"]);
    scp(&["-q", "ws@gateway:/workspace/got", &format!("{path}.back")]);
    assert!(fs::read(format!("{path}.back")).expect("the file") == sent);
    gateway.echo_server("ws", "tcp 127.0.0.1 7000");
    let through = gateway
        .ssh("ws")
        .args(["-W", "127.0.0.1:7000"])
        .stdin("ping\n");
    assert!(through.ok().text().contains("ping"));
    let agent = Agent::with(&[gateway.admin().key()]);
    let option = format!("IdentityAgent={}", agent.socket().display());
    let signer =
        gateway
            .admin()
            .tool("ssh")
            .args(["-A", "-o", &option, "ws@gateway", "ssh-add -l"]);
    assert!(signer.ok().text().contains("ED25519"));
}

#[test]
fn the_agent_is_sent_to_a_node_once_and_that_is_told() {
    let (_node, gateway) = with_docker();
    // For programs, to which steps are told that are over in no time.
    let up = |name: &str| {
        let line = format!("workspace create {name} --image {BUSYBOX} --remote n1 --up --json");
        gateway.control(&line).ok().text()
    };
    let told = "install the agent on n1";
    let (first, second) = (up("one"), up("two"));
    assert!(first.contains(told), "{first}");
    assert!(!second.contains(told), "{second}");
}

#[test]
fn the_node_key_opens_a_node_where_somebody_installed_it_by_hand() {
    let node = Node::builder().no_key().start();
    let gateway = Gateway::builder().start();
    let refused = gateway
        .control(&format!("node add n1 dev@{}", node.address()))
        .finish()
        .exits(5);
    assert!(refused.error_text().contains("node key"), "{refused}");
    let key = gateway.control("node key").ok().text();
    node.sh(&format!(
        "mkdir -p ~dev/.ssh && echo '{key}' >> ~dev/.ssh/authorized_keys && chown -R dev ~dev/.ssh"
    ))
    .ok();
    let before = node.sh("sha256sum ~dev/.ssh/authorized_keys").ok().text();
    add(&gateway, "n1", &node);
    assert_eq!(
        node.sh("sha256sum ~dev/.ssh/authorized_keys").ok().text(),
        before
    );
}

#[test]
fn the_operator_s_agent_opens_a_node() {
    let node = Node::start();
    let gateway = Gateway::builder().operator_agent(node.user_key()).start();
    add(&gateway, "n1", &node);
    becomes(&gateway, "n1", "up");
}

#[test]
fn the_caller_s_forwarded_agent_opens_a_node_and_is_asked_for_nothing_without_a() {
    let node = Node::start();
    let gateway = Gateway::builder().start();
    let agent = Agent::with(&[node.user_key()]);
    let line = format!("node add n1 dev@{}", node.address());
    let with_agent = |run: Run| run.env("SSH_AUTH_SOCK", agent.socket());
    with_agent(gateway.control(&line)).finish().exits(5);
    let forwarding = gateway.admin().tool("ssh").args(["-A", "-o"]);
    let forwarding = forwarding.arg(format!("IdentityAgent={}", agent.socket().display()));
    with_agent(forwarding)
        .args(["vendetta@gateway", &line])
        .ok();
    becomes(&gateway, "n1", "up");
    // And through the local command, which says as plainly that it forwards it.
    let other = Node::start();
    let line = format!("node add n2 dev@{}", other.address());
    let words = || line.split(' ');
    let _ = with_agent(gateway.front()).args(words()).finish().exits(5);
    with_agent(gateway.front())
        .env("IDENTITY_AGENT", agent.socket())
        .arg("-A")
        .args(words())
        .ok();
    becomes(&gateway, "n2", "up");
}

#[test]
fn a_member_sees_the_nodes_and_uses_them_but_changes_none() {
    let (node, gateway) = with_docker();
    becomes(&gateway, "n1", "up");
    let member = gateway.member("alice");
    let listed = member.control("node list").ok().text();
    let address = node.address().to_string();
    assert!(
        listed.contains("n1") && !listed.contains(&address),
        "{listed}"
    );
    let status = member.control("node status n1 --json").ok().json();
    assert!(status["host"].is_null(), "{status}");
    for line in [
        format!("node add n2 dev@{address} --port 2222"),
        "node test n1".to_owned(),
        "node rename n1 mine".to_owned(),
        "node remove n1 --yes".to_owned(),
        "node key".to_owned(),
    ] {
        let _ = member.control(&line).finish().exits(3);
    }
    let line = format!("workspace create hers --image {BUSYBOX} --remote n1 --up");
    member.control(&line).ok();
    assert_eq!(member.exec("hers", "hostname").ok().text(), "hers");
}

#[test]
fn what_is_no_node_and_no_address_is_told() {
    let gateway = Gateway::builder().start();
    for (line, code, told) in [
        ("node add Bad_Name 10.0.0.1", 2, "lower-case"),
        ("node add n1 'a b'", 2, "USER@"),
        ("node add n1 box:0", 2, "USER@"),
        ("node add local 127.0.0.1", 4, "own machine"),
        ("node add n1 127.0.0.1:1", 5, "127.0.0.1:1"),
        ("node add n1 nowhere.invalid", 5, "nowhere.invalid"),
        ("node add n1 127.0.0.1 --jump n2", 3, "no node n2"),
        ("node status n1", 3, "node add n1"),
        ("node remove local --yes", 4, "own machine"),
    ] {
        let run = gateway.control(line).finish().exits(code);
        assert!(run.error_text().contains(told), "{told} is not told: {run}");
    }
    let local = gateway.control("node add local 127.0.0.1").finish();
    assert!(!local.error_text().contains("Connecting"), "{local}");
    let nodes = gateway.control("node list --json").ok().json();
    assert_eq!(nodes["nodes"][0]["name"], "local");
}

/// `node add n1` on a terminal.
fn add_on_a_terminal(gateway: &Gateway, node: &Node) -> Running {
    gateway
        .admin()
        .tool("ssh")
        .args(["-tt", "vendetta@gateway", "node", "add", "n1"])
        .arg(format!("dev@{}", node.address()))
        .start_on_terminal(24, 120)
}

#[test]
fn a_password_is_asked_for_once_and_never_seen_again() {
    let pam = [
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication yes",
        "UsePAM yes",
    ];
    for lines in [&[][..], &pam] {
        let node = lines
            .iter()
            .fold(Node::builder().no_key(), |node, line| node.sshd_line(line))
            .start();
        let gateway = Gateway::builder().start();
        let mut session = add_on_a_terminal(&gateway, &node);
        let asked = session.expect_stdout(0, "assword");
        let password = node.password("dev");
        session.send(format!("{password}\r"));
        session.expect_stdout(asked, "added");
        let said = session.finish().ok().text();
        assert!(!said.contains(&password), "{said}");
        assert!(!gateway.log().contains(&password));
        becomes(&gateway, "n1", "up");
        // The key is there now, and nobody is asked again.
        gateway.control("node test n1").ok();
    }
}

#[test]
fn a_mistyped_password_may_be_typed_again_and_nothing_is_left_of_one_that_is_wrong() {
    let node = Node::builder().no_key().start();
    let gateway = Gateway::builder().start();
    let mut session = add_on_a_terminal(&gateway, &node);
    let mut seen = 0;
    for typed in ["wrong\r", "de\x15dev-passwort\x7fd\r"] {
        seen = session.expect_stdout(seen, "assword");
        session.send(typed);
    }
    session.expect_stdout(seen, "added");
    session.finish().ok();
    gateway.control("node remove n1 --yes").ok();

    let mut session = add_on_a_terminal(&gateway, &node);
    let mut seen = 0;
    for _ in 0..3 {
        seen = session.expect_stdout(seen, "assword");
        session.send("wrong\r");
    }
    let said = session.finish().exits(5).text();
    assert!(said.contains("a password: not accepted"), "{said}");
    let _ = gateway.control("node status n1").finish().exits(3);
    // Ctrl-C ends the question.
    let mut session = add_on_a_terminal(&gateway, &node);
    session.expect_stdout(0, "assword");
    session.send("\x03");
    session.finish().exits(5);
}

#[test]
fn an_sshd_that_allows_few_tries_is_asked_over_more_connections() {
    let node = Node::builder().sshd_line("MaxAuthTries 2").start();
    let gateway = Gateway::builder().start();
    let keys: Vec<PathBuf> = (0..6)
        .map(|n| {
            gateway
                .admin()
                .generate_key(&format!("other{n}"), "ed25519")
        })
        .chain([node.user_key()])
        .collect();
    let agent = Agent::with(&keys);
    let run = gateway.front().env("SSH_AUTH_SOCK", agent.socket());
    run.env("IDENTITY_AGENT", agent.socket())
        .args(["-A", "node", "add", "n1"])
        .arg(format!("dev@{}", node.address()))
        .ok();
    becomes(&gateway, "n1", "up");
}

#[test]
fn the_key_is_added_once_and_other_lines_are_left_alone() {
    let node = Node::start();
    let gateway = gateway(&node);
    let lines = "# a comment\\nfrom=\"10.0.0.1\" ssh-ed25519 AAAA other";
    node.sh(&format!("printf '{lines}' >> ~dev/.ssh/authorized_keys"))
        .ok();
    let before = node.sh("cat ~dev/.ssh/authorized_keys").ok().text();
    add(&gateway, "n1", &node);
    gateway.control("node remove n1 --yes").ok();
    assert_eq!(node.sh("cat ~dev/.ssh/authorized_keys").ok().text(), before);
    add(&gateway, "n1", &node);
    gateway
        .control(&format!("node add n2 dev@{} --port 22", node.address()))
        .finish()
        .exits(4);
    let key = gateway.control("node key").ok().text();
    let after = node.sh("cat ~dev/.ssh/authorized_keys").ok().text();
    let blob = key.split(' ').nth(1).expect("a key");
    assert_eq!(after.matches(blob).count(), 1, "{after}");
    assert!(after.starts_with(&before), "{after}");
    assert_eq!(
        node.sh("stat -c '%a %U' ~dev/.ssh/authorized_keys")
            .ok()
            .text(),
        "600 dev"
    );
}

#[test]
fn a_host_key_that_was_asked_for_is_demanded_before_anybody_logs_in() {
    let node = Node::start();
    let gateway = gateway(&node);
    let line = |key: &str| format!("node add n1 dev@{} --host-key {key}", node.address());
    let wrong = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let refused = gateway.control(&line(wrong)).finish().exits(5);
    for told in [wrong, &node.host_key_fingerprint()] {
        assert!(refused.error_text().contains(told), "{refused}");
    }
    gateway.control(&line("nonsense")).finish().exits(2);
    gateway.control(&line(&node.host_key_fingerprint())).ok();
}

#[test]
fn a_name_means_one_machine_until_it_is_said_to_have_moved() {
    let nodes = Node::builder().start_many(2);
    let gateway = gateway(&nodes[0]);
    add(&gateway, "n1", &nodes[0]);
    let elsewhere = format!("node add n1 dev@{}", nodes[1].address());
    let taken = gateway.control(&elsewhere).finish().exits(4);
    let address = nodes[0].address().to_string();
    assert!(taken.error_text().contains(&address), "{taken}");
    // Another machine does not have its host key.
    let line = format!("{elsewhere} --moved");
    let other = gateway.control(&line).finish().exits(5);
    assert!(other.error_text().contains("host key"), "{other}");
    let key = nodes[1].host_key_fingerprint();
    gateway.control(&format!("{line} --host-key {key}")).ok();
    let status = gateway.control("node status n1 --json").ok().json();
    assert_eq!(status["host"], nodes[1].address().to_string());
}

#[test]
fn a_node_behind_another_one_is_reached_through_it() {
    let outer = Node::start();
    let inner = Node::builder().docker().private().start();
    let gateway = gateway(&outer);
    add(&gateway, "outer", &outer);
    gateway
        .control(&format!(
            "node add inner dev@{} --jump outer",
            inner.address()
        ))
        .ok();
    workspace(&gateway, "deep", "inner");
    assert_eq!(gateway.exec("deep", "hostname").ok().text(), "deep");
    let used = gateway.control("node remove outer --yes").finish().exits(4);
    assert!(used.error_text().contains("inner"), "{used}");
}

#[test]
fn an_address_becomes_a_node_on_the_way_for_an_admin_only() {
    let node = Node::with_docker();
    let gateway = gateway(&node);
    let member = gateway.member("alice");
    let create = |name: &str| {
        format!(
            "workspace create {name} --image {BUSYBOX} --remote dev@{}",
            node.address()
        )
    };
    member.control(&create("hers")).finish().exits(3);
    gateway.control(&create("mine")).ok();
    // The same address again is the same node.
    member.control(&create("hers")).ok();
    assert_eq!(
        gateway.control("node list --json").ok().json()["nodes"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    assert_eq!(gateway.exec("mine", "hostname").ok().text(), "mine");
    let mars = gateway
        .control(&format!(
            "workspace create x --image {BUSYBOX} --remote mars"
        ))
        .finish()
        .exits(3);
    assert!(mars.error_text().contains("node add"), "{mars}");
}

#[test]
fn a_renamed_node_keeps_its_workspaces_and_its_sessions() {
    let (_node, gateway) = with_docker();
    workspace(&gateway, "ws", "n1");
    let mut session = gateway.exec("ws", "echo up; cat").spawn();
    session.expect_stdout(0, "up\n");
    gateway.control("node rename n1 big-box").ok();
    gateway.control("node status n1").finish().exits(3);
    let listed = gateway.control("workspace list --json").ok().json();
    assert_eq!(listed["workspaces"][0]["node"], "big-box");
    session.send("still here\n");
    session.expect_stdout(0, "still here\n");
    session.close_stdin();
    session.finish().ok();
    assert_eq!(gateway.exec("ws", "hostname").ok().text(), "ws");
    gateway.control("node rename local other").finish().exits(4);
}

#[test]
fn a_renamed_node_that_is_lost_is_told_by_the_name_it_has() {
    let (node, gateway) = with_docker();
    workspace(&gateway, "ws", "n1");
    let idle = gateway.exec("ws", "echo up; sleep 600").spawn();
    idle.expect_stdout(0, "up\n");
    // Another way to it, beside that of the session.
    gateway.control("node test n1").ok();
    gateway.control("node rename n1 big-box").ok();
    node.link(Link::Down);
    idle.expect_stderr(0, "on node big-box was lost");
    let _ = idle.finish();
    becomes(&gateway, "big-box", "down");
    let refused = gateway.exec("ws", "true").finish().exits(5);
    let told = refused.error_text();
    assert!(
        told.contains("node big-box") && !told.contains("node n1"),
        "{refused}"
    );
}

#[test]
fn the_gateway_s_own_machine_is_not_removed_and_keeps_its_workspaces() {
    let gateway = Gateway::docker();
    gateway.workspace("ws", BUSYBOX);
    for line in [
        "node remove local --yes",
        "node remove local --force --yes",
        "node remove local --force",
    ] {
        let refused = gateway.control(line).finish().exits(4);
        let told = refused.error_text();
        assert!(told.contains("own machine"), "{refused}");
        assert!(!told.contains("--force"), "{refused}");
    }
    assert_eq!(gateway.state("ws"), "running");
    assert_eq!(gateway.exec("ws", "hostname").ok().text(), "ws");
}

/// What is told of a workspace whose destroy waits for something.
fn being_destroyed(gateway: &Gateway, name: &str, awaited: &str) {
    for line in [
        format!("workspace up {name}"),
        format!("workspace down {name}"),
        format!("workspace rebuild {name}"),
    ] {
        let refused = gateway.control(&line).finish().exits(4);
        assert!(
            refused.error_text().contains("being destroyed"),
            "{refused}"
        );
    }
    let refused = gateway.exec(name, "true").finish().exits(4);
    assert!(
        refused.error_text().contains("being destroyed"),
        "{refused}"
    );
    assert_eq!(gateway.state(name), "destroying");
    let again = format!("workspace destroy {name} --yes");
    let again = gateway.control(&again).finish().exits(5);
    assert!(again.error_text().contains(awaited), "{again}");
    let status = gateway.control(&format!("workspace status {name}"));
    let status = status.ok().text();
    assert!(status.contains("Held up"), "{status}");
}

#[test]
fn a_destroy_whose_engine_is_away_says_so_and_goes_on_when_it_is_back() {
    let (node, mut gateway) = with_docker();
    workspace(&gateway, "ws", "n1");
    node.kill_docker();
    let held = gateway.control("workspace destroy ws --yes");
    let held = held.finish().exits(5);
    let awaited = "goes on by itself when docker on node n1 answers";
    assert!(held.error_text().contains(awaited), "{held}");
    being_destroyed(&gateway, "ws", awaited);
    gateway.kill();
    gateway.start();
    eventually("it is known that its engine is still away", || {
        let up = gateway.control("workspace up ws").finish();
        up.error_text().contains("docker on node n1 answers")
    });
    being_destroyed(&gateway, "ws", awaited);
    node.start_docker();
    eventually("it is gone", || gateway.workspaces().is_empty());
    for left in [["ps", "--all", "--quiet"], ["volume", "ls", "--quiet"]] {
        assert_eq!(node.docker(&left).ok().text(), "");
    }
}

#[test]
fn a_destroy_on_a_lost_node_says_so_and_goes_on_when_it_is_back() {
    let (node, gateway) = with_docker();
    workspace(&gateway, "ws", "n1");
    node.link(Link::Down);
    becomes(&gateway, "n1", "down");
    let held = gateway.control("workspace destroy ws --yes");
    let held = held.finish().exits(5);
    let awaited = "goes on by itself when node n1 is back";
    assert!(held.error_text().contains(awaited), "{held}");
    being_destroyed(&gateway, "ws", awaited);
    node.link(Link::Up);
    eventually("it is gone", || gateway.workspaces().is_empty());
    assert_eq!(node.docker(&["ps", "--all", "--quiet"]).ok().text(), "");
}

#[test]
fn a_node_with_workspaces_is_removed_only_by_force() {
    let (node, gateway) = with_docker();
    workspace(&gateway, "ws", "n1");
    let refused = gateway.control("node remove n1 --yes").finish().exits(4);
    assert!(refused.error_text().contains("--force"), "{refused}");
    gateway.control("node remove n1 --force --yes").ok();
    gateway.control("workspace status ws").finish().exits(3);
    // What runs there runs on.
    assert_ne!(node.docker(&["ps", "--quiet"]).ok().text(), "");
}

#[test]
fn each_way_in_which_docker_cannot_be_used_is_told_with_its_remedy() {
    let create = format!("workspace create ws --image {BUSYBOX} --remote n1 --up");
    let bare = Node::start();
    let gateway_of = |node: &Node, user: &str| {
        let gateway = gateway(node);
        gateway
            .control(&format!("node add n1 {user}@{}", node.address()))
            .ok();
        gateway
    };
    let missing = gateway_of(&bare, "dev").control(&create).finish().exits(5);
    assert!(missing.error_text().contains("not installed"), "{missing}");

    let node = Node::with_docker();
    let outside = gateway_of(&node, "alone")
        .control(&create)
        .finish()
        .exits(5);
    assert!(
        outside.error_text().contains("usermod -aG docker alone"),
        "{outside}"
    );

    // The engine's own group is not the only way: rootless Docker has a socket for its user.
    node.sh(
        "mkdir -p /run/user/$(id -u alone); exec </dev/null >/dev/null 2>&1; setsid socat \
         UNIX-LISTEN:/run/user/$(id -u alone)/docker.sock,fork,user=alone UNIX-CONNECT:/var/run/docker.sock &",
    )
    .ok();
    let rootless = gateway_of(&node, "alone");
    rootless.control(&create).ok();
    assert_eq!(rootless.exec("ws", "hostname").ok().text(), "ws");

    let gateway = gateway_of(&node, "dev");
    node.kill_docker();
    let dead = gateway.control(&create).finish().exits(5);
    assert!(
        dead.error_text().contains("systemctl start docker"),
        "{dead}"
    );
}

#[test]
fn what_sshd_forbids_is_told_with_the_line_to_add() {
    let node = Node::builder()
        .docker()
        .sshd_line("AllowStreamLocalForwarding no")
        .start();
    let gateway = gateway(&node);
    add(&gateway, "n1", &node);
    let refused = gateway
        .control(&format!(
            "workspace create ws --image {BUSYBOX} --remote n1 --up"
        ))
        .finish()
        .exits(5);
    assert!(
        refused
            .error_text()
            .contains("AllowStreamLocalForwarding yes"),
        "{refused}"
    );
    node.sshd_lines(&[]);
    gateway.control("node test n1").ok();
    gateway.control("workspace up ws").ok();
}

#[test]
fn few_sessions_at_once_are_enough() {
    let node = Node::builder().docker().sshd_line("MaxSessions 1").start();
    let gateway = gateway(&node);
    add(&gateway, "n1", &node);
    for name in ["a", "b", "c"] {
        gateway
            .control(&format!(
                "workspace create {name} --image {BUSYBOX} --remote n1"
            ))
            .ok();
    }
    let sessions: Vec<_> = ["a", "b", "c", "a", "b", "c"]
        .map(|name| (name, gateway.exec(name, "hostname").spawn()))
        .into_iter()
        .collect();
    for (name, session) in sessions {
        assert_eq!(session.finish().ok().text(), name);
    }
}

#[test]
fn a_lost_node_ends_its_sessions_with_a_word_and_touches_no_others() {
    let nodes = Node::builder().docker().start_many(2);
    let gateway = gateway(&nodes[0]);
    for (name, node) in ["n1", "n2"].iter().zip(&nodes) {
        add(&gateway, name, node);
    }
    workspace(&gateway, "lost", "n1");
    workspace(&gateway, "kept", "n2");
    let lost = gateway
        .exec("lost", "echo up; cat")
        .stdin_repeated("x", 1)
        .spawn();
    let idle = gateway.exec("lost", "echo up; sleep 600").spawn();
    let mut kept = gateway.exec("kept", "echo up; cat").spawn();
    idle.expect_stdout(0, "up\n");
    kept.expect_stdout(0, "up\n");
    drop(lost);

    nodes[0].link(Link::Down);
    let began = Instant::now();
    kept.send("undisturbed\n");
    kept.expect_stdout(0, "undisturbed\n");
    idle.expect_stderr(0, "on node n1 was lost");
    let took = began.elapsed();
    assert_eq!(idle.finish().code(), 255);
    assert!(took < Duration::from_secs(30), "after {took:?}");
    becomes(&gateway, "n1", "down");
    assert!(
        gateway
            .control("workspace list")
            .ok()
            .text()
            .contains("n1 (down)")
    );
    let refused = gateway.exec("lost", "true").finish();
    assert_eq!(refused.code(), 5, "{refused}");
    assert!(refused.error_text().contains("n1"), "{refused}");
    kept.send("still\n");
    kept.expect_stdout(0, "still\n");

    nodes[0].link(Link::Up);
    becomes(&gateway, "n1", "up");
    assert_eq!(gateway.exec("lost", "hostname").ok().text(), "lost");
}

#[test]
fn a_stalled_sshd_is_a_lost_node_and_comes_back() {
    let (node, gateway) = with_docker();
    workspace(&gateway, "ws", "n1");
    let idle = gateway.exec("ws", "echo up; sleep 600").spawn();
    idle.expect_stdout(0, "up\n");
    node.stall();
    idle.expect_stderr(0, "was lost");
    let _ = idle.finish();
    becomes(&gateway, "n1", "down");
    node.resume();
    becomes(&gateway, "n1", "up");
    assert_eq!(gateway.exec("ws", "hostname").ok().text(), "ws");
}

#[test]
fn a_killed_sshd_and_a_gateway_that_restarts_find_the_workspaces_again() {
    let (node, mut gateway) = with_docker();
    workspace(&gateway, "ws", "n1");
    gateway.exec("ws", "touch /tmp/same").ok();
    node.kill_sshd();
    becomes(&gateway, "n1", "down");
    node.start_sshd();
    gateway.exec("ws", "ls /tmp/same").ok();
    gateway.kill();
    gateway.start();
    gateway.exec("ws", "ls /tmp/same").ok();
    // A node that is away when the gateway starts holds up nobody.
    node.power_off();
    gateway.kill();
    gateway.start();
    assert!(gateway.control("workspace list").ok().text().contains("ws"));
    node.power_on();
    becomes(&gateway, "n1", "up");
    assert_eq!(gateway.exec("ws", "hostname").ok().text(), "ws");
}

#[test]
fn a_changed_host_key_is_refused_with_both_fingerprints_and_the_remedy() {
    let (node, gateway) = with_docker();
    let before = node.host_key_fingerprint();
    let after = node.rotate_host_key();
    let refused = gateway.control("node test n1").finish().exits(5);
    for told in [before.as_str(), after.as_str(), "node add"] {
        assert!(
            refused.error_text().contains(told),
            "{told} is not told: {refused}"
        );
    }
    // What is connected stays so; what connects anew is refused.
    node.kill_sshd();
    node.start_sshd();
    becomes(&gateway, "n1", "down");
    let status = gateway.control("node status n1").ok().text();
    assert!(status.contains(&after), "{status}");
    // A changed key is never taken without being named.
    let line = format!("node add n1 dev@{}", node.address());
    let _ = gateway.control(&line).finish().exits(5);
    gateway.control(&format!("{line} --host-key {after}")).ok();
    becomes(&gateway, "n1", "up");
}

#[test]
fn an_accepted_host_key_and_a_new_address_count_for_running_workspaces_at_once() {
    let outer = Node::start();
    let inner = Node::builder().docker().private().start();
    let gateway = gateway(&outer);
    add(&gateway, "outer", &outer);
    let line = format!("node add inner dev@{} --jump outer", inner.address());
    gateway.control(&line).ok();
    workspace(&gateway, "ws", "inner");
    let hostname = || gateway.exec("ws", "hostname").finish();
    assert_eq!(hostname().text(), "ws");

    let through = format!("dev@{}", outer.address());
    let key = outer.rotate_host_key();
    outer.kill_sshd();
    outer.start_sshd();
    becomes(&gateway, "outer", "down");
    let refused = gateway.control("node test outer").finish().exits(5);
    let remedy = format!("node add outer {through} --host-key {key}");
    assert!(refused.error_text().contains(&remedy), "{refused}");
    gateway.control(&remedy).ok();
    assert_eq!(hostname().ok().text(), "ws");

    let key = inner.rotate_host_key();
    inner.kill_sshd();
    inner.start_sshd();
    becomes(&gateway, "inner", "down");
    let refused = hostname().exits(5);
    let remedy = format!("{line} --host-key {key}");
    assert!(refused.error_text().contains(&remedy), "{refused}");
    gateway.control(&remedy).ok();
    assert_eq!(hostname().ok().text(), "ws");

    // What was open stays so when the node is connected anew, and ends when it has moved.
    let mut held = gateway.exec("ws", "echo up; cat").spawn();
    held.expect_stdout(0, "up\n");
    for again in [&line, "node test inner", "node test outer"] {
        gateway.control(again).ok();
        assert_eq!(hostname().ok().text(), "ws");
    }
    held.send("undisturbed\n");
    held.expect_stdout(0, "undisturbed\n");
    outer.sshd_lines(&["Port 2222"]);
    let moved = format!("node add outer {through}:2222 --moved");
    gateway.control(&moved).ok();
    assert_eq!(hostname().ok().text(), "ws");
    held.expect_stderr(0, "on node inner was lost");
    assert_eq!(held.finish().code(), 255);
    let circle = format!("{moved} --jump inner");
    let circle = gateway.control(&circle).finish().exits(4);
    assert!(circle.error_text().contains("itself"), "{circle}");
}

#[test]
fn a_full_disk_and_a_wrong_clock_are_seen() {
    let (node, gateway) = with_docker();
    becomes(&gateway, "n1", "up");
    node.set_clock_skew(3600);
    gateway.control("node test n1").ok();
    assert_eq!(state(&gateway, "n1"), "degraded");
    let status = gateway.control("node status n1").ok().text();
    assert!(status.contains("ahead"), "{status}");
    node.set_clock_skew(0);
    node.fill_disk();
    let failed = gateway
        .control(&format!(
            "workspace create ws --image {BUSYBOX} --remote n1 --up"
        ))
        .finish();
    let _ = gateway.control("node test n1").finish();
    let status = gateway.control("node status n1").ok().text();
    assert!(status.contains("disk is full"), "{status}");
    assert_eq!(failed.code(), 5, "{failed}");
    assert!(failed.error_text().contains("make room"), "{failed}");
    node.free_disk();
    gateway.control("workspace up ws").ok();
    gateway.control("node test n1").ok();
    assert_eq!(state(&gateway, "n1"), "up");
}

#[test]
fn a_far_node_costs_a_warm_command_one_round_trip() {
    let (node, gateway) = with_docker();
    workspace(&gateway, "ws", "n1");
    // So long that nothing else matters beside it.
    const ROUND_TRIP: Duration = Duration::from_secs(1);
    node.delay(ROUND_TRIP / 2);
    let warm = || {
        // The first takes what was ready, and another one is made ready meanwhile:
        // handshake, login, session.
        gateway.exec("ws", "true").ok();
        std::thread::sleep(ROUND_TRIP * 8);
        let began = Instant::now();
        gateway.exec("ws", "true").ok();
        began.elapsed()
    };
    // Two round trips never take less than two.
    let mut took = Vec::new();
    while took.iter().all(|took| *took >= ROUND_TRIP * 2) {
        assert!(took.len() < 5, "{took:?} are more than one round trip");
        took.push(warm());
    }
}

#[test]
fn changes_are_told_as_they_happen() {
    let (node, gateway) = with_docker();
    becomes(&gateway, "n1", "up");
    let member = gateway.member("alice");
    let mine = gateway.control("events --json").start();
    let hers = member.control("events --json").start();
    // Both watch once they see something that everybody sees.
    eventually("both watch", || {
        gateway.control("node rename n1 n2").ok();
        gateway.control("node rename n2 n1").ok();
        [&mine, &hers]
            .iter()
            .all(|events| String::from_utf8_lossy(&events.stdout()).contains("node.renamed"))
    });
    workspace(&gateway, "ws", "n1");
    mine.expect_stdout(0, r#""to":"running""#);
    node.power_off();
    for events in [&mine, &hers] {
        events.expect_stdout(0, r#""to":"down""#);
    }
    for line in String::from_utf8_lossy(&mine.stdout()).lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("a JSON object a line");
        assert!(
            event["at"].is_string() && event["event"].is_string(),
            "{event}"
        );
    }
    let hers = String::from_utf8_lossy(&hers.stdout()).into_owned();
    assert!(!hers.contains("workspace.state"), "{hers}");
}

#[test]
fn the_whole_gateway_is_on_one_screen_and_redraws_in_place() {
    let (node, gateway) = with_docker();
    becomes(&gateway, "n1", "up");
    let text = gateway.control("status").ok().text();
    for told in ["Gateway", "local", "n1", "docker"] {
        assert!(text.contains(told), "{told}: {text}");
    }
    let mut page = gateway
        .admin()
        .tool("ssh")
        .args(["-tt", "vendetta@gateway", "node", "status", "n1", "--watch"])
        .env("TERM", "xterm")
        .start_on_terminal(40, 100);
    let first = page.expect_stdout(0, "up,");
    node.power_off();
    page.expect_stdout(first, "\x1b[");
    page.expect_stdout(first, "down,");
    page.send("\x03");
    page.finish().ok();
}

#[test]
fn metrics_are_served_on_loopback() {
    let node = Node::start();
    let gateway = Gateway::builder()
        .operator_key(node.user_key())
        .config("[metrics]\nlisten = \"127.0.0.1:0\"\n")
        .start();
    add(&gateway, "n1", &node);
    becomes(&gateway, "n1", "up");
    let log = gateway.log();
    let address = log
        .split("http://")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let address = address.expect("the address of the metrics in the log");
    let metrics = Run::new("curl")
        .args(["-fsS", &format!("http://{address}")])
        .ok()
        .text();
    for line in [
        r#"vendetta_node_state{node="n1",state="up"} 1"#,
        r#"vendetta_node_state{node="n1",state="down"} 0"#,
        r#"vendetta_node_memory_available_bytes{node="n1"}"#,
        "vendetta_uptime_seconds",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn two_hundred_workspaces_over_three_nodes_are_listed_at_once() {
    let nodes = Node::builder().docker().start_many(3);
    let gateway = gateway(&nodes[0]);
    for (name, node) in ["n1", "n2", "n3"].iter().zip(&nodes) {
        add(&gateway, name, node);
    }
    let script: String = (0..200)
        .map(|i| {
            format!(
                "workspace create w{i} --image {BUSYBOX} --remote n{}\n",
                i % 3 + 1
            )
        })
        .collect();
    gateway
        .admin()
        .tool("ssh")
        .args(["-T", "vendetta@gateway"])
        .stdin(script)
        .ok();
    let listed = gateway.control("workspace list --json").ok().json();
    assert_eq!(listed["workspaces"].as_array().map(Vec::len), Some(200));
    let nodes = gateway.control("node list --json").ok().json();
    let counts: Vec<_> = nodes["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|node| node["workspaces"].as_u64())
        .collect();
    assert_eq!(counts, [Some(0), Some(67), Some(67), Some(66)]);
}

/// What says whether KVM works is a guest that tells of its own start; under
/// emulation it must start everywhere.
#[tokio::test]
async fn kvm_is_proven_by_a_guest_that_starts() {
    let here = LocalNode::new("/nonexistent".into());
    // Beside other emulated guests one may take too long.
    let mut emulated = Vec::new();
    while !emulated.contains(&Kvm::Works) {
        assert!(emulated.len() < 3, "{emulated:?}");
        emulated.push(try_guest(&here, "tcg", "x86_64").await.expect("a guest"));
    }
    // So does the one for nodes of the other architecture.
    let arm = try_guest(&here, "tcg", "aarch64").await.expect("a guest");
    assert_eq!(arm, Kvm::Works);
    let wrong = try_guest(&here, "no-such-accelerator", "x86_64")
        .await
        .expect("a guest");
    assert!(matches!(wrong, Kvm::Fails(_)), "{wrong}");

    let node = Node::start();
    let gateway = gateway(&node);
    add(&gateway, "n1", &node);
    let status = gateway.control("node status n1 --json").ok().json();
    let probe = &status["probe"];
    assert!(probe["qemu"]["x86_64"].is_string(), "{probe}");
    assert!(!probe["kvm"].is_null(), "{probe}");
}
