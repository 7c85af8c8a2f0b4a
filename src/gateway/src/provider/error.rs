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
        /// What to do.
        remedy: String,
    },
    /// The image could not be built from the project's files.
    #[error("building the image: {problem}{}", last(log))]
    BuildFailed {
        /// What the engine said.
        problem: String,
        /// The last lines of the build.
        log: String,
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

/// The last lines of a log, for people.
fn last(log: &str) -> String {
    match log {
        "" => String::new(),
        log => format!("; the last it said:\n{log}"),
    }
}

impl ProviderError {
    /// Whether it is the image that cannot be had.
    #[must_use]
    pub fn lacks_image(&self) -> bool {
        match self {
            Self::NoImage { .. } => true,
            Self::Engine { operation, .. } => matches!(*operation, "pull image" | "fetch image"),
            _ => false,
        }
    }

    /// What to do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Unavailable { remedy, .. } | Self::Engine { remedy, .. } => remedy.clone(),
            Self::NoImage { remedy, .. } => Some(remedy.clone()),
            Self::Node(error) => error.remedy(),
            Self::Refused { .. }
            | Self::BuildFailed { .. }
            | Self::NoEnvironment
            | Self::Cancelled => None,
        }
    }
}
