//! 0011: an open failure arrives with its code and its text.

use anyhow::{Result, bail};
use russh::ChannelOpenFailure;

use crate::support::{Connection, no_hang};

#[tokio::test(flavor = "multi_thread")]
async fn the_client_gets_the_code_and_the_text_of_an_open_failure() -> Result<()> {
    let mut connection = Connection::open().await?;
    for (failure, code, text) in [
        (
            ChannelOpenFailure::Other {
                code: 2,
                reason: "no such host: nowhere".to_owned(),
            },
            2,
            "no such host: nowhere",
        ),
        (ChannelOpenFailure::ResourceShortage, 4, "Resource shortage"),
    ] {
        let Connection {
            client,
            opened_by_client,
            ..
        } = &mut connection;
        let (result, ()) = no_hang("the open", async {
            tokio::join!(
                client.channel_open_direct_tcpip("nowhere", 80, "localhost", 1),
                async {
                    if let Some(opening) = opened_by_client.recv().await {
                        opening.reply.reject(failure.clone()).await;
                    }
                }
            )
        })
        .await?;
        let Err(russh::Error::ChannelOpenFailure(received)) = result else {
            bail!("{result:?}");
        };
        assert_eq!(received.code(), code);
        assert_eq!(received.description(), text);
        // So that a relay passes on exactly what it got.
        assert_eq!(received, failure);
    }
    Ok(())
}
