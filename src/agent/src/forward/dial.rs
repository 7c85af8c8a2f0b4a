//! direct-tcpip and direct-streamlocal@openssh.com: dialling inside the environment.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::splice;
use crate::connection::Connection;
use crate::process::{Identity, run_as};

/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// SSH_OPEN_CONNECT_FAILED (RFC 4254 section 5.1).
const CONNECT_FAILED: u32 = 2;

/// Dials `host`:`port` and splices it to the channel, or refuses with the reason.
pub async fn direct_tcpip(
    connection: Arc<Connection>,
    channel: Channel<Msg>,
    host: String,
    port: u32,
    reply: ChannelOpenHandle,
) {
    match dial_tcp(&connection, &host, port).await {
        Ok(stream) => {
            let _ = stream.set_nodelay(true);
            let closed = connection.closed_token(channel.id());
            reply.accept().await;
            splice::tcp(&connection, stream, channel, closed).await;
        }
        Err(error) => refuse(reply, &format!("{host}:{port}"), &error).await,
    }
}

/// Dials the unix socket `path` as the user and splices it to the channel, or
/// refuses with the reason.
pub async fn direct_streamlocal(
    connection: Arc<Connection>,
    channel: Channel<Msg>,
    path: String,
    reply: ChannelOpenHandle,
) {
    match dial_unix(&connection, Path::new(&path)).await {
        Ok(stream) => {
            let closed = connection.closed_token(channel.id());
            reply.accept().await;
            splice::unix(&connection, stream, channel, closed).await;
        }
        Err(error) => refuse(reply, &path, &error).await,
    }
}

async fn refuse(reply: ChannelOpenHandle, target: &str, error: &io::Error) {
    let reason = format!("connect to {target}: {}", describe(error));
    reply
        .reject(ChannelOpenFailure::Other {
            code: CONNECT_FAILED,
            reason,
        })
        .await;
}

/// The text of an error as strerror(3) has it.
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

async fn dial_tcp(connection: &Connection, host: &str, port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such port"))?;
    // A service's name leads to where services are, whatever it means elsewhere.
    let host = if is_service(connection, host) {
        "localhost"
    } else {
        host
    };
    let addresses = timeout(RESOLVE_TIMEOUT, connection.agent.resolver.addresses(host))
        .await
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                "Temporary failure in name resolution",
            )
        })??;
    let mut result = Err(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    ));
    for address in addresses {
        let attempt = timeout(
            CONNECT_TIMEOUT,
            TcpStream::connect(SocketAddr::new(address, port)),
        );
        let dialled = attempt
            .await
            .unwrap_or_else(|_| Err(io::Error::from_raw_os_error(Errno::ETIMEDOUT as i32)));
        result = match (dialled, result) {
            (Err(error), Err(before)) => Err(more_telling(before, error)),
            (Ok(stream), _) => return Ok(stream),
            (error, _) => error,
        };
    }
    result
}

/// Of the failures at two addresses of one name, the one that says more: what a
/// machine answered, or that it does not, before that there is no way to it,
/// as to the IPv6 address of a name where there is no IPv6.
fn more_telling(before: io::Error, after: io::Error) -> io::Error {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable, NotFound};
    let says = |error: &io::Error| match error.kind() {
        // That nothing was dialled yet.
        NotFound => 0,
        AddrNotAvailable | NetworkUnreachable => 1,
        HostUnreachable => 2,
        _ => 3,
    };
    // A socket of an address family that the kernel has not: EAFNOSUPPORT has no kind.
    let rank = |error: &io::Error| match error.raw_os_error() {
        Some(number) if number == Errno::EAFNOSUPPORT as i32 => 1,
        _ => says(error),
    };
    if rank(&after) >= rank(&before) {
        after
    } else {
        before
    }
}

fn is_service(connection: &Connection, host: &str) -> bool {
    let mut services = connection.agent.settings.services.keys();
    services.any(|service| host.eq_ignore_ascii_case(service.as_str()))
}

async fn dial_unix(connection: &Connection, path: &Path) -> io::Result<UnixStream> {
    let path: PathBuf = connection.user.home.join(path);
    let work = move || {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let dialled = timeout(
        CONNECT_TIMEOUT,
        run_as(Identity::of(&connection.user), work),
    )
    .await
    .unwrap_or_else(|_| Err(io::Error::from_raw_os_error(Errno::ETIMEDOUT as i32)))?;
    UnixStream::from_std(dialled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_answers_is_told_before_that_another_cannot_be_reached() {
        let nothing = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let errors = |numbers: &[Errno]| {
            let errors = numbers
                .iter()
                .map(|errno| io::Error::from_raw_os_error(*errno as i32));
            describe(&errors.fold(nothing(), more_telling))
        };
        let refused = "Connection refused";
        for other in [
            Errno::EADDRNOTAVAIL,
            Errno::ENETUNREACH,
            Errno::EAFNOSUPPORT,
            Errno::EHOSTUNREACH,
        ] {
            assert_eq!(errors(&[Errno::ECONNREFUSED, other]), refused);
            assert_eq!(errors(&[other, Errno::ECONNREFUSED]), refused);
        }
        assert_eq!(
            errors(&[Errno::ETIMEDOUT, Errno::ENETUNREACH]),
            "Connection timed out"
        );
        assert_eq!(errors(&[Errno::ENETUNREACH]), "Network is unreachable");
        assert_eq!(errors(&[]), "the name has no address");
    }

    #[test]
    fn errors_read_as_in_every_other_program() {
        assert_eq!(
            describe(&io::Error::from_raw_os_error(111)),
            "Connection refused"
        );
        assert_eq!(
            describe(&io::Error::other("Name or service not known")),
            "Name or service not known"
        );
    }
}
