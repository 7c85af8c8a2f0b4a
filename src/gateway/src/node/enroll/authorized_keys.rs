//! The gateway's line in `~/.ssh/authorized_keys` (sshd(8)) of a node's user.

use bytes::Bytes;
use vendetta_sshio::keys::PublicKey;

use super::super::ssh::{Connection, SshNode, Trouble, run_once, script};
use super::super::{NodeError, NodeTransport as _, Output};

/// What the line ends with when the key has no comment of its own.
const COMMENT: &str = "vendetta";

/// TYPE BLOB COMMENT: adds the line unless one of that key without options is
/// there. One write to the end of the file, which keeps what is in it, whose it is
/// and where a link leads. Says "added" or "present".
const INSTALL: &str = r#"
type=$1 blob=$2 comment=$3
cd "${HOME:?}" || exit 1
mkdir -p .ssh || exit 1
file=.ssh/authorized_keys
if [ -e "$file" ]; then
    [ -r "$file" ] || { echo "$HOME/$file: Permission denied" >&2; exit 1; }
    set -f
    while IFS= read -r line || [ -n "$line" ]; do
        set -- $line
        if [ "$1" = "$type" ] && [ "$2" = "$blob" ]; then echo present; exit 0; fi
    done <"$file"
fi
start=
if [ -s "$file" ] && [ -n "$(tail -c 1 "$file")" ]; then start='
'; fi
printf '%s%s %s %s\n' "$start" "$type" "$blob" "$comment" >>"$file" || exit 1
if command -v restorecon >/dev/null 2>&1; then restorecon -R .ssh >/dev/null 2>&1; fi
echo added
"#;

/// TYPE BLOB: removes the lines of that key, with options or without, and keeps all
/// others byte for byte. The new file has the mode of the old one and replaces it at
/// once, where a link leads. Says "removed" or "absent".
const REMOVE: &str = r#"
cd "${HOME:?}" || exit 1
file=$(readlink -f .ssh/authorized_keys) && [ -e "$file" ] || { echo absent; exit 0; }
key="$1[[:space:]][[:space:]]*$2"
grep -q -e "^[^#]*$key\$" -e "^[^#]*$key[[:space:]]" "$file" || { echo absent; exit 0; }
new=$(mktemp "$file.XXXXXX") || exit 1
trap 'rm -f "$new"' EXIT
cp -p "$file" "$new" &&
    sed -e "\|^[^#]*$key\$|d" -e "\|^[^#]*$key[[:space:]]|d" "$file" >"$new" &&
    mv -f "$new" "$file" || exit 1
echo removed
"#;

/// Type and blob of the key's line.
fn words(key: &PublicKey) -> (String, String) {
    let line = key.to_string();
    let mut words = line.split(' ').map(str::to_owned);
    (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    )
}

/// What a script said that did its work.
fn said(output: &Output) -> Result<String, Trouble> {
    match output.status {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        status => Err(Trouble::Io(script::failure(status, &output.stderr))),
    }
}

/// Puts the line of `key` there. Whether it was not there before.
pub(super) async fn install(connection: &Connection, key: &PublicKey) -> Result<bool, Trouble> {
    let (kind, blob) = words(key);
    let comment: String = match key.comment() {
        comment if comment.is_empty() => COMMENT.to_owned(),
        comment => comment.chars().filter(|c| !c.is_control()).collect(),
    };
    let arguments = [kind.as_bytes(), blob.as_bytes(), comment.as_bytes()];
    let output = run_once(connection, script::of_files(INSTALL, &arguments)).await?;
    Ok(said(&output)? == "added")
}

/// Removes the line of `key` from the node again. Whether there was one.
/// Connections that are open stay so.
///
/// # Errors
/// When the node cannot be reached, or the file cannot be written.
pub async fn withdraw(node: &SshNode, key: &PublicKey) -> Result<bool, NodeError> {
    let (kind, blob) = words(key);
    let output = node
        .script(REMOVE, &[kind.as_bytes(), blob.as_bytes()], Bytes::new())
        .await;
    let said = output.and_then(|output| said(&output));
    let said = said.map_err(|trouble| trouble.during(&node.name(), "write", "authorized_keys"));
    Ok(said? == "removed")
}
