//! Our files in `~/.ssh`, and our line in the user's: all of it is written, or nothing.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::super::Failure;
use crate::control::ssh_config::{Names, Stanza};

/// The line that brings our file into the user's.
const INCLUDE: &str = "Include ~/.ssh/vendetta/config";

/// Our file of keys, as ssh is told of it.
pub(in crate::cli) const KNOWN_HOSTS: &str = "~/.ssh/vendetta/known_hosts";

/// Where everything is.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) ssh: PathBuf,
    pub(super) user_config: PathBuf,
    dir: PathBuf,
    pub(super) config: PathBuf,
    pub(super) known_hosts: PathBuf,
    made_config: PathBuf,
}

impl Files {
    fn below(home: &Path) -> Self {
        let ssh = home.join(".ssh");
        let dir = ssh.join("vendetta");
        Self {
            user_config: ssh.join("config"),
            config: dir.join("config"),
            known_hosts: dir.join("known_hosts"),
            made_config: dir.join("made-config"),
            ssh,
            dir,
        }
    }

    pub(super) fn of_user() -> Result<Self, Failure> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let home = home.filter(|home| home.is_absolute());
        home.map(|home| Self::below(&home))
            .ok_or_else(|| Failure::new(2, "HOME is not set", "set it to your home directory"))
    }

    /// Writes our files, and our line into the user's; all of it or nothing.
    pub(super) fn install(&self, stanza: &Stanza) -> io::Result<()> {
        let head = "# Written by \"vendetta setup\", which writes it anew; removed by \"vendetta setup --undo\".\n";
        let config = format!("{head}{}", stanza.config(Some(KNOWN_HOSTS)));
        let known_hosts = stanza.known_hosts(Names::Suffixed);
        let mut files = Vec::new();
        // The user's file comes first, as the one that something may hold in its place: what
        // its line includes need not be there.
        match read(&self.user_config)? {
            Some(user) => {
                files.extend(with_line(&user.text).map(|text| (user.path, user.mode, text)));
            }
            None => {
                let line = format!("{INCLUDE}\n").into_bytes();
                files.push((self.user_config.clone(), 0o600, line));
                files.push((self.made_config.clone(), 0o600, Vec::new()));
            }
        }
        files.push((self.known_hosts.clone(), 0o600, known_hosts.into_bytes()));
        files.push((self.config.clone(), 0o600, config.into_bytes()));
        let made: Vec<_> = [&self.dir, &self.ssh]
            .into_iter()
            .filter(|dir| !dir.exists())
            .collect();
        let written = make_dir(&self.dir).and_then(|()| replace_all(&files));
        if written.is_err() {
            for dir in made {
                let _ = fs::remove_dir(dir);
            }
        }
        written
    }

    /// Takes our line out of the user's file, and removes ours; whether there was anything.
    pub(super) fn remove(&self) -> io::Result<bool> {
        let mut found = false;
        if let Some(user) = read(&self.user_config)?
            && let Some(text) = without_line(&user.text)
        {
            found = true;
            if text.is_empty() && self.made_config.exists() {
                fs::remove_file(&user.path)?;
            } else {
                replace_all(&[(user.path, user.mode, text)])?;
            }
        }
        for file in [&self.made_config, &self.config, &self.known_hosts] {
            match fs::remove_file(file) {
                Ok(()) => found = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // What else somebody keeps there stays.
        let _ = fs::remove_dir(&self.dir);
        Ok(found)
    }
}

/// A file that is there.
struct Found {
    /// Where its links lead.
    path: PathBuf,
    mode: u32,
    text: Vec<u8>,
}

/// The file at `path`; none when there is none.
fn read(path: &Path) -> io::Result<Option<Found>> {
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if path.is_symlink() {
                let problem = format!("{} is a link to a file that is not there", path.display());
                Err(io::Error::new(io::ErrorKind::NotFound, problem))
            } else {
                Ok(None)
            };
        }
        Err(error) => return Err(error),
    };
    let text = fs::read(&target)?;
    let mode = fs::metadata(&target)?.permissions().mode() & 0o7777;
    Ok(Some(Found {
        path: target,
        mode,
        text,
    }))
}

/// The text with our line at its top, before any Host; none when it is there.
fn with_line(text: &[u8]) -> Option<Vec<u8>> {
    if lines(text).any(is_ours) {
        return None;
    }
    let mut with = format!("{INCLUDE}\n").into_bytes();
    with.extend_from_slice(text);
    Some(with)
}

/// The text without our line; none when it is not there.
fn without_line(text: &[u8]) -> Option<Vec<u8>> {
    lines(text).any(is_ours).then(|| {
        lines(text)
            .filter(|line| !is_ours(line))
            .flatten()
            .copied()
            .collect()
    })
}

/// Each line with its end.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n')
}

fn is_ours(line: &[u8]) -> bool {
    line.trim_ascii() == INCLUDE.as_bytes()
}

fn make_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes whole files, each with its mode. All that can be known to fail fails before any
/// is in its place, but what holds the first in its own.
fn replace_all(files: &[(PathBuf, u32, Vec<u8>)]) -> io::Result<()> {
    let mut staged = Vec::new();
    for (path, mode, content) in files {
        read(path)?;
        staged.push((path, stage(path, *mode, content)?));
    }
    for (path, file) in staged {
        file.persist(path).map_err(|error| error.error)?;
    }
    Ok(())
}

