//! `workspace …`: the verbs and what each shows. Making one is in `create`,
//! bringing one up and down in `lifecycle`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::command::{Done, Session};
use super::create::Create;
use super::doctor::Doctor;
use super::failure::Failure;
use super::lifecycle::{self, Change};
use super::ports;
use super::rebuild::Rebuild;
use super::service::{self, Logs, Services};
use super::terminals::Terminals;
use super::text::{ago, printable, table};
use crate::access::{Action, Authorized};
use crate::inventory::NodeState;
use crate::workspace::{Desired, Phase, ServiceRequest, WorkspaceRef, WorkspaceStatus};

/// A workspace to do something with.
#[derive(Debug, Args)]
pub struct Target {
    /// Name of the workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
}

impl Target {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.workspace
    }
}

/// The verbs of `workspace`.
#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    /// Create a workspace from flags, a project config, or both
    #[command(
        long_about = "Create a workspace from flags, a project config, or both; flags win.\n\n\
            Over SSH the project config comes on stdin, asked for by \"--config -\"; without it\n\
            nothing reads stdin. It is YAML, a dev container's JSON, or an archive (tar) of the\n\
            project that has one of them, which an image can be built from.\n\
            The local command \"vendetta\" also takes a path, and sends .vendetta/config.yaml or\n\
            .devcontainer/devcontainer.json of the directory it stands in, or of one above, with\n\
            what its build needs, by itself.",
        after_help = "Examples:\n  ssh vendetta workspace create my-project --image ubuntu:22.04 --up\n  ssh vendetta workspace create my-project --config - < .vendetta/config.yaml\n  tar c . | ssh vendetta workspace create my-project --config -\n  vendetta workspace create my-project --cpu 2 --memory 4G --env RUST_LOG=debug"
    )]
    Create(Create),

    /// Bring a workspace up
    #[command(after_help = "Examples:\n  ssh vendetta workspace up my-project")]
    Up(Target),

    /// Take a workspace down; its disk stays
    #[command(after_help = "Examples:\n  ssh vendetta workspace down my-project")]
    Down(Target),

    /// Remove a workspace and everything in it
    #[command(
        after_help = "Examples:\n  ssh -t vendetta workspace destroy my-project\n  ssh vendetta workspace destroy my-project --yes"
    )]
    Destroy {
        /// Which workspace.
        #[command(flatten)]
        target: Target,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },

    /// Open a shell in a workspace, as "ssh WORKSPACE@vendetta" does
    #[command(
        long_about = "Open a shell in a workspace, as \"ssh WORKSPACE@vendetta\" does.\n\n\
            The local command \"vendetta\" also forwards the ports of the workspace's services,\n\
            and those that its project config lists, to your own machine: each to the same port,\n\
            or the next free one (one below 1024 to 8000 above it, unless you are root).",
        after_help = "Examples:\n  vendetta workspace connect my-project\n  vendetta workspace connect my-project --forward-only\n  ssh -t vendetta workspace connect my-project --user root"
    )]
    Connect {
        /// Which workspace.
        #[command(flatten)]
        target: Target,
        /// User inside the environment; the workspace's own when omitted
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Forward no ports (local command "vendetta" only)
        #[arg(long, conflicts_with = "forward_only")]
        no_forward: bool,
        /// Forward the ports and open no shell (local command "vendetta" only)
        #[arg(long)]
        forward_only: bool,
    },

    /// Show the ports of a workspace and how to reach them
    #[command(
        long_about = "Show the ports of a workspace and how to reach them.\n\n\
            Ports of services, and those that the project config lists, have a port of the\n\
            gateway's machine that stays theirs. Others on which a program listens inside are\n\
            found. The line at the end of each brings it to your own machine.",
        after_help = "Examples:\n  ssh vendetta workspace ports my-project\n  ssh -t vendetta workspace ports my-project --follow\n  ssh vendetta workspace ports my-project --json"
    )]
    Ports {
        /// Which workspace.
        #[command(flatten)]
        target: Target,
        /// Go on, and show them anew as they change
        #[arg(long, short)]
        follow: bool,
    },

    /// List the workspaces you may see
    #[command(
        after_help = "Examples:\n  ssh vendetta workspace list\n  ssh vendetta workspace list --json"
    )]
    List,

    /// Show one workspace in detail
    #[command(after_help = "Examples:\n  ssh vendetta workspace status my-project")]
    Status(Target),

    /// Run a command in a workspace; its exit status becomes this command's
    #[command(
        long_about = "Run a command in a workspace; its exit status becomes this command's.\n\n\
            A single word after -- is a command line for the user's shell. Several words are\n\
            a program and its arguments, which arrive unchanged.",
        after_help = "Examples:\n  ssh vendetta workspace exec my-project -- make test\n  ssh vendetta workspace exec my-project -- \"'cd src && ls | wc -l'\""
    )]
    Exec {
        /// Which workspace.
        #[command(flatten)]
        target: Target,
        /// User inside the environment; the workspace's own when omitted
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// The command
        #[arg(value_name = "COMMAND", required = true, last = true)]
        command: Vec<String>,
    },

    /// Show what a workspace's services wrote; without services, its environment's log
    #[command(
        after_help = "Examples:\n  ssh vendetta workspace logs my-project --tail 50\n  ssh vendetta workspace logs my-project web db --follow\n  ssh vendetta workspace logs my-project web --since 10m\n  ssh vendetta workspace logs my-project --environment"
    )]
    Logs(Logs),

    /// List a workspace's services and how they are
    #[command(
        after_help = "Examples:\n  ssh vendetta workspace services my-project\n  ssh vendetta workspace services my-project --json"
    )]
    Services {
        /// Which workspace.
        #[command(flatten)]
        target: Target,
        /// Go on, and show them again as they change
        #[arg(long, short)]
        follow: bool,
    },

    /// Start services, with what they depend on; the workspace must be up
    #[command(
        after_help = "Examples:\n  ssh vendetta workspace start my-project web\n  ssh vendetta workspace start my-project"
    )]
    Start(Services),

    /// Stop services, and those that depend on them; the workspace stays up
    #[command(after_help = "Examples:\n  ssh vendetta workspace stop my-project web")]
    Stop(Services),

    /// Stop services and start them again
    #[command(
        after_help = "Examples:\n  ssh vendetta workspace restart my-project web\n  ssh vendetta workspace restart my-project"
    )]
    Restart(Services),

    /// List the terminals that are kept in a workspace when their clients leave, or end one
    #[command(
        long_about = "List the terminals that are kept in a workspace when their clients leave, or end one.\n\n\
            \"ssh -t WORKSPACE++NAME@vendetta\" starts the terminal NAME, or shows it again as it\n\
            is: its program goes on when the link drops, the laptop closes or the gateway starts\n\
            again. As another user of the environment: WORKSPACE+USER+NAME. It ends with its shell.",
        after_help = "Examples:\n  ssh -t my-project++main@vendetta\n  ssh vendetta workspace terminals my-project\n  ssh vendetta workspace terminals my-project --end main"
    )]
    Terminals(Terminals),

    /// Tell whether editors can work in a workspace, and what to install
    #[command(
        after_help = "Examples:\n  ssh vendetta workspace doctor my-project\n  ssh vendetta workspace doctor my-project --for vscode"
    )]
    Doctor(Doctor),

    /// Make a workspace's environment anew; /workspace stays
    #[command(
        long_about = "Make a workspace's environment anew; /workspace stays.\n\n\
            Flags change what it is made from, for good. A project config takes the place of the\n\
            one it was created with, flags of then included; its provider and its node stay.\n\
            The config is sent as for \"workspace create\". The local command \"vendetta\" also takes\n\
            a path, and sends what its build needs; it sends none by itself.",
        after_help = "Examples:\n  ssh vendetta workspace rebuild my-project\n  ssh vendetta workspace rebuild my-project --memory 8G\n  ssh vendetta workspace rebuild my-project --config - < .vendetta/config.yaml\n  vendetta workspace rebuild my-project --config .vendetta/config.yaml"
    )]
    Rebuild(Rebuild),
}

