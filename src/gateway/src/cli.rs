//! The local command `vendetta`: runs a gateway (`serve`), and is a thin front
//! to `ssh` for everything else. It takes the same words as `ssh vendetta …`,
//! from the same tree, so that a wrong line is refused without a connection.

mod address;
mod connect;
mod front;
mod project;
mod setup;

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::app::{ServeOptions, serve};
use crate::cannot_start::CannotStart;
use crate::config::Invalid;
use crate::control;
use crate::control::command::Command;
use crate::control::config::{ConfigCommand, SCHEMA};
use crate::control::node::fingerprint;

const EXAMPLES: &str = "\
Examples:
  vendetta serve --listen 127.0.0.1:2222
  vendetta workspace create my-project --image ubuntu:22.04 --up
  vendetta workspace connect my-project
  vendetta --gateway dev.example.org:2222 workspace list

The gateway is found by --gateway, VENDETTA_GATEWAY, or gateway = \"HOST:PORT\" in
~/.config/vendetta/config.toml; without them it is 127.0.0.1:2222.
Exit status: 0 done, 2 usage, 3 not found or not yours, 4 conflict,
5 gateway, node or engine unavailable, 70 internal error, 130 given up (Ctrl-C).";

/// The command line of the executable.
#[derive(Debug, Parser)]
#[command(name = "vendetta", version, about = "Remote development workspaces over plain SSH", after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct LocalCommandLine {
    /// The gateway to talk to, as HOST or HOST:PORT (before the command)
    #[arg(long, value_name = "HOST[:PORT]")]
    gateway: Option<String>,

    /// Forward your ssh-agent, for a command that may use it (before the command)
    #[arg(short = 'A')]
    forward_agent: bool,

    /// Write JSON instead of text; progress is one object a line
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: LocalCommand,
}

#[derive(Debug, Subcommand)]
enum LocalCommand {
    /// Run a gateway on this machine
    #[command(
        after_help = "Examples:\n  vendetta serve\n  vendetta serve --config /etc/vendetta.toml\n  vendetta serve --listen 127.0.0.1:0 --state-dir ./state --admin-key ~/.ssh/id_ed25519.pub"
    )]
    Serve(Serve),

    /// Let ssh on this machine know a gateway and its workspaces by name
    #[command(
        long_about = "Let ssh on this machine know a gateway and its workspaces by name\n\nWrites ~/.ssh/vendetta/config and ~/.ssh/vendetta/known_hosts, and one Include line at the top of\n~/.ssh/config. Run it again for the names of workspaces that were made since.",
        after_help = "Examples:\n  vendetta setup\n  vendetta --gateway dev.example.org:2222 setup\n  vendetta --gateway dev.example.org:2222 setup --host-key SHA256:Qm3…\n  vendetta setup --undo"
    )]
    Setup {
        /// Fingerprint of the gateway's host key, as its log says when it starts; omitted: ssh must know it, or asks
        #[arg(long, value_name = "SHA256:…", value_parser = fingerprint, conflicts_with = "undo")]
        host_key: Option<String>,
        /// Take all of it back
        #[arg(long)]
        undo: bool,
    },

    /// Print the manual page
    #[command(hide = true)]
    Man,

    #[command(flatten)]
    Remote(Command),
}

#[derive(Debug, Args)]
struct Serve {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Directory of keys and state
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Public key of the first admin; the operator's ~/.ssh/*.pub when omitted
    #[arg(long, value_name = "FILE")]
    admin_key: Option<PathBuf>,
}

/// Runs the executable.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let line = match LocalCommandLine::try_parse_from(&words) {
        Ok(line) => line,
        Err(mut error) => {
            if let Some(help) = help_in_json(&words) {
                return print(help.as_bytes());
            }
            control::suggest(&mut error, &LocalCommandLine::command());
            // A reader that closed its end early (`vendetta help | head`) is no failure of ours.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match line.command {
        LocalCommand::Serve(options) => run_gateway(options),
        LocalCommand::Man => {
            let mut page = Vec::new();
            match clap_mangen::Man::new(LocalCommandLine::command()).render(&mut page) {
                Ok(()) => print(&page),
                Err(_) => ExitCode::from(70),
            }
        }
        LocalCommand::Setup { undo, host_key } => {
            let done = if undo {
                setup::undo()
            } else {
                setup::set_up(line.gateway.as_deref(), host_key.as_deref())
            };
            match done {
                Ok(text) => print(text.as_bytes()),
                Err(failure) => failure.tell(),
            }
        }
        LocalCommand::Remote(Command::Completion { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(
                shell,
                &mut LocalCommandLine::command(),
                "vendetta",
                &mut script,
            );
            print(&script)
        }
        LocalCommand::Remote(Command::Config(ConfigCommand::Schema)) => print(SCHEMA.as_bytes()),
        LocalCommand::Remote(command) => {
            let words = front::without_own_flags(words.into_iter().skip(1));
            let to = front::To {
                gateway: line.gateway.as_deref(),
                forward_agent: line.forward_agent,
            };
            match front::run(to, words, &command, line.json) {
                Ok(code) => ExitCode::from(code),
                Err(failure) => failure.tell(),
            }
        }
    }
}

/// The help that the command line asks for in JSON, if it does.
fn help_in_json(words: &[OsString]) -> Option<String> {
    let words = words.iter().skip(1);
    let words: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if !control::wants_json(&words) {
        return None;
    }
    control::help_in_json(LocalCommandLine::command(), &words)
}

fn run_gateway(options: Serve) -> ExitCode {
    let Serve {
        config,
        listen,
        state_dir,
        admin_key,
    } = options;
    let Err(error) = serve(&ServeOptions {
        config,
        listen,
        state_dir,
        admin_key,
    }) else {
        return ExitCode::SUCCESS;
    };
    if let Some(cannot) = error.downcast_ref::<CannotStart>() {
        return Failure::new(cannot.exit_code, &cannot.problem, &cannot.remedy).tell();
    }
    let Some(invalid) = error.downcast_ref::<Invalid>() else {
        tell(&format!("vendetta: {error:#}\n"));
        return ExitCode::from(70);
    };
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tell(&format!(
        "vendetta: the configuration cannot be used:\n{}",
        invalid.render(100, terminal, false)
    ));
    ExitCode::from(2)
}

/// Writes to stderr; there is nowhere to say that it failed.
fn tell(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn print(bytes: &[u8]) -> ExitCode {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::from(70),
        _ => ExitCode::SUCCESS,
    }
}

/// Why the local command could not do its part.
#[derive(Debug)]
struct Failure {
    code: u8,
    problem: String,
    remedy: String,
}

impl Failure {
    fn new(code: u8, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    fn tell(&self) -> ExitCode {
        tell(&format!(
            "vendetta: {}\n  hint: {}\n",
            self.problem, self.remedy
        ));
        ExitCode::from(self.code)
    }
}

#[cfg(test)]
mod tests;
