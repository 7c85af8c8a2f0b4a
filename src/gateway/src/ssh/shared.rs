//! What the tasks of one client connection share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::server::{self, Msg};
use russh::{Channel, ChannelId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use vendetta_sshio::control::{Control, Events, control};
use vendetta_sshio::relay::{ClientSide, RequestFilter};

use super::Services;
use super::standing::Answering;
use crate::access::Principal;

/// A connection whose client has proved who it is; clones share it.
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
    /// Of all channels that the client has not closed.
    controls: Arc<Mutex<HashMap<ChannelId, Control>>>,
    slots: Arc<Semaphore>,
    end: CancellationToken,
}

impl Shared {
    /// The connection `client` of `principal` to the gateway's address `reached`; its tasks end with `end`.
    #[must_use]
    pub fn new(
        services: Arc<Services>,
        client: server::Handle,
        principal: Arc<Principal>,
        reached: Option<SocketAddr>,
        end: CancellationToken,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(services.channels_per_connection));
        Self {
            services,
            client,
            principal,
            reached,
            answering: Answering::default(),
            controls: Arc::default(),
            slots,
            end,
        }
    }

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

    /// The client's side of a bridge over `channel`, for which [`Shared::events`] holds, too.
    #[must_use]
    pub fn side(&self, channel: Channel<Msg>, requests: Option<RequestFilter>) -> ClientSide {
        let events = self.events(channel.id());
        ClientSide {
            channel,
            connection: self.client.clone(),
            events,
            requests,
            farewell: None,
        }
    }

    /// What the client sends on channel `id` that must overtake its data. To be
    /// called when it is certain that the client will close the channel, but
    /// before it can: when it is about to be accepted.
    #[must_use]
    pub fn events(&self, id: ChannelId) -> Events {
        let (control, events) = control();
        self.controls().insert(id, control);
        events
    }

    /// Tells whoever serves channel `id` what the client has sent.
    pub fn tell(&self, id: ChannelId, tell: impl FnOnce(&Control)) {
        if let Some(control) = self.controls().get(&id) {
            tell(control);
        }
    }

    /// The client has closed channel `id`, or nobody serves it any more.
    pub fn closed(&self, id: ChannelId) {
        if let Some(control) = self.controls().remove(&id) {
            control.close();
        }
    }

    fn controls(&self) -> MutexGuard<'_, HashMap<ChannelId, Control>> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
