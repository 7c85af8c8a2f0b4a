//! Why a provider did not do something.

use vendetta_proto::NodeName;
use vendetta_proto::spec::ProviderKind;

use crate::node::NodeError;

/// Why a provider did not do something.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The engine is not there, or does not let us in.
    #[error("{provider} on node {node}: {problem}")]
    Unavailable {
        /// The provider.
        provider: ProviderKind,
        /// The node.
        node: NodeName,
        /// What is wrong.
        problem: String,
        /// What to do, where there is something.
        remedy: Option<String>,
    },
    /// The image is neither here nor where it would come from.
    #[error("image {image}: {problem}")]
    NoImage {
        /// The image.
        image: String,
        /// What the engine said.
        problem: String,
    },
    /// The engine refused.
    #[error("{provider} on node {node}: {operation}: {problem}")]
    Engine {
        /// The provider.
        provider: ProviderKind,
        /// The node.
        node: NodeName,
        /// What was tried.
        operation: &'static str,
        /// What the engine said.
        problem: String,
        /// What to do, where there is something.
        remedy: Option<String>,
    },
    /// The engine says that what was asked for is wrong.
    #[error("{operation}: {problem}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// What the engine said.
        problem: String,
    },
    /// There is no such environment.
    #[error("there is no environment of this workspace; bring it up first")]
    NoEnvironment,
    /// No longer wanted.
    #[error("given up")]
    Cancelled,
    /// The node did not do its part.
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl ProviderError {
    /// What to do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Unavailable { remedy, .. } | Self::Engine { remedy, .. } => remedy.clone(),
            // A path, which only a machine's disk has.
            Self::NoImage { image, .. } if image.starts_with('/') => Some(
                "give the path of a disk image on the node, a URL, or a name such as debian:12"
                    .to_owned(),
            ),
            Self::NoImage { image, .. } => Some(format!(
                "check the name, or bring the image to the node: docker pull {image}"
            )),
            Self::Node(error) => error.remedy(),
            Self::Refused { .. } | Self::NoEnvironment | Self::Cancelled => None,
        }
    }
}
