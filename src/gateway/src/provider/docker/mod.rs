//! Containers of a Docker engine.
//!
//! The agent is bind-mounted into the container and is its PID 1, so an image
//! needs nothing of ours. Its socket is in a directory that the node and the
//! container share. The workspace's disk is a named volume, which a rebuild keeps.
//! Containers, volumes and images that were built are found by their labels, never by name.

mod build;
mod container;
mod engine;
mod pull;
mod resources;
mod unusable;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::errors::Error;
use bollard::query_parameters::{
    EventsOptionsBuilder, LogsOptionsBuilder, RemoveVolumeOptionsBuilder,
    StopContainerOptionsBuilder,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::ProviderKind;

use super::{
    Context, Endpoint, Environment, Exit, ImageReference, LogOptions, LogStream, Placement,
    Provider, ProviderError, run_dir,
};
use crate::node::NodeTransport;
use crate::workspace::{Found, WorkspaceId};
use container::{
    Container, GATEWAY, RUN, WORKSPACE, labelled, named_volumes, needs_image, workspace_of,
};
use engine::{Engine, is_absent};
use pull::{Image, variables};

/// How long the engine may take to make a container that somebody else asked for.
const CREATION_LIMIT: Duration = Duration::from_secs(30);

/// How long one that is replaced may take to end.
const REPLACE_GRACE: Duration = Duration::from_secs(10);

/// Lines of its log that tell how a container ended.
const LAST_LINES: u32 = 20;

/// A Docker engine on a node.
#[derive(Debug)]
pub struct Docker {
    engine: Engine,
    gateway_id: String,
}

impl Docker {
    /// The engine that listens at `socket` of `node`, for the gateway of this id.
    #[must_use]
    pub fn new(
        node: Arc<dyn NodeTransport>,
        socket: PathBuf,
        gateway_id: String,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            engine: Engine::new(node, socket, tracker),
            gateway_id,
        }
    }

    /// The image of an environment, pulled or built where the engine lacks it.
    async fn image(
        &self,
        environment: &Environment,
        context: &Context,
    ) -> Result<Image, ProviderError> {
        let docker = environment.config.docker.as_ref();
        if let Some(build) = docker.and_then(|docker| docker.build.as_ref()) {
            return self.ensure_built(environment, build, context).await;
        }
        let image = docker.and_then(|docker| docker.image.as_deref());
        let image = ImageReference::parse(image.unwrap_or_default());
        let image = image.map_err(|error| ProviderError::Refused {
            operation: "read docker.image",
            problem: error.to_string(),
        })?;
        pull::ensure_image(&self.engine, &image, context).await
    }

    /// Removes images that were built for environments before this one.
    async fn tidy(&self, environment: &Environment, image: &Image) {
        // Nothing was ever built.
        if environment.generation == 1 && environment.build_context.is_none() {
            return;
        }
        let keep = image.reference.to_string();
        if let Err(error) = self.remove_images(&environment.id, Some(&keep)).await {
            // They go with the workspace.
            tracing::warn!(id = %environment.id, %error, "removing images built before");
        }
    }

    /// The config's variables as the container has them.
    async fn env(
        &self,
        environment: &Environment,
        container: &Container,
    ) -> Result<BTreeMap<String, String>, ProviderError> {
        let mut env = environment.config.env.clone();
        if !needs_image(&env) {
            return Ok(env);
        }
        let client = self.engine.client().await?;
        let inspected = client
            .inspect_container(&container.id, None)
            .await
            .map_err(|error| self.engine.failed("inspect container", error))?;
        let config = inspected.config.unwrap_or_default();
        let made = variables(config.env.unwrap_or_default());
        for (name, value) in &mut env {
            if let Some(made) = made.get(name) {
                value.clone_from(made);
            }
        }
        Ok(env)
    }
}

