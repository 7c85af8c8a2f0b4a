//! The project config, `.vendetta/config.yaml`: YAML to
//! [`ProjectConfig`], with the position of whatever is wrong.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    DuplicateKeyPolicy, Error, Location, MergeKeyPolicy, Options, Spanned, UserMessageFormatter,
};
use vendetta_proto::spec::ProjectConfig;

use super::invalid::{Invalid, suggestion};
use super::source::{Place, Project, Source};

/// Where a project keeps its config, from the project's own directory.
pub const PATH: &str = ".vendetta/config.yaml";

/// Longest project config that is read, in bytes.
pub const MAX_SIZE: usize = 256 << 10;

/// Reads a project config, which messages call `file`.
///
/// # Errors
/// [`Invalid`]: not UTF-8, not YAML, too large, an unknown or repeated key, a
/// wrong type, a bad name, aliases that grow out of proportion.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Project, Invalid> {
    let text = text(file, bytes)?;
    let config = if text.trim().is_empty() {
        ProjectConfig::default()
    } else {
        serde_saphyr::from_str_with_options(text, options())
            .map_err(|error| explain(file, text, &error))?
    };
    let source = Source {
        file: file.to_owned(),
        text: text.to_owned(),
        places: None,
    };
    Ok(Project::new(config, Vec::new(), source))
}

/// The text of a config, in whatever language.
pub(super) fn text<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, Invalid> {
    if bytes.len() > MAX_SIZE {
        return Err(Invalid::whole(
            file,
            format!("is larger than {} KiB", MAX_SIZE >> 10),
            "a project config is a page or two; check that this is the file you mean",
        ));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        Invalid::whole(
            file,
            format!("is not UTF-8 (byte {})", error.valid_up_to() + 1),
            "save the file as UTF-8",
        )
    })
}

/// Far above any honest project, far below what hurts: an alias bomb ends here.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 16,
            max_nodes: 20_000,
            max_events: 50_000,
            max_aliases: 200,
            max_anchors: 200,
            max_recorded_anchor_events: 20_000,
            max_documents: 1,
            max_merge_keys: 200,
            max_total_scalar_bytes: 2 * MAX_SIZE,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Merge,
        strict_booleans: true,
        with_snippet: false,
    }
}

fn explain(file: &str, text: &str, error: &Error) -> Invalid {
    let span = error.location().map(|location| range(text, location));
    let (problem, remedy) = match error.without_snippet() {
        Error::SerdeUnknownField {
            field, expected, ..
        } => (
            format!("unknown key `{field}`"),
            suggestion(field, expected),
        ),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => (
            format!("unknown value `{variant}`"),
            suggestion(variant, expected),
        ),
        Error::DuplicateMappingKey { key: Some(key), .. } => (
            format!("`{key}` is given twice"),
            Some("keep one of the two".to_owned()),
        ),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => (
            "nests or repeats itself more than any project config needs".to_owned(),
            Some("write the values out, or use fewer aliases".to_owned()),
        ),
        Error::MultipleDocuments { .. } => (
            "has more than one document".to_owned(),
            Some("remove everything after `---`".to_owned()),
        ),
        other => {
            let message = other.render_with_formatter(&UserMessageFormatter);
            // The position is shown beside the line; the library adds it to the text.
            let problem = match message.split(" at line ").next() {
                // All numbers of this size are ports.
                Some("invalid u16") => "a port is a number from 1 to 65535",
                problem => problem.unwrap_or(&message),
            };
            (problem.to_owned(), None)
        }
    };
    Invalid::new(file, text, span, problem)
        .with_remedy(remedy)
        .or_schema()
}

/// The bytes of a place, on its first line.
fn range(text: &str, location: Location) -> Range<usize> {
    let place = location.span();
    let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let start = place.byte_offset().map_or_else(
        || offset(text, index(location.line()), index(location.column())),
        index,
    );
    // A mapping's span covers all of it: show where it begins.
    let line = text
        .get(start..)
        .and_then(|rest| rest.lines().next())
        .map_or(0, str::len);
    start..start + place.byte_len().map_or(0, index).min(line)
}

/// Where each key of a text that was read is: a plain value itself, what has
/// parts by its key.
pub(super) fn places(text: &str) -> Vec<Place> {
    let mut places = Vec::new();
    if let Ok(root) = serde_saphyr::from_str_with_options::<Node>(text, options()) {
        root.collect(text, &mut Vec::new(), &mut places);
    }
    places
}

/// YAML with the places of its parts.
enum Node {
    Plain,
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl Node {
    fn collect(&self, text: &str, path: &mut Vec<String>, places: &mut Vec<Place>) {
        match self {
            Self::Plain => {}
            Self::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    path.push(at.to_string());
                    places.push((path.clone(), range(text, item.referenced)));
                    item.value.collect(text, path, places);
                    path.pop();
                }
            }
            Self::Map(entries) => {
                for (key, value) in entries {
                    let place = match value.value {
                        Self::Plain => value.referenced,
                        _ => key.referenced,
                    };
                    path.push(key.value.clone());
                    places.push((path.clone(), range(text, place)));
                    value.value.collect(text, path, places);
                    path.pop();
                }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Plain)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Plain)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
                Ok(Node::Plain)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Plain)
            }

            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Plain)
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Plain)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Plain)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(NodeVisitor)
    }
}

/// The byte at which `column` of `line` begins, both counted from 1.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let start: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    let rest = text.get(start..).unwrap_or_default();
    start
        + rest
            .chars()
            .take(column.saturating_sub(1))
            .map(char::len_utf8)
            .sum::<usize>()
}
