//! The project config on this machine: where it is, and what is sent of its project.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};

use vendetta_proto::spec::Build;

use super::Failure;
use crate::config::{LocalProject, devcontainer, project, sent};

/// A project config on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalConfig {
    /// The project's directory.
    root: PathBuf,
    /// The file.
    path: PathBuf,
    /// Where a config of its kind is in a project.
    kind: &'static str,
}

impl LocalConfig {
    /// The config of the directory or of the nearest one above it.
    pub(super) fn upward(dir: &Path) -> Option<Self> {
        dir.ancestors().find_map(|root| {
            let kind = sent::PATHS
                .into_iter()
                .find(|kind| root.join(kind).is_file())?;
            Some(Self {
                root: root.to_owned(),
                path: root.join(kind),
                kind,
            })
        })
    }

    /// The config in a file, which may be anywhere.
    pub(super) fn at(path: &Path) -> Self {
        let usual = sent::PATHS.into_iter().find_map(|kind| {
            let root = path.ancestors().nth(Path::new(kind).components().count())?;
            (root.join(kind) == path).then(|| (root.to_owned(), kind))
        });
        let (root, kind) = usual.unwrap_or_else(|| {
            let is_json = path
                .extension()
                .is_some_and(|extension| extension == "json" || extension == "jsonc");
            let kind = if is_json {
                devcontainer::PATHS[1]
            } else {
                project::PATH
            };
            (path.parent().unwrap_or(path).to_owned(), kind)
        });
        Self {
            root,
            path: path.to_owned(),
            kind,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is sent: the file, or an archive where it is not enough or does
    /// not say which directory it is of.
    pub(super) fn open(&self) -> Result<File, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(
                2,
                format!("{}: {error}", self.path.display()),
                "give the project config with --config FILE",
            )
        };
        let content = std::fs::read(&self.path).map_err(failed)?;
        let root = std::path::absolute(&self.root).map_err(failed)?;
        let top = root
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let is_ours = self.kind == project::PATH;
        let build = self.build(&content, top);
        if is_ours && build.is_none() {
            return File::open(&self.path).map_err(failed);
        }
        let mut archive = tempfile::tempfile().map_err(failed)?;
        LocalProject {
            root: &root,
            top,
            config: (self.kind, &content),
            build: build.as_ref(),
        }
        .pack(&mut archive)
        .and_then(|()| archive.flush())
        .and_then(|()| archive.rewind())
        .map_err(|error| {
            Failure::new(
                2,
                format!("the project's files cannot be sent: {error}"),
                "name what the build does not need in .dockerignore",
            )
        })?;
        Ok(archive)
    }

    /// What the config builds; of one that is wrong the gateway says so.
    fn build(&self, content: &[u8], folder: &str) -> Option<Build> {
        let file = self.path.display().to_string();
        let project = if self.kind == project::PATH {
            project::parse(&file, content)
        } else {
            devcontainer::parse(self.kind, content, folder)
        };
        project.ok()?.config.docker?.build
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_found_upward_and_ours_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("src/deep");
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(LocalConfig::upward(&deep), None);
        for kind in [
            ".devcontainer.json",
            ".devcontainer/devcontainer.json",
            project::PATH,
        ] {
            let path = dir.path().join(kind);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            let found = LocalConfig::upward(&deep).unwrap();
            assert_eq!((found.kind, &found.path), (kind, &path));
            assert_eq!(LocalConfig::at(&path), found);
        }
    }

    #[test]
    fn a_file_of_another_name_is_a_config_of_its_directory() {
        let yaml = LocalConfig::at(Path::new("/a/b/mine.yaml"));
        assert_eq!((yaml.root, yaml.kind), ("/a/b".into(), project::PATH));
        let json = LocalConfig::at(Path::new("/a/b/mine.json"));
        assert_eq!(
            (json.root, json.kind),
            ("/a/b".into(), ".devcontainer.json")
        );
    }
}
