//! The environment variables of a session or service.
//!
//! In the order of precedence, lowest first: the agent's own (an image's ENV),
//! the workspace's, those the client may send, those that describe the
//! environment's services, those that describe the session.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use vendetta_proto::agent::ORIGINAL_COMMAND;

use crate::users::User;

/// PATH when the image sets none; that of login(1) on Debian.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the agent's own environment that describe some other session,
/// which matters when the agent is an ordinary process (provider `host`), or that
/// an engine sets for the first process alone.
const NOT_INHERITED: [&str; 23] = [
    "DISPLAY",
    "HOME",
    "HOSTNAME",
    "LOGNAME",
    "LS_COLORS",
    "MAIL",
    "OLDPWD",
    "PWD",
    "SHELL",
    "SHLVL",
    "SSH_AGENT_PID",
    "SSH_AUTH_SOCK",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    ORIGINAL_COMMAND,
    "SSH_TTY",
    "TERM",
    "USER",
    "VENDETTA_AGENT_LOG",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
    "container",
];

/// What a session is told of its connection: the far end is the gateway, not
/// an address in the environment.
pub const CONNECTION: [(&str, &str); 2] = [
    ("SSH_CLIENT", "127.0.0.1 65535 22"),
    ("SSH_CONNECTION", "127.0.0.1 65535 127.0.0.1 22"),
];

/// Longest value a client may set, in bytes.
const LONGEST_VALUE: usize = 32 * 1024;
/// Most variables a client may set.
const MOST_VARIABLES: usize = 128;

/// Whether a client may set the variable `name`: what only changes how programs
/// talk to the user. Anything that makes a program load or run something
/// (LD_PRELOAD, PATH, BASH_ENV, …) is the workspace's business.
#[must_use]
pub fn client_may_set(name: &str) -> bool {
    const NAMES: [&str; 15] = [
        "CLICOLOR",
        "CLICOLOR_FORCE",
        "COLORFGBG",
        "COLORTERM",
        "FORCE_COLOR",
        "GIT_PROTOCOL",
        "LANG",
        "LANGUAGE",
        "NO_COLOR",
        "TERM_FEATURES",
        "TERM_PROGRAM",
        "TERM_PROGRAM_VERSION",
        "TZ",
        "VTE_VERSION",
        "WT_SESSION",
    ];
    NAMES.contains(&name)
        || name.strip_prefix("LC_").is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })
        || [
            "GIT_AUTHOR_NAME",
            "GIT_AUTHOR_EMAIL",
            "GIT_COMMITTER_NAME",
            "GIT_COMMITTER_EMAIL",
        ]
        .contains(&name)
}

/// Variables that a client asked for.
#[derive(Debug, Default)]
pub struct ClientVariables(BTreeMap<String, String>);

impl ClientVariables {
    /// Takes one variable, or refuses it.
    pub fn set(&mut self, name: String, value: String) -> bool {
        let room = self.0.len() < MOST_VARIABLES || self.0.contains_key(&name);
        let accepted =
            room && value.len() <= LONGEST_VALUE && !value.contains('\0') && client_may_set(&name);
        if accepted {
            self.0.insert(name, value);
        }
        accepted
    }

    /// Takes the command that the client asked for and that another one
    /// replaces, whatever else the client has set.
    pub fn set_original_command(&mut self, command: String) -> bool {
        let accepted = !command.contains('\0');
        if accepted {
            self.0.insert(ORIGINAL_COMMAND.to_owned(), command);
        }
        accepted
    }
}

/// What the environment of one process is made of.
#[derive(Debug)]
pub struct Sources<'a> {
    /// The agent's own environment.
    pub inherited: Vec<(OsString, OsString)>,
    /// Name of the workspace.
    pub workspace: &'a str,
    /// Where the services are.
    pub services: &'a [(String, String)],
    /// The workspace's variables.
    pub configured: &'a BTreeMap<String, String>,
    /// The client's.
    pub client: &'a ClientVariables,
    /// The session's user.
    pub user: &'a User,
    /// The shell that serves the session.
    pub shell: &'a OsStr,
    /// TERM, SSH_TTY, SSH_AUTH_SOCK, DISPLAY and the like.
    pub session: Vec<(&'static str, OsString)>,
}

