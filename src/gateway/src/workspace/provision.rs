//! Setting a new environment up: the project's repository, the user's own
//! settings, and the create hook. Done once for each generation, after its
//! first start; what a crash cut off is done again.

use super::entry::Entry;
use super::forges::KNOWN_HOSTS;
use super::hook::Place;
use super::services::Services;
use super::{ErrorKind, Spec, WorkspaceError};
use crate::provider::Context;

/// A clone that was cut off leaves this directory, or a file of the same name
/// in the repository; both are taken up again.
const UNFINISHED: &str = ".vendetta-clone";

/// Exit status of the clone's script when there are files already.
const HAS_FILES: u32 = 93;
/// Exit status of the scripts when git is not there.
const NO_GIT: u32 = 94;

/// Sets the environment up unless that was done before.
pub(super) async fn provision(
    services: &Services,
    entry: &Entry,
    spec: &Spec,
    generation: u64,
    place: &Place<'_>,
    context: &Context,
) -> Result<(), WorkspaceError> {
    if entry.provisioned() == generation {
        return Ok(());
    }
    let config = &spec.config;
    if let Some(repo) = &config.repo {
        clone(place, repo, context).await?;
    }
    if let Some(dotfiles) = &config.dotfiles {
        settings(place, dotfiles, context).await;
    }
    if let Some(hook) = &config.hooks.create {
        let step = context.progress.step("hook create");
        let ran = place.hook(&step, hook).await;
        let ran = ran.map_err(|error| {
            let name = &entry.reference.name;
            error.explain(place.about, "hook create").with_remedy(format!(
                "look around with: ssh vendetta workspace connect {name}; then again: ssh vendetta workspace up {name}"
            ))
        });
        step.end(ran)?;
    }
    let saved = services
        .store
        .save_provisioned(&entry.reference.id, generation)
        .await;
    saved.map_err(|error| {
        WorkspaceError::new(ErrorKind::Internal, place.about, error.to_string())
    })?;
    entry.set_provisioned(generation);
    Ok(())
}

async fn clone(place: &Place<'_>, repo: &str, context: &Context) -> Result<(), WorkspaceError> {
    use super::hook::CommandError::Status;
    let step = context.progress.step("clone repository");
    let cloned = match place.command(&step, &clone_script(repo), "").await {
        Err(Status(HAS_FILES, _)) => {
            step.message("the workspace has files already: nothing is cloned");
            Ok(())
        }
        Err(Status(NO_GIT, _)) => Err(WorkspaceError::new(
            ErrorKind::Unavailable,
            place.about,
            format!("{repo} cannot be cloned: the image has no git"),
        )
        .with_remedy("use an image with git, or leave repo out of the config")),
        Err(error) => Err(error
            .explain(place.about, &format!("the clone of {repo}"))
            .with_remedy(
                "a private repository needs your key: run \"up\" with your ssh-agent forwarded (ssh -A vendetta workspace up …)",
            )),
        Ok(()) => Ok(()),
    };
    step.end(cloned)
}

/// A user's settings are a convenience: their failure is told, and no more.
async fn settings(place: &Place<'_>, repo: &str, context: &Context) {
    use super::hook::CommandError::Status;
    let step = context.progress.step("dotfiles");
    let installed = place.command(&step, &dotfiles_script(repo), "").await;
    let installed = installed.map_err(|error| match error {
        Status(NO_GIT, _) => WorkspaceError::new(
            ErrorKind::Unavailable,
            place.about,
            "the image has no git, so the dotfiles are left out",
        ),
        error => error.explain(place.about, "installing the dotfiles"),
    });
    if let Err(error) = step.end(installed) {
        tracing::info!(%error, "dotfiles");
    }
}

