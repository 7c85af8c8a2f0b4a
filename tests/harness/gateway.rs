//! The real `vendetta serve` on a port and a state directory of its own.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{Agent, Client, Engine, Lxc, LxcEngine, PATIENCE, Process, Run, TOOLS, eventually};

/// How to start a gateway.
#[derive(Debug, Default)]
pub struct GatewayBuilder {
    config: String,
    engine: bool,
    lxc: Option<Lxc>,
    allow_host: bool,
    operator_keys: Vec<PathBuf>,
    agent_keys: Vec<PathBuf>,
}

impl GatewayBuilder {
    /// Lets it use the Docker engine of the tests.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.engine = true;
        self
    }

    /// Lets it use the Incus or LXD of the tests.
    #[must_use]
    pub fn lxc(mut self, engine: Lxc) -> Self {
        self.lxc = Some(engine);
        self
    }

    /// Lets it run workspaces of provider `host`.
    #[must_use]
    pub fn host(mut self) -> Self {
        self.allow_host = true;
        self
    }

    /// Adds lines to its configuration file: whole tables, or keys before any table.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Gives whoever runs it the private key file `key` (and `key.pub`) in `~/.ssh`,
    /// under one of the names that OpenSSH looks for.
    #[must_use]
    pub fn operator_key(mut self, key: impl Into<PathBuf>) -> Self {
        self.operator_keys.push(key.into());
        self
    }

    /// Gives whoever runs it an agent that has the private key file `key`.
    #[must_use]
    pub fn operator_agent(mut self, key: impl Into<PathBuf>) -> Self {
        self.agent_keys.push(key.into());
        self
    }

    /// Starts it and waits until it accepts connections.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(self) -> Gateway {
        // Not in CARGO_TARGET_TMPDIR: unix socket paths must stay short.
        let dir = tempfile::Builder::new()
            .prefix("vendetta-")
            .tempdir_in("/tmp")
            .expect("a temporary folder");
        let engine = self.engine.then(Engine::shared);
        let mut config = self.config;
        if let Some(engine) = &engine {
            config.push_str(&format!(
                "[docker]\nsocket = \"{}\"\n",
                engine.socket().display()
            ));
        }
        let lxc = self.lxc.map(LxcEngine::shared);
        // One of the machine's own is nobody's business.
        let socket = lxc.as_ref().map(|engine| engine.socket());
        let socket = socket.unwrap_or_else(|| dir.path().join("no-lxc.sock"));
        config.push_str(&format!("[lxc]\nsocket = \"{}\"\n", socket.display()));
        if self.allow_host {
            config.push_str("[local]\nallow_host = true\n");
        }
        let ports = ports_address();
        config.push_str(&format!("[ports]\nbind = \"{ports}\"\n"));
        fs::write(dir.path().join("vendetta.toml"), config).expect("writing the configuration");
        let admin = Client::new(&dir.path().join("admin"), 0, "");
        make_home(&dir.path().join("home"), &self.operator_keys);
        let agent = (!self.agent_keys.is_empty()).then(|| Agent::with(&self.agent_keys));
        let mut gateway = Gateway {
            dir,
            engine,
            lxc,
            agent,
            admin,
            child: None,
            address: None,
            ports,
        };
        gateway.start();
        gateway
    }
}

/// A gateway. Dropped, it is killed, and its containers, volumes and images are removed;
/// dropped by a failing test, it shows the end of its log.
#[derive(Debug)]
pub struct Gateway {
    dir: TempDir,
    engine: Option<Arc<Engine>>,
    lxc: Option<Arc<LxcEngine>>,
    agent: Option<Agent>,
    admin: Client,
    child: Option<Child>,
    address: Option<SocketAddr>,
    ports: Ipv4Addr,
}

impl Gateway {
    /// A gateway that may use the Docker engine of the tests.
    #[must_use]
    pub fn docker() -> Self {
        GatewayBuilder::default().docker().start()
    }

    /// How to start a gateway that may use nothing.
    #[must_use]
    pub fn builder() -> GatewayBuilder {
        GatewayBuilder::default()
    }

