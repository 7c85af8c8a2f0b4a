//! What a workspace is in the engine: an instance, a volume, and their labels.

use serde_json::{Map, Value, json};

use super::super::Environment;
use super::image::LxcImage;
use crate::workspace::WorkspaceId;

/// Label: id of the workspace.
pub(super) const WORKSPACE: &str = "user.vendetta.workspace";
/// Label: id of the gateway.
pub(super) const GATEWAY: &str = "user.vendetta.gateway";
/// Label: [`Environment::generation`].
const GENERATION: &str = "user.vendetta.generation";
/// Label: all that the agent needs is in it.
const COMPLETE: &str = "user.vendetta.complete";

/// Where all of ours is in an instance: in its root's hands, and not in /run, which its
/// init mounts when it likes.
pub(super) const DIR: &str = "/.vendetta";

/// Longest name of an instance: it is a host name (RFC 1123).
const MAX_NAME: usize = 63;

/// An instance of ours, as the engine lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    /// Its name, by which the engine knows it.
    pub name: String,
    pub workspace: WorkspaceId,
    pub generation: Option<u64>,
    /// Whether the making of it was not cut off.
    pub complete: bool,
    pub running: bool,
}

impl Instance {
    /// Reads one of this gateway; none: it is somebody else's.
    pub(super) fn read(value: &Value, gateway: &str) -> Option<Self> {
        let config = value.get("config")?;
        let label = |key: &str| config.get(key).and_then(Value::as_str);
        if label(GATEWAY) != Some(gateway) {
            return None;
        }
        let status = value.get("status").and_then(Value::as_str);
        Some(Self {
            name: value.get("name")?.as_str()?.to_owned(),
            workspace: WorkspaceId::parse(label(WORKSPACE)?)?,
            generation: label(GENERATION).and_then(|text| text.parse().ok()),
            complete: label(COMPLETE) == Some("true"),
            running: !matches!(status, None | Some("Stopped" | "Error")),
        })
    }
}

/// Name of an instance: for people, and to tell from an event which workspace it is
/// about; it is found by its labels. Each generation has its own, so that one is made
/// before the other is removed.
pub(super) fn instance_name(environment: &Environment) -> String {
    let tail = format!("-{}-{}", environment.id, environment.generation);
    let name = environment.name.as_str();
    let name = name.get(..MAX_NAME - tail.len()).unwrap_or(name);
    format!("{}{tail}", name.trim_end_matches('-'))
}

/// The workspace of an instance of this name, if it is one of a gateway.
pub(super) fn workspace_of(name: &str) -> Option<WorkspaceId> {
    let mut parts = name.rsplit('-');
    parts.next()?.parse::<u64>().ok()?;
    WorkspaceId::parse(parts.next()?)
}

/// Name of a workspace's volume.
pub(super) fn volume_name(id: &WorkspaceId) -> String {
    format!("vendetta-{id}")
}

pub(super) fn volume(id: &WorkspaceId, gateway: &str) -> Value {
    json!({
        "name": volume_name(id),
        "type": "custom",
        "content_type": "filesystem",
        "config": {WORKSPACE: id.as_str(), GATEWAY: gateway},
    })
}

/// Which workspace a volume of this gateway belongs to.
pub(super) fn workspace_of_volume(volume: &Value, gateway: &str) -> Option<WorkspaceId> {
    let config = volume.get("config")?;
    let label = |key: &str| config.get(key).and_then(Value::as_str);
    (label(GATEWAY) == Some(gateway)).then_some(())?;
    WorkspaceId::parse(label(WORKSPACE)?)
}

/// Where a new instance goes, and its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ground {
    /// The storage pool.
    pub pool: String,
    /// Whether the default profile gives an instance its root disk.
    pub rooted: bool,
}

/// The user of the node that the agent's socket is to belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The order for an instance: a system container, unprivileged whatever the default profile
/// says.
///
/// The agent's executable is the node's own, seen through a mount, so nothing is sent;
/// the engine listens for us on the node and connects inside, so that an environment
/// can write nothing on the node.
pub(super) fn order(
    environment: &Environment,
    gateway: &str,
    source: &Source,
    ground: &Ground,
    volume_pool: &str,
    owner: Owner,
) -> Value {
    let resources = &environment.config.resources;
    let mut config = Map::new();
    let mut set = |key: &str, value: String| config.insert(key.to_owned(), value.into());
    set(GATEWAY, gateway.to_owned());
    set(WORKSPACE, environment.id.to_string());
    set(GENERATION, environment.generation.to_string());
    set("security.privileged", "false".to_owned());
    // What runs after a reboot is for the gateway to say.
    set("boot.autostart", "false".to_owned());
    if let Some(cores) = resources.cpu {
        let (key, value) = cpu_limit(cores);
        set(key, value);
    }
    if let Some(memory) = resources.memory {
        set("limits.memory", memory.as_bytes().to_string());
    }
    let mut devices = json!({
        "vendetta-agent": {
            "type": "disk",
            "source": environment.agent.display().to_string(),
            "path": format!("{DIR}/agent"),
            "readonly": "true",
        },
        "vendetta-workspace": {
            "type": "disk",
            "pool": volume_pool,
            "source": volume_name(&environment.id),
            "path": environment.workspace_folder(),
        },
        "vendetta-socket": {
            "type": "proxy",
            "bind": "host",
            "listen": format!("unix:{}", environment.run_dir.join("agent.sock").display()),
            "connect": format!("unix:{DIR}/run/agent.sock"),
            "uid": owner.uid.to_string(),
            "gid": owner.gid.to_string(),
            "mode": "0600",
        },
    });
    if !ground.rooted
        && let Some(devices) = devices.as_object_mut()
    {
        let root = json!({"type": "disk", "path": "/", "pool": ground.pool});
        devices.insert("root".to_owned(), root);
    }
    json!({
        "name": instance_name(environment),
        "type": "container",
        "profiles": ["default"],
        "config": config,
        "devices": devices,
        "source": source.order(),
    })
}

