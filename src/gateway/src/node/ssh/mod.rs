//! A node behind SSH.
//!
//! ```text
//!   link ──── owns the one connection that is kept; policy says when it is made
//!     └─ connection ◀── handshake: dial (TCP, or through another node), host key, login
//!          ├─ channels to sockets and ports ──▶ stream
//!          └─ sessions: places within MaxSessions; more connections when they are short
//!               └─ run: one script (quote), its time limit and end; dialogue: what is said
//!                    └─ files: script
//! ```

mod callbacks;
mod capture;
mod connection;
mod dialogue;
mod files;
mod handshake;
mod host_keys;
mod life;
mod link;
mod policy;
mod quote;
mod run;
pub(super) mod script;
mod sessions;
mod stream;
#[cfg(test)]
mod tests;
mod trouble;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use vendetta_proto::NodeName;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::{
    Arch, ByteStream, Command, CurrentName, MAX_SOCKET_PATH, NodeError, NodeTransport, Output,
    Refusal,
};
use connection::{Connector, OpenError, Target};
use link::Link;
use run::Job;
use sessions::Sessions;
use stream::LinkStream;
pub(super) use trouble::Trouble;
use trouble::io_error;

pub(super) use connection::Connection;
pub use handshake::Address;
pub(super) use handshake::{Greeted, greet, log_in};
pub(super) use host_keys::HostKeys;
pub use link::LinkState;
pub(super) use run::run_once;

/// A login older than this may not know the groups that its user is in by now.
const OLD_LOGIN: Duration = Duration::from_secs(15);

/// What the gateway has to know of a node behind SSH.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub name: CurrentName,
    /// Where it is, and the user there.
    pub address: Address,
    /// The host keys that it may prove: those pinned when it was added.
    pub host_keys: Vec<PublicKey>,
    /// The gateway's node key.
    pub key: PrivateKey,
    /// Where this gateway's files live there: absolute, and short enough that
    /// the paths of sockets below it fit into 107 bytes.
    pub state_dir: PathBuf,
}

/// A node behind SSH. Its connection is made when it is first needed, and kept.
/// When this is dropped the connection is closed with the last stream through it.
#[derive(Debug)]
pub struct SshNode {
    name: CurrentName,
    state_dir: PathBuf,
    connector: Arc<Connector>,
    link: Arc<Link>,
    sessions: Arc<Sessions>,
    arch: OnceCell<Arch>,
    tasks: TaskTracker,
    _used: DropGuard,
}

impl SshNode {
    /// The node; nothing is connected yet. Its tasks run in `tasks`, on the runtime of the
    /// caller, until `stop`, which closes the connection at once.
    #[must_use]
    pub fn new(settings: Settings, tasks: TaskTracker, stop: &CancellationToken) -> Self {
        let unused = stop.child_token();
        let connector = Arc::new(Connector {
            address: settings.address,
            host_keys: settings.host_keys,
            key: settings.key,
        });
        let ends = link::Ends {
            unused: unused.clone(),
            closed: stop.clone(),
        };
        let link = Arc::new(Link::new(Arc::clone(&connector), &tasks, ends));
        let sessions = Sessions::new(
            Arc::clone(&link),
            Arc::clone(&connector),
            tasks.clone(),
            unused.clone(),
        );
        Self {
            name: settings.name,
            state_dir: settings.state_dir,
            connector,
            link,
            sessions: Arc::new(sessions),
            arch: OnceCell::new(),
            tasks,
            _used: unused.drop_guard(),
        }
    }

    /// Its name, to give it another or to share it with one that takes its place.
    #[must_use]
    pub fn current_name(&self) -> &CurrentName {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.connector.address
    }

    /// Has the connection made now, without waiting for it.
    pub fn wake(&self) {
        self.link.need();
    }

