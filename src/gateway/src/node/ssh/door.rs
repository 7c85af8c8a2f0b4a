//! Trying the ways into a machine, one after another, over as few connections
//! as its sshd puts up with (MaxAuthTries, sshd_config(5)).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::MethodKind;
use russh::client::{AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{PrivateKeyWithHashAlg, PublicKey as RusshKey};
use tokio::net::UnixStream;
use tokio::time::timeout;
use vendetta_sshio::keys::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::super::{ByteStream, LinkError};
use super::enroll::{EnrollError, Operator, Way, Ways};
use super::handshake::{Address, Greeted, greet};
use super::host_keys::HostKeys;

/// Time limit of a connection and of each answer on it.
const LIMIT: Duration = Duration::from_secs(10);

/// Tries on one connection: one less than the default of MaxAuthTries.
const TRIES: usize = 5;

/// Keys of one agent that are tried.
const AGENT_KEYS: usize = 20;

/// How often somebody may mistype a password.
const PASSWORDS: usize = 3;

/// Answers to questions of one keyboard-interactive exchange (RFC 4256).
const QUESTIONS: usize = 4;

pub(super) async fn greet_in_time(
    address: &Address,
    host_keys: HostKeys,
) -> Result<Greeted, LinkError> {
    let greeted = timeout(LIMIT, greet(address, host_keys)).await;
    greeted.unwrap_or_else(|_| {
        Err(LinkError::TimedOut {
            address: address.to_string(),
            limit: LIMIT,
        })
    })
}

/// A connection on which nobody is logged in yet, and what was tried.
pub(super) struct Door<'a> {
    address: &'a Address,
    host_key: PublicKey,
    greeted: Greeted,
    /// Tries on this connection.
    tries: usize,
    tried: Vec<String>,
}

impl<'a> Door<'a> {
    /// Nothing was tried on `greeted` yet.
    pub(super) fn new(address: &'a Address, greeted: Greeted) -> Self {
        Self {
            address,
            host_key: greeted.host_key.clone(),
            greeted,
            tries: 0,
            tried: Vec::new(),
        }
    }

    /// The connection on which a way led in.
    pub(super) fn entered(self) -> Greeted {
        self.greeted
    }

    /// Tries everything until something leads in.
    ///
    /// # Errors
    /// When nothing does, with what was tried, or the machine is gone.
    pub(super) async fn open(
        &mut self,
        node_key: &PrivateKey,
        operator: &Operator,
        ways: &mut dyn Ways,
    ) -> Result<Way, EnrollError> {
        if self.key(node_key.as_russh()).await? {
            return Ok(Way::NodeKey);
        }
        self.tried.push("the gateway's key: refused".to_owned());
        for path in &operator.keys {
            let Some(key) = read_key(path) else { continue };
            if self.key(&key).await? {
                return Ok(Way::OperatorKey(path.clone()));
            }
            self.tried
                .push(format!("the operator's key {}: refused", path.display()));
        }
        if let Some(path) = &operator.agent {
            let connected = timeout(LIMIT, UnixStream::connect(path)).await;
            let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let stream = stream.map(|stream| Box::new(stream) as Box<dyn ByteStream>);
            if let Some(key) = self.agent("the operator's agent", stream).await? {
                return Ok(Way::OperatorAgent(key));
            }
        }
        match ways.agent().await {
            Some(stream) => {
                if let Some(key) = self.agent("your agent", stream).await? {
                    return Ok(Way::CallerAgent(key));
                }
            }
            None => self.tried.push("your agent: not forwarded".to_owned()),
        }
        if self.passwords(ways).await? {
            return Ok(Way::Password);
        }
        Err(EnrollError::NoWay {
            address: self.address.to_string(),
            user: self.address.user.clone(),
            tried: std::mem::take(&mut self.tried),
        })
    }

    /// Makes room for one more try, on a new connection where this one has had its share.
    async fn ready(&mut self) -> Result<(), LinkError> {
        if self.tries >= TRIES || self.greeted.life.ended().is_some() {
            let pinned = HostKeys::Pinned(vec![self.host_key.clone()]);
            self.greeted = greet_in_time(self.address, pinned).await?;
            self.tries = 0;
        }
        self.tries += 1;
        Ok(())
    }

    /// Whether a try succeeded. One that sshd answers by closing the connection did not.
    fn judge(result: Option<Result<AuthResult, russh::Error>>) -> bool {
        matches!(result, Some(Ok(answer)) if answer.success())
    }

    async fn key(&mut self, key: &russh::keys::PrivateKey) -> Result<bool, LinkError> {
        self.ready().await?;
        let user = self.address.user.clone();
        let hash = match key.algorithm().is_rsa() {
            true => self.rsa_hash().await,
            false => None,
        };
        let key = PrivateKeyWithHashAlg::new(Arc::new(key.clone()), hash);
        let trying = self.greeted.handle.authenticate_publickey(user, key);
        Ok(Self::judge(timeout(LIMIT, trying).await.ok()))
    }

