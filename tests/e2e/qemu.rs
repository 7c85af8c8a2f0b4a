//! Workspaces that are virtual machines. Each boots some, emulated: few tests, long ones.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vendetta_tests::{
    BOOT, Gateway, MachineImage, Node, NodeBuilder, Process, Run, eventually, random_bytes,
};

/// Tells one boot of a machine from another.
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

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

/// The directory of the only machine.
fn only_machine(gateway: &Gateway) -> PathBuf {
    let mut workspaces = fs::read_dir(gateway.state_dir().join("w")).expect("a folder");
    let machine = workspaces.next().expect("a machine").expect("its entry");
    machine.path()
}

/// QEMU's own process of the only machine, by its pid file.
fn qemu(gateway: &Gateway) -> Process {
    let pid = fs::read_to_string(only_machine(gateway).join("pid")).expect("its pid file");
    Process(pid.trim().parse().expect("a pid"))
}

/// Bytes of the machine's root file system.
fn root_size(gateway: &Gateway) -> u64 {
    let said = gateway.exec("vm", "df -Pk / | tail -n 1").ok().text();
    let kibibytes = said.split_whitespace().nth(1).expect("a size");
    kibibytes.parse::<u64>().expect("a number") << 10
}

/// A node that has the small image, and where.
fn node_with_image(builder: NodeBuilder) -> (Node, &'static Path) {
    let node = builder.start();
    let folder = "/var/lib/vendetta/images";
    let copy = format!("mkdir -p {folder} && cat >{folder}/small.qcow2");
    let file = fs::File::open(MachineImage::Small.path()).expect("the image");
    node.sh(&copy).stdin_file(file).ok();
    (node, Path::new("/var/lib/vendetta/images/small.qcow2"))
}

/// A gateway that has it as n1.
fn gateway_of(node: &Node, config: &str) -> Gateway {
    let gateway = Gateway::builder()
        .config(config)
        .operator_key(node.user_key())
        .start();
    gateway
        .control(&format!("node add n1 dev@{}", node.address()))
        .ok();
    gateway
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
    assert_eq!(gateway.exec("vm", "ulimit -n").ok().text(), "1048576");
    // Its root file system has the room that a machine has by default.
    assert!(root_size(&gateway) > 18 << 30, "{}", root_size(&gateway));

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

    // With more room on both of its disks.
    let nothing = slow(&gateway, "workspace rebuild vm --image /no/such/image");
    let nothing = nothing.finish().error_text();
    assert!(
        nothing.contains("workspace rebuild vm --image IMAGE"),
        "{nothing}"
    );
    assert_eq!(
        gateway.exec("vm+root", "cat /root/file").ok().text(),
        "root"
    );
    let larger = config(&image, "user: ada\n").replace("2G", "24G");
    let rebuild = slow(&gateway, "workspace rebuild vm --config -");
    rebuild.stdin(larger).ok();
    assert!(root_size(&gateway) > 22 << 30, "{}", root_size(&gateway));
    let room = "df -Pk /workspace | tail -n 1 | awk '{print $2}'";
    let room = gateway.exec("vm", room).ok().text();
    assert!(room.parse::<u64>().expect("a size") > 22 << 20, "{room}");
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
    let before = gateway.exec("vm", BOOT_ID).ok().text();
    gateway
        .exec("vm", "echo kept >/workspace/file && sync")
        .ok();
    gateway.kill();
    gateway.start();
    assert_eq!(
        gateway.exec("vm", BOOT_ID).ok().text(),
        before,
        "it is the same machine"
    );
    let log = gateway.control("workspace logs vm").ok();
    assert!(log.text().contains("starting the agent"), "{log}");
    assert!(!log.text().contains('\r'), "{log}");

    qemu(&gateway).signal(Signal::SIGKILL);
    eventually("the end is seen", || gateway.state("vm") == "stopped");
    let status = gateway.control("workspace status vm --json").ok().json();
    let note = status["workspace"]["note"]
        .as_str()
        .expect("a note")
        .to_owned();
    assert!(
        note.contains("by itself")
            && note.contains("QEMU was killed (status 137)")
            && !note.contains('\r'),
        "{note}"
    );
    // The last that its console said.
    assert!(note.contains("vendetta_agent"), "{note}");
    slow(&gateway, "workspace up vm").ok();
    let now = gateway
        .exec("vm", &format!("cat file; {BOOT_ID}"))
        .ok()
        .text();
    assert!(now.starts_with("kept\n") && !now.contains(&before), "{now}");

    // What the console says does not fill the node's disk, whether there is a gateway or not.
    gateway.kill();
    let console = only_machine(&gateway).join("serial.log");
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(&console)
        .expect("a log");
    file.write_all(&vec![b'\n'; 21 << 20]).expect("writing");
    eventually("the log is begun anew", || {
        fs::metadata(&console).expect("the log").len() < 20 << 20
    });
    gateway.start();

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
    let began = Instant::now();
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
        thread::sleep(Duration::from_secs(1));
    }
    // Its root file system takes the room that the config says, once cloud-init has come so far.
    while root_size(&gateway) < 7 << 28 {
        assert!(began.elapsed() < BOOT, "{}", root_size(&gateway));
        thread::sleep(Duration::from_secs(1));
    }
    // It restarts as any system does, without cloud-init's help this time.
    let before = gateway.exec("vm", BOOT_ID).ok().text();
    let _ = gateway.exec("vm", "sudo -n reboot").finish();
    let began = Instant::now();
    let now = loop {
        let said = gateway
            .exec("vm", &format!("{BOOT_ID}; cat file"))
            .limit(BOOT);
        let said = said.finish();
        if said.status.success() && !said.text().contains(&before) {
            break said.text();
        }
        assert!(began.elapsed() < BOOT, "{said}");
        thread::sleep(Duration::from_secs(1));
    };
    assert!(now.ends_with("\nkept"), "{now}");
    slow(&gateway, "workspace down vm").ok();
    gateway.control("workspace destroy vm --yes").ok();
}

