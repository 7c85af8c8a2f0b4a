//! Who may log in to the agent besides the gateway: those who come end to end
//! (ProxyJump), with keys of their own.
//!
//! ```text
//!   nobody ── the gateway admits some ──▶ some ── it admits others ──▶ others
//!     ▲                                    │                             │
//!     └── the channel that admitted the latest ends ─────────────────────┘
//! ```
//!
//! So an agent that its gateway has left lets nobody in. Whoever is connected
//! and no longer admitted is cut off.

use std::fmt;

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Certificate, HashAlg};
use tokio::sync::watch;
use vendetta_proto::rpc::Guests;

/// What an unrestricted certificate allows (OpenSSH PROTOCOL.certkeys).
const PERMITS: [&str; 4] = [
    "permit-pty",
    "permit-port-forwarding",
    "permit-agent-forwarding",
    "permit-X11-forwarding",
];

/// Who has logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The gateway, for itself.
    Gateway,
    /// The gateway, for one of its clients.
    Client,
    /// Somebody else, with this.
    Guest(Credential),
}

/// What a guest logs in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A key, by its fingerprint.
    Key(String),
    /// A user certificate.
    Certificate {
        /// Fingerprint of the authority that signed it.
        authority: String,
        /// Its principals.
        users: Vec<String>,
    },
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(fingerprint) => write!(f, "key {fingerprint}"),
            Self::Certificate { authority, users } => {
                write!(f, "certificate of {authority} for {}", users.join(", "))
            }
        }
    }
}

/// Why a certificate opens no agent, whoever is admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Restricted {
    /// A host certificate.
    #[error("it is a host certificate")]
    NotForUsers,
    /// It has a critical option. They are for the gateway, which knows where
    /// the client is and what it asks for.
    #[error("it has the critical option {0:?}, so it is for logins through the gateway only")]
    Option(String),
    /// It does not permit something.
    #[error("it has no {0}, so it is for logins through the gateway only")]
    Extension(&'static str),
}

impl Credential {
    /// The credential that a certificate is, whose dates and signature are right.
    ///
    /// # Errors
    /// When it restricts what its holder may do: only the gateway sees to that.
    pub fn of(certificate: &Certificate) -> Result<Self, Restricted> {
        if certificate.cert_type() != CertType::User {
            return Err(Restricted::NotForUsers);
        }
        if let Some((option, _)) = certificate.critical_options().iter().next() {
            return Err(Restricted::Option(option.clone()));
        }
        let has = |permit: &str| {
            let mut extensions = certificate.extensions().iter();
            extensions.any(|(extension, _)| extension == permit)
        };
        if let Some(missing) = PERMITS.into_iter().find(|permit| !has(permit)) {
            return Err(Restricted::Extension(missing));
        }
        Ok(Self::Certificate {
            authority: fingerprint(certificate.signature_key()),
            users: certificate.valid_principals().to_vec(),
        })
    }

    fn is_of(&self, guests: &Guests) -> bool {
        match self {
            Self::Key(fingerprint) => guests.keys.contains(fingerprint),
            Self::Certificate { authority, users } => {
                guests.authorities.contains(authority)
                    && users.iter().any(|user| guests.users.contains(user))
            }
        }
    }
}

/// "SHA256:…", as `ssh-keygen -l` prints it.
#[must_use]
pub fn fingerprint(key: &KeyData) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

#[derive(Debug, Default)]
struct Current {
    /// Counts admissions.
    number: u64,
    guests: Guests,
}

/// Those who are let in.
#[derive(Debug, Default)]
pub struct Admission(watch::Sender<Current>);

