//! Getting into a machine for the first time, and installing the gateway's key
//! there.
//!
//! The ways in are tried in this order, over one connection as long as its sshd
//! puts up with it (MaxAuthTries, sshd_config(5)):
//!
//! ```text
//!   the gateway's key ─▶ the operator's keys ─▶ the operator's agent
//!       ─▶ the caller's agent ─▶ a password that the caller is asked for
//! ```

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use russh::ChannelMsg;
use russh::MethodKind;
use russh::client::{AuthResult, KeyboardInteractiveAuthResponse};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{PrivateKeyWithHashAlg, PublicKey as RusshKey};
use tokio::net::UnixStream;
use tokio::time::timeout;
use vendetta_sshio::keys::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::super::{ByteStream, Command, LinkError, NodeError, NodeTransport};
use super::connection::{Connection, Connector, Target};
use super::handshake::{Address, Greeted, greet};
use super::host_keys::HostKeys;
use super::quote;

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

/// What the operator of the gateway has that may open a machine.
#[derive(Debug, Clone, Default)]
pub struct Operator {
    /// Login name; also the default one on new nodes.
    pub user: String,
    /// Private keys that may exist, in the order in which OpenSSH tries them.
    pub keys: Vec<PathBuf>,
    /// The socket of an ssh-agent.
    pub agent: Option<PathBuf>,
}

/// What the one who adds a node has that may open it.
#[async_trait]
pub trait Ways: Send {
    /// A new connection to their ssh-agent; none when they forward none.
    async fn agent(&mut self) -> Option<io::Result<Box<dyn ByteStream>>>;

    /// A password that they are asked for; none when they give none.
    async fn password(&mut self, prompt: &str) -> Option<Zeroizing<String>>;
}

/// The way that led in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The gateway's own key was there already.
    NodeKey,
    /// A private key of the operator.
    OperatorKey(PathBuf),
    /// A key of the operator's agent, by its fingerprint.
    OperatorAgent(String),
    /// A key of the caller's agent, by its fingerprint.
    CallerAgent(String),
    /// A password.
    Password,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeKey => f.write_str("the gateway's own key"),
            Self::OperatorKey(path) => write!(f, "the operator's key {}", path.display()),
            Self::OperatorAgent(key) => write!(f, "key {key} of the operator's agent"),
            Self::CallerAgent(key) => write!(f, "key {key} of your agent"),
            Self::Password => f.write_str("a password"),
        }
    }
}

/// A machine that the gateway's key opens now.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// The host key that it proved.
    pub host_key: PublicKey,
    /// The way that led in.
    pub way: Way,
}

/// Why a machine was not opened.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// There is no connection to it, or it proved another host key.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No way led in.
    #[error("{address} lets nobody in as {user}; tried: {}", tried.join("; "))]
    NoWay {
        /// Where it is.
        address: String,
        /// The login name.
        user: String,
        /// The ways that were tried, and what became of each.
        tried: Vec<String>,
    },
    /// The key could not be installed.
    #[error("installing the gateway's key for {user} on {address}: {problem}")]
    Install {
        /// Where it is.
        address: String,
        /// The login name.
        user: String,
        /// What went wrong.
        problem: String,
    },
    /// The key was installed and does not open it.
    #[error(
        "the gateway's key was added to ~{user}/.ssh/authorized_keys on {address}, but it does not open it"
    )]
    NotAccepted {
        /// Where it is.
        address: String,
        /// The login name.
        user: String,
    },
}

impl EnrollError {
    /// What to do, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Link(LinkError::HostKeyChanged { got, .. }) => format!(
                "compare with: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, on the machine itself; \
                 if it is right, say so with --host-key {got}"
            ),
            Self::Link(LinkError::Dial { address, .. } | LinkError::TimedOut { address, .. }) => {
                format!("see that the machine is on and that its sshd listens at {address}")
            }
            Self::Link(_) => return None,
            Self::NoWay { .. } => {
                "forward an agent that opens it (ssh -A), or be asked for a password (ssh -t), or \
                 install the gateway's key by hand: ssh vendetta node key"
                    .to_owned()
            }
            Self::Install { user, .. } => {
                format!("see that ~{user}/.ssh can be written, or install the key by hand: ssh vendetta node key")
            }
            Self::NotAccepted { .. } => {
                "see AuthorizedKeysFile, PubkeyAuthentication and AllowUsers in the node's /etc/ssh/sshd_config; \
                 then: sudo systemctl reload ssh"
                    .to_owned()
            }
        })
    }
}

/// Which host key a machine must prove to be let in.
#[derive(Debug, Clone)]
pub enum Demand {
    /// Whichever it proves first.
    Any,
    /// One with this fingerprint, "SHA256:…".
    Fingerprint(String),
    /// This one.
    Key(PublicKey),
}

