//! Whether a connection lives, as everybody who uses it sees it.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// The life of one connection; clones share it. It ends once, with a cause.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Life(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ended: CancellationToken,
    cause: OnceLock<String>,
}

impl Life {
    /// Ends it; the first cause stands.
    pub(super) fn end(&self, cause: impl Into<String>) {
        // Set before the token, so that who sees the end sees the cause.
        let _ = self.0.cause.set(cause.into());
        self.0.ended.cancel();
    }

    /// Why it ended; none while it lasts.
    pub(in super::super) fn ended(&self) -> Option<&str> {
        self.0.ended.is_cancelled().then(|| self.cause())
    }

    /// Waits for its end.
    pub(in super::super) async fn over(&self) -> &str {
        self.0.ended.cancelled().await;
        self.cause()
    }

    fn cause(&self) -> &str {
        self.0.cause.get().map_or("it was closed", String::as_str)
    }
}