impl Admission {
    /// Lets `guests` in, and nobody else, until the result is dropped or
    /// others are let in.
    pub fn admit(&self, guests: Guests) -> Stay<'_> {
        let mut number = 0;
        self.0.send_modify(|current| {
            current.number += 1;
            current.guests = guests;
            number = current.number;
        });
        Stay {
            admission: self,
            number,
        }
    }

    /// Whether `credential` may log in now.
    pub fn admits(&self, credential: &Credential) -> bool {
        credential.is_of(&self.0.borrow().guests)
    }

    /// Whether a certificate may log in now.
    pub fn takes_certificates(&self) -> bool {
        let current = self.0.borrow();
        !current.guests.authorities.is_empty() && !current.guests.users.is_empty()
    }

    /// Returns as soon as `credential` may not log in.
    pub async fn ended(&self, credential: &Credential) {
        let mut current = self.0.subscribe();
        // It cannot fail: we hold the sender.
        let _ = current
            .wait_for(|current| !credential.is_of(&current.guests))
            .await;
    }
}

/// Keeps guests admitted.
#[derive(Debug)]
pub struct Stay<'a> {
    admission: &'a Admission,
    number: u64,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.admission.0.send_if_modified(|current| {
            let is_latest = current.number == self.number;
            if is_latest {
                current.guests = Guests::default();
            }
            is_latest
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn key(name: u8) -> Credential {
        Credential::Key(name.to_string())
    }

    fn guests(keys: &BTreeSet<u8>) -> Guests {
        Guests {
            keys: keys.iter().map(u8::to_string).collect(),
            ..Guests::default()
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Admit(BTreeSet<u8>),
        End(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::collection::btree_set(0..4u8, 0..4).prop_map(Step::Admit),
            (0..4usize).prop_map(Step::End),
        ]
    }

    proptest! {
        #[test]
        fn those_of_the_latest_admission_are_let_in_while_it_stands(
            steps in prop::collection::vec(step(), 0..20),
        ) {
            let admission = Admission::default();
            let mut stays = Vec::new();
            let mut latest: Option<(usize, BTreeSet<u8>)> = None;
            let mut begun = 0;
            for step in steps {
                match step {
                    Step::Admit(keys) => {
                        stays.push((begun, admission.admit(guests(&keys))));
                        latest = Some((begun, keys));
                        begun += 1;
                    }
                    Step::End(at) if at < stays.len() => {
                        let (number, stay) = stays.remove(at);
                        drop(stay);
                        latest = latest.filter(|(latest, _)| *latest != number);
                    }
                    Step::End(_) => {}
                }
                for name in 0..4 {
                    let expected = latest.as_ref().is_some_and(|(_, keys)| keys.contains(&name));
                    prop_assert_eq!(admission.admits(&key(name)), expected);
                }
            }
        }
    }

    #[tokio::test]
    async fn who_is_no_longer_admitted_is_told_so_even_when_that_was_before() {
        let admission = Admission::default();
        let both = admission.admit(guests(&[1, 2].into()));
        let (one, two) = (key(1), key(2));
        let waiting = async { tokio::join!(admission.ended(&one), async { drop(both) }) };
        let _only_two = admission.admit(guests(&[2].into()));
        waiting.await;
        admission.ended(&one).await;
        let in_vain = std::time::Duration::from_millis(20);
        let still = tokio::time::timeout(in_vain, admission.ended(&two)).await;
        assert!(still.is_err(), "two is still admitted");
    }

    #[test]
    fn a_certificate_needs_its_authority_and_one_of_its_users() {
        let certificate = |authority: &str, users: &[&str]| Credential::Certificate {
            authority: authority.to_owned(),
            users: users.iter().map(|&user| user.to_owned()).collect(),
        };
        let admission = Admission::default();
        let _stay = admission.admit(Guests {
            authorities: ["ca".to_owned()].into(),
            users: ["alice".to_owned()].into(),
            ..Guests::default()
        });
        assert!(admission.admits(&certificate("ca", &["bob", "alice"])));
        assert!(!admission.admits(&certificate("ca", &["bob"])));
        assert!(!admission.admits(&certificate("ca", &[])));
        assert!(!admission.admits(&certificate("other", &["alice"])));
    }
}
