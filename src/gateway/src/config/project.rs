//! The project config, `.vendetta/config.yaml`: YAML to
//! [`ProjectConfig`], with the position of whatever is wrong.

use serde_saphyr::{DuplicateKeyPolicy, Error, MergeKeyPolicy, Options, UserMessageFormatter};
use vendetta_proto::spec::ProjectConfig;

use super::invalid::{Invalid, suggestion};

/// Where a project keeps its config, from the project's own directory.
pub const PATH: &str = ".vendetta/config.yaml";

/// Longest project config that is read, in bytes.
pub const MAX_SIZE: usize = 256 << 10;

/// Reads a project config, which messages call `file`.
///
/// # Errors
/// [`Invalid`]: not UTF-8, not YAML, too large, an unknown or repeated key, a
/// wrong type, a bad name, aliases that grow out of proportion.
pub fn parse(file: &str, bytes: &[u8]) -> Result<ProjectConfig, Invalid> {
    if bytes.len() > MAX_SIZE {
        return Err(Invalid::whole(
            file,
            format!("is larger than {} KiB", MAX_SIZE >> 10),
            "a project config is a page or two; check that this is the file you mean",
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Invalid::whole(
            file,
            format!("is not UTF-8 (byte {})", error.valid_up_to() + 1),
            "save the file as UTF-8",
        )
    })?;
    if text.trim().is_empty() {
        return Ok(ProjectConfig::default());
    }
    serde_saphyr::from_str_with_options(text, options())
        .map_err(|error| explain(file, text, &error))
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
    let span = error.location().map(|location| {
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
    });
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
            (
                message
                    .split(" at line ")
                    .next()
                    .unwrap_or(&message)
                    .to_owned(),
                None,
            )
        }
    };
    Invalid::new(file, text, span, problem).with_remedy(remedy)
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
