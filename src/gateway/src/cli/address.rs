//! Which gateway the local command talks to.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use super::Failure;

/// Environment variable that names the gateway.
const VARIABLE: &str = "VENDETTA_GATEWAY";

/// A gateway as `ssh` is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Host name, address, or Host of ssh's own configuration.
    pub(super) host: String,
    /// None: what ssh's own configuration says, else 22.
    pub(super) port: Option<u16>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if host.starts_with('[') && host.ends_with(']') => {
                (host.trim_matches(['[', ']']), Some(port))
            }
            // More than one colon: an IPv6 address without a port.
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            _ => (text, None),
        };
        let port = port
            .map(|port| port.parse::<u16>().ok().filter(|&port| port > 0))
            .map(|port| port.ok_or(format!("{text:?} has no valid port")))
            .transpose()?;
        let sound = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        if host.is_empty() || host.starts_with('-') || !host.chars().all(sound) {
            return Err(format!("{text:?} is not HOST or HOST:PORT"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// The local command's own configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    gateway: Option<String>,
}

/// The gateway to talk to: `--gateway`, else the variable, else the file.
pub(super) fn find(flag: Option<&str>) -> Result<Address, Failure> {
    let variable = std::env::var(VARIABLE).ok();
    choose(flag, variable.as_deref(), file().as_deref())
}

fn choose(
    flag: Option<&str>,
    variable: Option<&str>,
    file: Option<&Path>,
) -> Result<Address, Failure> {
    let parse = |text: &str, place: &str| {
        text.parse::<Address>().map_err(|problem| {
            Failure::new(
                2,
                format!("{place}: {problem}"),
                "for example: dev.example.org:2222",
            )
        })
    };
    if let Some(flag) = flag {
        return parse(flag, "--gateway");
    }
    if let Some(variable) = variable.filter(|value| !value.is_empty()) {
        return parse(variable, VARIABLE);
    }
    let default = Address {
        host: "127.0.0.1".to_owned(),
        port: Some(2222),
    };
    let Some(path) = file else { return Ok(default) };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(default),
        Err(error) => {
            let problem = format!("{}: {error}", path.display());
            return Err(Failure::new(2, problem, "make it readable, or remove it"));
        }
    };
    let place = path.display().to_string();
    let file: File = toml::from_str(&text).map_err(|error| {
        let problem = format!("{place}: {}", error.to_string().trim_end());
        Failure::new(2, problem, "its only key is gateway = \"HOST:PORT\"")
    })?;
    file.gateway
        .map_or(Ok(default), |gateway| parse(&gateway, &place))
}

/// XDG Base Directory Specification.
fn file() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let dir = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(dir.join("vendetta/config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_a_host_and_perhaps_a_port() {
        for (text, host, port) in [
            ("dev", "dev", None),
            ("dev.example.org:2222", "dev.example.org", Some(2222)),
            ("10.0.0.1:22", "10.0.0.1", Some(22)),
            ("[::1]:2222", "::1", Some(2222)),
            ("2001:db8::1", "2001:db8::1", None),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(
                (address.host.as_str(), address.port),
                (host, port),
                "{text}"
            );
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            ":22",
            "dev:",
            "dev:0",
            "dev:99999",
            "-oProxyCommand=x",
            "a b",
            "dev:22:x y",
            "a'b",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_flag_wins_over_the_variable_and_that_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let chosen =
            |flag, variable| choose(flag, variable, Some(&file)).map(|address| address.to_string());
        assert_eq!(chosen(None, None).unwrap(), "127.0.0.1:2222");
        std::fs::write(&file, "gateway = \"in-file:1\"\n").unwrap();
        assert_eq!(chosen(None, None).unwrap(), "in-file:1");
        assert_eq!(chosen(None, Some("")).unwrap(), "in-file:1");
        assert_eq!(chosen(None, Some("in-env:2")).unwrap(), "in-env:2");
        assert_eq!(chosen(Some("flag:3"), Some("in-env:2")).unwrap(), "flag:3");
        std::fs::write(&file, "gatway = \"x\"\n").unwrap();
        assert_eq!(chosen(None, None).unwrap_err().code, 2);
        assert_eq!(chosen(Some("-x"), None).unwrap_err().code, 2);
    }
}
