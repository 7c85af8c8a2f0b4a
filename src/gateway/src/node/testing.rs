//! A real sshd on a loopback port, for tests: its own config, host keys and
//! authorized_keys, in a folder that goes with it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_proto::NodeName;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::NodeTransport;
use super::ssh::{Address, Settings, SshNode};

const SSHD: &str = "/usr/sbin/sshd";

pub(super) struct Sshd {
    dir: tempfile::TempDir,
    pub port: u16,
    process: Option<Child>,
    wrapper: Vec<String>,
    pub host_key: PrivateKey,
    /// A key that `authorized_keys` lets in.
    pub key: PrivateKey,
    pub user: String,
}

impl Sshd {
    /// One with these lines in its sshd_config, before the others: the first word counts.
    pub fn start(config: &str) -> Self {
        Self::start_within(config, Vec::new())
    }

    /// One that `wrapper` runs, a command that becomes what follows it.
    pub fn start_within(config: &str, wrapper: Vec<String>) -> Self {
        assert!(
            Path::new(SSHD).exists(),
            "{SSHD} is missing (Debian: apt-get install openssh-server)"
        );
        // sshd wants it when it is root; somebody else's sshd needs none.
        let _ = fs::create_dir_all("/run/sshd");
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
        let mut sshd = Self {
            dir: tempfile::Builder::new().prefix("sshd-").tempdir().unwrap(),
            port: free_port(),
            process: None,
            wrapper,
            host_key: PrivateKey::generate_ed25519("host").unwrap(),
            key: PrivateKey::generate_ed25519("vendetta test").unwrap(),
            user: user.unwrap().unwrap().name,
        };
        fs::set_permissions(sshd.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        sshd.set_host_key(sshd.host_key.clone());
        sshd.authorize(&[&sshd.key.public()]);
        sshd.configure(config);
        sshd.run();
        sshd
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn authorized_keys(&self) -> PathBuf {
        self.dir().join("authorized_keys")
    }

    /// Lets these keys in and no others.
    pub fn authorize(&self, keys: &[&PublicKey]) {
        let lines: String = keys.iter().map(|key| format!("{key} test\n")).collect();
        fs::write(self.authorized_keys(), lines).unwrap();
    }

    pub fn set_host_key(&mut self, key: PrivateKey) {
        private_file(&self.dir().join("host_key"), &key.to_openssh().unwrap());
        self.host_key = key;
    }

    /// The config with these lines first; counts from the next [`run`](Self::run).
    pub fn configure(&self, config: &str) {
        let dir = self.dir().display();
        // What the machine's own user has in start-up files is nobody's business
        // here; an account of the test has a home of its own.
        let home = match self.wrapper.is_empty() {
            true => format!("SetEnv HOME={dir}\n"),
            false => String::new(),
        };
        let text = format!(
            "{config}\nListenAddress 127.0.0.1:{}\nHostKey {dir}/host_key\n\
             AuthorizedKeysFile {dir}/authorized_keys\nStrictModes no\nUsePAM no\n\
             PidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nMaxStartups 100\nLogLevel DEBUG1\n{home}",
            self.port
        );
        fs::write(self.dir().join("sshd_config"), text).unwrap();
    }

    /// Starts it, and waits until it takes connections.
    pub fn run(&mut self) {
        let log = fs::File::create(self.dir().join("log")).unwrap();
        let mut words = self.wrapper.clone();
        words.extend([SSHD, "-D", "-e", "-f"].map(str::to_owned));
        words.push(self.dir().join("sshd_config").display().to_string());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        let wait_for = |words: &str| {
            while !self.log().contains(words) {
                assert!(Instant::now() < deadline, "{}", self.log());
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        wait_for("Server listening");
        // The look is in the log once, and before anything else.
        drop(TcpStream::connect(("127.0.0.1", self.port)).unwrap());
        wait_for("Connection from");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// Its process and all that come from it.
    fn processes(&self) -> Vec<Pid> {
        let Some(process) = &self.process else {
            return Vec::new();
        };
        let mut all = vec![process.id().cast_signed()];
        let mut at = 0;
        while let Some(parent) = all.get(at).copied() {
            all.extend(children(parent));
            at += 1;
        }
        all.into_iter().map(Pid::from_raw).collect()
    }

    pub fn signal(&self, signal: Signal) {
        for process in self.processes() {
            // It may have ended by itself.
            let _ = kill(process, signal);
        }
    }

    /// Kills it with all its connections.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(mut process) = self.process.take() {
            process.wait().unwrap();
        }
    }

    pub fn address(&self) -> Address {
        Address {
            user: self.user.clone(),
            host: "127.0.0.1".to_owned(),
            port: self.port,
            jump: None,
        }
    }

    /// The node behind it, named `name`.
    pub fn node(&self, name: &str) -> SshNode {
        self.node_through(name, None)
    }

    pub fn node_through(&self, name: &str, jump: Option<Arc<dyn NodeTransport>>) -> SshNode {
        let address = Address {
            jump,
            ..self.address()
        };
        self.node_at(name, address)
    }

    pub fn node_as(&self, name: &str, user: &str) -> SshNode {
        let address = Address {
            user: user.to_owned(),
            ..self.address()
        };
        self.node_at(name, address)
    }

    fn node_at(&self, name: &str, address: Address) -> SshNode {
        let settings = Settings {
            name: name.parse::<NodeName>().unwrap().into(),
            address,
            host_keys: vec![self.host_key.public()],
            key: self.key.clone(),
            state_dir: self.dir().join("state"),
        };
        SshNode::new(settings, TaskTracker::new(), &CancellationToken::new())
    }
}

/// An account that exists for one sshd only: it runs in a mount namespace of its own,
/// with its own passwd, shadow and group.
pub(super) struct Account {
    dir: tempfile::TempDir,
}

impl Account {
    pub const NAME: &str = "newcomer";
    pub const PASSWORD: &str = "open sesame";
    /// `openssl passwd -6 -salt abcdefgh 'open sesame'`
    const HASH: &str = "$6$abcdefgh$CkjGkP7IIgZVUCNlt.Vi53LOYJLXZ5KzdpzEYCj01XGruA1hxZYJqccTU2zz68oJwAGsd1iPty5F7dHIatUTy/";
    const ID: u32 = 61_234;

    /// None when we are not root.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("home-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let account = Self { dir };
        let (name, id, home) = (Self::NAME, Self::ID, account.home());
        fs::create_dir(&home).unwrap();
        account.give(&home);
        let append = |file: &str, line: String| {
            let old = fs::read_to_string(format!("/etc/{file}")).unwrap();
            fs::write(account.file(file), format!("{old}{line}\n")).unwrap();
        };
        append(
            "passwd",
            format!("{name}:x:{id}:{id}::{}:/bin/bash", home.display()),
        );
        append(
            "shadow",
            format!("{name}:{}:19000:0:99999:7:::", Self::HASH),
        );
        append("group", format!("{name}:x:{id}:"));
        Some(account)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.file("home")
    }

    pub fn authorized_keys(&self) -> PathBuf {
        self.home().join(".ssh/authorized_keys")
    }

    /// Makes the account the owner of a file.
    pub fn give(&self, path: &Path) {
        std::os::unix::fs::lchown(path, Some(Self::ID), Some(Self::ID)).unwrap();
    }

    /// Makes the account a member of a new group.
    pub fn join(&self, group: &str, id: u32) {
        let old = fs::read_to_string(self.file("group")).unwrap();
        let line = format!("{group}:x:{id}:{}\n", Self::NAME);
        fs::write(self.file("group"), old + &line).unwrap();
    }

    /// An sshd on which the account can log in; it reads the account's own authorized_keys.
    pub fn sshd(&self, config: &str) -> Sshd {
        let mounts: String = ["passwd", "shadow", "group"]
            .map(|file| format!("mount --bind {} /etc/{file} && ", self.file(file).display()))
            .concat();
        let script = format!("{mounts} exec \"$@\"");
        let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned);
        let config = format!("{config}\nAuthorizedKeysFile .ssh/authorized_keys");
        let mut sshd = Sshd::start_within(&config, wrapper.to_vec());
        sshd.user = Self::NAME.to_owned();
        sshd
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("sshd said:\n{}", self.log());
        }
        self.kill();
    }
}

/// A port that stays free while its sshd is away: the kernel gives none of
/// this range to connections (ip_local_port_range).
fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn children(parent: i32) -> Vec<i32> {
    let tasks = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let tasks = tasks.unwrap_or_default();
    tasks
        .split_ascii_whitespace()
        .filter_map(|child| child.parse().ok())
        .collect()
}

pub(super) fn private_file(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
