//! From a verified key or certificate to a [`Principal`].
//!
//! russh has proved that the client holds the private key, and for a
//! certificate that it is within its dates and that its signature is right.
//! Everything else about a certificate is decided here (OpenSSH
//! PROTOCOL.certkeys): that its CA is trusted, that it is for users, whom it
//! names, and what its options allow.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Certificate, PublicKey};
use vendetta_sshio::keys;

use crate::access::{Permissions, Principal};
use crate::store::Store;

/// Turns keys and certificates into principals.
pub struct Authenticator {
    store: Store,
    trusted: Vec<keys::PublicKey>,
}

/// Why a certificate is refused; for the log, the client learns nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Signed by a CA that the configuration does not list.
    #[error("its CA {0} is not among users.trusted_user_ca_keys")]
    UnknownAuthority(String),
    /// A host certificate.
    #[error("it is a host certificate")]
    NotForUsers,
    /// Without principals, which OpenSSH refuses for a trusted CA too.
    #[error("it names no principal that is a registered user")]
    NoUser,
    /// The client's address is outside "source-address".
    #[error("source-address does not allow {0}")]
    Source(IpAddr),
    /// A critical option this server does not implement (PROTOCOL.certkeys: must refuse).
    #[error("it has the critical option {0:?}")]
    CriticalOption(String),
}

impl Authenticator {
    /// Reads keys from `store` and trusts certificates of the CAs `trusted`.
    #[must_use]
    pub fn new(store: Store, trusted: Vec<keys::PublicKey>) -> Self {
        Self { store, trusted }
    }

    /// The principal that a key stands for.
    #[must_use]
    pub fn key(&self, key: &PublicKey) -> Option<Arc<Principal>> {
        self.store
            .principal_for_key(&keys::PublicKey::from(key.clone()).fingerprint())
    }

    /// Whether a signature with this key can lead anywhere, so that a client
    /// is spared signing with each of its keys. A certificate is offered with
    /// nothing but its bare key, so where CAs are trusted any key may.
    #[must_use]
    pub fn worth_a_signature(&self, key: &PublicKey) -> bool {
        !self.trusted.is_empty() || self.key(key).is_some()
    }

    /// The principal that a certificate stands for, used from `peer`.
    ///
    /// # Errors
    /// When it stands for nobody here.
    pub fn certificate(
        &self,
        certificate: &Certificate,
        peer: SocketAddr,
    ) -> Result<Principal, Refused> {
        let authority: keys::PublicKey =
            PublicKey::new(certificate.signature_key().clone(), "").into();
        if !self.trusted.contains(&authority) {
            return Err(Refused::UnknownAuthority(authority.fingerprint()));
        }
        if certificate.cert_type() != CertType::User {
            return Err(Refused::NotForUsers);
        }
        let permissions = permissions(certificate, peer.ip())?;
        let user = certificate
            .valid_principals()
            .iter()
            .find_map(|principal| self.store.user(&principal.parse().ok()?))
            .ok_or(Refused::NoUser)?;
        let key: keys::PublicKey = PublicKey::new(certificate.public_key().clone(), "").into();
        Ok(Principal {
            user: user.name,
            role: user.role,
            key_fingerprint: key.fingerprint(),
            permissions,
        })
    }
}

fn permissions(certificate: &Certificate, peer: IpAddr) -> Result<Permissions, Refused> {
    let mut force_command = None;
    for (name, value) in certificate.critical_options().iter() {
        match name.as_str() {
            "force-command" => force_command = Some(value.clone()),
            "source-address" => {
                if !value.split(',').any(|block| contains(block.trim(), peer)) {
                    return Err(Refused::Source(peer));
                }
            }
            other => return Err(Refused::CriticalOption(other.to_owned())),
        }
    }
    let has = |name: &str| {
        certificate
            .extensions()
            .iter()
            .any(|(extension, _)| extension == name)
    };
    Ok(Permissions {
        pty: has("permit-pty"),
        port_forwarding: has("permit-port-forwarding"),
        agent_forwarding: has("permit-agent-forwarding"),
        x11_forwarding: has("permit-X11-forwarding"),
        force_command,
    })
}

/// Whether the address block ("10.0.0.0/8", "::1") contains `address`.
fn contains(block: &str, address: IpAddr) -> bool {
    let (network, length) = match block.split_once('/') {
        Some((network, length)) => (network, length.parse::<u32>().ok()),
        None => (block, Some(u32::MAX)),
    };
    let (Ok(network), Some(length)) = (network.parse::<IpAddr>(), length) else {
        return false;
    };
    // An IPv4 client of an IPv6 listener is still that IPv4 client.
    match (network, address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let differing = network.to_bits() ^ address.to_bits();
            differing.leading_zeros() >= length.min(u32::BITS)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let differing = network.to_bits() ^ address.to_bits();
            differing.leading_zeros() >= length.min(u128::BITS)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn an_address_block_contains_what_its_prefix_covers_and_nothing_else() {
        let within = |block: &str, address: &str| contains(block, address.parse().unwrap());
        assert!(within("10.0.0.0/8", "10.200.3.4"));
        assert!(!within("10.0.0.0/8", "11.0.0.1"));
        assert!(within("192.168.1.7", "192.168.1.7"));
        assert!(!within("192.168.1.7", "192.168.1.8"));
        assert!(within("0.0.0.0/0", "8.8.8.8"));
        assert!(within("fe80::/10", "fe80::1"));
        assert!(within("127.0.0.1", "::ffff:127.0.0.1"));
        for nonsense in ["", "/", "10.0.0.0/x", "example.org", "10.0.0.0/-1"] {
            assert!(!within(nonsense, "10.0.0.0"), "{nonsense}");
        }
    }
}
