//! What a gateway and its agents are known by, asked over a connection whose host
//! key was proved before anybody logged in.
//!
//! ```text
//!   a fingerprint:  key shown, nobody logs in ── it has it ──▶ logged in where only that key is known
//!   none:           ssh knows the key, or asks ──▶ logged in
//! ```
//!
//! ssh's own configuration says how the gateway is reached and with which key one
//! logs in. It cannot have a host key believed unseen, and nothing is forwarded.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command as Process, Output, Stdio};

use serde::Deserialize;
use tempfile::NamedTempFile;
use vendetta_proto::WorkspaceName;
use vendetta_sshio::keys::PublicKey;

use super::super::address::Address;
use super::super::front::{LOGIN, SSH_FAILED, destination, gateway_failed, not_run};
use super::super::{Failure, tell};
use crate::control::HostKeys;
use crate::control::ssh_config::{Stanza, is_host_name};

/// Port of SSH (RFC 4253 section 4.1).
const SSH_PORT: u16 = 22;

/// A connection of its own, whose host key is checked, and that forwards nothing.
const GUARDED: [&str; 9] = [
    "-axT",
    "-o",
    "ControlPath=none",
    "-o",
    "ClearAllForwardings=yes",
    "-o",
    "Tunnel=no",
    "-o",
    "NoHostAuthenticationForLocalhost=no",
];

/// Only the file that is named beside these says by which host key, under [`LOGIN`].
const ONLY_KNOWN_BY: [&str; 6] = [
    "HostKeyAlias=vendetta",
    "GlobalKnownHostsFile=/dev/null",
    "VerifyHostKeyDNS=no",
    "CheckHostIP=no",
    "HashKnownHosts=no",
    "UpdateHostKeys=no",
];

/// What else may answer for a host key, where this ssh has such a setting.
const NOT_EVERYWHERE: [(&str, &str); 2] = [
    ("knownhostscommand", "KnownHostsCommand=none"),
    ("gssapikeyexchange", "GSSAPIKeyExchange=no"),
];

/// What `ssh-config --json` says, as far as it is needed here.
#[derive(Debug, Deserialize)]
struct Told {
    host_key: String,
    host_ca: String,
    workspace_host_keys: BTreeMap<WorkspaceName, String>,
}

/// A gateway, and what ssh's own configuration says about it.
pub(super) struct Gateway<'a> {
    address: &'a Address,
    /// The output of `ssh -G`.
    settings: String,
}

