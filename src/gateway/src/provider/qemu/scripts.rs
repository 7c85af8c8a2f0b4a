//! What is done about machines on the node itself, in POSIX shell, which
//! coreutils and busybox both run.
//!
//! A machine is a directory, and everything of it is in there:
//!
//! ```text
//!   machine.json      whose it is, and which generation; 0: disks only
//!   port              the node's loopback port that leads to the agent
//!   overlay.qcow2     the root disk, on top of an image that is kept
//!   workspace.qcow2   the disk of the workspace, which outlives the root disk
//!   seed.img          see seed.rs
//!   agent.json        written by the gateway, goes into the seed
//!   pid               QEMU's own, as long as it lives, and stale after that
//!   status            how the last one ended
//!   qmp.sock          QEMU's monitor
//!   serial.log        the machine's console; serial.log.1: what was before
//!   qemu.log          what QEMU itself says
//!   lock              held by whoever makes or starts it
//! ```
//!
//! QEMU runs in a session of its own beside a shell that keeps its log short, waits
//! for it and writes `status`. It is known by its pid file and by its arguments, which name that pid
//! file, so a number that the kernel gave to somebody else is never taken for it.

/// `runs DIR`: sets `pid` and `start` (its start time: proc(5), the 22nd field of
/// /proc/PID/stat, the 20th after the command in parentheses), when QEMU lives.
const RUNS: &str = r#"
runs() {
    pid=
    [ -s "$1/pid" ] && read -r pid <"$1/pid" || return 1
    tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -- "$1/pid" || return 1
    read -r stat <"/proc/$pid/stat" || return 1
    started ${stat##*) }
} 2>/dev/null
started() { [ "$1" != Z ] && start=${20}; }
"#;

/// `sh -c … DIRECTORY_OF_MACHINES [ID]`: a line for each machine, or for this one:
/// ID, pid and start time (or "-" twice), port (or "-"), machine.json.
const LOOK: &str = r#"
cd "$1" 2>/dev/null || exit 0
for id in ${2:-*}; do
    [ -f "$id/machine.json" ] || continue
    port=-
    [ ! -s "$id/port" ] || read -r port <"$id/port"
    runs "$1/$id" || { pid=- start=-; }
    marker=$(cat "$id/machine.json" 2>/dev/null) || continue
    printf '%s %s %s %s %s\n' "$id" "$pid" "$start" "$port" "$marker"
done
exit 0
"#;

/// `sh -c … DIR MARKER DISKS_ONLY BASE FORMAT SIZE ROOM PORT…`: sees that the machine
/// of this marker exists and that its port is free; prints the port. QEMU of
/// another generation must not run any more. The ports are tried in turn.
const MAKE: &str = r#"
dir=$1 marker=$2 disks_only=$3 base=$4 format=$5 size=$6 room=$7
shift 7
umask 077
mkdir -p "$dir" && cd "$dir" || exit 1
exec 9>lock && timeout 60 flock 9 || { echo "somebody else has been at it for a minute" >&2; exit 1; }
write() { printf '%s' "$2" >"$1.new" && mv -f "$1.new" "$1"; }
# Of a qcow2 file, as its header has it: bytes 24 to 31, the most significant first.
size_of() { header=$(head -c 32 "$1" | tail -c 8 | od -An -v -tx1 | tr -d ' \n') && echo $((0x$header)); }
if runs "$dir"; then runs=1; else runs=; fi
if [ "$(cat machine.json 2>/dev/null)" != "$marker" ]; then
    [ -z "$runs" ] || { echo "the machine of another generation runs" >&2; exit 1; }
    write machine.json "$disks_only" || exit 1
    rm -f overlay.qcow2 status
    qemu-img create -q -f qcow2 -F "$format" -b "$base" overlay.qcow2 "$size" || exit 1
    if [ ! -f workspace.qcow2 ]; then
        qemu-img create -q -f qcow2 workspace.new "$room" && mv workspace.new workspace.qcow2 || exit 1
    elif has=$(size_of workspace.qcow2) && [ "$has" -lt "$room" ]; then
        # It grows, and never shrinks.
        qemu-img resize -q -f qcow2 workspace.qcow2 "$room" || exit 1
    fi
    write machine.json "$marker" || exit 1
fi
# Ports that somebody listens at (state 0A).
taken=" $(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep ' 0A ' | cut -d: -f3 | cut -c1-4 | sort -u | tr '\n' ' ')"
free() { case $taken in *" $(printf %04X "$1") "*) return 1 ;; esac; }
port=
[ ! -s port ] || read -r port <port
if [ -z "$runs" ] && { [ -z "$port" ] || ! free "$port"; }; then
    port=
    for candidate; do
        if free "$candidate"; then port=$candidate; break; fi
    done
    [ -n "$port" ] || { echo "none of $# ports was free" >&2; exit 1; }
    echo "$port" >port.new && mv -f port.new port || exit 1
