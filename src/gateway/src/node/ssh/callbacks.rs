//! What russh asks and tells during a connection to a node.

use std::sync::{Arc, OnceLock};

use russh::Channel;
use russh::client::{self, ChannelOpenHandle, DisconnectReason};
use russh::keys::PublicKeyOrCertificate;
use vendetta_sshio::keys::PublicKey;

use super::handshake::describe;
use super::host_keys::HostKeys;
use super::life::Life;

/// The russh callbacks of a connection to a node.
pub(in super::super) struct Callbacks {
    host_keys: HostKeys,
    shown: Arc<OnceLock<PublicKey>>,
    life: Life,
}

impl Callbacks {
    /// They accept `host_keys`, leave the key they see in `shown`, and end `life` with the connection.
    pub(super) fn new(host_keys: HostKeys, shown: Arc<OnceLock<PublicKey>>, life: Life) -> Self {
        Self {
            host_keys,
            shown,
            life,
        }
    }
}

/// russh drops its callbacks when the connection is over, and before it ends the channels.
impl Drop for Callbacks {
    fn drop(&mut self) {
        self.life.end("it was closed");
    }
}

impl client::Handler for Callbacks {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else {
            return Ok(false);
        };
        let key = PublicKey::from(key.clone());
        let accepted = self.host_keys.accepts(&key);
        let _ = self.shown.set(key);
        Ok(accepted)
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<russh::Error>,
    ) -> Result<(), russh::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(said) => {
                self.life.end(format!("sshd said: {}", said.message.trim()));
                Ok(())
            }
            DisconnectReason::Error(error) => {
                let cause = match &error {
                    russh::Error::HUP | russh::Error::Disconnect => {
                        "the other end closed it".to_owned()
                    }
                    other => describe(other),
                };
                self.life.end(cause);
                Err(error)
            }
        }
    }

    // A node opens nothing: the defaults would accept. The drop of the reply refuses.
    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<client::Msg>,
        _connected_address: &str,
        _connected_port: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _channel: Channel<client::Msg>,
        _socket_path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _channel: Channel<client::Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<client::Msg>,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

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
