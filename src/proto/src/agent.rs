//! The file from which `vendetta-agent` learns what it is: written by the
//! gateway next to the agent's socket (mode 0600), read once at start.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ServiceName;
use crate::spec::Service;

/// Version of [`AgentConfig`]'s format; an agent refuses any other.
pub const CONFIG_VERSION: u32 = 2;

/// The SSH user name with which the gateway asks for the environment's default
/// user ([`AgentConfig::user`]); any other must be in the environment's /etc/passwd.
pub const DEFAULT_USER: &str = "";

/// How the SSH user name begins with which the gateway logs in for a client,
/// whose channels the connection then carries; the rest is the user. No user's
/// own name can begin so (passwd(5)). Only without it, on a connection for the
/// gateway's own use, does an agent serve [`crate::rpc`].
pub const FOR_CLIENT: &str = "client:";

/// The variable that has what a client asked for where its certificate forces
/// another command (sshd_config(5), ForceCommand). An agent takes it from the
/// gateway, and the gateway from nobody.
pub const ORIGINAL_COMMAND: &str = "SSH_ORIGINAL_COMMAND";

/// How [`AgentConfig::listen`] begins where it is not a path.
pub const LISTEN_TCP: &str = "tcp:";

/// Everything an agent needs to serve one environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// Name of the workspace.
    pub workspace: String,
    /// The agent's private host key, OpenSSH PEM.
    pub host_key: String,
    /// Host certificate for `host_key`, one line of OpenSSH text, signed by the gateway's host CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_certificate: Option<String>,
    /// Public keys (OpenSSH lines) that may open any session: the gateway's.
    pub gateway_keys: Vec<String>,
    /// Path of the unix socket to listen on. Created with mode 0666 inside a
    /// directory of mode 0700 that keeps everybody but the node's user out. Or,
    /// for an environment that is a machine of its own, [`LISTEN_TCP`] and
    /// `ADDRESS:PORT`.
    pub listen: PathBuf,
    /// User of sessions (name or numeric id); none: the one the agent runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment of every session, after the agent's own (which carries the image's ENV).
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory of sessions; none: the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<PathBuf>,
    /// Where disks are, beside that of `workdir`, that are handed to the user
    /// as long as nobody has used them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<PathBuf>,
    /// The services to look after. None runs until the gateway asks for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<ServiceName, Service>,
    /// The port on the gateway's machine that leads to each service's port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_ports: BTreeMap<ServiceName, u16>,
    /// Directory of the services' logs; none: `log` beside the socket. Must be given where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_dir: Option<PathBuf>,
    /// Whether the environment has a network of its own, so that every port of it
    /// on which somebody listens is the workspace's.
    #[serde(default)]
    pub own_network: bool,
}
