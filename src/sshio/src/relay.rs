//! The bridge between a channel of the client and its twin in the environment.
//!
//! Everything is forwarded in the order it came, one to one: data, extended
//! data, EOF in each direction, requests with their own want-reply, replies,
//! exit-status and exit-signal (RFC 4254 sections 5 and 6). Nothing is
//! answered here. Signals and sizes alone overtake what came before them
//! ([`crate::control`]), since they are for a process that takes no input, too.
//!
//! ```text
//!   OPEN ── environment takes no more ──▶ DISCARDING
//!    ├─ client closes or vanishes ─▶ CLIENT GONE ◀─ client closes or vanishes ─┤
//!    └──────────────────┴── environment closes ──▶ done ◀──────────────────────┘
//! ```
//!
//! In OPEN both directions run side by side, and each waits only for the
//! window of its own receiver. An environment that has closed takes no more at
//! once, while what it sent before may still be on its way to a slow client:
//! in DISCARDING the client's messages are dropped, and everything of the
//! environment goes on to the client, up to the CLOSE at its end, for as long
//! as the client takes. In CLIENT GONE nothing more is sent to the
//! environment; its data is dropped, since the client takes no more, while
//! exit-status still passes: OpenSSH closes its side on EOF both ways and reads
//! the status after that. The client's CLOSE is answered when the environment
//! has closed, never before, so no status is lost.
//!
//! Data waits in the windows of the two connections and nowhere else: a
//! message is taken from one side only when the other has room for it.

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client, server};
use tokio_util::sync::CancellationToken;

use crate::control::{END_OF_WRITE, Events};

/// How long an environment may take the data that the client sent before it closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an environment may take to close a channel that the client has
/// closed before the bridge stops waiting for it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take to read that its session is lost.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// SSH_EXTENDED_DATA_STDERR (RFC 4254 section 5.2).
const STDERR: u32 = 1;

/// The client's side of a bridge.
pub struct ClientSide {
    /// The channel.
    pub channel: Channel<server::Msg>,
    /// The connection it belongs to; carries what a channel has no method for.
    pub connection: server::Handle,
    /// What comes beside the channel, where it would queue behind data that
    /// the environment may never take.
    pub events: Events,
    /// Sees each request before it is forwarded and says what is forwarded in
    /// its place; none: all as they come. It must keep as many that want a
    /// reply as there were, since replies are told apart by their order alone.
    pub requests: Option<RequestFilter>,
    /// What the client reads on standard error when the environment's
    /// connection is lost; for sessions.
    pub farewell: Option<Farewell>,
}

/// See [`ClientSide::farewell`]: asked for when it is said.
pub type Farewell = Box<dyn Fn() -> String + Send + Sync>;

/// See [`ClientSide::requests`].
pub type RequestFilter = Box<dyn FnMut(ChannelMsg) -> Vec<ChannelMsg> + Send>;

/// Bridges the two channels until both are closed, and says how much it carried.
pub async fn bridge(client: ClientSide, environment: Channel<client::Msg>) -> Traffic {
    let ClientSide {
        channel,
        connection,
        events,
        requests,
        farewell,
    } = client;
    let (closed, unread) = (events.closed.clone(), events.unread.clone());
    let (client_read, client_write) = channel.split();
    let (environment_read, environment_write) = environment.split();
    let counters = Counters::default();

    let to_environment = async {
        tokio::select! {
            () = forward_to_environment(client_read, &environment_write, requests, &counters) => {}
            () = async { closed.cancelled().await; tokio::time::sleep(DRAIN_TIMEOUT).await } => {}
        }
        closed.cancel();
        // Queued behind what the environment has not taken yet.
        let _ = environment_write.close().await;
        // From here only the environment's CLOSE ends the bridge.
        tokio::time::sleep(CLOSE_TIMEOUT).await;
    };
    let to_client = forward_to_client(
        environment_read,
        &client_write,
        &connection,
        (&closed, &unread),
        &counters,
    );
    let lost = tokio::select! {
        end = to_client => matches!(end, End::Lost),
        () = to_environment => false,
        () = forward_events(events, &environment_write) => false,
    };
    if let (true, Some(farewell)) = (lost, farewell) {
        // A client that takes nothing must not keep the bridge.
        let told = client_write.extended_data_bytes(STDERR, farewell());
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, told).await;
    }
    let _ = client_write.close().await;
    Traffic {
        to_client: counters.to_client.into_inner(),
        to_environment: counters.to_environment.into_inner(),
    }
}

/// What a bridge has carried, in bytes of channel data.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// From the environment to the client.
    pub to_client: u64,
    /// From the client to the environment.
    pub to_environment: u64,
}

#[derive(Default)]
struct Counters {
    to_client: AtomicU64,
    to_environment: AtomicU64,
}

fn count(counter: &AtomicU64, data: &Bytes) {
    counter.fetch_add(data.len() as u64, Ordering::Relaxed);
}

/// Forwards until the client closes its side or is gone; what the environment
/// takes no more is dropped.
async fn forward_to_environment(
    mut from: ChannelReadHalf,
    to: &ChannelWriteHalf<client::Msg>,
    mut requests: Option<RequestFilter>,
    counters: &Counters,
) {
    let mut taken = true;
    while let Some(message) = from.wait().await {
        let forwarded = match message {
            ChannelMsg::Close => return,
            _ if !taken => continue,
            ChannelMsg::Data { data } => {
                count(&counters.to_environment, &data);
                to.data_bytes(data).await
            }
            ChannelMsg::ExtendedData { data, ext } => {
                count(&counters.to_environment, &data);
                to.extended_data_bytes(ext, data).await
            }
            ChannelMsg::Eof => to.eof().await,
            request => match &mut requests {
                None => forward_request(request, to).await,
                Some(filter) => {
                    let mut forwarded = Ok(());
                    for request in filter(request) {
                        forwarded = forwarded.and(forward_request(request, to).await);
                    }
                    forwarded
                }
            },
        };
        taken = forwarded.is_ok();
    }
}

