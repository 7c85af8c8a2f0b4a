//! 0003: a channel that this side closed first lives until the peer has
//! closed it as well, and ends then.

use anyhow::Result;
use russh::ChannelMsg;

use crate::support::{Connection, read_all};

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_the_server_closes_ends_for_both() -> Result<()> {
    let mut connection = Connection::open().await?;
    for _ in 0..50 {
        let (client, server) = connection.channel().await?;
        let (mut client, _client_writer) = client.split();
        let (mut server, server_writer) = server.split();
        server_writer.exit_status(3).await?;
        server_writer.close().await?;
        let seen = read_all(&mut client).await?;
        assert!(
            matches!(
                *seen,
                [ChannelMsg::ExitStatus { exit_status: 3 }, ChannelMsg::Close]
            ),
            "{seen:?}"
        );
        let seen = read_all(&mut server).await?;
        assert!(matches!(*seen, [ChannelMsg::Close]), "{seen:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_the_client_closes_ends_for_both() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, server) = connection.channel().await?;
    let (mut client, client_writer) = client.split();
    let (mut server, server_writer) = server.split();
    client_writer.close().await?;
    // Nothing may follow a close.
    client_writer.data_bytes(&b"late"[..]).await?;
    client_writer.eof().await?;
    client_writer.close().await?;
    let seen = read_all(&mut server).await?;
    assert!(matches!(*seen, [ChannelMsg::Close]), "{seen:?}");
    server_writer.close().await.ok();
    let seen = read_all(&mut client).await?;
    assert!(matches!(*seen, [ChannelMsg::Close]), "{seen:?}");
    connection.ping().await
}
