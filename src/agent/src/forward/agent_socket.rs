//! auth-agent-req@openssh.com: a socket inside the environment that reaches the
//! client's ssh-agent, in a directory only its user can enter.
//!
//! There is one a user, at a path that stays. It leads to the newest client that is
//! still there, so that what lives on without its client (a terminal multiplexer, an
//! editor's server) has an agent again once its user is back.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::bind::{ACCEPT_PAUSE, private_listener};
use super::splice;
use crate::config::Settings;
use crate::connection::{Agent, Connection};
use crate::process::{Identity, run_as};

/// Where to make private directories, in order of preference.
const PARENTS: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

/// How long a client may take to open a channel to its agent. One that is
/// asleep or cut off must not hide one that is there.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Makes a directory of mode 0700 with an unpredictable name. To be called as
/// the user who shall own it.
///
/// # Errors
/// When no parent can be written to.
pub(super) fn private_directory(purpose: &str) -> io::Result<PathBuf> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for parent in PARENTS {
        match nix::unistd::mkdtemp(&Path::new(parent).join(format!("vendetta-{purpose}-XXXXXX"))) {
            Ok(directory) => return Ok(directory),
            Err(errno) => failure = errno.into(),
        }
    }
    Err(failure)
}

/// The name of a user's directory. Agents of provider `host` share a machine, and
/// gateways may; where each listens is its own.
fn directory_name(settings: &Settings, uid: u32) -> String {
    let mut hasher = DefaultHasher::new();
    settings.listen.hash(&mut hasher);
    format!("vendetta-agent-{:08x}-{uid}", hasher.finish() >> 32)
}

/// Makes a directory of mode 0700 with this name, or takes the one that is there
/// and is ours already. Where somebody else has taken the name, the directory is
/// [`private_directory`]'s. To be called as the user who shall own it.
///
/// # Errors
/// When no parent can be written to.
fn lasting_directory(name: &str) -> io::Result<PathBuf> {
    for parent in PARENTS {
        let directory = Path::new(parent).join(name);
        let made = DirBuilder::new().mode(0o700).create(&directory);
        if made.is_ok() || is_private(&directory) {
            return Ok(directory);
        }
    }
    private_directory("agent")
}

/// Whether it is a directory of ours that nobody else can enter.
fn is_private(directory: &Path) -> bool {
    directory.symlink_metadata().is_ok_and(|found| {
        let ours = found.uid() == nix::unistd::geteuid().as_raw();
        found.is_dir() && ours && found.mode() & 0o077 == 0
    })
}

/// The sockets of all users, by their ids.
#[derive(Debug, Default)]
pub struct AgentSockets(tokio::sync::Mutex<HashMap<u32, AgentSocket>>);

#[derive(Debug)]
struct AgentSocket {
    path: PathBuf,
    clients: Arc<Clients>,
    /// Ends the task that accepts.
    _ends: DropGuard,
}

/// Clients that forward an agent, the newest last.
#[derive(Debug, Default)]
struct Clients(Mutex<Vec<Weak<Connection>>>);

impl Clients {
    fn add(&self, connection: &Arc<Connection>) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|client| client.strong_count() > 0);
        clients.push(Arc::downgrade(connection));
    }

    /// Those that are still there, the newest first.
    fn newest_first(&self) -> Vec<Arc<Connection>> {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there = clients.iter().rev().filter_map(Weak::upgrade);
        there.filter(|client| !client.gone.is_cancelled()).collect()
    }
}

/// Has the user's socket lead to this connection's client, and gives its path.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(connection: &Arc<Connection>) -> io::Result<PathBuf> {
    let agent = &connection.agent;
    let mut sockets = agent.agent_sockets.0.lock().await;
    let uid = connection.user.uid;
    if let Some(socket) = sockets.get(&uid)
        // Unless somebody has cleaned it away.
        && socket.path.symlink_metadata().is_ok()
    {
        socket.clients.add(connection);
        return Ok(socket.path.clone());
    }

    let name = directory_name(&agent.settings, uid);
    let make = move || -> io::Result<(PathBuf, StdUnixListener)> {
        let path = lasting_directory(&name)?.join("agent.sock");
        // An agent before this one may have left it.
        let _ = std::fs::remove_file(&path);
        let listener = private_listener(&path)?;
        Ok((path, listener))
    };
    let identity = Identity::of(&connection.user);
    let (path, listener) = run_as(identity.clone(), make).await?;
    let listener = UnixListener::from_std(listener)?;
    let clients = Arc::new(Clients::default());
    clients.add(connection);
    let ended = CancellationToken::new();
    let socket = AgentSocket {
        path: path.clone(),
        clients: Arc::clone(&clients),
        _ends: ended.clone().drop_guard(),
    };
    sockets.insert(uid, socket);
    let (shared, ours) = (Arc::clone(agent), path.clone());
    agent.tasks.spawn(async move {
        tokio::select! {
            // Another one is in its place.
            () = ended.cancelled() => return,
            () = shared.stopping.cancelled() => {}
            () = accept(&shared, &listener, &clients) => {}
        }
        let remove = move || match ours.parent() {
            Some(directory) => std::fs::remove_dir_all(directory),
            None => Ok(()),
        };
        let _ = run_as(identity, remove).await;
    });
    Ok(path)
}

async fn accept(agent: &Arc<Agent>, listener: &UnixListener, clients: &Arc<Clients>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                agent.tasks.spawn(lead(stream, clients.newest_first()));
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Leads to the first of `clients` that answers; to nobody when none does.
async fn lead(stream: UnixStream, clients: Vec<Arc<Connection>>) {
    for client in clients {
        let open = client.handle.channel_open_agent();
        if let Ok(Ok(channel)) = timeout(OPEN_LIMIT, open).await {
            let closed = client.closed_token(channel.id());
            splice::unix(&client, stream, channel, closed).await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_that_nobody_else_can_enter_is_taken_over() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        let make = |name: &str, mode| DirBuilder::new().mode(mode).create(at(name)).unwrap();
        make("private", 0o700);
        make("open", 0o755);
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink(at("private"), at("link")).unwrap();
        assert!(is_private(&at("private")));
        for other in ["open", "file", "link", "nothing"] {
            assert!(!is_private(&at(other)), "{other}");
        }
    }
}
