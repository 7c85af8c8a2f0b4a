//! `ssh-config`: what to put into ~/.ssh/config and ~/.ssh/known_hosts, so that
//! every way to a workspace has a short name and asks nothing.
//!
//! The gateway proves itself with its host key, the agents of workspaces with
//! certificates of its host CA. That CA is believed for `*.vendetta`: for every
//! host it would be believed too much. Clients that know no certificates find the
//! bare keys of the caller's own workspaces. The page that people read and paste
//! has those workspaces' bare names too (`ssh -J vendetta NAME`); what is written
//! unread has not, since a gateway may say any name, such as that of another
//! machine of theirs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use serde_json::json;
use vendetta_proto::WorkspaceName;
use vendetta_proto::name::{HOST_SUFFIX, RESERVED};
use vendetta_sshio::keys::PublicKey;

use super::command::{Done, Session};
use super::failure::Failure;

/// Port of SSH (RFC 4253 section 4.1).
const SSH_PORT: u16 = 22;

/// What ssh keeps the keys of other hosts in.
const OWN_KNOWN_HOSTS: &str = "~/.ssh/known_hosts";

/// By what clients know the gateway and the agents.
#[derive(Debug, Clone)]
pub struct HostKeys {
    /// The gateway's host key.
    pub gateway: PublicKey,
    /// The CA that certifies the agents'.
    pub authority: PublicKey,
}

/// What to show.
#[derive(Debug, Args)]
pub struct SshConfig {
    /// Name or address of the gateway, as your machine reaches it; the one you connected to when omitted
    #[arg(long, value_name = "HOST", value_parser = host_name)]
    host_name: Option<String>,
    /// Port of the gateway, as your machine reaches it
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Show the lines for ~/.ssh/known_hosts alone
    #[arg(long)]
    known_hosts: bool,
}

/// Whether `text` can be a host name or address in ssh's files, where other
/// characters are patterns, tokens or the end of it.
#[must_use]
pub fn is_host_name(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    !text.is_empty() && !text.starts_with('-') && text.chars().all(sound)
}

fn host_name(text: &str) -> Result<String, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let text = bare.unwrap_or(text);
    if is_host_name(text) {
        Ok(text.to_owned())
    } else {
        Err("give a host name or address, such as dev.example.org".to_owned())
    }
}

/// The names under which a gateway is believed to know its workspaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Those that nothing else has: `NAME.vendetta`.
    Suffixed,
    /// Bare ones as well.
    Bare,
}

/// A gateway in ssh's own files.
#[derive(Debug, Clone)]
pub struct Stanza {
    /// Its name or address ([`is_host_name`]).
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What it and its agents are known by.
    pub keys: HostKeys,
    /// The workspaces that are listed by name, and what their agents are known by.
    pub workspaces: BTreeMap<WorkspaceName, PublicKey>,
}

impl Stanza {
    /// Lines for ~/.ssh/config. `known_hosts` is the file that has the lines of
    /// [`Stanza::known_hosts`]; none: ssh's own has them.
    #[must_use]
    pub fn config(&self, known_hosts: Option<&str>) -> String {
        let Self { host, port, .. } = self;
        let keys = known_hosts.map_or_else(String::new, |file| {
            format!("    UserKnownHostsFile {file} {OWN_KNOWN_HOSTS}\n")
        });
        let mut text = format!(
            "#   ssh {RESERVED} workspace list     commands of the gateway\n\
             #   ssh my-project@{RESERVED}         a session in a workspace, relayed by the gateway\n\
             #   ssh my-project.{HOST_SUFFIX}         the same, encrypted from end to end\n\
             Host {RESERVED}\n    HostName {host}\n    Port {port}\n    User {RESERVED}\n{keys}\n"
        );
        if !self.workspaces.is_empty() {
            text.push_str("# Your workspaces, for programs that list the hosts of this file\n");
            for name in self.workspaces.keys() {
                let _ = writeln!(text, "Host {name}.{HOST_SUFFIX}");
            }
            text.push('\n');
        }
        let _ = write!(
            text,
            "# {RESERVED} is the workspace's own user; another: ssh root@my-project.{HOST_SUFFIX}\n\
             Host *.{HOST_SUFFIX}\n    User {RESERVED}\n    ProxyJump {RESERVED}\n{keys}"
        );
        text
    }

    /// Lines for ~/.ssh/known_hosts.
    #[must_use]
    pub fn known_hosts(&self, names: Names) -> String {
        let Self {
            host, port, keys, ..
        } = self;
        let host = if *port == SSH_PORT {
            host.clone()
        } else {
            format!("[{host}]:{port}")
        };
        let mut certified = format!("*.{HOST_SUFFIX}");
        let bare = names == Names::Bare;
        for name in self.workspaces.keys().filter(|_| bare) {
            certified.push(',');
            certified.push_str(name.as_str());
        }
        let mut text = format!(
            "{host} {}\n@cert-authority {certified} {}\n",
            keys.gateway, keys.authority
        );
        for (name, key) in &self.workspaces {
            // A line a name: Dropbear reads no lists.
            if bare {
                let _ = writeln!(text, "{name} {key}");
            }
            let _ = writeln!(text, "{name}.{HOST_SUFFIX} {key}");
        }
        text
    }
}

