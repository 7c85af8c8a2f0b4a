//! Requests and replies of the protocol, one by one: replies carry nothing but
//! their order (RFC 4254 sections 4 and 5.4). OpenSSH's client sends little of
//! this, so most tests have a client of their own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use russh::client::{self, Handle};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key};
use russh::{Channel, ChannelMsg, ChannelReadHalf, Sig};
use tokio::time::timeout;
use vendetta_tests::{Gateway, PATIENCE, TOOLS};

const MIB: usize = 1024 * 1024;

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// A connection of the admin to `login`.
async fn connect(gateway: &Gateway, login: &str) -> Result<Handle<Trusting>> {
    let config = Arc::new(client::Config::default());
    let mut handle = client::connect(config, gateway.address(), Trusting).await?;
    let key = Arc::new(load_secret_key(gateway.admin().key(), None)?);
    let key = PrivateKeyWithHashAlg::new(key, None);
    let authenticated = handle.authenticate_publickey(login, key).await?;
    anyhow::ensure!(authenticated.success(), "not let in");
    Ok(handle)
}

fn in_time<T>(what: &str, work: impl Future<Output = Result<T>>) -> T {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let result = runtime.block_on(async { timeout(PATIENCE, work).await });
    let result = result.unwrap_or_else(|_| panic!("hangs: {what}"));
    result.unwrap_or_else(|error| panic!("{what}: {error:#}"))
}

/// The next `count` replies.
async fn replies(channel: &mut ChannelReadHalf, count: usize) -> Result<Vec<bool>> {
    let mut replies = Vec::new();
    while replies.len() < count {
        match channel.wait().await.context("the channel ended")? {
            ChannelMsg::Success => replies.push(true),
            ChannelMsg::Failure => replies.push(false),
            ChannelMsg::Close => bail!("closed after {replies:?}"),
            _ => {}
        }
    }
    Ok(replies)
}

/// Sends what is known and what is not without waiting, each wanting a reply.
async fn pipelined(channel: Channel<client::Msg>) -> Result<Vec<bool>> {
    channel
        .request(true, "first@example.org", &b"data"[..])
        .await?;
    channel
        .request_pty(true, "vt100", 80, 24, 0, 0, &[])
        .await?;
    channel
        .request(true, "second@example.org", &b""[..])
        .await?;
    channel.agent_forward(true).await?;
    channel.set_env(true, "LD_PRELOAD", "evil.so").await?;
    channel.set_env(true, "LANG", "C").await?;
    // Neither wants a reply, nor gets one.
    channel
        .request(false, "third@example.org", &b""[..])
        .await?;
    channel.set_env(false, "LC_ALL", "C").await?;
    channel.exec(true, "whoami").await?;
    let (mut read, _write) = channel.split();
    replies(&mut read, 7).await
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let gateway = Gateway::with_workspace();
    for login in ["ws", "vendetta"] {
        let answered = in_time("pipelined requests", async {
            let connection = connect(&gateway, login).await?;
            pipelined(connection.channel_open_session().await?).await
        });
        let expected = [false, true, false, true, false, true, true];
        assert_eq!(answered, expected, "as {login}");
    }
}

#[test]
fn an_agent_that_cannot_be_forwarded_is_refused() {
    let gateway = Gateway::docker();
    let config = format!("provider: docker\nuser: dev\ndocker: {{image: \"{TOOLS}\"}}\n");
    gateway.create("ws", &config);
    let accepted = || {
        in_time("an agent request", async {
            let connection = connect(&gateway, "ws").await?;
            let channel = connection.channel_open_session().await?;
            channel.agent_forward(true).await?;
            let (mut read, _write) = channel.split();
            replies(&mut read, 1).await
        })
    };
    assert_eq!(accepted(), [true]);
    let container = gateway.container().expect("a container");
    let nowhere = "rm -r /tmp/vendetta-agent-* && chmod 755 /tmp /run /dev/shm";
    let nowhere = ["exec", "-u", "0", &container, "sh", "-c", nowhere];
    gateway.engine().docker(&nowhere).ok();
    assert_eq!(accepted(), [false]);
}

