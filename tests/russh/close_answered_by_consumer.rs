//! 0004: the server's consumer answers a client's CHANNEL_CLOSE, so that the
//! exit status it has yet to send is not lost. (OpenSSH's ControlMaster closes
//! a channel that is at its end both ways, which may be before the status.)

use anyhow::Result;
use russh::ChannelMsg;

use crate::support::{Connection, read_all};

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_status_sent_after_the_client_closed_arrives() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, server) = connection.channel().await?;
    let (mut client, client_writer) = client.split();
    let (mut server, server_writer) = server.split();
    client_writer.close().await?;
    assert!(matches!(*read_all(&mut server).await?, [ChannelMsg::Close]));
    drop(server);
    connection.ping().await?;
    server_writer.exit_status(7).await?;
    server_writer.close().await?;
    let seen = read_all(&mut client).await?;
    assert!(
        matches!(
            *seen,
            [ChannelMsg::ExitStatus { exit_status: 7 }, ChannelMsg::Close]
        ),
        "{seen:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_the_server_has_dropped_is_closed_for_the_client() -> Result<()> {
    let mut connection = Connection::open().await?;

    // before the client closes it, and after
    let (client, server) = connection.channel().await?;
    drop(server);
    let (mut client, client_writer) = client.split();
    client_writer.close().await?;
    assert!(matches!(*read_all(&mut client).await?, [ChannelMsg::Close]));

    let (client, server) = connection.channel().await?;
    let (mut client, client_writer) = client.split();
    client_writer.close().await?;
    let (mut server, server_writer) = server.split();
    assert!(matches!(*read_all(&mut server).await?, [ChannelMsg::Close]));
    drop(server_writer);
    drop(server);
    assert!(matches!(*read_all(&mut client).await?, [ChannelMsg::Close]));
    Ok(())
}
