//! What must reach a session at once, though its process takes no input and
//! the channel's own queue stands still: signals, sizes, CLOSE.

use russh::Sig;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::pty::Size;

/// Signals that may wait for delivery; a client that sends more than that
/// before any is delivered loses the rest.
const SIGNAL_QUEUE: usize = 16;

/// The connection's end.
#[derive(Debug)]
pub struct Control {
    size: watch::Sender<Size>,
    signals: mpsc::Sender<Sig>,
}

/// The session's end.
#[derive(Debug)]
pub struct Events {
    /// The latest size of the client's terminal.
    pub size: watch::Receiver<Size>,
    /// Signals for the process group.
    pub signals: mpsc::Receiver<Sig>,
    /// Cancelled by the client's CHANNEL_CLOSE.
    pub closed: CancellationToken,
}

/// A pair of ends; `closed` is cancelled by the client's CHANNEL_CLOSE.
pub fn control(closed: CancellationToken) -> (Control, Events) {
    let (size, size_events) = watch::channel(Size::default());
    let (signals, signal_events) = mpsc::channel(SIGNAL_QUEUE);
    (
        Control { size, signals },
        Events {
            size: size_events,
            signals: signal_events,
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
}
