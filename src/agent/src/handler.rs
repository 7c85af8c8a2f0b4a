//! russh's callbacks. Authentication is decided here; everything else is
//! passed on: requests of a session channel reach its task in order through
//! the channel itself, and what must overtake data (signals, sizes, CLOSE)
//! through [`Control`].

use std::collections::HashMap;
use std::sync::Arc;

use russh::keys::ssh_key::public::KeyData;
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, Sig};
use tokio_util::sync::{CancellationToken, DropGuard};
use vendetta_proto::TerminalName;

use crate::connection::{Agent, Connection};
use crate::forward::{self, Target};
use crate::session::{self, Control, Size};
use crate::users::User;

/// The handler of one connection.
pub struct ConnectionHandler {
    agent: Arc<Agent>,
    authenticated: CancellationToken,
    gone: CancellationToken,
    /// Cancels `gone` when russh drops the handler, which it does when the connection ends.
    _ends: DropGuard,
    login: Option<(User, Option<TerminalName>)>,
    by_gateway: bool,
    connection: Option<Arc<Connection>>,
    sessions: HashMap<ChannelId, Control>,
}

impl ConnectionHandler {
    /// A handler for a new connection; `authenticated` is cancelled at login.
    pub fn new(agent: Arc<Agent>, authenticated: CancellationToken) -> Self {
        let gone = CancellationToken::new();
        Self {
            agent,
            authenticated,
            _ends: gone.clone().drop_guard(),
            gone,
            login: None,
            by_gateway: false,
            connection: None,
            sessions: HashMap::new(),
        }
    }

    fn cancel(&self, target: &Target) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.listeners.cancel(target))
    }

    fn is_gateway(&self, key: &KeyData) -> bool {
        self.agent.settings.gateway_keys.contains(key)
    }

    /// Nobody else may, so far.
    fn may_log_in(&self, key: &KeyData) -> bool {
        self.is_gateway(key)
    }
}

impl Handler for ConnectionHandler {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let known = self.may_log_in(offer.public_key.key_data());
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        if !self.may_log_in(key.public_key.key_data()) {
            return Ok(Auth::reject());
        }
        self.by_gateway = self.is_gateway(key.public_key.key_data());
        self.login = self.agent.login(user);
        if self.login.is_none() {
            tracing::warn!(
                user,
                "login refused: no such user here, or not one this agent can be"
            );
        }
        Ok(if self.login.is_some() {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        self.authenticated.cancel();
        if let Some(login) = self.login.take() {
            let (agent, gone) = (Arc::clone(&self.agent), self.gone.clone());
            self.connection = Some(Arc::new(Connection::new(
                agent,
                login,
                self.by_gateway,
                session.handle(),
                gone,
            )));
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(connection) = &self.connection {
            let (control, events) = session::control(connection.closed_token(channel.id()));
            self.sessions.insert(channel.id(), control);
            reply.accept().await;
            self.agent
                .sessions
                .spawn(session::serve(Arc::clone(connection), channel, events));
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(connection) = &self.connection {
            let (connection, host) = (Arc::clone(connection), host.to_owned());
            self.agent.tasks.spawn(forward::direct_tcpip(
                connection, channel, host, port, reply,
            ));
        }
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(connection) = &self.connection {
            let (connection, path) = (Arc::clone(connection), path.to_owned());
            self.agent.tasks.spawn(forward::direct_streamlocal(
                connection, channel, path, reply,
            ));
        }
        Ok(())
    }

    /// A session answers in its turn, after the requests before this one.
    async fn other_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if !self.sessions.contains_key(&channel) {
            session.channel_failure(channel)?;
        }
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(connection) = &self.connection else {
            return Ok(false);
        };
        match forward::tcp(connection, address, *port).await {
            Ok(bound) => {
                *port = bound;
                Ok(true)
            }
            Err(error) => {
                tracing::info!(address, port, "cannot listen: {error}");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.cancel(&Target::Tcp(address.to_owned(), port)))
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(connection) = &self.connection else {
            return Ok(false);
        };
        let listening = forward::unix(connection, path).await;
        if let Err(error) = &listening {
            tracing::info!(path, "cannot listen: {error}");
        }
        Ok(listening.is_ok())
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.cancel(&Target::Unix(path.to_owned())))
    }

    async fn agent_request(
        &mut self,
        _channel: ChannelId,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(connection) = &self.connection else {
            return Ok(false);
        };
        let socket = connection
            .agent_socket
            .get_or_try_init(|| forward::agent_socket::serve(connection))
            .await;
        if let Err(error) = &socket {
            tracing::warn!("cannot forward the client's agent: {error}");
        }
        Ok(socket.is_ok())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.sessions.remove(&channel);
        if let Some(connection) = &self.connection {
            connection.channel_closed(channel);
        }
        Ok(())
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(control) = self.sessions.get(&channel) {
            control.resize(Size {
                columns,
                rows,
                width,
                height,
            });
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(control) = self.sessions.get(&channel) {
            control.signal(signal);
        }
        Ok(())
    }
}
