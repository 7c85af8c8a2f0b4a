//! The name of a node as it is now.

use std::sync::{Arc, PoisonError, RwLock};

use vendetta_proto::NodeName;

/// The name of a node, which may get another while it is used: so it is read
/// where it is said. Clones are the same name.
#[derive(Debug, Clone)]
pub struct CurrentName(Arc<RwLock<NodeName>>);

impl CurrentName {
    /// The name now.
    #[must_use]
    pub fn get(&self) -> NodeName {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Another name from now on.
    pub fn set(&self, name: NodeName) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = name;
    }
}

impl From<NodeName> for CurrentName {
    fn from(name: NodeName) -> Self {
        Self(Arc::new(RwLock::new(name)))
    }
}
