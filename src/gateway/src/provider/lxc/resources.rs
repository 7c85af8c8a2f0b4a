//! Finding, making and removing what a workspace is in the engine.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::super::{Context, Environment, ProviderError};
use super::engine::Trouble;
use super::files::Files;
use super::image::LxcImage;
use super::init::{self, InitError};
use super::instance::{self, Ground, Instance, Owner, Source};
use super::listing::volumes_of;
use super::operation::done;
use super::{Lxc, PAUSE, REMOVAL_LIMIT};
use crate::node::Command;
use crate::workspace::WorkspaceId;

/// How long the engine may take to make an instance, fetching its image included.
const CREATION_LIMIT: Duration = Duration::from_secs(3600);

/// How long giving up may take.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// What an engine says when an image server has no such image.
const ABSENT: [&str; 3] = ["couldn't be found", "not found", "Not Found"];

impl Lxc {
    /// Those of a workspace, the latest generation last.
    pub(super) async fn of(&self, id: &WorkspaceId) -> Result<Vec<Instance>, ProviderError> {
        let mut found = self.engine.instances().await?;
        found.retain(|instance| instance.workspace == *id);
        found.sort_by_key(|instance| instance.generation);
        Ok(found)
    }

    /// The one of a workspace.
    pub(super) async fn only(&self, id: &WorkspaceId) -> Result<Instance, ProviderError> {
        let mut found = self.of(id).await?;
        found.retain(|instance| instance.complete);
        found.pop().ok_or(ProviderError::NoEnvironment)
    }

    /// Where the engine gets an image.
    pub(super) async fn source(&self, image: &LxcImage) -> Result<Source, ProviderError> {
        let failed = |trouble| self.engine.failed("look for image", trouble);
        let text = |value: &Value, key: &str| {
            let text = value.get(key).and_then(Value::as_str);
            text.map(str::to_owned)
        };
        let mut fingerprint = None;
        let mut server = None;
        if let Some(remote) = image.remote() {
            server = Some(remote.server(self.engine.software().await?));
        } else {
            let name = image.name().replace('/', "%2F");
            match self
                .engine
                .get(&format!("/1.0/images/aliases/{name}"))
                .await
            {
                Ok(alias) => fingerprint = text(&alias, "target"),
                Err(trouble) if trouble.is_absent() => {}
                Err(trouble) => return Err(failed(trouble)),
            }
            if fingerprint.is_none() && image.may_be_fingerprint() {
                match self.engine.get(&format!("/1.0/images/{name}")).await {
                    Ok(found) => fingerprint = text(&found, "fingerprint"),
                    Err(trouble) if trouble.is_absent() => {}
                    Err(trouble) => return Err(failed(trouble)),
                }
            }
        }
        Source::of(image, server, fingerprint).ok_or_else(|| {
            no_image(
                image,
                "the engine has no image of this alias or fingerprint",
            )
        })
    }

    /// The pool for new instances and volumes: that of the default profile, else the first.
    async fn ground(&self) -> Result<Ground, ProviderError> {
        let failed = |trouble| self.engine.failed("look for a storage pool", trouble);
        let profile = self.engine.get("/1.0/profiles/default").await;
        let profile = profile.map_err(failed)?;
        let devices = profile.get("devices").and_then(Value::as_object);
        let pool = devices.into_iter().flatten().find_map(|(_, device)| {
            let field = |key: &str| device.get(key).and_then(Value::as_str);
            let root = field("type") == Some("disk") && field("path") == Some("/");
            root.then(|| field("pool")).flatten().map(str::to_owned)
        });
        if let Some(pool) = pool {
            return Ok(Ground { pool, rooted: true });
        }
        let first = self.engine.pools().await?.into_iter().next();
        let pool = first.ok_or_else(|| {
            self.engine.unavailable(
                "it has no storage pool".to_owned(),
                Some("give it one: sudo incus admin init --auto, or sudo lxd init --auto".into()),
            )
        })?;
        Ok(Ground {
            pool,
            rooted: false,
        })
    }

    /// The gateway's user on the node.
    async fn owner(&self) -> Result<Owner, ProviderError> {
        let node = self.engine.node();
        let ask = Command::new(["sh", "-c", "id -u; id -g"]);
        let output = node.exec(&ask).await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut numbers = said.lines().map(|line| line.trim().parse());
        match (numbers.next(), numbers.next()) {
            (Some(Ok(uid)), Some(Ok(gid))) => Ok(Owner { uid, gid }),
            _ => Err(self.engine.failed(
                "ask who the gateway is on the node",
                Trouble::Said {
                    status: 500,
                    problem: format!("id says {said:?}"),
                },
            )),
        }
    }

