//! What a script says, told apart from what the login shell said before it.
//!
//! sshd has the user's shell run every command, and many shells read a file
//! first that may print something, or run something else instead. So a script
//! begins by saying a random marker on both streams. What comes before it is
//! not the script's, and where none comes the script did not run.

use super::super::MAX_OUTPUT;

/// Most bytes before the marker that are told to a person.
const MAX_SAID: usize = 200;

/// What a script says first: a random word on both streams, and on standard output then
/// the process it is and a space. The word is in the script as two halves, so
/// that a shell that prints what it runs does not say it.
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
        format!("printf '%s%s%s ' {first} {second} $$; printf '%s%s ' {first} {second} >&2\n")
            .into_bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        self.halves.concat().into_bytes()
    }
}

/// One stream of a script: the first [`MAX_OUTPUT`] bytes after the marker.
#[derive(Debug, Default)]
pub(super) struct Capture {
    marker: Vec<u8>,
    stage: Stage,
    /// Of the stage; before the marker only where it may have begun.
    kept: Vec<u8>,
    /// The beginning of what came before the marker.
    said: Vec<u8>,
    /// What is between the marker and the space.
    process: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The marker has not come.
    #[default]
    Before,
    /// The space after it has not come.
    Marked,
    /// The script speaks.
    Script,
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
        if self.stage == Stage::Script {
            let room = MAX_OUTPUT.saturating_sub(self.kept.len());
            self.kept.extend(data.iter().take(room));
            return;
        }
        self.kept.extend_from_slice(data);
        if self.stage == Stage::Before {
            let length = self.marker.len();
            let found = self.kept.windows(length).position(|w| w == self.marker);
            // Without it: it may have begun in the last bytes; the others are only told.
            let begun = self.kept.len().saturating_sub(length.saturating_sub(1));
            let said = self.kept.drain(..found.unwrap_or(begun));
            let room = MAX_SAID.saturating_sub(self.said.len());
            self.said.extend(said.take(room));
            if found.is_some() {
                self.stage = Stage::Marked;
                self.kept.drain(..length);
            }
        }
        if self.stage == Stage::Marked
            && let Some(space) = self.kept.iter().position(|byte| *byte == b' ')
        {
            self.stage = Stage::Script;
            self.process = self.kept.drain(..space).collect();
            self.kept.drain(..1);
            self.kept.truncate(MAX_OUTPUT);
        }
    }

    /// The number of the script's process, once it has said it.
    pub(super) fn process(&self) -> Option<u32> {
        std::str::from_utf8(&self.process).ok()?.parse().ok()
    }

    /// The script's part; else what came in its place.
    pub(super) fn kept(mut self) -> Result<Vec<u8>, String> {
        if self.stage == Stage::Script {
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
            let stream = [before, marker.bytes(), b"123 ".to_vec(), after.clone()].concat();
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
        let flood = vec![b'y'; 2 * MAX_OUTPUT];
        let stream = [marker.prologue(), marker.bytes(), b"7 ".to_vec(), flood].concat();
        assert!(captured(&marker, &stream, 1000) == Ok(vec![b'y'; MAX_OUTPUT]));
    }
}