    /// A gateway of [`Gateway::docker`] and on it the running workspace `ws` of image [`TOOLS`].
    #[must_use]
    pub fn with_workspace() -> Self {
        let gateway = Self::docker();
        gateway.workspace("ws", TOOLS);
        gateway
    }

    /// Path of a program of the workspace being tested: `vendetta` or `vendetta-agent`.
    ///
    /// # Panics
    /// When it has not been built.
    #[must_use]
    pub fn binary(name: &str) -> PathBuf {
        let dir = std::env::var_os("VENDETTA_BIN_DIR").map_or_else(
            || {
                // target/<triple>/<profile>/deps/<test>-<hash>
                let test = std::env::current_exe().expect("this test's own path");
                test.ancestors()
                    .nth(2)
                    .expect("tests are in target/…/deps")
                    .to_owned()
            },
            PathBuf::from,
        );
        let path = dir.join(name);
        assert!(
            path.exists(),
            "{} is missing: run `cargo build --workspace --all-targets` first",
            path.display()
        );
        path
    }

    /// Starts it (again), on the port it had before.
    ///
    /// # Panics
    /// When it runs already or does not accept connections.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "the gateway runs already");
        let listen = self
            .address
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let before = self.log().len();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("opening the log");
        // Should the test be killed, the kernel ends the gateway (prctl(2), PR_SET_PDEATHSIG).
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(Self::binary("vendetta"))
            .arg("serve");
        command
            .arg("--config")
            .arg(self.dir.path().join("vendetta.toml"));
        command
            .args(["--listen", &listen.to_string()])
            .arg("--state-dir")
            .arg(self.state_dir());
        command
            .arg("--admin-key")
            .arg(self.admin.home().join("id_ed25519.pub"));
        command
            .env_clear()
            .env("HOME", self.home())
            .env("RUST_BACKTRACE", "1");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if let Some(agent) = &self.agent {
            command.env("SSH_AUTH_SOCK", agent.socket());
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicating the log"))
            .stderr(log);
        self.child = Some(command.spawn().expect("running vendetta serve"));
        let started = Instant::now();
        let address = loop {
            if let Some(address) = bound_address(&self.log()[before..]) {
                break address;
            }
            if let Some(status) = self.try_wait() {
                panic!("vendetta serve ended with {status}:\n{}", self.log());
            }
            assert!(
                started.elapsed() < PATIENCE,
                "vendetta serve does not say where it listens:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        if self.address != Some(address) {
            self.address = Some(address);
            self.admin.configure(address.port());
            self.admin.know_host(&self.scan_host_key());
        }
    }

    /// The `known_hosts` line of its host key for the host name `gateway`.
    fn scan_host_key(&self) -> String {
        let port = self.address().port().to_string();
        let scan = Run::new("ssh-keyscan")
            .args(["-T", "30", "-t", "ed25519", "-p", &port, "127.0.0.1"])
            .ok();
        let text = scan.text();
        let key = text
            .lines()
            .find_map(|line| line.split_once(' '))
            .unwrap_or_else(|| panic!("no host key: {scan}"));
        format!("gateway {}\n", key.1)
    }

    /// Where it listens.
    ///
    /// # Panics
    /// Before it has been started.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the gateway has been started")
    }

    /// The address, its alone, of the ports that lead into its workspaces.
    #[must_use]
    pub fn ports_address(&self) -> IpAddr {
        self.ports.into()
    }

