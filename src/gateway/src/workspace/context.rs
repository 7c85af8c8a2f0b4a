//! The files that images of workspaces are built from: an archive each, kept as
//! long as its workspace is built, so that a rebuild needs nothing of its owner's
//! machine.
//!
//! An archive is named by the generation of the environment with which it came,
//! and serves until one of a later generation does: so it is there before the
//! record that asks for it, and the one before is there as long as it is not.

use std::collections::BTreeSet;
use std::fs::{self, File};
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

    fn named(&self, id: &WorkspaceId, generation: u64) -> PathBuf {
        self.dir.join(format!("{id}-{generation}.tar"))
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    }

    /// The archives of a workspace, with their generations.
    fn of(&self, id: &WorkspaceId) -> impl Iterator<Item = (u64, PathBuf)> {
        let id = id.to_string();
        self.files().filter_map(move |path| {
            let name = path.file_name()?.to_str()?.strip_prefix(&id)?;
            let generation = match name.strip_suffix(".tar")? {
                // Of a gateway that kept one only.
                "" => 0,
                generation => generation.strip_prefix('-')?.parse().ok()?,
            };
            Some((generation, path))
        })
    }

    /// Where the archive is that serves an environment of this generation, if
    /// the workspace has one.
    pub(super) fn path(&self, id: &WorkspaceId, generation: u64) -> PathBuf {
        let older = self.of(id).filter(|(of, _)| *of <= generation);
        let newest = older.max_by_key(|(of, _)| *of).map(|(_, path)| path);
        newest.unwrap_or_else(|| self.named(id, generation))
    }

    /// Keeps the archive that came with an environment of this generation, if one did.
    pub(super) async fn put(
        &self,
        id: &WorkspaceId,
        generation: u64,
        context: Option<Vec<u8>>,
    ) -> Result<(), WorkspaceError> {
        let Some(context) = context else {
            return Ok(());
        };
        let (dir, path) = (self.dir.clone(), self.named(id, generation));
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

    /// Removes the archives of a workspace but the one that serves this generation.
    pub(super) fn keep_one(&self, id: &WorkspaceId, generation: u64) {
        let kept = self.path(id, generation);
        for (_, path) in self.of(id).filter(|(_, path)| *path != kept) {
            remove(&path);
        }
    }

    /// Removes a workspace's archives.
    pub(super) fn remove(&self, id: &WorkspaceId) {
        for (_, path) in self.of(id) {
            remove(&path);
        }
    }

    /// Removes all but those of these workspaces, each of a generation: a crash left it.
    pub(super) fn keep_only<'a>(&self, all: impl Iterator<Item = (&'a WorkspaceId, u64)>) {
        let kept: BTreeSet<PathBuf> = all
            .map(|(id, generation)| self.path(id, generation))
            .collect();
        for path in self.files().filter(|path| !kept.contains(path)) {
            remove(&path);
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
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| File::open(dir)?.sync_all());
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
        contexts.put(&one, 1, None).await.unwrap();
        assert!(!contexts.path(&one, 1).exists());
        for id in [&one, &two] {
            contexts.put(id, 1, Some(b"files".to_vec())).await.unwrap();
        }
        let mode = fs::metadata(contexts.path(&one, 1))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        contexts.keep_only(std::iter::once((&one, 1)));
        assert!(contexts.path(&one, 1).exists() && !contexts.path(&two, 1).exists());
        contexts.remove(&one);
        contexts.remove(&one);
        assert!(!contexts.path(&one, 1).exists());
    }

    #[tokio::test]
    async fn an_archive_serves_until_a_later_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let contexts = Contexts::new(dir.path());
        let id = WorkspaceId::random();
        let read = |generation| fs::read(contexts.path(&id, generation)).unwrap();
        contexts.put(&id, 1, Some(b"one".to_vec())).await.unwrap();
        assert_eq!(read(7), b"one");
        contexts.put(&id, 8, Some(b"two".to_vec())).await.unwrap();
        assert_eq!((read(7), read(8)), (b"one".to_vec(), b"two".to_vec()));
        // The record that asks for it was not saved.
        contexts.keep_one(&id, 7);
        assert_eq!((read(7), read(8)), (b"one".to_vec(), b"one".to_vec()));
        contexts.put(&id, 8, Some(b"two".to_vec())).await.unwrap();
        contexts.keep_only(std::iter::once((&id, 9)));
        assert_eq!(contexts.of(&id).count(), 1);
        assert_eq!(read(9), b"two");

        // As gateways kept it that knew one archive a workspace.
        let old = WorkspaceId::random();
        fs::write(dir.path().join(format!("contexts/{old}.tar")), "old").unwrap();
        assert_eq!(fs::read(contexts.path(&old, 3)).unwrap(), b"old");
        contexts.keep_one(&old, 3);
        contexts.remove(&old);
        assert!(!contexts.path(&old, 3).exists());
    }
}
