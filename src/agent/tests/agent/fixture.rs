//! An agent of the test's own, and OpenSSH clients that reach it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vendetta_proto::agent::{AgentConfig, CONFIG_VERSION};
use vendetta_proto::rpc::{Answer, Request, SUBSYSTEM};
use vendetta_sshio::keys::PrivateKey;

/// The longest any wait of a test may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Agent {
    directory: TempDir,
    pub process: Child,
}

/// How the environment differs from the machine the test runs on.
#[derive(Default)]
pub struct Environment<'a> {
    /// Shell commands run before the agent, in a mount namespace of its own.
    pub prepare: Option<&'a str>,
}

impl Agent {
    pub fn start() -> Self {
        Self::start_with(Environment::default(), |_| {})
    }

    pub fn configured(change: impl FnOnce(&mut AgentConfig)) -> Self {
        Self::start_with(Environment::default(), change)
    }

    pub fn start_with(environment: Environment<'_>, change: impl FnOnce(&mut AgentConfig)) -> Self {
        // As on a node: the directory keeps everybody else from the socket.
        let directory = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .unwrap();
        let at = |name: &str| directory.path().join(name);
        let host_key = PrivateKey::generate_ed25519("host").unwrap();
        let gateway_key = PrivateKey::generate_ed25519("gateway").unwrap();
        write_private(&at("key"), gateway_key.to_openssh().unwrap().as_bytes());
        let mut config = AgentConfig {
            version: CONFIG_VERSION,
            workspace: "demo".to_owned(),
            host_key: host_key.to_openssh().unwrap().to_string(),
            host_certificate: None,
            gateway_keys: vec![gateway_key.public().to_string()],
            listen: at("agent.sock"),
            user: None,
            env: [("FROM_WORKSPACE".to_owned(), "yes".to_owned())].into(),
            workdir: None,
            volumes: Vec::new(),
            services: BTreeMap::new(),
            host_ports: BTreeMap::new(),
            log_dir: None,
            own_network: false,
        };
        change(&mut config);
        write_private(&at("agent.json"), &serde_json::to_vec(&config).unwrap());
        write_private(
            &at("known_hosts"),
            format!("ws {}\n", host_key.public()).as_bytes(),
        );
        write_private(&at("ssh_config"), ssh_config(directory.path()).as_bytes());

        let agent = env!("CARGO_BIN_EXE_vendetta-agent");
        let mut command = match environment.prepare {
            None => Command::new(agent),
            Some(prepare) => {
                let mut command = Command::new("unshare");
                command.args([
                    "--mount",
                    "sh",
                    "-c",
                    &format!("{prepare} && exec \"$0\" \"$@\""),
                    agent,
                ]);
                command
            }
        };
        command.args(["serve", "--config"]).arg(at("agent.json"));
        let log = std::fs::File::create(at("agent.log")).unwrap();
        let process = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let agent = Self { directory, process };
        wait_until("the agent serves", || agent.log().contains("serving"));
        agent
    }

    /// Starts the agent again, after it has ended.
    pub fn restart(&mut self) {
        let log = std::fs::File::create(self.path("agent.log")).unwrap();
        self.process = Command::new(env!("CARGO_BIN_EXE_vendetta-agent"))
            .args(["serve", "--config"])
            .arg(self.path("agent.json"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_until("the agent serves again", || self.log().contains("serving"));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// `program` (ssh, scp, sftp) with this agent as the host `ws`.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-F")
            .arg(self.path("ssh_config"))
            .stdin(Stdio::null());
        command
    }

    pub fn ssh(&self) -> Command {
        self.client("ssh")
    }

    /// Runs a command in the environment.
    pub fn run(&self, command: &str) -> Output {
        self.ssh().args(["ws", command]).output().unwrap()
    }

    /// What a command that must succeed prints.
    pub fn text(&self, command: &str) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the agent answers to a request that ends by itself.
    pub fn ask(&self, request: &Request) -> Vec<Answer> {
        let line = serde_json::to_string(request).unwrap();
        self.ask_raw(&line)
    }

    /// What it answers to any text.
    pub fn ask_raw(&self, line: &str) -> Vec<Answer> {
        let mut watch = self.watch_raw(line);
        let mut answers = Vec::new();
        while let Some(answer) = watch.next() {
            answers.push(answer);
        }
        assert!(finish(&mut watch.client).success());
        answers
    }

    /// Follows the answers to a request.
    pub fn watch(&self, request: &Request) -> Watch {
        self.watch_raw(&serde_json::to_string(request).unwrap())
    }

    fn watch_raw(&self, line: &str) -> Watch {
        let mut client = self
            .ssh()
            .args(["-s", "ws", SUBSYSTEM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = client.stdin.take().unwrap();
        // The agent may have answered, and the client ended, before it has all of it.
        let _ = writeln!(stdin, "{line}");
        let stdout = BufReader::new(client.stdout.take().unwrap());
        let (sender, answers) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let answer = serde_json::from_str(&line.unwrap()).unwrap();
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        Watch {
            client,
            answers,
            _stdin: stdin,
        }
    }

    pub fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.terminate();
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && self.process.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the agent ---\n{}", self.log());
        }
    }
}

/// A client that follows answers.
pub struct Watch {
    client: Child,
    answers: std::sync::mpsc::Receiver<Answer>,
    /// The client goes on as long as this is open.
    _stdin: std::process::ChildStdin,
}

impl Watch {
    /// The next answer; none when the channel has ended.
    pub fn next(&mut self) -> Option<Answer> {
        use std::sync::mpsc::RecvTimeoutError;
        match self.answers.recv_timeout(PATIENCE) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the agent does not answer"),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn ssh_config(directory: &Path) -> String {
    let at = |name: &str| directory.join(name).display().to_string();
    format!(
        "Host ws\n  User root\n  IdentityFile {}\n  IdentitiesOnly yes\n  IdentityAgent none\n  \
         ProxyCommand socat - UNIX-CONNECT:{}\n  StrictHostKeyChecking yes\n  UserKnownHostsFile {}\n  \
         GlobalKnownHostsFile /dev/null\n  ControlPath {}\n  LogLevel ERROR\n  SendEnv LANG LC_*\n",
        at("key"),
        at("agent.sock"),
        at("known_hosts"),
        at("control"),
    )
}

pub fn write_private(path: &Path, content: &[u8]) {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(content).unwrap();
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "in vain: until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process lives (a zombie does not).
pub fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .starts_with('Z')
    })
}

/// Reads one line from a running client.
pub fn first_line(client: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(client.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    line.trim_end().to_owned()
}

/// Waits for a client, and kills it if it takes too long.
pub fn finish(client: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = client.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = client.kill();
            panic!("the client does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
