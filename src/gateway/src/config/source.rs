//! A project config as it was written: what it says, and where it says it.

use std::fmt;
use std::ops::Range;

use serde::Serialize;
use vendetta_proto::spec::ProjectConfig;

use super::invalid::Invalid;
use super::project;

/// A project config, read and not checked yet.
#[derive(Debug, Clone)]
pub struct Project {
    /// What it says.
    pub config: ProjectConfig,
    /// What it says that nothing acts on.
    pub not_honoured: Vec<NotHonoured>,
    source: Option<Source>,
}

/// A part of a file that nothing acts on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotHonoured {
    /// The key, from the top.
    pub key: String,
    /// Why not.
    pub why: String,
}

impl fmt::Display for NotHonoured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not honoured: {} ({})", self.key, self.why)
    }
}

/// A part of a text, and the way to the key of [`ProjectConfig`] that came of it.
pub(super) type Place = (Vec<String>, Range<usize>);

/// Where a project config came from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The file, as the reader of a message knows it.
    pub(super) file: String,
    /// Its text.
    pub(super) text: String,
    /// Where its parts are; none: to be found in the text as YAML.
    pub(super) places: Option<Vec<Place>>,
}

impl Default for Project {
    /// What nobody wrote anything about.
    fn default() -> Self {
        Self {
            config: ProjectConfig::default(),
            not_honoured: Vec::new(),
            source: None,
        }
    }
}

impl Project {
    pub(super) fn new(
        config: ProjectConfig,
        not_honoured: Vec<NotHonoured>,
        source: Source,
    ) -> Self {
        Self {
            config,
            not_honoured,
            source: Some(source),
        }
    }

    /// The same text refused for what is wrong with `key`, shown where that is,
    /// or where the nearest key above it is. None when no text says it.
    #[must_use]
    pub fn refuse(
        &self,
        key: &[String],
        problem: String,
        remedy: Option<String>,
    ) -> Option<Invalid> {
        let Source { file, text, places } = self.source.as_ref()?;
        let found;
        let places = match places {
            Some(places) => places,
            None => {
                found = project::places(text);
                &found
            }
        };
        let span = places
            .iter()
            .filter(|(path, _)| key.starts_with(path))
            .max_by_key(|(path, _)| path.len())
            .map(|(_, range)| range.clone());
        Some(Invalid::new(file, text, span, problem).with_remedy(remedy))
    }
}
