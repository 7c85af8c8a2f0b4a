//! The russh callbacks of one client connection. No policy lives here: the key
//! is judged by [`super::auth`], the login name by [`super::route`], and each
//! channel is served by a task of its own, so that nothing here waits but the
//! replies that russh takes inline.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::keys::Certificate;
use russh::server::{
    self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use vendetta_proto::agent::DEFAULT_USER;
use vendetta_sshio::relay::{self, ClientSide, RequestFilter};

use super::environment::{Environment, Link};
use super::forward;
use super::route::{Route, route};
use super::standing::{self, Answering, Proof};
use super::{Services, jump, restrict, session};
use crate::access::{Action, Principal};
use crate::store::AuditEvent;

/// Longest wait of a forward request for an environment that is being brought up.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(120);

/// One client connection.
pub struct Connection {
    services: Arc<Services>,
    peer: SocketAddr,
    reached: Option<SocketAddr>,
    authenticated: CancellationToken,
    end: CancellationToken,
    proved: Option<(Arc<Principal>, Proof)>,
    login: String,
    closes: Closes,
    accepted: Option<Accepted>,
}

/// What there is once the client has proved who it is.
struct Accepted {
    shared: Shared,
    target: Target,
}

/// Where the login name led.
#[derive(Clone)]
enum Target {
    Workspace(Environment),
    Control,
    Unknown(String),
}

type Closes = Arc<Mutex<HashMap<ChannelId, CancellationToken>>>;

/// What the tasks of a connection share.
#[derive(Clone)]
pub struct Shared {
    /// The gateway's parts.
    pub services: Arc<Services>,
    /// The client's connection.
    pub client: server::Handle,
    /// Who it is.
    pub principal: Arc<Principal>,
    /// The gateway's address that it connected to.
    pub reached: Option<SocketAddr>,
    /// What its commands hold while they are answered.
    pub answering: Answering,
    closes: Closes,
    slots: Arc<Semaphore>,
    end: CancellationToken,
}

impl Shared {
    /// Runs a task that ends with the connection.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        self.services.tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Ends the connection, and its tasks with it.
    pub fn end(&self) {
        self.end.cancel();
    }

    /// Room for one more channel; none when the connection has its share.
    #[must_use]
    pub fn take_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().ok()
    }

    /// The client's side of a bridge over `channel`.
    #[must_use]
    pub fn side(&self, channel: Channel<Msg>, requests: Option<RequestFilter>) -> ClientSide {
        let closed = self.closed(channel.id());
        ClientSide {
            channel,
            connection: self.client.clone(),
            closed,
            requests,
            farewell: None,
        }
    }

    /// A token that is cancelled when the client closes channel `id`.
    #[must_use]
    pub fn closed(&self, id: ChannelId) -> CancellationToken {
        let mut closes = self.closes.lock().unwrap_or_else(PoisonError::into_inner);
        closes.entry(id).or_default().clone()
    }
}

impl Connection {
    /// A connection from `peer` to the gateway's address `reached`. Cancels `authenticated` when it is, and ends all its tasks with `end`.
    #[must_use]
    pub fn new(
        services: Arc<Services>,
        peer: SocketAddr,
        reached: Option<SocketAddr>,
        authenticated: CancellationToken,
        end: CancellationToken,
    ) -> Self {
        Self {
            services,
            peer,
            reached,
            authenticated,
            end,
            proved: None,
            login: String::new(),
            closes: Closes::default(),
            accepted: None,
        }
    }

    fn accept(&mut self, login: &str, principal: Arc<Principal>, proof: Proof) -> Auth {
        login.clone_into(&mut self.login);
        self.proved = Some((principal, proof));
        Auth::Accept
    }

    fn start(&mut self, client: server::Handle) {
        let Some((principal, proof)) = self.proved.clone() else {
            return;
        };
        let shared = Shared {
            services: self.services.clone(),
            client,
            principal,
            reached: self.reached,
            answering: Answering::default(),
            closes: self.closes.clone(),
            slots: Arc::new(Semaphore::new(self.services.channels_per_connection)),
            end: self.end.clone(),
        };
        shared.spawn(standing::watch(shared.clone(), proof));
        let workspaces = &self.services.workspaces;
        let principal = &shared.principal;
        let route = route(
            &self.login,
            |name| workspaces.find(principal, Action::Connect, name).is_ok(),
            |name| {
                name.parse()
                    .is_ok_and(|name| self.services.store.user(&name).is_some())
            },
        );
        tracing::info!(peer = %self.peer, user = %principal.user, key = %principal.key_fingerprint, login = %self.login, "authenticated");
        self.services.store.audit(AuditEvent {
            user: Some(principal.user.clone()),
            event: "login",
            detail: json!({ "key": principal.key_fingerprint, "login": self.login, "peer": self.peer }),
        });
        let target = match route {
            Route::Control => Target::Control,
            Route::Unknown { name } => Target::Unknown(name),
            Route::Workspace { name, user } => {
                match workspaces.find(principal, Action::Connect, &name) {
                    Ok(workspace) => {
                        let user = user.unwrap_or_else(|| DEFAULT_USER.to_owned());
                        let environment = Environment::connect(shared.clone(), workspace, user);
                        Target::Workspace(environment)
                    }
                    // Destroyed since the line above looked.
                    Err(_) => Target::Unknown(name),
                }
            }
        };
        self.accepted = Some(Accepted { shared, target });
    }

