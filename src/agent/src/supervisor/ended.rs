//! How a process ended, for people.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

/// "exit status 1", "killed by SIGSEGV".
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        // A shell's way to say it (POSIX.1-2024, sh, 2.8.2).
        (Some(126), _) => "exit status 126 (the command cannot be run)".to_owned(),
        (Some(127), _) => "exit status 127 (the command was not found)".to_owned(),
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => Signal::try_from(number).map_or_else(
            |_| format!("killed by signal {number}"),
            |signal| format!("killed by {signal}"),
        ),
        (None, None) => "an unknown end".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        let of = |raw| describe(ExitStatus::from_raw(raw));
        assert_eq!(of(0), "exit status 0");
        assert_eq!(of(1 << 8), "exit status 1");
        assert_eq!(of(11), "killed by SIGSEGV");
        assert_eq!(of(40), "killed by signal 40");
    }
}
