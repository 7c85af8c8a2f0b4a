//! 0009: giving up on opening a channel does no harm: a failure that comes
//! later does not end the session, and a channel that comes later is closed.

use anyhow::{Context, Result};
use russh::{ChannelMsg, ChannelOpenFailure};

use crate::support::{Connection, no_hang, read_all};

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_to_a_server_that_gave_up_opening_a_channel_is_harmless() -> Result<()> {
    let mut connection = Connection::open().await?;
    let handle = connection.server.handle();
    for accept in [false, true] {
        let opener = handle.clone();
        let opening = tokio::spawn(async move {
            opener
                .channel_open_forwarded_tcpip("localhost", 80, "localhost", 1)
                .await
                .map(|channel| channel.id())
        });
        let (channel, reply) = connection.next_opening_of_server().await?;
        opening.abort();
        assert!(opening.await.is_err_and(|e| e.is_cancelled()));
        if accept {
            reply.accept().await;
            let (mut reader, writer) = channel.split();
            assert!(matches!(*read_all(&mut reader).await?, [ChannelMsg::Close]));
            drop(writer);
        } else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
        connection.ping().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_to_a_client_that_gave_up_opening_a_channel_is_harmless() -> Result<()> {
    let mut connection = Connection::open().await?;
    for accept in [false, true] {
        let opening = {
            let open = connection.client.channel_open_session();
            tokio::pin!(open);
            // Sends the request, and then gives up.
            assert!(futures_poll(open.as_mut()).await.is_none());
            no_hang("a channel open", connection.opened_by_client.recv())
                .await?
                .context("the server is gone")?
        };
        if accept {
            opening.reply.accept().await;
            let (mut reader, writer) = opening.channel.split();
            assert!(matches!(*read_all(&mut reader).await?, [ChannelMsg::Close]));
            drop(writer);
        } else {
            opening
                .reply
                .reject(ChannelOpenFailure::ConnectFailed)
                .await;
        }
        connection.ping().await?;
    }
    Ok(())
}

/// Polls a future once.
async fn futures_poll<T>(
    mut future: std::pin::Pin<&mut impl std::future::Future<Output = T>>,
) -> Option<T> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_reaches_the_opener_who_waits() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (result, ()) = no_hang("the open", async {
        let client = &connection.client;
        let openings = &mut connection.opened_by_client;
        tokio::join!(client.channel_open_session(), async {
            if let Some(opening) = openings.recv().await {
                opening
                    .reply
                    .reject(ChannelOpenFailure::ResourceShortage)
                    .await;
            }
        })
    })
    .await?;
    assert!(matches!(
        result,
        Err(russh::Error::ChannelOpenFailure(
            ChannelOpenFailure::ResourceShortage
        ))
    ));
    connection.ping().await
}