    /// Makes the volume, and the instance with all that the agent needs.
    pub(super) async fn make(
        &self,
        environment: &Environment,
        image: &LxcImage,
        context: &Context,
    ) -> Result<(), ProviderError> {
        let (source, ground, owner, volumes) = tokio::try_join!(
            self.source(image),
            self.ground(),
            self.owner(),
            self.engine.volumes()
        )?;
        self.engine.settle().await?;
        let mut volumes = volumes.into_iter();
        let there = volumes.find(|volume| volume.workspace == environment.id);
        // It stays in the pool that it was made in, wherever new ones go.
        let volume_pool = match there {
            Some(volume) => volume.pool,
            None => {
                let volume = instance::volume(&environment.id, &self.engine.gateway_id);
                let path = volumes_of(&ground.pool);
                match self.finish(Method::POST, &path, Some(&volume)).await {
                    Err(trouble) if !trouble.is_conflict() => {
                        return Err(self.engine.failed("create volume", trouble));
                    }
                    _ => ground.pool.clone(),
                }
            }
        };
        let step = context.progress.step(match source {
            Source::Fingerprint(_) => "create container".to_owned(),
            Source::Server { .. } => format!("create container from {image}"),
        });
        let order = instance::order(
            environment,
            &self.engine.gateway_id,
            &source,
            &ground,
            &volume_pool,
            owner,
        );
        let made = async {
            let make = || {
                let path = "/1.0/instances";
                let limit = CREATION_LIMIT;
                done(
                    &self.engine,
                    Method::POST,
                    path,
                    Some(&order),
                    limit,
                    Some(&step),
                )
            };
            let mut made = make().await;
            if made.as_ref().is_err_and(Trouble::is_conflict) {
                // An order that somebody gave up waiting for came after we had looked.
                self.remove(&instance::instance_name(environment)).await?;
                made = make().await;
            }
            made.map_err(|trouble| self.not_made(image, &source, trouble))?;
            self.furnish(environment).await
        };
        let made = tokio::select! {
            made = made => made,
            () = context.cancel.cancelled() => {
                // What was begun is not to go on. Whoever makes it again, or removes it, looks.
                let _ = timeout(CANCEL_LIMIT, self.interrupt(&environment.id)).await;
                Err(ProviderError::Cancelled)
            }
        };
        step.end(made)
    }

    /// Puts what starts the agent into an instance, and says that it is complete.
    async fn furnish(&self, environment: &Environment) -> Result<(), ProviderError> {
        let name = instance::instance_name(environment);
        let files = Files::of(&self.engine, &name);
        let operation = "put the agent into the image";
        let liblxc = init::install(&files, environment.name.as_str())
            .await
            .map_err(|error| match error {
                InitError::Engine(trouble) => self.engine.failed(operation, trouble),
                InitError::Unknown(_) => ProviderError::Refused {
                    operation,
                    problem: error.to_string(),
                },
            })?;
        let completed = instance::completed(liblxc);
        self.finish(
            Method::PATCH,
            &format!("/1.0/instances/{name}"),
            Some(&completed),
        )
        .await
        .map_err(|trouble| self.engine.failed("label instance", trouble))
    }

    /// An image server that has no such image is one thing; one that the engine cannot
    /// ask, or an instance that it cannot make, is another.
    fn not_made(&self, image: &LxcImage, source: &Source, trouble: Trouble) -> ProviderError {
        let operation = "create container";
        let Source::Server { server, .. } = source else {
            return match trouble {
                // The engine checks limits and devices before it does anything.
                Trouble::Said {
                    status: 400,
                    problem,
                } if problem.starts_with("Invalid") => {
                    ProviderError::Refused { operation, problem }
                }
                other => self.engine.failed(operation, other),
            };
        };
        let from_server = trouble.says(&["remote image", "image server", "Failed getting image"]);
        // A volume or a network may be missing too.
        if from_server && trouble.says(&ABSENT) {
            return no_image(
                image,
                &format!("{server} has no image of this name: {trouble}"),
            );
        }
        match self.engine.failed(operation, trouble) {
            ProviderError::Engine {
                provider,
                node,
                problem,
                remedy: None,
                ..
            } if from_server => ProviderError::Engine {
                provider,
                node,
                operation: "fetch image",
                problem,
                remedy: Some(format!(
                    "see that the node reaches {server}, or bring the image to the node: incus (or lxc) image import"
                )),
            },
            other => other,
        }
    }

    /// Removes a volume that no instance uses any more.
    pub(super) async fn remove_volume(&self, path: &str) -> Result<(), ProviderError> {
        let deadline = Instant::now() + REMOVAL_LIMIT;
        loop {
            match self.finish(Method::DELETE, path, None).await {
                Ok(()) => return Ok(()),
                Err(trouble) if trouble.is_absent() => return Ok(()),
                Err(Trouble::Provider(error)) => return Err(error),
                Err(trouble) if Instant::now() >= deadline => {
                    return Err(self.engine.failed("remove volume", trouble));
                }
                Err(trouble) => tracing::debug!(path, %trouble, "removing a volume"),
            }
            sleep(PAUSE).await;
        }
    }
}

fn no_image(image: &LxcImage, problem: &str) -> ProviderError {
    ProviderError::NoImage {
        image: image.to_string(),
        problem: problem.trim().to_owned(),
        remedy: "check the name, write images:debian/12 to have it fetched, or bring the image to \
                 the node: incus (or lxc) image import FILE --alias NAME"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::node::LocalNode;

    #[test]
    fn only_a_server_without_the_image_is_told_as_that() {
        let node = Arc::new(LocalNode::new("/nowhere".into()));
        let lxc = Lxc::new(node, Vec::new(), "us".to_owned(), TaskTracker::new());
        let image = LxcImage::parse("images:debian/12").unwrap();
        let source = Source::Server {
            server: "https://images.example",
            alias: "debian/12".to_owned(),
        };
        let told = |problem: &str| {
            let problem = problem.to_owned();
            let trouble = Trouble::Said {
                status: 400,
                problem,
            };
            lxc.not_made(&image, &source, trouble)
        };
        let from = "Failed getting remote image info: Failed getting image";
        let error = told(&format!("{from}: The requested image couldn't be found"));
        assert!(matches!(error, ProviderError::NoImage { .. }), "{error}");
        let error = told(
            "Failed creating instance record: Failed initialising instance: Failed add validation \
             for device \"vendetta-workspace\": Failed loading custom volume: Storage volume not found",
        );
        assert!(error.to_string().contains("create container"), "{error}");
        let error = told(&format!("{from}: connection refused"));
        assert!(error.remedy().unwrap().contains("images.example"));
    }
}
