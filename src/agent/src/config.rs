//! The configuration file, read once and checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, PrivateKey, PublicKey};
use vendetta_proto::ServiceName;
use vendetta_proto::agent::{AgentConfig, CONFIG_VERSION};

use crate::listen::Listen;
use crate::supervisor::default_log_dir;
use crate::supervisor::spec::{self, Spec, SpecError};

/// Why a configuration was refused. The messages carry no secrets.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not an agent configuration.
    #[error("{} is not an agent configuration: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// The file is for another version of the agent.
    #[error("{} has version {found}; this agent reads version {CONFIG_VERSION}: gateway and agent are of different releases", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
    },
    /// A key, a certificate or an address is wrong.
    #[error("{}: {field} is not usable: {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key of the file.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The services cannot be looked after.
    #[error("{}: {source}", path.display())]
    Services {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: SpecError,
    },
}

/// A checked configuration.
#[derive(Debug)]
pub struct Settings {
    /// Name of the workspace.
    pub workspace: String,
    /// The agent's host key (ed25519).
    pub host_key: PrivateKey,
    /// Certificate of `host_key`.
    pub host_certificate: Option<Certificate>,
    /// Keys that may open any session.
    pub gateway_keys: Vec<KeyData>,
    /// Where to listen.
    pub listen: Listen,
    /// The default user: name, uid, or either with `:group`.
    pub user: Option<String>,
    /// Environment of every session.
    pub env: BTreeMap<String, String>,
    /// Working directory of sessions.
    pub workdir: Option<PathBuf>,
    /// Where other disks for the default user are.
    pub volumes: Vec<PathBuf>,
    /// The services to look after.
    pub services: BTreeMap<ServiceName, Spec>,
    /// The port on the gateway's machine that leads to each service's port.
    pub host_ports: BTreeMap<ServiceName, u16>,
    /// Directory of the services' logs.
    pub log_dir: PathBuf,
    /// Whether all that listens here is the environment's.
    pub own_network: bool,
}

/// Reads and checks the configuration at `path`.
///
/// # Errors
/// When the file cannot be read, is not valid, or holds a key that cannot be used.
pub fn load(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let config: AgentConfig =
        serde_json::from_slice(&text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source,
        })?;
    check(path, config)
}

fn check(path: &Path, config: AgentConfig) -> Result<Settings, ConfigError> {
    if config.version != CONFIG_VERSION {
        return Err(ConfigError::Version {
            path: path.to_owned(),
            found: config.version,
        });
    }
    let bad = |field, problem: String| ConfigError::Key {
        path: path.to_owned(),
        field,
        problem,
    };
    let host_key = PrivateKey::from_openssh(&config.host_key)
        .map_err(|error| bad("host_key", error.to_string()))?;
    let host_certificate = match &config.host_certificate {
        None => None,
        Some(line) => {
            let certificate = Certificate::from_openssh(line)
                .map_err(|error| bad("host_certificate", error.to_string()))?;
            if certificate.public_key() != host_key.public_key().key_data() {
                return Err(bad(
                    "host_certificate",
                    "it certifies another key than host_key".to_owned(),
                ));
            }
            Some(certificate)
        }
    };
    let mut gateway_keys = Vec::with_capacity(config.gateway_keys.len());
    for line in &config.gateway_keys {
        let key = PublicKey::from_openssh(line)
            .map_err(|error| bad("gateway_keys", error.to_string()))?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(bad(
                "gateway_keys",
                format!("{} is not ed25519", key.algorithm()),
            ));
        }
        gateway_keys.push(key.key_data().clone());
    }
    if gateway_keys.is_empty() {
        return Err(bad(
            "gateway_keys",
            "it is empty, so nobody could log in".to_owned(),
        ));
    }
    let services = spec::check(&config.services).map_err(|source| ConfigError::Services {
        path: path.to_owned(),
        source,
    })?;
    let log_dir = config
        .log_dir
        .unwrap_or_else(|| default_log_dir(&config.listen));
    Ok(Settings {
        workspace: config.workspace,
        host_key,
        host_certificate,
        gateway_keys,
        listen: Listen::parse(&config.listen).map_err(|problem| bad("listen", problem))?,
        user: config.user,
        env: config.env,
        workdir: config.workdir,
        volumes: config.volumes,
        services,
        host_ports: config.host_ports,
        log_dir,
        own_network: config.own_network,
    })
}