#[async_trait]
impl Provider for Docker {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Docker
    }

    async fn probe(&self) -> Result<String, ProviderError> {
        let client = self.engine.client().await?;
        let version = client
            .version()
            .await
            .map_err(|error| self.engine.failed("ask its version", error))?;
        Ok(format!(
            "Docker {}, API {}",
            version.version.unwrap_or_default(),
            client.client_version()
        ))
    }

    async fn create(
        &self,
        environment: &Environment,
        context: &Context,
    ) -> Result<Placement, ProviderError> {
        let wanted = |c: &Container| c.generation == Some(environment.generation);
        let there = self.of(&environment.id).await?;
        let container = match there.iter().find(|container| wanted(container)) {
            Some(container) => container.clone(),
            None => {
                // First the image: what cannot be replaced is not removed.
                let image = self.image(environment, context).await?;
                context.take_leave().await?;
                let step = context.progress.step("create container");
                let made = async {
                    self.stop(&environment.id, REPLACE_GRACE).await?;
                    self.remove_all(&environment.id, wanted).await?;
                    self.make(environment, &image).await?;
                    self.only(&environment.id).await
                };
                let container = step.end(made.await)?;
                self.tidy(environment, &image).await;
                container
            }
        };
        Ok(Placement {
            listen: PathBuf::from(RUN).join("agent.sock"),
            endpoint: Endpoint::Unix(environment.run_dir.join("agent.sock")),
            own_network: true,
            log_dir: None,
            workdir: PathBuf::from(environment.workspace_folder()),
            volumes: named_volumes(environment).map(PathBuf::from).collect(),
            env: self.env(environment, &container).await?,
            user: environment.config.user.clone().or(container.user),
        })
    }

    async fn start(&self, environment: &Environment) -> Result<(), ProviderError> {
        let client = self.engine.client().await?;
        let deadline = Instant::now() + CREATION_LIMIT;
        loop {
            let container = self.only(&environment.id).await?;
            match client.start_container(&container.id, None).await {
                Ok(()) => return Ok(()),
                // The engine lists a container a moment before it knows it.
                Err(error) if is_absent(&error) && Instant::now() < deadline => {
                    sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(self.engine.failed("start container", error)),
            }
        }
    }

    async fn exited(&self, id: &WorkspaceId) -> Result<Exit, ProviderError> {
        let container = self.only(id).await?;
        let client = self.engine.client().await?;
        let mut wait = std::pin::pin!(client.wait_container(&container.id, None));
        let status = match wait.next().await {
            Some(Ok(response)) => Some(response.status_code),
            Some(Err(Error::DockerContainerWaitError { code, .. })) => Some(code),
            Some(Err(error)) if is_absent(&error) => None,
            Some(Err(error)) => return Err(self.engine.failed("wait for container", error)),
            None => None,
        };
        let options = LogOptions {
            follow: false,
            tail: Some(LAST_LINES),
        };
        let log = match self.logs(id, options).await {
            Ok(stream) => stream
                .try_collect::<Vec<_>>()
                .await
                .unwrap_or_default()
                .concat(),
            Err(_) => Vec::new(),
        };
        Ok(Exit {
            status,
            log: String::from_utf8_lossy(&log).trim_end().to_owned(),
        })
    }

    async fn stop(&self, id: &WorkspaceId, grace: Duration) -> Result<(), ProviderError> {
        let client = self.engine.patient(grace + Duration::from_secs(60)).await?;
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        for container in self.of(id).await? {
            let options = StopContainerOptionsBuilder::default().t(seconds).build();
            match client.stop_container(&container.id, Some(options)).await {
                Ok(()) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(self.engine.failed("stop container", error)),
            }
        }
        Ok(())
    }

    async fn destroy(&self, id: &WorkspaceId) -> Result<(), ProviderError> {
        // The directory goes before the container does, with whose image it may have to be cleared.
        let before = self.of(id).await?.pop();
        if before.is_some() {
            self.stop(id, Duration::ZERO).await?;
        }
        let node = self.engine.node();
        let dir = run_dir(node.as_ref(), id);
        match (node.remove_tree(&dir).await, before) {
            (Err(error), Some(before)) if error.io_kind() == Some(ErrorKind::PermissionDenied) => {
                self.clear(id, &dir, &before).await?;
                node.remove_tree(&dir).await?;
            }
            (removed, _) => removed?,
        }
        self.remove_all(id, |_| false).await?;
        let client = self.engine.client().await?;
        for volume in self.volumes(WORKSPACE, id.as_str()).await? {
            let options = RemoveVolumeOptionsBuilder::default().force(true).build();
            match client.remove_volume(&volume.name, Some(options)).await {
                Ok(()) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(self.engine.failed("remove volume", error)),
            }
        }
        self.remove_images(id, None).await
    }

    async fn inspect(&self, id: &WorkspaceId) -> Result<Found, ProviderError> {
        let found = self.of(id).await?;
        if found.is_empty() {
            return Ok(Found::Absent);
        }
        let client = self.engine.client().await?;
        for container in found {
            // The list of containers lags behind the events, this does not.
            let state = match client.inspect_container(&container.id, None).await {
                Ok(inspected) => inspected.state.unwrap_or_default(),
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(self.engine.failed("inspect container", error)),
            };
            if state.running == Some(true) {
                return Ok(Found::Running);
            }
        }
        Ok(Found::Stopped)
    }

    async fn list(&self) -> Result<Vec<WorkspaceId>, ProviderError> {
        let containers = self.summaries(GATEWAY, &self.gateway_id).await?;
        let volumes = self.volumes(GATEWAY, &self.gateway_id).await?;
        let images = self.images(GATEWAY, &self.gateway_id).await?;
        let labels = containers
            .into_iter()
            .filter_map(|container| container.labels)
            .chain(volumes.into_iter().map(|volume| volume.labels))
            .chain(images.into_iter().map(|image| image.labels));
        let mut found: Vec<_> = labels.filter_map(|labels| workspace_of(&labels)).collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    async fn logs(
        &self,
        id: &WorkspaceId,
        options: LogOptions,
    ) -> Result<LogStream, ProviderError> {
        let container = self.only(id).await?;
        let tail = options
            .tail
            .map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let query = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .follow(options.follow)
            .tail(&tail)
            .build();
        let client = self.engine.client().await?;
        let node = self.engine.node().name();
        let lines = client.logs(&container.id, Some(query)).map(move |line| {
            line.map(bollard::container::LogOutput::into_bytes)
                .map_err(|error| ProviderError::Engine {
                    provider: ProviderKind::Docker,
                    node: node.clone(),
                    operation: "read log",
                    problem: error.to_string(),
                    remedy: None,
                })
        });
        Ok(lines.boxed())
    }

    async fn changes(
        &self,
    ) -> Result<BoxStream<'static, Result<WorkspaceId, ProviderError>>, ProviderError> {
        let mut filters = labelled(GATEWAY, &self.gateway_id);
        filters.insert("type".to_owned(), vec!["container".to_owned()]);
        filters.insert(
            "event".to_owned(),
            ["create", "start", "die", "destroy"]
                .map(str::to_owned)
                .to_vec(),
        );
        let client = self.engine.client().await?.clone();
        // The stream connects when it is first asked; by the engine's own clock
        // it begins now all the same.
        let info = client
            .info()
            .await
            .map_err(|error| self.engine.failed("ask its time", error))?;
        let now = info
            .system_time
            .and_then(|time| time.parse::<jiff::Timestamp>().ok());
        let since = now.map_or_else(
            || "0".to_owned(),
            |now| format!("{}.{:09}", now.as_second(), now.subsec_nanosecond()),
        );
        let options = EventsOptionsBuilder::default()
            .since(&since)
            .filters(&filters)
            .build();
        let node = self.engine.node().name();
        let events = client.events(Some(options)).filter_map(move |event| {
            let found = match event {
                Ok(event) => event
                    .actor
                    .and_then(|actor| workspace_of(&actor.attributes?))
                    .map(Ok),
                Err(error) => Some(Err(ProviderError::Unavailable {
                    provider: ProviderKind::Docker,
                    node: node.clone(),
                    problem: format!("its events ended: {error}"),
                    remedy: None,
                })),
            };
            std::future::ready(found)
        });
        Ok(events.boxed())
    }
}
