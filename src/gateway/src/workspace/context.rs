//! The files that images of workspaces are built from: an archive each, kept as
//! long as its workspace, so that a rebuild needs nothing of its owner's machine.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{ErrorKind, WorkspaceError, WorkspaceId};

/// The directory of the archives.
#[derive(Debug)]
pub(super) struct Contexts {
    dir: PathBuf,
}

impl Contexts {
    /// Those in a state directory.
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join("contexts"),
        }
    }

    /// Where a workspace's archive is, if it has one.
    pub(super) fn path(&self, id: &WorkspaceId) -> PathBuf {
        self.dir.join(format!("{id}.tar"))
    }

    /// Keeps the archive of a workspace, if it has one, instead of the one there is.
    pub(super) async fn put(
        &self,
        id: &WorkspaceId,
        context: Option<Vec<u8>>,
    ) -> Result<(), WorkspaceError> {
        let Some(context) = context else {
            return Ok(());
        };
        let (dir, path) = (self.dir.clone(), self.path(id));
        let written = tokio::task::spawn_blocking(move || write(&dir, &path, &context)).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| {
            tracing::error!(%id, %error, "keeping what an image is built from");
            WorkspaceError::new(
                ErrorKind::Internal,
                "project",
                "the gateway could not keep the project's files",
            )
            .with_remedy("the gateway's log says more")
        })
    }

    /// Removes a workspace's archive; not there is fine.
    pub(super) fn remove(&self, id: &WorkspaceId) {
        remove(&self.path(id));
    }

    /// Removes what belongs to no workspace: a crash left it.
    pub(super) fn keep_only<'a>(&self, ids: impl Iterator<Item = &'a WorkspaceId>) {
        let kept: BTreeSet<PathBuf> = ids.map(|id| self.path(id)).collect();
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if !kept.contains(&path) {
                remove(&path);
            }
        }
    }
}

fn write(dir: &Path, path: &Path, context: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    let written = file
        .write_all(context)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        remove(&new);
    }
    written
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "not removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn an_archive_is_private_and_lives_as_long_as_its_workspace() {
        let dir = tempfile::tempdir().unwrap();
        let contexts = Contexts::new(dir.path());
        contexts.keep_only(std::iter::empty());
        let (one, two) = (WorkspaceId::random(), WorkspaceId::random());
        contexts.put(&one, None).await.unwrap();
        assert!(!contexts.path(&one).exists());
        for id in [&one, &two] {
            contexts.put(id, Some(b"files".to_vec())).await.unwrap();
        }
        contexts.put(&one, Some(b"others".to_vec())).await.unwrap();
        assert_eq!(fs::read(contexts.path(&one)).unwrap(), b"others");
        let mode = fs::metadata(contexts.path(&one))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        contexts.keep_only(std::iter::once(&one));
        assert!(contexts.path(&one).exists() && !contexts.path(&two).exists());
        contexts.remove(&one);
        contexts.remove(&one);
        assert!(!contexts.path(&one).exists());
    }
}
