//! What a workspace is in the engine: a container, a volume, and their labels.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, ContainerSummary, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountType, RestartPolicy, RestartPolicyNameEnum, VolumeCreateRequest,
};

use super::super::Environment;
use super::pull::Image;
use crate::workspace::WorkspaceId;

/// Label: id of the workspace.
pub(super) const WORKSPACE: &str = "vendetta.workspace";
/// Label: id of the gateway.
pub(super) const GATEWAY: &str = "vendetta.gateway";
/// Label: [`Environment::generation`].
const GENERATION: &str = "vendetta.generation";
/// Label: the image's own user.
const USER: &str = "vendetta.user";

/// Where the agent's executable is in a container.
const AGENT: &str = "/.vendetta/agent";
/// Where the agent's config and socket are in a container.
pub(super) const RUN: &str = "/.vendetta/run";

/// A filter for everything with a label.
pub(super) fn labelled(label: &str, value: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{label}={value}")])])
}

/// Which workspace a set of labels belongs to.
pub(super) fn workspace_of(labels: &HashMap<String, String>) -> Option<WorkspaceId> {
    WorkspaceId::parse(labels.get(WORKSPACE)?)
}

/// A container of ours, as the engine lists it.
#[derive(Debug, Clone)]
pub(super) struct Container {
    /// The engine's id.
    pub id: String,
    pub generation: Option<u64>,
    /// The image's own user; none: root.
    pub user: Option<String>,
    /// The engine's id of its image.
    pub image: Option<String>,
    /// The agent's executable on the node.
    pub agent: Option<PathBuf>,
}

impl Container {
    pub(super) fn from_summary(summary: ContainerSummary) -> Option<Self> {
        let labels = summary.labels.unwrap_or_default();
        let mut mounts = summary.mounts.unwrap_or_default().into_iter();
        let agent = mounts.find(|mount| mount.destination.as_deref() == Some(AGENT));
        Some(Self {
            id: summary.id?,
            generation: labels.get(GENERATION).and_then(|text| text.parse().ok()),
            user: labels.get(USER).filter(|user| !user.is_empty()).cloned(),
            image: summary.image_id,
            agent: agent.and_then(|mount| mount.source).map(PathBuf::from),
        })
    }
}

/// Name of a workspace's container: for people; we find it by its labels.
pub(super) fn container_name(environment: &Environment) -> String {
    format!("vendetta-{}-{}", environment.name, environment.id)
}

/// Name of a workspace's volume.
fn volume_name(id: &WorkspaceId) -> String {
    format!("vendetta-{id}")
}

/// Name and place of each volume of a workspace.
fn volumes(environment: &Environment) -> Vec<(String, &str)> {
    let own = volume_name(&environment.id);
    let more: Vec<_> = named(environment)
        .map(|(name, path)| (format!("{own}-{name}"), path))
        .collect();
    std::iter::once((own, environment.workspace_folder()))
        .chain(more)
        .collect()
}

/// Name and place of the volumes that the config names.
fn named(environment: &Environment) -> impl Iterator<Item = (&str, &str)> {
    let docker = environment.config.docker.iter();
    docker
        .flat_map(|docker| &docker.volumes)
        .map(|(name, path)| (name.as_str(), path.as_str()))
}

/// Where the volumes are that the config names.
pub(super) fn named_volumes(environment: &Environment) -> impl Iterator<Item = &str> {
    named(environment).map(|(_, path)| path)
}

pub(super) fn labels(id: &WorkspaceId, gateway: &str) -> HashMap<String, String> {
    HashMap::from([
        (WORKSPACE.to_owned(), id.to_string()),
        (GATEWAY.to_owned(), gateway.to_owned()),
    ])
}

/// The volumes that a workspace's container needs.
pub(super) fn volume_requests(
    environment: &Environment,
    gateway: &str,
) -> Vec<VolumeCreateRequest> {
    let request = |(name, _)| VolumeCreateRequest {
        name: Some(name),
        labels: Some(labels(&environment.id, gateway)),
        ..VolumeCreateRequest::default()
    };
    volumes(environment).into_iter().map(request).collect()
}