#[test]
fn requests_that_come_too_late_are_refused() {
    let gateway = Gateway::with_workspace();
    for (login, command) in [("ws", "cat"), ("vendetta", "workspace ports ws --follow")] {
        let answered = in_time("late requests", async {
            let connection = connect(&gateway, login).await?;
            let channel = connection.channel_open_session().await?;
            channel.exec(true, command).await?;
            channel.exec(true, "true").await?;
            channel
                .request_pty(true, "vt100", 80, 24, 0, 0, &[])
                .await?;
            channel.agent_forward(true).await?;
            channel.request(true, "late@example.org", &b""[..]).await?;
            let (mut read, _write) = channel.split();
            replies(&mut read, 5).await
        });
        assert_eq!(answered, [true, false, false, false, false], "as {login}");
    }
}

#[test]
fn an_unknown_request_on_a_forwarded_connection_is_refused() {
    let gateway = Gateway::with_workspace();
    gateway.echo_server("ws", "tcp 127.0.0.1 7000");
    for (login, host, port) in [("ws", "127.0.0.1", 7000), ("vendetta", "ws", 22)] {
        let answered = in_time("a request on a forward", async {
            let connection = connect(&gateway, login).await?;
            let opened = connection.channel_open_direct_tcpip(host, port, "127.0.0.1", 1);
            let channel = opened.await?;
            channel.request(true, "what@example.org", &b""[..]).await?;
            channel.agent_forward(true).await?;
            let (mut read, _write) = channel.split();
            replies(&mut read, 2).await
        });
        assert_eq!(answered, [false, false], "as {login}");
    }
}

/// Waits until the channel's output has `text`.
async fn expect(channel: &mut ChannelReadHalf, text: &str) -> Result<()> {
    let mut output = Vec::new();
    while !String::from_utf8_lossy(&output).contains(text) {
        match channel.wait().await {
            Some(ChannelMsg::Data { data }) => output.extend_from_slice(&data),
            Some(ChannelMsg::Close) | None => {
                bail!("no {text:?} in {:?}", String::from_utf8_lossy(&output))
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[test]
fn signals_and_sizes_reach_a_command_that_takes_no_input() {
    let gateway = Gateway::with_workspace();
    in_time("signals and sizes", async {
        let connection = connect(&gateway, "ws").await?;
        let channel = connection.channel_open_session().await?;
        channel
            .request_pty(false, "vt100", 80, 24, 0, 0, &[])
            .await?;
        let command = "stty raw -echo; trap 'stty size' WINCH; trap 'echo told' USR1; \
                       echo ready; while :; do sleep 0.1; done";
        channel.exec(true, command).await?;
        let (mut read, write) = channel.split();
        expect(&mut read, "ready").await?;
        // More than all windows on the way take.
        let flood = write.data_bytes(vec![b'x'; 64 * MIB]);
        let stuck = timeout(Duration::from_secs(3), flood).await;
        anyhow::ensure!(stuck.is_err(), "the command took its input");
        write.window_change(132, 43, 0, 0).await?;
        expect(&mut read, "43 132").await?;
        write.signal(Sig::USR1).await?;
        expect(&mut read, "told").await
    });
}

#[test]
fn a_client_s_keepalives_are_answered() {
    let gateway = Gateway::with_workspace();
    for login in ["ws", "vendetta"] {
        let log = gateway
            .ssh(login)
            .args([
                "-vvv",
                "-o",
                "ServerAliveInterval=1",
                "-o",
                "ServerAliveCountMax=1",
                "-N",
            ])
            .start();
        // A keepalive is a global request that nobody knows, so it is refused (RFC 4254 section 4).
        let mut seen = 0;
        for _ in 0..4 {
            seen = log.expect_stderr(seen, "send packet: type 80");
            seen = log.expect_stderr(seen, "receive packet: type 82");
        }
    }
}

#[test]
fn a_remote_forward_waits_for_its_environment_and_nothing_else_does() {
    let gateway = Gateway::docker();
    let config = format!("provider: docker\ndocker: {{image: \"{TOOLS}\"}}\n");
    gateway.create("ws", &config);
    let forwards = ["-v", "-R", "7100:127.0.0.1:1", "-R", "0:127.0.0.1:1"];
    let run = gateway.ssh("ws").args(forwards).arg("echo here").ok();
    assert_eq!(run.text(), "here");
    let log = run.error_text();
    let find = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text}: {log}"));
    // The session tells of the environment's progress meanwhile.
    assert!(
        find("vendetta: create container") < find("remote forward success"),
        "{log}"
    );
    assert_eq!(log.matches("remote forward success").count(), 2, "{log}");
    find("Allocated port ");
}
