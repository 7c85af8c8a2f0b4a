//! A russh server and a russh client over an in-memory connection, whose two
//! directions can be paused and measured.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use russh::keys::{PrivateKey, PublicKeyOrCertificate, ssh_key};
use russh::server::{Auth, ChannelOpenHandle, DeferredReply, Session};
use russh::{Channel, ChannelId, ChannelMsg, client, server};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// Far longer than anything here takes: a test that hangs fails after this.
pub const HANG: Duration = Duration::from_secs(40);

/// Fails instead of hanging.
pub async fn no_hang<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(HANG, future)
        .await
        .with_context(|| format!("hangs: {what}"))
}

/// A channel that the client wants to open.
pub struct Opening {
    pub channel: Channel<server::Msg>,
    pub reply: ChannelOpenHandle,
}

/// The variable whose `env` request makes the server send a global request
/// that wants no reply.
pub const SEND_GLOBAL_REQUEST: &str = "SEND_GLOBAL_REQUEST";

/// Hands every channel, and the answer to every forward request, to the test
/// and answers no request, except `env`,
/// which it acknowledges on the spot as russh's documentation says.
pub struct ServerHandler {
    openings: mpsc::UnboundedSender<Opening>,
    deferred: mpsc::UnboundedSender<DeferredReply>,
    handle: watch::Sender<Option<server::Handle>>,
}

impl server::Handler for ServerHandler {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<server::Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.handle.send_replace(Some(session.handle()));
        let _ = self.openings.send(Opening { channel, reply });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<server::Msg>,
        _host: &str,
        _port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let _ = self.openings.send(Opening { channel, reply });
        Ok(())
    }

    async fn agent_request(
        &mut self,
        _channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        _address: &str,
        _port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let _ = self.deferred.send(session.defer_request_reply());
        // Not what is answered.
        Ok(true)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name == SEND_GLOBAL_REQUEST {
            session.cancel_tcpip_forward("localhost", 1, None)?;
        }
        session.channel_success(channel)
    }
}

/// Hands the channels that the server opens to the test.
pub struct ClientHandler {
    openings: mpsc::UnboundedSender<(Channel<client::Msg>, client::ChannelOpenHandle)>,
}

impl client::Handler for ClientHandler {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<client::Msg>,
        _address: &str,
        _port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let _ = self.openings.send((channel, reply));
        Ok(())
    }
}

/// One direction of the connection.
#[derive(Clone)]
pub struct Direction {
    paused: watch::Sender<bool>,
    bytes: Arc<AtomicU64>,
}

impl Direction {
    /// Lets nothing more through until [`Self::resume`].
    pub fn pause(&self) {
        self.paused.send_replace(true);
    }

    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Bytes that came through so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    fn start(
        mut from: impl AsyncRead + Unpin + Send + 'static,
        mut to: impl AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let direction = Self {
            paused: watch::Sender::new(false),
            bytes: Arc::default(),
        };
        let bytes = direction.bytes.clone();
        let mut paused = direction.paused.subscribe();
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let n = from.read(&mut buffer).await?;
                if paused.wait_for(|paused| !*paused).await.is_err() || n == 0 {
                    return to.shutdown().await;
                }
                // Before they arrive, so that who sees their effect sees them counted.
                bytes.fetch_add(n as u64, Ordering::AcqRel);
                to.write_all(buffer.get(..n).unwrap_or_default()).await?;
            }
        });
        direction
    }
}

pub struct Connection {
    pub client: client::Handle<ClientHandler>,
    /// Ends when the server's session does.
    pub server: server::RunningSession<ServerHandler>,
    pub to_client: Direction,
    pub to_server: Direction,
    pub opened_by_client: mpsc::UnboundedReceiver<Opening>,
    /// The client's forward requests, in order.
    pub deferred: mpsc::UnboundedReceiver<DeferredReply>,
    opened_by_server: mpsc::UnboundedReceiver<(Channel<client::Msg>, client::ChannelOpenHandle)>,
}

pub fn server_config() -> Result<server::Config> {
    Ok(server::Config {
        keys: vec![PrivateKey::random(
            &mut rand(),
            ssh_key::Algorithm::Ed25519,
        )?],
        auth_rejection_time_initial: Some(Duration::ZERO),
        preferred: fast(),
        nodelay: true,
        ..server::Config::default()
    })
}

pub fn client_config() -> client::Config {
    client::Config {
        preferred: fast(),
        ..client::Config::default()
    }
}

