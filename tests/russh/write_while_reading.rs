//! 0002: the session loop reads on while a write waits for the transport.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::support::{
    Connection, Direction, client_config, no_hang, pattern, read_data, server_config,
};

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_send_at_full_speed_at_once() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, server) = connection.channel().await?;
    let (mut client_reader, client_writer) = client.split();
    let (mut server_reader, server_writer) = server.split();
    let bytes = pattern(32 << 20);
    let (up, down) = (bytes.clone(), bytes.clone());
    tokio::spawn(async move { client_writer.data_bytes(up).await.map(|()| client_writer) });
    tokio::spawn(async move { server_writer.data_bytes(down).await.map(|()| server_writer) });
    let (up, down) = tokio::join!(
        read_data(&mut server_reader, bytes.len()),
        read_data(&mut client_reader, bytes.len()),
    );
    assert!(up? == bytes && down? == bytes);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_peer_that_does_not_read_is_bounded() -> Result<()> {
    let mut client = client_config();
    client.window_size = 64 << 20;
    let mut connection = Connection::open_with(server_config()?, client).await?;
    let (client, server) = connection.channel().await?;
    connection.to_client.pause();

    let sent = Arc::new(AtomicUsize::new(0));
    let (counter, chunk) = (sent.clone(), pattern(32 * 1024));
    let (mut server_reader, server_writer) = server.split();
    let writer = tokio::spawn(async move {
        for _ in 0..1024 {
            server_writer.data_bytes(chunk.clone()).await?;
            counter.fetch_add(chunk.len(), Ordering::AcqRel);
        }
        Ok::<_, russh::Error>(server_writer)
    });
    // Meanwhile the server still reads.
    client.data_bytes(pattern(1 << 20)).await?;
    assert!(read_data(&mut server_reader, 1 << 20).await? == pattern(1 << 20));
    assert!(!writer.is_finished());
    let waiting = sent.load(Ordering::Acquire);
    assert!(waiting < 1 << 20, "{waiting} bytes wait");

    connection.to_client.resume();
    let (mut client_reader, _client_writer) = client.split();
    assert_eq!(
        read_data(&mut client_reader, 32 << 20).await?.len(),
        32 << 20
    );
    no_hang("the writer", writer).await???;
    Ok(())
}

/// Neither needs a word from the other side to go on sending.
#[tokio::test(flavor = "multi_thread")]
async fn a_transport_that_takes_everything_at_once_stalls_nobody() -> Result<()> {
    const SIZE: usize = 32 << 20;
    let (mut server, mut client) = (server_config()?, client_config());
    server.window_size = 2 * SIZE as u32;
    client.window_size = 2 * SIZE as u32;
    let mut connection = Connection::open_over(4 << 20, server, client).await?;
    let (client, server) = connection.channel().await?;
    // Nobody reads the channels: no window adjustment wakes who sends.
    no_hang("the client", client.data_bytes(pattern(SIZE))).await??;
    no_hang("the server", server.data_bytes(pattern(SIZE))).await??;
    no_hang("what was sent does not arrive", async {
        let arrived = |direction: &Direction| direction.bytes() >= SIZE as u64;
        while !arrived(&connection.to_server) || !arrived(&connection.to_client) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