    /// The environment, for a forward that the client's key allows.
    fn forwarding(&self) -> Option<(&Shared, &Environment)> {
        match &self.accepted {
            Some(Accepted {
                shared,
                target: Target::Workspace(environment),
            }) if shared.principal.permissions.port_forwarding => Some((shared, environment)),
            _ => None,
        }
    }

    async fn forwarding_link(&self) -> Option<Link> {
        let (_, environment) = self.forwarding()?;
        tokio::time::timeout(FORWARD_TIMEOUT, environment.link())
            .await
            .ok()?
            .ok()
    }

    /// Bridges `channel` to what `open` opens in the environment, once that
    /// has answered.
    async fn bridge_direct<F, O>(&self, channel: Channel<Msg>, reply: ChannelOpenHandle, open: F)
    where
        F: FnOnce(Link) -> O + Send + 'static,
        O: Future<Output = Result<Channel<russh::client::Msg>, russh::Error>> + Send,
    {
        let Some((shared, environment)) = self.forwarding() else {
            return reply
                .reject(ChannelOpenFailure::AdministrativelyProhibited)
                .await;
        };
        let Some(slot) = shared.take_slot() else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let side = shared.side(channel, None);
        let environment = environment.clone();
        shared.spawn(async move {
            let _slot = (slot, environment.in_use());
            let link = match environment.link().await {
                Ok(link) => link,
                Err(error) => {
                    let reason = ChannelOpenFailure::Other {
                        code: 2,
                        reason: error.message,
                    };
                    return reply.reject(reason).await;
                }
            };
            match open(link).await {
                Ok(environment) => {
                    reply.accept().await;
                    relay::bridge(side, environment).await;
                }
                Err(error) => reply.reject(forward::failure(&error)).await,
            }
        });
    }
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(
            if self
                .services
                .authenticator
                .worth_a_signature(offer.public_key)
            {
                Auth::Accept
            } else {
                Auth::reject()
            },
        )
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(match self.services.authenticator.key(key.public_key) {
            Some(principal) => self.accept(user, principal, Proof::Key),
            None => Auth::reject(),
        })
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, russh::Error> {
        Ok(
            match self
                .services
                .authenticator
                .certificate(certificate, self.peer)
            {
                Ok(principal) => self.accept(user, Arc::new(principal), Proof::Certificate),
                Err(refused) => {
                    tracing::info!(peer = %self.peer, certificate = certificate.key_id(), %refused, "certificate refused");
                    Auth::reject()
                }
            },
        )
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        self.authenticated.cancel();
        self.start(session.handle());
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(Accepted { shared, target }) = &self.accepted else {
            return Ok(());
        };
        let Some(slot) = shared.take_slot() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let filter = restrict::filter(&shared.principal.permissions);
        let side = shared.side(channel, filter);
        reply.accept().await;
        let (task, target) = (shared.clone(), target.clone());
        shared.spawn(async move {
            let _slot = slot;
            match target {
                Target::Workspace(environment) => session::workspace(side, environment).await,
                // Boxed, since a session in a workspace must not be as large as
                // the largest control command.
                Target::Control => Box::pin(session::control(task, side, None)).await,
                Target::Unknown(name) => Box::pin(session::control(task, side, Some(name))).await,
            }
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(Accepted {
            shared,
            target: Target::Control | Target::Unknown(_),
        }) = &self.accepted
        {
            jump::open(shared, channel, reply, (host.to_owned(), port)).await;
            return Ok(());
        }
        let (host, originator) = (host.to_owned(), originator_address.to_owned());
        self.bridge_direct(channel, reply, move |link| async move {
            link.channel_open_direct_tcpip(host, port, originator, originator_port)
                .await
        })
        .await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let path = path.to_owned();
        self.bridge_direct(channel, reply, move |link| async move {
            link.channel_open_direct_streamlocal(path).await
        })
        .await;
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let closed = self
            .closes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&channel);
        if let Some(closed) = closed {
            closed.cancel();
        }
        Ok(())
    }

    async fn agent_request(
        &mut self,
        _channel: ChannelId,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        // A control command uses it to open a node (`ssh -A vendetta node add`).
        let accepted = self.accepted.as_ref();
        Ok(accepted.is_some_and(|accepted| accepted.shared.principal.permissions.agent_forwarding))
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let Some(link) = self.forwarding_link().await else {
            return Ok(false);
        };
        match link.tcpip_forward(address, *port).await {
            Ok(bound) => {
                if *port == 0 {
                    *port = bound;
                }
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let Some(link) = self.forwarding_link().await else {
            return Ok(false);
        };
        Ok(link.cancel_tcpip_forward(address, port).await.is_ok())
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let Some(link) = self.forwarding_link().await else {
            return Ok(false);
        };
        Ok(link.streamlocal_forward(path).await.is_ok())
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let Some(link) = self.forwarding_link().await else {
            return Ok(false);
        };
        Ok(link.cancel_streamlocal_forward(path).await.is_ok())
    }
}
