//! `node …`: the machines that workspaces run on. For admins, but for what
//! everybody needs to choose one: `list` and `status`.

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::task::JoinHandle;
use vendetta_proto::NodeName;

use super::command::{Done, Session};
use super::dialog::with_caller;
use super::failure::Failure;
use super::node_view;
use super::progress::{result_line, watch};
use super::text::{printable, table};
use crate::access::{Action, Authorized, Gateway, authorize};
use crate::inventory::{Address, InventoryError, NewNode, Node};
use crate::workspace::{ErrorKind, ProgressSink};

/// A node to add.
#[derive(Debug, Args)]
pub struct Add {
    /// Name of the node, unique on the gateway
    name: NodeName,
    /// Where its sshd is: [USER@]HOST[:PORT]
    #[arg(value_name = "ADDRESS")]
    address: Address,
    /// Login name on the node; that of the gateway's own user when omitted
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Port of its sshd; 22 when omitted
    #[arg(long)]
    port: Option<u16>,
    /// Fingerprint of the host key it must prove; omitted: the first one seen is pinned
    #[arg(long, value_name = "SHA256:…", value_parser = fingerprint)]
    host_key: Option<String>,
    /// Let provider host run workspaces on it, without isolation
    #[arg(long)]
    allow_host: bool,
    /// The node of this name is the same machine, at this address from now on
    #[arg(long)]
    moved: bool,
    /// Reach it through another node
    #[arg(long, value_name = "NODE")]
    jump: Option<NodeName>,
}

/// The verbs of `node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Add a machine with sshd: log in, install the gateway's key, look around
    #[command(
        long_about = "Add a machine with sshd: log in, install the gateway's key, look around.\n\n\
            Tried in this order: the gateway's own key, if it is there already; the keys and the\n\
            agent of the gateway's operator; your own agent, if you forward it (ssh -A); a password,\n\
            asked for once on your terminal (ssh -t) and kept nowhere. Then the gateway's key is\n\
            added to the user's authorized_keys, and the machine's host key is pinned.",
        after_help = "Examples:\n  ssh vendetta node add node1 10.0.0.5 --user devuser\n  ssh -A vendetta node add node1 devuser@10.0.0.5\n  ssh -t vendetta node add node1 devuser@10.0.0.5:2222 --host-key SHA256:…\n  ssh vendetta node add inner 192.168.7.3 --jump node1"
    )]
    Add(Add),

    /// List the nodes
    #[command(after_help = "Examples:\n  ssh vendetta node list\n  ssh vendetta node list --json")]
    List,

    /// Show how a node is: load, memory, disk, engines
    #[command(
        after_help = "Examples:\n  ssh vendetta node status node1\n  ssh -t vendetta node status node1 --watch"
    )]
    Status {
        /// Name of the node
        #[arg(value_name = "NODE")]
        name: String,
        /// Go on, and show it anew as it changes
        #[arg(long, short)]
        watch: bool,
    },

    /// Try a node: connect anew, log in, look at its engines
    #[command(after_help = "Examples:\n  ssh vendetta node test node1")]
    Test {
        /// Name of the node
        #[arg(value_name = "NODE")]
        name: String,
    },

    /// Remove a node; what is on it stays
    #[command(
        long_about = "Remove a node. The gateway's key is taken out of its authorized_keys when it can be\n\
            reached. A node with workspaces is not removed, unless --force says so: then the gateway\n\
            forgets these workspaces. What there is of them stays on the node, until the node is\n\
            added again: then it is cleaned up.",
        after_help = "Examples:\n  ssh vendetta node remove node1 --yes\n  ssh vendetta node remove node1 --force --yes"
    )]
    Remove {
        /// Name of the node
        #[arg(value_name = "NODE")]
        name: String,
        /// Forget the workspaces on it
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },

    /// Give a node another name
    #[command(after_help = "Examples:\n  ssh vendetta node rename node1 big-box")]
    Rename {
        /// Its name
        #[arg(value_name = "NODE")]
        from: NodeName,
        /// Its name from now on
        #[arg(value_name = "NAME")]
        to: NodeName,
    },

    /// Print the public key with which the gateway logs in to nodes
    #[command(
        after_help = "Examples:\n  ssh vendetta node key\n  ssh vendetta node key | ssh devuser@10.0.0.5 'cat >> .ssh/authorized_keys'"
    )]
    Key,
}

/// A fingerprint as `ssh-keygen -l` prints it: SHA-256 in base64 without padding.
///
/// # Errors
/// What to write instead.
pub fn fingerprint(text: &str) -> Result<String, String> {
    let digest = text.strip_prefix("SHA256:").unwrap_or_default();
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    if digest.len() == 43 && digest.bytes().all(base64) {
        return Ok(text.to_owned());
    }
    Err("write it as \"ssh-keygen -lf FILE.pub\" prints it: SHA256: and 43 characters".to_owned())
}

