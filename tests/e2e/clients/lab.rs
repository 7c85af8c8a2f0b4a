//! A workspace of each provider, and a client's way into it.

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vendetta_tests::{
    BOOT, Gateway, Lxc, MachineImage, PATIENCE, Run, Running, eventually, free_port, random_bytes,
};

use crate::jump::Jumper;

/// Where the echo server listens in the environment.
pub(super) const ECHO: &str = "7000";

/// How a client comes into a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `ws@gateway`: the gateway asks for the key and sees what passes.
    Relayed,
    /// Through the gateway to port 22 of `ws`, whose agent asks for the key.
    EndToEnd,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Relayed => "relayed",
            Self::EndToEnd => "end-to-end",
        })
    }
}

/// A workspace `ws`, an echo server in it, and what clients are told that do not read
/// OpenSSH's configuration.
pub(super) struct Lab {
    pub gateway: Gateway,
    /// What it runs in.
    pub place: &'static str,
    /// How long one run of a client may take.
    pub patience: Duration,
    jumper: Jumper,
    /// What `ssh-config` says for ~/.ssh/known_hosts.
    known_hosts: PathBuf,
    keys: [HostKey; 2],
    /// The line of the gateway's host CA.
    authority: String,
}

/// What a server proves itself with.
#[derive(Debug, Clone)]
pub(super) struct HostKey {
    /// As in known_hosts, without a name.
    pub line: String,
    /// As `ssh-keygen -l` prints it.
    pub fingerprint: String,
}

impl HostKey {
    fn of(line: &serde_json::Value) -> Self {
        let line = line.as_str().expect("a key").to_owned();
        let listed = Run::new("ssh-keygen").args(["-l", "-f", "-"]);
        let listed = listed.stdin(line.clone()).ok().text();
        let fingerprint = listed.split(' ').nth(1).expect("a fingerprint");
        Self {
            fingerprint: fingerprint.to_owned(),
            line,
        }
    }
}

impl Lab {
    pub(super) fn docker() -> Self {
        Self::with("docker", Gateway::with_workspace())
    }

    /// In the image `systemd`, the only one that has programs beside its init.
    pub(super) fn lxc(engine: Lxc) -> Self {
        let gateway = Gateway::builder().lxc(engine).start();
        gateway.create("ws", "provider: lxc\nlxc: {image: systemd}\n");
        gateway.control("workspace up ws").ok();
        let place = match engine {
            Lxc::Incus => "lxc (Incus)",
            Lxc::Lxd => "lxc (LXD)",
        };
        Self::with(place, gateway)
    }

    /// An emulated machine.
    pub(super) fn qemu() -> Self {
        let image = MachineImage::Small.path();
        let folder = image.with_file_name("").display().to_string();
        let config = format!("[qemu]\nimage_dirs = [{folder:?}]\n");
        let gateway = Gateway::builder().config(&config).start();
        let machine = format!(
            "provider: qemu\nqemu: {{image: \"{}\", cpu: 1, memory: 512M, disk: 2G, accel: tcg}}\n",
            image.display()
        );
        gateway.create("ws", &machine);
        gateway.control("workspace up ws").limit(2 * BOOT).ok();
        let lab = Self::with("qemu", gateway);
        Self {
            patience: BOOT,
            ..lab
        }
    }

    fn with(place: &'static str, gateway: Gateway) -> Self {
        gateway.echo_server("ws", &format!("tcp 127.0.0.1 {ECHO}"));
        let told = gateway.control("ssh-config --json").ok().json();
        let ssh = gateway.admin().home().join(".ssh");
        fs::create_dir_all(&ssh).expect("a folder");
        let known_hosts = ssh.join("known_hosts");
        let lines = told["known_hosts"].as_str().expect("lines");
        fs::write(&known_hosts, lines).expect("known_hosts");
        Self {
            place,
            patience: 3 * PATIENCE,
            jumper: Jumper::new(gateway.admin()),
            known_hosts,
            keys: [
                HostKey::of(&told["host_key"]),
                HostKey::of(&told["workspace_host_keys"]["ws"]),
            ],
            authority: told["host_ca"].as_str().expect("a key").to_owned(),
            gateway,
        }
    }
}

/// A client in a lab, with a folder here and one in the workspace.
pub(super) struct Visit<'a> {
    pub lab: &'a Lab,
    pub way: Way,
    scratch: PathBuf,
    folder: String,
}

impl<'a> Visit<'a> {
    pub(super) fn new(lab: &'a Lab, way: Way, client: &str) -> Self {
        let name = format!("{client}-{way}");
        let scratch = lab.gateway.scratch().join("visits").join(&name);
        fs::create_dir_all(&scratch).expect("a folder");
        let folder = format!("/workspace/{name}");
        lab.gateway.exec("ws", &format!("mkdir {folder}")).ok();
        Self {
            lab,
            way,
            scratch,
            folder,
        }
    }

