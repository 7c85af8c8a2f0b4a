//! Where the agent listens: a unix socket, or a TCP port where the environment
//! is a machine of its own (`tcp:ADDRESS:PORT`). Whoever connects must prove its
//! key either way.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener};
use vendetta_proto::agent::LISTEN_TCP;
use vendetta_sshio::local_stream::LocalStream;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listen {
    /// At a unix socket.
    Unix(PathBuf),
    /// At a TCP port.
    Tcp(SocketAddr),
}

impl Listen {
    /// Reads [`vendetta_proto::agent::AgentConfig::listen`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(listen: &Path) -> Result<Self, String> {
        match listen
            .to_str()
            .and_then(|text| text.strip_prefix(LISTEN_TCP))
        {
            None => Ok(Self::Unix(listen.to_owned())),
            Some(address) => match address.parse() {
                Ok(address) => Ok(Self::Tcp(address)),
                Err(error) => Err(format!("{address:?}: {error}")),
            },
        }
    }

    /// Begins to listen; a socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// As [`UnixListener::bind`] and [`TcpListener::bind`] say, or that another agent is there.
    pub(crate) async fn bind(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => bind_unix(path).map(Listener::Unix),
            Self::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
        }
    }

    /// Removes what a listener leaves behind.
    pub(crate) fn remove(&self) {
        if let Self::Unix(path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => write!(f, "{LISTEN_TCP}{address}"),
        }
    }
}

/// Something that listens.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A connection that no runtime watches yet.
#[derive(Debug)]
pub(crate) enum Accepted {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

/// A connection.
pub(crate) enum Stream {
    Local(LocalStream),
    Tcp(TcpStream),
}

impl Listener {
    /// Where it listens: as asked, with the port that port 0 became.
    pub(crate) fn bound(&self, asked: Listen) -> Listen {
        match self {
            Self::Unix(_) => asked,
            Self::Tcp(listener) => listener.local_addr().map_or(asked, Listen::Tcp),
        }
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// When one cannot be accepted.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(listener) => listener.accept().await?.0.into_std().map(Accepted::Unix),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                stream.into_std().map(Accepted::Tcp)
            }
        }
    }
}

impl Accepted {
    /// Has the current runtime watch it.
    ///
    /// # Errors
    /// When it cannot.
    pub(crate) fn watched(self) -> io::Result<Stream> {
        match self {
            Self::Unix(stream) => LocalStream::new(stream).map(Stream::Local),
            Self::Tcp(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
        }
    }
}

/// Makes the socket, in place of one that nobody serves any more.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        "another agent serves it",
                    ));
                }
                Err(_) => std::fs::remove_file(path)?,
            }
        }
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it exists and is no socket",
            ));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // The directory keeps others out; within it, the gateway may be any user of the node.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_written_with_tcp_and_all_else_is_a_path() {
        let parse = |text: &str| Listen::parse(Path::new(text));
        let port = parse("tcp:0.0.0.0:7022").unwrap();
        assert_eq!(port, Listen::Tcp("0.0.0.0:7022".parse().unwrap()));
        assert_eq!(port.to_string(), "tcp:0.0.0.0:7022");
        assert_eq!(parse("tcp:[::]:1").unwrap().to_string(), "tcp:[::]:1");
        let path = parse("/run/agent.sock").unwrap();
        assert_eq!(path, Listen::Unix("/run/agent.sock".into()));
        for bad in ["tcp:", "tcp:22", "tcp:host:22", "tcp:0.0.0.0:70000"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
