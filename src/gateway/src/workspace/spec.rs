//! From what a project says and what the command line says to what is run.

use vendetta_proto::spec::{AutoUp, ProjectConfig, ProviderKind, Remote};
use vendetta_proto::value::ByteSize;
use vendetta_proto::{NodeName, WorkspaceName};

use super::{ErrorKind, WorkspaceError};
use crate::provider::{ImageReference, MachineImage};

/// What the command line of `create` says; it wins over the project config.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// `--provider`.
    pub provider: Option<ProviderKind>,
    /// The node that `--remote` names or leads to.
    pub remote: Option<NodeName>,
    /// `--image`.
    pub image: Option<String>,
    /// `--user`.
    pub user: Option<String>,
    /// `--cpu`, in cores.
    pub cpu: Option<f64>,
    /// `--memory`.
    pub memory: Option<ByteSize>,
    /// `--env NAME=VALUE`, any number.
    pub env: Vec<(String, String)>,
    /// `--auto-up`.
    pub auto_up: Option<AutoUp>,
}

/// A project config that was checked, with what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// What runs it.
    pub provider: ProviderKind,
    /// When connecting brings it up.
    pub auto_up: AutoUp,
    /// The config as it is stored: every key given, overrides in place.
    pub config: ProjectConfig,
}

/// The working directory of sessions where a provider can place it freely. It
/// is on a disk that survives a rebuild.
pub const WORKSPACE_DIR: &str = "/workspace";

fn refuse(problem: impl Into<String>) -> WorkspaceError {
    WorkspaceError::new(ErrorKind::Usage, "config", problem)
}

impl Spec {
    /// Puts `overrides` over `config`, fills in defaults and checks the whole.
    ///
    /// # Errors
    /// Of kind [`ErrorKind::Usage`], naming the key.
    pub fn resolve(
        mut config: ProjectConfig,
        overrides: Overrides,
    ) -> Result<Self, WorkspaceError> {
        let provider = overrides
            .provider
            .or(config.provider)
            .unwrap_or_else(|| default_provider(&config, overrides.image.is_some()));
        config.provider = Some(provider);
        if let Some(node) = overrides.remote {
            config.remote = Some(Remote {
                node: node.to_string(),
                user: None,
                port: None,
            });
        }
        config.user = overrides.user.or(config.user);
        config.resources.cpu = overrides.cpu.or(config.resources.cpu);
        config.resources.memory = overrides.memory.or(config.resources.memory);
        config.env.extend(overrides.env);
        config.auto_up = overrides.auto_up.or(config.auto_up);
        if let Some(image) = overrides.image {
            set_image(&mut config, provider, image)?;
        }
        check_provider(&config, provider)?;
        check_common(&config)?;
        Ok(Self {
            provider,
            auto_up: config.auto_up.unwrap_or_default(),
            config,
        })
    }

    /// Reads a stored config back. It was checked when it was stored.
    #[must_use]
    pub fn stored(provider: ProviderKind, config: ProjectConfig) -> Self {
        Self {
            provider,
            auto_up: config.auto_up.unwrap_or_default(),
            config,
        }
    }

    /// The name of the node that it is meant for, as of its creation.
    #[must_use]
    pub fn remote(&self) -> &str {
        let remote = self.config.remote.as_ref();
        remote.map_or(NodeName::LOCAL, |remote| remote.node.as_str())
    }

    /// What it is made from, when the provider takes an image.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        let image = match self.provider {
            ProviderKind::Docker => self.config.docker.as_ref().map(|c| &c.image),
            ProviderKind::Lxc => self.config.lxc.as_ref().map(|c| &c.image),
            ProviderKind::Qemu => self.config.qemu.as_ref().map(|c| &c.image),
            ProviderKind::Host => None,
        };
        image.map(String::as_str)
    }

    /// Parts of the config that are stored, but that this version does not act
    /// on; one line each, for people.
    #[must_use]
    pub fn inactive(&self) -> Vec<String> {
        let config = &self.config;
        let mut lines = Vec::new();
        let mut note = |given: bool, text: &str| {
            if given {
                lines.push(text.to_owned());
            }
        };
        note(
            !config.services.is_empty(),
            "services are stored, not started yet",
        );
        note(!config.hooks.is_empty(), "hooks are stored, not run yet");
        note(
            config.idle_timeout.is_some(),
            "idle_timeout is stored, not acted upon yet",
        );
        note(
            self.provider == ProviderKind::Host && !config.resources.is_unlimited(),
            "resources are stored; provider host does not limit them",
        );
        note(
            self.provider == ProviderKind::Host && config.user.is_some(),
            "user is stored; provider host runs sessions as the gateway's own user",
        );
        note(
            self.provider != ProviderKind::Docker && config.docker.is_some(),
            "section docker is stored; another provider is used",
        );
        note(
            self.provider != ProviderKind::Lxc && config.lxc.is_some(),
            "section lxc is stored; another provider is used",
        );
        note(
            self.provider != ProviderKind::Qemu && config.qemu.is_some(),
            "section qemu is stored; another provider is used",
        );
        lines
    }
}

