//! The project config (`.vendetta/config.yaml`) as types; docs/configuration.md
//! describes each key. Parsing, defaults and error positions are the gateway's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::build::Build;
pub use crate::health::{HealthCheck, Probe};
pub use crate::hook::{HookCommand, Hooks};
use crate::value::{ByteSize, Span};
use crate::{ServiceName, WorkspaceName};

/// The directory in an environment where the workspace's disk is, unless its
/// config says another.
pub const WORKSPACE_FOLDER: &str = "/workspace";

/// What runs a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

impl std::fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// When connecting to a workspace that is not running brings it up: `auto_up`
/// is `true`, `false` or `always`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoUp {
    /// `false`: never.
    Never,
    /// `true`: unless somebody took it down on purpose.
    #[default]
    Unless,
    /// `always`: even then.
    Always,
}

impl Serialize for AutoUp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Never => serializer.serialize_bool(false),
            Self::Unless => serializer.serialize_bool(true),
            Self::Always => serializer.serialize_str("always"),
        }
    }
}

impl<'de> Deserialize<'de> for AutoUp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = AutoUp;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true, false or always")
            }
            fn visit_bool<E>(self, value: bool) -> Result<AutoUp, E> {
                Ok(if value { AutoUp::Unless } else { AutoUp::Never })
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<AutoUp, E> {
                match value {
                    "always" => Ok(AutoUp::Always),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(value), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The project config. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ProjectConfig {
    /// Name of the workspace; the command line may give it instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<WorkspaceName>,
    /// The provider; omitted: the one whose section is present, else docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderKind>,
    /// The node; omitted: the gateway's own machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// User of sessions and services; omitted: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Settings of provider docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker: Option<DockerConfig>,
    /// Settings of provider lxc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lxc: Option<LxcConfig>,
    /// Settings of provider qemu.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuConfig>,
    /// Limits.
    #[serde(default, skip_serializing_if = "Resources::is_unlimited")]
    pub resources: Resources,
    /// The directory in the environment in which sessions, services and hooks
    /// begin and whose content survives a rebuild; omitted: `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_folder: Option<String>,
    /// Environment variables of sessions and services. `${containerEnv:NAME}`
    /// in a value is what the image sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Ports inside the environment, beside those of services, that get a port
    /// of the gateway's machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Programs that the agent keeps running.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<ServiceName, Service>,
    /// Commands run at points of the workspace's life.
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// Git repository that is cloned into the workspace's directory when that is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// Git repository of the user's own settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dotfiles: Option<String>,
    /// Whether connecting brings the workspace up; omitted: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_up: Option<AutoUp>,
    /// Stop after this long without a session; omitted: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
}

/// The node a workspace runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// A registered name, or an address.
    pub node: String,
    /// Login name on the node; omitted: the registered one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// TCP port of the node's sshd; omitted: the registered one, else 22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Settings of provider docker: an image, or how to build one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DockerConfig {
    /// Image reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How the image is built, instead of `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// More disks of the workspace's own, by name: the absolute path in the
    /// environment at which each is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, String>,
}

impl DockerConfig {
    /// One that is made from an image.
    #[must_use]
    pub fn from_image(image: impl Into<String>) -> Self {
        Self {
            image: Some(image.into()),
            ..Self::default()
        }
    }
}

/// Settings of provider lxc.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LxcConfig {
    /// Image, such as "images:ubuntu/22.04" or an alias of the engine.
    pub image: String,
}

/// Settings of provider qemu.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct QemuConfig {
    /// Cloud image.
    pub image: String,
    /// Virtual processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Memory of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Size of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// How the guest's processor is run; omitted: auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accel: Option<Accel>,
}

/// How QEMU runs the guest's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// Hardware virtualisation; an error where it does not work.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Limits of an environment.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processors, in cores (may be a fraction).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
}

impl Resources {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.cpu.is_none() && self.memory.is_none()
    }
}

/// A program that the agent keeps running.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Shell command line.
    pub command: String,
    /// TCP port it listens on inside the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The port of the gateway's machine that leads there; omitted: one of the gateway's range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// How to tell that it works; omitted: it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Services that must be healthy before this one starts. One that ended
    /// with status 0 for good counts, and one with neither port nor health check
    /// and `restart: no` is a job, which counts only then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<ServiceName>,
    /// When to start it again; omitted: on-failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Environment variables of its own, over the workspace's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// User it runs as; omitted: the workspace's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory, absolute or below the workspace's; omitted: the workspace's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Signal that asks it to end, such as SIGTERM (the default) or SIGQUIT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Time after the stop signal until it is killed; omitted: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_period: Option<Span>,
    /// Whether the workspace counts as in use as long as it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub busy: bool,
}

/// When a service that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    No,
    /// When it failed.
    #[default]
    OnFailure,
    /// Whenever it ends.
    Always,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DESIGN's sample as a YAML parser hands it over.
    const SAMPLE: &str = r#"{
        "name": "my-project", "provider": "docker",
        "remote": {"node": "node1", "user": "devuser", "port": 22},
        "user": "dev",
        "docker": {"image": "ubuntu:22.04"}, "lxc": {"image": "images:ubuntu/22.04"},
        "qemu": {"image": "ubuntu:22.04", "cpu": 4, "memory": "8G", "disk": "50G", "accel": "auto"},
        "resources": {"cpu": 2, "memory": "4G"},
        "env": {"RUST_LOG": "info"},
        "services": {
            "db": {"command": "postgres -D /data", "port": 5432},
            "web": {"command": "nginx -g 'daemon off;'", "port": 80, "health_check": "/health",
                    "depends_on": ["db"], "restart": "on-failure"}},
        "hooks": {"create": "./setup.sh", "up": "./up.sh", "down": "./down.sh"},
        "auto_up": true, "idle_timeout": "2h"}"#;

    fn parse(text: &str) -> Result<ProjectConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn every_key_of_the_sample_is_kept_over_a_round_trip() {
        let config = parse(SAMPLE).unwrap();
        assert_eq!(config.resources.memory, Some(ByteSize::from_bytes(4 << 30)));
        assert_eq!(
            config.idle_timeout.map(|t| t.as_duration().as_secs()),
            Some(7200)
        );
        let web = &config.services[&"web".parse().unwrap()];
        assert_eq!(
            web.health_check.as_ref().unwrap().probe,
            Probe::Http("/health".to_owned())
        );
        let stored = serde_json::to_string(&config).unwrap();
        assert_eq!(parse(&stored).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_refused_at_every_level() {
        for text in [
            r#"{"nmae": "x"}"#,
            r#"{"docker": {"image": "x", "tag": "y"}}"#,
            r#"{"services": {"a": {"command": "x", "prot": 1}}}"#,
            r#"{"services": {"a": {"command": "x", "health_check": {"tcp": 1, "intervall": "1s"}}}}"#,
            r#"{"hooks": {"start": "x"}}"#,
            r#"{"resources": {"cpus": 1}}"#,
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{text}: {error}");
        }
    }

    #[test]
    fn auto_up_takes_its_three_values_only() {
        let of = |text: &str| parse(text).map(|c| c.auto_up);
        assert_eq!(of(r#"{"auto_up": true}"#).unwrap(), Some(AutoUp::Unless));
        assert_eq!(of(r#"{"auto_up": false}"#).unwrap(), Some(AutoUp::Never));
        assert_eq!(
            of(r#"{"auto_up": "always"}"#).unwrap(),
            Some(AutoUp::Always)
        );
        assert!(of(r#"{"auto_up": "yes"}"#).is_err());
        assert!(of(r#"{"auto_up": 1}"#).is_err());
    }
}
