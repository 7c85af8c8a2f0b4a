//! Channel requests and their replies (RFC 4254 section 5.4).

use russh::{ChannelId, ChannelMsg, server};

/// Whether a message is a request that wants a reply.
#[must_use]
pub fn wants_reply(message: &ChannelMsg) -> bool {
    match message {
        ChannelMsg::RequestPty { want_reply, .. }
        | ChannelMsg::RequestShell { want_reply }
        | ChannelMsg::Exec { want_reply, .. }
        | ChannelMsg::RequestSubsystem { want_reply, .. }
        | ChannelMsg::RequestX11 { want_reply, .. }
        | ChannelMsg::SetEnv { want_reply, .. }
        | ChannelMsg::AgentForward { want_reply }
        | ChannelMsg::OtherRequest { want_reply, .. } => *want_reply,
        _ => false,
    }
}

/// Answers a request, if the client wants an answer; none when it is gone.
pub async fn answer(
    connection: &server::Handle,
    id: ChannelId,
    want_reply: bool,
    granted: bool,
) -> Option<()> {
    match (want_reply, granted) {
        (false, _) => Ok(()),
        (true, true) => connection.channel_success(id).await,
        (true, false) => connection.channel_failure(id).await,
    }
    .ok()
}
