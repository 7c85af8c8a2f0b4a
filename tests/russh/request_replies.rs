//! 0014: a handler may answer a forward request later, and later requests are
//! answered after it.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::timeout;

use crate::support::{Connection, no_hang, pattern, read_data};

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_an_answer_holds_up_later_answers_and_nothing_else() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, server) = connection.channel().await?;
    let (mut server, _server_writer) = server.split();

    let work = async {
        tokio::join!(
            connection.client.tcpip_forward("localhost", 0),
            connection.client.tcpip_forward("localhost", 7),
            connection.client.tcpip_forward("localhost", 0),
            connection.client.send_ping(),
        )
    };
    tokio::pin!(work);
    let mut deferred = Vec::new();
    while deferred.len() < 3 {
        tokio::select! {
            _ = &mut work => anyhow::bail!("answered before the handler has"),
            reply = connection.deferred.recv() => deferred.push(reply.context("the server is gone")?),
        }
    }
    let [first, second, third] = deferred.try_into().ok().context("three requests")?;

    // The session serves its channels, and the ping waits for its turn.
    let data = pattern(1000);
    client.data_bytes(data.clone()).await?;
    assert_eq!(read_data(&mut server, data.len()).await?, data);
    third.success(Some(1003));
    second.failure();
    let early = timeout(Duration::from_millis(300), &mut work).await;
    assert!(early.is_err(), "answered before the first");

    first.success(Some(1001));
    let (first, second, third, ping) = no_hang("the replies", work).await?;
    assert_eq!((first?, third?), (1001, 1003));
    assert!(second.is_err());
    ping?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_dropped_is_a_refusal() -> Result<()> {
    let mut connection = Connection::open().await?;
    connection.channel().await?;
    let (forward, ()) = no_hang("the reply", async {
        tokio::join!(connection.client.tcpip_forward("localhost", 0), async {
            drop(connection.deferred.recv().await);
        })
    })
    .await?;
    assert!(forward.is_err());
    connection.ping().await
}
