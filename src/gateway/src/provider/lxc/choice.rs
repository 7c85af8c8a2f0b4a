//! Which engine of a node has this gateway's containers.
//!
//! ```text
//!   open ── one that answers has something of ours, or is about to get it ──▶ settled
//! ```
//!
//! A choice that is settled is in a file on the node, outlives the gateway, and is never
//! made again by itself: another engine, which has none of our containers and disks, would
//! be taken for a node on which all were removed. While it is open, the first engine that
//! answers serves, provided that all answer which could have something of ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::task::TaskTracker;

use super::super::ProviderError;
use super::engine::Engine;
use super::unusable::{Looked, look};
use crate::node::{ByteStream, NodeError};

/// The file with the path of the engine's socket, among ours on the node.
const MEMORY: &str = "lxc-engine";

/// An engine that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub socket: PathBuf,
    pub settled: bool,
}

impl Choice {
    /// One that was looked into by itself.
    pub(super) fn only(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            settled: true,
        }
    }
}

impl Engine {
    /// Connects to the engine that has, or is to have, our containers.
    pub(super) async fn open(&self) -> Result<Box<dyn ByteStream>, ProviderError> {
        if let Some(choice) = self.choice.get() {
            match self.node.open_unix(&choice.socket).await {
                // Only what tells of the socket is a reason to ask again which it is.
                Err(error @ NodeError::Io { .. }) => tracing::debug!(%error, "engine"),
                other => return Ok(other?),
            }
        }
        let choice = self.choose().await?;
        match self.node.open_unix(&choice.socket).await {
            Err(NodeError::Io { .. }) => Err(self.silent(&choice.socket).await),
            other => Ok(other?),
        }
    }

    /// Why the engine that was chosen cannot be asked.
    async fn silent(&self, socket: &Path) -> ProviderError {
        let looked = match look(self.node.as_ref(), &[socket.to_owned()]).await {
            Ok(looked) => looked,
            Err(error) => return error.into(),
        };
        if let Some((problem, remedy)) = looked.denied(&self.node.name()) {
            return self.unavailable(problem, Some(remedy));
        }
        self.unavailable(
            format!(
                "no engine listens at {}, in which this gateway's containers are",
                socket.display()
            ),
            Some(format!(
                "start it, for instance: sudo systemctl start {}; if it has moved, or is gone with all that was in it, remove {} on the node",
                service(socket),
                self.memory().display()
            )),
        )
    }

    fn memory(&self) -> PathBuf {
        self.node.state_dir().join(MEMORY)
    }

    /// Settles the choice: from now on something of ours is in this engine.
    pub(super) async fn settle(&self) -> Result<(), ProviderError> {
        if self.choice.get().is_none() {
            self.choose().await?;
        }
        let _one = self.choice.change.lock().await;
        match self.choice.get() {
            Some(choice) if !choice.settled => self.remember(&choice.socket).await,
            _ => Ok(()),
        }
    }

    async fn remember(&self, socket: &Path) -> Result<(), ProviderError> {
        let line = format!("{}\n", socket.display());
        let memory = self.memory();
        self.node.put(&memory, 0o600, line.as_bytes()).await?;
        self.choice.set(Choice::only(socket));
        Ok(())
    }

    /// Chooses an engine, as was settled before if it was. It looks into several with this
    /// same code, hence a future of a named type.
    fn choose(&self) -> BoxFuture<'_, Result<Choice, ProviderError>> {
        async move {
            let _one = self.choice.change.lock().await;
            let choice = match self.node.read(&self.memory()).await? {
                Some(line) => self.remembered(&line)?,
                None => self.find().await?,
            };
            self.choice.set(choice.clone());
            Ok(choice)
        }
        .boxed()
    }

    fn remembered(&self, line: &[u8]) -> Result<Choice, ProviderError> {
        let line = String::from_utf8_lossy(line);
        let socket = Path::new(line.trim());
        if self.sockets.iter().any(|known| known == socket) {
            return Ok(Choice::only(socket));
        }
        Err(self.unavailable(
            format!(
                "this gateway's containers are in the engine at {}, and it is told to use another",
                socket.display()
            ),
            Some(format!(
                "name that one in the gateway's configuration, as socket of [lxc]; if it has moved, or is gone with all that was in it, remove {} on the node",
                self.memory().display()
            )),
        ))
    }

    /// Looks for an engine that has something of ours, else for the first that answers.
    async fn find(&self) -> Result<Choice, ProviderError> {
        let looked = look(self.node.as_ref(), &self.sockets).await?;
        let (answering, silent) = self.answering(&looked).await?;
        for socket in &answering {
            let engine = self.at(socket);
            if !engine.instances().await?.is_empty() || !engine.volumes().await?.is_empty() {
                self.remember(socket).await?;
                return Ok(Choice::only(socket));
            }
        }
        match (answering.into_iter().next(), silent) {
            (Some(socket), None) => Ok(Choice {
                socket,
                settled: false,
            }),
            (Some(other), Some(silent)) => Err(self.unavailable(
                format!(
                    "no engine listens at {}, and nothing says whether this gateway's containers are in that one or in the one at {}",
                    silent.display(),
                    other.display()
                ),
                Some(format!(
                    "start it, for instance: sudo systemctl start {}; if it is gone, remove what it left: sudo rm {}",
                    service(&silent),
                    silent.display()
                )),
            )),
            (None, _) => {
                let (problem, remedy) = looked.explain(&self.node.name(), &self.sockets);
                Err(self.unavailable(problem, Some(remedy)))
            }
        }
    }

    /// The sockets at which an engine listens, and the first at which none does.
    async fn answering(
        &self,
        looked: &Looked,
    ) -> Result<(Vec<PathBuf>, Option<PathBuf>), ProviderError> {
        let (mut answering, mut silent) = (Vec::new(), None);
        for socket in &looked.usable {
            match self.node.open_unix(socket).await {
                Ok(_) => answering.push(socket.clone()),
                Err(error @ NodeError::Io { .. }) => {
                    tracing::debug!(%error, "engine");
                    silent.get_or_insert_with(|| socket.clone());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((answering, silent))
    }

    /// The engine at one of the sockets, whatever was chosen.
    fn at(&self, socket: &Path) -> Self {
        let engine = Self::new(
            Arc::clone(&self.node),
            vec![socket.to_owned()],
            self.gateway_id.clone(),
            TaskTracker::clone(&self.tracker),
        );
        engine.choice.set(Choice::only(socket));
        engine
    }
}

/// The service that an engine usually is.
fn service(socket: &Path) -> &'static str {
    if socket.to_string_lossy().contains("lxd") {
        "lxd"
    } else {
        "incus"
    }
}
