//! One project on every engine: the same config and the same commands, and nothing that
//! its user sees tells which engine it is.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vendetta_tests::{
    Agent, BOOT, BUSYBOX, Finished, Gateway, GatewayBuilder, Lxc, MachineImage, Node, PATIENCE,
    Process, Run, eventually, free_port, random_bytes,
};

use crate::jump::Jumper;

/// A machine, and an engine of it, to run a project on.
struct Place<'a> {
    gateway: GatewayBuilder,
    /// The machine, where it is not the gateway's own.
    node: Option<&'a Node>,
    /// The part of the project's config that says what runs it.
    engine: String,
    /// What is there of it when all should be gone.
    left: &'a dyn Fn(&Gateway) -> String,
    /// Whether it is a machine to its users, or a folder of one.
    isolated: bool,
}

/// A project whose services need no more than busybox. On provider `host` its ports are the
/// machine's, so they are any that are free.
struct Project {
    web: u16,
    other: u16,
    back: u16,
}

impl Project {
    fn new() -> Self {
        Self {
            web: free_port(),
            other: free_port(),
            back: free_port(),
        }
    }

    fn config(&self) -> String {
        let web = self.web;
        format!(
            "
env: {{WORD: hello}}
services:
  web:
    command: exec busybox httpd -f -p 127.0.0.1:{web} -h www
    port: {web}
    health_check: /index.html
    depends_on: [beat]
  beat: {{command: \"while :; do echo beat $WORD; sleep 1; done\"}}
hooks:
  create: mkdir -p www && echo made $WORD >www/index.html
  up: echo up >>www/log
  down: echo down >>www/log
"
        )
    }
}

/// What its user asks for, in a session; in the end what a shell of any image has set itself is left out.
const QUESTIONS: &str = "echo $WORD; cat www/log; cat; umask; \
    env | cut -d= -f1 | grep -Ev '^(_|PWD|OLDPWD|SHLVL|MAIL)$' | sort | tr '\\n' ' '; exit 3";

/// What else they ask for where the environment is a machine to them.
const WHERE: &str = "hostname; pwd; id -un; echo $USER $LOGNAME $HOME";

/// The variables of a session, which are the same everywhere.
const VARIABLES: &str = "HOME LOGNAME PATH SHELL SSH_CLIENT SSH_CONNECTION USER \
    VENDETTA_SERVICE_WEB_HOST_PORT VENDETTA_SERVICE_WEB_PORT VENDETTA_SERVICE_WEB_URL VENDETTA_WORKSPACE WORD";

/// An answer to HTTP.
fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("connecting");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream
        .write_all(b"GET /index.html HTTP/1.0\r\n\r\n")
        .expect("asking");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn services(gateway: &Gateway) -> Value {
    let listed = gateway.control("workspace services my-project --json");
    listed.ok().json()["services"].clone()
}

/// A command that an emulated machine boots or shuts down in.
fn slow(gateway: &Gateway, command: &str) -> Finished {
    let line = format!("workspace {command} my-project");
    gateway.control(&line).limit(2 * BOOT).ok()
}

/// From `node add` to `destroy`.
fn a_day(place: Place<'_>) {
    let project = Project::new();
    let mut builder = place.gateway;
    if let Some(node) = place.node {
        builder = builder.operator_key(node.user_key());
    }
    let mut gateway = builder.start();
    let config = format!("{}{}", place.engine, project.config());
    match place.node {
        Some(node) => as_designed(&gateway, node, &config),
        None => {
            let create = "workspace create my-project --config -";
            gateway.control(create).stdin(config.as_str()).ok();
            let up = slow(&gateway, "up");
            assert!(up.text().contains("services ready"), "{up}");
        }
    }

    let said = |log: &str| {
        let asked = gateway.exec("my-project", QUESTIONS).stdin("input\n");
        let told = asked.finish().exits(3).text();
        let expected = format!("hello\n{log}\ninput\n0022\n");
        assert!(told.starts_with(&expected), "{told}");
        told.replace(&expected, "")
    };
    let variables = said("up");
    if place.isolated {
        assert_eq!(variables, VARIABLES);
        let told = gateway.exec("my-project", WHERE).ok().text();
        assert_eq!(told, "my-project\n/workspace\nroot\nroot root /root");
    }
    reached_from_everywhere(&gateway, &project);
    files(&gateway);

    // The gateway's end is nobody else's.
    let before = services(&gateway);
    gateway.kill();
    gateway.start();
    eventually("its services are known again", || {
        let listed = gateway.control("workspace services my-project --json");
        listed.finish().status.success()
    });
    assert_eq!(services(&gateway), before);

    slow(&gateway, "down");
    let refused = gateway.exec("my-project", "true").finish();
    assert!(
        refused.error_text().contains("workspace up my-project"),
        "{refused}"
    );
    slow(&gateway, "up");
    if place.isolated {
        gateway.exec("my-project", "echo lost >/root/file").ok();
    }
    let rebuild = gateway.control("workspace rebuild my-project --config -");
    let changed = config.replace("WORD: hello", "WORD: changed");
    rebuild.stdin(changed).limit(2 * BOOT).ok();
    let kept = "cat www/index.html; wc -c <folder/copied; test ! -e /root/file";
    let kept = gateway.exec("my-project", kept).ok();
    assert_eq!(kept.text(), format!("made changed\n{}", 1 << 20));
    let log = gateway.exec("my-project", "cat www/log").ok().text();
    assert_eq!(log, "up\ndown\nup\ndown\nup");

    slow(&gateway, "destroy --yes");
    assert_eq!((place.left)(&gateway), "");
    gateway
        .control("workspace status my-project")
        .finish()
        .exits(3);
}

/// Somebody's shell in the project's folder. Its `ssh` and `scp` read what the gateway's
/// `ssh-config` says.
struct Shell {
    folder: PathBuf,
    path: String,
}

impl Shell {
    fn new(gateway: &Gateway) -> Self {
        let jumper = Jumper::new(gateway.admin());
        let folder = gateway.scratch().join("project");
        let programs = gateway.scratch().join("programs");
        fs::create_dir(&folder).expect("a folder");
        fs::create_dir(&programs).expect("a folder");
        for program in ["ssh", "scp"] {
            let script = programs.join(program);
            let config = jumper.config().display();
            let line = format!("#!/bin/sh\nexec /usr/bin/{program} -F {config} \"$@\"\n");
            fs::write(&script, line).expect("a program");
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", programs.display());
        Self { folder, path }
    }

    /// A line as somebody types it.
    fn line(&self, line: &str) -> Run {
        let run = Run::new("sh").args(["-c", line]).env("PATH", &self.path);
        run.current_dir(&self.folder).limit(2 * BOOT)
    }
}

/// The lines that the project promises its users, word for word but for the node's address.
fn as_designed(gateway: &Gateway, node: &Node, config: &str) {
    let shell = Shell::new(gateway);
    let provider = config.split("provider: ").nth(1).expect("a provider");
    let provider = provider.lines().next().expect("a provider");
    fs::create_dir(shell.folder.join(".vendetta")).expect("a folder");
    fs::write(shell.folder.join(".vendetta/config.yaml"), config).expect("a config");
    fs::write(shell.folder.join("file"), "content").expect("a file");
    let address = node.address();

    let add = format!("ssh vendetta node add node1 {address} --user dev");
    shell.line(&add).ok();
    let create = format!(
        "ssh vendetta workspace create my-project --provider {provider} --remote node1 --config - < .vendetta/config.yaml"
    );
    shell.line(&create).ok();
    // The host keys of its workspaces, by their bare names too.
    let _ = Jumper::new(gateway.admin());
    let up = shell.line("ssh vendetta workspace up my-project").ok();
    assert!(up.text().contains("services ready"), "{up}");
    let typed = |line: &str| {
        let mut session = shell.line(line).start_on_terminal(24, 80);
        session.send("tty; echo $((40 + 2)) $(cat file); exit 3\n");
        let seen = session.finish().exits(3).text();
        assert!(seen.contains("/dev/pts/"), "{seen}");
        assert!(seen.contains("42 content"), "{seen}");
    };
    shell.line("scp file my-project@vendetta:").ok();
    typed("ssh my-project@vendetta");
    typed("ssh -J vendetta my-project");
    shell.line("ssh vendetta workspace down my-project").ok();
    // As if it had never run: what follows looks at what the hooks wrote.
    let again = "ssh vendetta workspace up my-project && ssh my-project@vendetta 'rm file; echo up >www/log'";
    shell.line(again).ok();
}

/// A service from the gateway's machine, from the user's and back, what it wrote, and the
/// user's ssh-agent.
fn reached_from_everywhere(gateway: &Gateway, project: &Project) {
    let states = services(gateway);
    let states = states.as_array().expect("services");
    assert!(
        states.iter().all(|service| service["state"] == "healthy"),
        "{states:?}"
    );
    let log = gateway.control("workspace logs my-project beat --tail 1");
    assert!(log.ok().text().ends_with("beat hello"));

    let ports = gateway.control("workspace ports my-project --json").ok();
    let port = ports.json()["mapped"][0]["host_port"].as_u64();
    let port = u16::try_from(port.expect("a port")).expect("a port");
    let answer = get(SocketAddr::new(gateway.ports_address(), port));
    assert!(answer.ends_with("made hello\n"), "{answer}");

    let local = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), free_port());
    let key = gateway.admin().home().join("id_ed25519");
    let agent = Agent::with(&[key]);
    let Project { web, other, back } = project;
    // What a session leaves in the background, and the way from there to the user's machine,
    // which leads back to the service.
    let there = format!(
        "echo agent $SSH_AUTH_SOCK; busybox wget -q -O - http://127.0.0.1:{back}/index.html; \
         busybox httpd -p 127.0.0.1:{other} && echo ready; cat"
    );
    let tunnel = gateway
        .ssh("my-project")
        .args(["-A", "-o", "ExitOnForwardFailure=yes", "-o"])
        .arg(format!("IdentityAgent={}", agent.socket().display()))
        .args(["-L", &format!("{local}:web:{web}")])
        .args(["-R", &format!("{back}:{local}")]);
    let tunnel = tunnel.arg(there).spawn();
    tunnel.expect_stdout(0, "ready");
    let told = String::from_utf8_lossy(&tunnel.stdout()).into_owned();
    assert!(told.ends_with("made hello\nready\n"), "{told}");
    let answer = get(local);
    assert!(answer.ends_with("made hello\n"), "{answer}");
    eventually("its port is found", || {
        let ports = gateway.control("workspace ports my-project --json").ok();
        ports.json()["discovered"]
            .to_string()
            .contains(&other.to_string())
    });

    // A signature by the user's key, asked for where the environment has the agent.
    let path = told.lines().next().and_then(|line| line.split(' ').nth(1));
    let socket = gateway.scratch().join("agent");
    let forward = format!("{}:{}", socket.display(), path.expect("a socket"));
    let reverse = gateway.ssh("my-project").args(["-N", "-L", &forward]);
    let reverse = reverse.spawn();
    eventually("the socket is there", || socket.exists());
    let public = gateway.admin().home().join("id_ed25519.pub");
    Run::new("ssh-add")
        .arg("-T")
        .arg(public)
        .env("SSH_AUTH_SOCK", &socket)
        .ok();
    drop(reverse);
    let _ = tunnel.finish();
}

/// A file by scp, there and back, and what sftp does to it.
fn files(gateway: &Gateway) {
    let content = random_bytes(1, 1 << 20);
    let (there, back) = (
        gateway.scratch().join("there"),
        gateway.scratch().join("back"),
    );
    fs::write(&there, &content).expect("a file");
    let tool = |program: &str| gateway.admin().tool(program);
    let (there, copy) = (there.display().to_string(), back.display().to_string());
    let scp = tool("scp").arg("-q");
    scp.args([&there, "my-project@gateway:copy"]).ok();
    let batch = "mkdir folder\nrename copy folder/copied\nchmod 640 folder/copied\n";
    let sftp = tool("sftp").args(["-b", "-", "my-project@gateway"]);
    sftp.stdin(batch).ok();
    let mode = gateway.exec("my-project", "stat -c %a folder/copied");
    assert_eq!(mode.ok().text(), "640");
    let scp = tool("scp").arg("-q");
    scp.args(["my-project@gateway:folder/copied", &copy]).ok();
    assert!(fs::read(&back).expect("a copy") == content);
}

fn on_docker() -> String {
    format!("provider: docker\ndocker: {{image: \"{BUSYBOX}\"}}")
}

const ON_LXC: &str = "provider: lxc\nlxc: {image: busybox}";

fn on_qemu(image: &Path) -> String {
    let image = image.display();
    format!("provider: qemu\nqemu: {{image: {image}, cpu: 1, memory: 256M, accel: tcg}}")
}

#[test]
fn a_day_in_a_container_of_docker() {
    let node = Node::with_docker();
    let left = |_: &Gateway| {
        let containers = node.docker(&["ps", "--all", "--quiet"]).ok().text();
        containers + &node.docker(&["volume", "ls", "--quiet"]).ok().text()
    };
    a_day(Place {
        gateway: Gateway::builder(),
        node: Some(&node),
        engine: on_docker(),
        left: &left,
        isolated: true,
    });
}

#[test]
fn a_day_in_a_container_of_docker_here() {
    a_day(Place {
        gateway: Gateway::builder().docker(),
        node: None,
        engine: on_docker(),
        left: &|gateway| gateway.resources().join(" "),
        isolated: true,
    });
}

fn a_day_in_a_system_container(engine: Lxc) {
    let node = Node::builder().lxc(engine).start();
    let left = |_: &Gateway| {
        let instances = node.lxc(&["list", "--format=csv"]).ok().text();
        let volumes = "storage volume list default type=custom --format=csv";
        let volumes: Vec<&str> = volumes.split(' ').collect();
        instances + &node.lxc(&volumes).ok().text()
    };
    a_day(Place {
        gateway: Gateway::builder(),
        node: Some(&node),
        engine: ON_LXC.to_owned(),
        left: &left,
        isolated: true,
    });
}

#[test]
fn a_day_in_a_container_of_incus() {
    a_day_in_a_system_container(Lxc::Incus);
}

#[test]
fn a_day_in_a_container_of_lxd() {
    a_day_in_a_system_container(Lxc::Lxd);
}

fn a_day_in_a_system_container_here(engine: Lxc) {
    a_day(Place {
        gateway: Gateway::builder().lxc(engine),
        node: None,
        engine: ON_LXC.to_owned(),
        left: &|gateway| gateway.lxc_resources().join(" "),
        isolated: true,
    });
}

#[test]
fn a_day_in_a_container_of_incus_here() {
    a_day_in_a_system_container_here(Lxc::Incus);
}

#[test]
fn a_day_in_a_container_of_lxd_here() {
    a_day_in_a_system_container_here(Lxc::Lxd);
}

#[test]
fn a_day_in_a_machine_of_qemu() {
    let node = Node::start();
    let image = Path::new("/var/lib/vendetta/images/small.qcow2");
    let copy = format!(
        "mkdir -p /var/lib/vendetta/images && cat >{}",
        image.display()
    );
    let file = fs::File::open(MachineImage::Small.path()).expect("the image");
    node.sh(&copy).stdin_file(file).ok();
    let left = |_: &Gateway| {
        let there = "pgrep -l qemu-system; ls /home/dev/.local/state/vendetta*/w /home/dev/.vendetta/w 2>/dev/null";
        node.sh(there).finish().text()
    };
    a_day(Place {
        gateway: Gateway::builder(),
        node: Some(&node),
        engine: on_qemu(image),
        left: &left,
        isolated: true,
    });
}

/// The workspaces that a gateway keeps in its own state directory.
fn folders(gateway: &Gateway) -> String {
    let folders = fs::read_dir(gateway.state_dir().join("w"));
    let names = folders.into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_day_in_a_machine_of_qemu_here() {
    let image = MachineImage::Small.path();
    let folder = image.with_file_name("").display().to_string();
    let left = |gateway: &Gateway| {
        let state = gateway.state_dir().join("w").display().to_string();
        let running = Process::with_argument(&state);
        assert!(running.is_empty(), "{running:?}");
        folders(gateway)
    };
    a_day(Place {
        gateway: Gateway::builder().config(&format!("[qemu]\nimage_dirs = [{folder:?}]")),
        node: None,
        engine: on_qemu(&image),
        left: &left,
        isolated: true,
    });
}

#[test]
fn a_day_on_the_gateway_s_own_machine() {
    a_day(Place {
        gateway: Gateway::builder().host(),
        node: None,
        engine: "provider: host".to_owned(),
        left: &folders,
        isolated: false,
    });
}
