//! 0006: each request that wants a reply gets its own, also when several are
//! pending, and the consumer can see which ones want one.

use anyhow::{Context, Result, bail};
use russh::ChannelMsg;

use crate::support::{Connection, next};

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_their_order() -> Result<()> {
    let mut connection = Connection::open().await?;
    let handle = connection.server.handle();
    let (client, server) = connection.channel().await?;
    let id = server.id();
    let (mut server, _server_writer) = server.split();
    client.request_pty(true, "vt100", 80, 24, 0, 0, &[]).await?;
    // The handler says success to this one on the spot, as it may: that is
    // not to be taken for the answer to the pty request.
    client.set_env(false, "LANG", "C").await?;
    client.request_shell(false).await?;
    client.exec(true, "true").await?;
    client.request_subsystem(true, "sftp").await?;

    let mut wanted = Vec::new();
    while wanted.len() < 5 {
        wanted.push(match next(&mut server).await?.context("closed")? {
            ChannelMsg::RequestPty { want_reply, .. } => ("pty", want_reply),
            ChannelMsg::SetEnv { want_reply, .. } => ("env", want_reply),
            ChannelMsg::RequestShell { want_reply } => ("shell", want_reply),
            ChannelMsg::Exec { want_reply, .. } => ("exec", want_reply),
            ChannelMsg::RequestSubsystem { want_reply, .. } => ("subsystem", want_reply),
            other => bail!("{other:?}"),
        });
    }
    assert_eq!(
        wanted,
        [
            ("pty", true),
            ("env", false),
            ("shell", false),
            ("exec", true),
            ("subsystem", true)
        ]
    );
    for success in [false, true, false, /* too many: */ true, false] {
        let sent = if success {
            handle.channel_success(id).await
        } else {
            handle.channel_failure(id).await
        };
        assert!(sent.is_ok());
    }
    assert!(handle.eof(id).await.is_ok());

    let (mut client, _client_writer) = client.split();
    let mut replies = Vec::new();
    loop {
        replies.push(match next(&mut client).await? {
            Some(ChannelMsg::Success) => true,
            Some(ChannelMsg::Failure) => false,
            Some(ChannelMsg::Eof) => break,
            other => bail!("{other:?}"),
        });
    }
    assert_eq!(replies, [false, true, false]);
    Ok(())
}
