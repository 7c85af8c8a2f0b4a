//! What is told about a workspace.

use serde::{Serialize, Serializer};
use vendetta_proto::spec::{AutoUp, ProviderKind};
use vendetta_proto::value::Span;
use vendetta_proto::{NodeName, UserName, WorkspaceName};
use vendetta_sshio::keys::PublicKey;

use super::WorkspaceId;
use super::state::{Desired, Phase};
use crate::ports::PortStatus;

/// A workspace as `list` and `status` show it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkspaceStatus {
    /// Its name.
    pub name: WorkspaceName,
    /// Its id, as in the labels of its container.
    pub id: WorkspaceId,
    /// Who it belongs to.
    pub owner: UserName,
    /// What runs it.
    pub provider: ProviderKind,
    /// Where it runs.
    pub node: NodeName,
    /// The image, or the Dockerfile, that it is made from, when the provider takes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What it is doing.
    pub state: Phase,
    /// What it is meant to do.
    pub desired: Desired,
    /// Whether connecting brings it up.
    pub auto_up: AutoUp,
    /// When it was created.
    pub created: jiff::Timestamp,
    /// Since when it is in `state`.
    pub since: jiff::Timestamp,
    /// Why it failed, in state `failed`; in state `destroying`, what holds that up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Anything else worth knowing, such as how it ended by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How long nothing may use it before it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
    /// The ports of the gateway's machine that lead to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortStatus>,
    /// Parts of its config that this version keeps but does not act on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inactive: Vec<String>,
    /// What its agent is known by to those who come end to end, in each of its environments.
    #[serde(serialize_with = "as_line")]
    pub host_key: PublicKey,
    /// The same, as `ssh-keygen -l` prints it.
    pub host_key_fingerprint: String,
}

fn as_line<S: Serializer>(key: &PublicKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}

/// Why a workspace failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What was being done: "start", "stop", "destroy".
    pub step: String,
    /// What went wrong.
    pub cause: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}
