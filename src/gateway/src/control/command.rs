//! The command tree, defined once. Nothing in it reads the environment or files
//! of the machine it runs on: it runs on the gateway, for somebody else.

use clap::{Parser, Subcommand};
use serde_json::{Map, Value};

use super::config::ConfigCommand;
use super::failure::Failure;
use super::git::GitCommand;
use super::io::Console;
use super::key::KeyCommand;
use super::node::NodeCommand;
use super::ssh_config::SshConfig;
use super::user::UserCommand;
use super::workspace::WorkspaceCommand;
use super::{Attach, Caller, Control};
use crate::access::Authorized;
use crate::workspace::WorkspaceRef;

const ABOUT: &str = "Remote development workspaces over plain SSH";

const EXAMPLES: &str = "\
Examples:
  ssh vendetta workspace create my-project --image ubuntu:22.04 --up
  ssh my-project@vendetta
  ssh vendetta workspace list --json
  ssh -t vendetta

\"ssh vendetta …\" and the local command \"vendetta …\" take the same words.
Exit status: 0 done, 2 usage, 3 not found or not yours, 4 conflict,
5 node or engine unavailable, 70 internal error, 130 given up (Ctrl-C).";

/// One command of a client.
#[derive(Debug, Parser)]
#[command(name = "vendetta", about = ABOUT, after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct CommandLine {
    /// Write JSON instead of text; progress is one object a line
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create workspaces, bring them up and down, connect to them
    #[command(
        subcommand,
        visible_alias = "ws",
        arg_required_else_help = true,
        after_help = "Examples:\n  ssh vendetta workspace create my-project --image ubuntu:22.04 --up\n  ssh vendetta workspace list"
    )]
    Workspace(WorkspaceCommand),

    /// Check project configs
    #[command(
        subcommand,
        arg_required_else_help = true,
        after_help = "Examples:\n  ssh vendetta config check --config - < .vendetta/config.yaml\n  vendetta config check"
    )]
    Config(ConfigCommand),

    /// Manage who may use the gateway
    #[command(
        subcommand,
        arg_required_else_help = true,
        after_help = "Examples:\n  ssh vendetta user add alice --key - < alice.pub\n  ssh vendetta user list"
    )]
    User(UserCommand),

    /// Manage the keys that users log in with
    #[command(
        subcommand,
        arg_required_else_help = true,
        after_help = "Examples:\n  ssh vendetta key add < ~/.ssh/id_ed25519.pub\n  ssh vendetta key list"
    )]
    Key(KeyCommand),

    /// Manage the machines that workspaces run on
    #[command(
        subcommand,
        arg_required_else_help = true,
        after_help = "Examples:\n  ssh vendetta node add node1 10.0.0.5 --user devuser\n  ssh vendetta node list"
    )]
    Node(NodeCommand),

    /// Show the gateway, its nodes and what they run, on one screen
    #[command(
        after_help = "Examples:\n  ssh vendetta status\n  ssh -t vendetta status --watch\n  ssh vendetta status --json"
    )]
    Status {
        /// Go on, and show it anew as it changes
        #[arg(long, short)]
        watch: bool,
    },

    /// Show what happens on the gateway, as it happens
    #[command(after_help = "Examples:\n  ssh vendetta events\n  ssh vendetta events --json")]
    Events,

    /// Show what to put into ~/.ssh/config and ~/.ssh/known_hosts
    #[command(
        after_help = "Examples:\n  ssh vendetta ssh-config\n  ssh vendetta ssh-config --host-name dev.example.org >>~/.ssh/config\n  ssh vendetta ssh-config --known-hosts >>~/.ssh/known_hosts"
    )]
    SshConfig(SshConfig),

    /// Show which user your key stands for
    #[command(after_help = "Examples:\n  ssh vendetta whoami")]
    Whoami,

    /// Show the gateway's version
    #[command(after_help = "Examples:\n  ssh vendetta version")]
    Version,

    /// Print a completion script for the local command "vendetta"
    #[command(
        after_help = "Examples:\n  vendetta completion bash > ~/.local/share/bash-completion/completions/vendetta"
    )]
    Completion {
        /// The shell to complete in
        shell: clap_complete::Shell,
    },

    /// What git runs
    #[command(flatten)]
    Git(GitCommand),
}

/// What a command has at hand.
pub(super) struct Session<'a> {
    pub(super) control: &'a Control,
    pub(super) caller: &'a Caller,
    pub(super) console: &'a mut Console,
    pub(super) json: bool,
    /// Whether stdin carries the commands themselves.
    pub(super) scripted: bool,
}