impl SshConfig {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        let control = session.control;
        let principal = &session.caller.principal;
        let owned = control.workspaces.list(principal).into_iter();
        let owned = owned.filter(|workspace| workspace.owner == principal.user);
        let (host, port) = session.address();
        let stanza = Stanza {
            host: self.host_name.unwrap_or(host),
            port: self.port.unwrap_or(port),
            keys: control.host_keys.clone(),
            workspaces: owned
                .map(|workspace| (workspace.name, workspace.host_key))
                .collect(),
        };
        let (config, known_hosts) = (stanza.config(None), stanza.known_hosts(Names::Bare));
        let text = if self.known_hosts {
            known_hosts.clone()
        } else {
            page(&config, &known_hosts)
        };
        let keys = stanza.workspaces.iter();
        let keys: BTreeMap<_, _> = keys.map(|(name, key)| (name, key.to_string())).collect();
        let value = json!({
            "host_name": stanza.host,
            "port": stanza.port,
            "host_key": stanza.keys.gateway.to_string(),
            "host_ca": stanza.keys.authority.to_string(),
            "workspaces": keys.keys().collect::<Vec<_>>(),
            "workspace_host_keys": keys,
            "config": config,
            "known_hosts": known_hosts,
        });
        session.answer(&text, value).await
    }
}

/// All of it as one piece that may stand in ~/.ssh/config.
fn page(config: &str, known_hosts: &str) -> String {
    let mut text = format!(
        "# For ~/.ssh/config:\n{config}\n\
         # For {OWN_KNOWN_HOSTS}, so that no key is asked about (ssh {RESERVED} ssh-config --known-hosts >>{OWN_KNOWN_HOSTS}):\n"
    );
    for line in known_hosts.lines() {
        let _ = writeln!(text, "#{line}");
    }
    let _ = writeln!(
        text,
        "# The local command does both, and undoes it: vendetta setup"
    );
    text
}

impl Session<'_> {
    /// Where the caller reaches the gateway, as far as can be told.
    fn address(&self) -> (String, u16) {
        let control = self.control;
        match self.caller.reached {
            Some(reached) if control.config.advertise.is_none() => {
                (reached.ip().to_canonical().to_string(), reached.port())
            }
            _ => control.config.address(control.bound),
        }
    }
}

#[cfg(test)]
mod tests {
    use vendetta_sshio::keys::PrivateKey;

    use super::*;

    fn stanza(host: &str, port: u16, workspaces: &[&str]) -> Stanza {
        let key = || PrivateKey::generate_ed25519("test").unwrap().public();
        Stanza {
            host: host.to_owned(),
            port,
            keys: HostKeys {
                gateway: key(),
                authority: key(),
            },
            workspaces: workspaces
                .iter()
                .map(|name| (name.parse().unwrap(), key()))
                .collect(),
        }
    }

    #[test]
    fn the_ca_is_believed_for_its_own_names_only() {
        let stanza = stanza("dev.example.org", 2222, &["api", "web"]);
        let text = stanza.known_hosts(Names::Bare);
        let lines: Vec<&str> = text.lines().collect();
        let [gateway, authority, agents @ ..] = lines.as_slice() else {
            panic!("{text}");
        };
        assert_eq!(
            *gateway,
            format!("[dev.example.org]:2222 {}", stanza.keys.gateway)
        );
        assert_eq!(
            *authority,
            format!(
                "@cert-authority *.vendetta,api,web {}",
                stanza.keys.authority
            )
        );
        let key = |name: &str| &stanza.workspaces[&name.parse().unwrap()];
        let expected = [
            format!("api {}", key("api")),
            format!("api.vendetta {}", key("api")),
            format!("web {}", key("web")),
            format!("web.vendetta {}", key("web")),
        ];
        assert_eq!(agents, expected);
    }

    #[test]
    fn the_usual_port_is_no_part_of_a_known_host() {
        let text = stanza("::1", 22, &[]).known_hosts(Names::Suffixed);
        assert!(text.starts_with("::1 ssh-ed25519 "), "{text}");
        let text = stanza("::1", 2222, &[]).known_hosts(Names::Suffixed);
        assert!(text.starts_with("[::1]:2222 ssh-ed25519 "), "{text}");
    }

    #[test]
    fn a_file_of_their_own_is_named_wherever_its_keys_are_needed() {
        let stanza = stanza("dev.example.org", 22, &["api"]);
        assert!(!stanza.config(None).contains("UserKnownHostsFile"));
        let text = stanza.config(Some("~/.ssh/x"));
        let lines = text
            .lines()
            .filter(|line| line.trim() == "UserKnownHostsFile ~/.ssh/x ~/.ssh/known_hosts");
        assert_eq!(lines.count(), 2, "{text}");
    }

    #[test]
    fn a_workspace_is_listed_by_a_name_that_no_other_machine_has() {
        let stanza = stanza("dev.example.org", 22, &["api", "web"]);
        for text in [stanza.config(None), stanza.config(Some("~/.ssh/x"))] {
            let hosts: Vec<_> = text
                .lines()
                .filter(|line| line.starts_with("Host "))
                .collect();
            let expected = ["vendetta", "api.vendetta", "web.vendetta", "*.vendetta"];
            assert_eq!(hosts, expected.map(|host| format!("Host {host}")));
        }
        let text = stanza.known_hosts(Names::Suffixed);
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.split("ssh-").next())
            .collect();
        assert_eq!(
            names,
            [
                "dev.example.org ",
                "@cert-authority *.vendetta ",
                "api.vendetta ",
                "web.vendetta "
            ]
        );
    }

    #[test]
    fn a_host_name_is_nothing_that_ssh_reads_otherwise() {
        for good in ["dev", "dev.example.org", "10.0.0.1", "fe80::1"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in [
            "",
            "-x",
            "a b",
            "*.org",
            "a\nProxyCommand x",
            "%h",
            "a,b",
            "\"a\"",
        ] {
            assert!(!is_host_name(bad), "{bad:?}");
        }
        assert_eq!(host_name("[::1]"), Ok("::1".to_owned()));
    }
}
