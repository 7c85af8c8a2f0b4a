//! What happens to instances, as the engine tells it over a websocket.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::Value;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use super::super::ProviderError;
use super::engine::Engine;

/// What tells that an instance may have started or ended (LXD's and Incus's
/// api.EventLifecycleInstance…).
const TELLING: [&str; 9] = [
    "instance-created",
    "instance-deleted",
    "instance-paused",
    "instance-restarted",
    "instance-resumed",
    "instance-shutdown",
    "instance-started",
    "instance-stopped",
    "instance-restored",
];

/// Names of instances that may have started or ended, from now on. Ends with an error
/// when the engine goes away.
pub(super) async fn names(
    engine: &Engine,
) -> Result<BoxStream<'static, Result<String, ProviderError>>, ProviderError> {
    let stream = engine.open().await?;
    let url = "ws://engine/1.0/events?type=lifecycle";
    let (socket, _) = client_async(url, stream)
        .await
        .map_err(|error| engine.unavailable(format!("its events: {error}"), None))?;
    let ended = engine.unavailable("its events ended".to_owned(), None);
    let names = stream::unfold(Some((socket, ended)), |state| async move {
        let (mut socket, ended) = state?;
        loop {
            let name = match socket.next().await {
                Some(Ok(Message::Text(text))) => name_in(text.as_bytes()),
                // Pings are answered by the library.
                Some(Ok(_)) => None,
                Some(Err(error)) => {
                    tracing::debug!(%error, "events of the engine");
                    return Some((Err(ended), None));
                }
                None => return Some((Err(ended), None)),
            };
            if let Some(name) = name {
                return Some((Ok(name), Some((socket, ended))));
            }
        }
    });
    Ok(names.boxed())
}

/// The instance that an event is about, when it tells that it may have started or ended.
fn name_in(event: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(event).ok()?;
    let metadata = event.get("metadata")?;
    let action = metadata.get("action")?.as_str()?;
    if !TELLING.contains(&action) {
        return None;
    }
    let source = metadata.get("source")?.as_str()?;
    let name = source.strip_prefix("/1.0/instances/")?;
    let name = name.split(['?', '/']).next()?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_an_instance_that_started_or_ended() {
        let event = |action: &str, source: &str| {
            let metadata = serde_json::json!({"action": action, "source": source});
            serde_json::json!({"type": "lifecycle", "metadata": metadata}).to_string()
        };
        let name = |action, source| name_in(event(action, source).as_bytes());
        let source = "/1.0/instances/web-0a1b2c3d-1?project=default";
        assert_eq!(
            name("instance-shutdown", source).as_deref(),
            Some("web-0a1b2c3d-1")
        );
        assert_eq!(name("instance-file-pushed", source), None);
        assert_eq!(name("instance-started", "/1.0/profiles/x"), None);
        assert_eq!(name_in(b"{"), None);
        assert_eq!(name_in(b"{\"metadata\": 1}"), None);
    }
}
