//! The front to `ssh`: which words go where, with which terminal and which stdin.

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command as Process, Stdio};

use super::Failure;
use super::address::{self, Address};
use super::connect::{self, Connect};
use super::project::LocalConfig;
use super::setup::KNOWN_HOSTS;
use crate::control::command::Command;
use crate::control::config::ConfigCommand;
use crate::control::key::KeyCommand;
use crate::control::user::UserCommand;
use crate::control::workspace::WorkspaceCommand;

/// The login name of the control plane.
pub(super) const LOGIN: &str = vendetta_proto::name::RESERVED;

/// ssh's own failures.
pub(super) const SSH_FAILED: i32 = 255;

/// The words that go to the gateway: those after our own flags, which come first.
pub(super) fn without_own_flags(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words = words.peekable();
    while let Some(word) = words.peek().and_then(|word| word.to_str()) {
        if word == "--gateway" {
            words.next();
        } else if word != "-A" && !word.starts_with("--gateway=") {
            break;
        }
        words.next();
    }
    words.collect()
}

/// Where a command goes, and what goes along.
#[derive(Debug, Clone, Copy)]
pub(super) struct To<'a> {
    /// The gateway that was named.
    pub gateway: Option<&'a str>,
    /// Whether the user's ssh-agent is forwarded.
    pub forward_agent: bool,
}

/// Where the command's standard input comes from.
#[derive(Debug)]
enum Input {
    Ours,
    File(File),
    Nothing,
}

/// Runs `command`, which was typed as `words`; returns its exit status.
pub(super) fn run(
    to: To<'_>,
    words: Vec<OsString>,
    command: &Command,
    json: bool,
) -> Result<u8, Failure> {
    let address = address::find(to.gateway)?;
    let mut words = words
        .into_iter()
        .map(|word| word.into_string())
        .collect::<Result<Vec<String>, _>>()
        .map_err(|word| {
            Failure::new(
                2,
                format!("{word:?} is not UTF-8"),
                "control commands are UTF-8",
            )
        })?;
    if let Command::Workspace(WorkspaceCommand::Connect {
        target,
        user,
        no_forward,
        forward_only,
    }) = command
    {
        let connect = Connect {
            workspace: target.name(),
            user: user.as_deref(),
            forward: !no_forward,
            shell: !forward_only,
        };
        return connect::run(&address, to, &connect);
    }
    let input = input(
        command,
        &mut words,
        &std::env::current_dir().unwrap_or_default(),
    )?;
    // With a terminal at each end the gateway can ask, draw and colour.
    let terminal = !json
        && !matches!(input, Input::File(_))
        && std::io::stdin().is_terminal()
        && std::io::stdout().is_terminal()
        && std::io::stderr().is_terminal();
    let mut ssh = Process::new("ssh");
    if to.forward_agent {
        ssh.arg("-A");
    }
    if terminal {
        // ERROR leaves out ssh's "Connection to … closed."
        ssh.args(["-t", "-o", "LogLevel=ERROR"]);
    }
    if std::env::var_os("NO_COLOR").is_some() {
        ssh.args(["-o", "SendEnv=NO_COLOR"]);
    }
    destination(&mut ssh, &address, LOGIN);
    ssh.arg(line(&words)?);
    ssh.stdin(match input {
        Input::File(file) => Stdio::from(file),
        Input::Ours => Stdio::inherit(),
        Input::Nothing if terminal => Stdio::inherit(),
        Input::Nothing => Stdio::null(),
    });
    let status = ssh.status().map_err(|error| not_run(&error))?;
    let is_exec = matches!(command, Command::Workspace(WorkspaceCommand::Exec { .. }));
    match (status.code(), status.signal()) {
        // A command in a workspace may end with 255 itself.
        (Some(SSH_FAILED), _) if !is_exec => Err(gateway_failed(&address)),
        (Some(code), _) => Ok(u8::try_from(code).unwrap_or(70)),
        (None, signal) => Ok(u8::try_from(128 + signal.unwrap_or(0)).unwrap_or(70)),
    }
}

/// One line that the gateway splits into the same words again.
pub(super) fn line(words: &[String]) -> Result<String, Failure> {
    shlex::try_join(words.iter().map(String::as_str)).map_err(|error| {
        Failure::new(
            2,
            format!("a word cannot be sent: {error}"),
            "leave out NUL bytes",
        )
    })
}

pub(super) fn destination(ssh: &mut Process, address: &Address, login: &str) {
    // What `setup` has proven, whichever name or address the gateway goes by here.
    ssh.arg("-o").arg(format!(
        "GlobalKnownHostsFile=/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2 {KNOWN_HOSTS}"
    ));
    if let Some(port) = address.port {
        ssh.arg("-p").arg(port.to_string());
    }
    // What follows "--" is the destination, whatever it looks like.
    ssh.arg("--").arg(format!("{login}@{}", address.host));
}

