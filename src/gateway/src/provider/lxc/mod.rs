//! System containers of Incus or LXD, which share a REST API; whichever answers first
//! serves, and then no other.
//!
//! ```text
//!   POST instances ──▶ incomplete ── what starts the agent is in it ──▶ complete
//!                          │                                               │
//!                   cut off: removed                       PUT state: stopped ⇄ running
//! ```
//!
//! A container boots its image's own init, which starts the agent, again after each
//! restart of the container. The agent's executable is mounted from the node; the
//! engine listens on a socket beside the agent's config on the node and connects to the
//! agent's own inside (a proxy device), so that the container can write nothing on the
//! node. The workspace's disk is a custom volume, which a rebuild keeps. Instances and volumes
//! are found by their labels, never by name.
//!
//! An engine goes on with what it was asked for when nobody waits any more. So whoever
//! changes an instance first waits until nothing goes on with it, and one call at a time
//! works on a workspace.

mod choice;
mod engine;
mod events;
mod files;
mod image;
mod init;
mod instance;
mod life;
mod listing;
mod locks;
mod log;
mod operation;
mod resources;
mod unusable;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use vendetta_proto::spec::ProviderKind;

use super::{
    Context, Endpoint, Environment, Exit, LogOptions, LogStream, Placement, Provider,
    ProviderError, run_dir,
};
use crate::node::NodeTransport;
use crate::workspace::{Found, WorkspaceId};
use engine::{Engine, Trouble};
pub use image::{InvalidLxcImage, LxcImage};
use instance::{DIR, Instance};
use locks::Locks;

/// Where engines listen that were installed as usual, the preferred first.
pub const LXC_SOCKETS: [&str; 4] = [
    "/var/lib/incus/unix.socket",
    "/run/incus/unix.socket",
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
];

/// How long the engine may take to remove an instance or a volume.
const REMOVAL_LIMIT: Duration = Duration::from_secs(120);

/// Time between two tries of what the engine is not ready for.
const PAUSE: Duration = Duration::from_millis(100);

/// How long one that is replaced may take to end.
const REPLACE_GRACE: Duration = Duration::from_secs(10);

/// How long after its agent has begun an image's own init may add users:
/// cloud-init does, with the names that cloud images are known for.
const USERS_LIMIT: Duration = Duration::from_secs(20);

/// Whether an instance runs is looked at so often, whatever the events say.
const LOOK: Duration = Duration::from_secs(10);

/// Lines of its log that tell how an agent ended.
const LAST_LINES: u32 = 20;

/// An engine of system containers on a node.
#[derive(Debug, Clone)]
pub struct Lxc {
    engine: Arc<Engine>,
    /// Held by whoever changes a workspace.
    locks: Arc<Locks<WorkspaceId>>,
}

impl Lxc {
    /// The engine at one of `sockets` of `node` that has what the gateway of this id made,
    /// else the first that answers.
    #[must_use]
    pub fn new(
        node: Arc<dyn NodeTransport>,
        sockets: Vec<PathBuf>,
        gateway_id: String,
        tracker: TaskTracker,
    ) -> Self {
        Self {
            engine: Arc::new(Engine::new(node, sockets, gateway_id, tracker)),
            locks: Arc::default(),
        }
    }
}

