//! Packets in, packets out.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::extensions;
use super::handles::Handles;
use super::operations;
use super::status::{Failure, OK};
use super::wire::{Answers, Fields, MAX_PACKET, Truncated, kind};
use crate::users::Users;

/// The protocol's version.
const VERSION: u32 = 3;
/// How much to read at once.
const READ_SIZE: usize = 256 * 1024;
/// Answers are written when this many bytes have gathered, or when nothing
/// more is there to be answered.
const WRITE_SIZE: usize = 256 * 1024;

/// Why the server ended before its client did.
#[derive(Debug, thiserror::Error)]
pub enum SftpError {
    /// Reading or writing failed.
    #[error("cannot {operation}: {source}")]
    Transport {
        /// "read" or "write".
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// What came is not SFTP.
    #[error("the client does not speak SFTP: {0}")]
    Protocol(&'static str),
}

/// State of one client's session.
#[derive(Debug)]
pub struct Server {
    /// What relative paths begin at; empty: the process's own directory.
    pub directory: PathBuf,
    /// The user's home.
    pub home: Option<PathBuf>,
    /// What it has open.
    pub handles: Handles,
    /// Names of owners.
    pub users: Users,
    /// Its answers.
    pub answers: Answers,
}

/// Why no further packet was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// No other packet is all there.
    Empty,
    /// The answers are as many as make one write.
    Full,
    /// The next packet is not one of those wanted.
    Unwanted,
}

/// Serves a client until it closes its end.
///
/// # Errors
/// When the transport fails, or the client sends what is no packet.
pub fn serve(mut input: impl Read, mut output: impl Write) -> Result<(), SftpError> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let mut server = Server::new(PathBuf::new(), home);
    // Requests that have arrived are between `start` and `end`.
    let mut buffer = vec![0; MAX_PACKET + READ_SIZE];
    let (mut start, mut end) = (0, 0);
    loop {
        loop {
            let arrived = buffer.get(start..end).unwrap_or_default();
            let (used, stopped) = server.work(arrived, |_| true)?;
            start += used;
            flush(&mut server.answers, &mut output)?;
            if stopped == Stopped::Empty {
                break;
            }
        }
        if start == end || buffer.len() - end < READ_SIZE {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
        let read = read_some(&mut input, buffer.get_mut(end..).unwrap_or_default())?;
        end += read;
        if read == 0 {
            return Ok(());
        }
    }
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, SftpError> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => {
                return result.map_err(|source| SftpError::Transport {
                    operation: "read",
                    source,
                });
            }
        }
    }
}

fn flush(answers: &mut Answers, output: &mut impl Write) -> Result<(), SftpError> {
    if !answers.bytes().is_empty() {
        let written = output
            .write_all(answers.bytes())
            .and_then(|()| output.flush());
        written.map_err(|source| SftpError::Transport {
            operation: "write",
            source,
        })?;
        answers.clear();
    }
    Ok(())
}

/// A packet without its length, and what follows it.
pub(super) type Split<'a> = (&'a [u8], &'a [u8]);

/// The first packet of `bytes`, without its length, and what follows it; none
/// when it is not all there.
pub(super) fn split_packet(bytes: &[u8]) -> Result<Option<Split<'_>>, SftpError> {
    let mut fields = Fields(bytes);
    let Ok(length) = fields.u32() else {
        return Ok(None);
    };
    let length = length as usize;
    if length > MAX_PACKET {
        return Err(SftpError::Protocol("a packet is too long"));
    }
    Ok(fields.0.split_at_checked(length))
}

impl Server {
    /// A session that begins in `directory`.
    #[must_use]
    pub fn new(directory: PathBuf, home: Option<PathBuf>) -> Self {
        Self {
            directory,
            home,
            handles: Handles::default(),
            users: Users::system(),
            answers: Answers::default(),
        }
    }

