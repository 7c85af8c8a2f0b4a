//! 0001: the receive window re-opens as data is consumed, and the session
//! loop never waits for a consumer.

use anyhow::Result;
use russh::ChannelMsg;

use crate::support::{Connection, client_config, next, no_hang, pattern, read_data, server_config};

const WINDOW: usize = 256 * 1024;

async fn connection() -> Result<Connection> {
    let mut server = server_config()?;
    server.window_size = WINDOW as u32;
    let mut client = client_config();
    client.window_size = WINDOW as u32;
    Connection::open_with(server, client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_nobody_reads_stops_at_its_window_and_holds_up_no_other() -> Result<()> {
    let mut connection = connection().await?;
    let (stalled_client, stalled_server) = connection.channel().await?;
    let (client, server) = connection.channel().await?;
    let sent = pattern(64 * WINDOW);
    let (mut stalled_server, stalled_reply) = stalled_server.split();
    let (mut stalled_client, stalled_request) = stalled_client.split();

    // Both directions of one channel are full.
    let (up, down) = (sent.clone(), sent.clone());
    let up = tokio::spawn(async move { stalled_request.data_bytes(up).await });
    let down = tokio::spawn(async move { stalled_reply.data_bytes(down).await });

    // Another one carries data both ways all the same.
    let (mut client, client_writer) = client.split();
    let (mut server, server_writer) = server.split();
    let expected = pattern(8 * WINDOW);
    let echo = tokio::spawn(async move {
        while let Ok(Some(message)) = next(&mut server).await {
            if let ChannelMsg::Data { data } = message
                && server_writer.data_bytes(data).await.is_err()
            {
                break;
            }
        }
    });
    let copy = expected.clone();
    let writer = tokio::spawn(async move {
        let result = client_writer.data_bytes(copy).await;
        (client_writer, result)
    });
    assert!(read_data(&mut client, expected.len()).await? == expected);
    let (_client_writer, result) = no_hang("the writer", writer).await??;
    result?;
    connection.ping().await?;
    assert!(!up.is_finished() && !down.is_finished());

    // And the full one goes on where it stopped.
    assert!(read_data(&mut stalled_server, sent.len()).await? == sent);
    assert!(read_data(&mut stalled_client, sent.len()).await? == sent);
    no_hang("upload", up).await???;
    no_hang("download", down).await???;
    echo.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn small_packets_that_nobody_reads_are_kept_as_few_messages() -> Result<()> {
    let mut connection = connection().await?;
    let (client, server) = connection.channel().await?;
    const COUNT: usize = 20_000;
    for byte in pattern(COUNT) {
        client.data_bytes(vec![byte]).await?;
    }
    client.eof().await?;
    connection.ping().await?;

    let (mut server, _writer) = server.split();
    let (mut bytes, mut messages) = (Vec::new(), 0);
    while let Some(ChannelMsg::Data { data }) = next(&mut server).await? {
        bytes.extend_from_slice(&data);
        messages += 1;
    }
    assert!(bytes == pattern(COUNT));
    assert!(messages <= 2, "{messages} messages");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_whose_reader_was_dropped_takes_any_amount_of_data() -> Result<()> {
    let mut connection = connection().await?;
    let (client, server) = connection.channel().await?;
    let (reader, writer) = server.split();
    client.data_bytes(pattern(WINDOW)).await?;
    drop(reader);
    no_hang("the upload", client.data_bytes(pattern(16 * WINDOW))).await??;
    drop(writer);
    Ok(())
}