fi
echo "$port"
"#;

/// `sh -c … DIR PROGRAM ARGUMENT…`: starts QEMU unless it runs, and returns when it
/// has written its pid file. It is confined by seccomp where it can be. As long as it
/// lives, its console's log is begun anew when it has become too long.
const LAUNCH: &str = r#"
dir=$1
shift
umask 077
cd "$dir" || exit 1
exec 9>lock && timeout 60 flock 9 || { echo "somebody else has been at it for a minute" >&2; exit 1; }
if runs "$dir"; then exit 0; fi
rm -f pid status qmp.sock
[ "$(wc -c <serial.log 2>/dev/null || echo 0)" -lt 10485760 ] || mv -f serial.log serial.log.1
if "$1" -sandbox on -machine help >/dev/null 2>&1; then
    set -- "$@" -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
fi
setsid sh -c '
    while sleep 5 && kill -0 "$$"; do
        [ "$(wc -c <serial.log)" -lt 20971520 ] || { cp serial.log serial.log.1 && : >serial.log; }
    done >/dev/null 2>&1 &
    "$@"
    echo "$?" >status
    kill "$!"' sh "$@" </dev/null >qemu.log 2>&1 9>&- &
tries=300
while [ "$tries" -gt 0 ]; do
    [ ! -s pid ] || exit 0
    if [ -s status ]; then tail -n 5 qemu.log >&2; exit 1; fi
    sleep 0.1 2>/dev/null || sleep 1
    tries=$((tries - 1))
done
echo "it did not write its pid file" >&2
exit 1
"#;

/// `sh -c … DIR`: ends QEMU at once.
const KILL: &str = r#"
if runs "$1"; then kill -KILL "$pid"; fi
exit 0
"#;

pub(super) fn look() -> String {
    [RUNS, LOOK].concat()
}

pub(super) fn make() -> String {
    [RUNS, MAKE].concat()
}

pub(super) fn launch() -> String {
    [RUNS, LAUNCH].concat()
}

pub(super) fn kill() -> String {
    [RUNS, KILL].concat()
}

