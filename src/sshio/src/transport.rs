//! What the gateway's and the agent's ends of a connection agree on: algorithms,
//! limits, and a TCP stream that can be told to end.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Limits, Preferred, cipher, compression, kex};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::cut::Cut;

/// What the gateway and agents call themselves (RFC 4253 section 4.2). OpenSSH's client
/// tells only a server whose name begins with its own that nobody reads its output any
/// more ([`crate::control::END_OF_WRITE`]); to any other `ssh … yes | head` goes on for ever.
pub const IDENTIFICATION: &str = concat!("SSH-2.0-OpenSSH_vendetta_", env!("CARGO_PKG_VERSION"));

/// Largest packet of channel data on the link between gateway and agent, in
/// bytes (RFC 4253 section 6.1 wants at least 32768).
pub const LINK_PACKET: u32 = 65_535;

/// Receive window of the gateway's channels to an agent, in bytes.
pub const LINK_WINDOW: u32 = 8 * 1024 * 1024;

/// Receive window of what clients and the gateway open, in bytes; that of OpenSSH's own
/// server. Its client keeps all that the window lets it send in one buffer, and with a
/// larger one spends its time moving that: with 8 MiB, uploads are a third as fast.
pub const SERVER_WINDOW: u32 = 2 * 1024 * 1024;

/// Algorithms of the link between gateway and agent: both ends are ours, so
/// one modern choice of each, the cheapest where AES instructions exist.
#[must_use]
pub fn link_algorithms() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(&[
            kex::CURVE25519,
            kex::EXTENSION_SUPPORT_AS_CLIENT,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        cipher: Cow::Borrowed(&[
            cipher::AES_128_GCM,
            cipher::AES_256_GCM,
            cipher::CHACHA20_POLY1305,
        ]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// Types of keys that are taken, and signatures by them: all but SHA-1.
pub const KEY_ALGORITHMS: [Algorithm; 6] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha512),
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha256),
    },
];

/// What an agent offers: to the gateway the same, and to clients that come to it
/// end to end all that the gateway offers to them where its settings say nothing
/// else (libssh2 before 1.11 has no AEAD cipher), and signatures by every type of
/// key that the gateway takes, but SHA-1.
#[must_use]
pub fn agent_algorithms() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::ECDH_SHA2_NISTP256,
            kex::ECDH_SHA2_NISTP384,
            kex::ECDH_SHA2_NISTP521,
            kex::DH_G16_SHA512,
            kex::DH_G18_SHA512,
            kex::DH_G14_SHA256,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        cipher: Cow::Borrowed(&[
            cipher::AES_128_GCM,
            cipher::AES_256_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
            cipher::AES_192_CTR,
            cipher::AES_128_CTR,
        ]),
        // russh offers those of them as host keys for which it has one.
        key: Cow::Borrowed(&KEY_ALGORITHMS),
        ..link_algorithms()
    }
}

/// Re-keying of the link between gateway and agent: as seldom as RFC 4344
/// section 3.2 allows for a 128-bit block cipher at russh's own ceiling.
#[must_use]
pub fn link_limits() -> Limits {
    Limits::new(1 << 30, 1 << 30, Duration::from_secs(24 * 3600))
}

/// Reads after which [`ClientStream`] stops asking for immediate
/// acknowledgements: the handshake and the opening of a first channel.
const QUICK_ACK_READS: u16 = 64;

/// A client's TCP connection, which reads as failed once its token is
/// cancelled: the way to end a connection whatever state its handshake is in.
///
/// While the handshake lasts, each read asks the kernel to acknowledge at once
/// (TCP_QUICKACK, tcp(7)): OpenSSH leaves Nagle's algorithm on until a session
/// starts, so a delayed acknowledgement would hold its next packet for 40 ms.
pub struct ClientStream {
    stream: Cut<TcpStream>,
    quick_ack_reads: u16,
}

impl ClientStream {
    /// Wraps `stream`; Nagle's algorithm is turned off.
    ///
    /// # Errors
    /// When the socket is gone already.
    pub fn new(stream: TcpStream, end: CancellationToken) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: Cut::new(stream, end),
            quick_ack_reads: QUICK_ACK_READS,
        })
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.quick_ack_reads > 0 && read.is_ready() {
            self.quick_ack_reads -= 1;
            let _ = SockRef::from(self.stream.get_ref()).set_tcp_quickack(true);
        }
        read
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A read shorter than this is an answer or a keystroke, not a bulk transfer.
const SHORT_READ: usize = 4096;

/// A connection to an sshd. It leaves Nagle's algorithm on for all but
/// interactive sessions, so its answer to one message may wait until the answer
/// to the one before is acknowledged; each short read therefore asks the kernel to
/// acknowledge at once (TCP_QUICKACK, tcp(7)) instead of 40 ms later.
pub struct ServerStream(TcpStream);

impl ServerStream {
    /// Wraps `stream`; our own Nagle's algorithm is turned off.
    ///
    /// # Errors
    /// When the socket is gone already.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        if read.is_ready() && buffer.filled().len() - before < SHORT_READ {
            let _ = SockRef::from(&self.0).set_tcp_quickack(true);
        }
        read
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
