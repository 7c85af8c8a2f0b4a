//! 0005: a writer that waits for window fails when the channel is closed by
//! the peer or the connection ends, instead of waiting for ever.

use anyhow::Result;
use russh::Disconnect;
use tokio::io::AsyncWriteExt;

use crate::support::{Connection, no_hang};

const MORE_THAN_A_WINDOW: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn writers_fail_when_the_peer_closes_the_channel() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, server) = connection.channel().await?;
    let (_server_reader, server_writer) = server.split();
    let mut stream = server_writer.make_writer();
    let stream = tokio::spawn(async move { stream.write_all(&vec![0; MORE_THAN_A_WINDOW]).await });
    let bytes = tokio::spawn(async move {
        let result = server_writer.data_bytes(vec![0; MORE_THAN_A_WINDOW]).await;
        (server_writer, result)
    });
    connection.ping().await?;
    client.close().await?;
    assert!(no_hang("the stream", stream).await??.is_err());
    let (_writer, result) = no_hang("the writer", bytes).await??;
    assert!(result.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_fail_when_the_connection_ends() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, server) = connection.channel().await?;
    let (_server_reader, server_writer) = server.split();
    let server =
        tokio::spawn(async move { server_writer.data_bytes(vec![0; MORE_THAN_A_WINDOW]).await });
    let (_client_reader, client_writer) = client.split();
    let client =
        tokio::spawn(async move { client_writer.data_bytes(vec![0; MORE_THAN_A_WINDOW]).await });
    connection.ping().await?;
    connection
        .client
        .disconnect(Disconnect::ByApplication, "bye", "en")
        .await?;
    assert!(no_hang("the server's writer", server).await??.is_err());
    assert!(no_hang("the client's writer", client).await??.is_err());
    Ok(())
}
