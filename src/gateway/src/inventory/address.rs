//! Where the sshd of a node is, as people write it: `[USER@]HOST[:PORT]`.

use std::fmt;
use std::str::FromStr;

/// Port of SSH (RFC 4253 section 4.1).
pub const SSH_PORT: u16 = 22;

/// `[USER@]HOST[:PORT]`; an IPv6 address with a port stands in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Login name, where one was given.
    pub user: Option<String>,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port, where one was given.
    pub port: Option<u16>,
}

/// What is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address; write [USER@]HOST[:PORT], such as devuser@10.0.0.5:2222")]
pub struct InvalidAddress(pub String);

impl Address {
    /// Whether `text` can only be meant as an address, never as the name of a node.
    #[must_use]
    pub fn looks_like_one(text: &str) -> bool {
        text.contains(['@', '.', ':'])
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (host, after) = inner.split_once(']').ok_or_else(invalid)?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(invalid()),
            }
        } else {
            match rest.split_once(':') {
                // More than one colon: an IPv6 address without a port.
                Some((_, after)) if after.contains(':') => (rest, None),
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        let port = match port {
            None => None,
            Some(port) => Some(
                port.parse()
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(invalid)?,
            ),
        };
        let word = |text: &str| {
            let odd = |c: char| c.is_whitespace() || c.is_control() || "/'\"\\`$".contains(c);
            !text.is_empty() && text.len() <= 255 && !text.starts_with('-') && !text.contains(odd)
        };
        if !word(host) || user.is_some_and(|user| !word(user)) {
            return Err(invalid());
        }
        Ok(Self {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            None => f.write_str(&self.host),
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for (text, user, host, port) in [
            ("box", None, "box", None),
            ("10.0.0.5", None, "10.0.0.5", None),
            (
                "dev@box.example.org:2222",
                Some("dev"),
                "box.example.org",
                Some(2222),
            ),
            ("fe80::1", None, "fe80::1", None),
            ("root@[fe80::1]:22", Some("root"), "fe80::1", Some(22)),
            ("[::1]", None, "::1", None),
            ("me@corp@box", Some("me@corp"), "box", None),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.user.as_deref(), user, "{text}");
            assert_eq!(
                (address.host.as_str(), address.port),
                (host, port),
                "{text}"
            );
            assert_eq!(address.to_string().parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "@box",
            "dev@",
            "box:",
            "box:0",
            "box:99999",
            "a b",
            "-oProxyCommand=x",
            "[::1",
            "[::1]x",
            "a/b",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_bare_name_may_be_a_node() {
        assert!(!Address::looks_like_one("node1"));
        for text in ["10.0.0.5", "dev@node1", "node1:22", "::1"] {
            assert!(Address::looks_like_one(text), "{text}");
        }
    }
}
