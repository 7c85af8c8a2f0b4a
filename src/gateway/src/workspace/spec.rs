//! From what a project says and what the command line says to what is run.

use std::time::Duration;

use vendetta_proto::spec::{AutoUp, Build, ProjectConfig, ProviderKind, Remote};
use vendetta_proto::{NodeName, WorkspaceName};

use super::check::{Wrong, check};

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
    pub memory: Option<vendetta_proto::value::ByteSize>,
    /// `--env NAME=VALUE`, any number.
    pub env: Vec<(String, String)>,
    /// `--auto-up`.
    pub auto_up: Option<AutoUp>,
}

impl Overrides {
    /// Whether they say what is at `key` of the config.
    #[must_use]
    pub fn say(&self, key: &[String]) -> bool {
        let parts: Vec<&str> = key.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["provider", ..] => self.provider.is_some(),
            ["remote", ..] => self.remote.is_some(),
            ["docker" | "lxc" | "qemu", "image"] => self.image.is_some(),
            ["user"] => self.user.is_some(),
            ["resources", "cpu"] => self.cpu.is_some(),
            ["resources", "memory"] => self.memory.is_some(),
            ["env", name] => self.env.iter().any(|(given, _)| given == name),
            ["auto_up"] => self.auto_up.is_some(),
            _ => false,
        }
    }
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

/// The working directory of sessions where a provider can place it freely and
/// the config says no other. It is on a disk that survives a rebuild.
pub const WORKSPACE_DIR: &str = vendetta_proto::spec::WORKSPACE_FOLDER;

impl Spec {
    /// Puts `overrides` over `config`, fills in defaults and checks the whole.
    ///
    /// # Errors
    /// The key that is wrong.
    pub fn resolve(mut config: ProjectConfig, overrides: Overrides) -> Result<Self, Wrong> {
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
        if let Some(qemu) = &mut config.qemu {
            // What the section says would win over the limits that all providers have.
            qemu.cpu = qemu.cpu.filter(|_| overrides.cpu.is_none());
            qemu.memory = qemu.memory.filter(|_| overrides.memory.is_none());
        }
        config.user = overrides.user.or(config.user);
        config.resources.cpu = overrides.cpu.or(config.resources.cpu);
        config.resources.memory = overrides.memory.or(config.resources.memory);
        config.env.extend(overrides.env);
        config.auto_up = overrides.auto_up.or(config.auto_up);
        if let Some(image) = overrides.image {
            set_image(&mut config, provider, image)?;
        }
        check(&config, provider)?;
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
            ProviderKind::Docker => self.config.docker.as_ref().and_then(|c| c.image.as_ref()),
            ProviderKind::Lxc => self.config.lxc.as_ref().map(|c| &c.image),
            ProviderKind::Qemu => self.config.qemu.as_ref().map(|c| &c.image),
            ProviderKind::Host => None,
        };
        image.map(String::as_str)
    }

    /// How the image is built that it is made from.
    #[must_use]
    pub fn build(&self) -> Option<&Build> {
        match (self.provider, &self.config.docker) {
            (ProviderKind::Docker, Some(docker)) => docker.build.as_ref(),
            _ => None,
        }
    }

    /// What it is made from, for people: the image, or the Dockerfile.
    #[must_use]
    pub fn made_from(&self) -> Option<String> {
        let dockerfile = || self.build().map(Build::dockerfile_path);
        self.image().map(str::to_owned).or_else(dockerfile)
    }

    /// How long nothing may use it before it is stopped; none: for ever.
    #[must_use]
    pub fn idle_timeout(&self) -> Option<Duration> {
        let timeout = self.config.idle_timeout?.as_duration();
        (!timeout.is_zero()).then_some(timeout)
    }

    /// Whether a start brings anything up in the environment: services, or what
    /// its hook starts.
    #[must_use]
    pub fn starts_something(&self) -> bool {
        !self.config.services.is_empty() || self.config.hooks.up.is_some()
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
            self.provider == ProviderKind::Host && !config.resources.is_unlimited(),
            "resources are stored; provider host does not limit them",
        );
        note(
            self.provider == ProviderKind::Host && config.user.is_some(),
            "user is stored; provider host runs sessions as the gateway's own user",
        );
        note(
            self.provider == ProviderKind::Host && config.workspace_folder.is_some(),
            "workspace_folder is stored; provider host makes a directory of its own",
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
) -> Result<(), Wrong> {
    use vendetta_proto::spec::{LxcConfig, QemuConfig};
    match provider {
        ProviderKind::Docker => {
            let docker = config.docker.get_or_insert_default();
            docker.image = Some(image);
            docker.build = None;
        }
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
        ProviderKind::Host => {
            return Err(Wrong::new(&["provider"], "provider host takes no image"));
        }
    }
    Ok(())
}

/// The name a workspace gets: the command line's, else the config's.
pub(super) fn name_of(
    given: Option<WorkspaceName>,
    config: &ProjectConfig,
) -> Result<WorkspaceName, Wrong> {
    given.or_else(|| config.name.clone()).ok_or_else(|| {
        Wrong::new(&[], "the workspace has no name")
            .with_remedy("ssh vendetta workspace create NAME, or name: NAME in the config")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> ProjectConfig {
        serde_json::from_value(json).unwrap()
    }

    fn resolve(json: serde_json::Value) -> Result<Spec, Wrong> {
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
    fn an_image_of_the_command_line_is_used_instead_of_a_build_and_volumes_stay() {
        let spec = Spec::resolve(
            config(serde_json::json!({
                "docker": {"build": {"target": "dev"}, "volumes": {"cache": "/cache"}},
            })),
            Overrides {
                image: Some("two:v2".to_owned()),
                ..Overrides::default()
            },
        )
        .unwrap();
        assert_eq!((spec.image(), spec.build()), (Some("two:v2"), None));
        assert_eq!(spec.config.docker.unwrap().volumes["cache"], "/cache");
    }

    #[test]
    fn the_command_line_wins_over_the_section_of_a_machine_too() {
        let json = serde_json::json!({
            "qemu": {"image": "debian:12", "cpu": 1, "memory": "1G", "disk": "9G"},
        });
        let spec = Spec::resolve(
            config(json),
            Overrides {
                memory: Some("2G".parse().unwrap()),
                ..Overrides::default()
            },
        );
        let config = spec.unwrap().config;
        let qemu = config.qemu.unwrap();
        assert_eq!((qemu.cpu, qemu.memory), (Some(1), None));
        assert_eq!(config.resources.memory, "2G".parse().ok());
    }

    #[test]
    fn what_is_not_acted_on_is_named() {
        let spec = resolve(serde_json::json!({
            "provider": "host", "resources": {"cpu": 1}, "lxc": {"image": "y"},
        }))
        .unwrap();
        let lines = spec.inactive().join("\n");
        for word in ["resources", "lxc"] {
            assert!(lines.contains(word), "{word}: {lines}");
        }
        let plain = resolve(serde_json::json!({"docker": {"image": "x"}})).unwrap();
        assert!(plain.inactive().is_empty());
    }
}