    /// A port of [`Gateway::ports_address`] that was free a moment ago.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn free_port(&self) -> u16 {
        let listener = TcpListener::bind((self.ports, 0)).expect("a free port");
        listener.local_addr().expect("its address").port()
    }

    /// The first administrator.
    #[must_use]
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// Somebody else, with a key that the gateway does not know yet.
    #[must_use]
    pub fn stranger(&self, name: &str) -> Client {
        let known =
            fs::read_to_string(self.admin.home().join("known_hosts")).expect("reading known_hosts");
        Client::new(&self.dir.path().join(name), self.address().port(), &known)
    }

    /// A new user of role `member`.
    pub fn member(&self, name: &str) -> Client {
        let client = self.stranger(name);
        let line = format!("user add {name} --role member --key -");
        self.control(&line).stdin(client.public_key()).ok();
        client
    }

    /// The engine of [`GatewayBuilder::docker`].
    ///
    /// # Panics
    /// When it was started without.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        self.engine
            .as_deref()
            .expect("the gateway was started with docker()")
    }

    /// The engine of [`GatewayBuilder::lxc`].
    ///
    /// # Panics
    /// When it was started without.
    #[must_use]
    pub fn lxc(&self) -> &LxcEngine {
        let engine = self.lxc.as_deref();
        engine.expect("the gateway was started with lxc()")
    }

    /// Creates the workspace `name` of `image` and brings it up.
    pub fn workspace(&self, name: &str, image: &str) {
        self.create(
            name,
            &format!("provider: docker\ndocker: {{image: \"{image}\"}}\n"),
        );
        self.admin.control(&format!("workspace up {name}")).ok();
    }

    /// Creates the workspace `name` from the YAML text `config`.
    pub fn create(&self, name: &str, config: &str) {
        self.admin
            .control(&format!("workspace create {name} --config -"))
            .stdin(config)
            .ok();
    }

    /// Writes the file `path` in the workspace `name`.
    pub fn put(&self, name: &str, path: &str, content: impl Into<Vec<u8>>) {
        self.exec(name, &format!("cat >{path}")).stdin(content).ok();
    }

    /// Starts a server in the workspace `name` that sends back what it gets; `address` is
    /// `tcp HOST PORT` or `unix PATH`.
    pub fn echo_server(&self, name: &str, address: &str) {
        self.put(
            name,
            "/tmp/echo-server.py",
            include_str!("../fixtures/echo-server.py"),
        );
        self.exec(name, &format!("python3 /tmp/echo-server.py {address}"))
            .ok();
    }

    /// `ssh LOGIN@gateway` as the administrator.
    #[must_use]
    pub fn ssh(&self, login: &str) -> Run {
        self.admin.ssh(login)
    }

    /// `ssh LOGIN@gateway COMMAND` as the administrator.
    #[must_use]
    pub fn exec(&self, login: &str, command: &str) -> Run {
        self.admin.exec(login, command)
    }

    /// The local command `vendetta`, whose `ssh` is the first administrator's
    /// and knows no agent but that of the variable `IDENTITY_AGENT`.
    ///
    /// # Panics
    /// When a wrapper of `ssh` cannot be made.
    #[must_use]
    pub fn front(&self) -> Run {
        let bin = self.admin.home().join("bin");
        fs::create_dir_all(&bin).expect("a folder");
        let ssh = bin.join("ssh");
        let script = format!(
            "#!/bin/sh\nexec /usr/bin/ssh -F {} -o HostKeyAlias=gateway \
             ${{IDENTITY_AGENT:+-o IdentityAgent=\"$IDENTITY_AGENT\"}} \"$@\"\n",
            self.admin.config().display()
        );
        fs::write(&ssh, script).expect("a wrapper of ssh");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("its mode");
        self.admin
            .program(&Self::binary("vendetta").display().to_string())
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("VENDETTA_GATEWAY", self.address().to_string())
    }

    /// `ssh vendetta@gateway COMMAND` as the administrator.
    #[must_use]
    pub fn control(&self, command: &str) -> Run {
        self.admin.control(command)
    }

    /// The state of the workspace `name`: "running", "stopped", …
    ///
    /// # Panics
    /// When there is no such workspace.
    #[must_use]
    pub fn state(&self, name: &str) -> String {
        let run = self
            .control(&format!("workspace status {name} --json"))
            .ok();
        run.json()["workspace"]["state"]
            .as_str()
            .unwrap_or_else(|| panic!("no state: {run}"))
            .to_owned()
    }

    /// Names of all workspaces, sorted.
    ///
    /// # Panics
    /// When they cannot be listed.
    #[must_use]
    pub fn workspaces(&self) -> Vec<String> {
        let list = self.control("workspace list --json").ok().json();
        let list = list["workspaces"].as_array().expect("a list of workspaces");
        let mut names: Vec<String> = list
            .iter()
            .map(|workspace| workspace["name"].as_str().expect("a name").to_owned())
            .collect();
        names.sort();
        names
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn process(&self) -> Process {
        let child = self.child.as_ref().expect("the gateway runs");
        Process(i32::try_from(child.id()).expect("a pid"))
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Ends it as a power failure would.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the gateway runs");
        child.kill().expect("killing a child of ours");
        child.wait().expect("waiting for a child of ours");
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.is_some() && self.try_wait().is_none()
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child
            .as_mut()?
            .try_wait()
            .expect("waiting for a child of ours")
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        eventually("the gateway ends", || {
            ended = self.try_wait();
            ended.is_some()
        });
        self.child = None;
        ended.expect("it has ended")
    }

    /// Its state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The home of whoever runs it.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// A folder for what the test makes, removed with the gateway.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("gateway.log")
    }

    /// Names of the containers, volumes and images of this gateway at its engine.
    #[must_use]
    pub fn resources(&self) -> Vec<String> {
        self.engine().labelled(&self.label())
    }

    /// The name of its container; none while there is none.
    #[must_use]
    pub fn container(&self) -> Option<String> {
        self.resources()
            .iter()
            .find_map(|name| name.strip_prefix("container ").map(str::to_owned))
    }

    /// Names of the instances and volumes of this gateway at its Incus or LXD.
    #[must_use]
    pub fn lxc_resources(&self) -> Vec<String> {
        self.lxc().labelled("user.vendetta.gateway", &self.id())
    }

    fn id(&self) -> String {
        let id = fs::read_to_string(self.state_dir().join("id")).unwrap_or_default();
        id.trim().to_owned()
    }

    /// The label that every resource of this gateway carries.
    fn label(&self) -> String {
        format!("vendetta.gateway={}", self.id())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let mut stderr = std::io::stderr();
        let failing = std::thread::panicking();
        if failing {
            let log = self.log();
            let start = log
                .char_indices()
                .rev()
                .filter(|(_, c)| *c == '\n')
                .nth(80)
                .map_or(0, |(at, _)| at + 1);
            let _ = writeln!(stderr, "--- end of the gateway's log\n{}---", &log[start..]);
        }
        if self.child.is_some() {
            self.kill();
        }
        // Agents of provider host outlive their gateway, as they should; not their test.
        let workspaces = self.state_dir().join("w").display().to_string();
        for agent in Process::with_argument(&workspaces) {
            agent.signal(Signal::SIGTERM);
        }
        if let Some(engine) = &self.lxc {
            engine.remove_labelled("user.vendetta.gateway", &self.id());
        }
        if let Some(engine) = &self.engine {
            if failing {
                for name in engine
                    .labelled(&self.label())
                    .iter()
                    .filter_map(|name| name.strip_prefix("container "))
                {
                    let logs = engine.docker(&["logs", "--tail", "40", name]).finish();
                    let _ = writeln!(
                        stderr,
                        "--- end of the log of container {name}\n{}---",
                        logs.error_text()
                    );
                }
            }
            engine.remove_labelled(&self.label());
        }
    }
}