    /// A path here.
    pub(super) fn here(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// The path of one's own in the workspace.
    pub(super) fn there(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    pub(super) fn key(&self) -> PathBuf {
        self.lab.gateway.admin().key()
    }

    /// The gateway's.
    pub(super) fn port(&self) -> String {
        self.lab.gateway.address().port().to_string()
    }

    pub(super) fn gateway_key(&self) -> &HostKey {
        &self.lab.keys[0]
    }

    pub(super) fn workspace_key(&self) -> &HostKey {
        &self.lab.keys[1]
    }

    /// Who certifies it.
    pub(super) fn authority(&self) -> &String {
        &self.lab.authority
    }

    /// The file that knows both.
    pub(super) fn known_hosts(&self) -> &Path {
        &self.lab.known_hosts
    }

    pub(super) fn run(&self, program: impl AsRef<Path>) -> Run {
        let program = program.as_ref().display().to_string();
        let run = self.lab.gateway.admin().program(&program);
        run.limit(self.lab.patience)
    }

    /// What OpenSSH's programs are configured with.
    pub(super) fn config(&self) -> PathBuf {
        match self.way {
            Way::Relayed => self.lab.gateway.admin().config(),
            Way::EndToEnd => self.lab.jumper.config().to_owned(),
        }
    }

    /// The command `ssh`, for programs that start it themselves.
    pub(super) fn ssh_command(&self) -> String {
        format!("ssh -F {}", self.config().display())
    }

    /// A program of OpenSSH.
    pub(super) fn tool(&self, program: &str) -> Run {
        self.run(program).arg("-F").arg(self.config())
    }

    /// Whom one logs in as.
    pub(super) fn user(&self) -> &'static str {
        match self.way {
            Way::Relayed => "ws",
            // The workspace's own user, as any name that its environment has not.
            Way::EndToEnd => "vendetta",
        }
    }

    /// The host that [`Visit::config`] knows.
    pub(super) fn host(&self) -> &'static str {
        match self.way {
            Way::Relayed => "gateway",
            Way::EndToEnd => "ws.vendetta",
        }
    }

    /// Both.
    pub(super) fn login(&self) -> String {
        format!("{}@{}", self.user(), self.host())
    }

    /// A file of random bytes, and where a copy of it may go.
    pub(super) fn files(&self) -> (PathBuf, PathBuf) {
        let (file, copy) = (self.here("file"), self.here("copy"));
        fs::write(&file, random_bytes(1, 1 << 20)).expect("a file");
        let _ = fs::remove_file(&copy);
        (file, copy)
    }

    /// A folder with some files in a folder.
    pub(super) fn files_in_a_folder(&self) -> PathBuf {
        let folder = self.here("folder");
        fs::create_dir_all(folder.join("deeper")).expect("a folder");
        for file in 0..20 {
            let content = random_bytes(file, 10_000);
            fs::write(folder.join(format!("deeper/file{file}")), content).expect("a file");
        }
        folder
    }

    /// The way for a client that has no jump of its own.
    pub(super) fn address(&self) -> Address {
        if self.way == Way::Relayed {
            return Address {
                port: self.port(),
                key: self.gateway_key().clone(),
                _forward: None,
            };
        }
        let port = free_port();
        let forward = format!("{port}:ws:22");
        let ssh = self.lab.jumper.tool("ssh").limit(4 * self.lab.patience);
        let ssh = ssh.args(["-N", "-o", "ExitOnForwardFailure=yes", "-L", &forward]);
        let ssh = ssh.arg("vendetta").spawn();
        connect(port);
        Address {
            port: port.to_string(),
            key: self.workspace_key().clone(),
            _forward: Some(ssh),
        }
    }
}

/// A port of 127.0.0.1 that leads to an SSH server, as long as this is there.
pub(super) struct Address {
    pub port: String,
    pub key: HostKey,
    _forward: Option<Running>,
}

/// A client brought `file` into the environment and out again.
pub(super) fn same(file: &Path, copy: &Path) {
    let read = |path| fs::read(path).expect("a file");
    assert!(read(file) == read(copy), "the copy differs");
}

/// An exchange that a client's session does in its own words: input, output, status.
pub(super) fn session(run: Run) {
    let done = run.arg("cat; exit 7").stdin("there and back").finish();
    assert_eq!(done.exits(7).text(), "there and back");
}

/// Connects to a port of 127.0.0.1 once something listens there.
pub(super) fn connect(port: u16) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = None;
    eventually("the client listens", || {
        stream = TcpStream::connect(address).ok();
        stream.is_some()
    });
    stream.expect("a connection")
}

/// A tunnel to the echo server; `forward` is how the client is told of it.
pub(super) fn tunnel(forward: impl Fn(&str) -> Run) {
    let local = free_port();
    let client = forward(&format!("{local}:127.0.0.1:{ECHO}")).spawn();
    let mut stream = connect(local);
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream.write_all(b"ping").expect("writing");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"ping");
    drop(client);
}