pub(super) fn not_run(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::NotFound {
        Failure::new(
            5,
            "ssh is not installed",
            "install it: apt install openssh-client, or your system's package",
        )
    } else {
        Failure::new(5, format!("ssh cannot be run: {error}"), "try: ssh -V")
    }
}

/// That ssh itself failed.
pub(super) fn gateway_failed(address: &Address) -> Failure {
    Failure::new(
        5,
        format!("ssh could not run this on the gateway {address}"),
        "is it running (vendetta serve), is it the right one (--gateway), is your key registered there?",
    )
}

/// What the command reads; a project config is found, and the words say that it comes on stdin.
fn input(command: &Command, words: &mut Vec<String>, dir: &Path) -> Result<Input, Failure> {
    match command {
        Command::Workspace(WorkspaceCommand::Create(create)) => {
            config_input(create.config.as_deref(), "create", words, dir)
        }
        Command::Workspace(WorkspaceCommand::Rebuild(rebuild)) => match &rebuild.config {
            // A plain rebuild is not one from the config of whatever directory it is typed in.
            None => {
                if let Some(config) = LocalConfig::upward(dir) {
                    let path = config.path().display();
                    super::tell(&format!(
                        "vendetta: from the config that it has; from this one: --config {path}\n"
                    ));
                }
                Ok(Input::Nothing)
            }
            config => config_input(config.as_deref(), "rebuild", words, dir),
        },
        Command::Config(ConfigCommand::Check { config }) => {
            match config_input(config.as_deref(), "check", words, dir)? {
                Input::Nothing => Err(Failure::new(
                    3,
                    "there is no project config here or in a directory above",
                    "give it with --config FILE",
                )),
                input => Ok(input),
            }
        }
        Command::Workspace(WorkspaceCommand::Exec { .. }) => Ok(Input::Ours),
        Command::Key(KeyCommand::Add { key, .. }) if key.is_empty() || *key == ["-"] => {
            Ok(Input::Ours)
        }
        Command::User(UserCommand::Add { key: Some(key), .. }) if key == "-" => Ok(Input::Ours),
        _ => Ok(Input::Nothing),
    }
}

/// The project config that `flag` names, else the nearest one above `dir`.
fn config_input(
    flag: Option<&str>,
    verb: &str,
    words: &mut Vec<String>,
    dir: &Path,
) -> Result<Input, Failure> {
    let config = match flag {
        Some("-") => return Ok(Input::Ours),
        Some(path) => {
            replace_config(words);
            LocalConfig::at(&dir.join(path))
        }
        None => match LocalConfig::upward(dir) {
            Some(config) => {
                super::tell(&format!("vendetta: using {}\n", config.path().display()));
                insert_config(words, verb);
                config
            }
            None => return Ok(Input::Nothing),
        },
    };
    config.open().map(Input::File)
}

/// Makes the value of `--config` "-".
fn replace_config(words: &mut [String]) {
    let mut is_value = false;
    for word in words.iter_mut().take_while(|word| *word != "--") {
        if is_value {
            "-".clone_into(word);
        } else if word.starts_with("--config=") {
            "--config=-".clone_into(word);
        }
        is_value = word == "--config";
    }
}

/// Adds `--config -` behind the verb.
fn insert_config(words: &mut Vec<String>, verb: &str) {
    if let Some(at) = words.iter().position(|word| word == verb) {
        words.splice(at + 1..at + 1, ["--config".to_owned(), "-".to_owned()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn only_the_gateway_flag_stays_at_home() {
        let kept = |line: &[&str]| {
            let words = without_own_flags(line.iter().map(OsString::from));
            words
                .into_iter()
                .map(|word| word.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(kept(&["--gateway", "x:1", "status"]), ["status"]);
        assert_eq!(
            kept(&["--gateway=x:1", "-A", "--json", "status"]),
            ["--json", "status"]
        );
        let exec = ["workspace", "exec", "x", "--", "--gateway", "y"];
        assert_eq!(kept(&exec), exec);
    }

    #[test]
    fn the_words_say_that_the_project_config_comes_on_stdin() {
        let mut line = words(&["workspace", "--json", "create", "create", "--up"]);
        insert_config(&mut line, "create");
        assert_eq!(
            line,
            words(&[
                "workspace",
                "--json",
                "create",
                "--config",
                "-",
                "create",
                "--up"
            ])
        );
        let mut line = words(&["workspace", "create", "x", "--config", "a b.yaml", "--up"]);
        replace_config(&mut line);
        assert_eq!(
            line,
            words(&["workspace", "create", "x", "--config", "-", "--up"])
        );
        let mut line = words(&["workspace", "create", "--config=a.yaml", "x"]);
        replace_config(&mut line);
        assert_eq!(line, words(&["workspace", "create", "--config=-", "x"]));
    }
}
