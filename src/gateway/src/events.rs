//! What happens on the gateway, for those who watch (`events`). Nothing is kept:
//! a watcher sees what happens while it watches, and one that is too slow is
//! told how much it missed.

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast;
use vendetta_proto::{NodeName, UserName, WorkspaceName};

/// Events that a slow watcher may be behind before it misses some.
const BEHIND: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event")]
pub enum Happening {
    /// A workspace changed its state.
    #[serde(rename = "workspace.state")]
    WorkspaceState {
        /// Its name.
        workspace: WorkspaceName,
        /// Whose it is.
        owner: UserName,
        /// The node it is on.
        node: NodeName,
        /// The state it was in; none: it is new.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<&'static str>,
        /// The state it is in.
        to: &'static str,
        /// Why, when it failed or ended by itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
    /// A node changed its state.
    #[serde(rename = "node.state")]
    NodeState {
        /// Its name.
        node: NodeName,
        /// The state it was in.
        from: &'static str,
        /// The state it is in.
        to: &'static str,
        /// What is wrong.
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
    /// A node was added.
    #[serde(rename = "node.added")]
    NodeAdded {
        /// Its name.
        node: NodeName,
    },
    /// A node was removed.
    #[serde(rename = "node.removed")]
    NodeRemoved {
        /// Its name.
        node: NodeName,
    },
    /// A node was renamed.
    #[serde(rename = "node.renamed")]
    NodeRenamed {
        /// Its name before.
        from: NodeName,
        /// Its name.
        to: NodeName,
    },
}

impl Happening {
    /// The owner of the workspace that it is about; none: it is about no workspace.
    #[must_use]
    pub fn owner(&self) -> Option<&UserName> {
        match self {
            Self::WorkspaceState { owner, .. } => Some(owner),
            _ => None,
        }
    }
}

/// Where events are told and watched. Clones share it.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BEHIND).0)
    }
}

impl Events {
    /// Tells that something has happened now.
    pub fn tell(&self, what: Happening) {
        // Nobody watching is fine.
        let _ = self.0.send(Event {
            at: Timestamp::now(),
            what,
        });
    }

    /// What happens from now on.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
