//! What `node add` may use of its caller: their forwarded agent, and their
//! terminal to ask for a password.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::command::Session;
use crate::inventory::{AskPassword, Caller, Secret};

/// A question, and where its answer goes.
type Question = (String, oneshot::Sender<Option<Secret>>);

/// Takes questions to whoever has the caller's terminal.
#[derive(Debug)]
struct Asker(mpsc::Sender<Question>);

#[async_trait]
impl AskPassword for Asker {
    async fn ask(&self, prompt: &str) -> Option<Secret> {
        let (reply, answer) = oneshot::channel();
        self.0.send((prompt.to_owned(), reply)).await.ok()?;
        answer.await.ok().flatten()
    }
}

/// Runs `work`, which may ask the session's user meanwhile.
pub(super) async fn with_caller<T>(
    session: &mut Session<'_>,
    work: impl AsyncFnOnce(Caller) -> T,
) -> T {
    let (asker, mut questions) = mpsc::channel::<Question>(1);
    let somebody = session.console.is_terminal() && !session.json;
    let caller = Caller {
        agent: session.console.agent(),
        password: somebody.then(|| Arc::new(Asker(asker)) as _),
    };
    let mut work = std::pin::pin!(work(caller));
    loop {
        tokio::select! {
            result = &mut work => return result,
            Some((prompt, reply)) = questions.recv() => {
                let typed = session.console.ask_secret(&prompt).await;
                // Whoever asked may have been told otherwise meanwhile.
                let _ = reply.send(typed.ok().flatten());
            }
        }
    }
}