/// Gets into the machine at `address` and sees that `node_key` opens it.
///
/// # Errors
/// When it is not reached, proves another host key, or no way leads in.
pub async fn enroll(
    address: &Address,
    demand: Demand,
    node_key: &PrivateKey,
    operator: &Operator,
    ways: &mut dyn Ways,
) -> Result<Enrolled, EnrollError> {
    let host_keys = match demand {
        Demand::Any => HostKeys::First,
        Demand::Fingerprint(fingerprint) => HostKeys::Demanded(fingerprint),
        Demand::Key(key) => HostKeys::Pinned(vec![key]),
    };
    let greeted = greet_in_time(address, host_keys).await?;
    let host_key = greeted.host_key.clone();
    let mut door = Door {
        address,
        host_key: host_key.clone(),
        greeted,
        tries: 0,
        tried: Vec::new(),
    };
    let way = door.open(node_key, operator, ways).await?;
    if way != Way::NodeKey {
        let connection = Connection::new(door.greeted, address);
        install(&connection, address, &node_key.public()).await?;
        connection.disconnect().await;
        let connector = Connector {
            address: address.clone(),
            host_keys: vec![host_key.clone()],
            key: node_key.clone(),
        };
        match connector.connect().await {
            Ok(connection) => connection.disconnect().await,
            Err(LinkError::Authentication { address, user, .. }) => {
                return Err(EnrollError::NotAccepted { address, user });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Enrolled { host_key, way })
}

async fn greet_in_time(address: &Address, host_keys: HostKeys) -> Result<Greeted, LinkError> {
    let greeted = timeout(LIMIT, greet(address, host_keys)).await;
    greeted.unwrap_or_else(|_| {
        Err(LinkError::TimedOut {
            address: address.to_string(),
            limit: LIMIT,
        })
    })
}

/// A connection on which nobody is logged in yet, and what was tried.
struct Door<'a> {
    address: &'a Address,
    host_key: PublicKey,
    greeted: Greeted,
    /// Tries on this connection.
    tries: usize,
    tried: Vec<String>,
}

impl Door<'_> {
    async fn open(
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

/// `sh -c INSTALL sh LINE BLOB`: adds LINE to authorized_keys unless a line
/// with BLOB is there. Appending keeps owner, mode, links and other lines.
const INSTALL: &str = r#"
set -eu
umask 077
cd
[ -d .ssh ] || mkdir .ssh
file=.ssh/authorized_keys
if [ -f "$file" ] && grep -v '^[[:space:]]*#' "$file" | grep -qF -- "$2"; then exit 0; fi
if [ -s "$file" ] && [ -n "$(tail -c 1 "$file")" ]; then echo >>"$file"; fi
printf '%s\n' "$1" >>"$file"
"#;

/// `sh -c REMOVE sh BLOB`: takes the lines with BLOB out of authorized_keys.
const REMOVE: &str = r#"
set -eu
umask 077
cd
file=.ssh/authorized_keys
[ -f "$file" ] || exit 0
rest=$(mktemp .ssh/.authorized_keys.XXXXXX)
trap 'rm -f "$rest"' EXIT
grep -vF -- "$1" "$file" >"$rest" || [ $? = 1 ]
cat "$rest" >"$file"
"#;

/// The part of a public key's line by which it is known: the key itself.
fn blob(key: &PublicKey) -> String {
    let line = key.to_string();
    line.split(' ').nth(1).unwrap_or_default().to_owned()
}

async fn install(
    connection: &Connection,
    address: &Address,
    key: &PublicKey,
) -> Result<(), EnrollError> {
    let failed = |problem: String| EnrollError::Install {
        address: address.to_string(),
        user: address.user.clone(),
        problem,
    };
    let mut script = b"set -- ".to_vec();
    script.extend(quote::word(format!("{key} vendetta").as_bytes()));
    script.push(b' ');
    script.extend(quote::word(blob(key).as_bytes()));
    script.extend(INSTALL.as_bytes());
    let line =
        quote::command_line(&script).ok_or_else(|| failed("the key is too long".to_owned()))?;
    let installing = async {
        let mut channel = connection
            .open(Target::Session)
            .await
            .map_err(|error| failed(format!("{error:?}")))?;
        let sent = async {
            channel.exec(true, line).await?;
            channel.eof().await
        };
        sent.await.map_err(|error| failed(error.to_string()))?;
        let (mut status, mut said) = (None, Vec::new());
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::ExtendedData { data, .. } if said.len() < 4096 => {
                    said.extend_from_slice(&data);
                }
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        match status {
            Some(0) => Ok(()),
            Some(status) => Err(failed(format!(
                "status {status}: {}",
                String::from_utf8_lossy(&said).trim()
            ))),
            None => Err(failed("the connection was lost".to_owned())),
        }
    };
    let installed = timeout(LIMIT, installing).await;
    installed.unwrap_or_else(|_| Err(failed("no answer".to_owned())))
}

/// Takes the gateway's key out of a node's authorized_keys.
///
/// # Errors
/// When the node cannot be asked, or its file cannot be written.
pub async fn remove_key(node: &dyn NodeTransport, key: &PublicKey) -> Result<(), NodeError> {
    let output = node
        .exec(&Command::new(["sh", "-c", REMOVE, "sh", &blob(key)]))
        .await?;
    if output.status == Some(0) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NodeError::Io {
        node: node.name().clone(),
        operation: "change",
        subject: "authorized_keys".to_owned(),
        source: io::Error::other(said),
    })
}
