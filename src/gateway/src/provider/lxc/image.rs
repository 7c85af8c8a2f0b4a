//! References to images of Incus and LXD, checked before an engine is asked.

use std::fmt;

/// Longest reference that is taken.
const MAX_LENGTH: usize = 255;

/// Image servers that every client of Incus or LXD knows by these names, and where
/// they are. All speak simplestreams.
const REMOTES: [(&str, &str); 4] = [
    ("images", "https://images.linuxcontainers.org"),
    ("ubuntu", "https://cloud-images.ubuntu.com/releases"),
    ("ubuntu-daily", "https://cloud-images.ubuntu.com/daily"),
    (
        "ubuntu-minimal",
        "https://cloud-images.ubuntu.com/minimal/releases",
    ),
];

/// A reference such as "images:debian/12", or "dev" for an image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LxcImage {
    /// The server that the engine is to fetch it from; none: the engine has it.
    server: Option<&'static str>,
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
        let server = match remote {
            None | Some("local") => None,
            Some(remote) => match REMOTES.iter().find(|(known, _)| *known == remote) {
                Some((_, server)) => Some(*server),
                None => {
                    let known = REMOTES.map(|(known, _)| format!("{known}:"));
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
            server,
            name: name.to_owned(),
            text: reference.to_owned(),
        })
    }

    /// The server that the engine is to fetch it from; none: the engine has it, or nobody.
    pub(super) fn server(&self) -> Option<&'static str> {
        self.server
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
        assert_eq!(image.server(), Some("https://images.linuxcontainers.org"));
        assert_eq!(image.name(), "debian/12/cloud");
        assert_eq!(image.to_string(), "images:debian/12/cloud");
        assert!(LxcImage::parse("ubuntu:24.04").unwrap().server().is_some());
        for own in ["dev", "local:dev", "team/dev_1.2+x"] {
            assert_eq!(LxcImage::parse(own).unwrap().server(), None, "{own}");
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
