//! `key …`: the keys that users log in with. Everybody manages their own, an
//! admin anybody's.

use clap::Subcommand;
use serde_json::json;
use vendetta_proto::UserName;
use vendetta_sshio::keys::PublicKey;

use super::command::{Done, Session};
use super::failure::{Failure, store};
use super::text::{ago, table};
use crate::access::{Account, Action, Authorized, authorize};
use crate::store::Store;
use crate::workspace::ErrorKind;

/// Longest input with keys, in bytes.
pub(super) const MAX_INPUT: usize = 64 << 10;

/// The verbs of `key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Add public keys, given as arguments or, one a line, on stdin
    #[command(
        after_help = "Examples:\n  ssh vendetta key add < ~/.ssh/id_ed25519.pub\n  ssh vendetta key add ssh-ed25519 AAAA… alice@laptop\n  ssh vendetta key add --user bob < bob.pub"
    )]
    Add {
        /// Whose key it is; yours when omitted
        #[arg(long, value_name = "USER")]
        user: Option<UserName>,
        /// The key as it stands in a .pub file; omitted: read from stdin
        #[arg(value_name = "KEY")]
        key: Vec<String>,
    },

    /// List keys
    #[command(
        after_help = "Examples:\n  ssh vendetta key list\n  ssh vendetta key list --user bob --json"
    )]
    List {
        /// Whose keys; yours when omitted
        #[arg(long, value_name = "USER")]
        user: Option<UserName>,
    },

    /// Remove a key
    #[command(
        after_help = "Examples:\n  ssh vendetta key remove SHA256:Qm3…\n  ssh vendetta key remove --user bob Qm3"
    )]
    Remove {
        /// Fingerprint, or its beginning
        #[arg(value_name = "FINGERPRINT")]
        fingerprint: String,
        /// Whose key; yours when omitted
        #[arg(long, value_name = "USER")]
        user: Option<UserName>,
    },
}

impl KeyCommand {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        match self {
            Self::Add { user, key } => add(session, user, key).await,
            Self::List { user } => list(session, user).await,
            Self::Remove { fingerprint, user } => remove(session, user, &fingerprint).await,
        }
    }
}

/// The account to work on. One that is not there and one that is not the
/// caller's are the same.
fn account(
    session: &Session<'_>,
    action: Action,
    user: Option<UserName>,
) -> Result<Authorized<Account>, Failure> {
    let principal = &session.caller.principal;
    let user = user.unwrap_or_else(|| principal.user.clone());
    let context = format!("user {user}");
    let there = session.control.store.user(&user).is_some();
    match authorize(principal, action, Account(user)) {
        Ok(account) if there => Ok(account),
        _ => Err(Failure::new(
            ErrorKind::NotFound,
            context,
            "there is no such user, or it is not you",
        )
        .remedy("leave out --user for your own keys; only an admin may manage those of others")),
    }
}

/// Keys of `text`, one a line, as in an authorized_keys file without options.
pub(super) fn parse_keys(context: &str, text: &[u8]) -> Result<Vec<PublicKey>, Failure> {
    let example = "give the content of a .pub file, such as \"ssh-ed25519 AAAA… you@host\"";
    let text = std::str::from_utf8(text)
        .map_err(|_| Failure::usage(context, "the key is not text").remedy(example))?;
    let mut keys: Vec<PublicKey> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.contains("PRIVATE KEY") {
            return Err(Failure::usage(
                context,
                "this is a private key, which must never leave your machine",
            )
            .remedy("give the .pub file beside it, and think about replacing this key"));
        }
        let key = line.parse().map_err(|error| {
            Failure::usage(context, format!("line {}: {error}", number + 1)).remedy(example)
        })?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return Err(Failure::usage(context, "there is no key").remedy(example));
    }
    Ok(keys)
}

/// Refuses keys that somebody has, before anything is changed.
pub(super) fn check_unused(
    people: &Store,
    context: &str,
    keys: &[PublicKey],
) -> Result<(), Failure> {
    for key in keys {
        if people.principal_for_key(&key.fingerprint()).is_some() {
            return Err(Failure::new(
                ErrorKind::Conflict,
                context,
                format!("key {} is registered already", key.fingerprint()),
            )
            .remedy("a key stands for one user; use another key"));
        }
    }
    Ok(())
}

async fn add(
    session: &mut Session<'_>,
    user: Option<UserName>,
    words: Vec<String>,
) -> Result<Done, Failure> {
    let account = account(session, Action::Operate, user)?;
    let user = &account.0;
    let context = format!("key of user {user}");
    let text = if words.is_empty() || words == ["-"] {
        session
            .read_stdin(&context, "a public key", MAX_INPUT)
            .await?
    } else {
        words.join(" ").into_bytes()
    };
    let keys = parse_keys(&context, &text)?;
    let people = &session.control.store;
    check_unused(people, &context, &keys)?;
    let (mut added, mut text) = (Vec::new(), String::new());
    for key in &keys {
        let record = people
            .add_key(user, key, &key.comment())
            .await
            .map_err(store(&context))?;
        text.push_str(&format!(
            "Key {} of user {user} added.\n",
            record.fingerprint
        ));
        added.push(record);
    }
    session.list(&text, "keys", &added).await
}

async fn list(session: &mut Session<'_>, user: Option<UserName>) -> Result<Done, Failure> {
    let account = account(session, Action::View, user)?;
    let keys = session.control.store.keys(&account.0);
    let now = jiff::Timestamp::now();
    let rows = keys
        .iter()
        .map(|key| {
            let algorithm = key.public_key.split(' ').next().unwrap_or_default();
            vec![
                key.fingerprint.clone(),
                algorithm.to_owned(),
                key.comment.clone(),
                ago(key.created, now),
            ]
        })
        .collect();
    let text = table(
        session.console,
        &["FINGERPRINT", "TYPE", "COMMENT", "ADDED"],
        rows,
    );
    session.list(&text, "keys", &keys).await
}

async fn remove(
    session: &mut Session<'_>,
    user: Option<UserName>,
    fingerprint: &str,
) -> Result<Done, Failure> {
    let account = account(session, Action::Operate, user)?;
    let user = &account.0;
    let context = format!("key of user {user}");
    let people = &session.control.store;
    let key = people
        .remove_key(user, fingerprint)
        .await
        .map_err(store(&context))?;
    session
        .answer(
            &format!("Key {} of user {user} removed.\n", key.fingerprint),
            json!({ "removed": key }),
        )
        .await
}
