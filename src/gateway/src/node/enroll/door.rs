//! The connection on which ways in are tried, and its successors: sshd closes
//! one after so many failures (MaxAuthTries, sshd_config(5)) or so long a time.

use std::sync::Arc;
use std::time::Duration;

use russh::client::{AuthResult, KeyboardInteractiveAuthResponse as Keyboard};
use russh::keys::agent::client::AgentClient;
use russh::keys::{HashAlg, PrivateKeyWithHashAlg};
use russh::{MethodKind, MethodSet};
use tokio::time::timeout;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::super::ssh::{Address, Connection, Greeted, HostKeys, Trouble, greet, log_in};
use super::super::{ByteStream, LinkError};
use super::{AskPassword, EnrollError, Secret};

/// Time limit of a connection and its handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// Time limit of one attempt; an agent may have its owner confirm or touch something.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(60);

/// What the server said to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Logged in.
    Yes,
    /// Not so.
    No,
    /// It accepts that, and wants more (AuthenticationMethods, sshd_config(5)).
    Partly,
}

/// An agent's client on a stream of any kind.
pub(super) type Agent = AgentClient<Box<dyn ByteStream>>;

/// The connection on which ways in are tried, and its successors.
pub(super) struct Door {
    address: Address,
    host_keys: HostKeys,
    host_key: Option<PublicKey>,
    greeted: Option<Greeted>,
    methods: MethodSet,
}