/// What begins a variable that the image sets, in a value of the config.
const OF_THE_IMAGE: &str = "${containerEnv:";

/// Whether a value needs to know what the image sets.
pub(super) fn needs_image(env: &BTreeMap<String, String>) -> bool {
    env.values().any(|value| value.contains(OF_THE_IMAGE))
}

/// `value` with `${containerEnv:NAME}` replaced by what the image sets, which may be nothing.
fn expanded(value: &str, image: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once(OF_THE_IMAGE) {
        let Some((name, behind)) = after.split_once('}') else {
            break;
        };
        expanded.push_str(before);
        expanded.push_str(image.get(name).map_or("", String::as_str));
        rest = behind;
    }
    expanded.push_str(rest);
    expanded
}

/// A directory or file of the node in a container.
fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

/// A container that clears the run directory of a workspace and ends: root in one that was
/// there before may have made what only root can remove. None when that one did not
/// say with what it was made.
pub(super) fn clearer(
    id: &WorkspaceId,
    gateway: &str,
    run_dir: &Path,
    before: &Container,
) -> Option<ContainerCreateBody> {
    let agent = before.agent.as_deref()?;
    Some(ContainerCreateBody {
        image: Some(before.image.clone()?),
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        entrypoint: Some([AGENT, "clear", RUN].map(str::to_owned).to_vec()),
        cmd: Some(Vec::new()),
        labels: Some(labels(id, gateway)),
        network_disabled: Some(true),
        host_config: Some(HostConfig {
            mounts: Some(vec![bind(agent, AGENT, true), bind(run_dir, RUN, false)]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    })
}

/// The container: the agent as PID 1, root in it whatever the image says, so
/// that it can become the user of each session.
pub(super) fn body(environment: &Environment, gateway: &str, image: &Image) -> ContainerCreateBody {
    let mut labels = labels(&environment.id, gateway);
    labels.insert(GENERATION.to_owned(), environment.generation.to_string());
    labels.insert(USER.to_owned(), image.user.clone());
    let config = &environment.config;
    let disk = |(name, path): (String, &str)| Mount {
        typ: Some(MountType::VOLUME),
        source: Some(name),
        target: Some(path.to_owned()),
        ..Mount::default()
    };
    let mut mounts = vec![
        bind(&environment.agent, AGENT, true),
        bind(&environment.run_dir, RUN, false),
    ];
    mounts.extend(volumes(environment).into_iter().map(disk));
    let nano_cpus = config.resources.cpu.map(|cores| {
        // Checked to lie between 0.01 and 4096.
        #[allow(clippy::cast_possible_truncation)]
        let nano = (cores * 1e9).round() as i64;
        nano
    });
    let memory = config
        .resources
        .memory
        .map(|size| i64::try_from(size.as_bytes()).unwrap_or(i64::MAX));
    ContainerCreateBody {
        image: Some(image.reference.to_string()),
        hostname: Some(environment.name.to_string()),
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        entrypoint: Some(
            [AGENT, "serve", "--config", &format!("{RUN}/agent.json")]
                .map(str::to_owned)
                .to_vec(),
        ),
        env: Some(
            config
                .env
                .iter()
                .map(|(name, value)| format!("{name}={}", expanded(value, &image.env)))
                .collect(),
        ),
        labels: Some(labels),
        stop_signal: Some("SIGTERM".to_owned()),
        // The image's own check is of the program that the image would run.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }),
        host_config: Some(HostConfig {
            mounts: Some(mounts),
            nano_cpus,
            memory,
            // What runs after a reboot is for the gateway to say.
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), "10m".to_owned()),
                    ("max-file".to_owned(), "2".to_owned()),
                ])),
            }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_image_are_put_in() {
        let image = BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]);
        for (value, want) in [
            ("", ""),
            (
                "/x:${containerEnv:PATH}:${containerEnv:PATH}",
                "/x:/bin:/bin",
            ),
            ("${containerEnv:NONE}x", "x"),
            ("${containerEnv:PATH", "${containerEnv:PATH"),
            ("${PATH}", "${PATH}"),
        ] {
            assert_eq!(expanded(value, &image), want, "{value}");
        }
    }
}
