//! 0008: the client answers a global request only if a reply is wanted.

use anyhow::Result;

use crate::support::{Connection, SEND_GLOBAL_REQUEST};

#[tokio::test(flavor = "multi_thread")]
async fn a_global_request_that_wants_no_reply_gets_none() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, _server) = connection.channel().await?;
    let mut sent = Vec::new();
    for name in ["MAKES_NO_GLOBAL_REQ", SEND_GLOBAL_REQUEST] {
        assert_eq!(name.len(), SEND_GLOBAL_REQUEST.len());
        connection.ping().await?;
        let before = connection.to_server.bytes();
        client.set_env(false, name, "").await?;
        // A reply would be sent ahead of the second ping.
        connection.ping().await?;
        connection.ping().await?;
        sent.push(connection.to_server.bytes() - before);
    }
    let (without, with) = (sent.first(), sent.last());
    assert_eq!(without, with, "bytes that the client sent");
    Ok(())
}