impl<'a> Gateway<'a> {
    pub(super) fn at(address: &'a Address) -> Result<Self, Failure> {
        let mut ssh = Process::new("ssh");
        ssh.args(["-G", "-T"]);
        destination(&mut ssh, address, LOGIN);
        let output = ssh
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| not_run(&error))?;
        if !output.status.success() {
            return Err(gateway_failed(address));
        }
        let settings = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Self { address, settings })
    }

    fn setting(&self, name: &str) -> Option<&str> {
        let mut pairs = self
            .settings
            .lines()
            .filter_map(|line| line.split_once(' '));
        pairs.find_map(|(key, value)| (key == name).then_some(value))
    }

    /// Name and port by which ssh reaches it.
    fn reached(&self) -> Result<(String, u16), Failure> {
        let host = self.setting("hostname").unwrap_or(&self.address.host);
        if !is_host_name(host) {
            return Err(Failure::new(
                2,
                format!("{host:?} cannot stand in ssh's configuration"),
                "name the gateway by a host name or address: --gateway HOST:PORT",
            ));
        }
        let port = self.setting("port").and_then(|port| port.parse().ok());
        Ok((host.to_owned(), port.unwrap_or(SSH_PORT)))
    }

    /// Everything that ssh is to know of it. `fingerprint` is that of its host key;
    /// none: ssh knows the key or asks.
    pub(super) fn stanza(&self, fingerprint: Option<&str>) -> Result<Stanza, Failure> {
        let (host, port) = self.reached()?;
        let (told, proved) = match fingerprint {
            Some(fingerprint) => {
                let key = self.key_with(fingerprint)?;
                (self.ask_the_bearer_of(&key)?, Some(key))
            }
            None => (self.ask(&self.strictness())?, None),
        };
        let garbled = |problem: String| self.garbled(&problem);
        let key = |line: &str| {
            let key = line.parse::<PublicKey>();
            key.map_err(|error| garbled(error.to_string()))
        };
        let gateway = key(&told.host_key)?;
        if proved.is_some_and(|proved| proved != gateway) {
            return Err(garbled("its host key is another one".to_owned()));
        }
        let agents = told.workspace_host_keys.into_iter();
        let agents = agents.map(|(name, line)| Ok((name, key(&line)?)));
        Ok(Stanza {
            host,
            port,
            keys: HostKeys {
                gateway,
                authority: key(&told.host_ca)?,
            },
            workspaces: agents.collect::<Result<_, Failure>>()?,
        })
    }

    /// The host key that it shows to one who does not log in, if it is that of `fingerprint`.
    fn key_with(&self, fingerprint: &str) -> Result<PublicKey, Failure> {
        let address = self.address;
        let seen = temporary()?;
        let mut ssh = Process::new("ssh");
        ssh.args(GUARDED).args(self.known_by(seen.path()));
        ssh.args(["-o", "StrictHostKeyChecking=accept-new"]);
        // "none" is what is asked first for the methods that there are (RFC 4252 section 5.2).
        ssh.args(["-o", "PreferredAuthentications=none"]);
        ssh.args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        destination(&mut ssh, address, LOGIN);
        let output = run(ssh.arg("exit").stderr(Stdio::piped()))?;
        let text = fs::read_to_string(seen.path()).unwrap_or_default();
        // A line is a host and its key.
        let keys = text.lines().filter_map(|line| line.split_once(' '));
        let keys: Vec<PublicKey> = keys.filter_map(|(_, key)| key.parse().ok()).collect();
        let [key] = keys.as_slice() else {
            tell(&String::from_utf8_lossy(&output.stderr));
            return Err(Failure {
                problem: format!("the gateway {address} has shown no host key"),
                ..gateway_failed(address)
            });
        };
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
        Ok(key.clone())
    }

    /// Asks whoever proves to have `key`.
    fn ask_the_bearer_of(&self, key: &PublicKey) -> Result<Told, Failure> {
        let mut known = temporary()?;
        writeln!(known, "{LOGIN} {key}").map_err(|error| no_room(&error))?;
        let mut options = self.known_by(known.path());
        options.extend(["-o".to_owned(), "StrictHostKeyChecking=yes".to_owned()]);
        self.ask(&options)
    }

    /// Options with which `file` alone says by which key it is known.
    fn known_by(&self, file: &Path) -> Vec<String> {
        let file = format!("UserKnownHostsFile=\"{}\"", file.display());
        let there = NOT_EVERYWHERE.into_iter();
        let there = there.filter(|(name, _)| self.setting(name).is_some());
        let only = there.map(|(_, option)| option).chain(ONLY_KNOWN_BY);
        only.map(str::to_owned)
            .chain([file])
            .flat_map(|option| ["-o".to_owned(), option])
            .collect()
    }

    /// Options with which an unknown host key is asked about, unless it is refused already.
    fn strictness(&self) -> Vec<String> {
        match self.setting("stricthostkeychecking") {
            Some("true" | "yes" | "ask") => Vec::new(),
            _ => vec!["-o".to_owned(), "StrictHostKeyChecking=ask".to_owned()],
        }
    }

    fn ask(&self, options: &[String]) -> Result<Told, Failure> {
        let address = self.address;
        let mut ssh = Process::new("ssh");
        ssh.args(GUARDED).args(options);
        destination(&mut ssh, address, LOGIN);
        let output = run(ssh.arg("ssh-config --json").stderr(Stdio::inherit()))?;
        match output.status.code() {
            Some(0) => serde_json::from_slice(&output.stdout).map_err(|error| Failure {
                remedy: "is it a vendetta gateway? try: vendetta version".to_owned(),
                ..self.garbled(&error.to_string())
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

    fn garbled(&self, problem: &str) -> Failure {
        Failure::new(
            70,
            format!(
                "the gateway {} says what is not understood: {problem}",
                self.address
            ),
            "are this command and the gateway of the same version? vendetta --version, ssh vendetta version",
        )
    }
}

fn run(ssh: &mut Process) -> Result<Output, Failure> {
    let output = ssh.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    output
        .and_then(std::process::Child::wait_with_output)
        .map_err(|error| not_run(&error))
}

fn temporary() -> Result<NamedTempFile, Failure> {
    NamedTempFile::new().map_err(|error| no_room(&error))
}

fn no_room(error: &std::io::Error) -> Failure {
    let problem = format!("a temporary file: {error}");
    Failure::new(5, problem, "is there room in $TMPDIR, or /tmp?")
}
