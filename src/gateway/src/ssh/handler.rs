//! The russh callbacks of one client connection. No policy lives here: the key
//! is judged by [`super::auth`], the login name by [`super::route`], and each
//! channel is served by a task of its own, so that nothing here waits.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use russh::keys::Certificate;
use russh::server::{
    self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Sig};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vendetta_proto::agent::DEFAULT_USER;
use vendetta_sshio::control::{Control, END_OF_WRITE, Size};
use vendetta_sshio::relay;

use super::environment::{Environment, Link};
use super::forward::{self, Wanted};
use super::route::{Route, route};
use super::shared::Shared;
use super::standing::{self, Proof};
use super::{Services, jump, restrict, session};
use crate::access::{Action, Principal};
use crate::store::AuditEvent;

/// Forward requests that the environment has not answered yet; more are refused.
const PENDING_REQUESTS: usize = 256;

/// One client connection.
pub struct Connection {
    services: Arc<Services>,
    peer: SocketAddr,
    reached: Option<SocketAddr>,
    authenticated: CancellationToken,
    end: CancellationToken,
    proved: Option<(Arc<Principal>, Proof)>,
    login: String,
    /// Session channels that the client has not closed.
    sessions: HashSet<ChannelId>,
    accepted: Option<Accepted>,
}

/// What there is once the client has proved who it is.
struct Accepted {
    shared: Shared,
    target: Target,
    /// Takes forward requests; of a workspace's environment.
    requests: mpsc::Sender<forward::Request>,
}

/// Where the login name led.
#[derive(Clone)]
enum Target {
    Workspace(Environment),
    Control,
    Unknown(String),
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
            sessions: HashSet::new(),
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
        let services = self.services.clone();
        let shared = Shared::new(services, client, principal, self.reached, self.end.clone());
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
        let (requests, requested) = mpsc::channel(PENDING_REQUESTS);
        let target = match route {
            Route::Control => Target::Control,
            Route::Unknown { name } => Target::Unknown(name),
            Route::Workspace { name, user } => {
                match workspaces.find(principal, Action::Connect, &name) {
                    Ok(workspace) => {
                        let user = user.unwrap_or_else(|| DEFAULT_USER.to_owned());
                        let environment = Environment::connect(shared.clone(), workspace, user);
                        shared.spawn(forward::answer(environment.clone(), requested));
                        Target::Workspace(environment)
                    }
                    // Destroyed since the line above looked.
                    Err(_) => Target::Unknown(name),
                }
            }
        };
        self.accepted = Some(Accepted {
            shared,
            target,
            requests,
        });
    }

    /// The task of a session, or the environment, answers a request in its turn,
    /// after those before it. In a jump nobody would.
    fn leave_to_task(&self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        let bridged = matches!(
            &self.accepted,
            Some(Accepted {
                target: Target::Workspace(_),
                ..
            })
        );
        if bridged || self.sessions.contains(&channel) {
            return Ok(());
        }
        session.channel_failure(channel)
    }

    /// The environment, for a forward that the client's key allows.
    fn forwarding(&self) -> Option<(&Shared, &Environment)> {
        match &self.accepted {
            Some(Accepted {
                shared,
                target: Target::Workspace(environment),
                ..
            }) if shared.principal.permissions.port_forwarding => Some((shared, environment)),
            _ => None,
        }
    }

    /// Passes a forward request on, which is answered when the environment
    /// has; false when it is refused at once.
    fn request(&self, wanted: Wanted, session: &mut Session) -> bool {
        let permitted = self.forwarding().is_some();
        let Some(accepted) = self.accepted.as_ref().filter(|_| permitted) else {
            return false;
        };
        let Ok(place) = accepted.requests.try_reserve() else {
            return false;
        };
        place.send((wanted, session.defer_request_reply()));
        true
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
        let (shared, environment) = (shared.clone(), environment.clone());
        shared.clone().spawn(async move {
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
                    let side = shared.side(channel, None);
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
        let Some(Accepted { shared, target, .. }) = &self.accepted else {
            return Ok(());
        };
        let Some(slot) = shared.take_slot() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let filter = restrict::filter(&shared.principal.permissions);
        self.sessions.insert(channel.id());
        let side = shared.side(channel, Some(filter));
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
            ..
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
        self.sessions.remove(&channel);
        if let Some(Accepted { shared, .. }) = &self.accepted {
            shared.closed(channel);
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(Accepted { shared, .. }) = &self.accepted {
            shared.tell(channel, |control| control.signal(signal));
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
    ) -> Result<(), russh::Error> {
        let size = Size {
            columns,
            rows,
            width,
            height,
        };
        if let Some(Accepted { shared, .. }) = &self.accepted {
            shared.tell(channel, |control| control.resize(size));
        }
        Ok(())
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.leave_to_task(channel, session)
    }

    async fn other_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        _data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if name == END_OF_WRITE
            && let Some(Accepted { shared, .. }) = &self.accepted
        {
            shared.tell(channel, Control::end_of_write);
        }
        self.leave_to_task(channel, session)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.request(Wanted::Tcp(address.to_owned(), *port), session))
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.request(Wanted::NoTcp(address.to_owned(), port), session))
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.request(Wanted::Unix(path.to_owned()), session))
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.request(Wanted::NoUnix(path.to_owned()), session))
    }
}
