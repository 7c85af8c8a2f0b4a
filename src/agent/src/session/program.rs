//! From a request to the process that serves it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::setup::Program;
use crate::connection::Connection;
use crate::environment::{CONNECTION, ClientVariables, Sources};
use crate::process::{Identity, Launch, Stdio, base_name};
use crate::users::DEFAULT_SHELL;

/// Where distributions keep OpenSSH's SFTP server.
const SFTP_SERVERS: [&str; 5] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/sftp-server",
];

/// Why nothing can be run; the text is for the user.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// There is no shell.
    #[error("neither the login shell {} nor {DEFAULT_SHELL} exists here; an environment without a shell serves SFTP and forwards only", shell.display())]
    NoShell {
        /// The user's shell.
        shell: PathBuf,
    },
}

/// The process for `program`, with the client's `variables` and those that
/// describe the `session`.
pub fn launch(
    connection: &Connection,
    variables: &ClientVariables,
    mut session: Vec<(&'static str, OsString)>,
    program: Program,
    stdio: Stdio,
) -> Result<Launch, Unavailable> {
    let user = &connection.user;
    let settings = &connection.agent.settings;
    let shell = shell_of(&user.shell);
    let (program, argv0, arguments) = match program {
        Program::Shell => {
            let shell = shell.clone().ok_or_else(|| Unavailable::NoShell {
                shell: user.shell.clone(),
            })?;
            let mut argv0 = OsString::from("-");
            argv0.push(base_name(&shell));
            (shell, argv0, Vec::new())
        }
        Program::Command(command) => {
            let shell = shell.clone().ok_or_else(|| Unavailable::NoShell {
                shell: user.shell.clone(),
            })?;
            let argv0 = base_name(&shell).to_owned();
            (
                shell,
                argv0,
                vec![OsString::from("-c"), OsString::from_vec(command)],
            )
        }
        Program::Sftp => sftp_server(),
    };
    session.extend(CONNECTION.map(|(name, value)| (name, value.into())));
    let environment = Sources {
        inherited: connection.agent.inherited.clone(),
        workspace: &settings.workspace,
        services: &connection.agent.service_variables,
        configured: &settings.env,
        client: variables,
        user,
        shell: shell
            .as_deref()
            .map_or(OsStr::new(DEFAULT_SHELL), Path::as_os_str),
        session,
    }
    .merge();
    let directories = directories(connection).collect();
    Ok(Launch {
        program,
        argv0,
        arguments,
        environment,
        directories,
        identity: Identity::of(user),
        stdio,
    })
}

/// Where a session begins: the first of these that can be entered.
pub fn directories(connection: &Connection) -> impl Iterator<Item = PathBuf> {
    let workdir = connection.agent.settings.workdir.iter();
    let home = [&connection.user.home];
    workdir.chain(home).cloned().chain([PathBuf::from("/")])
}

/// The user's shell, or the system's when that does not exist.
fn shell_of(login: &Path) -> Option<PathBuf> {
    [login, Path::new(DEFAULT_SHELL)]
        .into_iter()
        .find(|path| path.exists())
        .map(Path::to_owned)
}

/// The environment's own SFTP server, else ours: this same binary.
fn sftp_server() -> (PathBuf, OsString, Vec<OsString>) {
    match SFTP_SERVERS
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
    {
        Some(path) => (path.to_owned(), base_name(path).to_owned(), Vec::new()),
        None => (
            PathBuf::from("/proc/self/exe"),
            "vendetta-agent".into(),
            vec!["sftp-server".into()],
        ),
    }
}