impl Door {
    pub(super) fn new(address: Address, demanded: Option<String>) -> Self {
        Self {
            address,
            host_keys: demanded.map_or(HostKeys::First, |demanded| HostKeys::demanded(&demanded)),
            host_key: None,
            greeted: None,
            methods: MethodSet::empty(),
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// The methods that the server offers, as of its last answer.
    pub(super) fn offers(&self, method: MethodKind) -> bool {
        self.methods.contains(&method)
    }

    /// The key that the server proved.
    pub(super) fn host_key(&self) -> Result<PublicKey, EnrollError> {
        let lost = || EnrollError::Link(self.lost());
        self.host_key.clone().ok_or_else(lost)
    }

    /// The connection before login; a new one when there is none (any more).
    async fn ready(&mut self) -> Result<&mut Greeted, EnrollError> {
        let over = self.is_over();
        let greeted = match self.greeted.take() {
            Some(greeted) if !over => greeted,
            _ => self.connect().await?,
        };
        Ok(self.greeted.insert(greeted))
    }

    async fn connect(&mut self) -> Result<Greeted, EnrollError> {
        let greeted = timeout(CONNECT_LIMIT, greet(&self.address, self.host_keys.clone())).await;
        let timed_out = || LinkError::TimedOut {
            address: self.address.to_string(),
            limit: CONNECT_LIMIT,
        };
        let greeted = greeted.unwrap_or_else(|_| Err(timed_out()));
        let greeted = greeted.map_err(|error| match (error, &self.host_keys) {
            (
                LinkError::HostKeyChanged {
                    address,
                    expected,
                    got,
                    ..
                },
                HostKeys::Demanded(_),
            ) => EnrollError::HostKey {
                address,
                demanded: expected,
                got,
            },
            (other, _) => EnrollError::Link(other),
        })?;
        self.host_keys = HostKeys::Pinned(vec![greeted.host_key.clone()]);
        self.host_key = Some(greeted.host_key.clone());
        Ok(greeted)
    }

    /// Asks for the methods that there are, which counts as no attempt (RFC 4252 section 5.2).
    pub(super) async fn ask_methods(&mut self) -> Result<Answer, EnrollError> {
        let user = self.address.user.clone();
        let greeted = self.ready().await?;
        let asked = timeout(ATTEMPT_LIMIT, greeted.handle.authenticate_none(user)).await;
        let answer = self.answer(asked.ok().and_then(Result::ok));
        if self.is_over() {
            return Err(EnrollError::Link(self.lost()));
        }
        Ok(answer)
    }

    /// Tries a private key.
    pub(super) async fn key(&mut self, key: &PrivateKey) -> Result<Answer, EnrollError> {
        let user = self.address.user.clone();
        let greeted = self.ready().await?;
        let hash = hash_for(greeted, &key.public()).await;
        let key = PrivateKeyWithHashAlg::new(Arc::new(key.as_russh().clone()), hash);
        let attempt = greeted.handle.authenticate_publickey(user, key);
        let answer = timeout(ATTEMPT_LIMIT, attempt).await;
        Ok(self.answer(answer.ok().and_then(Result::ok)))
    }

    /// Tells an agent for which connection it is going to sign, so that one
    /// with restricted keys (ssh-add -h) can judge. Others do not know that, which is fine.
    pub(super) async fn introduce(&mut self, agent: &mut Agent) -> Result<(), EnrollError> {
        let greeted = self.ready().await?;
        if let Some(binding) = greeted.handle.agent_session_binding() {
            let _ = timeout(ATTEMPT_LIMIT, agent.bind_session(binding, false)).await;
        }
        Ok(())
    }

    /// Whether the connection that an agent was introduced to is over.
    pub(super) fn is_over(&self) -> bool {
        let over = |greeted: &Greeted| greeted.life.ended().is_some() || greeted.handle.is_closed();
        self.greeted.as_ref().is_none_or(over)
    }

    /// Tries a key of an agent; the agent's own refusal is an error of the inner kind.
    pub(super) async fn agent_key(
        &mut self,
        agent: &mut Agent,
        key: &PublicKey,
    ) -> Result<Result<Answer, String>, EnrollError> {
        let user = self.address.user.clone();
        let greeted = self.ready().await?;
        let hash = hash_for(greeted, key).await;
        let key = key.as_russh().clone();
        let attempt = greeted
            .handle
            .authenticate_publickey_with(user, key, hash, agent);
        match timeout(ATTEMPT_LIMIT, attempt).await {
            Ok(Ok(answer)) => Ok(Ok(self.answer(Some(answer)))),
            Ok(Err(error)) => Ok(Err(error.to_string())),
            Err(_) => {
                // russh still waits for the signature: nothing else can be tried there.
                self.greeted = None;
                Ok(Err(format!(
                    "no answer within {} s",
                    ATTEMPT_LIMIT.as_secs()
                )))
            }
        }
    }

    /// Tries a password by the method "password" (RFC 4252 section 8), or else
    /// as the answer to the first hidden prompt of "keyboard-interactive" (RFC 4256);
    /// whoever gave it is asked for what else that wants to know.
    pub(super) async fn password(
        &mut self,
        secret: &Secret,
        ask: &dyn AskPassword,
    ) -> Result<Answer, EnrollError> {
        let user = self.address.user.clone();
        let by_method = self.offers(MethodKind::Password);
        let greeted = self.ready().await?;
        if by_method {
            let attempt = greeted.handle.authenticate_password(user, secret.reveal());
            let answer = timeout(ATTEMPT_LIMIT, attempt).await;
            return Ok(self.answer(answer.ok().and_then(Result::ok)));
        }
        let mut secret = Some(secret);
        let handle = &mut greeted.handle;
        let mut said = handle
            .authenticate_keyboard_interactive_start(user, None)
            .await;
        loop {
            match said {
                Ok(Keyboard::Success) => return Ok(Answer::Yes),
                Ok(Keyboard::Failure {
                    remaining_methods,
                    partial_success,
                }) => {
                    return Ok(self.answer(Some(AuthResult::Failure {
                        remaining_methods,
                        partial_success,
                    })));
                }
                Ok(Keyboard::InfoRequest { prompts, .. }) => {
                    let mut answers = Vec::with_capacity(prompts.len());
                    for prompt in prompts {
                        let first = if prompt.echo { None } else { secret.take() };
                        let asked = match first {
                            Some(secret) => Some(secret.clone()),
                            None => ask.ask(&prompt.prompt).await,
                        };
                        answers.push(asked.map_or_else(String::new, |s| s.reveal().to_owned()));
                    }
                    said = handle
                        .authenticate_keyboard_interactive_respond(answers)
                        .await;
                }
                Err(_) => return Ok(self.answer(None)),
            }
        }
    }

    /// What an answer means. None, like an empty list of methods, is what russh has when the
    /// server has closed the connection, as sshd does after too many attempts: that
    /// was a no, and the next attempt has a new connection.
    fn answer(&mut self, answer: Option<AuthResult>) -> Answer {
        match answer {
            Some(AuthResult::Success) => Answer::Yes,
            Some(AuthResult::Failure {
                remaining_methods,
                partial_success,
            }) if !remaining_methods.is_empty() => {
                self.methods = remaining_methods;
                if partial_success {
                    Answer::Partly
                } else {
                    Answer::No
                }
            }
            _ => {
                self.greeted = None;
                Answer::No
            }
        }
    }

    /// The connection, once somebody has logged in on it.
    pub(super) fn enter(&mut self) -> Result<Connection, EnrollError> {
        let greeted = self.greeted.take();
        let greeted = greeted.ok_or_else(|| EnrollError::Link(self.lost()))?;
        Ok(Connection::new(greeted, &self.address))
    }

    /// Sees that `key` alone gets in, on a new connection.
    pub(super) async fn prove(&mut self, key: &PrivateKey) -> Result<(), EnrollError> {
        let mut greeted = self.connect().await?;
        let proof = timeout(ATTEMPT_LIMIT, log_in(&mut greeted, &self.address, key)).await;
        match proof {
            Ok(Ok(true)) => {
                Connection::new(greeted, &self.address).disconnect().await;
                Ok(())
            }
            Ok(Ok(false)) => Err(EnrollError::NotAccepted {
                address: self.address.to_string(),
                user: self.address.user.clone(),
            }),
            Ok(Err(error)) => Err(EnrollError::Link(error)),
            Err(_) => Err(EnrollError::Link(LinkError::TimedOut {
                address: self.address.to_string(),
                limit: ATTEMPT_LIMIT,
            })),
        }
    }

    /// That the key could not be put there.
    pub(super) fn not_installed(&self, trouble: &Trouble) -> EnrollError {
        EnrollError::Install {
            address: self.address.to_string(),
            user: self.address.user.clone(),
            problem: trouble.to_string(),
            remedy: trouble.remedy(),
        }
    }

    fn lost(&self) -> LinkError {
        LinkError::Lost {
            address: self.address.to_string(),
            cause: "it was closed".to_owned(),
        }
    }
}

/// The hash that the server takes with an RSA key; other keys have their own.
async fn hash_for(greeted: &Greeted, key: &PublicKey) -> Option<HashAlg> {
    if key.algorithm() != "ssh-rsa" {
        return None;
    }
    let supported = greeted.handle.best_supported_rsa_hash().await;
    supported.ok().flatten().unwrap_or(Some(HashAlg::Sha512))
}