/// A loopback address that no other gateway of the tests has, so that none
/// listens on a port that another one has given away.
fn ports_address() -> Ipv4Addr {
    static GATEWAYS: AtomicU8 = AtomicU8::new(0);
    let number = GATEWAYS.fetch_add(1, Ordering::Relaxed);
    // Process ids have up to 22 bits (proc(5), pid_max). 127.0.0.x stays
    // everybody's, and the gateways of one test have three quarters of the rest.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 * (1 + number % 3) + (high & 0x3f), middle, low)
}

/// Makes the operator's home with `keys` in its `.ssh`.
fn make_home(home: &Path, keys: &[PathBuf]) {
    let ssh = home.join(".ssh");
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(&ssh).expect("making the operator's home");
    for (key, name) in keys.iter().zip(["id_ed25519", "id_ecdsa", "id_rsa"]) {
        // With its mode.
        fs::copy(key, ssh.join(name)).expect("copying a key");
        let public = fs::read(key.with_extension("pub")).expect("reading a public key");
        fs::write(ssh.join(name).with_extension("pub"), public).expect("copying a public key");
    }
}

/// The address in the log line with which the gateway says that it accepts connections.
fn bound_address(log: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains("listening"))?;
    line.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))
        .filter_map(|word| word.parse::<SocketAddr>().ok())
        .find(|address| address.port() != 0)
}
