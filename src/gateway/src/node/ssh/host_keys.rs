//! Which host key a node has to prove.

use std::borrow::Cow;

use russh::keys::Algorithm;
use vendetta_sshio::keys::PublicKey;
use vendetta_sshio::transport::KEY_ALGORITHMS;

/// Which host keys are accepted.
#[derive(Debug, Clone)]
pub(in super::super) enum HostKeys {
    /// Only these.
    Pinned(Vec<PublicKey>),
    /// Only one with this fingerprint, "SHA256:…".
    Demanded(String),
    /// Whichever comes: trust on first use.
    First,
}

impl HostKeys {
    /// Only one with this fingerprint, as people write it: "SHA256:" may be missing,
    /// and "=" may follow.
    pub(in super::super) fn demanded(fingerprint: &str) -> Self {
        let digest = fingerprint.trim().trim_end_matches('=');
        let digest = digest.strip_prefix("SHA256:").unwrap_or(digest);
        Self::Demanded(format!("SHA256:{digest}"))
    }

    /// Whether `key` is one of them.
    pub(super) fn accepts(&self, key: &PublicKey) -> bool {
        match self {
            Self::Pinned(keys) => keys.contains(key),
            Self::Demanded(fingerprint) => key.fingerprint() == *fingerprint,
            Self::First => true,
        }
    }

    /// Their fingerprints, as they are told to a person.
    pub(super) fn expected(&self) -> String {
        match self {
            Self::Pinned(keys) => {
                let all: Vec<_> = keys.iter().map(PublicKey::fingerprint).collect();
                all.join(" or ")
            }
            Self::Demanded(fingerprint) => fingerprint.clone(),
            Self::First => "any".to_owned(),
        }
    }

    /// Algorithms to ask for: a server with several host keys shows the one of
    /// the first algorithm that both know, so the pinned ones come first.
    pub(super) fn algorithms(&self) -> Cow<'static, [Algorithm]> {
        let Self::Pinned(keys) = self else {
            return Cow::Borrowed(&KEY_ALGORITHMS);
        };
        let pinned = |algorithm: &Algorithm| {
            keys.iter().any(|key| {
                let own = key.as_russh().algorithm();
                let is_rsa = |algorithm: &Algorithm| matches!(algorithm, Algorithm::Rsa { .. });
                own == *algorithm || is_rsa(&own) && is_rsa(algorithm)
            })
        };
        let (mut first, rest): (Vec<_>, Vec<_>) = KEY_ALGORITHMS.into_iter().partition(pinned);
        first.extend(rest);
        Cow::Owned(first)
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::EcdsaCurve;

    use super::*;

    fn key(algorithm: Algorithm) -> PublicKey {
        let key = russh::keys::PrivateKey::random(&mut rand::rng(), algorithm).unwrap();
        key.public_key().clone().into()
    }

    #[test]
    fn the_algorithm_of_a_pinned_key_is_asked_for_first() {
        let ecdsa = Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP256,
        };
        let pinned = HostKeys::Pinned(vec![key(ecdsa.clone())]);
        assert_eq!(pinned.algorithms().first(), Some(&ecdsa));
        assert_eq!(
            pinned.algorithms().len(),
            HostKeys::First.algorithms().len()
        );
        assert_eq!(
            HostKeys::First.algorithms().first(),
            Some(&Algorithm::Ed25519)
        );
    }

    #[test]
    fn only_what_was_pinned_or_demanded_is_accepted() {
        let (own, other) = (key(Algorithm::Ed25519), key(Algorithm::Ed25519));
        assert!(HostKeys::First.accepts(&other));
        for keys in [
            HostKeys::Pinned(vec![own.clone()]),
            HostKeys::demanded(&own.fingerprint()),
            HostKeys::demanded(&format!(
                " {}=",
                own.fingerprint().trim_start_matches("SHA256:")
            )),
        ] {
            assert!(keys.accepts(&own));
            assert!(!keys.accepts(&other));
            assert_eq!(keys.expected(), own.fingerprint());
        }
        assert!(!HostKeys::Pinned(Vec::new()).accepts(&own));
    }
}
