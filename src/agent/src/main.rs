//! Arguments, logging and exit codes of `vendetta-agent`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use vendetta_agent::{config, server, sftp};

const USAGE: &str = "\
Usage: vendetta-agent serve --config FILE
       vendetta-agent sftp-server
       vendetta-agent clear DIR
       vendetta-agent --version

serve        serves one environment over SSH, as FILE (JSON, written by the gateway) says
sftp-server  serves SFTP on standard input and output; `serve` starts it
clear        removes all that is in DIR, and lets everybody remove DIR itself
";

/// Bad arguments or a bad configuration.
const EXIT_USAGE: u8 = 2;
/// Anything else that ends the agent.
const EXIT_INTERNAL: u8 = 70;

enum Command {
    Serve { config: PathBuf },
    SftpServer,
    Clear { dir: PathBuf },
    Version,
    Help,
}

fn parse(arguments: &[OsString]) -> Result<Command, String> {
    let mut words = arguments.iter();
    let command = match words.next().map(|word| word.to_str()) {
        Some(Some("serve")) => {
            let config = match (words.next().map(|word| word.to_str()), words.next()) {
                (Some(Some("--config")), Some(file)) => PathBuf::from(file),
                _ => return Err("serve needs --config FILE".to_owned()),
            };
            Command::Serve { config }
        }
        Some(Some("sftp-server")) => Command::SftpServer,
        Some(Some("clear")) => {
            let dir = words.next().ok_or("clear needs DIR")?;
            Command::Clear { dir: dir.into() }
        }
        Some(Some("--version" | "-V")) => Command::Version,
        Some(Some("--help" | "-h" | "help")) => Command::Help,
        Some(_) => return Err("unknown command".to_owned()),
        None => return Err("a command is missing".to_owned()),
    };
    match words.next() {
        None => Ok(command),
        Some(extra) => Err(format!("unexpected argument {}", extra.to_string_lossy())),
    }
}

fn serve(config: &Path) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("VENDETTA_AGENT_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("vendetta_agent=info,warn")),
        )
        .init();
    let settings = match config::load(config) {
        Ok(settings) => settings,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match server::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}

/// Serves SFTP on the descriptors themselves: the standard library's own
/// buffers would only add copies.
fn sftp_server() -> ExitCode {
    let files = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|input| Ok((input, std::io::stdout().as_fd().try_clone_to_owned()?)));
    let result = match files {
        Ok((input, output)) => sftp::serve(File::from(input), File::from(output)),
        Err(source) => Err(sftp::SftpError::Transport {
            operation: "open standard streams",
            source,
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "vendetta-agent: {error}");
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}

/// Removes what an environment has left beside its agent's socket, which the
/// gateway's user on the node may not be allowed to.
fn clear(dir: &Path) -> ExitCode {
    let cleared = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
    };
    match cleared() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(
                std::io::stderr(),
                "vendetta-agent: {}: {error}",
                dir.display()
            );
            ExitCode::from(EXIT_INTERNAL)
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match parse(&arguments) {
        Ok(Command::Serve { config }) => serve(&config),
        Ok(Command::SftpServer) => sftp_server(),
        Ok(Command::Clear { dir }) => clear(&dir),
        Ok(Command::Version) => {
            let _ = writeln!(
                std::io::stdout(),
                "vendetta-agent {}",
                env!("CARGO_PKG_VERSION")
            );
            ExitCode::SUCCESS
        }
        Ok(Command::Help) => {
            let _ = std::io::stdout().write_all(USAGE.as_bytes());
            ExitCode::SUCCESS
        }
        Err(problem) => {
            let _ = write!(std::io::stderr(), "vendetta-agent: {problem}\n{USAGE}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
