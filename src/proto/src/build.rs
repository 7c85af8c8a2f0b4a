//! How an image is built from a project's files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How an image is built. Paths are below the project's directory, which is
/// sent along when the workspace is created.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Path of the Dockerfile; omitted: `Dockerfile` in the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// The directory whose files the build may use; omitted: the project's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Values of the Dockerfile's ARGs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args: BTreeMap<String, String>,
    /// The stage that is built; omitted: the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Where a Dockerfile that is not in the context is put, beside what is in it.
const OUTSIDE: &str = ".vendetta.Dockerfile";

impl Build {
    /// The directory whose files the build may use, below the project's; empty: that itself.
    #[must_use]
    pub fn context_dir(&self) -> String {
        plain(self.context.as_deref().unwrap_or_default())
    }

    /// The Dockerfile, below the project's directory.
    #[must_use]
    pub fn dockerfile_path(&self) -> String {
        match &self.dockerfile {
            Some(path) => plain(path),
            None => plain(&format!("{}/Dockerfile", self.context_dir())),
        }
    }

    /// The Dockerfile as the engine finds it in the context that it is given.
    #[must_use]
    pub fn dockerfile_in_context(&self) -> String {
        let path = self.dockerfile_path();
        below(&path, &self.context_dir()).map_or_else(|| OUTSIDE.to_owned(), str::to_owned)
    }
}

/// `path` without `.`, `..` and needless slashes. What leads out of where it
/// begins stays in it.
#[must_use]
pub fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What is left of `path` below `dir`, both plain; none when it is not below.
#[must_use]
pub fn below<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    if dir.is_empty() {
        return Some(path);
    }
    path.strip_prefix(dir)?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(context: Option<&str>, dockerfile: Option<&str>) -> Build {
        Build {
            context: context.map(str::to_owned),
            dockerfile: dockerfile.map(str::to_owned),
            ..Build::default()
        }
    }

    #[test]
    fn the_dockerfile_is_in_the_context_or_put_there() {
        for (context, dockerfile, path, inside) in [
            (None, None, "Dockerfile", "Dockerfile"),
            (
                Some("."),
                Some("./a/../b/Dockerfile"),
                "b/Dockerfile",
                "b/Dockerfile",
            ),
            (Some("app/"), None, "app/Dockerfile", "Dockerfile"),
            (
                Some("app"),
                Some("app/docker/Dev"),
                "app/docker/Dev",
                "docker/Dev",
            ),
            (
                Some("app"),
                Some("application/Dev"),
                "application/Dev",
                OUTSIDE,
            ),
            (Some("app"), Some("Dockerfile"), "Dockerfile", OUTSIDE),
        ] {
            let build = build(context, dockerfile);
            assert_eq!(build.dockerfile_path(), path);
            assert_eq!(build.dockerfile_in_context(), inside);
        }
    }

    #[test]
    fn what_leads_out_stays_visible() {
        assert_eq!(plain("a/../../b"), "../b");
        assert_eq!(plain("/a//./b/"), "a/b");
        assert_eq!(plain("../.."), "../..");
    }
}
