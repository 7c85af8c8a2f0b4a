//! Channels that the environment opens towards the client: connections to
//! ports and sockets it listens on for the client, the client's agent, X11.

use russh::{Channel, ChannelOpenFailure, server};
use tokio::sync::mpsc;
use vendetta_sshio::relay;

use super::handler::Shared;
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
                    reply.accept().await;
                    let client = task.side(client, None);
                    relay::bridge(client, channel).await;
                }
                Err(failure) => reply.reject(failure).await,
            }
        });
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
