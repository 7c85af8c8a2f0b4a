//! 0007: while a rekey that this side has begun is pending, each channel may
//! have a window full of data in flight.

use anyhow::Result;
use russh::Limits;

use crate::support::{Connection, client_config, no_hang, pattern, read_data, server_config};

#[tokio::test(flavor = "multi_thread")]
async fn full_windows_of_many_channels_in_flight_do_not_end_a_session_in_a_rekey() -> Result<()> {
    let mut server = server_config()?;
    server.limits = Limits {
        rekey_read_limit: 64 * 1024,
        ..Limits::default()
    };
    let mut connection = Connection::open_with(server, client_config()).await?;
    let mut channels = Vec::new();
    for _ in 0..8 {
        channels.push(connection.channel().await?);
    }
    // The client does not see that the server wants to rekey before it has
    // sent all of this, which is within its windows.
    connection.to_client.pause();
    let bytes = pattern(3 << 19);
    for (client, _) in &channels {
        no_hang("sending", client.data_bytes(bytes.clone())).await??;
    }
    let mut readers = Vec::new();
    for (client, server) in channels {
        let (mut reader, writer) = server.split();
        assert!(read_data(&mut reader, bytes.len()).await? == bytes);
        readers.push((client, reader, writer));
    }
    connection.to_client.resume();
    connection.ping().await
}