/// Single-quoted for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What both scripts begin with: git must be there, asks nothing, and knows
/// the public services.
fn prologue() -> String {
    let mut script = format!(
        "set -eu
command -v git >/dev/null 2>&1 || exit {NO_GIT}
export GIT_TERMINAL_PROMPT=0 GIT_SSH_COMMAND='ssh -o StrictHostKeyChecking=accept-new -o BatchMode=yes'
if [ ! -e ~/.ssh ]; then mkdir -m 700 ~/.ssh; fi
known() {{ grep -qsF \"$1\" ~/.ssh/known_hosts || printf '%s\\n' \"$1\" >>~/.ssh/known_hosts; }}
"
    );
    for line in KNOWN_HOSTS {
        script.push_str(&format!("known {}\n", quoted(line)));
    }
    script
}

/// Clones into the session's directory, which must be empty but for what a
/// file system puts there itself.
fn clone_script(repo: &str) -> String {
    let repo = quoted(repo);
    in_posix_shell(&format!(
        "{prologue}
if [ -e .git/{UNFINISHED} ]; then
    git reset -q --hard
else
    for file in * .[!.]* ..?*; do
        case $file in lost+found|{UNFINISHED}) continue ;; esac
        if [ -e \"$file\" ] || [ -L \"$file\" ]; then exit {HAS_FILES}; fi
    done
    rm -rf {UNFINISHED}
    git clone --no-checkout -- {repo} {UNFINISHED}
    : >{UNFINISHED}/.git/{UNFINISHED}
    mv {UNFINISHED}/.git .git
    rmdir {UNFINISHED}
    git reset -q --hard
fi
if [ -e .gitmodules ]; then git submodule update --init --recursive; fi
rm -f .git/{UNFINISHED}
",
        prologue = prologue()
    ))
}

/// Clones into ~/.dotfiles and runs what is there to install them, as
/// Codespaces does: a script of a known name, else a link for each dotfile.
fn dotfiles_script(repo: &str) -> String {
    let repo = quoted(repo);
    in_posix_shell(&format!(
        "{prologue}
if [ -d ~/.dotfiles/.git ]; then git -C ~/.dotfiles pull -q --ff-only; else git clone -q --recurse-submodules -- {repo} ~/.dotfiles; fi
cd ~/.dotfiles
for script in install.sh install bootstrap.sh bootstrap script/bootstrap setup.sh setup script/setup; do
    if [ -f \"$script\" ]; then chmod +x \"$script\"; exec \"./$script\"; fi
done
for file in .[!.]*; do
    case $file in .git|.gitignore|.gitmodules|.github) continue ;; esac
    [ -e \"$file\" ] || continue
    if [ -e ~/\"$file\" ] && [ ! -L ~/\"$file\" ]; then echo \"$file is there already: left alone\"; continue; fi
    ln -sfn ~/.dotfiles/\"$file\" ~/\"$file\"
done
",
        prologue = prologue()
    ))
}

/// For whatever shell the user has.
fn in_posix_shell(script: &str) -> String {
    format!("exec sh -c {} 2>&1", quoted(script))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};

    use super::*;

    /// A repository with one file and one directory, and an empty home and workspace.
    struct Bench(tempfile::TempDir);

    impl Bench {
        fn new() -> Self {
            let bench = Self(tempfile::tempdir().unwrap());
            for dir in ["origin/sub", "home", "work"] {
                std::fs::create_dir_all(bench.at(dir)).unwrap();
            }
            std::fs::write(bench.at("origin/sub/file"), "text").unwrap();
            std::fs::write(bench.at("origin/.profile-of-mine"), "x").unwrap();
            let git =
                "git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm one";
            let made = bench.sh("origin", git);
            assert!(made.status.success(), "{made:?}");
            bench
        }

        fn at(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn sh(&self, dir: &str, script: &str) -> Output {
            Command::new("sh")
                .args(["-c", script])
                .current_dir(self.at(dir))
                .env("HOME", self.at("home"))
                .env_remove("GIT_DIR")
                .output()
                .unwrap()
        }

        fn clone(&self) -> Output {
            let origin = self.at("origin");
            self.sh("work", &clone_script(origin.to_str().unwrap()))
        }
    }

    fn exists(path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    #[test]
    fn a_repository_is_cloned_into_the_directory_itself() {
        let bench = Bench::new();
        std::fs::create_dir(bench.at("work/lost+found")).unwrap();
        let cloned = bench.clone();
        assert!(cloned.status.success(), "{cloned:?}");
        assert_eq!(std::fs::read(bench.at("work/sub/file")).unwrap(), b"text");
        assert!(!exists(&bench.at("work").join(UNFINISHED)));
        let status = bench.sh("work", "git status --porcelain");
        assert_eq!(String::from_utf8_lossy(&status.stdout), "");
        let known = std::fs::read_to_string(bench.at("home/.ssh/known_hosts")).unwrap();
        assert_eq!(known.lines().count(), KNOWN_HOSTS.len());
    }

    #[test]
    fn files_that_are_there_are_never_touched() {
        let bench = Bench::new();
        std::fs::write(bench.at("work/.mine"), "mine").unwrap();
        let cloned = bench.clone();
        assert_eq!(
            cloned.status.code(),
            Some(HAS_FILES.cast_signed()),
            "{cloned:?}"
        );
        assert!(!exists(&bench.at("work/.git")));
    }

    #[test]
    fn a_clone_that_was_cut_off_is_taken_up() {
        let bench = Bench::new();
        // Cut off while git cloned.
        std::fs::create_dir_all(bench.at("work").join(UNFINISHED).join(".git")).unwrap();
        let cloned = bench.clone();
        assert!(cloned.status.success(), "{cloned:?}");
        // Cut off before the files were there.
        std::fs::remove_file(bench.at("work/sub/file")).unwrap();
        std::fs::write(bench.at("work/.git").join(UNFINISHED), "").unwrap();
        let cloned = bench.clone();
        assert!(cloned.status.success(), "{cloned:?}");
        assert_eq!(std::fs::read(bench.at("work/sub/file")).unwrap(), b"text");
        // And once it is whole it is left alone.
        assert_eq!(bench.clone().status.code(), Some(HAS_FILES.cast_signed()));
    }

    #[test]
    fn an_address_is_a_word_whatever_is_in_it() {
        let bench = Bench::new();
        let evil = bench.sh("work", &clone_script("x'; touch /tmp/../$HOME/evil; '"));
        assert!(!evil.status.success());
        assert!(!exists(&bench.at("home/evil")));
    }

    #[test]
    fn dotfiles_are_linked_or_install_themselves() {
        let bench = Bench::new();
        let origin = bench.at("origin");
        let script = dotfiles_script(origin.to_str().unwrap());
        let linked = bench.sh("work", &script);
        assert!(linked.status.success(), "{linked:?}");
        assert!(bench.at("home/.profile-of-mine").is_symlink());
        std::fs::write(
            bench.at("origin/install.sh"),
            "#!/bin/sh\ntouch ~/installed\n",
        )
        .unwrap();
        let more = bench.sh(
            "origin",
            "git add -A && git -c user.name=a -c user.email=a@b commit -qm two",
        );
        assert!(more.status.success(), "{more:?}");
        let ran = bench.sh("work", &script);
        assert!(ran.status.success(), "{ran:?}");
        assert!(exists(&bench.at("home/installed")));
    }
}
