//! `user …`: who may use the gateway. For admins; a user is also told about
//! themself by `whoami`.

use clap::Subcommand;
use serde_json::json;
use vendetta_proto::UserName;

use super::command::{Done, Session};
use super::failure::{Failure, store};
use super::key;
use super::text::{ago, table};
use crate::access::{Action, Gateway, Role, authorize};
use crate::workspace::ErrorKind;

/// The verbs of `user`.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user
    #[command(
        after_help = "Examples:\n  ssh vendetta user add alice --key - < alice.pub\n  ssh vendetta user add bob --role admin --key \"'ssh-ed25519 AAAA… bob@laptop'\""
    )]
    Add {
        /// Name of the user; shares one name space with workspaces
        name: UserName,
        /// admin: everything; member: their own workspaces and keys
        #[arg(long, default_value_t = Role::Member)]
        role: Role,
        /// Public key to log in with; "-" reads it from stdin
        #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
        key: Option<String>,
    },

    /// List users
    #[command(after_help = "Examples:\n  ssh vendetta user list\n  ssh vendetta user list --json")]
    List,

    /// Remove a user and their keys
    #[command(after_help = "Examples:\n  ssh vendetta user remove alice --yes")]
    Remove {
        /// Name of the user
        #[arg(value_name = "USER")]
        name: UserName,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

impl UserCommand {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        let principal = &session.caller.principal;
        if authorize(principal, Action::Administer, Gateway).is_err() {
            return Err(Failure::new(ErrorKind::NotFound, "users", "only an admin may see and change users")
                .remedy("ask an admin; \"ssh vendetta whoami\" tells who you are, \"key …\" manages your own keys"));
        }
        match self {
            Self::Add { name, role, key } => add(session, name, role, key).await,
            Self::List => list(session).await,
            Self::Remove { name, yes } => remove(session, name, yes).await,
        }
    }
}

async fn add(
    session: &mut Session<'_>,
    name: UserName,
    role: Role,
    key: Option<String>,
) -> Result<Done, Failure> {
    let context = format!("user {name}");
    // All of the input is checked before anything is changed.
    let keys = match key.as_deref() {
        None => Vec::new(),
        Some("-") => {
            let text = session
                .read_stdin(&context, "a public key", key::MAX_INPUT)
                .await?;
            key::parse_keys(&context, &text)?
        }
        Some(line) => key::parse_keys(&context, line.as_bytes())?,
    };
    let people = &session.control.store;
    key::check_unused(people, &context, &keys)?;
    let user = people
        .add_user(&name, role)
        .await
        .map_err(store(&context))?;
    let mut added = Vec::new();
    for key in &keys {
        let record = people
            .add_key(&name, key, &key.comment())
            .await
            .map_err(store(&context))?;
        added.push(record);
    }
    if role == Role::Member {
        warn_of_open_nodes(session, &name).await?;
    }
    let text = if added.is_empty() {
        format!(
            "User {name} ({role}) added, without a key yet. Add one with: ssh vendetta key add --user {name} < KEY.pub\n"
        )
    } else {
        format!("User {name} ({role}) added.\n")
    };
    session
        .answer(&text, json!({ "user": user, "keys": added }))
        .await
}

/// Where provider host is allowed, nothing stands between a member and the gateway's user.
async fn warn_of_open_nodes(session: &mut Session<'_>, name: &UserName) -> Result<(), Failure> {
    let nodes = session.control.workspaces.inventory().list();
    let open: Vec<_> = nodes
        .iter()
        .filter(|node| node.place().allow_host)
        .map(|node| node.name().to_string())
        .collect();
    if open.is_empty() {
        return Ok(());
    }
    let note = format!(
        "Provider host is allowed on {}: with a workspace of it {name} has all the rights that the gateway's user has there.\n",
        open.join(", ")
    );
    session.note(&note).await
}

async fn list(session: &mut Session<'_>) -> Result<Done, Failure> {
    let people = &session.control.store;
    let now = jiff::Timestamp::now();
    let users = people.users();
    let (rows, values): (_, Vec<_>) = users
        .iter()
        .map(|user| {
            let keys = people.keys(&user.name).len();
            let row = vec![
                user.name.to_string(),
                user.role.to_string(),
                keys.to_string(),
                ago(user.created, now),
            ];
            let value = json!({
                "name": user.name,
                "role": user.role,
                "keys": keys,
                "created": user.created,
            });
            (row, value)
        })
        .unzip();
    let text = table(session.console, &["NAME", "ROLE", "KEYS", "ADDED"], rows);
    session.list(&text, "users", &values).await
}

async fn remove(session: &mut Session<'_>, name: UserName, yes: bool) -> Result<Done, Failure> {
    let context = format!("user {name}");
    if session.control.store.user(&name).is_none() {
        return Err(
            Failure::new(ErrorKind::NotFound, context, "there is no such user")
                .remedy("ssh vendetta user list"),
        );
    }
    session
        .confirm(
            yes,
            &context,
            &format!("Remove user {name} and their keys?"),
        )
        .await?;
    session
        .control
        .store
        .remove_user(&name)
        .await
        .map_err(store(&context))?;
    session
        .answer(
            &format!("User {name} removed.\n"),
            json!({ "removed": name }),
        )
        .await
}
