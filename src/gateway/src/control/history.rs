//! The lines a user typed at the prompt, kept between sessions in a file that
//! only the gateway's user can read, and bounded.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use termwiz::lineedit::{HistoryIndex, SearchDirection, SearchResult, SearchStyle};
use vendetta_proto::UserName;

/// Lines that are kept.
const MAX_LINES: usize = 1000;

/// Bytes of a line that is kept; longer ones are not.
const MAX_LINE: usize = 4096;

/// One user's history.
#[derive(Debug)]
pub(super) struct History {
    lines: Vec<String>,
    path: Option<PathBuf>,
}

impl History {
    /// A history that is kept nowhere.
    pub(super) fn none() -> Self {
        Self {
            lines: Vec::new(),
            path: None,
        }
    }

    /// Reads `user`'s history below `state_dir`. One that cannot be read starts empty.
    pub(super) fn load(state_dir: &Path, user: &UserName) -> Self {
        let dir = state_dir.join("history");
        let path = dir.join(user.as_str());
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir);
        let text = made.and_then(|()| fs::read(&path)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let surplus = lines.len().saturating_sub(MAX_LINES);
        lines.drain(..surplus);
        let history = Self {
            lines,
            path: Some(path),
        };
        if surplus > MAX_LINES
            && let Err(error) = history.rewrite()
        {
            tracing::warn!(%user, %error, "cannot shorten the prompt's history");
        }
        history
    }

    /// Keeps a line, unless it is empty, begins with a space or repeats the last one.
    pub(super) fn keep(&mut self, line: &str) {
        let repeated = self.lines.last().is_some_and(|last| last == line);
        if line.trim().is_empty() || line.starts_with(' ') || line.len() > MAX_LINE || repeated {
            return;
        }
        self.lines.push(line.to_owned());
        if self.lines.len() > MAX_LINES {
            self.lines.remove(0);
        }
        if let Err(error) = self.append(line) {
            tracing::warn!(%error, "cannot keep the prompt's history");
            self.path = None;
        }
    }

    fn append(&self, line: &str) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(format!("{line}\n").as_bytes())
    }

    fn rewrite(&self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let dir = path.parent().unwrap_or(Path::new("/"));
        // tempfile's files are 0600.
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        for line in &self.lines {
            writeln!(file, "{line}")?;
        }
        file.persist(path)?;
        Ok(())
    }
}

impl termwiz::lineedit::History for History {
    fn get(&self, index: HistoryIndex) -> Option<Cow<'_, str>> {
        self.lines
            .get(index)
            .map(|line| Cow::Borrowed(line.as_str()))
    }

    fn last(&self) -> Option<HistoryIndex> {
        self.lines.len().checked_sub(1)
    }

    fn add(&mut self, line: &str) {
        self.keep(line);
    }

    fn search(
        &self,
        index: HistoryIndex,
        style: SearchStyle,
        direction: SearchDirection,
        pattern: &str,
    ) -> Option<SearchResult<'_>> {
        let mut at = index;
        loop {
            let line = self.lines.get(at)?;
            if let Some(cursor) = style.match_against(pattern, line) {
                return Some(SearchResult {
                    line: Cow::Borrowed(line),
                    idx: at,
                    cursor,
                });
            }
            at = direction.next(at)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn alice() -> UserName {
        "alice".parse().unwrap()
    }

    #[test]
    fn lines_are_there_in_the_next_session_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::load(dir.path(), &alice());
        for line in ["workspace list", "workspace list", "", " secret", "status"] {
            history.keep(line);
        }
        let again = History::load(dir.path(), &alice());
        assert_eq!(again.lines, ["workspace list", "status"]);
        let mode = |path: &str| {
            fs::metadata(dir.path().join(path))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode("history"), mode("history/alice")), (0o700, 0o600));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::load(dir.path(), &alice());
        for number in 0..(2 * MAX_LINES + 2) {
            history.keep(&format!("line {number}"));
        }
        assert_eq!(history.lines.len(), MAX_LINES);
        let again = History::load(dir.path(), &alice());
        assert_eq!(again.lines, history.lines);
        let text = fs::read_to_string(dir.path().join("history/alice")).unwrap();
        assert_eq!(text.lines().count(), MAX_LINES);
        assert_eq!(
            fs::metadata(dir.path().join("history/alice"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
    }

    #[test]
    fn a_search_goes_back_from_where_it_stands() {
        let mut history = History::none();
        for line in ["workspace up a", "status", "workspace up b"] {
            history.keep(line);
        }
        use termwiz::lineedit::History as _;
        let found = |from| {
            history
                .search(
                    from,
                    SearchStyle::Substring,
                    SearchDirection::Backwards,
                    "up",
                )
                .map(|r| r.idx)
        };
        assert_eq!(found(2), Some(2));
        assert_eq!(found(1), Some(0));
    }
}
