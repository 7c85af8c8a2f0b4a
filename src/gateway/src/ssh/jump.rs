//! ProxyJump: `ssh -J vendetta WORKSPACE`. What a control login connects to port
//! 22 of a workspace is a pipe to its agent, which proves its own host key and
//! wants the user's own key: the gateway sees nothing of what passes.
//!
//! The name is WORKSPACE or WORKSPACE.ANY-SUFFIX, so that clients can have a
//! pattern for all of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelOpenFailure};
use serde_json::json;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vendetta_proto::name::RESERVED;
use vendetta_sshio::splice::splice;

use super::reach::reach;
use super::session::no_workspace;
use super::shared::Shared;
use crate::access::Action;
use crate::control::local_port;
use crate::store::AuditEvent;
use crate::workspace::Pipe;

/// SSH_OPEN_ADMINISTRATIVELY_PROHIBITED (RFC 4254 section 5.1).
const PROHIBITED: u32 = 1;
/// SSH_OPEN_CONNECT_FAILED.
const CONNECT_FAILED: u32 = 2;

/// The port of an agent, which is that of any SSH server.
const PORT: u32 = 22;

/// How long a client may take to close a pipe whose other end is gone, and an
/// agent to take what came before the client closed it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The workspace that `host`:`port` names, whether there is one or not.
///
/// # Errors
/// What is forwarded instead, when it is no agent's port.
pub fn destination(host: &str, port: u32) -> Result<String, String> {
    // It never has a dot itself.
    let name = host.split('.').next().unwrap_or_default();
    let name = name.to_ascii_lowercase();
    if port == PORT {
        return Ok(name);
    }
    let local = u16::try_from(port).map_or(port, |port| local_port(port).into());
    Err(format!(
        "the gateway forwards to port {PORT} of a workspace only; to reach port {port} inside one: \
         ssh -L {local}:localhost:{port} WORKSPACE@{RESERVED}"
    ))
}

/// Opens what the control login's `channel` is to be connected to, and joins them to the end.
pub async fn open(
    shared: &Shared,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    (host, port): (String, u32),
) {
    if !shared.principal.permissions.port_forwarding {
        let reason = "the certificate does not permit port forwarding".to_owned();
        return refuse(reply, PROHIBITED, reason).await;
    }
    let name = match destination(&host, port) {
        Ok(name) => name,
        Err(reason) => return refuse(reply, PROHIBITED, reason).await,
    };
    let Some(slot) = shared.take_slot() else {
        return reply.reject(ChannelOpenFailure::ResourceShortage).await;
    };
    let workspaces = &shared.services.workspaces;
    let Ok(workspace) = workspaces.find(&shared.principal, Action::Connect, &name) else {
        return refuse(reply, CONNECT_FAILED, no_workspace(shared, &name)).await;
    };
    // None: it was destroyed since it was found.
    let activity = workspaces.activity(&workspace).ok();
    let (task, workspaces) = (shared.clone(), workspaces.clone());
    shared.spawn(async move {
        let _slot = (slot, activity.as_ref().map(|activity| activity.begin()));
        let connect = |target: Arc<_>| {
            let (workspaces, workspace) = (&workspaces, &workspace);
            async move { workspaces.pipe(workspace, &target).await }
        };
        // There is nowhere to show progress: the client waits for an SSH server.
        // Boxed, so that its many states are gone while the pipe lasts.
        let reached = Box::pin(reach(&workspaces, &workspace, drop, connect));
        let pipe = match reached.await {
            Ok(pipe) => pipe,
            Err(error) => return refuse(reply, CONNECT_FAILED, error.message).await,
        };
        let principal = &task.principal;
        task.services.store.audit(AuditEvent {
            user: Some(principal.user.clone()),
            event: "jump",
            detail: json!({ "workspace": workspace.name, "key": principal.key_fingerprint }),
        });
        let closed = task.events(channel.id()).closed;
        reply.accept().await;
        workspaces.attached(&workspace);
        let Pipe { stream, admitted } = pipe;
        let (agent, to_agent) = tokio::io::split(stream);
        let hung_up = CancellationToken::new();
        let from_agent = Noticing {
            inner: agent,
            end: hung_up.clone(),
        };
        let given_up = async {
            tokio::select! {
                () = hung_up.cancelled() => {}
                () = closed.cancelled() => {}
                // A client that takes nothing hides the end of what it was sent.
                () = admitted.ended() => {}
            }
            sleep(PATIENCE).await;
        };
        splice(from_agent, to_agent, channel, given_up).await;
    });
}

/// Refuses with a reason, which clients show on one line.
async fn refuse(reply: ChannelOpenHandle, code: u32, reason: String) {
    let reason = reason.replace('\n', "; ");
    reply
        .reject(ChannelOpenFailure::Other { code, reason })
        .await;
}

/// Tells when there is nothing more to read.
struct Noticing<R> {
    inner: R,
    end: CancellationToken,
}

impl<R: AsyncRead + Unpin> AsyncRead for Noticing<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if let Poll::Ready(result) = &read
            && (result.is_err() || buffer.filled().len() == before)
        {
            self.end.cancel();
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_workspace_may_have_any_suffix() {
        for host in [
            "my-project",
            "My-Project",
            "my-project.vendetta",
            "my-project.a.b",
            "my-project.",
        ] {
            assert_eq!(destination(host, 22).as_deref(), Ok("my-project"), "{host}");
        }
    }

    #[test]
    fn another_port_is_refused_with_what_leads_to_it() {
        for (port, forward) in [(8080, "8080:localhost:8080"), (80, "8080:localhost:80")] {
            let reason = destination("my-project", port).unwrap_err();
            let line = format!("ssh -L {forward} WORKSPACE@vendetta");
            assert!(reason.contains(&line), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn no_host_is_a_name_with_a_dot_or_capitals(host in ".*") {
            let name = destination(&host, 22).unwrap();
            prop_assert!(!name.contains('.') && !name.contains(|c: char| c.is_ascii_uppercase()));
        }
    }
}
