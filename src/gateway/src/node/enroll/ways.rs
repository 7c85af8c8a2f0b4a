//! The search for a way in.

use std::collections::HashSet;
use std::path::Path;

use russh::MethodKind;
use russh::keys::agent::AgentIdentity;
use tokio::net::UnixStream;
use vendetta_sshio::keys::{PrivateKey, PublicKey};

use super::super::ByteStream;
use super::door::{Agent, Answer, Door};
use super::{AgentAccess, EnrollError, Tried, Way, Ways};

/// The private keys that are looked for, as ssh(1) does.
const KEY_FILES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];
/// Most keys of one agent that are tried: an sshd bars an address that fails too
/// often (PerSourcePenalties, sshd_config(5)).
const MAX_AGENT_KEYS: usize = 12;
/// Passwords that are asked for.
const PASSWORDS: usize = 3;
/// Largest file that is read as a private key, in bytes.
const MAX_KEY_FILE: u64 = 64 * 1024;

const NOT_ACCEPTED: &str = "not accepted";

/// The search for a way in.
pub(super) struct Search<'a> {
    door: &'a mut Door,
    ways: &'a Ways,
    tried: Vec<Tried>,
    /// Fingerprints of the keys that were tried; the same one may come from several places.
    keys: HashSet<String>,
}

impl<'a> Search<'a> {
    pub(super) fn new(door: &'a mut Door, ways: &'a Ways) -> Self {
        Self {
            door,
            ways,
            tried: Vec::new(),
            keys: HashSet::new(),
        }
    }

    /// The first way that leads in; then `door` is open.
    pub(super) async fn find(mut self) -> Result<Way, EnrollError> {
        if self.door.ask_methods().await? == Answer::Yes {
            // Whoever needs no key to log in has no use for ours.
            return Ok(Way::NodeKey);
        }
        if self.door.offers(MethodKind::PublicKey) {
            if let Some(way) = self.keys_and_agents().await? {
                return Ok(way);
            }
        } else {
            self.failed("keys", "its sshd takes none (PubkeyAuthentication)");
        }
        if self.password().await? {
            return Ok(Way::Password);
        }
        Err(EnrollError::NoWayIn {
            address: self.door.address().to_string(),
            user: self.door.address().user.clone(),
            tried: self.tried,
        })
    }

    async fn keys_and_agents(&mut self) -> Result<Option<Way>, EnrollError> {
        let ways = self.ways;
        if self.key("the gateway's key", &ways.node_key).await? {
            return Ok(Some(Way::NodeKey));
        }
        if let Some(home) = &ways.operator.home {
            for name in KEY_FILES {
                let path = home.join(".ssh").join(name);
                if let Some(key) = self.read_key(&path).await
                    && self.key(&path.display().to_string(), &key).await?
                {
                    return Ok(Some(Way::OperatorKey { path }));
                }
            }
        }
        if let Some(socket) = &ways.operator.agent {
            let key = self.agent("the operator's agent", &AgentAt(socket)).await?;
            if let Some(key) = key {
                return Ok(Some(Way::OperatorAgent { key }));
            }
        }
        match &ways.caller_agent {
            Some(access) => {
                let key = self.agent("your agent", access.as_ref()).await?;
                Ok(key.map(|key| Way::CallerAgent { key }))
            }
            None => {
                self.failed("your agent", "not forwarded (ssh -A)");
                Ok(None)
            }
        }
    }

    fn failed(&mut self, way: impl Into<String>, why: impl Into<String>) {
        self.tried.push(Tried {
            way: way.into(),
            why: why.into(),
        });
    }

    /// Whether the server said yes; notes it otherwise.
    fn said(&mut self, way: &str, answer: &Answer) -> bool {
        match answer {
            Answer::Yes => return true,
            Answer::No => self.failed(way, NOT_ACCEPTED),
            Answer::Partly => self.failed(
                way,
                "accepted, but its sshd wants more than that (AuthenticationMethods)",
            ),
        }
        false
    }

    async fn key(&mut self, way: &str, key: &PrivateKey) -> Result<bool, EnrollError> {
        if !self.keys.insert(key.public().fingerprint()) {
            return Ok(false);
        }
        let answer = self.door.key(key).await?;
        Ok(self.said(way, &answer))
    }