impl WorkspaceCommand {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        match self {
            Self::Create(create) => create.run(session).await,
            Self::Up(target) => lifecycle::run(session, &target.workspace, Change::Up).await,
            Self::Down(target) => lifecycle::run(session, &target.workspace, Change::Down).await,
            Self::Rebuild(rebuild) => rebuild.run(session).await,
            Self::Destroy { target, yes } => {
                lifecycle::destroy(session, &target.workspace, yes).await
            }
            Self::Connect {
                forward_only: true, ..
            } => Err(Failure::usage(
                "workspace connect",
                "only the local command vendetta forwards ports",
            )
            .remedy("over plain ssh: ssh vendetta workspace ports WORKSPACE")),
            Self::Connect { target, user, .. } => {
                let workspace = find(session, Action::Connect, &target.workspace)?;
                Ok(Done::Attach {
                    workspace,
                    user,
                    command: None,
                })
            }
            Self::Exec {
                target,
                user,
                command,
            } => {
                let workspace = find(session, Action::Connect, &target.workspace)?;
                let command = Some(command_line(&command)?.into_bytes());
                Ok(Done::Attach {
                    workspace,
                    user,
                    command,
                })
            }
            Self::Ports { target, follow } => {
                ports::ports(session, &target.workspace, follow).await
            }
            Self::Terminals(terminals) => terminals.run(session).await,
            Self::Doctor(doctor) => doctor.run(session).await,
            Self::List => list(session).await,
            Self::Status(target) => status(session, &target.workspace).await,
            Self::Logs(logs) => service::logs(session, logs).await,
            Self::Services { target, follow } => {
                service::list(session, &target.workspace, follow).await
            }
            Self::Start(services) => {
                service::change(session, services, ServiceRequest::Start).await
            }
            Self::Stop(services) => service::change(session, services, ServiceRequest::Stop).await,
            Self::Restart(services) => {
                service::change(session, services, ServiceRequest::Restart).await
            }
        }
    }
}

