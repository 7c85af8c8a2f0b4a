//! `vendetta setup`: ssh on this machine knows a gateway and its workspaces by
//! name, with files of our own and one line in the user's.
//!
//! ```text
//!   ~/.ssh/config               Include ~/.ssh/vendetta/config   (its first line)
//!   ~/.ssh/vendetta/config      the gateway, *.vendetta
//!   ~/.ssh/vendetta/known_hosts their keys
//!   ~/.ssh/vendetta/made-config there was no ~/.ssh/config before
//! ```
//!
//! The gateway says names and keys; what ssh is told with them is written here,
//! so that no gateway can have ssh run anything.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use serde::Deserialize;
use vendetta_proto::WorkspaceName;
use vendetta_sshio::keys::PublicKey;

use super::Failure;
use super::address::{self, Address};
use super::front::{LOGIN, SSH_FAILED, destination, gateway_failed, not_run};
use crate::control::HostKeys;
use crate::control::ssh_config::{Stanza, is_host_name};

/// The line that brings our file into the user's.
const INCLUDE: &str = "Include ~/.ssh/vendetta/config";

/// Our file of keys, as ssh is told of it.
const KNOWN_HOSTS: &str = "~/.ssh/vendetta/known_hosts";

/// Port of SSH (RFC 4253 section 4.1).
const SSH_PORT: u16 = 22;

/// What `ssh-config --json` says, as far as it is needed here.
#[derive(Debug, Deserialize)]
struct Told {
    host_key: String,
    host_ca: String,
    workspace_host_keys: BTreeMap<WorkspaceName, String>,
}

/// Where everything is.
#[derive(Debug)]
struct Files {
    ssh: PathBuf,
    user_config: PathBuf,
    dir: PathBuf,
    config: PathBuf,
    known_hosts: PathBuf,
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