/// Says what is there: `qemu=VERSION`, `img=VERSION`, and for a machine that needs
/// it `firmware=FILE`. `sh -c … ARCHITECTURE`.
pub(super) const TOOLS: &str = r#"
PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin
for tool in "qemu=qemu-system-$1" img=qemu-img; do
    if command -v "${tool#*=}" >/dev/null 2>&1; then
        echo "${tool%%=*}=$("${tool#*=}" --version 2>/dev/null | head -n 1)"
    fi
done
for file in /usr/share/qemu-efi-aarch64/QEMU_EFI.fd /usr/share/AAVMF/AAVMF_CODE.fd \
    /usr/share/edk2/aarch64/QEMU_EFI.fd /usr/share/qemu/edk2-aarch64-code.fd; do
    if [ "$1" = aarch64 ] && [ -r "$file" ]; then echo "firmware=$file"; break; fi
done
exit 0
"#;

/// The exit status with which [`FIND_PATH`] says that there is no such file.
pub(super) const NO_FILE: i32 = 3;

/// The exit status with which [`FIND_PATH`] says that the file may not be used.
pub(super) const NOT_ALLOWED: i32 = 4;

/// The exit status with which [`EXAMINE`] says that a part of the disk is in another file.
pub(super) const OTHER_FILE: i32 = 6;

/// The exit status with which [`KEEP_DOWNLOAD`] says that the file is another one.
pub(super) const OTHER_CHECKSUM: i32 = 5;

/// `sh -c … STATE_DIR PATH ALLOWED…`: prints where a file of the node really is, when
/// it may be an image: in one of the directories, which may not be there, links resolved.
pub(super) const FIND_PATH: &str = r#"
state=$(readlink -f -- "$1") path=$(readlink -f -- "$2")
shift 2
within() { case $1 in "${2%/}"/*) ;; *) return 1 ;; esac; }
allowed=
for dir; do
    dir=$(readlink -f -- "$dir") && within "$path" "$dir" || continue
    # What is ours is not for others (disks of workspaces, keys of agents), unless a
    # directory in there was named.
    if within "$path" "$state" && ! within "$dir" "$state"; then continue; fi
    allowed=1
done
[ -n "$allowed" ] || exit 4
[ -f "$path" ] && [ -r "$path" ] || exit 3
printf '%s' "$path"
"#;

/// `sh -c … IMAGES PATH`: keeps a copy of a file of the node under its SHA-256, unless
/// it is kept already, and prints that. The index remembers a file by where and how
/// it is, so that it is not read again each time.
pub(super) const KEEP_PATH: &str = r#"
images=$1 path=$2
umask 077
mkdir -p "$images/index" || exit 1
key=$({ printf '%s\n' "$path"; stat -L -c '%d %i %s %Y' -- "$path"; } | sha256sum | cut -c1-64)
if [ -s "$images/index/$key" ] && read -r sum <"$images/index/$key" && [ -f "$images/$sum" ]; then
    echo "$sum"
    exit 0
fi
new=$(mktemp "$images/.new-XXXXXX") || exit 1
trap 'rm -f "$new"' EXIT
cp --reflink=auto --sparse=always -- "$path" "$new" 2>/dev/null || cp -- "$path" "$new" || exit 1
sum=$(sha256sum <"$new" | cut -c1-64)
chmod 400 "$new" && mv -f "$new" "$images/$sum" || exit 1
echo "$sum" >"$images/index/.$$" && mv -f "$images/index/.$$" "$images/index/$key" || exit 1
echo "$sum"
"#;

/// `sh -c … IMAGES KEY PART PROGRAM CHECKSUM`: keeps what was downloaded under its
/// SHA-256, when it has the checksum (none: any), and prints that.
pub(super) const KEEP_DOWNLOAD: &str = r#"
images=$1 key=$2 part=$3 program=$4 wanted=$5
if [ -n "$wanted" ]; then
    is=$("$program" <"$part" | cut -d' ' -f1)
    if [ "$is" != "$wanted" ]; then
        echo "its checksum is $is, not $wanted" >&2
        exit 5
    fi
fi
sum=$(sha256sum <"$part" | cut -c1-64)
chmod 400 "$part" && mv -f "$part" "$images/$sum" || exit 1
echo "$sum" >"$images/index/.$$" && mv -f "$images/index/.$$" "$images/index/$key" || exit 1
echo "$sum"
"#;

/// `sh -c … IMAGES`: makes the directory, removes what was left half-done a day ago,
/// and says what can download: "curl", "wget" or nothing.
pub(super) const PREPARE: &str = r#"
umask 077
mkdir -p "$1/index" || exit 1
find "$1" -maxdepth 1 -name '.*-*' -type f -mtime +0 -exec rm -f {} + 2>/dev/null
for program in curl wget; do
    if command -v "$program" >/dev/null 2>&1; then echo "$program"; break; fi
done
exit 0
"#;

/// `sh -c … PART`: bytes of a download so far, and of how many, where that is known.
pub(super) const PROGRESS: &str = r#"
stat -c %s -- "$1" 2>/dev/null || echo 0
tr -d '\r' <"$1.head" 2>/dev/null | sed -n 's/^[Cc]ontent-[Ll]ength: *//p' | tail -n 1
exit 0
"#;

/// `sh -c … FILE`: on the first line the two bytes that end the first sector ("55 aa":
/// of a disk that can be booted), then what `qemu-img info` says as JSON. It comes from anybody, so QEMU is not left to guess its format, nor to open what it names
/// (docs/interop/qcow2.txt of QEMU: magic, version, and from byte 8 on where the name of a
/// backing file is; bit 2 of the byte 79 is set when the data are in another file).
pub(super) const EXAMINE: &str = r#"
header=$(head -c 80 -- "$1" | od -An -v -tx1 | tr -d ' \n')
case $header in
    514649fb????????0000000000000000*) format=qcow2 ;;
    514649fb*) exit 6 ;;
    *) format=raw ;;
esac
case $format$(printf %s "$header" | cut -c9-16,160) in qcow200000003[4567cdef]) exit 6 ;; esac
printf '%s\n' "$(tail -c +511 -- "$1" | head -c 2 | od -An -tx1)"
ulimit -t 30
ulimit -v 2097152
exec qemu-img info -f "$format" --output=json -- "$1"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn every_script_is_one_that_every_shell_parses() {
        let scripts = [look(), make(), launch(), kill()];
        let others = [
            TOOLS,
            FIND_PATH,
            KEEP_PATH,
            KEEP_DOWNLOAD,
            PREPARE,
            PROGRESS,
            EXAMINE,
        ];
        for script in scripts.iter().map(String::as_str).chain(others) {
            for shell in ["sh", "bash"] {
                let checked = Command::new(shell).args(["-n", "-c", script]).output();
                let checked = checked.unwrap();
                assert!(checked.status.success(), "{shell}: {checked:?}\n{script}");
            }
        }
    }
}
