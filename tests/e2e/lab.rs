//! The lab of nodes itself: what the tests about nodes stand on.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vendetta_tests::{BUSYBOX, Gateway, Lab, Link, Node, PATIENCE, Run, TOOLS, eventually};

/// Long enough for a packet to a node that answers, short enough to wait for in a test.
const SOON: Duration = Duration::from_secs(2);

fn connect(node: &Node) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((node.address(), 22)), SOON)
}

fn times_out(node: &Node) -> bool {
    connect(node).is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

/// Whether sshd greets who connects, within a time.
fn greets_within(node: &Node, limit: Duration) -> bool {
    let greeting = connect(node).and_then(|mut stream| {
        stream.set_read_timeout(Some(limit))?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting)?;
        Ok(greeting)
    });
    greeting.is_ok_and(|greeting| &greeting == b"SSH-")
}

fn greets(node: &Node) -> bool {
    greets_within(node, PATIENCE)
}

fn refuses(node: &Node) -> bool {
    connect(node).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Fingerprint of the ed25519 key that sshd shows.
fn shown_fingerprint(node: &Node) -> String {
    let address = node.address().to_string();
    let keys = Run::new("ssh-keyscan").args(["-T", "30", "-t", "ed25519", &address]);
    let list = Run::new("ssh-keygen").args(["-l", "-f", "-"]);
    let line = list.stdin(keys.ok().stdout).ok().text();
    line.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn a_node_is_a_machine_of_its_own() {
    let node = Node::start();
    for user in ["root", "dev", "alone"] {
        let run = node.ssh(user).arg("id -un; hostname; pwd").ok();
        let home = match user {
            "root" => "/root".to_owned(),
            _ => format!("/home/{user}"),
        };
        assert_eq!(run.text(), format!("{user}\n{}\n{home}", node.name()));
    }
    assert_eq!(node.sh("id -un").ok().text(), "root");
    assert_eq!(shown_fingerprint(&node), node.host_key_fingerprint());
    // What this machine has and a fresh one has not.
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(checkout.exists());
    for missing in [&checkout.display().to_string(), "/run/docker.sock"] {
        node.run(&["test", "-e", missing]).finish().exits(1);
    }
    node.sh("command -v docker || command -v dockerd")
        .finish()
        .exits(1);
    // Those of the sessions before end in their own time.
    eventually("it has few processes, all of its own", || {
        let processes = node.sh("ps -e --no-headers | wc -l").ok().text();
        processes.parse::<u32>().is_ok_and(|count| count < 10)
    });
    let run = node.sh("ip route get 192.0.2.1").finish();
    assert!(run.error_text().contains("unreachable"), "{run}");
    // It can be changed as a machine can.
    node.sh(
        "groupadd docker 2>/dev/null; useradd -m -G docker carol && touch /usr/bin/new && id carol",
    )
    .ok();
    assert!(!Path::new("/usr/bin/new").exists());
}

#[test]
fn passwords_open_a_node_and_keys_only_where_they_are_accepted() {
    let node = Node::builder().no_key().start();
    for user in ["dev", "alone"] {
        let run = node.ssh(user).arg("true").finish().exits(255);
        assert!(run.error_text().contains("Permission denied"), "{run}");
        let run = node.ssh_with_password(user, &node.password(user));
        assert_eq!(
            run.arg("id -un; ls -A").ok().text().lines().next(),
            Some(user)
        );
        let run = node.ssh_with_password(user, "wrong").arg("true").finish();
        assert!(run.exits(255).error_text().contains("Permission denied"));
    }
    node.run(&["test", "-e", "/home/dev/.ssh"])
        .finish()
        .exits(1);
    let root = || node.ssh_with_password("root", &node.password("root"));
    root().arg("true").finish().exits(255);
    node.sshd_lines(&["PermitRootLogin yes"]);
    root().arg("true").ok();
    // Asked by PAM through keyboard-interactive, and only so.
    node.sshd_lines(&[
        "UsePAM yes",
        "KbdInteractiveAuthentication yes",
        "PasswordAuthentication no",
    ]);
    let dev = node.ssh_with_password("dev", &node.password("dev"));
    dev.arg("true").ok();
}

#[test]
fn nodes_have_engines_of_their_own_and_reach_each_other() {
    let nodes = Node::builder().docker().start_many(2);
    for node in &nodes {
        let run = node
            .ssh("dev")
            .arg(format!("docker run -d --name own {BUSYBOX} sleep 1000"));
        run.ok();
        node.docker(&["exec", "own", "hostname"]).ok();
        let run = node.docker(&["run", "--rm", TOOLS, "python3", "-c", "print(6 * 7)"]);
        assert_eq!(run.ok().text(), "42");
        let run = node.ssh("alone").arg("docker ps").finish().exits(1);
        assert!(run.error_text().contains("permission denied"), "{run}");
    }
    let names = |node: &Node| node.docker(&["ps", "-q", "--no-trunc"]).ok().text();
    assert_ne!(names(&nodes[0]), names(&nodes[1]));
    let other = format!("head -c 4 </dev/tcp/{}/22", nodes[1].address());
    assert_eq!(nodes[0].sh(&other).ok().text(), "SSH-");
    // One is lost, the other is not.
    nodes[0].power_off();
    assert!(times_out(&nodes[0]));
    nodes[1].docker(&["exec", "own", "true"]).ok();
    // Its disk is kept.
    nodes[0].power_on();
    let state = nodes[0].docker(&["inspect", "--format", "{{.State.Status}}", "own"]);
    assert_eq!(state.ok().text(), "exited");
    nodes[0].docker(&["start", "own"]).ok();
}

#[test]
fn containers_outlive_their_engine_where_it_says_so() {
    let node = Node::builder()
        .docker()
        .dockerd_key("\"live-restore\": true")
        .start();
    node.docker(&["run", "-d", "--name", "own", BUSYBOX, "sleep", "1000"])
        .ok();
    node.kill_docker();
    node.docker(&["ps"]).finish().exits(1);
    node.sh("pgrep -x sleep").ok();
    node.start_docker();
    node.docker(&["exec", "own", "true"]).ok();
}

#[test]
fn a_pulled_cable_and_a_power_failure_are_silent() {
    let node = Node::start();
    let mut session = node.ssh("dev").arg("cat").spawn();
    session.send("before\n");
    let seen = session.expect_stdout(0, "before\n");

    node.link(Link::Down);
    assert!(times_out(&node));
    session.send("after\n");
    assert!(session.runs());
    node.link(Link::Up);
    session.expect_stdout(seen, "after\n");
    assert!(greets(&node));

    node.sh("echo kept >/root/file").ok();
    let key = node.host_key_fingerprint();
    node.power_off();
    assert!(times_out(&node));
    assert!(session.runs(), "nobody tells the peers");
    node.power_on();
    assert!(greets(&node));
    assert_eq!(node.sh("cat /root/file").ok().text(), "kept");
    assert_eq!(shown_fingerprint(&node), key);
}

#[test]
fn a_way_can_be_long_and_lossy() {
    let node = Node::start();
    let round_trip = || {
        let started = Instant::now();
        connect(&node).expect("the node is there");
        started.elapsed()
    };
    for milliseconds in [50, 120] {
        let each_way = Duration::from_millis(milliseconds);
        node.delay(each_way);
        let took = round_trip();
        assert!(took >= 2 * each_way, "{took:?}");
    }
    let (to, from) = node.wan(&["delay=1", "rate=800"]);
    assert!(to.packets >= 2 && from.packets >= 1, "{to:?} {from:?}");
    // 100 kB at 100 kB/s
    let run = node
        .ssh("dev")
        .arg("head -c 100000 /dev/urandom")
        .digest_stdout();
    let run = run.ok();
    assert!(run.took >= Duration::from_millis(900), "{run}");
    node.wan(&["rate=0", "stall=1"]);
    assert!(times_out(&node));
    node.wan(&["stall=0"]);
    assert!(greets(&node));
    // A node that comes back is where it was.
    node.power_off();
    node.power_on();
    assert!(greets(&node));
    node.wan(&["loss=1"]);
    assert!(times_out(&node));
    node.near();
    assert!(greets(&node));
}

#[test]
fn sshd_can_be_frozen_killed_changed_and_given_new_keys() {
    let node = Node::builder().sshd_line("AllowTcpForwarding no").start();
    let mut session = node.ssh("dev").arg("cat").spawn();
    session.send("1\n");
    let seen = session.expect_stdout(0, "1\n");

    let forward = || node.ssh("dev").args(["-W", "127.0.0.1:22"]);
    let run = forward().finish().exits(255);
    assert!(run.error_text().contains("forwarding failed"), "{run}");
    node.sshd_lines(&["Match User root", "AllowTcpForwarding no"]);
    let mut forwarded = forward().spawn();
    forwarded.expect_stdout(0, "SSH-");
    forwarded.signal(Signal::SIGKILL);

    let old = node.host_key_fingerprint();
    let new = node.rotate_host_key();
    assert_ne!(old, new);
    assert_eq!(shown_fingerprint(&node), new);

    node.stall();
    assert!(connect(&node).is_ok() && !greets_within(&node, SOON));
    node.resume();
    assert!(greets(&node));
    session.send("2\n");
    session.expect_stdout(seen, "2\n");

    node.kill_sshd();
    assert!(refuses(&node));
    session.finish().exits(255);
    node.start_sshd();
    assert!(greets(&node));
}

#[test]
fn a_disk_can_be_full_and_a_clock_wrong() {
    let node = Node::builder().docker().disk("64M").start();
    node.fill_disk();
    let run = node.ssh("dev").arg("echo text >file").finish().exits(1);
    assert!(run.error_text().contains("No space left"), "{run}");
    let run = node.docker(&["run", "--rm", BUSYBOX, "true"]).finish();
    assert!(run.error_text().contains("no space left"), "{run}");
    node.free_disk();
    node.docker(&["run", "--rm", BUSYBOX, "true"]).ok();
    let size = node.sh("df --output=size -k / | tail -1").ok().text();
    assert_eq!(size.trim(), "65536");

    let seconds = || {
        let text = node.ssh("dev").arg("date +%s").ok().text();
        text.parse::<i64>().expect("a number")
    };
    let now = seconds();
    node.set_clock_skew(-3600);
    assert!(seconds() < now - 3500);
    node.set_clock_skew(0);
    assert!(seconds() >= now);
}

#[test]
fn a_private_node_is_reached_through_another_only() {
    let private = Node::builder().private().start();
    let other = Node::start();
    assert!(times_out(&private));
    let through = format!("head -c 4 </dev/tcp/{}/22", private.address());
    assert_eq!(other.sh(&through).ok().text(), "SSH-");
}

#[test]
fn whoever_runs_the_gateway_has_the_keys_and_the_agent_of_the_test_only() {
    let node = Node::start();
    let gateway = Gateway::builder().operator_key(node.user_key()).start();
    let environment = |gateway: &Gateway| {
        let path = format!("/proc/{}/environ", gateway.process().0);
        let text = fs::read_to_string(path).expect("reading an environment");
        text.split('\0').map(str::to_owned).collect::<Vec<_>>()
    };
    let variables = environment(&gateway);
    let home = format!("HOME={}", gateway.home().display());
    assert!(variables.contains(&home), "{variables:?}");
    assert!(
        !variables
            .iter()
            .any(|line| line.starts_with("SSH_AUTH_SOCK"))
    );
    let key = fs::read(gateway.home().join(".ssh/id_ed25519")).expect("the key");
    assert_eq!(key, fs::read(node.user_key()).expect("the lab's key"));

    let gateway = Gateway::builder().operator_agent(node.user_key()).start();
    let variables = environment(&gateway);
    let socket = variables
        .iter()
        .find_map(|line| line.strip_prefix("SSH_AUTH_SOCK="))
        .expect("an agent");
    let keys = Run::new("ssh-add").arg("-L").env("SSH_AUTH_SOCK", socket);
    assert!(keys.ok().text().ends_with(" lab"));
    let found = fs::read_dir(gateway.home().join(".ssh")).expect("a folder");
    assert_eq!(found.count(), 0);
}

/// What a lab has on this machine, to be looked for when it has ended.
#[derive(Debug)]
struct Traces {
    dir: PathBuf,
    interface: PathBuf,
    processes: BTreeSet<Process>,
}

/// A process by what is not given again: its id and when it started.
type Process = (String, String);

impl Traces {
    fn of(dir: &Path) -> Self {
        let read = |name| {
            let text = fs::read_to_string(dir.join(name)).expect("a file of the lab");
            text.trim().to_owned()
        };
        // The first process of the lab's namespaces, and whatever descends from it.
        let mut ids = BTreeSet::from([read("hub.pid")]);
        let all = all_processes();
        let mut processes = BTreeSet::new();
        loop {
            let before = processes.len();
            for (process, parent) in &all {
                if ids.contains(parent) || ids.contains(&process.0) {
                    ids.insert(process.0.clone());
                    processes.insert(process.clone());
                }
            }
            if processes.len() == before {
                break;
            }
        }
        Self {
            dir: dir.to_owned(),
            interface: Path::new("/sys/class/net").join(format!("vlab-{}", read("net"))),
            processes,
        }
    }

    /// What of it is there.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let name = self.dir.file_name().expect("a name").to_string_lossy();
        for path in [&self.dir, &self.interface] {
            if path.exists() {
                left.push(path.display().to_string());
            }
        }
        for (process, _) in all_processes() {
            let file = |file| {
                let path = Path::new("/proc").join(&process.0).join(file);
                let text = fs::read(path).unwrap_or_default();
                String::from_utf8_lossy(&text).replace('\0', " ")
            };
            let (command, environment) = (file("cmdline"), file("environ"));
            let lab = name.rsplit('-').next().expect("a name");
            let of_lab = environment.contains(&format!("VENDETTA_LAB={lab} "));
            if of_lab || command.contains(&*name) || self.processes.contains(&process) {
                left.push(format!("process {}: {command}", process.0));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&*name))
                .map(str::to_owned),
        );
        let cgroups = Run::new("find")
            .args(["/sys/fs/cgroup", "-maxdepth", "2", "-name"])
            .arg(&*name);
        left.extend(cgroups.finish().text().lines().map(str::to_owned));
        left
    }
}

