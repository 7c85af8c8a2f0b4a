//! Why a file was refused, and where.

use std::ops::Range;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode,
};
use vendetta_proto::nearest;

/// A file that cannot be used: what is wrong with it, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}{problem}", position(file, *at))]
pub struct Invalid {
    /// The file as the reader of the message knows it.
    pub file: String,
    /// Line and column, counted from 1, where that is known.
    pub at: Option<(usize, usize)>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: Option<String>,
    excerpt: Option<Box<Excerpt>>,
}

/// The text that is wrong, with what surrounds it.
#[derive(Debug)]
struct Excerpt {
    text: NamedSource<String>,
    span: Range<usize>,
}

fn position(file: &str, at: Option<(usize, usize)>) -> String {
    match at {
        Some((line, column)) => format!("{file}:{line}:{column}: "),
        None => format!("{file}: "),
    }
}

impl Invalid {
    /// `span` is the range of bytes of `text` that is wrong.
    pub(super) fn new(file: &str, text: &str, span: Option<Range<usize>>, problem: String) -> Self {
        let span = span.map(|span| span.start.min(text.len())..span.end.min(text.len()));
        Self {
            file: file.to_owned(),
            at: span.as_ref().map(|span| line_and_column(text, span.start)),
            problem,
            remedy: None,
            excerpt: span.map(|span| {
                let text = NamedSource::new(file, text.to_owned());
                Box::new(Excerpt { text, span })
            }),
        }
    }

    /// A file whose content does not matter for what is wrong with it.
    pub(super) fn whole(file: &str, problem: String, remedy: &str) -> Self {
        Self::new(file, "", None, problem).with_remedy(Some(remedy.to_owned()))
    }

    pub(super) fn with_remedy(mut self, remedy: Option<String>) -> Self {
        self.remedy = remedy;
        self
    }

    /// The remedy of a project config for which there is no better one.
    pub(super) fn or_schema(mut self) -> Self {
        let schema = "`ssh vendetta config schema` prints what may stand there";
        self.remedy.get_or_insert_with(|| schema.to_owned());
        self
    }

    /// The message with the lines it speaks of, for a person. `unicode` and
    /// `color` say what the reader's terminal can show.
    #[must_use]
    pub fn render(&self, width: usize, unicode: bool, color: bool) -> String {
        let theme = match (unicode, color) {
            (true, true) => GraphicalTheme::unicode(),
            (true, false) => GraphicalTheme::unicode_nocolor(),
            (false, _) => GraphicalTheme::none(),
        };
        let mut text = String::new();
        let drawn = GraphicalReportHandler::new_themed(theme)
            .with_width(width)
            .with_links(false)
            .render_report(&mut text, &Report(self));
        if drawn.is_err() || self.excerpt.is_none() {
            text = format!("{self}\n");
            if let Some(remedy) = &self.remedy {
                text.push_str(&format!("  help: {remedy}\n"));
            }
        }
        text
    }
}

/// [`Invalid`] as miette draws it: the position stands beside the lines, so the
/// message leaves it out.
#[derive(Debug)]
struct Report<'a>(&'a Invalid);

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.problem)
    }
}

impl std::error::Error for Report<'_> {}

impl Diagnostic for Report<'_> {
    fn help(&self) -> Option<Box<dyn std::fmt::Display + '_>> {
        self.0
            .remedy
            .as_ref()
            .map(|remedy| Box::new(remedy) as Box<dyn std::fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.0.excerpt.as_ref()?.text)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.0.excerpt.as_ref()?.span.clone();
        Some(Box::new(std::iter::once(LabeledSpan::underline(span))))
    }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .map_or(0, |line| line.chars().count())
        + 1;
    (line, column)
}

/// "did you mean …" for an unknown key or value, with all that would be valid
/// when none is near.
pub(super) fn suggestion(word: &str, expected: &[&str]) -> Option<String> {
    match nearest(word, expected.iter().copied()) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if expected.is_empty() => None,
        None => Some(format!("valid here: {}", expected.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_key_and_another_word_does_not() {
        let keys = ["listen", "state_dir", "limits"];
        assert_eq!(nearest("lisen", keys), Some("listen"));
        assert_eq!(nearest("state-dir", keys), Some("state_dir"));
        assert_eq!(nearest("colour", keys), None);
    }

    #[test]
    fn columns_count_characters_from_one() {
        assert_eq!(line_and_column("äb\ncd", 0), (1, 1));
        assert_eq!(line_and_column("äb\ncd", 2), (1, 2));
        assert_eq!(line_and_column("äb\ncd", 5), (2, 2));
    }
}
