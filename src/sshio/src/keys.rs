//! SSH keys and certificates as the rest of vendetta sees them, so that only
//! this crate and the SSH layers know which library carries them.

use std::fmt;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Algorithm, HashAlg};

/// Why a key could not be read, made or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Text that is not an OpenSSH public key.
    #[error("not an OpenSSH public key (a line such as \"ssh-ed25519 AAAA… you@host\"): {0}")]
    Public(ssh_key::Error),
    /// A private key that cannot be read.
    #[error("{path}: not an OpenSSH private key: {source}", path = path.display())]
    Private {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ssh_key::Error,
    },
    /// A private key that others can read.
    #[error("{path}: mode {mode:03o} lets others read this private key; run: chmod 600 {path}", path = path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A key or certificate could not be made.
    #[error("making a key or certificate: {0}")]
    Make(ssh_key::Error),
}

/// A public key; equal to another when the key material is, whatever the comment.
#[derive(Clone)]
pub struct PublicKey(russh::keys::PublicKey);

impl PublicKey {
    /// Comment of the line it was read from; may be empty.
    #[must_use]
    pub fn comment(&self) -> String {
        self.0.comment().to_string()
    }

    /// "SHA256:…", as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Algorithm name, such as "ssh-ed25519" (RFC 4253 section 6.6).
    #[must_use]
    pub fn algorithm(&self) -> String {
        self.0.algorithm().to_string()
    }

    /// The key as russh takes it.
    #[must_use]
    pub fn as_russh(&self) -> &russh::keys::PublicKey {
        &self.0
    }
}

impl From<russh::keys::PublicKey> for PublicKey {
    fn from(key: russh::keys::PublicKey) -> Self {
        Self(key)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(line: &str) -> Result<Self, KeyError> {
        russh::keys::PublicKey::from_openssh(line.trim())
            .map(Self)
            .map_err(KeyError::Public)
    }
}

/// The OpenSSH line without its comment.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = self.0.clone();
        key.set_comment("");
        f.write_str(key.to_openssh().map_err(|_| fmt::Error)?.trim_end())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key_data() == other.0.key_data()
    }
}
impl Eq for PublicKey {}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fingerprint().hash(state);
    }
}

/// A private key. Debug and Display never show it.
#[derive(Clone)]
pub struct PrivateKey(russh::keys::PrivateKey);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public().fingerprint())
    }
}

impl PrivateKey {
    /// Makes an ed25519 key.
    ///
    /// # Errors
    /// [`KeyError::Make`] when the library refuses.
    pub fn generate_ed25519(comment: &str) -> Result<Self, KeyError> {
        let mut key = russh::keys::PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
            .map_err(KeyError::Make)?;
        key.set_comment(comment);
        Ok(Self(key))
    }

    /// Reads an unencrypted OpenSSH PEM.
    ///
    /// # Errors
    /// [`KeyError::Make`] when `text` is not one.
    pub fn from_openssh(text: &str) -> Result<Self, KeyError> {
        russh::keys::PrivateKey::from_openssh(text)
            .map(Self)
            .map_err(KeyError::Make)
    }

    /// Reads a private key in any of the forms that ssh-keygen(1) has written
    /// since; none when it is not one, or has a passphrase.
    #[must_use]
    pub fn without_passphrase(text: &str) -> Option<Self> {
        russh::keys::decode_secret_key(text, None).ok().map(Self)
    }

