//! `vendetta setup`: ssh on this machine knows a gateway and its workspaces by
//! name, with files of our own and one line in the user's.
//!
//! ```text
//!   ~/.ssh/config               Include ~/.ssh/vendetta/config   (its first line)
//!   ~/.ssh/vendetta/config      the gateway, *.vendetta
//!   ~/.ssh/vendetta/known_hosts their keys
//!   ~/.ssh/vendetta/made-config there was no ~/.ssh/config before
//! ```
//!
//! The gateway says names and keys; what ssh is told with them is written here,
//! so that no gateway can have ssh run anything, nor is believed for a name that
//! another machine may have.

mod ask;
mod files;

use std::io;

use vendetta_proto::WorkspaceName;

use super::Failure;
use super::address;
use super::front::LOGIN;
use ask::Gateway;
use files::Files;
pub(super) use files::KNOWN_HOSTS;

/// Has ssh know the gateway that `flag` names, or that is found otherwise;
/// returns what to tell. `host_key` is the fingerprint by which it is believed;
/// none: ssh knows it or asks.
pub(super) fn set_up(flag: Option<&str>, host_key: Option<&str>) -> Result<String, Failure> {
    let files = Files::of_user()?;
    let address = address::find(flag)?;
    let stanza = Gateway::at(&address)?.stanza(host_key)?;
    files
        .install(&stanza)
        .map_err(|error| trouble(&files, &error))?;
    let example = stanza.workspaces.keys().next();
    let example = example.map_or("my-project", WorkspaceName::as_str);
    Ok(format!(
        "ssh knows the gateway {host} port {port} now, and asks nothing:\n\
         \x20 ssh {LOGIN} workspace list\n\
         \x20 ssh {example}@{LOGIN}\n\
         \x20 ssh {example}.{LOGIN}        encrypted from end to end; so is scp FILE {example}.{LOGIN}:\n\
         Written: {config}, {known_hosts}, and one Include line in {user_config}.\n\
         Take it back with: vendetta setup --undo\n",
        host = stanza.host,
        port = stanza.port,
        config = files.config.display(),
        known_hosts = files.known_hosts.display(),
        user_config = files.user_config.display(),
    ))
}

/// Takes back what [`set_up`] did; returns what to tell.
pub(super) fn undo() -> Result<String, Failure> {
    let files = Files::of_user()?;
    let found = files.remove().map_err(|error| trouble(&files, &error))?;
    Ok(if found {
        "Taken back: ssh is as it was.\n".to_owned()
    } else {
        "There is nothing to take back.\n".to_owned()
    })
}

fn trouble(files: &Files, error: &io::Error) -> Failure {
    Failure::new(
        5,
        format!("below {}: {error}", files.ssh.display()),
        "mend that, then again; nothing is written halfway",
    )
}
