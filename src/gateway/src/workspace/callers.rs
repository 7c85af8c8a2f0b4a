//! The ssh-agents of those who asked for the work under way.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::node::{AgentAccess, ByteStream};

/// Most callers whose agents are kept.
const MOST: usize = 16;

/// Agents, oldest first. Clones share them, so that who joins later helps too.
#[derive(Debug, Clone, Default)]
pub(super) struct Callers(Arc<Mutex<Vec<Arc<dyn AgentAccess>>>>);

impl Callers {
    fn all(&self) -> Vec<Arc<dyn AgentAccess>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Adds a caller's agent, when they forward one.
    pub(super) fn add(&self, agent: Option<Arc<dyn AgentAccess>>) {
        let mut agents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        agents.extend(agent);
        if agents.len() > MOST {
            agents.remove(0);
        }
    }

    /// All of them as one; none when nobody forwards an agent.
    pub(super) fn access(&self) -> Option<Arc<dyn AgentAccess>> {
        (!self.all().is_empty()).then(|| Arc::new(self.clone()) as _)
    }
}

#[async_trait]
impl AgentAccess for Callers {
    /// Opens the latest one that still answers: who asked first may have left.
    async fn open(&self) -> io::Result<Box<dyn ByteStream>> {
        for agent in self.all().into_iter().rev() {
            if let Ok(stream) = agent.open().await {
                return Ok(stream);
            }
        }
        Err(io::Error::from(io::ErrorKind::NotConnected))
    }
}