    /// How the connection stands, and every change of that.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.link.state()
    }

    /// The time that a message to the node's sshd and back takes; connects when
    /// there is no connection.
    ///
    /// # Errors
    /// [`NodeError::Link`] without a connection, [`NodeError::Timeout`] without an answer.
    pub async fn latency(&self) -> Result<Duration, NodeError> {
        let ping = async { self.link.connection().await?.ping().await };
        ping.await.map_err(self.failed("ask", "sshd"))
    }

    fn failed(
        &self,
        operation: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(Trouble) -> NodeError {
        let subject = subject.into();
        move |trouble| trouble.during(&self.name.get(), operation, subject)
    }

    async fn run(&self, job: Job) -> Result<Output, Trouble> {
        run::run(&self.sessions, &self.tasks, job).await
    }

    async fn connect_unix(&self, path: &Path) -> Result<LinkStream, Trouble> {
        let text = path.to_str().ok_or_else(|| Trouble::invalid("not UTF-8"))?;
        let (mut again, mut renewed) = (false, false);
        loop {
            let trouble = match self.link.open(Target::Unix(text)).await {
                Ok((channel, connection)) => return Ok(LinkStream::new(channel, connection)),
                Err(OpenError::Other(trouble)) => return Err(trouble),
                Err(OpenError::Refused(..)) => self.why_not_unix(text).await?,
            };
            // Somebody listens there, but perhaps only since a moment ago.
            if matches!(trouble, Trouble::Refused(Refusal::StreamLocal)) && !again {
                again = true;
                continue;
            }
            // A login has the groups that its user was in when it began.
            let denied = matches!(&trouble, Trouble::Io(error) if error.kind() == io::ErrorKind::PermissionDenied);
            if renewed || !denied || !self.link.renew(OLD_LOGIN).await {
                return Err(trouble);
            }
            renewed = true;
        }
    }

    /// sshd says the same whether it must not connect to a unix socket or cannot, so
    /// the node is asked.
    async fn why_not_unix(&self, path: &str) -> Result<Trouble, Trouble> {
        let asked = self
            .script(script::WHY_NOT_UNIX, &[path.as_bytes()], Bytes::new())
            .await?;
        Ok(match asked.stdout.trim_ascii() {
            b"absent" => Trouble::Io(io_error("No such file or directory")),
            b"denied" => Trouble::Io(io_error("Permission denied")),
            b"idle" => Trouble::Io(io_error("Connection refused")),
            _ => Trouble::Refused(Refusal::StreamLocal),
        })
    }

    async fn connect_tcp(&self, host: &str, port: u16) -> Result<LinkStream, Trouble> {
        match self.link.open(Target::Tcp(host, port)).await {
            Ok((channel, connection)) => Ok(LinkStream::new(channel, connection)),
            Err(OpenError::Other(trouble)) => Err(trouble),
            // SSH_OPEN_ADMINISTRATIVELY_PROHIBITED
            Err(OpenError::Refused(1, _)) => Err(Trouble::Refused(Refusal::Tcp)),
            Err(OpenError::Refused(_, said)) => Err(Trouble::Io(io_error(&said))),
        }
    }

    async fn run_program(&self, command: &Command) -> Result<Output, Trouble> {
        match command.argv.first() {
            None => return Err(Trouble::invalid("no program")),
            Some(program) if program.contains('=') => {
                return Err(Trouble::invalid("a program's name with \"=\" in it"));
            }
            Some(_) => {}
        }
        let absent = hex::encode(rand::random::<[u8; 12]>());
        let words = std::iter::once(&absent).chain(&command.argv);
        let job = Job {
            script: script::with_arguments(script::EXEC, words.map(String::as_bytes)),
            stdin: Bytes::copy_from_slice(&command.stdin),
            limit: command.time_limit,
        };
        let output = self.run(job).await?;
        if output.stderr == absent.as_bytes() {
            return Err(Trouble::Io(io_error("No such file or directory")));
        }
        Ok(output)
    }
}

#[async_trait]
impl NodeTransport for SshNode {
    fn name(&self) -> NodeName {
        self.name.get()
    }

    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    async fn open_unix(&self, path: &Path) -> Result<Box<dyn ByteStream>, NodeError> {
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(NodeError::SocketPath {
                node: self.name.get(),
                path: path.to_owned(),
                max: MAX_SOCKET_PATH,
            });
        }
        let stream = self.connect_unix(path).await;
        let stream = stream.map_err(self.failed("connect to", path.display().to_string()))?;
        Ok(Box::new(stream))
    }

    async fn open_tcp(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, NodeError> {
        let stream = self.connect_tcp(host, port).await;
        let stream = stream.map_err(self.failed("connect to", format!("{host}:{port}")))?;
        Ok(Box::new(stream))
    }

    async fn exec(&self, command: &Command) -> Result<Output, NodeError> {
        let subject = command.argv.first().cloned().unwrap_or_default();
        let run = self.run_program(command).await;
        run.map_err(self.failed("run", subject))
    }

    async fn put(&self, path: &Path, mode: u32, content: &[u8]) -> Result<(), NodeError> {
        let put = self.put_file(path, mode, content).await;
        put.map_err(self.failed("write", path.display().to_string()))
    }

    async fn make_dir(&self, path: &Path) -> Result<(), NodeError> {
        let made = self.make_directory(path).await;
        made.map_err(self.failed("make directory", path.display().to_string()))
    }

    async fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, NodeError> {
        let read = self.read_file(path).await;
        read.map_err(self.failed("read", path.display().to_string()))
    }

    async fn list_dir(&self, path: &Path) -> Result<Vec<String>, NodeError> {
        let names = self.names_in(path).await;
        names.map_err(self.failed("list", path.display().to_string()))
    }

    async fn exists(&self, path: &Path) -> Result<bool, NodeError> {
        let there = self.is_there(path).await;
        there.map_err(self.failed("look at", path.display().to_string()))
    }

    async fn remove_tree(&self, path: &Path) -> Result<(), NodeError> {
        let removed = self.remove(path).await;
        removed.map_err(self.failed("remove", path.display().to_string()))
    }

    async fn arch(&self) -> Result<Arch, NodeError> {
        let asked = self.arch.get_or_try_init(|| async {
            let output = self.exec(&Command::new(["uname", "-m"])).await?;
            let machine = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if output.status == Some(0) && !machine.is_empty() {
                return Ok(Arch::new(machine));
            }
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(self.failed("run", "uname -m")(Trouble::Io(io_error(&said))))
        });
        asked.await.cloned()
    }
}