/// Forwards signals, sizes, and that nobody reads any more. Never ends.
async fn forward_events(mut events: Events, to: &ChannelWriteHalf<client::Msg>) {
    let mut unread_told = false;
    loop {
        // An environment that has closed needs none of them.
        let _ = tokio::select! {
            () = events.unread.cancelled(), if !unread_told => {
                unread_told = true;
                to.request(false, END_OF_WRITE, Vec::new()).await
            }
            Some(signal) = events.signals.recv() => to.signal(signal).await,
            Ok(()) = events.size.changed() => {
                let size = *events.size.borrow_and_update();
                to.window_change(size.columns, size.rows, size.width, size.height).await
            }
            else => pending().await,
        };
    }
}

async fn forward_request(
    request: ChannelMsg,
    to: &ChannelWriteHalf<client::Msg>,
) -> Result<(), russh::Error> {
    match request {
        ChannelMsg::SetEnv {
            want_reply,
            variable_name,
            variable_value,
        } => to.set_env(want_reply, variable_name, variable_value).await,
        ChannelMsg::RequestPty {
            want_reply,
            term,
            col_width,
            row_height,
            pix_width,
            pix_height,
            terminal_modes,
        } => {
            to.request_pty(
                want_reply,
                &term,
                col_width,
                row_height,
                pix_width,
                pix_height,
                &terminal_modes,
            )
            .await
        }
        ChannelMsg::RequestX11 {
            want_reply,
            single_connection,
            x11_authentication_protocol,
            x11_authentication_cookie,
            x11_screen_number,
        } => {
            to.request_x11(
                want_reply,
                single_connection,
                x11_authentication_protocol,
                x11_authentication_cookie,
                x11_screen_number,
            )
            .await
        }
        ChannelMsg::AgentForward { want_reply } => to.agent_forward(want_reply).await,
        ChannelMsg::RequestShell { want_reply } => to.request_shell(want_reply).await,
        ChannelMsg::Exec {
            want_reply,
            command,
        } => to.exec(want_reply, command).await,
        ChannelMsg::RequestSubsystem { want_reply, name } => {
            to.request_subsystem(want_reply, name).await
        }
        ChannelMsg::OtherRequest {
            name,
            want_reply,
            data,
        } if name != END_OF_WRITE => to.request(want_reply, name, data).await,
        // These come as events.
        _ => Ok(()),
    }
}

/// How a direction came to its end.
enum End {
    /// Its sender closed it, or its receiver takes no more.
    Over,
    /// The connection that it came over is lost.
    Lost,
}

/// Forwards until the environment closes its side or is gone. What the client
/// says that nobody reads (`unread`) is dropped: OpenSSH's client gives nothing of
/// its window back for what it had not written, and then nothing fits any more.
async fn forward_to_client(
    mut from: ChannelReadHalf,
    to: &ChannelWriteHalf<server::Msg>,
    connection: &server::Handle,
    (closed, unread): (&CancellationToken, &CancellationToken),
    counters: &Counters,
) -> End {
    let id = to.id();
    while let Some(message) = from.wait().await {
        let forwarded = match message {
            ChannelMsg::Data { data } => {
                count(&counters.to_client, &data);
                unless(unread, unless(closed, to.data_bytes(data))).await;
                true
            }
            ChannelMsg::ExtendedData { data, ext } => {
                count(&counters.to_client, &data);
                let late = async {
                    unread.cancelled().await;
                    tokio::time::sleep(DRAIN_TIMEOUT).await;
                };
                tokio::select! {
                    biased;
                    () = unless(closed, to.extended_data_bytes(ext, data)) => {}
                    () = late => {}
                }
                true
            }
            ChannelMsg::Eof => to.eof().await.is_ok(),
            ChannelMsg::Success => connection.channel_success(id).await.is_ok(),
            ChannelMsg::Failure => connection.channel_failure(id).await.is_ok(),
            ChannelMsg::ExitStatus { exit_status } => to.exit_status(exit_status).await.is_ok(),
            ChannelMsg::ExitSignal {
                signal_name,
                core_dumped,
                error_message,
                lang_tag,
            } => connection
                .exit_signal_request(id, signal_name, core_dumped, error_message, lang_tag)
                .await
                .is_ok(),
            ChannelMsg::XonXoff { client_can_do } => {
                connection.xon_xoff_request(id, client_can_do).await.is_ok()
            }
            ChannelMsg::OtherRequest { name, data, .. } => {
                to.request(false, name, data).await.is_ok()
            }
            ChannelMsg::Close => return End::Over,
            _ => true,
        };
        if !forwarded {
            return End::Over;
        }
    }
    End::Lost
}

/// Runs `send` unless the client is gone (or nobody reads there), when nobody would
/// ever open the window it waits for. It fails when the client has closed the channel,
/// which must not end the bridge: an exit status may follow the data.
async fn unless<T>(over: &CancellationToken, send: impl Future<Output = T>) {
    tokio::select! {
        biased;
        () = over.cancelled() => {}
        _ = send => {}
    }
}
