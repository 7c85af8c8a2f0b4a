//! Finding, making and removing what a workspace is in the engine.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use futures::StreamExt;
use tokio::time::{Instant, sleep};

use super::super::{Environment, ProviderError};
use super::container::{self, Container, GATEWAY, WORKSPACE, labelled};
use super::engine::{self, is_absent, is_conflict};
use super::pull::Image;
use super::{CREATION_LIMIT, Docker};
use crate::workspace::WorkspaceId;

/// How long the engine may take to remove a container that it is removing already.
const REMOVAL_LIMIT: Duration = Duration::from_secs(60);

impl Docker {
    /// The filter for what this gateway made with a label.
    pub(super) fn ours(&self, label: &str, value: &str) -> HashMap<String, Vec<String>> {
        let mut filters = labelled(label, value);
        if let Some(labels) = filters.get_mut("label") {
            labels.push(format!("{GATEWAY}={}", self.gateway_id));
        }
        filters
    }

    /// Containers of ours with a label.
    pub(super) async fn containers(
        &self,
        label: &str,
        value: &str,
    ) -> Result<Vec<Container>, ProviderError> {
        let found = self.summaries(label, value).await?;
        Ok(found
            .into_iter()
            .filter_map(Container::from_summary)
            .collect())
    }

    pub(super) async fn summaries(
        &self,
        label: &str,
        value: &str,
    ) -> Result<Vec<bollard::models::ContainerSummary>, ProviderError> {
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&self.ours(label, value))
            .build();
        let client = self.engine.client().await?;
        client
            .list_containers(Some(options))
            .await
            .map_err(|error| self.engine.failed("list containers", error))
    }

    pub(super) async fn of(&self, id: &WorkspaceId) -> Result<Vec<Container>, ProviderError> {
        self.containers(WORKSPACE, id.as_str()).await
    }

    /// The one container of a workspace.
    pub(super) async fn only(&self, id: &WorkspaceId) -> Result<Container, ProviderError> {
        let mut found = self.of(id).await?;
        found.sort_by_key(|container| container.generation);
        found.pop().ok_or(ProviderError::NoEnvironment)
    }

    pub(super) async fn remove(&self, container: &Container) -> Result<(), ProviderError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true);
        let client = self.engine.patient(REMOVAL_LIMIT).await?;
        match client
            .remove_container(&container.id, Some(options.build()))
            .await
        {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(self.engine.failed("remove container", error)),
        }
    }

    /// Removes all containers of a workspace but those that `keep` names, and
    /// waits for removals that somebody else began.
    pub(super) async fn remove_all(
        &self,
        id: &WorkspaceId,
        keep: impl Fn(&Container) -> bool,
    ) -> Result<(), ProviderError> {
        let deadline = Instant::now() + REMOVAL_LIMIT;
        let mut pause = Duration::ZERO;
        loop {
            let mut found = self.of(id).await?;
            found.retain(|container| !keep(container));
            if found.is_empty() {
                return Ok(());
            }
            for container in &found {
                match self.remove(container).await {
                    Err(error) if Instant::now() >= deadline => return Err(error),
                    Err(error) => tracing::debug!(%id, %error, "removing a container"),
                    Ok(()) => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(self
                    .engine
                    .unavailable("it keeps a removed container".to_owned(), None));
            }
            sleep(pause).await;
            pause = Duration::from_millis(100);
        }
    }

    pub(super) async fn make(
        &self,
        environment: &Environment,
        image: &Image,
    ) -> Result<(), ProviderError> {
        let client = self.engine.client().await?;
        for volume in container::volume_requests(environment, &self.gateway_id) {
            client
                .create_volume(volume)
                .await
                .map_err(|error| self.engine.failed("create volume", error))?;
        }
        let name = container::container_name(environment);
        let deadline = Instant::now() + CREATION_LIMIT;
        loop {
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let body = container::body(environment, &self.gateway_id, image);
            match client.create_container(Some(options), body).await {
                Ok(_) => return Ok(()),
                Err(error) if is_conflict(&error) && Instant::now() < deadline => {
                    // A call that somebody gave up waiting for has the name: it
                    // either becomes the container, or gives the name back.
                    let there = self.of(&environment.id).await?;
                    if there
                        .iter()
                        .any(|c| c.generation == Some(environment.generation))
                    {
                        return Ok(());
                    }
                    sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(self.engine.failed(engine::CREATE, error)),
            }
        }
    }

    /// Has root clear the run directory of a workspace whose container was `before`.
    pub(super) async fn clear(
        &self,
        id: &WorkspaceId,
        run_dir: &Path,
        before: &Container,
    ) -> Result<(), ProviderError> {
        let Some(body) = container::clearer(id, &self.gateway_id, run_dir, before) else {
            return Ok(());
        };
        let failed = |error| self.engine.failed("clear run directory", error);
        let client = self.engine.client().await?;
        let options = CreateContainerOptionsBuilder::default().build();
        let made = client.create_container(Some(options), body).await;
        let clearer = made.map_err(failed)?.id;
        client
            .start_container(&clearer, None)
            .await
            .map_err(failed)?;
        // How it ended is seen by what is left.
        let _ = client.wait_container(&clearer, None).next().await;
        Ok(())
    }

    pub(super) async fn volumes(
        &self,
        label: &str,
        value: &str,
    ) -> Result<Vec<bollard::models::Volume>, ProviderError> {
        let options = ListVolumesOptionsBuilder::default()
            .filters(&labelled(label, value))
            .build();
        let client = self.engine.client().await?;
        let found = client
            .list_volumes(Some(options))
            .await
            .map_err(|error| self.engine.failed("list volumes", error))?;
        let ours =
            |volume: &bollard::models::Volume| volume.labels.get(GATEWAY) == Some(&self.gateway_id);
        Ok(found
            .volumes
            .unwrap_or_default()
            .into_iter()
            .filter(ours)
            .collect())
    }
}