fn fast() -> russh::Preferred {
    russh::Preferred {
        kex: Cow::Borrowed(&[
            russh::kex::CURVE25519,
            russh::kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            russh::kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        ..russh::Preferred::default()
    }
}

fn rand() -> impl russh::keys::ssh_key::rand_core::CryptoRng {
    russh::keys::key::safe_rng()
}

impl Connection {
    pub async fn open() -> Result<Self> {
        Self::open_with(server_config()?, client_config()).await
    }

    pub async fn open_with(server: server::Config, client: client::Config) -> Result<Self> {
        Self::open_over(64 * 1024, server, client).await
    }

    /// Over a transport that takes `capacity` bytes without waiting for the other side.
    pub async fn open_over(
        capacity: usize,
        server: server::Config,
        client: client::Config,
    ) -> Result<Self> {
        let (server_end, near_server) = tokio::io::duplex(capacity);
        let (client_end, near_client) = tokio::io::duplex(capacity);
        let (from_server, into_server) = tokio::io::split(near_server);
        let (from_client, into_client) = tokio::io::split(near_client);
        let to_client = Direction::start(from_server, into_client);
        let to_server = Direction::start(from_client, into_server);

        let (openings, opened_by_client) = mpsc::unbounded_channel();
        let (defer, deferred) = mpsc::unbounded_channel();
        let handler = ServerHandler {
            openings,
            deferred: defer,
            handle: watch::Sender::new(None),
        };
        let (openings, opened_by_server) = mpsc::unbounded_channel();
        let (server, client) = no_hang("the handshake", async {
            tokio::join!(
                server::run_stream(Arc::new(server), server_end, handler),
                client::connect_stream(Arc::new(client), client_end, ClientHandler { openings }),
            )
        })
        .await?;
        let mut client = client?;
        if !client.authenticate_none("user").await?.success() {
            bail!("not authenticated");
        }
        Ok(Self {
            client,
            server: server?,
            to_client,
            to_server,
            opened_by_client,
            deferred,
            opened_by_server,
        })
    }

    /// Opens a session channel; its client's and its server's end.
    pub async fn channel(&mut self) -> Result<(Channel<client::Msg>, Channel<server::Msg>)> {
        let (client_end, server_end) = no_hang("opening a channel", async {
            tokio::join!(self.client.channel_open_session(), async {
                let opening = self.opened_by_client.recv().await?;
                opening.reply.accept().await;
                Some(opening.channel)
            })
        })
        .await?;
        Ok((client_end?, server_end.context("the server is gone")?))
    }

    /// The next channel that the server wants to open.
    pub async fn next_opening_of_server(
        &mut self,
    ) -> Result<(Channel<client::Msg>, client::ChannelOpenHandle)> {
        no_hang("a channel open by the server", self.opened_by_server.recv())
            .await?
            .context("the client is gone")
    }

    /// Shows that both sessions still serve.
    pub async fn ping(&self) -> Result<()> {
        no_hang("the session", self.client.send_ping()).await??;
        Ok(())
    }
}

/// Reads a channel until it ends; what came, except for window adjustments.
pub async fn read_all(channel: &mut russh::ChannelReadHalf) -> Result<Vec<ChannelMsg>> {
    no_hang("a channel does not end", async {
        let mut messages = Vec::new();
        while let Some(message) = channel.wait().await {
            if !matches!(message, ChannelMsg::WindowAdjusted { .. }) {
                messages.push(message);
            }
        }
        messages
    })
    .await
}

/// Waits for the next message that is not a window adjustment.
pub async fn next(channel: &mut russh::ChannelReadHalf) -> Result<Option<ChannelMsg>> {
    no_hang("no message on a channel", async {
        loop {
            match channel.wait().await {
                Some(ChannelMsg::WindowAdjusted { .. }) => {}
                message => return message,
            }
        }
    })
    .await
}

/// Reads exactly `len` bytes of data.
pub async fn read_data(channel: &mut russh::ChannelReadHalf, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        match next(channel).await? {
            Some(ChannelMsg::Data { data }) => bytes.extend_from_slice(&data),
            other => bail!("{other:?} after {} bytes of {len}", bytes.len()),
        }
    }
    Ok(bytes)
}

/// Bytes in which a lost, repeated or misplaced one shows.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// A russh server on a loopback port for the OpenSSH client: `serve` gets
/// each session channel, accepted.
pub async fn serve_openssh<F>(
    serve: impl Fn(Channel<server::Msg>, server::Handle) -> F + Send + Sync + 'static,
) -> Result<u16>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let config = Arc::new(server_config()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (openings, mut opened) = mpsc::unbounded_channel::<Opening>();
            let handler = ServerHandler {
                openings,
                deferred: mpsc::unbounded_channel().0,
                handle: watch::Sender::new(None),
            };
            let Ok(session) = server::run_stream(config.clone(), stream, handler).await else {
                continue;
            };
            let handle = session.handle();
            tokio::spawn(session);
            while let Some(opening) = opened.recv().await {
                opening.reply.accept().await;
                tokio::spawn(serve(opening.channel, handle.clone()));
            }
        }
    });
    Ok(port)
}

/// The OpenSSH client for [`serve_openssh`], with nobody's configuration.
pub fn openssh(port: u16) -> tokio::process::Command {
    let mut ssh = tokio::process::Command::new("ssh");
    ssh.args(["-F", "/dev/null", "-p", &port.to_string()]);
    for option in [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "BatchMode=yes",
    ] {
        ssh.args(["-o", option]);
    }
    ssh.arg("user@127.0.0.1").kill_on_drop(true);
    ssh
}
