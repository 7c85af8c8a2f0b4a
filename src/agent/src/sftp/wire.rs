//! Numbers, strings and packet types.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Largest packet, as in OpenSSH (SFTP_MAX_MSG_LENGTH), without its length field.
pub const MAX_PACKET: usize = 256 * 1024;
/// Largest READ or WRITE that is sure to fit a packet, as in OpenSSH.
pub const MAX_DATA: usize = MAX_PACKET - 1024;

/// Packet types of requests and answers.
pub mod kind {
    #![allow(missing_docs)]
    pub const INIT: u8 = 1;
    pub const VERSION: u8 = 2;
    pub const OPEN: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const READ: u8 = 5;
    pub const WRITE: u8 = 6;
    pub const LSTAT: u8 = 7;
    pub const FSTAT: u8 = 8;
    pub const SETSTAT: u8 = 9;
    pub const FSETSTAT: u8 = 10;
    pub const OPENDIR: u8 = 11;
    pub const READDIR: u8 = 12;
    pub const REMOVE: u8 = 13;
    pub const MKDIR: u8 = 14;
    pub const RMDIR: u8 = 15;
    pub const REALPATH: u8 = 16;
    pub const STAT: u8 = 17;
    pub const RENAME: u8 = 18;
    pub const READLINK: u8 = 19;
    pub const SYMLINK: u8 = 20;
    pub const STATUS: u8 = 101;
    pub const HANDLE: u8 = 102;
    pub const DATA: u8 = 103;
    pub const NAME: u8 = 104;
    pub const ATTRS: u8 = 105;
    pub const EXTENDED: u8 = 200;
    pub const EXTENDED_REPLY: u8 = 201;
}

/// A packet ended before its fields did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

/// Reads the fields of a packet.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Truncated> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        self.take(N)?.try_into().map_err(|_| Truncated)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        self.array::<1>().map(u8::from_be_bytes)
    }

    /// A uint32.
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_be_bytes)
    }

    /// A uint64.
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string: any bytes.
    pub fn string(&mut self) -> Result<&'a [u8], Truncated> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// A path. The empty one means the current directory.
    pub fn path(&mut self) -> Result<&'a Path, Truncated> {
        let path = self.string()?;
        Ok(Path::new(OsStr::from_bytes(if path.is_empty() {
            b"."
        } else {
            path
        })))
    }
}

/// Answers that have not been written yet.
#[derive(Debug, Default)]
pub struct Answers(Vec<u8>);

impl Answers {
    /// Adds a packet of `kind` that answers request `id`.
    pub fn packet(&mut self, kind: u8, id: u32, fields: impl FnOnce(&mut Self)) {
        let start = self.begin(kind, id);
        fields(self);
        self.end(start);
    }

    /// Begins a packet; [`Answers::end`] or [`Answers::undo`] must follow.
    pub fn begin(&mut self, kind: u8, id: u32) -> usize {
        let start = self.0.len();
        self.u32(0);
        self.u8(kind);
        self.u32(id);
        start
    }

    /// Ends the packet begun at `start`.
    pub fn end(&mut self, start: usize) {
        let length = self.0.len().saturating_sub(start + 4);
        self.fill(start, u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// Takes back the packet begun at `start`.
    pub fn undo(&mut self, start: usize) {
        self.0.truncate(start);
    }

    /// Writes a number over the one at `position`.
    pub fn fill(&mut self, position: usize, value: u32) {
        if let Some(place) = self.0.get_mut(position..position + 4) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// Adds a byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Adds a uint32.
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// Adds a uint64.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// Adds a string.
    pub fn string(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value);
    }

    /// Adds a string of up to `length` bytes that `read` fills; gives what `read` gives.
    pub fn string_from<E>(
        &mut self,
        length: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let start = self.0.len();
        self.u32(0);
        self.0.resize(start + 4 + length, 0);
        let result = read(self.0.get_mut(start + 4..).unwrap_or_default());
        let filled = result.as_ref().map_or(0, |filled| (*filled).min(length));
        self.0.truncate(start + 4 + filled);
        self.fill(start, u32::try_from(filled).unwrap_or(u32::MAX));
        result
    }

    /// The bytes so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Forgets the bytes, which have been written.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The bytes so far, to be sent.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(id: u32, a: u8, b: u32, c: u64, text: Vec<u8>) {
            let mut answers = Answers::default();
            answers.packet(kind::STATUS, id, |answers| {
                answers.u8(a);
                answers.u32(b);
                answers.u64(c);
                answers.string(&text);
            });
            let mut fields = Fields(answers.bytes());
            prop_assert_eq!(fields.u32().unwrap() as usize, answers.bytes().len() - 4);
            prop_assert_eq!(fields.u8().unwrap(), kind::STATUS);
            prop_assert_eq!(fields.u32().unwrap(), id);
            prop_assert_eq!(fields.u8().unwrap(), a);
            prop_assert_eq!(fields.u32().unwrap(), b);
            prop_assert_eq!(fields.u64().unwrap(), c);
            prop_assert_eq!(fields.string().unwrap(), &text[..]);
            prop_assert_eq!(fields.u8(), Err(Truncated));
        }
    }

    #[test]
    fn a_short_read_makes_a_short_string() {
        let mut answers = Answers::default();
        let read = answers.string_from(8, |place| {
            place[..2].copy_from_slice(b"ab");
            Ok::<_, ()>(2)
        });
        assert_eq!(read, Ok(2));
        assert_eq!(answers.bytes(), b"\0\0\0\x02ab");
    }
}
