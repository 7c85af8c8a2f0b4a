//! auth-agent-req@openssh.com: a socket inside the environment that reaches the
//! client's ssh-agent. One a connection, in a directory only its user can enter.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;

use super::bind::{accept_unix, private_listener};
use crate::connection::Connection;
use crate::process::{Identity, run_as};

/// Where to make private directories, in order of preference.
const PARENTS: [&str; 3] = ["/tmp", "/run", "/dev/shm"];

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

/// Starts to forward the agent and gives the path of its socket. Ends with the connection.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(connection: &Arc<Connection>) -> io::Result<PathBuf> {
    let make = || -> io::Result<(PathBuf, PathBuf, StdUnixListener)> {
        let directory = private_directory("agent")?;
        let path = directory.join("agent.sock");
        let listener = private_listener(&path)?;
        Ok((directory, path, listener))
    };
    let (directory, path, listener) = run_as(Identity::of(&connection.user), make).await?;
    let listener = UnixListener::from_std(listener)?;
    let connection = Arc::clone(connection);
    connection.agent.tasks.clone().spawn(async move {
        accept_unix(
            &connection,
            &listener,
            &connection.gone,
            |connection| async move { connection.handle.channel_open_agent().await },
        )
        .await;
        drop(listener);
        let _ = run_as(Identity::of(&connection.user), move || {
            std::fs::remove_dir_all(directory)
        })
        .await;
    });
    Ok(path)
}
