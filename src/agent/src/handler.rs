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

use crate::connection::{Agent, Connection};
use crate::session::{self, Control, Size};
use crate::users::User;

/// The handler of one connection.
pub struct ConnectionHandler {
    agent: Arc<Agent>,
    authenticated: CancellationToken,
    gone: CancellationToken,
    /// Cancels `gone` when russh drops the handler, which it does when the connection ends.
    _ends: DropGuard,
    user: Option<User>,
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
            user: None,
            connection: None,
            sessions: HashMap::new(),
        }
    }

    fn may_log_in(&self, key: &KeyData) -> bool {
        self.agent.settings.gateway_keys.contains(key)
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
        self.user = self.agent.user(user);
        if self.user.is_none() {
            tracing::warn!(
                user,
                "login refused: no such user here, or not one this agent can be"
            );
        }
        Ok(if self.user.is_some() {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        self.authenticated.cancel();
        if let Some(user) = self.user.take() {
            self.connection = Some(Arc::new(Connection {
                agent: Arc::clone(&self.agent),
                user,
                handle: session.handle(),
                gone: self.gone.clone(),
            }));
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
            let (control, events) = session::control();
            self.sessions.insert(channel.id(), control);
            reply.accept().await;
            self.agent
                .tasks
                .spawn(session::serve(Arc::clone(connection), channel, events));
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(control) = self.sessions.remove(&channel) {
            control.close();
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
