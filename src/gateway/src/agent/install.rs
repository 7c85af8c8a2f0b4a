//! Brings the agent's executable to a node: once for each version, under the
//! name of its SHA-256, whole or not at all.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::node::{Arch, NodeError, NodeTransport};
use crate::workspace::ProgressSink;

/// Name of the executable.
const NAME: &str = "vendetta-agent";

/// Why the agent's executable is not on a node.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is none for the node's architecture.
    #[error("there is no agent for {arch}; looked for {}", list(looked))]
    NoPayload {
        /// The architecture.
        arch: Arch,
        /// Where one was looked for.
        looked: Vec<PathBuf>,
    },
    /// It cannot be read.
    #[error("agent {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The node does not take it.
    #[error(transparent)]
    Node(#[from] NodeError),
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

/// A file as it was when its digest was taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Version {
    path: PathBuf,
    length: u64,
    modified: Option<SystemTime>,
}

/// The agent's executables, one an architecture.
#[derive(Debug)]
pub struct Payloads {
    directories: Vec<PathBuf>,
    digests: Mutex<HashMap<Version, String>>,
}

impl Payloads {
    /// Executables in `directory`; none: beside the gateway's own executable,
    /// or in `../libexec/vendetta` from there.
    #[must_use]
    pub fn new(directory: Option<PathBuf>) -> Self {
        let directories = match directory {
            Some(directory) => vec![directory],
            None => match std::env::current_exe() {
                Ok(own) => beside(&own),
                Err(_) => Vec::new(),
            },
        };
        Self {
            directories,
            digests: Mutex::default(),
        }
    }

    /// Sees that the agent is on the node; returns its path there. That it has to be
    /// sent, which takes long over a slow link, is a step of `progress`.
    ///
    /// # Errors
    /// When there is none for the node, or the node does not take it.
    pub async fn install(
        &self,
        node: &dyn NodeTransport,
        progress: &ProgressSink,
    ) -> Result<PathBuf, InstallError> {
        let arch = node.arch().await?;
        let (version, digest) = self.find(&arch).await?;
        let installed = node.state_dir().join("agent").join(&digest);
        if !node.exists(&installed).await? {
            let step = progress.step(format!("install the agent on {}", node.name()));
            let sent = async {
                let content = read(&version.path).await?;
                tracing::info!(node = %node.name(), %arch, digest, bytes = content.len(), "installing the agent");
                Ok::<_, InstallError>(node.put(&installed, 0o755, &content).await?)
            };
            step.end(sent.await)?;
        }
        Ok(installed)
    }

    async fn find(&self, arch: &Arch) -> Result<(Version, String), InstallError> {
        let mut looked = Vec::new();
        for directory in &self.directories {
            let own = arch.as_str() == std::env::consts::ARCH;
            let names = [Some(format!("{NAME}-{arch}")), own.then(|| NAME.to_owned())];
            for path in names.into_iter().flatten().map(|name| directory.join(name)) {
                match tokio::fs::metadata(&path).await {
                    Ok(metadata) if metadata.is_file() => {
                        let version = Version {
                            path,
                            length: metadata.len(),
                            modified: metadata.modified().ok(),
                        };
                        let digest = self.digest(&version).await?;
                        return Ok((version, digest));
                    }
                    Ok(_) => looked.push(path),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => looked.push(path),
                    Err(source) => return Err(InstallError::Read { path, source }),
                }
            }
        }
        Err(InstallError::NoPayload {
            arch: arch.clone(),
            looked,
        })
    }

    async fn digest(&self, version: &Version) -> Result<String, InstallError> {
        let known = |digests: &Mutex<HashMap<Version, String>>| {
            let digests = digests.lock().unwrap_or_else(PoisonError::into_inner);
            digests.get(version).cloned()
        };
        if let Some(digest) = known(&self.digests) {
            return Ok(digest);
        }
        let content = read(&version.path).await?;
        let digest = tokio::task::spawn_blocking(move || hex::encode(Sha256::digest(&content)))
            .await
            .map_err(|error| InstallError::Read {
                path: version.path.clone(),
                source: io::Error::other(error),
            })?;
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.insert(version.clone(), digest.clone());
        Ok(digest)
    }
}

fn beside(own: &Path) -> Vec<PathBuf> {
    let Some(bin) = own.parent() else {
        return Vec::new();
    };
    let libexec = bin.parent().map(|prefix| prefix.join("libexec/vendetta"));
    [Some(bin.to_owned()), libexec]
        .into_iter()
        .flatten()
        .collect()
}

async fn read(path: &Path) -> Result<Vec<u8>, InstallError> {
    tokio::fs::read(path)
        .await
        .map_err(|source| InstallError::Read {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::LocalNode;
    use crate::workspace::Progress;
    use std::os::unix::fs::PermissionsExt;

    /// The steps that began.
    async fn steps(sink: ProgressSink) -> Vec<String> {
        sink.end(Ok(()));
        let mut reports = sink.watch();
        let mut steps = Vec::new();
        while let Some(report) = reports.next().await {
            if let Progress::Started { step } = report {
                steps.push(step);
            }
        }
        steps
    }

    #[tokio::test]
    async fn each_version_is_brought_once_and_is_whole_and_executable() {
        let dir = tempfile::tempdir().unwrap();
        let node = LocalNode::new(dir.path().join("state"));
        let payloads = Payloads::new(Some(dir.path().to_owned()));
        let file = dir.path().join(NAME);
        std::fs::write(&file, "one").unwrap();
        let (first, again) = (ProgressSink::new(), ProgressSink::new());
        let one = payloads.install(&node, &first).await.unwrap();
        assert_eq!(std::fs::read(&one).unwrap(), b"one");
        let metadata = std::fs::metadata(&one).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o755);
        assert_eq!(payloads.install(&node, &again).await.unwrap(), one);
        assert_eq!(steps(first).await, ["install the agent on local"]);
        assert!(steps(again).await.is_empty(), "it was there");
        assert_eq!(
            std::fs::metadata(&one).unwrap().modified().unwrap(),
            metadata.modified().unwrap()
        );
        std::fs::write(&file, "two!").unwrap();
        let two = payloads.install(&node, &ProgressSink::new()).await.unwrap();
        assert_ne!(one, two);
        assert_eq!(
            std::fs::read(&one).unwrap(),
            b"one",
            "an older one may still be in use"
        );
    }

    #[tokio::test]
    async fn the_one_for_the_architecture_wins_and_none_says_where_it_looked() {
        let dir = tempfile::tempdir().unwrap();
        let node = LocalNode::new(dir.path().join("state"));
        let payloads = Payloads::new(Some(dir.path().to_owned()));
        let error = payloads
            .install(&node, &ProgressSink::new())
            .await
            .unwrap_err()
            .to_string();
        let special = dir
            .path()
            .join(format!("{NAME}-{}", std::env::consts::ARCH));
        assert!(error.contains(&special.display().to_string()), "{error}");
        std::fs::write(dir.path().join(NAME), "plain").unwrap();
        std::fs::write(&special, "special").unwrap();
        let installed = payloads.install(&node, &ProgressSink::new()).await.unwrap();
        assert_eq!(std::fs::read(installed).unwrap(), b"special");
    }
}
