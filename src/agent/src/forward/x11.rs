//! x11-req (RFC 4254 section 6.3): a fake display inside the environment whose
//! connections reach the client's X server.
//!
//! The cookie is written to an authority file of the session's own
//! (XAUTHORITY), so that it needs no xauth(1) in the image, works without a
//! writable home and leaves nothing behind.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::agent_socket::private_directory;
use super::bind::{accept_tcp, bind};
use super::splice;
use crate::connection::Connection;
use crate::process::{Identity, run_as};

/// First fake display, as with OpenSSH (X11DisplayOffset): the ones below are for real servers.
const FIRST_DISPLAY: u16 = 10;
/// Displays to try.
const MOST_DISPLAYS: u16 = 1000;
/// TCP port of display 0.
const FIRST_PORT: u16 = 6000;

/// FamilyLocal of Xauth(7): the address is the host's name.
const FAMILY_LOCAL: u16 = 256;
/// FamilyWild: any address.
const FAMILY_WILD: u16 = 65535;

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Only one connection.
    pub single: bool,
    /// Name of the authentication protocol, such as MIT-MAGIC-COOKIE-1.
    pub protocol: String,
    /// The cookie, in hexadecimal.
    pub cookie: String,
    /// Screen number.
    pub screen: u32,
}

/// A display that is served until this is dropped.
#[derive(Debug)]
pub struct Display {
    /// DISPLAY and XAUTHORITY.
    pub variables: Vec<(&'static str, OsString)>,
    _ends: DropGuard,
}

/// Starts to serve a display.
///
/// # Errors
/// When the cookie is no hexadecimal, no display is free, or the authority
/// file cannot be written.
pub async fn serve(connection: &Arc<Connection>, request: Request) -> io::Result<Display> {
    let cookie = from_hexadecimal(&request.cookie).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the cookie is not hexadecimal")
    })?;
    let (number, listeners) = free_display()?;
    let host = nix::unistd::gethostname()?;
    let records = [
        authority_record(
            FAMILY_LOCAL,
            host.as_bytes(),
            number,
            request.protocol.as_bytes(),
            &cookie,
        ),
        authority_record(
            FAMILY_WILD,
            b"",
            number,
            request.protocol.as_bytes(),
            &cookie,
        ),
    ]
    .concat();
    let write = move || -> io::Result<(PathBuf, PathBuf)> {
        let directory = private_directory("x11")?;
        let file = directory.join("Xauthority");
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)?
            .write_all(&records)?;
        Ok((directory, file))
    };
    let (directory, file) = run_as(Identity::of(&connection.user), write).await?;

    let cancelled = connection.gone.child_token();
    for listener in listeners {
        let listener = TcpListener::from_std(listener.into())?;
        let (connection, cancelled) = (Arc::clone(connection), cancelled.clone());
        connection
            .agent
            .tasks
            .clone()
            .spawn(async move { accept(&connection, &listener, &cancelled, request.single).await });
    }
    let (identity, ended) = (Identity::of(&connection.user), cancelled.clone());
    connection.agent.tasks.spawn(async move {
        ended.cancelled().await;
        let _ = run_as(identity, move || std::fs::remove_dir_all(directory)).await;
    });
    Ok(Display {
        variables: vec![
            (
                "DISPLAY",
                format!("localhost:{number}.{}", request.screen).into(),
            ),
            ("XAUTHORITY", file.into()),
        ],
        _ends: cancelled.drop_guard(),
    })
}

async fn accept(
    connection: &Arc<Connection>,
    listener: &TcpListener,
    cancelled: &CancellationToken,
    single: bool,
) {
    accept_tcp(
        &connection.agent.tasks,
        listener,
        cancelled,
        |stream, peer| {
            if single {
                cancelled.cancel();
            }
            let connection = Arc::clone(connection);
            async move {
                let (address, port) = (peer.ip().to_string(), u32::from(peer.port()));
                if let Ok(channel) = connection.handle.channel_open_x11(address, port).await {
                    let closed = connection.closed_token(channel.id());
                    splice::tcp(&connection, stream, channel, closed).await;
                }
            }
        },
    )
    .await;
}

/// The first display whose port is free on every loopback address.
fn free_display() -> io::Result<(u16, Vec<socket2::Socket>)> {
    for number in FIRST_DISPLAY..FIRST_DISPLAY + MOST_DISPLAYS {
        let port = FIRST_PORT + number;
        let Ok(v4) = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) else {
            continue;
        };
        match bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
            Ok(v6) => return Ok((number, vec![v4, v6])),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(_no_ipv6) => return Ok((number, vec![v4])),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "no display is free",
    ))
}

/// One record of an authority file: five fields, each but the first with a
/// big-endian length (libXau, AuWrite.c).
fn authority_record(
    family: u16,
    address: &[u8],
    display: u16,
    protocol: &[u8],
    cookie: &[u8],
) -> Vec<u8> {
    let mut record = family.to_be_bytes().to_vec();
    for field in [address, display.to_string().as_bytes(), protocol, cookie] {
        let length = u16::try_from(field.len()).unwrap_or(u16::MAX);
        record.extend(length.to_be_bytes());
        record.extend(field.iter().take(usize::from(length)));
    }
    record
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| {
        let [high, low] = pair else { return None };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
    });
    digits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_hexadecimal() {
        assert_eq!(from_hexadecimal("00ffA1"), Some(vec![0, 255, 0xa1]));
        assert_eq!(from_hexadecimal("abc"), None);
        assert_eq!(from_hexadecimal("zz"), None);
        assert_eq!(from_hexadecimal("é"), None);
    }

    #[test]
    fn a_record_is_laid_out_as_libxau_reads_it() {
        let record = authority_record(FAMILY_LOCAL, b"h", 10, b"MIT", &[1, 2]);
        assert_eq!(
            record,
            b"\x01\x00\x00\x01h\x00\x0210\x00\x03MIT\x00\x02\x01\x02"
        );
    }
}
