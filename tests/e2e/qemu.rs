//! Workspaces that are virtual machines. Each boots some, emulated: few tests, long ones.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use nix::sys::signal::Signal;
use vendetta_tests::{BOOT, Gateway, MachineImage, Node, Process, Run, eventually, random_bytes};

fn config(image: &Path, more: &str) -> String {
    format!(
        "provider: qemu\nqemu: {{image: \"{}\", cpu: 1, memory: 256M, disk: 2G, accel: tcg}}\n{more}",
        image.display()
    )
}

/// A gateway whose users may make machines of the tests' images.
fn gateway(more: &str) -> Gateway {
    let images = [MachineImage::Small, MachineImage::Cloud].map(|image| {
        let folder = image.path().with_file_name("");
        format!("{:?}", folder.display().to_string())
    });
    let config = format!("[qemu]\nimage_dirs = [{}]\n{more}", images.join(", "));
    Gateway::builder().config(&config).start()
}

/// A control command that a machine boots or shuts down in.
fn slow(gateway: &Gateway, command: &str) -> Run {
    gateway.control(command).limit(2 * BOOT)
}

/// The processes of this gateway's machines.
fn machines(gateway: &Gateway) -> Vec<Process> {
    Process::with_argument(&gateway.state_dir().join("w").display().to_string())
}

/// QEMU's own process of the only machine, by its pid file.
fn qemu(gateway: &Gateway) -> Process {
    let workspaces = fs::read_dir(gateway.state_dir().join("w")).expect("a folder");
    let mut pids = workspaces.flatten().map(|entry| entry.path().join("pid"));
    let pid = fs::read_to_string(pids.next().expect("a machine")).expect("its pid file");
    Process(pid.trim().parse().expect("a pid"))
}

#[test]
fn a_machine_lives_from_create_to_destroy_and_keeps_what_it_should() {
    let gateway = gateway("");
    let image = MachineImage::Small.path();
    // Nothing but flags: the accelerator is found out.
    let flags = format!("--provider qemu --image {} --memory 256M", image.display());
    gateway
        .control(&format!("workspace create vm {flags} --user ada"))
        .ok();
    assert_eq!(gateway.state("vm"), "created");
    slow(&gateway, "workspace up vm").ok();
    // A user whom the image does not have, and the disk that is theirs.
    let who = gateway
        .exec("vm", "id -un; pwd; stat -c %U .; hostname")
        .ok();
    assert_eq!(who.text(), "ada\n/workspace\nada\nvm");

    let scp = || gateway.admin().tool("scp").arg("-q");
    let (there, back) = (
        gateway.scratch().join("there"),
        gateway.scratch().join("back"),
    );
    let data = random_bytes(1, 3 << 20);
    fs::write(&there, &data).expect("a file");
    scp().arg(&there).arg("vm@gateway:file").ok();
    scp().arg("vm@gateway:/workspace/file").arg(&back).ok();
    assert!(
        fs::read(&back).expect("the file") == data,
        "it changed on its way"
    );

    // It gets out as a program of its node does; docs/security.md says what that means.
    let beside = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = beside.local_addr().expect("its address").port();
    let reach = format!("socat -u TCP:10.0.2.2:{port},connect-timeout=30 -");
    let asked = gateway.exec("vm", &reach).spawn();
    let (mut stream, _) = beside.accept().expect("the machine");
    stream.write_all(b"from beside").expect("writing");
    drop(stream);
    assert_eq!(asked.finish().text(), "from beside");

    // What the machine listens at is reached through the session alone.
    gateway
        .exec(
            "vm",
            "setsid -f socat TCP-LISTEN:7000,fork SYSTEM:'echo from inside' >/dev/null 2>&1",
        )
        .ok();
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a free port").port();
    let forward = format!("{port}:localhost:7000");
    let tunnel = gateway
        .admin()
        .tool("ssh")
        .args(["-N", "-L", &forward, "vm@gateway"]);
    let tunnel = tunnel.limit(BOOT).spawn();
    let mut said = String::new();
    eventually("the forward leads inside", || {
        said.clear();
        TcpStream::connect(("127.0.0.1", port))
            .and_then(|mut stream| {
                stream.write_all(b"\n")?;
                stream.read_to_string(&mut said)
            })
            .is_ok_and(|length| length > 0)
    });
    assert_eq!(said.trim(), "from inside");
    drop(tunnel);

    gateway
        .exec("vm+root", "echo root >/root/file && sync")
        .ok();
    slow(&gateway, "workspace down vm").ok();
    assert_eq!(gateway.state("vm"), "stopped");
    assert!(machines(&gateway).is_empty());
    slow(&gateway, "workspace up vm").ok();
    let files = "stat -c %s /workspace/file; cat /root/file 2>&1";
    assert_eq!(
        gateway.exec("vm+root", files).ok().text(),
        format!("{}\nroot", data.len())
    );

    slow(&gateway, "workspace rebuild vm").ok();
    let rebuilt = gateway.exec("vm+root", files).finish().exits(1);
    assert!(
        rebuilt.text().starts_with(&data.len().to_string()),
        "{rebuilt}"
    );

    gateway.control("workspace destroy vm --yes").ok();
    assert!(machines(&gateway).is_empty());
    let left = fs::read_dir(gateway.state_dir().join("w")).expect("a folder");
    assert_eq!(left.count(), 0);
}