#[async_trait]
impl Provider for Lxc {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Lxc
    }

    fn users_limit(&self) -> Duration {
        USERS_LIMIT
    }

    async fn probe(&self) -> Result<String, ProviderError> {
        let server = self.engine.get("/1.0").await;
        let server = server.map_err(|trouble| self.engine.failed("ask its version", trouble))?;
        let said = |key: &str| {
            let value = server.get("environment").and_then(|about| about.get(key));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        if server.get("auth").and_then(Value::as_str) != Some("trusted") {
            let problem = "it does not trust the gateway's user".to_owned();
            return Err(self.engine.unavailable(problem, None));
        }
        let name = match said("server").as_str() {
            "incus" => "Incus".to_owned(),
            "lxd" => "LXD".to_owned(),
            other => other.to_owned(),
        };
        Ok(format!("{name} {}", said("server_version")))
    }

    async fn create(
        &self,
        environment: &Environment,
        context: &Context,
    ) -> Result<Placement, ProviderError> {
        let id = &environment.id;
        let _lock = self.locks.lock(id).await;
        let wanted = |instance: &Instance| {
            instance.complete && instance.generation == Some(environment.generation)
        };
        let mut there = self.of(id).await?;
        if !there.iter().any(wanted) {
            self.interrupt(id).await?;
            there = self.of(id).await?;
            let image = environment.config.lxc.as_ref();
            let image = image.map_or("", |lxc| lxc.image.as_str());
            let image = LxcImage::parse(image).map_err(|error| ProviderError::Refused {
                operation: "read lxc.image",
                problem: error.to_string(),
            })?;
            // One of this generation that is not whole is in the way. All others stay
            // until there is what replaces them.
            let name = instance::instance_name(environment);
            if there.iter().any(|instance| instance.name == name) {
                self.remove(&name).await?;
                there.retain(|instance| instance.name != name);
            }
            self.make(environment, &image, context).await?;
            context.take_leave().await?;
        }
        for old in there.iter().filter(|instance| !wanted(instance)) {
            if old.running {
                self.halt(old, REPLACE_GRACE).await?;
            }
            self.remove(&old.name).await?;
        }
        Ok(Placement {
            listen: PathBuf::from(DIR).join("run/agent.sock"),
            endpoint: Endpoint::Unix(environment.run_dir.join("agent.sock")),
            own_network: true,
            log_dir: None,
            workdir: PathBuf::from(environment.workspace_folder()),
            volumes: Vec::new(),
            env: environment.config.env.clone(),
            user: environment.config.user.clone(),
        })
    }

    async fn start(&self, environment: &Environment) -> Result<(), ProviderError> {
        let _lock = self.locks.lock(&environment.id).await;
        let instance = self.only(&environment.id).await?;
        self.settle(&instance.name).await?;
        // What went on may have been its start.
        let instance = self.only(&environment.id).await?;
        if instance.running {
            return Ok(());
        }
        let Err(trouble) = self.boot(&instance, environment).await else {
            return Ok(());
        };
        let said = match &trouble {
            Trouble::Said { .. } => self.why_not_started(&instance.name).await,
            Trouble::Provider(_) => String::new(),
        };
        let trouble = match trouble {
            Trouble::Said { status, problem } if !said.is_empty() => Trouble::Said {
                status,
                problem: format!("{problem}\n{said}"),
            },
            other => other,
        };
        Err(self.engine.failed("start container", trouble))
    }

    async fn exited(&self, id: &WorkspaceId) -> Result<Exit, ProviderError> {
        let instance = self.only(id).await?;
        let mut changes = events::names(&self.engine).await?;
        while self.inspect(id).await? == Found::Running {
            let told = async {
                while let Some(name) = changes.next().await {
                    if name? == instance.name {
                        break;
                    }
                }
                Ok::<_, ProviderError>(())
            };
            if let Ok(told) = timeout(LOOK, told).await {
                told?;
            }
        }
        let tail = LogOptions {
            follow: false,
            tail: Some(LAST_LINES),
        };
        let log = self.log(&instance.name, tail).await.unwrap_or_default();
        Ok(Exit {
            status: None,
            log: String::from_utf8_lossy(&log).trim_end().to_owned(),
        })
    }

    async fn stop(&self, id: &WorkspaceId, grace: Duration) -> Result<(), ProviderError> {
        let _lock = self.locks.lock(id).await;
        for instance in self.of(id).await? {
            self.settle(&instance.name).await?;
            self.halt(&instance, grace).await?;
        }
        Ok(())
    }

    async fn destroy(&self, id: &WorkspaceId) -> Result<(), ProviderError> {
        let _lock = self.locks.lock(id).await;
        self.interrupt(id).await?;
        for instance in self.of(id).await? {
            self.remove(&instance.name).await?;
        }
        for volume in self.engine.volumes().await? {
            if volume.workspace == *id {
                self.remove_volume(&volume.path()).await?;
            }
        }
        let node = self.engine.node();
        node.remove_tree(&run_dir(node.as_ref(), id)).await?;
        Ok(())
    }

    async fn inspect(&self, id: &WorkspaceId) -> Result<Found, ProviderError> {
        let found = self.of(id).await?;
        Ok(if found.iter().any(|instance| instance.running) {
            Found::Running
        } else if found.iter().any(|instance| instance.complete) {
            Found::Stopped
        } else {
            Found::Absent
        })
    }

    async fn list(&self) -> Result<Vec<WorkspaceId>, ProviderError> {
        let instances = self.engine.instances().await?.into_iter();
        let volumes = self.engine.volumes().await?.into_iter();
        let volumes = volumes.map(|volume| volume.workspace);
        let found = instances.map(|instance| instance.workspace).chain(volumes);
        let mut found: Vec<_> = found.collect();
        found.sort();
        found.dedup();
        Ok(found)
    }

    async fn logs(
        &self,
        id: &WorkspaceId,
        options: LogOptions,
    ) -> Result<LogStream, ProviderError> {
        let instance = self.only(id).await?;
        self.log_stream(instance.name, options).await
    }

    async fn changes(
        &self,
    ) -> Result<BoxStream<'static, Result<WorkspaceId, ProviderError>>, ProviderError> {
        // In this order: what is made in between is told.
        let names = events::names(&self.engine).await?;
        let ours = self.engine.instances().await?.into_iter();
        let ours: HashSet<_> = ours.map(|instance| instance.name).collect();
        let state = (names, self.clone(), ours);
        let changed = stream::unfold(state, |(mut names, lxc, mut ours)| async move {
            loop {
                let found = match names.next().await? {
                    Ok(name) => lxc.ours(&name, &mut ours).await.map(Ok),
                    Err(error) => Some(Err(error)),
                };
                if let Some(found) = found {
                    return Some((found, (names, lxc, ours)));
                }
            }
        });
        Ok(changed.boxed())
    }
}

impl Lxc {
    /// The workspace of an instance that something happened to; none: it is somebody
    /// else's. One that is gone cannot be asked whose it was, so `ours` remembers.
    async fn ours(&self, name: &str, ours: &mut HashSet<String>) -> Option<WorkspaceId> {
        let id = instance::workspace_of(name)?;
        match self.engine.get(&format!("/1.0/instances/{name}")).await {
            Ok(value) => {
                Instance::read(&value, &self.engine.gateway_id)?;
                ours.insert(name.to_owned());
                Some(id)
            }
            Err(trouble) if trouble.is_absent() => ours.remove(name).then_some(id),
            // Whoever is told looks, and sees what is wrong.
            Err(_) => Some(id),
        }
    }
}