    /// The key as OpenSSH PEM: a secret, for a file of mode 0600.
    ///
    /// # Errors
    /// [`KeyError::Make`] when the library refuses.
    pub fn to_openssh(&self) -> Result<String, KeyError> {
        self.0
            .to_openssh(LineEnding::LF)
            .map(|pem| pem.to_string())
            .map_err(KeyError::Make)
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key().clone())
    }

    /// The key as russh takes it.
    #[must_use]
    pub fn as_russh(&self) -> &russh::keys::PrivateKey {
        &self.0
    }

    /// Reads the key in `path`, or makes one and writes it there with mode
    /// 0600 and its public half beside it as `path.pub`.
    ///
    /// # Errors
    /// A file that is not a key, that others can read, or that cannot be read or written.
    pub fn load_or_generate(path: &Path, comment: &str) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io {
            path: path.to_owned(),
            source,
        };
        match fs::read_to_string(path) {
            Ok(text) => {
                let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(KeyError::Mode {
                        path: path.to_owned(),
                        mode,
                    });
                }
                russh::keys::PrivateKey::from_openssh(&text)
                    .map(Self)
                    .map_err(|source| KeyError::Private {
                        path: path.to_owned(),
                        source,
                    })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Self::generate_ed25519(comment)?;
                // Whole or not at all: a crash must not leave half a key behind.
                let mut temporary = path.as_os_str().to_owned();
                temporary.push(".new");
                let temporary = PathBuf::from(temporary);
                let _ = fs::remove_file(&temporary);
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&temporary)
                    .map_err(io)?;
                file.write_all(key.to_openssh()?.as_bytes()).map_err(io)?;
                file.sync_all().map_err(io)?;
                fs::rename(&temporary, path).map_err(io)?;
                let mut public = path.as_os_str().to_owned();
                public.push(".pub");
                fs::write(public, format!("{} {comment}\n", key.public())).map_err(io)?;
                Ok(key)
            }
            Err(error) => Err(io(error)),
        }
    }
}

/// Certifies `key` as the host key of `principals` (OpenSSH
/// PROTOCOL.certkeys), valid from now on without an end: the CA belongs to one
/// gateway and a rebuild keeps the key. Returns the certificate's OpenSSH line.
///
/// # Errors
/// [`KeyError::Make`] when the library refuses.
pub fn certify_host(
    ca: &PrivateKey,
    key: &PublicKey,
    principals: &[String],
    key_id: &str,
) -> Result<String, KeyError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    // An hour of tolerance for clocks that differ.
    let mut builder = Builder::new_with_random_nonce(
        &mut rand::rng(),
        key.0.key_data().clone(),
        now.saturating_sub(3600),
        i64::MAX as u64,
    )
    .map_err(KeyError::Make)?;
    builder.cert_type(CertType::Host).map_err(KeyError::Make)?;
    builder.key_id(key_id).map_err(KeyError::Make)?;
    for principal in principals {
        builder
            .valid_principal(principal.as_str())
            .map_err(KeyError::Make)?;
    }
    let certificate = builder.sign(&ca.0).map_err(KeyError::Make)?;
    certificate.to_openssh().map_err(KeyError::Make)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_with_mode_0600_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host_key");
        let made = PrivateKey::load_or_generate(&path, "test").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let read = PrivateKey::load_or_generate(&path, "other").unwrap();
        assert_eq!(made.public(), read.public());
        let line = fs::read_to_string(dir.path().join("host_key.pub")).unwrap();
        assert_eq!(line.parse::<PublicKey>().unwrap(), made.public());
        assert_eq!(line.parse::<PublicKey>().unwrap().comment(), "test");
    }

    #[test]
    fn a_private_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host_key");
        PrivateKey::load_or_generate(&path, "test").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = PrivateKey::load_or_generate(&path, "test")
            .unwrap_err()
            .to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_host_certificate_names_its_principals_and_verifies_against_the_ca() {
        let ca = PrivateKey::generate_ed25519("ca").unwrap();
        let host = PrivateKey::generate_ed25519("host").unwrap();
        let line = certify_host(&ca, &host.public(), &["demo".to_owned()], "demo").unwrap();
        let certificate = russh::keys::Certificate::from_openssh(&line).unwrap();
        assert_eq!(certificate.valid_principals(), ["demo"]);
        assert_eq!(certificate.cert_type(), CertType::Host);
        certificate
            .validate([&ca.0.fingerprint(HashAlg::Sha256)])
            .unwrap();
    }

    #[test]
    fn what_is_not_a_key_is_refused_with_an_example_of_one() {
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ] {
            let error = bad.parse::<PublicKey>().unwrap_err().to_string();
            assert!(error.contains("ssh-ed25519 AAAA…"), "{error}");
        }
    }
}
