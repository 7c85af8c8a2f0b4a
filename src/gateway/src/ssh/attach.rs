//! `workspace connect` and `workspace exec` over a control session: the
//! client's standard streams joined to a session in the environment.

use russh::{ChannelMsg, ChannelWriteHalf, client, server};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use vendetta_proto::agent::DEFAULT_USER;

use super::environment::{Environment, OpenedSession, stderr_line};
use super::session::STDERR;
use super::shared::Shared;
use crate::agent::client::signal_number;
use crate::control::{Attach, Caller, Io, TerminalSize};

/// Joins the streams until the environment's session ends; returns the exit code.
pub async fn run(
    shared: &Shared,
    caller: &Caller,
    session: &ChannelWriteHalf<server::Msg>,
    attachment: Attach,
) -> u8 {
    let Attach {
        workspace,
        user,
        command,
        mut io,
    } = attachment;
    let user = user.unwrap_or_else(|| DEFAULT_USER.to_owned());
    let environment = Environment::connect(shared.clone(), workspace, user);
    let _in_use = environment.in_use();
    let OpenedSession { channel, farewell } = match environment.open_session(&mut io.stderr).await {
        Ok(session) => session,
        Err(error) => return fail(&mut io, &error.message, error.exit_code).await,
    };
    let started = async {
        for (name, value) in &caller.session_env {
            if name != "TERM" {
                channel
                    .set_env(false, name.as_str(), value.as_str())
                    .await?;
            }
        }
        if let Some(terminal) = &io.terminal {
            let size = *terminal.borrow();
            let term = caller
                .session_env
                .get("TERM")
                .map_or("xterm", String::as_str);
            channel
                .request_pty(
                    false,
                    term,
                    size.columns.into(),
                    size.rows.into(),
                    0,
                    0,
                    &[],
                )
                .await?;
        }
        match command {
            Some(command) => channel.exec(false, command).await,
            None => channel.request_shell(false).await,
        }
    };
    if let Err(error) = started.await {
        return fail(
            &mut io,
            &format!("starting a session in the environment: {error}"),
            5,
        )
        .await;
    }
    join(channel, io, session, &*farewell).await
}

async fn fail(io: &mut Io, message: &str, exit_code: u8) -> u8 {
    let _ = io.stderr.write_all(stderr_line(message).as_bytes()).await;
    let _ = io.stderr.flush().await;
    exit_code
}

async fn join(
    channel: russh::Channel<client::Msg>,
    io: Io,
    session: &ChannelWriteHalf<server::Msg>,
    farewell: &(dyn Fn() -> String + Sync),
) -> u8 {
    let (mut read, write) = channel.split();
    let Io {
        mut stdin,
        terminal,
        ..
    } = io;
    let input = async {
        let mut writer = write.make_writer();
        let _ = tokio::io::copy(&mut stdin, &mut writer).await;
        let _ = write.eof().await;
        std::future::pending::<()>().await;
    };
    let resizes = follow(terminal, &write);
    let output = async {
        // 255 is ssh's own; a session that ends without a status was cut off.
        let mut exit_code = 5;
        loop {
            let Some(message) = read.wait().await else {
                let _ = session.extended_data_bytes(STDERR, farewell()).await;
                break;
            };
            let forwarded = match message {
                ChannelMsg::Data { data } => session.data_bytes(data).await,
                ChannelMsg::ExtendedData { data, ext } => {
                    session.extended_data_bytes(ext, data).await
                }
                ChannelMsg::ExitStatus { exit_status } => {
                    exit_code = u8::try_from(exit_status).unwrap_or(u8::MAX);
                    Ok(())
                }
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    exit_code = 128u8.saturating_add(signal_number(&signal_name));
                    Ok(())
                }
                ChannelMsg::Close => break,
                _ => Ok(()),
            };
            if forwarded.is_err() {
                break;
            }
        }
        exit_code
    };
    tokio::select! {
        code = output => code,
        () = input => 5,
        () = resizes => 5,
    }
}

async fn follow(
    terminal: Option<watch::Receiver<TerminalSize>>,
    write: &ChannelWriteHalf<client::Msg>,
) {
    if let Some(mut terminal) = terminal {
        while terminal.changed().await.is_ok() {
            let size = *terminal.borrow_and_update();
            if write
                .window_change(size.columns.into(), size.rows.into(), 0, 0)
                .await
                .is_err()
            {
                break;
            }
        }
    }
    std::future::pending().await
}
