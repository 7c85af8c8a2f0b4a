//! The scripts by which a node's files are read and written. They need a POSIX
//! shell and coreutils or busybox, and one round trip each.
//!
//! Paths come as `"$1"` and are absolute. A script that does not do its work
//! says why on standard error, in the words of strerror(3).

use std::io;

use super::quote;
use super::trouble::io_error;

/// Exit status: there is no such file.
pub(super) const ABSENT: i32 = 44;

/// Before every script. `absent PATH`, for a PATH at which nothing was there, ends with
/// [`ABSENT`], or says why it cannot be seen. What is there by now came after the look.
const COMMON: &str = r#"
LC_ALL=C; export LC_ALL; umask 077
absent() {
    why=$(ls -d "$1" 2>&1 >/dev/null)
    case $why in '' | *'No such file or directory'*) exit 44 ;; esac
    printf '%s\n' "$why" >&2
    exit 1
}
there() { [ -e "$1" ] || [ -L "$1" ]; }
"#;

/// PATH MODE LENGTH: writes standard input there, whole or not at all: a
/// connection that is lost half-way leaves fewer bytes than were announced.
/// `mv -T` renames over a link instead of into the directory that it leads to; where
/// mv does not, as busybox's, the link is removed before.
pub(super) const PUT: &str = r#"
parent=${1%/*}
mkdir -p "${parent:-/}" || exit 1
new=$(mktemp "$parent/.new-XXXXXX") || exit 1
trap 'rm -f "$new"' EXIT
trap 'exit 1' HUP INT PIPE TERM
cat >"$new" || exit 1
size=$(wc -c <"$new")
[ "$((size))" -eq "$3" ] || { echo "$1: got $((size)) bytes of $3" >&2; exit 1; }
chmod "$2" "$new" || exit 1
why=$(mv -fT "$new" "$1" 2>&1) && exit 0
if [ -L "$1" ]; then rm -f "$1" || exit 1
elif [ -d "$1" ]; then echo "$1: Is a directory" >&2; exit 1
else case $why in *option*) ;; *) printf '%s\n' "$why" >&2; exit 1 ;; esac
fi
mv -f "$new" "$1"
"#;

/// PATH: makes a directory that only its owner can enter, and its parents.
pub(super) const MAKE_DIR: &str = r#"mkdir -p "$1""#;

/// PATH LIMIT: the beginning of a file. coreutils' dd can be told not to follow
/// a link; elsewhere it is looked at before.
pub(super) const READ: &str = r#"
there "$1" || absent "$1"
[ ! -L "$1" ] || { echo "$1: is a symbolic link" >&2; exit 1; }
[ ! -d "$1" ] || { echo "$1: Is a directory" >&2; exit 1; }
if dd if=/dev/null iflag=nofollow,nonblock,count_bytes status=none 2>/dev/null; then
    exec dd if="$1" iflag=nofollow,nonblock,count_bytes,fullblock bs=65536 count="$2" status=none
fi
[ -f "$1" ] || { echo "$1: not a file" >&2; exit 1; }
exec head -c "$2" "$1"
"#;

/// PATH: the names in a directory, each with a NUL behind it.
pub(super) const LIST_DIR: &str = r#"
if ! { cd "$1" 2>/dev/null && [ -r . ]; }; then
    there "$1" || absent "$1"
    if [ -d "$1" ]; then why='Permission denied'; else why='Not a directory'; fi
    echo "$1: $why" >&2
    exit 1
fi
for name in * .[!.]* ..?*; do
    if there "$name"; then printf '%s\0' "$name"; fi
done
"#;

/// PATH: succeeds when there is something, be it a link to nowhere.
pub(super) const EXISTS: &str = r#"there "$1" || absent "$1""#;

/// PATH: removes it with all it holds; rm follows no link.
pub(super) const REMOVE_TREE: &str = r#"rm -rf "$1""#;

/// TOKEN PROGRAM ARGUMENT…: becomes the program, with a small environment; says the
/// token on standard error when there is no such program. `env` would take a
/// word with "=" for a variable, so the caller refuses that as a program.
pub(super) const EXEC: &str = r#"
token=$1; shift
command -v "$1" >/dev/null 2>&1 || { printf %s "$token" >&2; exit 127; }
exec env -i ${HOME+"HOME=$HOME"} ${USER+"USER=$USER"} ${LOGNAME+"LOGNAME=$LOGNAME"} \
    ${PATH+"PATH=$PATH"} ${LANG+"LANG=$LANG"} ${TZ+"TZ=$TZ"} "$@"
"#;

/// PATH: why sshd, which does not say so, could not connect to a unix socket: says
/// "absent", "denied", "idle" when nobody listens, or "listening".
/// /proc/net/unix names a socket by the path it was bound to, which may lead
/// elsewhere than the one asked for, so the last component has to do.
/// The fourth field has SO_ACCEPTCON, 0x10000, when it listens.
pub(super) const WHY_NOT_UNIX: &str = r#"
there "$1" || { why=$(ls -d "$1" 2>&1 >/dev/null); case $why in *denied*) echo denied ;; *) echo absent ;; esac; exit 0; }
[ -e "$1" ] || { echo absent; exit 0; }
[ -S "$1" ] || { echo idle; exit 0; }
[ -w "$1" ] || { echo denied; exit 0; }
while read -r _ _ _ flags _ _ _ path; do
    if [ "$flags" = 00010000 ] && [ "$path" -ef "$1" ]; then echo listening; exit 0; fi
done </proc/net/unix
echo idle
"#;

/// `body` with these words for its arguments.
pub(super) fn with_arguments<'a>(
    body: &str,
    arguments: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut script = b"set --".to_vec();
    for argument in arguments {
        script.push(b' ');
        script.extend_from_slice(&quote::word(argument));
    }
    script.extend_from_slice(body.as_bytes());
    script
}

/// A script about files: what it makes is private, and what it says is English.
pub(in super::super) fn of_files(body: &str, arguments: &[&[u8]]) -> Vec<u8> {
    with_arguments(&format!("{COMMON}{body}"), arguments.iter().copied())
}

/// What a script that did not do its work said.
pub(in super::super) fn failure(status: Option<i32>, stderr: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    match (lines.next(), status) {
        (Some(line), _) => io_error(line.trim()),
        (None, Some(status)) => io::Error::other(format!("exit status {status}")),
        (None, None) => io::Error::other("ended by a signal"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_told_with_its_kind() {
        let full = failure(Some(1), b"\ncat: write error: No space left on device\n");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(
            full.to_string(),
            "cat: write error: No space left on device"
        );
        assert_eq!(failure(Some(7), b"").to_string(), "exit status 7");
        assert_eq!(failure(None, b" \n").to_string(), "ended by a signal");
    }
}
