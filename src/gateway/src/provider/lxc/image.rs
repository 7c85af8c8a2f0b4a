//! References to images of Incus and LXD, checked before an engine is asked.

use std::fmt;

use super::engine::Software;

/// Longest reference that is taken.
const MAX_LENGTH: usize = 255;

/// An image server, by the name that clients of Incus and LXD know it by. All speak
/// simplestreams.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remote {
    name: &'static str,
    incus: &'static str,
    lxd: &'static str,
}

impl Remote {
    /// Where it is for an engine: each has its own server of what is called `images`,
    /// which does not serve the other.
    pub(super) fn server(&self, engine: Software) -> &'static str {
        match engine {
            Software::Incus => self.incus,
            Software::Lxd => self.lxd,
        }
    }

    const fn same(name: &'static str, server: &'static str) -> Self {
        Self {
            name,
            incus: server,
            lxd: server,
        }
    }
}

static REMOTES: [Remote; 4] = [
    Remote {
        name: "images",
        incus: "https://images.linuxcontainers.org",
        lxd: "https://images.lxd.canonical.com",
    },
    Remote::same("ubuntu", "https://cloud-images.ubuntu.com/releases"),
    Remote::same("ubuntu-daily", "https://cloud-images.ubuntu.com/daily"),
    Remote::same(
        "ubuntu-minimal",
        "https://cloud-images.ubuntu.com/minimal/releases",
    ),
];

/// A reference such as "images:debian/12", or "dev" for an image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LxcImage {
    /// The server that the engine is to fetch it from; none: the engine has it.
    remote: Option<&'static Remote>,
    /// Alias, or the beginning of a fingerprint.
    name: String,
    text: String,
}

/// Why a reference was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{reference:?} is not an image of Incus or LXD: {problem}; write images:debian/12, ubuntu:24.04, or an alias or fingerprint that the engine has"
)]
pub struct InvalidLxcImage {
    /// The reference as given.
    pub reference: String,
    /// What is wrong with it.
    pub problem: String,
}

impl LxcImage {
    /// Checks a reference: `[REMOTE:]NAME`, where NAME is an alias or a fingerprint.
    /// `local:` is the engine itself, as with its own client.
    ///
    /// # Errors
    /// [`InvalidLxcImage`] with what is wrong.
    pub fn parse(reference: &str) -> Result<Self, InvalidLxcImage> {
        let refuse = |problem: String| {
            Err(InvalidLxcImage {
                reference: reference.to_owned(),
                problem,
            })
        };
        if reference.is_empty() {
            return refuse("it is empty".to_owned());
        }
        if reference.len() > MAX_LENGTH {
            return refuse(format!("it is longer than {MAX_LENGTH} characters"));
        }
        let (remote, name) = match reference.split_once(':') {
            Some((remote, name)) => (Some(remote), name),
            None => (None, reference),
        };
        let remote = match remote {
            None | Some("local") => None,
            Some(remote) => match REMOTES.iter().find(|known| known.name == remote) {
                Some(known) => Some(known),
                None => {
                    let known = REMOTES.each_ref().map(|known| format!("{}:", known.name));
                    return refuse(format!(
                        "there is no image server {remote:?}; there are {} and local:",
                        known.join(", ")
                    ));
                }
            },
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+@".contains(&b);
        let parts = name.split('/').all(|part| {
            !part.is_empty() && part.bytes().all(plain) && !part.bytes().all(|b| b == b'.')
        });
        if !parts || name.starts_with('-') {
            return refuse(
                "the name has a character that is not allowed, or an empty part".to_owned(),
            );
        }
        Ok(Self {
            remote,
            name: name.to_owned(),
            text: reference.to_owned(),
        })
    }

    /// The server that the engine is to fetch it from; none: the engine has it, or nobody.
    pub(super) fn remote(&self) -> Option<&'static Remote> {
        self.remote
    }

    /// Alias, or the beginning of a fingerprint.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it may be the beginning of a fingerprint (a SHA-256), at least 12 digits.
    pub(super) fn may_be_fingerprint(&self) -> bool {
        let digits = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        (12..=64).contains(&self.name.len()) && self.name.bytes().all(digits)
    }
}

impl fmt::Display for LxcImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn remotes_are_those_of_the_engines_own_clients() {
        let image = LxcImage::parse("images:debian/12/cloud").unwrap();
        let server = |engine| image.remote().unwrap().server(engine);
        assert_eq!(
            server(Software::Incus),
            "https://images.linuxcontainers.org"
        );
        assert_eq!(server(Software::Lxd), "https://images.lxd.canonical.com");
        assert_eq!(image.name(), "debian/12/cloud");
        assert_eq!(image.to_string(), "images:debian/12/cloud");
        assert!(LxcImage::parse("ubuntu:24.04").unwrap().remote().is_some());
        for own in ["dev", "local:dev", "team/dev_1.2+x"] {
            assert_eq!(LxcImage::parse(own).unwrap().remote(), None, "{own}");
        }
    }

    #[test]
    fn a_fingerprint_is_known_by_its_digits() {
        let is = |text| LxcImage::parse(text).unwrap().may_be_fingerprint();
        assert!(is("65d16463a015"));
        assert!(!is("65d16463a01"));
        assert!(!is("debian"));
    }

    #[test]
    fn what_no_engine_takes_is_refused() {
        for bad in [
            "",
            " ",
            ":",
            "images:",
            ":x",
            "nowhere:debian/12",
            "a b",
            "a//b",
            "/a",
            "a/",
            "../a",
            "a/..",
            "a?b",
            "a#b",
            "a%2fb",
            "-a",
            "é",
            "a:b:c",
        ] {
            assert!(LxcImage::parse(bad).is_err(), "{bad:?}");
        }
        let error = LxcImage::parse("debian:12").unwrap_err().to_string();
        assert!(error.contains("images:"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = LxcImage::parse(&text);
        }
    }
}
