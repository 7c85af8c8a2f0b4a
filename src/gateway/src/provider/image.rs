//! References to container images (the grammar of the distribution project's
//! `reference` package), checked before an engine is asked.

use std::fmt;

/// Longest reference, as engines have it.
const MAX_LENGTH: usize = 255;

/// A reference such as "ubuntu:22.04", "ghcr.io/owner/name@sha256:…".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    text: String,
}

/// Why a reference was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{reference:?} is not an image reference: {problem}; write [REGISTRY/]NAME[:TAG], such as ubuntu:22.04"
)]
pub struct InvalidImage {
    /// The reference as given.
    pub reference: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl ImageReference {
    /// Checks a reference. Without a tag or digest it means the tag `latest`.
    ///
    /// # Errors
    /// [`InvalidImage`] with what is wrong.
    pub fn parse(reference: &str) -> Result<Self, InvalidImage> {
        let refuse = |problem| {
            Err(InvalidImage {
                reference: reference.to_owned(),
                problem,
            })
        };
        if reference.is_empty() {
            return refuse("it is empty");
        }
        if reference.len() > MAX_LENGTH {
            return refuse("it is longer than 255 characters");
        }
        let (named, digest) = match reference.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (reference, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return refuse("the digest after '@' is not ALGORITHM:HEX");
        }
        // A ':' after the last '/' begins a tag; before it, a registry's port.
        let last = named.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match named.get(last..).and_then(|name| name.rfind(':')) {
            Some(colon) => {
                let (path, tag) = named.split_at(last + colon);
                (path, tag.strip_prefix(':'))
            }
            None => (named, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return refuse("the tag after ':' has a character that is not allowed, or none");
        }
        let mut parts: Vec<_> = path.split('/').collect();
        if let [registry, _, ..] = parts.as_slice()
            && is_registry(registry)
        {
            parts.remove(0);
        }
        if !parts.iter().all(|part| is_component(part)) {
            return refuse("the name has a character that is not allowed, or an empty part");
        }
        let text = match (tag, digest) {
            (None, None) => format!("{reference}:latest"),
            _ => reference.to_owned(),
        };
        Ok(Self { text })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// The first part names a registry when it looks like a host: it has a '.' or
/// a ':' or is "localhost".
fn is_registry(part: &str) -> bool {
    let (host, port) = part.split_once(':').unwrap_or((part, "0"));
    let looks = part == "localhost" || part.contains(['.', ':']);
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    looks && !host.is_empty() && host.bytes().all(letters) && port.parse::<u16>().is_ok()
}

/// Lower-case letters and digits, with separators '.', '_', '__' or any number of '-' within.
fn is_component(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = part.bytes().next().is_some_and(plain) && part.bytes().last().is_some_and(plain);
    let separators = part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'));
    ends && separators
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && algorithm
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b))
            && hex.len() >= 32
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_reference_without_a_tag_means_latest_and_never_all_tags() {
        let text = |reference| ImageReference::parse(reference).unwrap().to_string();
        assert_eq!(text("ubuntu"), "ubuntu:latest");
        assert_eq!(text("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        for whole in [
            "ubuntu:22.04",
            "library/ubuntu:22.04",
            "ghcr.io/owner/some.name__x:v1_2-3",
            "localhost:5000/a:b",
            "a--b:x",
            "x@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(text(whole), whole);
        }
    }

    #[test]
    fn what_no_engine_takes_is_refused() {
        for bad in [
            "",
            " ",
            "Ubuntu",
            "ubuntu:",
            "ubuntu:a b",
            ":22.04",
            "a//b",
            "/a",
            "a/",
            "a:b:c",
            "a@sha256",
            "a@sha256:xyz",
            "a;rm -rf",
            "a\n",
            "-a",
            "a-",
            "a..b",
            "ubuntu:-x",
            "host:port/a",
            "é",
        ] {
            assert!(ImageReference::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = ImageReference::parse(&text);
        }
    }
}
