//! 0013: an agent request is answered when its handler does, in its turn.

use anyhow::{Result, bail};
use russh::ChannelMsg;

use crate::support::{Connection, next};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_request_is_not_answered_before_those_that_came_first() -> Result<()> {
    let mut connection = Connection::open().await?;
    let handle = connection.server.handle();
    let (client, server) = connection.channel().await?;
    let id = server.id();
    client.request_pty(true, "vt100", 80, 24, 0, 0, &[]).await?;
    client.agent_forward(true).await?;
    // Both requests have come when this has.
    connection.ping().await?;
    assert!(handle.channel_success(id).await.is_ok());
    assert!(handle.channel_failure(id).await.is_ok());

    let (mut client, _client_writer) = client.split();
    for success in [true, false] {
        match next(&mut client).await? {
            Some(ChannelMsg::Success) if success => {}
            Some(ChannelMsg::Failure) if !success => {}
            other => bail!("{other:?}"),
        }
    }
    Ok(())
}