    async fn rsa_hash(&self) -> Option<russh::keys::HashAlg> {
        let asking = self.greeted.handle.best_supported_rsa_hash();
        let hash = timeout(LIMIT, asking).await.ok()?.ok()?;
        hash.flatten()
    }

    /// Tries the keys of an agent; the fingerprint of the one that led in.
    async fn agent(
        &mut self,
        whose: &str,
        stream: io::Result<Box<dyn ByteStream>>,
    ) -> Result<Option<String>, LinkError> {
        let mut told = |what: String| self.tried.push(format!("{whose}: {what}"));
        let mut agent = match stream {
            Ok(stream) => AgentClient::connect(stream),
            Err(error) => {
                told(error.to_string());
                return Ok(None);
            }
        };
        let identities = match timeout(LIMIT, agent.request_identities()).await {
            Ok(Ok(identities)) => identities,
            Ok(Err(error)) => {
                told(error.to_string());
                return Ok(None);
            }
            Err(_) => {
                told("no answer".to_owned());
                return Ok(None);
            }
        };
        let keys: Vec<RusshKey> = identities
            .into_iter()
            .filter_map(|identity| match identity {
                AgentIdentity::PublicKey { key, .. } => Some(key),
                AgentIdentity::Certificate { .. } => None,
            })
            .take(AGENT_KEYS)
            .collect();
        let count = keys.len();
        for key in keys {
            self.ready().await?;
            let user = self.address.user.clone();
            let hash = match key.algorithm().is_rsa() {
                true => self.rsa_hash().await,
                false => None,
            };
            let fingerprint = PublicKey::from(key.clone()).fingerprint();
            // A person may have to confirm the use of the key.
            let trying = self
                .greeted
                .handle
                .authenticate_publickey_with(user, key, hash, &mut agent);
            if matches!(timeout(6 * LIMIT, trying).await, Ok(Ok(answer)) if answer.success()) {
                return Ok(Some(fingerprint));
            }
        }
        self.tried.push(match count {
            0 => format!("{whose}: it has no keys"),
            1 => format!("{whose}: its key was refused"),
            count => format!("{whose}: its {count} keys were refused"),
        });
        Ok(None)
    }

    /// Asks for a password and tries it.
    async fn passwords(&mut self, ways: &mut dyn Ways) -> Result<bool, LinkError> {
        self.ready().await?;
        let user = self.address.user.clone();
        let asking = self.greeted.handle.authenticate_none(user.clone());
        let methods = match timeout(LIMIT, asking).await {
            Ok(Ok(AuthResult::Failure {
                remaining_methods, ..
            })) => remaining_methods,
            Ok(Ok(AuthResult::Success)) => return Ok(true),
            _ => {
                self.tried
                    .push("a password: the connection was closed".to_owned());
                return Ok(false);
            }
        };
        let plain = methods.contains(&MethodKind::Password);
        if !plain && !methods.contains(&MethodKind::KeyboardInteractive) {
            self.tried
                .push("a password: its sshd takes none".to_owned());
            return Ok(false);
        }
        for asked in 0..PASSWORDS {
            let prompt = format!("Password of {user} on {}: ", self.address);
            let Some(password) = ways.password(&prompt).await else {
                if asked == 0 {
                    self.tried
                        .push("a password: nobody was there to be asked".to_owned());
                }
                return Ok(false);
            };
            self.ready().await?;
            let right = if plain {
                let trying = self
                    .greeted
                    .handle
                    .authenticate_password(user.clone(), password.as_str());
                Self::judge(timeout(3 * LIMIT, trying).await.ok())
            } else {
                let answering = self.answer(&user, &password);
                timeout(3 * LIMIT, answering).await.unwrap_or(false)
            };
            if right {
                return Ok(true);
            }
        }
        self.tried.push("a password: wrong".to_owned());
        Ok(false)
    }

    /// Answers what keyboard-interactive asks for in secret with the password.
    async fn answer(&mut self, user: &str, password: &str) -> bool {
        use KeyboardInteractiveAuthResponse::{Failure, InfoRequest, Success};
        let handle = &mut self.greeted.handle;
        let mut said = handle
            .authenticate_keyboard_interactive_start(user.to_owned(), None)
            .await;
        for _ in 0..QUESTIONS {
            let prompts = match said {
                Ok(InfoRequest { prompts, .. }) => prompts,
                Ok(Success) => return true,
                Ok(Failure { .. }) | Err(_) => return false,
            };
            let answer = |secret: bool| {
                if secret {
                    password.to_owned()
                } else {
                    String::new()
                }
            };
            let answers = prompts.iter().map(|prompt| answer(!prompt.echo)).collect();
            said = handle
                .authenticate_keyboard_interactive_respond(answers)
                .await;
        }
        matches!(said, Ok(Success))
    }
}

/// A private key without a passphrase.
fn read_key(path: &Path) -> Option<russh::keys::PrivateKey> {
    let text = Zeroizing::new(std::fs::read_to_string(path).ok()?);
    russh::keys::decode_secret_key(&text, None).ok()
}