/// Every process that is no zombie, and its parent's id (proc(5)).
fn all_processes() -> Vec<(Process, String)> {
    let stat = |pid: String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        (fields[0] != "Z").then(|| ((pid, fields[19].to_owned()), fields[1].to_owned()))
    };
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| stat(entry.ok()?.file_name().into_string().ok()?))
        .collect()
}

/// A lab with something of everything.
fn busy_lab() -> Node {
    let node = Node::with_docker();
    node.docker(&["run", "-d", BUSYBOX, "sleep", "1000"]).ok();
    node.delay(Duration::from_millis(1));
    node
}

#[test]
fn nothing_is_left_of_a_lab() {
    let node = busy_lab();
    let traces = Traces::of(node.lab().dir());
    let there = traces.left();
    for part in [
        "sshd",
        "dockerd",
        "sleep 1000",
        "wan.py",
        "/sys/fs/cgroup",
        "vlab-",
    ] {
        assert!(
            there.iter().any(|line| line.contains(part)),
            "{part} {there:?}"
        );
    }
    let session = node.ssh("dev").arg("cat").spawn();
    drop(node);
    drop(session);
    eventually("nothing is left", || traces.left().is_empty());
}

#[test]
fn nothing_is_left_of_a_node_while_its_lab_goes_on() {
    let (stays, goes) = (Node::start(), busy_lab());
    let lab = Lab::shared();
    let address = goes.address();
    drop(goes);
    assert_eq!(
        lab.command(&["list"]).ok().text(),
        format!("n1 {} up", stays.address())
    );
    let hub = fs::read_to_string(lab.dir().join("hub.pid")).expect("the hub's pid");
    let inside = |words: &[&str]| {
        let run = Run::new("nsenter").args(["--target", hub.trim(), "--net", "--mount"]);
        run.args(words).ok().text()
    };
    let links = inside(&["ip", "-o", "link"]);
    for gone in ["p12", "w12", "wa12", "wb12"] {
        assert!(
            !links.contains(&format!(" {gone}@")) && !links.contains(&format!(" {gone}:")),
            "{links}"
        );
    }
    assert!(!inside(&["cat", "/proc/self/mounts"]).contains("disk-of-n2"));
    let neighbours = Run::new("ip").args(["neigh", "show", &address.to_string()]);
    assert_eq!(neighbours.ok().text(), "");
    // The place is free for another.
    assert_eq!(Node::start().address(), address);
    assert!(greets(&stays));
}

