//! How the processes of a service are started: its command, and the commands
//! of its health check.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::spec::Spec;
use crate::connection::Agent;
use crate::environment::{ClientVariables, Sources};
use crate::process::{Child, Identity, Launch, Stdio, base_name};
use crate::users::DEFAULT_SHELL;

/// Why a process was not started; the text is for people.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// There is no such user, or the agent cannot be it.
    #[error("there is no user {user} here, or the agent may not run anything as it")]
    User {
        /// As configured.
        user: String,
    },
    /// Nothing can run a command line.
    #[error("neither {DEFAULT_SHELL} nor the user's shell {} exists here", shell.display())]
    NoShell {
        /// The user's shell.
        shell: PathBuf,
    },
    /// The working directory is none.
    #[error("its working directory {} does not exist", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
    },
    /// The system refused.
    #[error("{program} as {user}: {source}", program = program.display())]
    System {
        /// What was to run.
        program: PathBuf,
        /// As whom.
        user: String,
        /// The cause.
        source: io::Error,
    },
}

/// Runs `command` as the service does: as its user, in its directory and with its variables.
///
/// # Errors
/// When that is not possible.
pub fn spawn(
    agent: &Agent,
    spec: &Spec,
    command: &str,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<Child, LaunchError> {
    let settings = &agent.settings;
    let user = agent
        .user_as(spec.user.as_deref().or(settings.user.as_deref()))
        .ok_or_else(|| LaunchError::User {
            user: spec.user.clone().unwrap_or_default(),
        })?;
    let shell = [Path::new(DEFAULT_SHELL), &user.shell]
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| LaunchError::NoShell {
            shell: user.shell.clone(),
        })?
        .to_owned();
    let base = settings.workdir.as_ref().unwrap_or(&user.home);
    let directories = match &spec.working_dir {
        Some(directory) => {
            let directory = base.join(directory);
            if !directory.is_dir() {
                return Err(LaunchError::Directory { directory });
            }
            vec![directory]
        }
        None => vec![base.clone(), user.home.clone(), PathBuf::from("/")],
    };
    let mut configured = settings.env.clone();
    configured.extend(spec.env.clone());
    let environment = Sources {
        inherited: agent.inherited.clone(),
        workspace: &settings.workspace,
        services: &agent.service_variables,
        configured: &configured,
        client: &ClientVariables::default(),
        user: &user,
        shell: shell.as_os_str(),
        session: Vec::new(),
    }
    .merge();
    let program = shell.clone();
    let system = |source| LaunchError::System {
        program,
        user: user.name.display().to_string(),
        source,
    };
    let spawned = null().and_then(|stdin| {
        agent.reaper.spawn(Launch {
            argv0: base_name(&shell).to_owned(),
            program: shell,
            arguments: vec![OsString::from("-c"), OsString::from(command)],
            environment,
            directories,
            identity: Identity::of(&user),
            stdio: Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            },
        })
    });
    spawned.map_err(system)
}

fn null() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).open("/dev/null")?.into())
}
