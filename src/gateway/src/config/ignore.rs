//! `.dockerignore`: which files of a context a build does not need
//! (<https://docs.docker.com/build/concepts/context/#dockerignore-files>).

use globset::{GlobBuilder, GlobMatcher};
use vendetta_proto::build::plain;

/// Where it is in a context.
pub(super) const FILE: &str = ".dockerignore";

/// Longest one that is read, in bytes.
pub(super) const MAX_SIZE: u64 = 256 << 10;

/// The patterns of a `.dockerignore`; of several that match, the last decides.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    glob: GlobMatcher,
    /// Begins with '!': what matches is needed after all.
    needed: bool,
}

impl Ignore {
    /// Reads the file's text; a pattern that is none is left out.
    pub(super) fn parse(text: &str) -> Self {
        let patterns = text.lines().filter_map(|line| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (needed, pattern) = match line.strip_prefix('!') {
                Some(pattern) => (true, pattern.trim()),
                None => (false, line),
            };
            let glob = GlobBuilder::new(&escaped(&plain(pattern)))
                .literal_separator(true)
                .build()
                .ok()?;
            Some(Pattern {
                glob: glob.compile_matcher(),
                needed,
            })
        });
        Self {
            patterns: patterns.collect(),
        }
    }

    /// Whether a file of the context, or a directory itself, is not needed.
    pub(super) fn is_ignored(&self, path: &str) -> bool {
        let mut ignored = false;
        for pattern in &self.patterns {
            let mut above = std::path::Path::new(path).ancestors();
            if above.any(|path| pattern.glob.is_match(path)) {
                ignored = !pattern.needed;
            }
        }
        ignored
    }

    /// Whether something in an ignored directory may be needed after all.
    pub(super) fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.needed)
    }
}

/// Braces mean themselves here.
fn escaped(pattern: &str) -> String {
    pattern.replace('{', "\\{").replace('}', "\\}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_docker() {
        let ignore = Ignore::parse(
            "# a comment\n\nnode_modules\n/target/\n*/temp*\n**/*.log\n*.md\n!README.md\ndocs\n!docs/keep\n{a}\n",
        );
        for path in [
            "node_modules",
            "node_modules/a/b",
            "target",
            "target/debug/x",
            "src/temporary.txt",
            "src/temp/x",
            "a/b/c.log",
            "c.log",
            "NOTES.md",
            "docs/x",
            "{a}",
        ] {
            assert!(ignore.is_ignored(path), "{path}");
        }
        for path in [
            "src/node_modules",
            "src/target",
            "src/a/temp",
            "temp",
            "README.md",
            "src/NOTES.md",
            "docs/keep/x",
            "a",
        ] {
            assert!(!ignore.is_ignored(path), "{path}");
        }
        assert!(ignore.has_exceptions());
    }

    #[test]
    fn the_last_that_matches_decides() {
        let ignore = Ignore::parse("!a/b\na\n");
        assert!(ignore.is_ignored("a/b"));
        let ignore = Ignore::parse("*\n!src\nsrc/x\n");
        assert!(ignore.is_ignored("src/x/y") && !ignore.is_ignored("src/y"));
        assert!(ignore.is_ignored("other"));
    }
}