/// The change of an instance's config that says that it is complete, with what liblxc
/// has to know besides.
pub(super) fn completed(liblxc: Option<&str>) -> Value {
    match liblxc {
        Some(lines) => json!({"config": {COMPLETE: "true", "raw.lxc": lines}}),
        None => json!({"config": {COMPLETE: "true"}}),
    }
}

/// Whole processors are given as such, so that programs count them; a part of one is a
/// share of time.
fn cpu_limit(cores: f64) -> (&'static str, String) {
    // Checked to lie between 0.01 and 4096.
    #[allow(clippy::cast_possible_truncation)]
    if cores.fract() == 0.0 {
        ("limits.cpu", (cores as i64).to_string())
    } else {
        let milliseconds = ((cores * 100.0).round() as i64).max(1);
        ("limits.cpu.allowance", format!("{milliseconds}ms/100ms"))
    }
}

/// Where the engine gets an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// It has it.
    Fingerprint(String),
    /// From a server; it keeps a copy for as long as its settings say.
    Server { server: &'static str, alias: String },
}

impl Source {
    pub(super) fn of(
        image: &LxcImage,
        server: Option<&'static str>,
        fingerprint: Option<String>,
    ) -> Option<Self> {
        match (server, fingerprint) {
            (Some(server), _) => Some(Self::Server {
                server,
                alias: image.name().to_owned(),
            }),
            (None, Some(fingerprint)) => Some(Self::Fingerprint(fingerprint)),
            (None, None) => None,
        }
    }

    fn order(&self) -> Value {
        match self {
            Self::Fingerprint(fingerprint) => {
                json!({"type": "image", "fingerprint": fingerprint})
            }
            Self::Server { server, alias } => json!({
                "type": "image",
                "mode": "pull",
                "server": server,
                "protocol": "simplestreams",
                "alias": alias,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn environment(name: &str, generation: u64) -> Environment {
        Environment {
            id: WorkspaceId::parse("0a1b2c3d").unwrap(),
            name: name.parse().unwrap(),
            generation,
            build_context: None,
            config: vendetta_proto::spec::ProjectConfig::default(),
            agent: "/s/agent/abc".into(),
            run_dir: "/s/w/0a1b2c3d".into(),
        }
    }

    #[test]
    fn a_name_tells_people_and_events_the_workspace() {
        assert_eq!(instance_name(&environment("web", 2)), "web-0a1b2c3d-2");
        for other in ["web", "web-0a1b2c3d", "web-0a1b2c3d-x", "0a1b2c3d", "-", ""] {
            assert_eq!(workspace_of(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn every_name_is_a_host_name_and_leads_back(name in "[a-z]([a-z0-9-]{0,60}[a-z0-9])?", generation: u64) {
            let Ok(parsed) = name.parse::<vendetta_proto::WorkspaceName>() else { return Ok(()) };
            let environment = Environment { name: parsed, ..environment("x", generation) };
            let made = instance_name(&environment);
            prop_assert!(made.len() <= MAX_NAME, "{made}");
            prop_assert!(made.starts_with(|c: char| c.is_ascii_lowercase()), "{made}");
            prop_assert_eq!(workspace_of(&made), Some(environment.id));
        }
    }

    #[test]
    fn only_what_carries_our_label_is_ours() {
        let value = json!({"name": "web-0a1b2c3d-2", "status": "Running", "config": {
            GATEWAY: "us", WORKSPACE: "0a1b2c3d", GENERATION: "2",
        }});
        let instance = Instance::read(&value, "us").unwrap();
        assert_eq!((instance.generation, instance.complete), (Some(2), false));
        assert!(instance.running);
        assert_eq!(Instance::read(&value, "them"), None);
        assert_eq!(Instance::read(&json!({}), "us"), None);
    }

    #[test]
    fn processors_are_counted_when_they_are_whole() {
        assert_eq!(cpu_limit(2.0), ("limits.cpu", "2".to_owned()));
        assert_eq!(
            cpu_limit(0.5),
            ("limits.cpu.allowance", "50ms/100ms".to_owned())
        );
        assert_eq!(
            cpu_limit(0.01),
            ("limits.cpu.allowance", "1ms/100ms".to_owned())
        );
    }
}
