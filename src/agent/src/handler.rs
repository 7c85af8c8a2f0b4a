//! russh's callbacks. Authentication is decided here; everything else is
//! passed on: requests of a session channel reach its task in order through
//! the channel itself, and what must overtake data (signals, sizes, CLOSE)
//! through [`Control`].

use std::collections::HashMap;
use std::sync::Arc;

use russh::keys::{Certificate, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, Sig};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use vendetta_proto::TerminalName;
use vendetta_proto::agent::FOR_CLIENT;
use vendetta_sshio::control::{Control, END_OF_WRITE, Size, control};

use crate::admission::{Credential, Peer, fingerprint};
use crate::connection::{Agent, Connection};
use crate::forward::{self, Target};
use crate::session;
use crate::users::User;

/// Whom somebody logs in as, and what their shells on terminals are.
type Login = (User, Option<TerminalName>);

/// The handler of one connection.
pub struct ConnectionHandler {
    agent: Arc<Agent>,
    /// Is told who has logged in.
    tell: Option<oneshot::Sender<Peer>>,
    gone: CancellationToken,
    /// Cancels `gone` when russh drops the handler, which it does when the connection ends.
    _ends: DropGuard,
    login: Option<(Login, Peer)>,
    connection: Option<Arc<Connection>>,
    sessions: HashMap<ChannelId, Control>,
}

impl ConnectionHandler {
    /// A handler for a new connection; `tell` is told who has logged in.
    pub fn new(agent: Arc<Agent>, tell: oneshot::Sender<Peer>) -> Self {
        let gone = CancellationToken::new();
        Self {
            agent,
            tell: Some(tell),
            _ends: gone.clone().drop_guard(),
            gone,
            login: None,
            connection: None,
            sessions: HashMap::new(),
        }
    }

    fn cancel(&self, target: &Target) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.listeners.cancel(target))
    }

    /// A session answers a request in its turn, after those before it; on
    /// other channels there is nothing to ask for.
    fn leave_to_session(
        &self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if self.sessions.contains_key(&channel) {
            return Ok(());
        }
        session.channel_failure(channel)
    }

    /// Whose key it is, if it may log in.
    fn peer(&self, key: &PublicKey) -> Option<Peer> {
        if self.agent.settings.gateway_keys.contains(key.key_data()) {
            return Some(Peer::Gateway);
        }
        let credential = Credential::Key(fingerprint(key.key_data()));
        let admitted = self.agent.admission.admits(&credential);
        admitted.then_some(Peer::Guest(credential))
    }

    /// Lets `peer` in as the user that `name` means.
    fn log_in(&mut self, peer: Peer, name: &str) -> Auth {
        let (peer, name) = match name.strip_prefix(FOR_CLIENT) {
            Some(user) if peer == Peer::Gateway => (Peer::Client, user),
            _ => (peer, name),
        };
        let login = match &peer {
            Peer::Gateway | Peer::Client => self.agent.login(name),
            Peer::Guest(_) => self.agent.login_of_guest(name),
        };
        match login {
            Some(login) => {
                self.login = Some((login, peer));
                Auth::Accept
            }
            None => {
                tracing::warn!(
                    user = name,
                    "login refused: no such user here, or not one this agent can be"
                );
                Auth::reject()
            }
        }
    }
}

impl Handler for ConnectionHandler {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        // A certificate is offered with nothing but its bare key.
        let known =
            self.peer(offer.public_key).is_some() || self.agent.admission.takes_certificates();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(match self.peer(key.public_key) {
            Some(peer) => self.log_in(peer, user),
            None => Auth::reject(),
        })
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        let credential = match Credential::of(certificate) {
            Ok(credential) => credential,
            Err(restricted) => {
                tracing::info!(certificate = certificate.key_id(), %restricted, "certificate refused");
                return Ok(Auth::reject());
            }
        };
        Ok(if self.agent.admission.admits(&credential) {
            self.log_in(Peer::Guest(credential), user)
        } else {
            Auth::reject()
        })
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        let Some((login, peer)) = self.login.take() else {
            return Ok(());
        };
        if let Peer::Guest(credential) = &peer {
            tracing::info!(%credential, user = %login.0.name.display(), "logged in");
        }
        if let Some(tell) = self.tell.take() {
            // Nobody hears it when the connection ends at this moment.
            let _ = tell.send(peer.clone());
        }
        let (agent, gone) = (Arc::clone(&self.agent), self.gone.clone());
        self.connection = Some(Arc::new(Connection::new(
            agent,
            login,
            peer,
            session.handle(),
            gone,
        )));
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(connection) = &self.connection {
            let (control, events) = control();
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

    async fn other_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        _data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name == END_OF_WRITE
            && let Some(control) = self.sessions.get(&channel)
        {
            control.end_of_write();
        }
        self.leave_to_session(channel, session)
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.leave_to_session(channel, session)
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

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(control) = self.sessions.remove(&channel) {
            control.close();
        }
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
