//! How the agent becomes a process of the node, and is known again.
//!
//! The process is known by its pid file, the start time in it and its
//! arguments, so that a number that the kernel gave to somebody else is never
//! taken for it. It writes the pid file itself before it becomes the agent, and
//! gives up when the file names one that lives; so a crash of the gateway at
//! any point leaves neither an unknown agent nor two.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `sh -c LAUNCH sh RUN_DIR AGENT`: starts the agent in a session of its own
/// and returns. A file that was just written may be held open for a moment by
/// somebody whom the gateway starts, and cannot be run then (execve(2), ETXTBSY). proc(5): in /proc/PID/stat, after the command in parentheses,
/// the state is the first field (Z: dead, but not waited for) and the start time
/// the 20th.
pub(super) const LAUNCH: &str = r#"
cd "$1/workspace" || exit 1
[ "$(wc -c <"$1/agent.log" 2>/dev/null || echo 0)" -lt 10485760 ] || mv -f "$1/agent.log" "$1/agent.log.1"
exec </dev/null >>"$1/agent.log" 2>&1 || exit 1
setsid sh -c '
    started() {
        IFS= read -r stat <"/proc/$1/stat" || return 1
        set -- ${stat##*) }
        [ "$1" != Z ] && echo "${20}"
    } 2>/dev/null
    exec 9>"$1/agent.lock" && flock -w 10 9 || exit 1
    if read -r pid start <"$1/agent.pid" && [ "$(started "$pid")" = "$start" ]; then exit 0; fi 2>/dev/null
    echo "$$ $(started $$)" >"$1/agent.pid.new" && mv -f "$1/agent.pid.new" "$1/agent.pid" || exit 1
    exec 9>&-
    tries=50
    until "$2" --version >/dev/null 2>&1 || [ $((tries -= 1)) = 0 ]; do sleep 0.02; done
    exec "$2" serve --config "$1/agent.json"
' agent "$1" "$2" &
"#;

/// A process, told apart from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: u32,
    /// Clock ticks since the node's boot.
    pub started: u64,
}

/// What the pid file says: number and start time.
pub(super) fn parse_pid_file(content: &[u8]) -> Option<Process> {
    let text = std::str::from_utf8(content).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    Some(Process {
        pid: pid.parse().ok()?,
        started: started.parse().ok()?,
    })
}

/// Start time in /proc/PID/stat (proc(5), field 22); none of a process that is
/// dead and only not waited for (field 3).
pub(super) fn start_time(stat: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(stat);
    let (_, after) = text.rsplit_once(") ")?;
    let mut fields = after.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether /proc/PID/cmdline is that of the agent of this directory, or of the
/// shell that becomes it: one argument is the directory, or the config in it.
/// It reads as empty while the one becomes the other (execve(2)).
pub(super) fn is_agent_of(cmdline: &[u8], dir: &Path) -> bool {
    let config = dir.join("agent.json");
    if cmdline.is_empty() {
        return true;
    }
    cmdline.split(|byte| *byte == 0).any(|argument| {
        argument == config.as_os_str().as_bytes() || argument == dir.as_os_str().as_bytes()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_start_time_and_arguments() {
        assert_eq!(
            parse_pid_file(b"12 345\n"),
            Some(Process {
                pid: 12,
                started: 345
            })
        );
        for bad in [&b""[..], b"12", b"12 x", b"-1 5", b"\xff 1"] {
            assert_eq!(parse_pid_file(bad), None);
        }
        let stat = b"12 (odd ) name) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 345 0 0";
        assert_eq!(start_time(stat), Some(345));
        assert_eq!(start_time(b"12 (x)"), None);
        let dead = b"12 (x) Z 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 345 0 0";
        assert_eq!(start_time(dead), None);
        let dir = Path::new("/s/w/0a1b2c3d");
        let cmdline = b"/s/agent/abc\0serve\0--config\0/s/w/0a1b2c3d/agent.json\0";
        assert!(is_agent_of(cmdline, dir));
        assert!(is_agent_of(
            b"sh\0-c\0...\0agent\0/s/w/0a1b2c3d\0/s/agent/abc\0",
            dir
        ));
        assert!(!is_agent_of(cmdline, Path::new("/s/w/ffffffff")));
        assert!(is_agent_of(b"", dir), "in the middle of execve");
    }

    #[test]
    fn our_own_start_time_is_read_as_the_kernel_writes_it() {
        let stat = std::fs::read("/proc/self/stat").unwrap();
        assert!(start_time(&stat).is_some());
    }
}
