//! File attributes: on the wire, from the file system, and applied to it.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{
    FileExt as _, MetadataExt as _, PermissionsExt as _, chown, fchown, lchown,
};
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, futimens, utimensat};
use nix::sys::time::TimeSpec;

use super::status::Failure;
use super::wire::{Answers, Fields, Truncated};

const SIZE: u32 = 1;
const UID_GID: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 0x8000_0000;

/// The bits of a mode that chmod(2) takes.
const MODE_BITS: u32 = 0o7777;

/// Attributes; those that are none are not sent or not changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Length in bytes.
    pub size: Option<u64>,
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Type and permissions, as st_mode.
    pub mode: Option<u32>,
    /// Access and modification times, in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

fn seconds(time: i64) -> u32 {
    u32::try_from(time).unwrap_or(if time < 0 { 0 } else { u32::MAX })
}

impl From<&Metadata> for Attributes {
    fn from(metadata: &Metadata) -> Self {
        Self {
            size: Some(metadata.size()),
            owner: Some((metadata.uid(), metadata.gid())),
            mode: Some(metadata.mode()),
            times: Some((seconds(metadata.atime()), seconds(metadata.mtime()))),
        }
    }
}

impl Attributes {
    /// Reads attributes from a packet.
    pub fn read(fields: &mut Fields<'_>) -> Result<Self, Truncated> {
        let flags = fields.u32()?;
        let mut found = Self::default();
        if flags & SIZE != 0 {
            found.size = Some(fields.u64()?);
        }
        if flags & UID_GID != 0 {
            found.owner = Some((fields.u32()?, fields.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            found.mode = Some(fields.u32()?);
        }
        if flags & TIMES != 0 {
            found.times = Some((fields.u32()?, fields.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..fields.u32()? {
                fields.string()?;
                fields.string()?;
            }
        }
        Ok(found)
    }

    /// Adds them to an answer.
    pub fn write(&self, answers: &mut Answers) {
        let flag = |present: bool, flag| if present { flag } else { 0 };
        answers.u32(
            flag(self.size.is_some(), SIZE)
                | flag(self.owner.is_some(), UID_GID)
                | flag(self.mode.is_some(), PERMISSIONS)
                | flag(self.times.is_some(), TIMES),
        );
        if let Some(size) = self.size {
            answers.u64(size);
        }
        if let Some((user, group)) = self.owner {
            answers.u32(user);
            answers.u32(group);
        }
        if let Some(mode) = self.mode {
            answers.u32(mode);
        }
        if let Some((access, modification)) = self.times {
            answers.u32(access);
            answers.u32(modification);
        }
    }

    /// Permissions for a new file or directory.
    #[must_use]
    pub fn new_mode(&self, default: u32) -> u32 {
        self.mode.map_or(default, |mode| mode & MODE_BITS)
    }

    /// Applies them to what `path` leads to. All are tried; the first failure is told.
    pub fn apply(&self, path: &Path) -> Result<(), Failure> {
        first_failure([
            self.size.map(|size| {
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(path)?
                    .set_len(size)
            }),
            self.mode.map(|mode| {
                std::fs::set_permissions(path, Permissions::from_mode(mode & MODE_BITS))
            }),
            self.times
                .map(|times| set_times(path, times, UtimensatFlags::FollowSymlink)),
            self.owner
                .map(|(user, group)| chown(path, Some(user), Some(group))),
        ])
    }

    /// Applies them to `path` itself, even if it is a symbolic link (lsetstat@openssh.com).
    pub fn apply_to_link(&self, path: &Path) -> Result<(), Failure> {
        if self.size.is_some() {
            return Err(Failure::bad_message("a link has no size to set"));
        }
        first_failure([
            self.mode.map(|mode| {
                let mode = Mode::from_bits_truncate(mode & MODE_BITS);
                fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink)
                    .map_err(io::Error::from)
            }),
            self.times
                .map(|times| set_times(path, times, UtimensatFlags::NoFollowSymlink)),
            self.owner
                .map(|(user, group)| lchown(path, Some(user), Some(group))),
            None,
        ])
    }

    /// Applies them to an open file.
    pub fn apply_to_file(&self, file: &File) -> Result<(), Failure> {
        first_failure([
            self.size.map(|size| file.set_len(size)),
            self.mode
                .map(|mode| file.set_permissions(Permissions::from_mode(mode & MODE_BITS))),
            self.times.map(|(access, modification)| {
                futimens(file, &time_spec(access), &time_spec(modification))
                    .map_err(io::Error::from)
            }),
            self.owner
                .map(|(user, group)| fchown(file, Some(user), Some(group))),
        ])
    }
}

fn first_failure(results: [Option<io::Result<()>>; 4]) -> Result<(), Failure> {
    results
        .into_iter()
        .flatten()
        .find_map(Result::err)
        .map_or(Ok(()), |error| Err(error.into()))
}

fn time_spec(seconds: u32) -> TimeSpec {
    TimeSpec::new(i64::from(seconds), 0)
}

fn set_times(
    path: &Path,
    (access, modification): (u32, u32),
    flags: UtimensatFlags,
) -> io::Result<()> {
    utimensat(
        AT_FDCWD,
        path,
        &time_spec(access),
        &time_spec(modification),
        flags,
    )
    .map_err(io::Error::from)
}

/// Reads at `offset` until `buffer` is full or the file ends.
pub fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if filled > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn attributes_survive_the_wire(
            size: Option<u64>, owner: Option<(u32, u32)>, mode: Option<u32>, times: Option<(u32, u32)>,
        ) {
            let attributes = Attributes { size, owner, mode, times };
            let mut answers = Answers::default();
            attributes.write(&mut answers);
            let mut fields = Fields(answers.bytes());
            prop_assert_eq!(Attributes::read(&mut fields), Ok(attributes));
            prop_assert!(fields.0.is_empty());
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Attributes::read(&mut Fields(&bytes));
        }
    }
}
