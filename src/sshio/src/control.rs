//! What must overtake a channel's data, which nobody may ever take: signals,
//! sizes, that nobody reads any more, CLOSE. russh's callbacks have them as they
//! arrive; in the channel's own queue they stand behind that data.

use russh::Sig;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Signals that may wait for delivery; a client that sends more than that
/// before any is delivered loses the rest.
const SIGNAL_QUEUE: usize = 16;

/// The request of a client that takes no more output: the reader of its pipe is
/// gone (OpenSSH PROTOCOL, section 2.1).
pub const END_OF_WRITE: &str = "eow@openssh.com";

/// Size of a terminal in characters and pixels (RFC 4254 section 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Columns.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// The connection's end.
#[derive(Debug)]
pub struct Control {
    size: watch::Sender<Size>,
    signals: mpsc::Sender<Sig>,
    unread: CancellationToken,
    closed: CancellationToken,
}

/// The channel's end.
#[derive(Debug)]
pub struct Events {
    /// The latest size of the client's terminal.
    pub size: watch::Receiver<Size>,
    /// Signals that the client sent.
    pub signals: mpsc::Receiver<Sig>,
    /// Cancelled when the client takes no more output ([`END_OF_WRITE`]).
    pub unread: CancellationToken,
    /// Cancelled by the client's CHANNEL_CLOSE.
    pub closed: CancellationToken,
}

/// A pair of ends.
#[must_use]
pub fn control() -> (Control, Events) {
    let (unread, closed) = (CancellationToken::new(), CancellationToken::new());
    let (size, size_events) = watch::channel(Size::default());
    let (signals, signal_events) = mpsc::channel(SIGNAL_QUEUE);
    (
        Control {
            size,
            signals,
            unread: unread.clone(),
            closed: closed.clone(),
        },
        Events {
            size: size_events,
            signals: signal_events,
            unread,
            closed,
        },
    )
}

impl Control {
    /// The client's terminal has another size.
    pub fn resize(&self, size: Size) {
        let _ = self.size.send(size);
    }

    /// The client sends a signal.
    pub fn signal(&self, signal: Sig) {
        let _ = self.signals.try_send(signal);
    }

    /// The client takes no more output ([`END_OF_WRITE`]).
    pub fn end_of_write(&self) {
        self.unread.cancel();
    }

    /// The client has closed the channel.
    pub fn close(&self) {
        self.closed.cancel();
    }
}
