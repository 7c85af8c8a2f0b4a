//! One SSH connection to a node, logged in.

use std::sync::Arc;
use std::time::Duration;

use russh::client::{Handle, Msg};
use russh::{Channel, Disconnect};
use tokio::time::{Instant, timeout};
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::super::LinkError;
use super::callbacks::Callbacks;
use super::handshake::{self, Address, Greeted};
use super::host_keys::HostKeys;
use super::life::Life;
use super::trouble::Trouble;

/// Time limit of making a connection, from the first packet to being logged in.
pub(in super::super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// On top of that when it goes through another node, which may take as long itself and
/// then says what is wrong.
const JUMP_LIMIT: Duration = Duration::from_secs(5);
/// Time limit of opening a channel: sshd dials before it answers.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// How a node is reached and known, and with which key.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    /// Where it is.
    pub address: Address,
    /// The keys it may prove.
    pub host_keys: Vec<PublicKey>,
    /// The gateway's key.
    pub key: PrivateKey,
}

impl Connector {
    /// Time limit of making a connection.
    pub(super) fn limit(&self) -> Duration {
        match self.address.jump {
            Some(_) => CONNECT_LIMIT + JUMP_LIMIT,
            None => CONNECT_LIMIT,
        }
    }

    /// Makes a connection.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn connect(&self) -> Result<Connection, LinkError> {
        let address = &self.address;
        let connect = async {
            let mut greeted =
                handshake::greet(address, HostKeys::Pinned(self.host_keys.clone())).await?;
            if handshake::log_in(&mut greeted, address, &self.key).await? {
                Ok(Connection::new(greeted, address))
            } else {
                Err(LinkError::Authentication {
                    address: address.to_string(),
                    user: address.user.clone(),
                    key: self.key.public().fingerprint(),
                })
            }
        };
        let limit = self.limit();
        let made = timeout(limit, connect).await;
        made.unwrap_or_else(|_| {
            Err(LinkError::TimedOut {
                address: address.to_string(),
                limit,
            })
        })
    }
}

/// Why a channel was not opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The server refused: code (RFC 4254 section 5.1) and what it said.
    Refused(u32, String),
    /// Something else went wrong.
    Other(Trouble),
}

/// What a channel leads to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    /// A session (RFC 4254 section 6.1).
    Session,
    /// A unix socket of the node (OpenSSH PROTOCOL section 2.4).
    Unix(&'a str),
    /// A TCP port as seen from the node (RFC 4254 section 7.2).
    Tcp(&'a str, u16),
}

/// One SSH connection to a node, logged in.
pub(in super::super) struct Connection {
    handle: Handle<Callbacks>,
    life: Life,
    address: Arc<str>,
    made: Instant,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("address", &self.address)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// The connection that `greeted` has become by logging in.
    pub(in super::super) fn new(greeted: Greeted, address: &Address) -> Self {
        Self {
            handle: greeted.handle,
            life: greeted.life,
            address: address.to_string().into(),
            made: Instant::now(),
        }
    }

    /// Its life.
    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    /// Since when it has been logged in.
    pub(super) fn age(&self) -> Duration {
        self.made.elapsed()
    }

    /// That it was lost, and why.
    pub(super) fn lost(&self) -> LinkError {
        LinkError::Lost {
            address: self.address.to_string(),
            cause: self.life.ended().unwrap_or("it was closed").to_owned(),
        }
    }

    /// Opens a channel.
    pub(super) async fn open(&self, target: Target<'_>) -> Result<Channel<Msg>, OpenError> {
        let handle = &self.handle;
        match target {
            Target::Session => self.opened(handle.channel_open_session()).await,
            Target::Unix(path) => {
                self.opened(handle.channel_open_direct_streamlocal(path))
                    .await
            }
            Target::Tcp(host, port) => {
                let port = u32::from(port);
                let opening = handle.channel_open_direct_tcpip(host, port, "127.0.0.1", 0u32);
                self.opened(opening).await
            }
        }
    }

    async fn opened(
        &self,
        opening: impl Future<Output = Result<Channel<Msg>, russh::Error>>,
    ) -> Result<Channel<Msg>, OpenError> {
        match self.alive(OPEN_LIMIT, opening).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(russh::Error::ChannelOpenFailure(failure))) => Err(OpenError::Refused(
                failure.code(),
                failure.description().to_owned(),
            )),
            // russh says no more than that the connection is over.
            Ok(Err(_)) => Err(OpenError::Other(self.lost().into())),
            Err(trouble) => Err(OpenError::Other(trouble)),
        }
    }

    /// The time that a message to sshd and back takes.
    ///
    /// # Errors
    /// When the connection is over or the answer takes too long.
    pub(super) async fn ping(&self) -> Result<Duration, Trouble> {
        let sent = Instant::now();
        let answer = self.alive(OPEN_LIMIT, self.handle.send_ping()).await?;
        match (answer, self.life.ended()) {
            (Ok(()), None) => Ok(sent.elapsed()),
            _ => Err(self.lost().into()),
        }
    }

    /// Waits for `work`, but not longer than `limit` nor than the connection lasts.
    async fn alive<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T, Trouble> {
        tokio::select! {
            result = timeout(limit, work) => result.map_err(|_| Trouble::TimedOut(limit)),
            _ = self.life.over() => Err(self.lost().into()),
        }
    }

    /// Ends it, with all its channels.
    pub(in super::super) async fn disconnect(&self) {
        let bye = self.handle.disconnect(
            Disconnect::ByApplication,
            "the gateway no longer needs it",
            "en",
        );
        // Over already is as good.
        let _ = timeout(Duration::from_secs(1), bye).await;
        self.life.end("the gateway closed it");
    }
}
