//! 0010: requests that nobody takes do not pile up without bound.

use anyhow::Result;

use crate::support::{Connection, no_hang};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_floods_a_channel_with_requests_is_disconnected() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, server) = connection.channel().await?;
    let flood = tokio::spawn(async move {
        for _ in 0..200_000 {
            client.set_env(false, "FLOOD", "x".repeat(64)).await?;
        }
        Ok::<_, russh::Error>(client)
    });
    let ended = no_hang("the server's session", &mut connection.server).await?;
    assert!(matches!(ended, Err(russh::Error::Pending)), "{ended:?}");
    assert!(no_hang("the flood", flood).await??.is_err());
    drop(server);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_may_wait() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, _server) = connection.channel().await?;
    for i in 0..1000 {
        client.set_env(false, "NUMBER", i.to_string()).await?;
    }
    connection.ping().await
}
