//! Against a real sshd, as an account that exists for it alone.

mod install;
mod ways_in;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::UnixStream;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::{AgentAccess, AskPassword, Operator, Request, Secret, Ways};
use crate::node::ByteStream;
use crate::node::testing::Sshd;

fn key(comment: &str) -> PrivateKey {
    PrivateKey::generate_ed25519(comment).unwrap()
}

fn request(sshd: &Sshd) -> Request {
    Request {
        address: sshd.address(),
        host_key: None,
    }
}

/// Nothing but the gateway's key.
fn bare(node_key: &PrivateKey) -> Ways {
    Ways {
        node_key: node_key.clone(),
        operator: Operator::default(),
        caller_agent: None,
        password: None,
    }
}

/// Answers with what it was given, in order.
#[derive(Debug)]
struct Typist {
    answers: Mutex<VecDeque<&'static str>>,
    prompts: Mutex<Vec<String>>,
}

impl Typist {
    fn new(answers: &[&'static str]) -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::new(answers.iter().copied().collect()),
            prompts: Mutex::default(),
        })
    }

    fn asked(&self) -> usize {
        self.prompts.lock().unwrap().len()
    }
}

#[async_trait]
impl AskPassword for Typist {
    async fn ask(&self, prompt: &str) -> Option<Secret> {
        self.prompts.lock().unwrap().push(prompt.to_owned());
        let answer = self.answers.lock().unwrap().pop_front()?;
        Some(Secret::new(answer.to_owned()))
    }
}

/// An ssh-agent of OpenSSH.
struct Agent {
    dir: tempfile::TempDir,
    process: Child,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(dir.path().join("agent.sock"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { dir, process };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(agent.socket()).is_err() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
        agent
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn add(&self, key: &PrivateKey) {
        let file = self.dir.path().join("key");
        crate::node::testing::private_file(&file, &key.to_openssh().unwrap());
        self.add_file(&file);
    }

    fn add_file(&self, file: &Path) {
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(file)
            .env("SSH_AUTH_SOCK", self.socket())
            .status();
        assert!(added.unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// An agent as a client forwards it: a stream for each use.
#[derive(Debug)]
struct Forwarded {
    socket: PathBuf,
    opened: AtomicUsize,
}

impl Forwarded {
    fn new(agent: &Agent) -> Arc<Self> {
        Arc::new(Self {
            socket: agent.socket(),
            opened: AtomicUsize::new(0),
        })
    }
}

#[async_trait]
impl AgentAccess for Forwarded {
    async fn open(&self) -> std::io::Result<Box<dyn ByteStream>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(UnixStream::connect(&self.socket).await?))
    }
}

/// Makes `~/.ssh` with this authorized_keys in it, as the account's own.
fn authorize(account: &crate::node::testing::Account, content: &str) {
    let file = account.authorized_keys();
    let dir = file.parent().unwrap();
    let _ = std::fs::create_dir(dir);
    crate::node::testing::private_file(&file, content);
    account.give(dir);
    account.give(&file);
}

fn line(key: &PublicKey) -> String {
    format!("{key} somebody@somewhere\n")
}