#[test]
fn nothing_is_left_of_the_lab_of_a_killed_test() {
    let test = std::env::current_exe().expect("this test's own path");
    let mut killed = Run::new(test)
        .args(["--exact", "lab::makes_a_lab_and_waits_to_be_killed"])
        .args(["--ignored", "--nocapture"])
        .env("VENDETTA_TEST_KILLED", "1");
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        killed = killed.env("CARGO_TARGET_DIR", target);
    }
    let mut killed = killed.start();
    let end = killed.expect_stdout(0, "\nready\n");
    let said = String::from_utf8_lossy(&killed.stdout()[..end]).into_owned();
    let dir = said
        .lines()
        .find_map(|line| line.split_once("lab in "))
        .expect("the lab's folder")
        .1;
    let traces = Traces::of(Path::new(dir));
    killed.signal(Signal::SIGKILL);
    eventually("the lab is gone", || traces.left().is_empty());
}

#[test]
#[ignore = "what nothing_is_left_of_the_lab_of_a_killed_test kills"]
fn makes_a_lab_and_waits_to_be_killed() {
    if std::env::var_os("VENDETTA_TEST_KILLED").is_none() {
        return;
    }
    let node = busy_lab();
    println!("lab in {}\nready", node.lab().dir().display());
    std::thread::sleep(Duration::from_secs(300));
}
