//! The gateway's key in a user's authorized_keys (sshd(8)): put there once, and
//! taken out again, without touching anything else.

use std::io;
use std::time::Duration;

use russh::ChannelMsg;
use tokio::time::timeout;
use vendetta_sshio::keys::PublicKey;

use super::super::{Command, NodeError, NodeTransport};
use super::connection::{Connection, Target};
use super::enroll::EnrollError;
use super::handshake::Address;
use super::quote;

/// Time limit of the script that installs the key.
const LIMIT: Duration = Duration::from_secs(10);

/// `sh -c INSTALL sh LINE BLOB`: adds LINE to authorized_keys unless a line
/// with BLOB is there. Appending keeps owner, mode, links and other lines.
const INSTALL: &str = r#"
set -eu
umask 077
cd
[ -d .ssh ] || mkdir .ssh
file=.ssh/authorized_keys
if [ -f "$file" ] && grep -v '^[[:space:]]*#' "$file" | grep -qF -- "$2"; then exit 0; fi
if [ -s "$file" ] && [ -n "$(tail -c 1 "$file")" ]; then echo >>"$file"; fi
printf '%s\n' "$1" >>"$file"
"#;

/// `sh -c REMOVE sh BLOB`: takes the lines with BLOB out of authorized_keys.
const REMOVE: &str = r#"
set -eu
umask 077
cd
file=.ssh/authorized_keys
[ -f "$file" ] || exit 0
rest=$(mktemp .ssh/.authorized_keys.XXXXXX)
trap 'rm -f "$rest"' EXIT
grep -vF -- "$1" "$file" >"$rest" || [ $? = 1 ]
cat "$rest" >"$file"
"#;

/// The part of a public key's line by which it is known: the key itself.
fn blob(key: &PublicKey) -> String {
    let line = key.to_string();
    line.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// Adds the key, over a connection that is logged in.
///
/// # Errors
/// When the user's files cannot be written.
pub(super) async fn install(
    connection: &Connection,
    address: &Address,
    key: &PublicKey,
) -> Result<(), EnrollError> {
    let failed = |problem: String| EnrollError::Install {
        address: address.to_string(),
        user: address.user.clone(),
        problem,
    };
    let mut script = b"set -- ".to_vec();
    script.extend(quote::word(format!("{key} vendetta").as_bytes()));
    script.push(b' ');
    script.extend(quote::word(blob(key).as_bytes()));
    script.extend(INSTALL.as_bytes());
    let line =
        quote::command_line(&script).ok_or_else(|| failed("the key is too long".to_owned()))?;
    let installing = async {
        let mut channel = connection
            .open(Target::Session)
            .await
            .map_err(|error| failed(format!("{error:?}")))?;
        let sent = async {
            channel.exec(true, line).await?;
            channel.eof().await
        };
        sent.await.map_err(|error| failed(error.to_string()))?;
        let (mut status, mut said) = (None, Vec::new());
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::ExtendedData { data, .. } if said.len() < 4096 => {
                    said.extend_from_slice(&data);
                }
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                ChannelMsg::Close => break,
                _ => {}
            }
        }
        match status {
            Some(0) => Ok(()),
            Some(status) => Err(failed(format!(
                "status {status}: {}",
                String::from_utf8_lossy(&said).trim()
            ))),
            None => Err(failed("the connection was lost".to_owned())),
        }
    };
    let installed = timeout(LIMIT, installing).await;
    installed.unwrap_or_else(|_| Err(failed("no answer".to_owned())))
}

/// Takes the gateway's key out of a node's authorized_keys.
///
/// # Errors
/// When the node cannot be asked, or its file cannot be written.
pub async fn remove_key(node: &dyn NodeTransport, key: &PublicKey) -> Result<(), NodeError> {
    let output = node
        .exec(&Command::new(["sh", "-c", REMOVE, "sh", &blob(key)]))
        .await?;
    if output.status == Some(0) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NodeError::Io {
        node: node.name().clone(),
        operation: "change",
        subject: "authorized_keys".to_owned(),
        source: io::Error::other(said),
    })
}
