//! The project config (`.vendetta/config.yaml`) as types; docs/configuration.md
//! describes each key. Parsing, defaults and error positions are the gateway's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::WorkspaceName;

/// What runs a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// A container of a Docker engine.
    Docker,
    /// A system container of Incus or LXD.
    Lxc,
    /// A virtual machine.
    Qemu,
    /// A directory of the node itself, without isolation.
    Host,
}

impl ProviderKind {
    /// The word used in configs and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Lxc => "lxc",
            Self::Qemu => "qemu",
            Self::Host => "host",
        }
    }
}

/// When connecting to a workspace that is not running brings it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoUp {
    /// Never.
    Never,
    /// Unless somebody took it down on purpose.
    #[default]
    Unless,
    /// Always.
    Always,
}

/// The project config. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectConfig {
    /// Name of the workspace; the command line may give it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<WorkspaceName>,
    /// The provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderKind>,
    /// User of sessions and services; omitted: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Settings of provider docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<DockerConfig>,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
    /// Environment variables of sessions and services.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Settings of provider docker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DockerConfig {
    /// Image reference.
    pub image: String,
}

/// Limits of an environment.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processors, in cores (may be a fraction).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
}
