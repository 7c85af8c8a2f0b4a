//! 0012: channel requests that russh knows nothing about reach the consumer
//! and can be sent, and get the reply that RFC 4254, section 5.4 asks for.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use russh::ChannelMsg;

use crate::support::{Connection, HANG, next, no_hang, openssh, serve_openssh};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_another_type_reaches_the_peers_consumer() -> Result<()> {
    let mut connection = Connection::open().await?;
    let (client, server) = connection.channel().await?;
    let (mut client, client_writer) = client.split();
    let (mut server, server_writer) = server.split();

    server_writer
        .request(false, "eow@openssh.com", &b""[..])
        .await?;
    match next(&mut client).await? {
        Some(ChannelMsg::OtherRequest {
            name,
            want_reply: false,
            data,
        }) if name == "eow@openssh.com" && data.is_empty() => {}
        other => bail!("{other:?}"),
    }

    // RFC 4335; refused by default, but the consumer sees it.
    client_writer
        .request(true, "break", 500_u32.to_be_bytes().to_vec())
        .await?;
    match next(&mut server).await? {
        Some(ChannelMsg::OtherRequest {
            name,
            want_reply: true,
            data,
        }) if name == "break" && *data == 500_u32.to_be_bytes() => {}
        other => bail!("{other:?}"),
    }
    let reply = next(&mut client).await?.context("closed")?;
    assert!(matches!(reply, ChannelMsg::Failure), "{reply:?}");

    // No reply where none is wanted, and no end of the session.
    client_writer
        .request(false, "unknown", &b"\x00\xff"[..])
        .await?;
    server_writer
        .request(true, "unknown", &b"\x00\xff"[..])
        .await?;
    connection.ping().await?;
    server_writer.eof().await?;
    let message = next(&mut client).await?.context("closed")?;
    assert!(matches!(message, ChannelMsg::Eof), "{message:?}");
    Ok(())
}

/// An endless input, of which the remote command takes a part and then says
/// that it wants no more: without that the client sends for ever.
#[tokio::test(flavor = "multi_thread")]
async fn openssh_stops_sending_its_input_when_it_is_told_so() -> Result<()> {
    let port = serve_openssh(|channel, handle| async move {
        let id = channel.id();
        let (mut reader, writer) = channel.split();
        let mut told = false;
        loop {
            let silence = if told { Duration::from_secs(1) } else { HANG };
            match tokio::time::timeout(silence, reader.wait()).await {
                Ok(Some(ChannelMsg::Exec { .. })) => {
                    let _ = handle.channel_success(id).await;
                }
                Ok(Some(ChannelMsg::Data { .. })) if !told => {
                    told = true;
                    let _ = writer.request(false, "eow@openssh.com", &b""[..]).await;
                }
                Ok(Some(ChannelMsg::Close) | None) => break,
                Ok(Some(_)) => {}
                Err(_) => {
                    let _ = writer.exit_status(42).await;
                    let _ = writer.close().await;
                }
            }
        }
    })
    .await?;
    let mut ssh = openssh(port);
    ssh.arg("command")
        .stdin(Stdio::from(std::fs::File::open("/dev/zero")?));
    let output = no_hang("ssh", ssh.output()).await??;
    assert_eq!(output.status.code(), Some(42), "{output:?}");
    Ok(())
}
