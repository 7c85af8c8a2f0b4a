//! OpenSSH's extensions (PROTOCOL section 4) and those of the drafts that it serves.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::statvfs::{FsFlags, Statvfs, fstatvfs, statvfs};

use super::attributes::{Attributes, read_full};
use super::handles::MOST_OPEN;
use super::operations::{name, resolve};
use super::server::Server;
use super::status::Failure;
use super::wire::{Answers, Fields, MAX_DATA, MAX_PACKET, kind};

type Done = Result<(), Failure>;

/// Names and versions of the extensions.
const ANNOUNCED: [(&str, &str); 11] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
    ("copy-data", "1"),
    ("home-directory", "1"),
    ("users-groups-by-id@openssh.com", "1"),
];

/// f_flag bits of statvfs@openssh.com.
const READ_ONLY: u64 = 1;
const NO_SET_UID: u64 = 2;

/// Answers SSH_FXP_INIT. VERSION has the version where other answers have a number.
pub fn announce(answers: &mut Answers, version: u32) {
    answers.packet(kind::VERSION, version, |answers| {
        for (name, version) in ANNOUNCED {
            answers.string(name.as_bytes());
            answers.string(version.as_bytes());
        }
    });
}

/// Answers SSH_FXP_EXTENDED.
pub fn dispatch(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    match fields.string()? {
        b"posix-rename@openssh.com" => {
            fs::rename(server.path(&mut fields)?, server.path(&mut fields)?)?
        }
        b"hardlink@openssh.com" => {
            fs::hard_link(server.path(&mut fields)?, server.path(&mut fields)?)?
        }
        b"fsync@openssh.com" => server.handles.file(fields.string()?)?.sync_all()?,
        b"lsetstat@openssh.com" => {
            let path = server.path(&mut fields)?;
            Attributes::read(&mut fields)?.apply_to_link(&path)?;
        }
        b"copy-data" => copy_data(server, fields)?,
        b"statvfs@openssh.com" => {
            let found = statvfs(&server.path(&mut fields)?)?;
            file_system(&mut server.answers, id, &found);
            return Ok(());
        }
        b"fstatvfs@openssh.com" => {
            let found = fstatvfs(server.handles.file(fields.string()?)?)?;
            file_system(&mut server.answers, id, &found);
            return Ok(());
        }
        b"limits@openssh.com" => {
            server.answers.packet(kind::EXTENDED_REPLY, id, |answers| {
                answers.u64(MAX_PACKET as u64);
                answers.u64(MAX_DATA as u64);
                answers.u64(MAX_DATA as u64);
                answers.u64(MOST_OPEN as u64);
            });
            return Ok(());
        }
        b"expand-path@openssh.com" => {
            let path = resolve(&server.directory.join(expand(server, fields.path()?)?))?;
            name(&mut server.answers, id, &path);
            return Ok(());
        }
        b"home-directory" => {
            let user = fields.string()?;
            let home = home_of(server, user)?;
            name(&mut server.answers, id, &home);
            return Ok(());
        }
        b"users-groups-by-id@openssh.com" => {
            let (users, groups) = (fields.string()?, fields.string()?);
            let names = |ids: &[u8], name: &dyn Fn(u32) -> Vec<u8>| {
                let mut names = Answers::default();
                let mut ids = Fields(ids);
                while let Ok(id) = ids.u32() {
                    names.string(&name(id));
                }
                names
            };
            let user_names = names(users, &|uid| {
                server.users.user_name(uid).unwrap_or_default()
            });
            let group_names = names(groups, &|gid| {
                server.users.group_name(gid).unwrap_or_default()
            });
            server.answers.packet(kind::EXTENDED_REPLY, id, |answers| {
                answers.string(user_names.bytes());
                answers.string(group_names.bytes());
            });
            return Ok(());
        }
        _ => return Err(Failure::unsupported()),
    }
    server.ok(id);
    Ok(())
}

fn file_system(answers: &mut Answers, id: u32, found: &Statvfs) {
    let flags = found.flags();
    let flag = |flag, bit| if flags.contains(flag) { bit } else { 0 };
    answers.packet(kind::EXTENDED_REPLY, id, |answers| {
        for number in [
            found.block_size(),
            found.fragment_size(),
            found.blocks(),
            found.blocks_free(),
            found.blocks_available(),
            found.files(),
            found.files_free(),
            found.files_available(),
            found.filesystem_id(),
            flag(FsFlags::ST_RDONLY, READ_ONLY) | flag(FsFlags::ST_NOSUID, NO_SET_UID),
            found.name_max(),
        ] {
            answers.u64(number);
        }
    });
}

fn home_of(server: &Server, user: &[u8]) -> Result<PathBuf, Failure> {
    if user.is_empty() {
        return server.home.clone().ok_or_else(|| Errno::ENOENT.into());
    }
    let user = std::str::from_utf8(user)
        .ok()
        .and_then(|user| server.users.by_name(user));
    user.map(|user| user.home)
        .ok_or_else(|| Errno::ENOENT.into())
}

/// `~`, `~/x`, `~user` and `~user/x`.
fn expand(server: &Server, path: &Path) -> Result<PathBuf, Failure> {
    let Some(rest) = path.as_os_str().as_bytes().strip_prefix(b"~") else {
        return Ok(path.to_owned());
    };
    let end = rest
        .iter()
        .position(|byte| *byte == b'/')
        .unwrap_or(rest.len());
    let (user, below) = rest.split_at_checked(end).unwrap_or((rest, b""));
    let below = below
        .iter()
        .position(|byte| *byte != b'/')
        .and_then(|start| below.get(start..));
    let home = home_of(server, user)?;
    Ok(below.map_or_else(
        || home.clone(),
        |below| home.join(std::ffi::OsStr::from_bytes(below)),
    ))
}

fn copy_data(server: &mut Server, mut fields: Fields<'_>) -> Done {
    let source = server.handles.file(fields.string()?)?;
    let (mut offset, length) = (fields.u64()?, fields.u64()?);
    let target = server.handles.file(fields.string()?)?;
    let mut position = fields.u64()?;
    // A length of 0 means "to the end".
    let mut left = if length == 0 { u64::MAX } else { length };
    while left > 0 {
        let copied = copy_some(source, offset, target, position, left)?;
        if copied == 0 {
            break;
        }
        (offset, position, left) = (offset + copied, position + copied, left - copied);
    }
    Ok(())
}

fn copy_some(
    source: &File,
    offset: u64,
    target: &File,
    position: u64,
    most: u64,
) -> io::Result<u64> {
    let signed = |offset: u64| i64::try_from(offset).map_err(|_| io::Error::from(Errno::EINVAL));
    let (mut from, mut to) = (signed(offset)?, signed(position)?);
    let length = usize::try_from(most.min(1 << 30)).unwrap_or(1 << 30);
    match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
        // Not between these two files: by hand.
        Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            let mut buffer = vec![0; length.min(MAX_DATA)];
            let read = read_full(source, &mut buffer, offset)?;
            target.write_all_at(buffer.get(..read).unwrap_or_default(), position)?;
            Ok(read as u64)
        }
        result => Ok(result? as u64),
    }
}
