//! Lines of JSON on a channel.

use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use vendetta_proto::rpc::{Answer, MAX_LINE, Request};

use super::Refusal;

/// Reads the request.
///
/// # Errors
/// When what comes is none; the text says why.
pub async fn request(reader: &mut ChannelReadHalf) -> Result<Request, String> {
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        if line.len() > MAX_LINE {
            return Err(format!("a request has at most {MAX_LINE} bytes"));
        }
        match reader.wait().await {
            Some(ChannelMsg::Data { data }) => line.extend_from_slice(&data),
            Some(ChannelMsg::Eof | ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    let end = line.iter().position(|byte| *byte == b'\n');
    let line = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
    if line.is_empty() {
        return Err("there is no request".to_owned());
    }
    serde_json::from_slice(line).map_err(|error| format!("this is not a request: {error}"))
}

/// Takes what else comes and forgets it, until the client closes the channel.
pub async fn drain(reader: &mut ChannelReadHalf) {
    while let Some(message) = reader.wait().await {
        if matches!(message, ChannelMsg::Close) {
            return;
        }
    }
}

/// Where answers go.
pub struct Answers<'a>(pub &'a ChannelWriteHalf<Msg>);

impl Answers<'_> {
    /// Sends one answer, when the client has room for it.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn send(&self, answer: &Answer) -> Result<(), Refusal> {
        self.send_all(std::iter::once(answer)).await
    }

    /// Sends several answers at once.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn send_all(
        &self,
        answers: impl IntoIterator<Item = impl std::borrow::Borrow<Answer>>,
    ) -> Result<(), Refusal> {
        let mut lines = Vec::new();
        for answer in answers {
            if serde_json::to_writer(&mut lines, answer.borrow()).is_ok() {
                lines.push(b'\n');
            }
        }
        let sent = self.0.data_bytes(lines).await;
        sent.map_err(|_| Refusal::Gone)
    }
}