/// Finds a workspace, or says which name was probably meant.
pub(super) fn find(
    session: &Session<'_>,
    action: Action,
    name: &str,
) -> Result<Authorized<WorkspaceRef>, Failure> {
    let workspaces = &session.control.workspaces;
    let principal = &session.caller.principal;
    workspaces.find(principal, action, name).map_err(|error| {
        let names = workspaces.names(principal);
        match vendetta_proto::nearest(name, &names) {
            Some(near) if near.as_str() != name => {
                Failure::from(error).remedy(format!("did you mean {near}?"))
            }
            _ => Failure::from(error),
        }
    })
}

/// One word is a line for a shell, several are a program and its arguments.
fn command_line(words: &[String]) -> Result<String, Failure> {
    match words {
        [line] => Ok(line.clone()),
        several => shlex::try_join(several.iter().map(String::as_str))
            .map_err(|error| Failure::usage("workspace exec", error.to_string())),
    }
}

async fn list(session: &mut Session<'_>) -> Result<Done, Failure> {
    let principal = &session.caller.principal;
    let workspaces = session.control.workspaces.list(principal);
    if workspaces.is_empty() {
        session.note("No workspaces. Make one with: ssh vendetta workspace create NAME --image IMAGE --up\n").await?;
        if !session.json {
            return Ok(Done::Ok);
        }
    }
    // Whose it is matters to those who see more than their own.
    let others = workspaces
        .iter()
        .any(|workspace| workspace.owner != principal.user);
    let now = jiff::Timestamp::now();
    let rows = workspaces
        .iter()
        .map(|workspace| {
            let mut row = vec![
                workspace.name.to_string(),
                format!("{} {}", workspace.state, ago(workspace.since, now)),
                workspace.provider.to_string(),
                node_cell(session, workspace),
                workspace.image.clone().unwrap_or_default(),
            ];
            if others {
                row.push(workspace.owner.to_string());
            }
            row
        })
        .collect();
    let mut headings = vec!["NAME", "STATE", "PROVIDER", "NODE", "IMAGE"];
    if others {
        headings.push("OWNER");
    }
    let text = table(session.console, &headings, rows);
    session.list(&text, "workspaces", &workspaces).await
}

/// The node that a workspace is on, and whether it is away.
fn node_cell(session: &Session<'_>, workspace: &WorkspaceStatus) -> String {
    let node = session.control.workspaces.inventory().find(&workspace.node);
    match node.map(|node| node.health().state) {
        Some(NodeState::Down) => format!("{} (down)", workspace.node),
        _ => workspace.node.to_string(),
    }
}

async fn status(session: &mut Session<'_>, name: &str) -> Result<Done, Failure> {
    let workspace = find(session, Action::View, name)?;
    let status = session.control.workspaces.status(&workspace)?;
    let text = described(session, &status);
    session.answer(&text, json!({ "workspace": status })).await
}

fn described(session: &Session<'_>, status: &WorkspaceStatus) -> String {
    let now = jiff::Timestamp::now();
    let mut lines = vec![
        ("Name", status.name.to_string()),
        (
            "State",
            format!("{}{} {}", status.state, why(status), ago(status.since, now)),
        ),
        (
            "Provider",
            format!("{} on {}", status.provider, status.node),
        ),
        ("Owner", status.owner.to_string()),
        ("Created", ago(status.created, now)),
        ("Connect", session.control.connect_command(&status.name)),
    ];
    if let Some(image) = &status.image {
        lines.push(("Image", image.clone()));
    }
    lines.push(("Host key", status.host_key_fingerprint.clone()));
    if let Some(failure) = &status.failure {
        let heading = match status.state {
            Phase::Destroying => "Held up",
            _ => "Failed",
        };
        lines.push((heading, format!("{}: {}", failure.step, failure.cause)));
        lines.extend(failure.remedy.clone().map(|remedy| ("Remedy", remedy)));
    }
    lines.extend(ports::brief(&status.ports).map(|ports| ("Ports", ports)));
    lines.extend(status.note.clone().map(|note| ("Note", note)));
    lines.extend(
        status
            .inactive
            .iter()
            .map(|part| ("Not used", part.clone())),
    );
    lines
        .iter()
        .map(|(name, value)| format!("{name:<10}{}\n", printable(value)))
        .collect()
}

/// Why it is in its state, where that needs a word.
fn why(status: &WorkspaceStatus) -> String {
    match (status.state, status.desired, status.idle_timeout) {
        (Phase::Stopped | Phase::Stopping, Desired::Idle, Some(timeout)) => {
            format!(", went idle after {timeout},")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_a_shell_line_and_several_arrive_as_they_are() {
        let line = |words: &[&str]| {
            command_line(
                &words
                    .iter()
                    .map(|&word| word.to_owned())
                    .collect::<Vec<_>>(),
            )
            .unwrap()
        };
        assert_eq!(line(&["cd src && ls | wc -l"]), "cd src && ls | wc -l");
        let words = ["printf", "%s|", "a b", "$HOME", "it's", ""];
        assert_eq!(shlex::split(&line(&words)).unwrap(), words);
    }
}