    fn of_user() -> Result<Self, Failure> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let home = home.filter(|home| home.is_absolute());
        home.map(|home| Self::below(&home))
            .ok_or_else(|| Failure::new(2, "HOME is not set", "set it to your home directory"))
    }

    /// Writes our files, and our line into the user's.
    fn install(&self, stanza: &Stanza) -> io::Result<()> {
        make_dir(&self.ssh)?;
        make_dir(&self.dir)?;
        replace(&self.known_hosts, 0o600, stanza.known_hosts().as_bytes())?;
        let head = "# Written by \"vendetta setup\", which writes it anew; removed by \"vendetta setup --undo\".\n";
        let config = format!("{head}{}", stanza.config(Some(KNOWN_HOSTS)));
        replace(&self.config, 0o600, config.as_bytes())?;
        match read(&self.user_config)? {
            Some((path, mode, text)) => match with_line(&text) {
                Some(text) => replace(&path, mode, &text),
                None => Ok(()),
            },
            None => {
                replace(&self.made_config, 0o600, b"")?;
                replace(&self.user_config, 0o600, format!("{INCLUDE}\n").as_bytes())
            }
        }
    }

    /// Takes our line out of the user's file, and removes ours; whether there was anything.
    fn remove(&self) -> io::Result<bool> {
        let mut found = false;
        if let Some((path, mode, text)) = read(&self.user_config)?
            && let Some(text) = without_line(&text)
        {
            found = true;
            if text.is_empty() && self.made_config.exists() {
                fs::remove_file(&path)?;
            } else {
                replace(&path, mode, &text)?;
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

/// Has ssh know the gateway that `flag` names, or that is found otherwise;
/// returns what to tell. `host_key` is the fingerprint by which it is believed;
/// none: ssh knows it or asks.
pub(super) fn set_up(flag: Option<&str>, host_key: Option<&str>) -> Result<String, Failure> {
    let files = Files::of_user()?;
    let address = address::find(flag)?;
    let (host, port) = resolved(&address)?;
    let told = match host_key {
        Some(fingerprint) => ask_the_bearer_of(fingerprint, &address)?,
        None => ask(&address, &[])?,
    };
    let garbled = |problem: String| {
        Failure::new(
            70,
            format!("the gateway {address} says what is not understood: {problem}"),
            "are this command and the gateway of the same version? vendetta --version, ssh vendetta version",
        )
    };
    let key = |line: &str| {
        line.parse::<PublicKey>()
            .map_err(|error| garbled(error.to_string()))
    };
    let agents = told.workspace_host_keys.into_iter();
    let agents = agents.map(|(name, line)| Ok((name, key(&line)?)));
    let stanza = Stanza {
        host,
        port,
        keys: HostKeys {
            gateway: key(&told.host_key)?,
            authority: key(&told.host_ca)?,
        },
        workspaces: agents.collect::<Result<_, Failure>>()?,
    };
    files
        .install(&stanza)
        .map_err(|error| trouble(&files, &error))?;
    let example = stanza.workspaces.keys().next();
    let example = example.map_or("my-project", WorkspaceName::as_str);
    Ok(format!(
        "ssh knows the gateway {host} port {port} now, and asks nothing:\n\
         \x20 ssh {LOGIN} workspace list\n\
         \x20 ssh {example}@{LOGIN}\n\
         \x20 ssh {example}.{LOGIN}        encrypted from end to end; so is scp FILE {example}.{LOGIN}:\n\
         Written: {config}, {known_hosts}, and one Include line in {user_config}.\n\
         Take it back with: vendetta setup --undo\n",
        host = stanza.host,
        port = stanza.port,
        config = files.config.display(),
        known_hosts = files.known_hosts.display(),
        user_config = files.user_config.display(),
    ))
}

/// Takes back what [`set_up`] did; returns what to tell.
pub(super) fn undo() -> Result<String, Failure> {
    let files = Files::of_user()?;
    let found = files.remove().map_err(|error| trouble(&files, &error))?;
    Ok(if found {
        "Taken back: ssh is as it was.\n".to_owned()
    } else {
        "There is nothing to take back.\n".to_owned()
    })
}

fn trouble(files: &Files, error: &io::Error) -> Failure {
    Failure::new(
        5,
        format!("below {}: {error}", files.ssh.display()),
        "mend that, then again; nothing is written halfway",
    )
}

/// Asks the gateway if its host key is that of `fingerprint`. What it says otherwise is not used.
fn ask_the_bearer_of(fingerprint: &str, address: &Address) -> Result<Told, Failure> {
    let seen = tempfile::NamedTempFile::new().map_err(|error| {
        let problem = format!("a temporary file: {error}");
        Failure::new(5, problem, "is there room in $TMPDIR, or /tmp?")
    })?;
    let file = format!("UserKnownHostsFile={}", seen.path().display());
    let options = [
        "StrictHostKeyChecking=accept-new",
        "GlobalKnownHostsFile=/dev/null",
        "UpdateHostKeys=no",
        &file,
    ];
    let told = ask(address, &options);
    let text = fs::read_to_string(seen.path()).unwrap_or_default();
    // A line is a host and its key.
    let keys = text.lines().filter_map(|line| line.split_once(' '));
    let keys = keys.filter_map(|(_, key)| key.parse::<PublicKey>().ok());
    for key in keys {
        if key.fingerprint() != fingerprint {
            return Err(Failure::new(
                5,
                format!(
                    "the gateway {address} has the host key {}, not {fingerprint}",
                    key.fingerprint()
                ),
                "ask its operator: its log says the host key when it starts; if that is another, somebody is in between",
            ));
        }
    }
    told
}

/// Asks the gateway what it and its agents are known by, with these options of ssh_config(5).
fn ask(address: &Address, options: &[&str]) -> Result<Told, Failure> {
    let mut ssh = Process::new("ssh");
    for option in options {
        ssh.args(["-o", option]);
    }
    destination(&mut ssh, address, LOGIN);
    ssh.arg("ssh-config --json").stdin(Stdio::null());
    let output = ssh
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| not_run(&error))?;
    match output.status.code() {
        Some(0) => serde_json::from_slice(&output.stdout).map_err(|error| {
            Failure::new(
                70,
                format!("the gateway {address} says what is not understood: {error}"),
                "is it a vendetta gateway? try: vendetta version",
            )
        }),
        Some(SSH_FAILED) | None => Err(Failure {
            remedy: format!(
                "if ssh does not know its host key: --host-key SHA256:…, which its log says when it starts; else {}",
                gateway_failed(address).remedy
            ),
            ..gateway_failed(address)
        }),
        Some(code) => Err(Failure::new(
            u8::try_from(code).unwrap_or(70),
            format!("the gateway {address} does not tell what it is known by"),
            "is it of the same version? vendetta version",
        )),
    }
}

/// Name and port by which ssh reaches the gateway, after its own configuration.
fn resolved(address: &Address) -> Result<(String, u16), Failure> {
    let mut ssh = Process::new("ssh");
    ssh.arg("-G");
    destination(&mut ssh, address, LOGIN);
    let output = ssh
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| not_run(&error))?;
    if !output.status.success() {
        return Err(gateway_failed(address));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let value = |key: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.find_map(|(name, value)| (name == key).then_some(value))
    };
    let host = value("hostname").unwrap_or(&address.host);
    if !is_host_name(host) {
        return Err(Failure::new(
            2,
            format!("{host:?} cannot stand in ssh's configuration"),
            "name the gateway by a host name or address: --gateway HOST:PORT",
        ));
    }
    let port = value("port").and_then(|port| port.parse().ok());
    Ok((host.to_owned(), port.unwrap_or(SSH_PORT)))
}

/// The user's file, where its links lead, with its mode; none when there is none.
fn read(path: &Path) -> io::Result<Option<(PathBuf, u32, Vec<u8>)>> {
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
    Ok(Some((target, mode, text)))
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

/// Writes a whole file or nothing.
fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".vendetta-{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use vendetta_sshio::keys::PrivateKey;

    use super::*;

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
}
