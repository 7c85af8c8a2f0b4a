//! Channels that an environment asks to open towards the client, as russh's
//! callbacks of a connection to an agent bring them.

use russh::Channel;
use russh::client::{self, ChannelOpenHandle};
use russh::keys::PublicKeyOrCertificate;
use tokio::sync::mpsc;
use vendetta_sshio::keys::PublicKey;

/// Channels an environment may have opened that the client has not answered yet.
const PENDING_OPENS: usize = 64;

/// A channel that an environment asks to open towards the client.
pub struct EnvironmentOpen {
    /// What it is.
    pub kind: OpenKind,
    /// The environment's side of it.
    pub channel: Channel<client::Msg>,
    /// To accept or reject it; dropping rejects.
    pub reply: ChannelOpenHandle,
}

/// The kinds of channel that an environment opens (RFC 4254 sections 6.3.2 and
/// 7.2, OpenSSH PROTOCOL sections 2.4 and PROTOCOL.agent).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenKind {
    /// "forwarded-tcpip".
    ForwardedTcpIp {
        /// Address the connection was accepted on, as the client asked for it.
        connected: (String, u32),
        /// Address and port it came from.
        originator: (String, u32),
    },
    /// "forwarded-streamlocal@openssh.com" with the socket's path.
    ForwardedStreamLocal(String),
    /// "auth-agent@openssh.com".
    Agent,
    /// "x11" with the address and port it came from.
    X11(String, u32),
}

/// The russh callbacks of a connection to an agent.
pub struct AgentHandler {
    host_key: PublicKey,
    opens: mpsc::Sender<EnvironmentOpen>,
}

impl AgentHandler {
    /// For an agent that must prove `host_key`; and the channels that it opens.
    pub(super) fn new(host_key: PublicKey) -> (Self, mpsc::Receiver<EnvironmentOpen>) {
        let (opens, opened) = mpsc::channel(PENDING_OPENS);
        (Self { host_key, opens }, opened)
    }

    /// Hands an open to the client's connection; when that is behind with
    /// answering, the drop of `reply` refuses it.
    fn offer(&self, kind: OpenKind, channel: Channel<client::Msg>, reply: ChannelOpenHandle) {
        let _ = self.opens.try_send(EnvironmentOpen {
            kind,
            channel,
            reply,
        });
    }
}

impl client::Handler for AgentHandler {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                PublicKey::from(key.clone()) == self.host_key
            }
            PublicKeyOrCertificate::Certificate(_) => false,
        })
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<client::Msg>,
        connected_address: &str,
        connected_port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let kind = OpenKind::ForwardedTcpIp {
            connected: (connected_address.to_owned(), connected_port),
            originator: (originator_address.to_owned(), originator_port),
        };
        self.offer(kind, channel, reply);
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<client::Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.offer(
            OpenKind::ForwardedStreamLocal(socket_path.to_owned()),
            channel,
            reply,
        );
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<client::Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.offer(OpenKind::Agent, channel, reply);
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        channel: Channel<client::Msg>,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        self.offer(
            OpenKind::X11(originator_address.to_owned(), originator_port),
            channel,
            reply,
        );
        Ok(())
    }

    // An agent opens nothing else; the defaults would accept.
    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<client::Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<client::Msg>,
        _host: &str,
        _port: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<client::Msg>,
        _path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
}