impl NodeCommand {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        match self {
            Self::List => list(session).await,
            Self::Status { name, watch } => status(session, &name, watch).await,
            Self::Add(add) => add.run(session).await,
            Self::Test { name } => test(session, &name).await,
            Self::Remove { name, force, yes } => remove(session, &name, force, yes).await,
            Self::Rename { from, to } => rename(session, &from, &to).await,
            Self::Key => key(session).await,
        }
    }
}

/// Only an admin changes nodes.
pub(super) fn permit(session: &Session<'_>, what: &str) -> Result<Authorized<Gateway>, Failure> {
    let principal = &session.caller.principal;
    authorize(principal, Action::Administer, Gateway).map_err(|_| {
        Failure::new(
            ErrorKind::NotFound,
            "nodes",
            format!("only an admin may {what}"),
        )
        .remedy("ask an admin; \"ssh vendetta node list\" shows the nodes there are")
    })
}

fn find(session: &Session<'_>, name: &str) -> Result<std::sync::Arc<Node>, Failure> {
    let found = session.control.workspaces.inventory().get(name);
    found.map_err(|error| Failure::inventory(format!("node {name}"), error))
}

impl Add {
    async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        let permit = permit(session, "add nodes")?;
        let address = Address {
            user: self.user.or(self.address.user),
            port: self.port.or(self.address.port),
            host: self.address.host,
        };
        let new = NewNode {
            name: self.name,
            address,
            host_key: self.host_key,
            jump: self.jump,
            allow_host: self.allow_host,
            moved: self.moved,
        };
        let name = new.name.clone();
        let added = add(session, &permit, new).await?;
        if session.json {
            let node = node_view::value(session, &added);
            session.console.out(&result_line("node", &node)).await?;
            return Ok(Done::Ok);
        }
        let mut text = node_view::described(session, &added);
        text.push_str(&format!(
            "\nNode {name} added. Use it with: ssh vendetta workspace create NAME --image IMAGE --remote {name} --up\n"
        ));
        session.console.out(&text).await?;
        Ok(Done::Ok)
    }
}

/// Adds a node, and shows how that goes.
pub(super) async fn add(
    session: &mut Session<'_>,
    permit: &Authorized<Gateway>,
    new: NewNode,
) -> Result<std::sync::Arc<Node>, Failure> {
    let subject = format!("node {}", new.name);
    let inventory = session.control.workspaces.inventory().clone();
    let failed = |error| Failure::inventory(&subject, error);
    inventory.addable(&new.name).map_err(failed)?;
    session
        .note(&format!(
            "Connecting to {} …\n",
            printable(&new.address.to_string())
        ))
        .await?;
    let reached = with_caller(session, async |caller| {
        inventory.reach(permit, new, caller).await
    })
    .await
    .map_err(failed)?;
    session
        .note(&format!(
            "Logged in with {}. Host key pinned: {}\n",
            reached.way(),
            reached.host_key().fingerprint()
        ))
        .await?;
    // The rest asks nothing; who leaves stops watching, not the work.
    let sink = ProgressSink::new();
    let operation = sink.watch();
    let adding = inventory.take_in(permit, reached, sink);
    watch(
        session.console,
        session.json,
        operation,
        &subject,
        "ssh vendetta node list",
    )
    .await?;
    ended(&subject, adding).await
}

/// What became of something that went on by itself.
async fn ended<T>(
    subject: &str,
    task: JoinHandle<Result<T, InventoryError>>,
) -> Result<T, Failure> {
    match task.await {
        Ok(result) => result.map_err(|error| Failure::inventory(subject, error)),
        // It ended with the gateway.
        Err(_) => Err(Failure::new(
            ErrorKind::Unavailable,
            subject,
            "the gateway is stopping",
        )),
    }
}

async fn list(session: &mut Session<'_>) -> Result<Done, Failure> {
    let nodes = session.control.workspaces.inventory().list();
    let admin = permit(session, "see addresses").is_ok();
    let rows = nodes
        .iter()
        .map(|node| node_view::row(session, node, admin))
        .collect();
    let mut headings = vec![
        "NAME",
        "STATE",
        "LATENCY",
        "LOAD",
        "MEMORY",
        "DISK",
        "ENGINES",
        "WORKSPACES",
    ];
    if admin {
        headings.push("ADDRESS");
    }
    let text = table(session.console, &headings, rows);
    let values: Vec<_> = nodes
        .iter()
        .map(|node| node_view::value(session, node))
        .collect();
    session.list(&text, "nodes", &values).await
}