#[test]
fn a_machine_outlives_its_gateway_and_its_sudden_end_is_told() {
    let mut gateway = gateway("");
    gateway.create("vm", &config(&MachineImage::Small.path(), ""));
    slow(&gateway, "workspace up vm").ok();
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let before = gateway.exec("vm", boot).ok().text();
    gateway
        .exec("vm", "echo kept >/workspace/file && sync")
        .ok();
    gateway.kill();
    gateway.start();
    assert_eq!(
        gateway.exec("vm", boot).ok().text(),
        before,
        "it is the same machine"
    );
    let log = gateway.control("workspace logs vm").ok();
    assert!(log.text().contains("starting the agent"), "{log}");

    qemu(&gateway).signal(Signal::SIGKILL);
    eventually("the end is seen", || gateway.state("vm") == "stopped");
    let status = gateway.control("workspace status vm --json").ok().json();
    let note = status["workspace"]["note"]
        .as_str()
        .expect("a note")
        .to_owned();
    assert!(note.contains("by itself") && note.contains("137"), "{note}");
    // The last that its console said.
    assert!(note.contains("vendetta_agent"), "{note}");
    slow(&gateway, "workspace up vm").ok();
    let now = gateway.exec("vm", &format!("cat file; {boot}")).ok().text();
    assert!(now.starts_with("kept\n") && !now.contains(&before), "{now}");

    // A system that shuts down by itself ends its workspace too.
    gateway.exec("vm", "setsid -f busybox poweroff").ok();
    eventually("the end is seen", || gateway.state("vm") == "stopped");
    assert!(machines(&gateway).is_empty());
}

#[test]
fn the_cloud_image_of_a_distribution_needs_nothing_of_ours() {
    let gateway = gateway("");
    gateway.create(
        "vm",
        &config(&MachineImage::Cloud.path(), "user: ada\n")
            .replace("cpu: 1, memory: 256M", "cpu: 2, memory: 512M"),
    );
    slow(&gateway, "workspace up vm").ok();
    let who = gateway
        .exec("vm", "id -un; pwd; hostname; sudo -n id -un")
        .ok();
    assert_eq!(who.text(), "ada\n/workspace\nvm\nroot");
    gateway.exec("vm", "echo kept >file").ok();
    // What the system itself started is the workspace's too; the agent's own port is not.
    let began = std::time::Instant::now();
    loop {
        let ports = gateway.control("workspace ports vm --json").ok().json();
        let ports = ports["discovered"].as_array().expect("a list").clone();
        assert!(ports.iter().all(|port| port["port"] != 7022), "{ports:?}");
        let sshd = ports.iter().find(|port| port["port"] == 22);
        if let Some(sshd) = sshd {
            assert_eq!(sshd["program"], "sshd");
            break;
        }
        assert!(began.elapsed() < BOOT, "{ports:?}");
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    // Its own disk has been given the room that the config says.
    let size = gateway.exec("vm", "cat /sys/block/vda/size").ok().text();
    assert_eq!(size, ((2_u64 << 30) / 512).to_string());
    slow(&gateway, "workspace down vm").ok();
    slow(&gateway, "workspace up vm").ok();
    assert_eq!(gateway.exec("vm", "cat file").ok().text(), "kept");
    gateway.control("workspace destroy vm --yes").ok();
}

/// With all that is done in an environment, and no network that leads out of it.
#[test]
fn a_machine_on_a_node_has_services_hooks_and_ports_and_reaches_nothing_when_it_is_isolated() {
    let node = Node::start();
    let image = "/var/lib/vendetta/images/small.qcow2";
    let copy = format!("mkdir -p {} && cat >{image}", "/var/lib/vendetta/images");
    let file = fs::File::open(MachineImage::Small.path()).expect("the image");
    node.sh(&copy).stdin_file(file).ok();
    let gateway = Gateway::builder()
        .config("[qemu]\nnetwork = \"none\"\n")
        .operator_key(node.user_key())
        .start();
    gateway
        .control(&format!("node add n1 dev@{}", node.address()))
        .ok();
    let more = "\
remote: {node: n1}
workspace_folder: /srv/work
env: {WORD: \"from inside\"}
hooks: {create: \"echo create >>hooks\", up: \"echo up >>hooks\"}
services:
  web:
    command: \"exec socat TCP-LISTEN:8000,fork,reuseaddr SYSTEM:'echo $WORD'\"
    port: 8000
    health_check: {tcp: 8000}
";
    gateway.create("vm", &config(Path::new(image), more));
    slow(&gateway, "workspace up vm").ok();
    let said = gateway.exec("vm", "pwd; cat hooks").ok();
    assert_eq!(said.text(), "/srv/work\ncreate\nup");
    let ports = gateway.control("workspace ports vm --json").ok().json();
    let port = ports["mapped"][0]["host_port"].as_u64().expect("a port");
    let address = (
        gateway.ports_address(),
        u16::try_from(port).expect("a port"),
    );
    let mut said = String::new();
    TcpStream::connect(address)
        .and_then(|mut stream| stream.read_to_string(&mut said))
        .expect("what the service says");
    assert_eq!(said, "from inside\n");

    // It is there for a program of the node, and not for the machine.
    node.sh(
        "setsid -f socat TCP-LISTEN:8099,bind=127.0.0.1,fork SYSTEM:'echo secret' >/dev/null 2>&1",
    )
    .ok();
    eventually("the node's port is open", || {
        let said = node.sh("socat -u TCP:127.0.0.1:8099 -").finish();
        said.text() == "secret"
    });
    let reach = "socat -u TCP:10.0.2.2:8099,connect-timeout=5 -";
    let said = gateway.exec("vm", reach).finish().exits(1);
    assert_eq!(said.text(), "");

    slow(&gateway, "workspace down vm").ok();
    slow(&gateway, "workspace up vm").ok();
    let said = gateway.exec("vm", "cat hooks").ok();
    assert_eq!(said.text(), "create\nup\nup");
    gateway.control("workspace destroy vm --yes").ok();
    assert_eq!(node.sh("pgrep -c qemu-system").finish().text(), "0");
}