/// The provider whose section is there, when it is the only one.
fn default_provider(config: &ProjectConfig, image_given: bool) -> ProviderKind {
    match (&config.docker, &config.lxc, &config.qemu) {
        (None, Some(_), None) if !image_given => ProviderKind::Lxc,
        (None, None, Some(_)) if !image_given => ProviderKind::Qemu,
        _ => ProviderKind::Docker,
    }
}

fn set_image(
    config: &mut ProjectConfig,
    provider: ProviderKind,
    image: String,
) -> Result<(), WorkspaceError> {
    use vendetta_proto::spec::{DockerConfig, LxcConfig, QemuConfig};
    match provider {
        ProviderKind::Docker => config.docker = Some(DockerConfig { image }),
        ProviderKind::Lxc => config.lxc = Some(LxcConfig { image }),
        ProviderKind::Qemu => match &mut config.qemu {
            Some(qemu) => qemu.image = image,
            None => {
                config.qemu = Some(QemuConfig {
                    image,
                    cpu: None,
                    memory: None,
                    disk: None,
                    accel: None,
                });
            }
        },
        ProviderKind::Host => return Err(refuse("provider host takes no image")),
    }
    Ok(())
}

fn check_provider(config: &ProjectConfig, provider: ProviderKind) -> Result<(), WorkspaceError> {
    match provider {
        ProviderKind::Docker => {
            let Some(docker) = &config.docker else {
                return Err(refuse("provider docker needs an image")
                    .with_remedy("add --image IMAGE, or docker: {image: IMAGE} to the config"));
            };
            ImageReference::parse(&docker.image)
                .map_err(|error| refuse(format!("docker.image: {error}")))?;
            Ok(())
        }
        ProviderKind::Host => Ok(()),
        ProviderKind::Qemu => check_qemu(config),
        ProviderKind::Lxc => Err(refuse(format!(
            "provider {provider} is not built into this version"
        ))
        .with_remedy("use provider docker, qemu or host")),
    }
}

fn check_qemu(config: &ProjectConfig) -> Result<(), WorkspaceError> {
    let Some(qemu) = &config.qemu else {
        return Err(refuse("provider qemu needs an image")
            .with_remedy("add --image IMAGE, or qemu: {image: IMAGE} to the config"));
    };
    MachineImage::parse(&qemu.image).map_err(|error| refuse(format!("qemu.image: {error}")))?;
    if let Some(cpu) = qemu.cpu
        && !(1..=512).contains(&cpu)
    {
        return Err(refuse(format!(
            "qemu.cpu: {cpu} is not a number of processors between 1 and 512"
        )));
    }
    let memory = qemu.memory.or(config.resources.memory);
    for (key, size, least, most) in [
        ("memory", memory, 128 << 20, 16 << 40),
        ("disk", qemu.disk, 1 << 30, 64 << 40),
    ] {
        let Some(size) = size else { continue };
        if !(least..=most).contains(&size.as_bytes()) {
            let [least, most] = [least, most].map(ByteSize::from_bytes);
            return Err(refuse(format!(
                "qemu.{key}: {size} is not between {least} and {most}"
            )));
        }
    }
    Ok(())
}

fn check_common(config: &ProjectConfig) -> Result<(), WorkspaceError> {
    for (name, value) in &config.env {
        let mut letters = name.bytes();
        let begins = letters
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !begins || !letters.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(refuse(format!(
                "env: {name:?} is not a variable name; use letters, digits and '_'"
            )));
        }
        if value.contains('\0') {
            return Err(refuse(format!("env.{name}: the value has a NUL character")));
        }
    }
    if let Some(cpu) = config.resources.cpu
        && !(cpu.is_finite() && (0.01..=4096.0).contains(&cpu))
    {
        return Err(refuse(format!(
            "resources.cpu: {cpu} is not a number of processors between 0.01 and 4096"
        )));
    }
    if let Some(memory) = config.resources.memory
        && memory.as_bytes() < 6 << 20
    {
        return Err(refuse(format!(
            "resources.memory: {memory} is less than 6M, the least an engine takes"
        )));
    }
    if let Some(user) = &config.user {
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
        if user.is_empty() || user.len() > 256 || user.contains(odd) {
            return Err(refuse(format!(
                "user: {user:?} is not a user name or number"
            )));
        }
    }
    Ok(())
}

