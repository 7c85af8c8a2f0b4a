//! The life of an instance: started, asked to end, made to end, removed, whatever the
//! engine still does with it.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::super::{Environment, ProviderError};
use super::engine::Trouble;
use super::files::Files;
use super::instance::{self, DIR, Instance};
use super::operation::{Other, done, settle};
use super::{Lxc, PAUSE, REMOVAL_LIMIT, log};
use crate::workspace::WorkspaceId;

/// How long an engine may go on with what somebody gave up waiting for.
const SETTLE_LIMIT: Duration = Duration::from_secs(3600);

impl Lxc {
    /// Waits until nothing goes on with an instance.
    pub(super) async fn settle(&self, instance: &str) -> Result<(), ProviderError> {
        let whose = |name: &str| name == instance;
        settle(&self.engine, &whose, Other::Finish, SETTLE_LIMIT)
            .await
            .map_err(|trouble| self.engine.failed("wait for the engine", trouble))
    }

    /// Ends what goes on with any instance of a workspace, whether it is there yet or not.
    pub(super) async fn interrupt(&self, id: &WorkspaceId) -> Result<(), ProviderError> {
        let whose = |name: &str| instance::workspace_of(name).as_ref() == Some(id);
        settle(&self.engine, &whose, Other::Cancel, SETTLE_LIMIT)
            .await
            .map_err(|trouble| self.engine.failed("wait for the engine", trouble))
    }

    /// Sees that an instance does not run.
    pub(super) async fn halt(
        &self,
        instance: &Instance,
        grace: Duration,
    ) -> Result<(), ProviderError> {
        let name = &instance.name;
        self.settle(name).await?;
        let _files = self.engine.files.lock(name).await;
        if !grace.is_zero() {
            let seconds = grace.as_secs().max(1);
            let order = json!({"action": "stop", "timeout": seconds, "force": false});
            let path = format!("/1.0/instances/{name}/state");
            let asked = done(
                &self.engine,
                Method::PUT,
                &path,
                Some(&order),
                grace + Duration::from_secs(60),
                None,
            );
            match asked.await {
                Ok(()) => return Ok(()),
                Err(Trouble::Provider(error)) => return Err(error),
                Err(trouble) if trouble.is_absent() => return Ok(()),
                // It ended by itself just now, or not in time: either way.
                Err(trouble) => tracing::debug!(name, %trouble, "stopping an instance"),
            }
        }
        match self.kill(name).await {
            Err(trouble) if trouble.is_absent() => Ok(()),
            other => other.map_err(|trouble| self.engine.failed("stop container", trouble)),
        }
    }

    /// Gives an instance the agent's config, and starts it.
    pub(super) async fn boot(
        &self,
        instance: &Instance,
        environment: &Environment,
    ) -> Result<(), Trouble> {
        let name = &instance.name;
        let node = self.engine.node();
        let config = node
            .read(&environment.run_dir.join("agent.json"))
            .await
            .map_err(|error| Trouble::Provider(error.into()))?;
        // Without one the agent says so in its log.
        if let Some(config) = config {
            let files = Files::of(&self.engine, name);
            files
                .replace(&format!("{DIR}/agent.json"), "0600", config)
                .await?;
        }
        let order = json!({"action": "start", "timeout": 60});
        let path = format!("/1.0/instances/{name}/state");
        match self.finish(Method::PUT, &path, Some(&order)).await {
            Err(trouble) if trouble.says(&["already running"]) => Ok(()),
            other => other,
        }
    }

    /// What liblxc says about an instance that did not start.
    pub(super) async fn why_not_started(&self, name: &str) -> String {
        let path = format!("/1.0/instances/{name}/logs/lxc.log");
        let request = hyper::Request::new(http_body_util::Full::default());
        let read = async {
            let response = self.engine.send(&path, request).await?;
            self.engine.bytes(response, log::MAX_LOG).await
        };
        let Ok(content) = read.await else {
            return String::new();
        };
        log::errors_in(&String::from_utf8_lossy(&content))
    }

    /// Removes an instance, whatever goes on with it.
    pub(super) async fn remove(&self, name: &str) -> Result<(), ProviderError> {
        let path = format!("/1.0/instances/{name}");
        let _files = self.engine.files.lock(&name.to_owned()).await;
        let deadline = Instant::now() + REMOVAL_LIMIT;
        loop {
            let removed = async {
                settle(
                    &self.engine,
                    &|one| one == name,
                    Other::Cancel,
                    REMOVAL_LIMIT,
                )
                .await?;
                self.kill(name).await?;
                self.finish(Method::DELETE, &path, None).await
            };
            match removed.await {
                Ok(()) => return Ok(()),
                Err(trouble) if trouble.is_absent() => return Ok(()),
                Err(Trouble::Provider(error)) => return Err(error),
                Err(trouble) if Instant::now() >= deadline => {
                    return Err(self.engine.failed("remove container", trouble));
                }
                Err(trouble) => tracing::debug!(name, %trouble, "removing an instance"),
            }
            sleep(PAUSE).await;
        }
    }

    /// Ends an instance at once; one that does not run is fine.
    pub(super) async fn kill(&self, name: &str) -> Result<(), Trouble> {
        let order = json!({"action": "stop", "force": true});
        let path = format!("/1.0/instances/{name}/state");
        match self.finish(Method::PUT, &path, Some(&order)).await {
            Err(trouble) if trouble.says(&["already stopped", "not running"]) => Ok(()),
            other => other,
        }
    }

    /// Has something done that takes a moment.
    pub(super) async fn finish(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(), Trouble> {
        done(&self.engine, method, path, body, REMOVAL_LIMIT, None).await
    }
}
