//! The id of a workspace.

use std::fmt;

use serde::Serialize;

/// Names a workspace for as long as it exists, in labels, paths and logs:
/// 8 random lower-case hexadecimal digits. Never used again for another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct WorkspaceId(String);

impl WorkspaceId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 4]>()))
    }

    /// Reads one back from a label, a path or the store.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (digits && text.len() == 8).then(|| Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