#[test]
fn services_and_the_up_hook_come_back_when_a_machine_restarts_itself() {
    // The gateway is not asked, which would make it look: what runs in the machine tells.
    let ear = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = ear.local_addr().expect("its address").port();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for stream in ear.incoming() {
            let mut said = String::new();
            stream
                .and_then(|mut stream| stream.read_to_string(&mut said))
                .expect("what it says");
            if tell.send(said).is_err() {
                return;
            }
        }
    });
    let both = || {
        let mut said = [(); 2].map(|()| told.recv_timeout(BOOT).expect("somebody who tells"));
        said.sort();
        said
    };
    let gateway = gateway("");
    let more = format!(
        "\
hooks: {{up: \"echo up | socat -u - TCP:10.0.2.2:{port}\"}}
services: {{web: {{command: \"{BOOT_ID} | socat -u - TCP:10.0.2.2:{port}; exec sleep infinity\"}}}}
"
    );
    gateway.create("vm", &config(&MachineImage::Small.path(), &more));
    slow(&gateway, "workspace up vm").ok();
    let first = both();
    assert_eq!(first[1], "up\n");
    gateway.exec("vm", "echo kept >file").ok();
    gateway.exec("vm", "setsid -f busybox reboot").ok();
    let second = both();
    assert_eq!(second[1], "up\n");
    assert_ne!(first[0], second[0], "it has not restarted");
    eventually("it is up", || gateway.state("vm") == "running");
    let said = gateway.exec("vm", &format!("cat file; {BOOT_ID}")).ok();
    assert_eq!(format!("{}\n", said.text()), format!("kept\n{}", second[0]));
    let twice = told.recv_timeout(Duration::from_secs(3));
    assert!(twice.is_err(), "something was started twice");
}

/// With all that is done in an environment, and no network that leads out of it.
#[test]
fn a_machine_on_a_node_has_services_hooks_and_ports_and_reaches_nothing_when_it_is_isolated() {
    let (node, image) = node_with_image(Node::builder());
    let gateway = gateway_of(&node, "[qemu]\nnetwork = \"none\"\n");
    let more = "\
remote: {node: n1}
user: ada
workspace_folder: /home/ada/work
env: {WORD: \"from inside\"}
hooks: {create: \"echo create >>hooks\", up: \"echo up >>hooks\"}
services:
  web:
    command: \"exec socat TCP-LISTEN:8000,fork,reuseaddr SYSTEM:'echo $WORD'\"
    port: 8000
    health_check: {tcp: 8000}
";
    gateway.create("vm", &config(image, more));
    slow(&gateway, "workspace up vm").ok();
    let said = gateway.exec("vm", "pwd; cat hooks").ok();
    assert_eq!(said.text(), "/home/ada/work\ncreate\nup");
    // The disk is in the home directory of a user whom the image did not have.
    let home = "cd && touch mine && stat -c %U . mine work";
    assert_eq!(gateway.exec("vm", home).ok().text(), "ada\nada\nada");
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

/// Stands before the node's QEMU. While /tmp/unreadable is there, nothing that was ever
/// written to the disk of a workspace can be read.
const BAD_DISK: &str = r#"#!/bin/sh
words=$#
while [ "$words" -gt 0 ]; do
    word=$1
    shift
    case $word in
        *file=*/workspace.qcow2)
            [ ! -e /tmp/unreadable ] || word=${word%%file=*}file=blkdebug:/tmp/unreadable:${word#*file=}
            ;;
    esac
    set -- "$@" "$word"
    words=$((words - 1))
done
exec /usr/bin/qemu-system-x86_64 "$@"
"#;

#[test]
fn a_workspaces_disk_that_cannot_be_used_is_told_and_never_made_anew() {
    let (node, image) = node_with_image(Node::builder());
    let gateway = gateway_of(&node, "");
    gateway.create("vm", &config(image, "remote: {node: n1}\n"));
    slow(&gateway, "workspace up vm").ok();
    gateway.exec("vm", "echo kept >file && sync").ok();
    slow(&gateway, "workspace down vm").ok();

    let put =
        "cat >/usr/local/bin/qemu-system-x86_64 && chmod 755 /usr/local/bin/qemu-system-x86_64";
    node.sh(put).stdin(BAD_DISK).ok();
    let error = "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nonce = \"off\"\n";
    node.sh("cat >/tmp/unreadable").stdin(error).ok();
    let failed = slow(&gateway, "workspace up vm").finish().exits(5);
    assert!(failed.error_text().contains("cannot be read"), "{failed}");
    assert_eq!(gateway.state("vm"), "failed");
    node.sh("rm /tmp/unreadable").ok();
    slow(&gateway, "workspace up vm").ok();
    assert_eq!(gateway.exec("vm", "cat file").ok().text(), "kept");

    // A file system that nobody can make sense of.
    gateway
        .exec("vm", "rm \"$(command -v mkfs.ext4)\" && sync")
        .ok();
    slow(&gateway, "workspace down vm").ok();
    let disk = "/home/dev/.vendetta/*/w/*/workspace.qcow2";
    node.sh(&format!("qemu-io -f qcow2 -c 'write -P 0xff 0 1M' {disk}"))
        .ok();
    let failed = slow(&gateway, "workspace up vm").finish().exits(5);
    let said = failed.error_text();
    assert!(said.contains("cannot be mounted at /workspace"), "{failed}");
    assert!(said.contains("workspace.qcow2"), "{failed}");

    // A new disk, and an image that cannot format it.
    node.sh(&format!("qemu-img create -q -f qcow2 {disk} 1G"))
        .ok();
    let failed = slow(&gateway, "workspace up vm").finish().exits(5);
    assert!(failed.error_text().contains("e2fsprogs"), "{failed}");
    gateway.control("workspace destroy vm --yes").ok();
}

#[test]
fn a_node_whose_sshd_lets_nobody_through_to_a_machine_is_told_at_once() {
    let (node, image) = node_with_image(Node::builder().sshd_line("AllowTcpForwarding no"));
    let gateway = gateway_of(&node, "");
    gateway.create("vm", &config(image, "remote: {node: n1}\n"));
    let failed = slow(&gateway, "workspace up vm").finish().exits(5);
    assert!(
        failed.error_text().contains("AllowTcpForwarding yes"),
        "{failed}"
    );
    assert_eq!(
        node.sh("pgrep -c qemu-system").finish().text(),
        "0",
        "nothing was booted"
    );
    node.sshd_lines(&[]);
    gateway.control("node test n1").ok();
    slow(&gateway, "workspace up vm").ok();
    assert_eq!(gateway.exec("vm", "hostname").ok().text(), "vm");
}