impl Sources<'_> {
    /// The environment, each name once.
    #[must_use]
    pub fn merge(self) -> Vec<(OsString, OsString)> {
        let mut merged: BTreeMap<OsString, OsString> = self
            .inherited
            .into_iter()
            .filter(|(name, _)| !NOT_INHERITED.iter().any(|other| name == other))
            .collect();
        let pairs = self.configured.iter().chain(&self.client.0);
        merged.extend(pairs.map(|(name, value)| (name.into(), value.into())));
        merged
            .entry("PATH".into())
            .or_insert_with(|| DEFAULT_PATH.into());
        merged.insert("VENDETTA_WORKSPACE".into(), self.workspace.into());
        let services = self.services.iter();
        merged.extend(services.map(|(name, value)| (name.into(), value.into())));
        merged.insert("HOME".into(), self.user.home.clone().into());
        merged.insert("USER".into(), self.user.name.clone());
        merged.insert("LOGNAME".into(), self.user.name.clone());
        merged.insert("SHELL".into(), self.shell.to_owned());
        merged.extend(
            self.session
                .into_iter()
                .map(|(name, value)| (name.into(), value)),
        );
        merged.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_set_locale_and_colour_and_nothing_that_runs_code() {
        for name in [
            "LANG",
            "LC_ALL",
            "LC_CTYPE",
            "COLORTERM",
            "NO_COLOR",
            "GIT_PROTOCOL",
            "TZ",
        ] {
            assert!(client_may_set(name), "{name}");
        }
        for name in [
            "PATH",
            "LD_PRELOAD",
            "BASH_ENV",
            "ENV",
            "HOME",
            "VENDETTA_WORKSPACE",
            "VENDETTA_SERVICE_DB_PORT",
            ORIGINAL_COMMAND,
            "LC_",
            "LC_A=B",
            "",
        ] {
            assert!(!client_may_set(name), "{name}");
        }
    }

    #[test]
    fn the_session_wins_over_the_client_over_the_workspace_over_the_image() {
        let user = User {
            name: "dev".into(),
            uid: 1,
            gid: 1,
            groups: vec![],
            home: "/home/dev".into(),
            shell: "/bin/sh".into(),
        };
        let mut client = ClientVariables::default();
        assert!(client.set("LANG".into(), "de_DE.UTF-8".into()));
        assert!(!client.set("PATH".into(), "/evil".into()));
        let configured = BTreeMap::from([
            ("LANG".to_owned(), "C".to_owned()),
            ("HOME".to_owned(), "/elsewhere".to_owned()),
            ("RUST_LOG".to_owned(), "info".to_owned()),
            ("VENDETTA_SERVICE_DB_PORT".to_owned(), "1".to_owned()),
        ]);
        let merged: BTreeMap<OsString, OsString> = Sources {
            inherited: vec![
                ("RUST_LOG".into(), "off".into()),
                ("IMAGE".into(), "yes".into()),
                ("SSH_AUTH_SOCK".into(), "/host/agent".into()),
            ],
            workspace: "w",
            services: &[("VENDETTA_SERVICE_DB_PORT".to_owned(), "5432".to_owned())],
            configured: &configured,
            client: &client,
            user: &user,
            shell: OsStr::new("/bin/sh"),
            session: vec![("TERM", "xterm".into())],
        }
        .merge()
        .into_iter()
        .collect();
        let get = |name: &str| {
            merged
                .get(OsStr::new(name))
                .and_then(|value| value.to_str())
        };
        assert_eq!(get("LANG"), Some("de_DE.UTF-8"));
        assert_eq!(get("HOME"), Some("/home/dev"));
        assert_eq!(get("RUST_LOG"), Some("info"));
        assert_eq!(get("VENDETTA_SERVICE_DB_PORT"), Some("5432"));
        assert_eq!(get("IMAGE"), Some("yes"));
        assert_eq!(get("SSH_AUTH_SOCK"), None);
        assert_eq!(get("PATH"), Some(DEFAULT_PATH));
        assert_eq!(get("TERM"), Some("xterm"));
    }
}
