//! Machines that a gateway reaches through ssh: `tests/fixtures/node`.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::engine::labelled;
use crate::lxc::{self, Lxc};
use crate::run::fixture;
use crate::{PATIENCE, Run, Running};

/// The lab of this test process: a switch of its own and the nodes on it. It ends
/// with the last of its [`Node`]s, and with the process however that ends.
pub struct Lab {
    name: String,
    dir: PathBuf,
    nodes: AtomicUsize,
    keeper: Option<Running>,
}

impl Lab {
    /// The lab, made if there is none.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Lab>> = Mutex::new(Weak::new());
        static LABS: AtomicUsize = AtomicUsize::new(0);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lab) = shared.upgrade() {
            return lab;
        }
        let count = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = Arc::new(Self::open(format!("t{}n{count}", std::process::id())));
        *shared = Arc::downgrade(&lab);
        lab
    }

    fn open(name: String) -> Self {
        // It lives until our end of its stdin is closed: by us, or by the kernel when we end.
        let keeper = fixture("node")
            .arg("open")
            .env("VENDETTA_LAB", &name)
            .limit(Duration::MAX)
            .spawn();
        let end = keeper.expect_stdout(0, "\n");
        let said = keeper.stdout();
        let dir = PathBuf::from(String::from_utf8_lossy(&said[..end]).trim());
        let mut askpass = File::options();
        askpass.write(true).create_new(true).mode(0o700);
        askpass
            .open(dir.join("askpass"))
            .and_then(|mut file| file.write_all(b"#!/bin/sh\nprintf '%s\\n' \"$PASSWORD\"\n"))
            .expect("writing what answers ssh's questions");
        Self {
            name,
            dir,
            nodes: AtomicUsize::new(0),
            keeper: Some(keeper),
        }
    }

    /// `tests/fixtures/node ARGS…` for this lab.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Run {
        fixture("node").env("VENDETTA_LAB", &self.name).args(args)
    }

    fn next_name(&self) -> String {
        format!("n{}", self.nodes.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Its folder, which is gone when the lab is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Private key file of the operator, whose public key root, dev and alone
    /// accept on all nodes but those of [`NodeBuilder::no_key`].
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab").field("dir", &self.dir).finish()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        keeper.close_stdin();
        let started = Instant::now();
        while keeper.runs() && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// How to start a node.
#[derive(Debug, Clone, Default)]
pub struct NodeBuilder {
    args: Vec<String>,
    lxc: Vec<Lxc>,
}

impl NodeBuilder {
    fn option(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// With a Docker engine that has the images [`crate::TOOLS`] and [`crate::BUSYBOX`].
    /// Without, the node has no program of Docker either.
    #[must_use]
    pub fn docker(self) -> Self {
        self.option(&["docker"])
    }

    /// With Incus or LXD, which has the image busybox; or with both, of which the first
    /// asked for is the one that is meant by [`Node::lxc`] and others. Without, the node has
    /// no program of either.
    #[must_use]
    pub fn lxc(mut self, engine: Lxc) -> Self {
        self.lxc.push(engine);
        self.option(&[engine.word()])
    }

    /// With a key of the engine's daemon.json: `"live-restore": true`.
    #[must_use]
    pub fn dockerd_key(self, json: &str) -> Self {
        self.option(&["--dockerd-key", json])
    }

    /// With a line of `sshd_config` before the usual ones; after a `Match` line,
    /// lines belong to it.
    #[must_use]
    pub fn sshd_line(self, line: &str) -> Self {
        self.option(&["--sshd-line", line])
    }

    /// With nobody's key accepted and no `~/.ssh`: only a [`Node::password`] opens it.
    #[must_use]
    pub fn no_key(self) -> Self {
        self.option(&["--no-key"])
    }

    /// Out of reach of the host: only other nodes reach it.
    #[must_use]
    pub fn private(self) -> Self {
        self.option(&["--private"])
    }

    /// With a disk of this size instead of 4 GiB: `64M`. What is on it takes memory.
    #[must_use]
    pub fn disk(self, size: &str) -> Self {
        self.option(&["--disk", size])
    }

    /// Starts it and waits until its sshd and its engine answer.
    ///
    /// # Panics
    /// When they do not.
    #[must_use]
    pub fn start(self) -> Node {
        let lab = Lab::shared();
        let name = lab.next_name();
        self.start_as(lab, name)
    }

    /// Starts `count` nodes like this at the same time.
    ///
    /// # Panics
    /// When one does not start.
    #[must_use]
    pub fn start_many(self, count: usize) -> Vec<Node> {
        let lab = Lab::shared();
        let names: Vec<String> = (0..count).map(|_| lab.next_name()).collect();
        std::thread::scope(|scope| {
            let starting: Vec<_> = names
                .into_iter()
                .map(|name| {
                    let (builder, lab) = (self.clone(), Arc::clone(&lab));
                    scope.spawn(move || builder.start_as(lab, name))
                })
                .collect();
            starting
                .into_iter()
                .map(|node| node.join().expect("the node starts"))
                .collect()
        })
    }

    fn start_as(self, lab: Arc<Lab>, name: String) -> Node {
        let up = lab.command(&["up", &name]).args(&self.args);
        let address = up.limit(START).ok().text();
        let address = address
            .parse()
            .unwrap_or_else(|error| panic!("no address: {address:?}: {error}"));
        Node {
            lab,
            name,
            address,
            lxc: self.lxc,
        }
    }
}

/// How long a node may take to start: the first with Docker of a checkout builds the images too.
const START: Duration = Duration::from_secs(300);

/// State of a network cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// In its socket.
    Up,
    /// Pulled: whatever is sent is lost, and nobody is told.
    Down,
}

/// What passed in one direction of a link since [`Node::wan`] was first called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Packets that were let through.
    pub packets: u64,
    /// Their bytes, with all headers.
    pub bytes: u64,
    /// Packets that were not.
    pub dropped: u64,
}

/// A machine of the lab. Users are root, dev (who may use its engines) and alone (who
/// may not). Dropped, it is gone; dropped by a failing test, it shows the end of
/// its sshd's and dockerd's logs.
#[derive(Debug)]
pub struct Node {
    lab: Arc<Lab>,
    name: String,
    address: Ipv4Addr,
    lxc: Vec<Lxc>,
}

impl Node {
    /// A node without Docker.
    #[must_use]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A node with Docker and the images of the tests.
    #[must_use]
    pub fn with_docker() -> Self {
        Self::builder().docker().start()
    }

    /// How to start another one.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Its name in the lab and its host name: `n1`, `n2`, ….
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address; sshd listens on port 22. It stays when the node loses power.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The lab that it is in.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Private key file of the operator: [`Lab::key`].
    #[must_use]
    pub fn user_key(&self) -> PathBuf {
        self.lab.key()
    }

    /// The password of `user`: root, dev or alone. Its sshd takes that of root only
    /// with the line `PermitRootLogin yes`.
    #[must_use]
    pub fn password(&self, user: &str) -> String {
        format!("{user}-password")
    }

    fn order(&self, command: &str, args: &[&str]) -> Run {
        self.lab.command(&[command, &self.name]).args(args)
    }

    /// Runs a program in it as root, not through its sshd.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Run {
        self.order("sh", args)
    }

    /// Runs a line of shell in it as root, not through its sshd.
    #[must_use]
    pub fn sh(&self, script: &str) -> Run {
        self.run(&["bash", "-c", script])
    }

    /// `docker ARGS…` in it as root, not through its sshd.
    #[must_use]
    pub fn docker(&self, args: &[&str]) -> Run {
        self.run(&["docker"]).args(args)
    }

    /// `incus ARGS…` or `lxc ARGS…` in it as root, not through its sshd.
    ///
    /// # Panics
    /// When it has neither.
    #[must_use]
    pub fn lxc(&self, args: &[&str]) -> Run {
        self.run(&[self.lxc_engine().client()]).args(args)
    }

    fn lxc_engine(&self) -> Lxc {
        let engine = self.lxc.first();
        *engine.expect("a node with Incus or LXD")
    }

    /// Names of the instances and volumes of its Incus or LXD with a label, sorted.
    #[must_use]
    pub fn lxc_labelled(&self, key: &str, value: &str) -> Vec<String> {
        lxc::labelled(|args| self.lxc(args), key, value)
    }

    /// Names of the containers and volumes of its engine that carry `label` (`key`
    /// or `key=value`), sorted.
    #[must_use]
    pub fn labelled(&self, label: &str) -> Vec<String> {
        labelled(|args| self.docker(args), label)
    }

    /// `ssh USER@ADDRESS` by OpenSSH with the operator's key, whatever the host key
    /// is; more options and the command follow with [`Run::arg`].
    #[must_use]
    pub fn ssh(&self, user: &str) -> Run {
        self.ssh_with(&["-o", "BatchMode=yes", "-i"])
            .arg(self.user_key())
            .arg(format!("{user}@{}", self.address))
    }

    /// As [`Node::ssh`], with a password instead of the key.
    #[must_use]
    pub fn ssh_with_password(&self, user: &str, password: &str) -> Run {
        self.ssh_with(&["-o", "PubkeyAuthentication=no"])
            .args(["-o", "NumberOfPasswordPrompts=1"])
            .env("SSH_ASKPASS", self.lab.dir.join("askpass"))
            .env("SSH_ASKPASS_REQUIRE", "force")
            .env("PASSWORD", password)
            .arg(format!("{user}@{}", self.address))
    }

    fn ssh_with(&self, options: &[&str]) -> Run {
        Run::new("ssh")
            .args(["-F", "none", "-o", "IdentityAgent=none"])
            .args(["-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"])
            .args(["-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null"])
            .args(options)
    }

    /// Pulls its network cable or puts it back.
    pub fn link(&self, link: Link) {
        let word = match link {
            Link::Up => "up",
            Link::Down => "down",
        };
        self.order("link", &[word]).ok();
    }

    /// Puts it so far away that a packet takes `each_way` there, and as long back.
    pub fn delay(&self, each_way: Duration) {
        self.wan(&[&format!("delay={}", each_way.as_secs_f64() * 1000.0)]);
    }

    /// Changes its link as `tests/fixtures/wan.py` tells (`delay=MS`, `loss=P`,
    /// `rate=KBIT`, `stall=1`, …), or with no settings only says what passed to the
    /// node and what came from it.
    ///
    /// # Panics
    /// When a setting is none.
    pub fn wan(&self, settings: &[&str]) -> (Passed, Passed) {
        let run = self.order("wan", settings).ok();
        let answer = run.json();
        let direction = |name: &str| {
            let number = |key: &str| {
                answer[name][key]
                    .as_u64()
                    .unwrap_or_else(|| panic!("no counter {key}: {run}"))
            };
            Passed {
                packets: number("packets"),
                bytes: number("bytes"),
                dropped: number("dropped"),
            }
        };
        (direction("to_node"), direction("from_node"))
    }

    /// Ends what [`Node::delay`] and [`Node::wan`] did.
    pub fn near(&self) {
        self.order("wan", &["off"]).ok();
    }

    /// Freezes its sshd with all its connections: the kernel still takes what is
    /// sent and new connections, and nobody answers.
    pub fn stall(&self) {
        self.order("service", &["stop", "sshd"]).ok();
    }

    /// Ends what [`Node::stall`] did.
    pub fn resume(&self) {
        self.order("service", &["cont", "sshd"]).ok();
    }

    /// Kills its sshd with all its connections; new ones are refused.
    pub fn kill_sshd(&self) {
        self.order("service", &["kill", "sshd"]).ok();
    }

    /// Starts its sshd again.
    pub fn start_sshd(&self) {
        self.order("service", &["start", "sshd"]).ok();
    }

    /// Kills its engine. Containers run on; without `"live-restore": true`
    /// ([`NodeBuilder::dockerd_key`]) the engine ends them when it starts again.
    pub fn kill_docker(&self) {
        self.order("service", &["kill", "dockerd"]).ok();
    }

    /// Starts its engine again.
    pub fn start_docker(&self) {
        self.order("service", &["start", "dockerd"]).ok();
    }

    /// Kills its Incus or LXD. Containers run on.
    pub fn kill_lxc(&self) {
        let engine = self.lxc_engine();
        self.order("service", &["kill", engine.word()]).ok();
    }

    /// Freezes its Incus or LXD: it takes connections and says nothing.
    pub fn freeze_lxc(&self) {
        let engine = self.lxc_engine();
        self.order("service", &["stop", engine.word()]).ok();
    }

    /// Ends what [`Node::freeze_lxc`] did.
    pub fn thaw_lxc(&self) {
        let engine = self.lxc_engine();
        self.order("service", &["cont", engine.word()]).ok();
    }

    /// Starts its Incus or LXD again.
    pub fn start_lxc(&self) {
        let engine = self.lxc_engine();
        self.order("service", &["start", engine.word()]).ok();
    }

    /// Ends it as a power failure does: nobody on the network is told. What was on
    /// its disk stays, also what was never synced.
    pub fn power_off(&self) {
        self.order("down", &[]).ok();
    }

    /// Starts it again with the disk that it had.
    pub fn power_on(&self) {
        self.order("start", &[]).limit(START).ok();
    }

    /// Replaces its additional lines of `sshd_config` and reloads sshd; connections stay.
    pub fn sshd_lines(&self, lines: &[&str]) {
        self.order("sshd", lines).ok();
    }

    /// Gives it new host keys; returns the fingerprint of the new ed25519 key.
    #[must_use]
    pub fn rotate_host_key(&self) -> String {
        self.order("key", &[]).ok().text()
    }

    /// Fingerprint of its ed25519 host key, `SHA256:…`. It has an ECDSA key too.
    #[must_use]
    pub fn host_key_fingerprint(&self) -> String {
        self.order("fingerprint", &[]).ok().text()
    }

    /// Leaves no byte on its disk: writing fails with ENOSPC.
    pub fn fill_disk(&self) {
        self.order("disk", &["full"]).ok();
    }

    /// Ends what [`Node::fill_disk`] did.
    pub fn free_disk(&self) {
        self.order("disk", &["free"]).ok();
    }

    /// Lets its `date` be off by so many seconds. Only the command: the clock of a
    /// kernel is one, so what asks the kernel, Docker's API say, sees the right time.
    pub fn set_clock_skew(&self, seconds: i64) {
        self.order("clock", &[&seconds.to_string()]).ok();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let tail = "tail -v -n 30 /var/log/{sshd,dockerd,incus,lxd}.log 2>&1";
            let logs = self.sh(tail).finish();
            let mut stderr = std::io::stderr();
            let _ = writeln!(
                stderr,
                "--- end of the logs of node {}\n{}\n---",
                self.name,
                logs.text()
            );
        }
        // With the last one the lab ends.
        if Arc::strong_count(&self.lab) > 1 {
            let _ = self.order("remove", &[]).finish();
        }
    }
}
