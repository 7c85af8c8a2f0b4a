//! What the environment listens on for the client, and channels that it opens
//! towards the client: connections to those ports and sockets, the client's
//! agent, X11.

use russh::server::DeferredReply;
use russh::{Channel, ChannelOpenFailure, server};
use tokio::sync::mpsc;
use vendetta_sshio::relay;

use super::environment::Environment;
use super::shared::Shared;
use crate::access::Permissions;
use crate::agent::opens::{EnvironmentOpen, OpenKind};
use crate::workspace::Activity;

/// Serves what the environment opens until its connection ends.
pub async fn serve(
    shared: Shared,
    activity: Option<Activity>,
    mut opens: mpsc::Receiver<EnvironmentOpen>,
) {
    while let Some(EnvironmentOpen {
        kind,
        channel,
        reply,
    }) = opens.recv().await
    {
        if !permitted(&kind, &shared.principal.permissions) {
            let refusal = ChannelOpenFailure::AdministrativelyProhibited;
            reply.reject(refusal).await;
            continue;
        }
        let Some(slot) = shared.take_slot() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            continue;
        };
        let task = shared.clone();
        let in_use = activity.as_ref().map(Activity::begin);
        shared.spawn(async move {
            let _slot = (slot, in_use);
            match open(&task.client, &kind).await {
                Ok(client) => {
                    let id = client.id();
                    let client = task.side(client, None);
                    reply.accept().await;
                    relay::bridge(client, channel).await;
                    // The client may have closed it before there were events.
                    task.closed(id);
                }
                Err(failure) => reply.reject(failure).await,
            }
        });
    }
}

/// Whether the client's certificate permits what the environment opens; the
/// client may never have asked for it.
fn permitted(kind: &OpenKind, permissions: &Permissions) -> bool {
    match kind {
        OpenKind::ForwardedTcpIp { .. } | OpenKind::ForwardedStreamLocal(_) => {
            permissions.port_forwarding
        }
        OpenKind::Agent => permissions.agent_forwarding,
        OpenKind::X11(..) => permissions.x11_forwarding,
    }
}

/// What a client wants the environment to listen on (RFC 4254 section 7.1,
/// OpenSSH PROTOCOL section 2.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// An address and a port; 0: any.
    Tcp(String, u32),
    /// Not any more.
    NoTcp(String, u32),
    /// A unix socket.
    Unix(String),
    /// Not any more.
    NoUnix(String),
}

/// A forward request, and where its answer goes.
pub type Request = (Wanted, DeferredReply);

/// Has the environment answer the client's forward requests, one after the
/// other, each as soon as there is a link to it.
pub async fn answer(environment: Environment, mut requests: mpsc::Receiver<Request>) {
    while let Some((wanted, reply)) = requests.recv().await {
        let Ok(link) = environment.link().await else {
            reply.failure();
            continue;
        };
        let bound = match wanted {
            Wanted::Tcp(address, port) => {
                let bound = link.tcpip_forward(address, port).await;
                bound.map(|bound| (port == 0).then_some(bound))
            }
            Wanted::NoTcp(address, port) => {
                let cancelled = link.cancel_tcpip_forward(address, port).await;
                cancelled.map(|()| None)
            }
            Wanted::Unix(path) => link.streamlocal_forward(path).await.map(|()| None),
            Wanted::NoUnix(path) => link.cancel_streamlocal_forward(path).await.map(|()| None),
        };
        match bound {
            Ok(port) => reply.success(port),
            Err(_) => reply.failure(),
        }
    }
}

/// Opens the twin of the environment's channel at the client. Not to be
/// cancelled: russh ends a connection whose open is answered to nobody.
async fn open(
    client: &server::Handle,
    kind: &OpenKind,
) -> Result<Channel<server::Msg>, ChannelOpenFailure> {
    let opened = match kind.clone() {
        OpenKind::ForwardedTcpIp {
            connected,
            originator,
        } => {
            client
                .channel_open_forwarded_tcpip(connected.0, connected.1, originator.0, originator.1)
                .await
        }
        OpenKind::ForwardedStreamLocal(path) => {
            client.channel_open_forwarded_streamlocal(path).await
        }
        OpenKind::Agent => client.channel_open_agent().await,
        OpenKind::X11(address, port) => client.channel_open_x11(address, port).await,
    };
    opened.map_err(|error| failure(&error))
}

/// The reason to pass on for an open that failed with `error`.
#[must_use]
pub fn failure(error: &russh::Error) -> ChannelOpenFailure {
    match error {
        russh::Error::ChannelOpenFailure(failure) => failure.clone(),
        _ => ChannelOpenFailure::ConnectFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_opens_nothing_that_the_client_s_certificate_withholds() {
        let all = Permissions::default();
        let tcp = OpenKind::ForwardedTcpIp {
            connected: ("localhost".to_owned(), 80),
            originator: ("localhost".to_owned(), 1),
        };
        let unix = OpenKind::ForwardedStreamLocal("/tmp/socket".to_owned());
        let x11 = OpenKind::X11("localhost".to_owned(), 1);
        let no_ports = Permissions {
            port_forwarding: false,
            ..all.clone()
        };
        let no_agent = Permissions {
            agent_forwarding: false,
            ..all.clone()
        };
        let no_x11 = Permissions {
            x11_forwarding: false,
            ..all.clone()
        };
        for (kind, without) in [
            (tcp, &no_ports),
            (unix, &no_ports),
            (OpenKind::Agent, &no_agent),
            (x11, &no_x11),
        ] {
            for permissions in [&all, &no_ports, &no_agent, &no_x11] {
                let expected = permissions != without;
                assert_eq!(permitted(&kind, permissions), expected, "{kind:?}");
            }
        }
    }
}
