//! The OpenSSH clients, each apart from the machine's own keys and settings.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::{Run, Running, eventually};

/// Somebody with a key and an `ssh_config` that reaches one gateway under the
/// host name `gateway`.
#[derive(Debug, Clone)]
pub struct Client {
    home: PathBuf,
}

impl Client {
    /// Makes `home` with a new key for the gateway at 127.0.0.1:`port`, whose
    /// `known_hosts` line (for host `gateway`) is `host_key`.
    pub(crate) fn new(home: &Path, port: u16, host_key: &str) -> Self {
        let client = Self {
            home: home.to_owned(),
        };
        fs::create_dir_all(home).expect("making a client's home");
        client.generate_key("id_ed25519", "ed25519");
        fs::write(home.join("known_hosts"), host_key).expect("writing known_hosts");
        client.configure(port);
        client
    }

    pub(crate) fn configure(&self, port: u16) {
        let home = self.home.display();
        // HostKeyAlias: the gateway's key must be the same on whatever port it comes back.
        let config = format!(
            "Host gateway\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias gateway\n\
             Host *\n  IdentityFile {home}/id_ed25519\n  IdentitiesOnly yes\n  IdentityAgent none\n  \
             UserKnownHostsFile {home}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking yes\n  UpdateHostKeys no\n  BatchMode yes\n  ConnectTimeout 30\n"
        );
        fs::write(self.config(), config).expect("writing ssh_config");
    }

    pub(crate) fn know_host(&self, line: &str) {
        fs::write(self.home.join("known_hosts"), line).expect("writing known_hosts");
    }

    /// Makes a key pair in the home.
    pub fn generate_key(&self, name: &str, kind: &str) -> PathBuf {
        let path = self.home.join(name);
        Run::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", "", "-C", name, "-f"])
            .arg(&path)
            .ok();
        path
    }

    /// The client's folder, its HOME.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Its `ssh_config`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.home.join("ssh_config")
    }

    /// Its private key file.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.home.join("id_ed25519")
    }

    /// Its public key, one line.
    ///
    /// # Panics
    /// When the file is gone.
    #[must_use]
    pub fn public_key(&self) -> String {
        fs::read_to_string(self.home.join("id_ed25519.pub"))
            .expect("reading a public key")
            .trim()
            .to_owned()
    }

    /// `program` with the client's HOME and, as first arguments, its `-F ssh_config`.
    #[must_use]
    pub fn tool(&self, program: &str) -> Run {
        Run::new(program)
            .env("HOME", &self.home)
            .current_dir(&self.home)
            .arg("-F")
            .arg(self.config())
    }

    /// `ssh LOGIN@gateway`; more options and the command follow with [`Run::arg`].
    #[must_use]
    pub fn ssh(&self, login: &str) -> Run {
        self.tool("ssh").arg(format!("{login}@gateway"))
    }

    /// `ssh LOGIN@gateway COMMAND`.
    #[must_use]
    pub fn exec(&self, login: &str, command: &str) -> Run {
        self.ssh(login).arg(command)
    }

    /// `ssh vendetta@gateway COMMAND`: a command of the control plane.
    #[must_use]
    pub fn control(&self, command: &str) -> Run {
        self.exec("vendetta", command)
    }

    /// The `ssh` command line for programs that start it themselves: rsync, git, sshfs.
    #[must_use]
    pub fn ssh_command(&self) -> String {
        format!("ssh -F {}", self.config().display())
    }

    /// `program` with the client's HOME.
    #[must_use]
    pub fn program(&self, program: &str) -> Run {
        Run::new(program)
            .env("HOME", &self.home)
            .current_dir(&self.home)
    }
}

/// An ssh-agent. Dropped, it is gone.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    _dir: TempDir,
    _process: Running,
}

impl Agent {
    /// One that has the private key files `keys`.
    ///
    /// # Panics
    /// When it does not start, or a file has no key without a passphrase.
    #[must_use]
    pub fn with<P: AsRef<Path>>(keys: &[P]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vendetta-agent-")
            .tempdir_in("/tmp")
            .expect("a temporary folder");
        let socket = dir.path().join("socket");
        // Should the test be killed, the kernel ends the agent (prctl(2), PR_SET_PDEATHSIG).
        let process = Run::new("setpriv")
            .args(["--pdeathsig", "KILL", "ssh-agent", "-D", "-a"])
            .arg(&socket)
            .limit(Duration::MAX)
            .start();
        eventually("the agent listens", || UnixStream::connect(&socket).is_ok());
        let add = Run::new("ssh-add").env("SSH_AUTH_SOCK", &socket).arg("-q");
        add.args(keys.iter().map(AsRef::as_ref)).ok();
        Self {
            socket,
            _dir: dir,
            _process: process,
        }
    }

    /// Path of its socket, for `SSH_AUTH_SOCK`.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// An OpenSSH ControlMaster connection: sessions through it share one SSH connection.
#[derive(Debug)]
pub struct Master {
    client: Client,
    login: String,
    socket: PathBuf,
}

impl Client {
    /// Opens a ControlMaster connection to `LOGIN@gateway`.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn master(&self, login: &str) -> Master {
        self.master_with(login, &[])
    }

    /// As [`Client::master`], with more arguments for `ssh`.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn master_with(&self, login: &str, args: &[&str]) -> Master {
        let socket = self.home.join(format!("master-{login}"));
        let log = self.home.join(format!("master-{login}.log"));
        let master = Master {
            client: self.clone(),
            login: login.to_owned(),
            socket,
        };
        let run = self
            .tool("ssh")
            .args(["-M", "-N", "-f", "-E"])
            .arg(&log)
            .arg("-S")
            .arg(&master.socket);
        run.args(args).arg(format!("{login}@gateway")).ok();
        master
    }
}

impl Master {
    /// A session of the connection: `ssh LOGIN@gateway`.
    #[must_use]
    pub fn ssh(&self) -> Run {
        self.client
            .tool("ssh")
            .arg("-S")
            .arg(&self.socket)
            .arg(format!("{}@gateway", self.login))
    }

    /// A session of the connection that runs `command`.
    #[must_use]
    pub fn exec(&self, command: &str) -> Run {
        self.ssh().arg(command)
    }

    /// `ssh -O COMMAND` (check, forward, cancel, exit, …) to the connection's master process.
    #[must_use]
    pub fn order(&self, command: &str) -> Run {
        self.client
            .tool("ssh")
            .args(["-O", command, "-S"])
            .arg(&self.socket)
            .arg(format!("{}@gateway", self.login))
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.order("exit").finish();
    }
}
