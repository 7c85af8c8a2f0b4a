//! What `node add` may use of its caller: their forwarded agent, and their
//! terminal to ask for a password.

use std::io;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::command::Session;
use crate::inventory::{ByteStream, Ways};

/// The caller of a command, as somebody who may open a node.
pub(super) struct Dialog<'a, 'b>(&'a mut Session<'b>);

impl<'a, 'b> Dialog<'a, 'b> {
    pub(super) fn new(session: &'a mut Session<'b>) -> Self {
        Self(session)
    }
}

#[async_trait]
impl Ways for Dialog<'_, '_> {
    async fn agent(&mut self) -> Option<io::Result<Box<dyn ByteStream>>> {
        match self.0.console.agent() {
            Some(agent) => Some(agent.connect().await),
            None => None,
        }
    }

    async fn password(&mut self, prompt: &str) -> Option<Zeroizing<String>> {
        if self.0.json {
            return None;
        }
        self.0.console.ask_secret(prompt).await.ok().flatten()
    }
}