async fn status(session: &mut Session<'_>, name: &str, watch: bool) -> Result<Done, Failure> {
    let node = find(session, name)?;
    if !watch {
        let (text, value) = (
            node_view::described(session, &node),
            node_view::value(session, &node),
        );
        return session.answer(&text, value).await;
    }
    let mut health = node.watch();
    let changed = async move || health.changed().await.is_ok();
    super::redraw::redraw(session, changed, |session| {
        (
            node_view::described(session, &node),
            node_view::value(session, &node),
        )
    })
    .await
}

async fn test(session: &mut Session<'_>, name: &str) -> Result<Done, Failure> {
    let permit = permit(session, "try nodes")?;
    let node = find(session, name)?;
    let name = node.name();
    let subject = format!("node {name}");
    let inventory = session.control.workspaces.inventory().clone();
    let sink = ProgressSink::new();
    let operation = sink.watch();
    let testing = inventory.test(&permit, &node, sink);
    watch(
        session.console,
        session.json,
        operation,
        &subject,
        "ssh vendetta node list",
    )
    .await?;
    ended(&subject, testing).await?;
    let (text, value) = (
        node_view::described(session, &node),
        node_view::value(session, &node),
    );
    if session.json {
        session.console.out(&result_line("node", &value)).await?;
        return Ok(Done::Ok);
    }
    session.answer(&text, value).await
}

async fn remove(
    session: &mut Session<'_>,
    name: &str,
    force: bool,
    yes: bool,
) -> Result<Done, Failure> {
    let permit = permit(session, "remove nodes")?;
    let node = find(session, name)?;
    let (name, workspaces) = (node.name(), session.control.workspaces.clone());
    let subject = format!("node {name}");
    workspaces
        .inventory()
        .removable(&name)
        .map_err(|error| Failure::inventory(&subject, error))?;
    let count = workspaces.count_on(&node);
    let question = match (count, force) {
        (0, _) | (_, false) => format!("Remove node {name}?"),
        (1, true) => format!("Remove node {name} and forget the workspace on it?"),
        (count, true) => format!("Remove node {name} and forget the {count} workspaces on it?"),
    };
    if count > 0 && !force {
        return Err(Failure::new(
            ErrorKind::Conflict,
            subject,
            match count {
                1 => "there is a workspace on it".to_owned(),
                _ => format!("there are {count} workspaces on it"),
            },
        )
        .remedy(format!(
            "destroy them first (ssh vendetta workspace list), or forget them: ssh vendetta node remove {name} --force --yes"
        )));
    }
    // Before anything is forgotten.
    let behind = workspaces.inventory().behind(&name);
    if let Some(first) = behind.first() {
        let names: Vec<&str> = behind.iter().map(|name| name.as_str()).collect();
        let problem = format!("it is on the way to {}", names.join(", "));
        return Err(Failure::new(ErrorKind::Conflict, subject, problem)
            .remedy(format!("ssh vendetta node remove {first} --yes")));
    }
    session.confirm(yes, &subject, &question).await?;
    let forgotten = if force {
        workspaces.forget_all_on(&permit, &node).await
    } else {
        Vec::new()
    };
    let key_removed = workspaces
        .inventory()
        .remove(&permit, &name)
        .await
        .map_err(|error| Failure::inventory(&subject, error))?;
    let mut text = format!("Node {name} removed.");
    if !key_removed {
        text.push_str(
            " It could not be reached: the gateway's key is still in its authorized_keys.",
        );
    }
    if !forgotten.is_empty() {
        let names: Vec<&str> = forgotten.iter().map(|name| name.as_str()).collect();
        text.push_str(&format!(" Forgotten: {}.", names.join(", ")));
    }
    text.push('\n');
    let value = json!({ "removed": name, "key_removed": key_removed, "forgotten": forgotten });
    session.answer(&text, value).await
}

async fn rename(
    session: &mut Session<'_>,
    from: &NodeName,
    to: &NodeName,
) -> Result<Done, Failure> {
    let permit = permit(session, "rename nodes")?;
    session
        .control
        .workspaces
        .inventory()
        .rename(&permit, from, to)
        .await
        .map_err(|error| Failure::inventory(format!("node {from}"), error))?;
    let text = format!("Node {from} is now called {to}.\n");
    session
        .answer(&text, json!({ "from": from, "to": to }))
        .await
}

async fn key(session: &mut Session<'_>) -> Result<Done, Failure> {
    permit(session, "see the node key")?;
    let key = session.control.workspaces.inventory().node_key();
    let line = format!("{key} vendetta");
    session
        .note(
            "To install it by hand, run on the node as the user that vendetta is to log in as:\n  \
             mkdir -p -m 700 ~/.ssh && cat >> ~/.ssh/authorized_keys   (paste the line below, then Ctrl-D)\n",
        )
        .await?;
    let value = json!({ "public_key": line, "fingerprint": key.fingerprint() });
    session.answer(&format!("{line}\n"), value).await
}