    /// Answers packets of `arrived` as long as they are `wanted` and the
    /// answers make one write; returns how many bytes it has used, and why it stopped.
    pub(super) fn work(
        &mut self,
        arrived: &[u8],
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<(usize, Stopped), SftpError> {
        let mut rest = arrived;
        let stopped = loop {
            if self.answers.bytes().len() >= WRITE_SIZE {
                break Stopped::Full;
            }
            let Some((packet, after)) = split_packet(rest)? else {
                break Stopped::Empty;
            };
            if !wanted(packet) {
                break Stopped::Unwanted;
            }
            self.handle(packet)?;
            rest = after;
        };
        Ok((arrived.len() - rest.len(), stopped))
    }

    /// The path that is the next field.
    pub(super) fn path(&self, fields: &mut Fields<'_>) -> Result<PathBuf, Truncated> {
        Ok(self.directory.join(fields.path()?))
    }

    /// Answers one packet.
    fn handle(&mut self, packet: &[u8]) -> Result<(), SftpError> {
        let mut fields = Fields(packet);
        let head = |_: Truncated| SftpError::Protocol("a packet has no type or number");
        let kind = fields.u8().map_err(head)?;
        let id = fields.u32().map_err(head)?;
        if kind == kind::INIT {
            // The number is the client's version, which may only be higher than ours.
            extensions::announce(&mut self.answers, VERSION);
            return Ok(());
        }
        if let Err(failure) = self.dispatch(kind, id, fields) {
            self.status(id, failure.code, &failure.text);
        }
        Ok(())
    }

    fn dispatch(&mut self, kind: u8, id: u32, fields: Fields<'_>) -> Result<(), Failure> {
        match kind {
            kind::OPEN => operations::open(self, id, fields),
            kind::CLOSE => operations::close(self, id, fields),
            kind::READ => operations::read(self, id, fields),
            kind::WRITE => operations::write(self, id, fields),
            kind::LSTAT => operations::lstat(self, id, fields),
            kind::FSTAT => operations::fstat(self, id, fields),
            kind::SETSTAT => operations::setstat(self, id, fields),
            kind::FSETSTAT => operations::fsetstat(self, id, fields),
            kind::OPENDIR => operations::opendir(self, id, fields),
            kind::READDIR => operations::readdir(self, id, fields),
            kind::REMOVE => operations::remove(self, id, fields),
            kind::MKDIR => operations::mkdir(self, id, fields),
            kind::RMDIR => operations::rmdir(self, id, fields),
            kind::REALPATH => operations::realpath(self, id, fields),
            kind::STAT => operations::stat(self, id, fields),
            kind::RENAME => operations::rename(self, id, fields),
            kind::READLINK => operations::readlink(self, id, fields),
            kind::SYMLINK => operations::symlink(self, id, fields),
            kind::EXTENDED => extensions::dispatch(self, id, fields),
            _ => Err(Failure::unsupported()),
        }
    }

    /// Answers with a status.
    pub fn status(&mut self, id: u32, code: u32, text: &str) {
        self.answers.packet(kind::STATUS, id, |answers| {
            answers.u32(code);
            answers.string(text.as_bytes());
            answers.string(b"");
        });
    }

    /// Answers that all is well.
    pub fn ok(&mut self, id: u32) {
        self.status(id, OK, "Success");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(kind: u8, id: u32, fields: &[u8]) -> Vec<u8> {
        let mut answers = Answers::default();
        let start = answers.begin(kind, id);
        answers.end(start);
        let mut bytes = answers.bytes().to_vec();
        bytes.extend_from_slice(fields);
        let length = u32::try_from(bytes.len() - 4).unwrap();
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    #[test]
    fn requests_that_arrive_in_pieces_are_put_together() {
        struct Bytewise(std::vec::IntoIter<u8>);
        impl Read for Bytewise {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                match (buffer.first_mut(), self.0.next()) {
                    (Some(place), Some(byte)) => {
                        *place = byte;
                        Ok(1)
                    }
                    _ => Ok(0),
                }
            }
        }
        let request = [
            packet(kind::INIT, 3, b""),
            packet(kind::STAT, 7, b"\0\0\0\x01/"),
        ]
        .concat();
        let mut output = Vec::new();
        serve(Bytewise(request.into_iter()), &mut output).unwrap();
        let (version, rest) = split_packet(&output).unwrap().unwrap();
        assert_eq!(version[..5], [kind::VERSION, 0, 0, 0, 3]);
        let (attributes, rest) = split_packet(rest).unwrap().unwrap();
        assert_eq!(attributes[..5], [kind::ATTRS, 0, 0, 0, 7]);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_packet_that_is_too_long_ends_the_session() {
        let error = serve(&[0xff; 16][..], Vec::new()).unwrap_err();
        assert!(matches!(error, SftpError::Protocol(_)));
    }

    proptest! {
        /// Requests that change nothing, with any fields: each gets one answer, and nothing panics.
        #[test]
        fn every_request_is_answered(
            kinds in proptest::collection::vec(prop_oneof![
                Just(kind::CLOSE), Just(kind::READ), Just(kind::WRITE), Just(kind::FSTAT),
                Just(kind::READDIR), Just(kind::LSTAT), Just(kind::STAT), Just(kind::READLINK),
                Just(kind::REALPATH), Just(99), Just(255),
            ], 1..8),
            fields in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let request: Vec<u8> =
                kinds.iter().zip(0..).flat_map(|(kind, id)| packet(*kind, id, &fields)).collect();
            let mut output = Vec::new();
            serve(&request[..], &mut output).unwrap();
            let mut rest = &output[..];
            for id in 0..u32::try_from(kinds.len()).unwrap() {
                let (answer, after) = split_packet(rest).unwrap().unwrap();
                prop_assert_eq!(&answer[1..5], &id.to_be_bytes()[..]);
                rest = after;
            }
            prop_assert!(rest.is_empty());
        }
    }
}
