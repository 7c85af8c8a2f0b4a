//! tcpip-forward and streamlocal-forward@openssh.com: listening inside the environment.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listeners::Target;
use super::splice;
use crate::connection::Connection;
use crate::process::{Identity, run_as};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 512;
/// How often to look for a port that is free on every address.
const PORT_ATTEMPTS: usize = 8;
/// How long a bind address may take to resolve, while the connection waits.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of descriptors).
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// First port everybody may bind, where the kernel does not say (ip(7)).
const FIRST_UNPRIVILEGED_PORT: u32 = 1024;

/// Listens on `address`:`port` and forwards what connects; gives the port bound.
///
/// # Errors
/// When no address can be bound, or the user may not.
pub async fn tcp(connection: &Arc<Connection>, address: &str, port: u32) -> io::Result<u32> {
    let wanted = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    if connection.user.uid != 0 && port != 0 && port < first_unprivileged_port() {
        return Err(Errno::EACCES.into());
    }
    let addresses = match fixed_addresses(address) {
        Some(addresses) => addresses,
        None => timeout(
            RESOLVE_TIMEOUT,
            connection.agent.resolver.addresses(address),
        )
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??,
    };
    let (sockets, bound) = bind_all(&addresses, wanted)?;
    let bound = u32::from(bound);
    let target = Target::Tcp(address.to_owned(), bound);
    let cancelled = connection
        .listeners
        .add(target, &connection.gone)
        .ok_or_else(|| io::Error::from(Errno::EADDRINUSE))?;
    for socket in sockets {
        let listener = TcpListener::from_std(socket.into())?;
        let (connection, address) = (Arc::clone(connection), address.to_owned());
        let cancelled = cancelled.clone();
        connection.agent.tasks.clone().spawn(async move {
            accept_tcp(
                &connection.agent.tasks,
                &listener,
                &cancelled,
                |stream, peer| {
                    let (connection, address) = (Arc::clone(&connection), address.clone());
                    async move { forward_tcp(connection, stream, peer, address, bound).await }
                },
            )
            .await;
        });
    }
    Ok(bound)
}