    /// A private key without a passphrase; none when there is no such file, or
    /// nobody could use it without being asked.
    async fn read_key(&mut self, path: &Path) -> Option<PrivateKey> {
        let metadata = tokio::fs::metadata(path).await.ok()?;
        if !metadata.is_file() || metadata.len() > MAX_KEY_FILE {
            return None;
        }
        let text = match tokio::fs::read_to_string(path).await {
            Ok(text) => zeroize::Zeroizing::new(text),
            Err(error) => {
                self.failed(path.display().to_string(), error.to_string());
                return None;
            }
        };
        PrivateKey::without_passphrase(&text)
    }

    /// The fingerprint of the key of this agent that led in.
    async fn agent(
        &mut self,
        way: &str,
        access: &dyn AgentAccess,
    ) -> Result<Option<String>, EnrollError> {
        let Some((mut agent, keys)) = self.ask_agent(way, access).await? else {
            return Ok(None);
        };
        for key in keys {
            let fingerprint = key.fingerprint();
            if !self.keys.insert(fingerprint.clone()) {
                continue;
            }
            if self.door.is_over() {
                // A new connection: the agent is told of it, on a stream of its own.
                match self.introduced(access).await? {
                    Ok(new) => agent = new,
                    Err(why) => {
                        self.failed(way, why);
                        return Ok(None);
                    }
                }
            }
            let way = format!("key {fingerprint} of {way}");
            match self.door.agent_key(&mut agent, &key).await? {
                Ok(answer) if self.said(&way, &answer) => return Ok(Some(fingerprint)),
                Ok(_) => {}
                Err(why) => self.failed(way, why),
            }
        }
        Ok(None)
    }

    async fn ask_agent(
        &mut self,
        way: &str,
        access: &dyn AgentAccess,
    ) -> Result<Option<(Agent, Vec<PublicKey>)>, EnrollError> {
        let mut agent = match self.introduced(access).await? {
            Ok(agent) => agent,
            Err(why) => {
                self.failed(way, why);
                return Ok(None);
            }
        };
        let keys: Vec<PublicKey> = match agent.request_identities().await {
            Ok(identities) => identities.into_iter().filter_map(plain_key).collect(),
            Err(error) => {
                self.failed(way, error.to_string());
                return Ok(None);
            }
        };
        if keys.is_empty() {
            self.failed(way, "it has no keys (ssh-add -l)");
        } else if keys.len() > MAX_AGENT_KEYS {
            let why = format!(
                "of its {} keys the first {MAX_AGENT_KEYS} are tried",
                keys.len()
            );
            self.failed(way, why);
        }
        let keys = keys.into_iter().take(MAX_AGENT_KEYS).collect();
        Ok(Some((agent, keys)))
    }

    async fn introduced(
        &mut self,
        access: &dyn AgentAccess,
    ) -> Result<Result<Agent, String>, EnrollError> {
        let mut agent = match access.open().await {
            Ok(stream) => Agent::connect(stream),
            Err(error) => return Ok(Err(error.to_string())),
        };
        self.door.introduce(&mut agent).await?;
        Ok(Ok(agent))
    }

    async fn password(&mut self) -> Result<bool, EnrollError> {
        let offered = self.door.offers(MethodKind::Password)
            || self.door.offers(MethodKind::KeyboardInteractive);
        let ways = self.ways;
        let Some(ask) = &ways.password else {
            self.failed("a password", "nobody to ask (ssh -t)");
            return Ok(false);
        };
        if !offered {
            self.failed(
                "a password",
                "its sshd takes none (PasswordAuthentication, KbdInteractiveAuthentication)",
            );
            return Ok(false);
        }
        let address = self.door.address();
        let prompt = format!("{}@{}'s password: ", address.user, address.host);
        for _ in 0..PASSWORDS {
            let Some(secret) = ask.ask(&prompt).await else {
                self.failed("a password", "not given");
                return Ok(false);
            };
            let answer = self.door.password(&secret, ask.as_ref()).await?;
            if self.said("a password", &answer) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Certificates of an agent are for those who trust its CA; a plain key is enough here.
fn plain_key(identity: AgentIdentity) -> Option<PublicKey> {
    match identity {
        AgentIdentity::PublicKey { key, .. } => Some(key.into()),
        AgentIdentity::Certificate { .. } => None,
    }
}

/// The agent that listens at a socket of the gateway's machine.
#[derive(Debug)]
struct AgentAt<'a>(&'a Path);

#[async_trait::async_trait]
impl AgentAccess for AgentAt<'_> {
    async fn open(&self) -> std::io::Result<Box<dyn ByteStream>> {
        Ok(Box::new(UnixStream::connect(self.0).await?))
    }
}
