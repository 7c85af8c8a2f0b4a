//! How a script reaches `/bin/sh` of a node unchanged, whatever the user's
//! login shell is.
//!
//! sshd has the login shell read the command line, and shells differ in what
//! they make of it: fish knows backslashes within single quotes, csh expands
//! `!` and ends a line there. So the script travels as one word of characters
//! that all of them take for themselves, every other byte as an octal escape,
//! and sh's own `printf %b` restores it:
//!
//! ```text
//! exec /bin/sh -c 'eval "$(printf %b "$1")"' sh 'echo \0047it works\0041\0047'
//! ```

use std::fmt::Write as _;

/// Longest argument that Linux gives a program, in bytes (MAX_ARG_STRLEN less
/// its NUL); sshd hands the line over as one.
const MAX_LINE: usize = 128 * 1024 - 1;

/// `bytes` as one word of a POSIX shell script.
pub(super) fn word(bytes: &[u8]) -> Vec<u8> {
    let mut word = Vec::with_capacity(bytes.len() + 2);
    word.push(b'\'');
    for byte in bytes {
        if *byte == b'\'' {
            word.extend_from_slice(b"'\\''");
        } else {
            word.push(*byte);
        }
    }
    word.push(b'\'');
    word
}

/// The command line that has `/bin/sh` run `script`; none when it would be too
/// long, or there is a NUL in it.
pub(super) fn command_line(script: &[u8]) -> Option<String> {
    let mut line = String::from(r#"exec /bin/sh -c 'eval "$(printf %b "$1")"' sh '"#);
    for byte in script {
        match byte {
            0 => return None,
            b'\'' | b'\\' | b'!' => escape(&mut line, *byte),
            b' '..=b'~' => line.push(char::from(*byte)),
            _ => escape(&mut line, *byte),
        }
    }
    line.push('\'');
    (line.len() <= MAX_LINE).then_some(line)
}

fn escape(line: &mut String, byte: u8) {
    // Writing to a String does not fail.
    let _ = write!(line, "\\0{byte:03o}");
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// What `shell -c` makes of a script that prints its arguments.
    fn echoed(shell: &[&str], arguments: &[Vec<u8>]) -> Vec<u8> {
        let mut script = b"set --".to_vec();
        for argument in arguments {
            script.push(b' ');
            script.extend_from_slice(&word(argument));
        }
        script.extend_from_slice(b"\nprintf '%s\\000' \"$@\"");
        let line = command_line(&script).unwrap();
        let output = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &line])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        output.stdout
    }

    fn expected(arguments: &[Vec<u8>]) -> Vec<u8> {
        arguments
            .iter()
            .flat_map(|argument| argument.iter().copied().chain([0]))
            .collect()
    }

    /// The shells of this list that are installed; `sh` always is.
    fn shells() -> Vec<Vec<&'static str>> {
        let all = [
            "sh", "dash", "bash", "zsh", "fish", "csh", "tcsh", "ksh", "mksh",
        ];
        let mut found: Vec<Vec<&str>> = all
            .into_iter()
            .filter(|shell| Command::new(shell).args(["-c", "true"]).output().is_ok())
            .map(|shell| vec![shell])
            .collect();
        if Command::new("busybox").arg("true").output().is_ok() {
            found.push(vec!["busybox", "sh"]);
        }
        found
    }

    #[test]
    fn every_login_shell_passes_the_same_arguments_on() {
        let nasty: Vec<Vec<u8>> = [
            &b"plain"[..],
            b"",
            b"two  words",
            b"it's \\' a \\\\ \"quote\"\\",
            b"$HOME `id` $(id) ${x} !! !x ^a^b^",
            b"line\nbreak\ttab\r",
            b"*?[a-z]{a,b}~;&|<>()#%",
            b"-n",
            b"\xff\xfe not UTF-8 \x01\x7f",
            "ünï cödé".as_bytes(),
            b"ends with a line\n\n",
        ]
        .map(<[u8]>::to_vec)
        .to_vec();
        for shell in shells() {
            assert_eq!(echoed(&shell, &nasty), expected(&nasty), "{shell:?}");
        }
    }

    #[test]
    fn a_nul_and_a_line_longer_than_the_kernel_takes_are_refused() {
        assert_eq!(command_line(b"a\0b"), None);
        assert!(command_line(&vec![b'a'; 100_000]).is_some());
        assert_eq!(command_line(&vec![b'a'; 140_000]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn any_bytes_but_nul_arrive(arguments in prop::collection::vec(prop::collection::vec(1..=255u8, 0..40), 1..6)) {
            prop_assert_eq!(echoed(&["sh"], &arguments), expected(&arguments));
        }
    }
}