/// Accepts until cancelled; each connection is served by a task of its own.
pub(super) async fn accept_tcp<F: Future<Output = ()> + Send + 'static>(
    tasks: &TaskTracker,
    listener: &TcpListener,
    cancelled: &CancellationToken,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) {
    loop {
        let accepted = tokio::select! {
            () = cancelled.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                tasks.spawn(serve(stream, peer));
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn forward_tcp(
    connection: Arc<Connection>,
    stream: TcpStream,
    peer: SocketAddr,
    address: String,
    port: u32,
) {
    let opened = connection
        .handle
        .channel_open_forwarded_tcpip(
            address,
            port,
            peer.ip().to_canonical().to_string(),
            peer.port().into(),
        )
        .await;
    match opened {
        Ok(channel) => {
            let closed = connection.closed_token(channel.id());
            splice::tcp(&connection, stream, channel, closed).await;
        }
        // The client has nobody to answer: so say, rather than end the stream in order.
        Err(_) => drop(stream.set_zero_linger()),
    }
}

/// The addresses of RFC 4254 section 7.1 and of OpenSSH; none for a name.
fn fixed_addresses(address: &str) -> Option<Vec<IpAddr>> {
    Some(match address {
        "" | "*" => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        _ => vec![address.parse().ok()?],
    })
}

/// Binds every address that this environment has, all to one port.
fn bind_all(addresses: &[IpAddr], port: u16) -> io::Result<(Vec<Socket>, u16)> {
    let mut attempts = if port == 0 && addresses.len() > 1 {
        PORT_ATTEMPTS
    } else {
        1
    };
    loop {
        attempts -= 1;
        match try_bind_all(addresses, port) {
            Err(error) if attempts > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn try_bind_all(addresses: &[IpAddr], port: u16) -> io::Result<(Vec<Socket>, u16)> {
    let mut sockets = Vec::new();
    let mut bound = port;
    let mut failure = io::Error::from(Errno::EADDRNOTAVAIL);
    for address in addresses {
        match bind(SocketAddr::new(*address, bound)) {
            Ok(socket) => {
                bound = socket
                    .local_addr()?
                    .as_socket()
                    .map_or(bound, |local| local.port());
                sockets.push(socket);
            }
            // The port belongs to somebody else on this address; half a listener would surprise.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // No IPv6 (or IPv4) here.
            Err(error) => failure = error,
        }
    }
    if sockets.is_empty() {
        Err(failure)
    } else {
        Ok((sockets, bound))
    }
}

/// A listening socket on exactly this address: an IPv6 one takes no IPv4.
pub(super) fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// From which port on this environment lets everybody bind; containers often say 0.
fn first_unprivileged_port() -> u32 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(FIRST_UNPRIVILEGED_PORT)
}

/// Listens on the unix socket `path`, made by the user for the user alone, and
/// forwards what connects.
///
/// # Errors
/// When the socket cannot be made.
pub async fn unix(connection: &Arc<Connection>, path: &str) -> io::Result<()> {
    let target = Target::Unix(path.to_owned());
    let cancelled = connection
        .listeners
        .add(target.clone(), &connection.gone)
        .ok_or_else(|| io::Error::from(Errno::EADDRINUSE))?;
    let file = connection.user.home.join(path);
    let listener = match bind_unix(connection, file.clone()).await {
        Ok(listener) => listener,
        Err(error) => {
            connection.listeners.cancel(&target);
            return Err(error);
        }
    };
    let (connection, path) = (Arc::clone(connection), path.to_owned());
    connection.agent.tasks.clone().spawn(async move {
        accept_unix(&connection, &listener, &cancelled, |connection| {
            let path = path.clone();
            async move {
                connection
                    .handle
                    .channel_open_forwarded_streamlocal(path)
                    .await
            }
        })
        .await;
        drop(listener);
        let _ = run_as(Identity::of(&connection.user), move || {
            std::fs::remove_file(file)
        })
        .await;
    });
    Ok(())
}

/// Accepts on a unix socket until cancelled, and opens a channel for each connection.
pub(super) async fn accept_unix<F>(
    connection: &Arc<Connection>,
    listener: &UnixListener,
    cancelled: &CancellationToken,
    open: impl Fn(Arc<Connection>) -> F,
) where
    F: Future<Output = Result<russh::Channel<russh::server::Msg>, russh::Error>> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            () = cancelled.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = Arc::clone(connection);
                let opening = open(Arc::clone(&connection));
                connection.agent.tasks.clone().spawn(async move {
                    if let Ok(channel) = opening.await {
                        let closed = connection.closed_token(channel.id());
                        splice::unix(&connection, stream, channel, closed).await;
                    }
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Makes a unix socket as the user, in place of one that nobody serves any more.
async fn bind_unix(connection: &Connection, path: PathBuf) -> io::Result<UnixListener> {
    let listener = run_as(Identity::of(&connection.user), move || {
        remove_stale(&path);
        private_listener(&path)
    })
    .await?;
    UnixListener::from_std(listener)
}

/// A listening socket with mode 0600.
pub(super) fn private_listener(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn remove_stale(path: &Path) {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    // Without waiting for a server that accepts nobody.
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if socket && connect().is_err_and(refused) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_addresses_are_those_of_the_rfc() {
        let count = |address| fixed_addresses(address).map(|found| found.len());
        assert_eq!(count(""), Some(2));
        assert_eq!(count("*"), Some(2));
        assert_eq!(count("localhost"), Some(2));
        assert_eq!(count("0.0.0.0"), Some(1));
        assert_eq!(count("::"), Some(1));
        assert_eq!(count("127.0.0.2"), Some(1));
        assert_eq!(count("db.internal"), None);
    }

    #[test]
    fn only_a_socket_that_nobody_serves_is_stale() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let server = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        server.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        server.listen(0).unwrap();
        // One waits to be accepted, and nobody else can.
        let _waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
        remove_stale(&path);
        assert!(path.exists());
        drop(server);
        remove_stale(&path);
        assert!(!path.exists());
    }

    #[test]
    fn port_zero_is_one_port_on_every_address() {
        let addresses = fixed_addresses("localhost").unwrap();
        let (sockets, port) = bind_all(&addresses, 0).unwrap();
        assert_ne!(port, 0);
        for socket in &sockets {
            assert_eq!(
                socket.local_addr().unwrap().as_socket().unwrap().port(),
                port
            );
        }
        assert_eq!(
            bind_all(&addresses, port).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }
}
