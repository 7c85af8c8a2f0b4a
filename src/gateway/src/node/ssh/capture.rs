//! What a script says, told apart from what the login shell said before it.
//!
//! sshd has the user's shell run every command, and many shells read a file
//! first that may print something, or run something else instead. So a script
//! begins by saying a random marker on both streams. What comes before it is
//! not the script's, and where none comes the script did not run.

use super::super::MAX_OUTPUT;

/// Most bytes before the marker that are told to a person.
const MAX_SAID: usize = 200;

/// What a script says first. It is in the script as two halves, so that a shell
/// that prints what it runs does not say it.
#[derive(Debug)]
pub(super) struct Marker {
    halves: [String; 2],
}

impl Marker {
    /// One that nothing else says.
    pub(super) fn random() -> Self {
        let halves = std::array::from_fn(|_| hex::encode(rand::random::<[u8; 12]>()));
        Self { halves }
    }

    /// The lines of script that say it.
    pub(super) fn prologue(&self) -> Vec<u8> {
        let [first, second] = &self.halves;
        format!("printf %s%s {first} {second}; printf %s%s {first} {second} >&2\n").into_bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        self.halves.concat().into_bytes()
    }
}

/// One stream of a script: the first [`MAX_OUTPUT`] bytes after the marker.
#[derive(Debug, Default)]
pub(super) struct Capture {
    marker: Vec<u8>,
    seen: bool,
    kept: Vec<u8>,
    /// The beginning of what came before the marker.
    said: Vec<u8>,
}

impl Capture {
    /// Nothing so far.
    pub(super) fn new(marker: &Marker) -> Self {
        Self {
            marker: marker.bytes(),
            ..Self::default()
        }
    }

    /// Takes more of the stream.
    pub(super) fn push(&mut self, data: &[u8]) {
        if self.seen {
            let room = MAX_OUTPUT.saturating_sub(self.kept.len());
            self.kept.extend(data.iter().take(room));
            return;
        }
        self.kept.extend_from_slice(data);
        let length = self.marker.len();
        if let Some(found) = self.kept.windows(length).position(|w| w == self.marker) {
            self.seen = true;
            self.kept.drain(..found + length);
            self.kept.truncate(MAX_OUTPUT);
            return;
        }
        // The marker may have begun in what is here; the rest is only told.
        let done = self.kept.len().saturating_sub(length.saturating_sub(1));
        let said = self.kept.drain(..done);
        let room = MAX_SAID.saturating_sub(self.said.len());
        self.said.extend(said.take(room));
    }

    /// The script's part; else what came in its place.
    pub(super) fn kept(mut self) -> Result<Vec<u8>, String> {
        if self.seen {
            return Ok(self.kept);
        }
        let room = MAX_SAID.saturating_sub(self.said.len());
        self.said.extend(self.kept.iter().take(room));
        Err(String::from_utf8_lossy(&self.said).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn captured(marker: &Marker, stream: &[u8], piece: usize) -> Result<Vec<u8>, String> {
        let mut capture = Capture::new(marker);
        for piece in stream.chunks(piece.max(1)) {
            capture.push(piece);
        }
        capture.kept()
    }

    proptest! {
        #[test]
        fn however_it_is_cut_only_what_follows_the_marker_is_kept(
            before in prop::collection::vec(any::<u8>(), 0..300),
            after in prop::collection::vec(any::<u8>(), 0..300),
            piece in 1..80usize,
        ) {
            let marker = Marker::random();
            let stream = [before, marker.bytes(), after.clone()].concat();
            prop_assert_eq!(captured(&marker, &stream, piece), Ok(after));
        }
    }

    #[test]
    fn without_the_marker_it_is_told_what_came_instead_but_not_all_of_it() {
        let marker = Marker::random();
        let said = captured(&marker, b"This account is not available.\n", 7);
        assert_eq!(said, Err("This account is not available.".to_owned()));
        let flood = captured(&marker, &vec![b'x'; 1_000_000], 4096).unwrap_err();
        assert_eq!(flood.len(), MAX_SAID);
    }

    #[test]
    fn output_is_cut_and_a_printed_command_line_is_not_the_marker() {
        let marker = Marker::random();
        let stream = [
            marker.prologue(),
            marker.bytes(),
            vec![b'y'; 2 * MAX_OUTPUT],
        ]
        .concat();
        assert_eq!(captured(&marker, &stream, 1000), Ok(vec![b'y'; MAX_OUTPUT]));
    }
}