/// What is to replace the file at `path`, beside it.
fn stage(path: &Path, mode: u32, content: &[u8]) -> io::Result<NamedTempFile> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".vendetta-")
        .tempfile_in(dir)?;
    file.write_all(content)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use vendetta_sshio::keys::PrivateKey;

    use super::*;
    use crate::control::HostKeys;

    fn stanza() -> Stanza {
        let key = || PrivateKey::generate_ed25519("test").unwrap().public();
        Stanza {
            host: "dev.example.org".to_owned(),
            port: 2222,
            keys: HostKeys {
                gateway: key(),
                authority: key(),
            },
            workspaces: BTreeMap::new(),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out_again_byte_for_byte(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let with = with_line(&text).unwrap();
            prop_assert!(with_line(&with).is_none(), "never twice");
            prop_assert_eq!(without_line(&with), Some(text));
        }

        #[test]
        fn what_was_changed_meanwhile_stays(before in "([a-z #=]{0,8}\r?\n){0,5}", after in "([a-z #=]{0,8}\n){0,5}") {
            let text = format!("{before}{INCLUDE}\n{after}");
            prop_assert_eq!(without_line(text.as_bytes()), Some(format!("{before}{after}").into_bytes()));
        }
    }

    #[test]
    fn a_home_without_ssh_has_none_of_our_files_after() {
        let home = tempfile::tempdir().unwrap();
        let files = Files::below(home.path());
        files.install(&stanza()).unwrap();
        files.install(&stanza()).unwrap();
        assert_eq!((mode(&files.ssh), mode(&files.dir)), (0o700, 0o700));
        for file in [&files.config, &files.known_hosts, &files.user_config] {
            assert_eq!(mode(file), 0o600, "{}", file.display());
        }
        let config = fs::read_to_string(&files.user_config).unwrap();
        assert_eq!(config, format!("{INCLUDE}\n"));
        assert!(files.remove().unwrap());
        assert!(!files.user_config.exists() && !files.dir.exists());
        assert!(!files.remove().unwrap());
    }

    #[test]
    fn a_file_behind_a_link_keeps_its_link_its_mode_and_its_text() {
        let home = tempfile::tempdir().unwrap();
        let files = Files::below(home.path());
        fs::create_dir_all(home.path().join("dotfiles")).unwrap();
        fs::create_dir(&files.ssh).unwrap();
        let real = home.path().join("dotfiles/ssh-config");
        let text = "Host x\r\n  User \u{e9}\r\n\n# end without a newline";
        fs::write(&real, text).unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o644)).unwrap();
        symlink("../dotfiles/ssh-config", &files.user_config).unwrap();
        files.install(&stanza()).unwrap();
        files.install(&stanza()).unwrap();
        let with = fs::read_to_string(&real).unwrap();
        assert_eq!(with, format!("{INCLUDE}\n{text}"));
        assert!(files.user_config.is_symlink());
        assert_eq!(mode(&real), 0o644);
        assert!(files.remove().unwrap());
        assert_eq!(fs::read_to_string(&real).unwrap(), text);
        assert!(files.user_config.is_symlink());
        assert_eq!(mode(&real), 0o644);
        assert_eq!(
            fs::read_dir(home.path().join("dotfiles")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_link_to_nowhere_is_told_and_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let files = Files::below(home.path());
        fs::create_dir(&files.ssh).unwrap();
        symlink("nowhere", &files.user_config).unwrap();
        let error = files.install(&stanza()).unwrap_err().to_string();
        assert!(
            error.contains("a link to a file that is not there"),
            "{error}"
        );
        assert!(files.user_config.is_symlink());
    }

    #[test]
    fn an_empty_file_that_was_there_before_is_there_after() {
        let home = tempfile::tempdir().unwrap();
        let files = Files::below(home.path());
        fs::create_dir(&files.ssh).unwrap();
        fs::write(&files.user_config, "").unwrap();
        files.install(&stanza()).unwrap();
        assert!(files.remove().unwrap());
        assert_eq!(fs::read(&files.user_config).unwrap(), b"");
    }

    /// Everything below `dir`, with what is in its files.
    fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(tree(&path));
                found.push((path, Vec::new()));
            } else {
                let text = fs::read(&path).unwrap_or_default();
                found.push((path, text));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_configuration_that_cannot_be_replaced_leaves_everything_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let files = Files::below(home.path());
        // Nobody makes a file there, root neither.
        fs::create_dir(&files.ssh).unwrap();
        symlink("/proc/version", &files.user_config).unwrap();
        let before = tree(home.path());
        files.install(&stanza()).unwrap_err();
        assert_eq!(tree(home.path()), before);

        // What an earlier setup wrote stays as well.
        fs::remove_file(&files.user_config).unwrap();
        files.install(&stanza()).unwrap();
        fs::remove_file(&files.user_config).unwrap();
        symlink("/proc/version", &files.user_config).unwrap();
        let before = tree(home.path());
        files.install(&stanza()).unwrap_err();
        assert_eq!(tree(home.path()), before);
    }

    #[test]
    fn nothing_is_replaced_when_one_of_ours_cannot_be() {
        let home = tempfile::tempdir().unwrap();
        let files = Files::below(home.path());
        fs::create_dir_all(&files.config).unwrap();
        fs::write(&files.user_config, "Host x\n").unwrap();
        let before = tree(home.path());
        files.install(&stanza()).unwrap_err();
        assert_eq!(tree(home.path()), before);
    }
}
