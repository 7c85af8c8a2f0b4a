//! One line of a log file: time, stream and text, with spaces between.
//!
//! ```text
//! 1760000000123 O listening on port 80
//! 1760000000125 E warning: no certificate
//! 1760000000200 S healthy
//! ```
//!
//! The time is in milliseconds since the Unix epoch; O is standard output, E
//! standard error, S the supervisor. The text is as the service wrote it,
//! whatever its encoding.

use std::io::Write as _;

use vendetta_proto::rpc::{Millis, Stream};

/// Longest line, in bytes; what is longer becomes several.
pub const LONGEST_LINE: usize = 16 * 1024;

/// Lines that are written together.
#[derive(Debug, Default)]
pub struct Batch {
    /// As in the file.
    pub(super) bytes: Vec<u8>,
    /// How many.
    pub(super) lines: u64,
}

impl Batch {
    /// Adds a line; `text` has no end of line.
    pub fn push(&mut self, time: Millis, stream: Stream, text: &[u8]) {
        let letter = match stream {
            Stream::Stdout => 'O',
            Stream::Stderr => 'E',
            Stream::Supervisor => 'S',
        };
        let _ = write!(self.bytes, "{time} {letter} ");
        self.bytes.extend_from_slice(text);
        self.bytes.push(b'\n');
        self.lines += 1;
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }
}

/// What a line of a file holds, without its end; none when it is not one, as
/// when the agent was killed while it wrote it.
pub(super) fn parse(line: &[u8]) -> Option<(Millis, Stream, String)> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"O" => Stream::Stdout,
        b"E" => Stream::Stderr,
        b"S" => Stream::Supervisor,
        _ => return None,
    };
    let text = String::from_utf8_lossy(parts.next()?).into_owned();
    Some((time, stream, text))
}

/// Makes lines of a stream of bytes.
#[derive(Debug, Default)]
pub struct Splitter {
    begun: Vec<u8>,
}

impl Splitter {
    /// Takes data, and gives each line that it ends, without its end.
    pub fn push(&mut self, data: &[u8], mut line: impl FnMut(&[u8])) {
        for part in data.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(part);
            if self.begun.ends_with(b"\n") {
                self.begun.pop();
                if self.begun.ends_with(b"\r") {
                    self.begun.pop();
                }
                let text = self.split(&mut line);
                line(&text);
            } else if self.begun.len() > LONGEST_LINE {
                self.begun = self.split(&mut line);
            }
        }
    }

    /// Gives all of what is begun but a last part that is short enough.
    fn split(&mut self, line: &mut impl FnMut(&[u8])) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.begun);
        while text.len() > LONGEST_LINE {
            let rest = text.split_off(boundary(&text));
            line(&text);
            text = rest;
        }
        text
    }

    /// The stream has ended: gives a last line that has no end.
    pub fn end(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.begun.is_empty() {
            let text = self.split(&mut line);
            line(&text);
        }
    }
}

/// Where to split a line that is too long: not within a character of UTF-8.
fn boundary(text: &[u8]) -> usize {
    let begins = |at: &usize| text.get(*at).is_some_and(|byte| byte & 0xc0 != 0x80);
    (LONGEST_LINE - 3..=LONGEST_LINE)
        .rev()
        .find(begins)
        .unwrap_or(LONGEST_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::default();
        let mut found = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |line| found.push(line.to_vec()));
        }
        splitter.end(|line| found.push(line.to_vec()));
        found
    }

    #[test]
    fn ends_of_lines_are_not_part_of_them() {
        assert_eq!(
            lines(&[b"a\r\nb", b"\n\nlast"]),
            [&b"a"[..], b"b", b"", b"last"]
        );
        assert!(lines(&[b"", b""]).is_empty());
    }

    #[test]
    fn a_long_line_is_split_between_characters() {
        let text = "ä".repeat(LONGEST_LINE);
        let found = lines(&[b"x", text.as_bytes()]);
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|line| line.len() <= LONGEST_LINE));
        assert!(found.iter().all(|line| std::str::from_utf8(line).is_ok()));
        assert_eq!(found.concat(), format!("x{text}").as_bytes());
    }

    #[test]
    fn what_is_no_line_is_passed_over() {
        for torn in [
            "",
            "17",
            "1760000000123",
            "1760000000123 ",
            "1760000000123 O",
            "x O y",
        ] {
            assert_eq!(parse(torn.as_bytes()), None, "{torn}");
        }
        let whole = parse(b"17 O ").unwrap();
        assert_eq!(whole, (17, Stream::Stdout, String::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn nothing_is_lost_and_no_line_too_long(
            chunks in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![3 => Just(b'x'), 1 => Just(b'\n'), 1 => any::<u8>()], 0..300), 0..100)
        ) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let found = lines(&chunks);
            prop_assert!(found.iter().all(|line| line.len() <= LONGEST_LINE && !line.contains(&b'\n')));
            let without = |bytes: &[u8]| -> Vec<u8> {
                bytes.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect()
            };
            prop_assert_eq!(without(&found.concat()), without(&chunks.concat()));
        }

        #[test]
        fn what_is_written_is_read_back(time: u64, text in "[^\n]*") {
            let mut batch = Batch::default();
            batch.push(time, Stream::Stderr, text.as_bytes());
            let line = batch.bytes.strip_suffix(b"\n").unwrap();
            prop_assert_eq!(parse(line), Some((time, Stream::Stderr, text)));
        }
    }
}