/// The name a workspace gets: the command line's, else the config's.
pub(super) fn name_of(
    given: Option<WorkspaceName>,
    config: &ProjectConfig,
) -> Result<WorkspaceName, WorkspaceError> {
    given.or_else(|| config.name.clone()).ok_or_else(|| {
        refuse("the workspace has no name")
            .with_remedy("ssh vendetta workspace create NAME, or name: NAME in the config")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> ProjectConfig {
        serde_json::from_value(json).unwrap()
    }

    fn resolve(json: serde_json::Value) -> Result<Spec, WorkspaceError> {
        Spec::resolve(config(json), Overrides::default())
    }

    #[test]
    fn the_command_line_wins_over_the_config() {
        let spec = Spec::resolve(
            config(serde_json::json!({
                "docker": {"image": "one"}, "user": "dev", "env": {"A": "1", "B": "1"},
            })),
            Overrides {
                image: Some("two:v2".to_owned()),
                user: Some("root".to_owned()),
                env: vec![("B".to_owned(), "2".to_owned())],
                ..Overrides::default()
            },
        )
        .unwrap();
        assert_eq!(spec.image(), Some("two:v2"));
        assert_eq!(spec.config.user.as_deref(), Some("root"));
        assert_eq!(spec.config.env["A"], "1");
        assert_eq!(spec.config.env["B"], "2");
        assert_eq!(
            (spec.provider, spec.remote()),
            (ProviderKind::Docker, "local")
        );
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_key_that_says_so() {
        for (json, word, code) in [
            (serde_json::json!({}), "image", 2),
            (
                serde_json::json!({"docker": {"image": "Bad Image"}}),
                "docker.image",
                2,
            ),
            (
                serde_json::json!({"docker": {"image": "x"}, "env": {"A-B": "1"}}),
                "A-B",
                2,
            ),
            (
                serde_json::json!({"docker": {"image": "x"}, "env": {"": "1"}}),
                "env",
                2,
            ),
            (
                serde_json::json!({"docker": {"image": "x"}, "resources": {"cpu": 0}}),
                "resources.cpu",
                2,
            ),
            (
                serde_json::json!({"docker": {"image": "x"}, "resources": {"memory": "1M"}}),
                "resources.memory",
                2,
            ),
            (
                serde_json::json!({"docker": {"image": "x"}, "user": "a b"}),
                "user",
                2,
            ),
            (serde_json::json!({"lxc": {"image": "x"}}), "lxc", 2),
            (serde_json::json!({"provider": "qemu"}), "image", 2),
            (serde_json::json!({"qemu": {"image": "x"}}), "qemu.image", 2),
            (
                serde_json::json!({"qemu": {"image": "debian:12", "cpu": 0}}),
                "qemu.cpu",
                2,
            ),
            (
                serde_json::json!({"qemu": {"image": "debian:12", "memory": "64M"}}),
                "qemu.memory",
                2,
            ),
            (
                serde_json::json!({"qemu": {"image": "debian:12"}, "resources": {"memory": "64M"}}),
                "qemu.memory",
                2,
            ),
            (
                serde_json::json!({"qemu": {"image": "debian:12", "disk": "1M"}}),
                "qemu.disk",
                2,
            ),
        ] {
            let error = resolve(json.clone()).unwrap_err();
            assert!(error.problem.contains(word), "{json}: {error}");
            assert_eq!(error.exit_code(), code, "{json}: {error}");
        }
    }

    #[test]
    fn what_is_not_acted_on_is_named() {
        let spec = resolve(serde_json::json!({
            "provider": "host", "resources": {"cpu": 1}, "idle_timeout": "2h",
            "services": {"db": {"command": "x"}}, "hooks": {"up": "x"}, "lxc": {"image": "y"},
        }))
        .unwrap();
        let lines = spec.inactive().join("\n");
        for word in ["services", "hooks", "idle_timeout", "resources", "lxc"] {
            assert!(lines.contains(word), "{word}: {lines}");
        }
        let plain = resolve(serde_json::json!({"docker": {"image": "x"}})).unwrap();
        assert!(plain.inactive().is_empty());
    }
}
