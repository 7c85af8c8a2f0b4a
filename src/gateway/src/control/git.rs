//! `git push vendetta:my-project` and `git clone vendetta:my-project`: what git runs at the far
//! end (git-receive-pack(1) and its kin) with a workspace as the path, run in that workspace.
//!
//! The path is NAME or NAME/FOLDER. What is pushed to is made a repository if it is none, and
//! its files follow what is pushed, as long as nobody has changed them there.

use clap::Subcommand;

use super::command::{Done, Session};
use super::failure::Failure;
use super::workspace::find;
use crate::access::Action;

/// What git asks for.
#[derive(Debug, Subcommand)]
pub enum GitCommand {
    /// Take what is pushed
    #[command(hide = true)]
    GitReceivePack {
        /// WORKSPACE or WORKSPACE/FOLDER
        path: String,
    },
    /// Give what is fetched
    #[command(hide = true)]
    GitUploadPack {
        /// WORKSPACE or WORKSPACE/FOLDER
        path: String,
    },
    /// Give an archive
    #[command(hide = true)]
    GitUploadArchive {
        /// WORKSPACE or WORKSPACE/FOLDER
        path: String,
    },
}

/// Takes a push into the folder $1. The first one decides what a new repository has checked
/// out. Only git speaks on stdout.
const RECEIVE: &str = r#"test -e "$1/.git" || test -e "$1/HEAD" || git init -q "$1" >&2 || exit
git -c receive.denyCurrentBranch=updateInstead receive-pack "$1" || exit
cd "$1" && test -e .git || exit
git rev-parse -q --verify HEAD >/dev/null && exit
first=$(git for-each-ref --count=1 "--format=%(refname:short)" refs/heads/)
test -z "$first" || git checkout -q "$first" -- >&2"#;

impl GitCommand {
    pub(super) fn run(self, session: &Session<'_>) -> Result<Done, Failure> {
        let (script, path) = match self {
            Self::GitReceivePack { path } => (RECEIVE, path),
            Self::GitUploadPack { path } => (r#"exec git upload-pack "$1""#, path),
            Self::GitUploadArchive { path } => (r#"exec git upload-archive "$1""#, path),
        };
        let (name, folder) = split(&path)?;
        let workspace = find(session, Action::Connect, name)?;
        // For any login shell: none has a meaning for what is between these quotes.
        let command = format!("exec sh -c '{script}' git '{folder}'");
        Ok(Done::Attach {
            workspace,
            user: None,
            command: Some(command.into_bytes()),
        })
    }
}

/// The workspace and the folder in it that a path means.
fn split(path: &str) -> Result<(&str, String), Failure> {
    // ssh://vendetta/my-project has a slash before the name.
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.trim_end_matches('/');
    let (name, folder) = path.split_once('/').unwrap_or((path, ""));
    let plain = |c: char| c.is_alphanumeric() || "/._-+@,=".contains(c);
    if folder.chars().all(plain) {
        Ok((name, format!("./{folder}")))
    } else {
        Err(Failure::usage(
            format!("repository {path:?}"),
            "its folder has characters that shells read in their own ways",
        )
        .remedy("name the workspace as the host: git push WORKSPACE@vendetta:FOLDER"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_scripts_stay_within_single_quotes_of_every_shell() {
        assert!(!RECEIVE.contains(['\'', '\\']));
    }

    #[test]
    fn a_path_is_a_workspace_and_a_folder_of_it() {
        for (path, name, folder) in [
            ("my-project", "my-project", "./"),
            ("/my-project", "my-project", "./"),
            ("my-project/", "my-project", "./"),
            ("my-project/libs/a.git", "my-project", "./libs/a.git"),
            ("my-project/-x", "my-project", "./-x"),
        ] {
            assert_eq!(split(path).unwrap(), (name, folder.to_owned()), "{path}");
        }
        for path in [
            "my-project/a b",
            "my-project/it's",
            "my-project/$(id)",
            "a/b\\c",
        ] {
            assert_eq!(split(path).unwrap_err().exit_code(), 2, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_folder_leaves_its_quotes_or_is_an_option(path in ".*") {
            if let Ok((_, folder)) = split(&path) {
                prop_assert!(folder.starts_with("./"));
                prop_assert!(!folder.contains(['\'', '\\', ' ', '$', '`', '\n']));
            }
        }
    }
}