/// How a command ended that did not fail.
pub(super) enum Done {
    /// With what it was asked for.
    Ok,
    /// By asking for a session in a workspace.
    Attach {
        workspace: Authorized<WorkspaceRef>,
        user: Option<String>,
        command: Option<Vec<u8>>,
    },
}

impl Done {
    /// The attachment on these streams, if it is one.
    pub(super) fn attach(self, io: super::Io) -> Option<Attach> {
        match self {
            Self::Ok => None,
            Self::Attach {
                workspace,
                user,
                command,
            } => Some(Attach {
                workspace,
                user,
                command,
                io,
            }),
        }
    }
}

impl Command {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        match self {
            Self::Workspace(command) => command.run(session).await,
            Self::Config(command) => command.run(session).await,
            Self::User(command) => command.run(session).await,
            Self::Key(command) => command.run(session).await,
            Self::Node(command) => command.run(session).await,
            Self::Status { watch } => super::status::status(session, watch).await,
            Self::Events => super::events::events(session).await,
            Self::SshConfig(command) => command.run(session).await,
            Self::Whoami => super::status::whoami(session).await,
            Self::Version => super::status::version(session).await,
            Self::Completion { shell } => {
                let mut script = Vec::new();
                let mut tree = <CommandLine as clap::CommandFactory>::command();
                clap_complete::generate(shell, &mut tree, "vendetta", &mut script);
                session.console.out_bytes(&script).await?;
                Ok(Done::Ok)
            }
            Self::Git(command) => command.run(session),
        }
    }
}

impl Session<'_> {
    /// Writes a result: `value` with `--json`, else `text`.
    pub(super) async fn answer(&mut self, text: &str, value: Value) -> Result<Done, Failure> {
        if self.json {
            self.console.out(&format!("{value}\n")).await?;
        } else {
            self.console.out(text).await?;
        }
        Ok(Done::Ok)
    }

    /// The same for lists, which are one member of an object so that others can follow.
    pub(super) async fn list(
        &mut self,
        text: &str,
        name: &str,
        items: &impl serde::Serialize,
    ) -> Result<Done, Failure> {
        let items = serde_json::to_value(items).unwrap_or_default();
        let object: Map<String, Value> = std::iter::once((name.to_owned(), items)).collect();
        self.answer(text, Value::Object(object)).await
    }

    /// Says something on stderr that a reader of JSON does not need.
    pub(super) async fn note(&mut self, text: &str) -> Result<(), Failure> {
        if !self.json {
            self.console.err(text).await?;
        }
        Ok(())
    }

    /// Asks before something that cannot be undone; without a terminal `--yes` says it.
    pub(super) async fn confirm(
        &mut self,
        yes: bool,
        context: &str,
        question: &str,
    ) -> Result<(), Failure> {
        use super::editor::{Assistant, Line, read_line};
        if yes {
            return Ok(());
        }
        if !self.console.is_terminal() || self.json {
            return Err(Failure::usage(
                context,
                "this cannot be undone and nobody is there to be asked",
            )
            .remedy("add --yes"));
        }
        let color = self.console.color;
        let question = format!("{question} [y/N] ");
        let (answer, _) = read_line(self.console, &question, Assistant::none(color)).await?;
        match answer {
            Line::Text(text) if ["y", "yes"].contains(&text.trim().to_lowercase().as_str()) => {
                Ok(())
            }
            _ => Err(Failure::interrupted(context, "left as it is")),
        }
    }

    /// All of stdin, which `what` is expected on, up to `limit` bytes.
    pub(super) async fn read_stdin(
        &mut self,
        context: &str,
        what: &str,
        limit: usize,
    ) -> Result<Vec<u8>, Failure> {
        use super::editor::{Assistant, Line, read_line};
        if self.scripted {
            return Err(
                Failure::usage(context, format!("stdin carries the script, not {what}"))
                    .remedy("run this command on its own, with its input on stdin"),
            );
        }
        let too_long = || {
            Failure::usage(
                context,
                format!("{what} on stdin is longer than {} KiB", limit >> 10),
            )
            .remedy("check that this is the file you mean")
        };
        if !self.console.is_terminal() {
            return self.console.read_to_end(limit).await?.ok_or_else(too_long);
        }
        self.note(&format!(
            "Enter {what}, then press Ctrl-D on an empty line.\n"
        ))
        .await?;
        let (mut text, color) = (String::new(), self.console.color);
        loop {
            match read_line(self.console, "", Assistant::none(color)).await?.0 {
                Line::Text(line) => text.push_str(&format!("{line}\n")),
                Line::End => return Ok(text.into_bytes()),
                Line::Interrupted => {
                    return Err(Failure::interrupted(
                        context,
                        "given up; nothing was changed",
                    ));
                }
            }
            if text.len() > limit {
                return Err(too_long());
            }
        }
    }
}
