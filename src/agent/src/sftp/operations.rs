//! The requests of version 3.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::attributes::{Attributes, read_full};
use super::handles::{Directory, Open};
use super::longname::long_name;
use super::server::Server;
use super::status::Failure;
use super::wire::{Answers, Fields, MAX_DATA, kind};

type Done = Result<(), Failure>;

const READ: u32 = 1;
const WRITE: u32 = 2;
const APPEND: u32 = 4;
const CREATE: u32 = 8;
const TRUNCATE: u32 = 0x10;
const EXCLUSIVE: u32 = 0x20;

/// What a new file or directory is denied, as sessions have it.
const UMASK: u32 = 0o022;

/// A directory's answer ends when it is this long.
const NAMES_SIZE: usize = 32 * 1024;

pub fn open(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let path = server.path(&mut fields)?;
    let flags = fields.u32()?;
    let attributes = Attributes::read(&mut fields)?;
    let has = |flag| flags & flag != 0;
    let mode = attributes.new_mode(0o666) & !UMASK;
    let mut options = fs::OpenOptions::new();
    options
        .read(has(READ))
        .write(has(WRITE) && !has(APPEND))
        .append(has(APPEND))
        .mode(mode);
    // Given to open(2) as they are: the standard library refuses combinations
    // (such as creating a file for reading) that clients do send. A pipe or a
    // device must not hold the session up.
    let flag = |flag, bit| if has(flag) { bit } else { 0 };
    let flags = flag(TRUNCATE, libc::O_TRUNC) | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = if has(CREATE) {
        let new = options.custom_flags(flags | libc::O_CREAT | libc::O_EXCL);
        match new.open(&path) {
            Ok(file) => {
                // The process's own umask may have taken more away.
                file.set_permissions(fs::Permissions::from_mode(mode))?;
                file
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && !has(EXCLUSIVE) => {
                options.custom_flags(flags | libc::O_CREAT).open(&path)?
            }
            Err(error) => return Err(error.into()),
        }
    } else {
        options
            .custom_flags(flags | flag(EXCLUSIVE, libc::O_EXCL))
            .open(&path)?
    };
    let handle = server.handles.add(Open::File(file))?;
    server
        .answers
        .packet(kind::HANDLE, id, |answers| answers.string(&handle));
    Ok(())
}

pub fn close(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    server.handles.close(fields.string()?)?;
    server.ok(id);
    Ok(())
}

pub fn read(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let file = server.handles.file(fields.string()?)?;
    let offset = fields.u64()?;
    let length = (fields.u32()? as usize).min(MAX_DATA);
    let start = server.answers.begin(kind::DATA, id);
    let result = server
        .answers
        .string_from(length, |buffer| read_full(file, buffer, offset));
    match result {
        Ok(read) if read > 0 || length == 0 => {
            server.answers.end(start);
            Ok(())
        }
        Ok(_) => {
            server.answers.undo(start);
            Err(Failure::end_of_file())
        }
        Err(error) => {
            server.answers.undo(start);
            Err(error.into())
        }
    }
}

pub fn write(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let file = server.handles.file(fields.string()?)?;
    let offset = fields.u64()?;
    file.write_all_at(fields.string()?, offset)?;
    server.ok(id);
    Ok(())
}

fn attributes(server: &mut Server, id: u32, metadata: &Metadata) {
    server.answers.packet(kind::ATTRS, id, |answers| {
        Attributes::from(metadata).write(answers)
    });
}

pub fn stat(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    attributes(server, id, &fs::metadata(server.path(&mut fields)?)?);
    Ok(())
}

pub fn lstat(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    attributes(
        server,
        id,
        &fs::symlink_metadata(server.path(&mut fields)?)?,
    );
    Ok(())
}

pub fn fstat(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let metadata = match server.handles.get(fields.string()?)? {
        Open::File(file) => file.metadata()?,
        Open::Directory(directory) => fs::metadata(&directory.path)?,
    };
    attributes(server, id, &metadata);
    Ok(())
}

pub fn setstat(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let path = server.path(&mut fields)?;
    Attributes::read(&mut fields)?.apply(&path)?;
    server.ok(id);
    Ok(())
}

pub fn fsetstat(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let handle = fields.string()?;
    let wanted = Attributes::read(&mut fields)?;
    match server.handles.get(handle)? {
        Open::File(file) => wanted.apply_to_file(file)?,
        Open::Directory(directory) => wanted.apply(&directory.path)?,
    }
    server.ok(id);
    Ok(())
}

pub fn opendir(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let path = server.path(&mut fields)?;
    let entries = fs::read_dir(&path)?;
    let directory = Directory {
        path,
        entries,
        dots: [".", ".."].iter(),
    };
    let handle = server.handles.add(Open::Directory(directory))?;
    server
        .answers
        .packet(kind::HANDLE, id, |answers| answers.string(&handle));
    Ok(())
}

pub fn readdir(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let Server {
        handles,
        users,
        answers,
        ..
    } = server;
    let Open::Directory(directory) = handles.get(fields.string()?)? else {
        return Err(Errno::EBADF.into());
    };
    let start = answers.begin(kind::NAME, id);
    let place = answers.bytes().len();
    answers.u32(0);
    let mut count = 0;
    while answers.bytes().len() - start < NAMES_SIZE {
        let (name, metadata) = if let Some(dot) = directory.dots.next() {
            (
                (*dot).into(),
                fs::symlink_metadata(directory.path.join(dot)),
            )
        } else {
            match directory.entries.next() {
                Some(Ok(entry)) => (entry.file_name(), entry.metadata()),
                Some(Err(_)) => continue,
                None => break,
            }
        };
        // A file that is gone by now.
        let Ok(metadata) = metadata else { continue };
        let (owner, group) = users.owner_names(&metadata);
        answers.string(name.as_bytes());
        answers.string(&long_name(name.as_bytes(), &metadata, &owner, &group));
        Attributes::from(&metadata).write(answers);
        count += 1;
    }
    if count == 0 {
        answers.undo(start);
        return Err(Failure::end_of_file());
    }
    answers.fill(place, count);
    answers.end(start);
    Ok(())
}

pub fn remove(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    fs::remove_file(server.path(&mut fields)?)?;
    server.ok(id);
    Ok(())
}

pub fn mkdir(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let path = server.path(&mut fields)?;
    let mode = Attributes::read(&mut fields)?.new_mode(0o777) & !UMASK;
    fs::DirBuilder::new().mode(mode).create(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    server.ok(id);
    Ok(())
}

pub fn rmdir(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    fs::remove_dir(server.path(&mut fields)?)?;
    server.ok(id);
    Ok(())
}

/// Answers with one name, as realpath and its like do.
pub fn name(answers: &mut Answers, id: u32, path: &Path) {
    answers.packet(kind::NAME, id, |answers| {
        answers.u32(1);
        answers.string(path.as_os_str().as_bytes());
        answers.string(path.as_os_str().as_bytes());
        Attributes::default().write(answers);
    });
}

/// The absolute path without links; its last component need not exist.
pub fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(file)) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            Ok(fs::canonicalize(parent)?.join(file))
        }
        (result, _, _) => Ok(result?),
    }
}

pub fn realpath(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let path = resolve(&server.path(&mut fields)?)?;
    name(&mut server.answers, id, &path);
    Ok(())
}

/// Renames, and never over something that exists: for that there is
/// posix-rename@openssh.com.
pub fn rename(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let (from, to) = (server.path(&mut fields)?, server.path(&mut fields)?);
    match renameat2(
        AT_FDCWD,
        &from,
        AT_FDCWD,
        &to,
        RenameFlags::RENAME_NOREPLACE,
    ) {
        // The file system (or the kernel) has no such rename.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            if fs::symlink_metadata(&to).is_ok() {
                return Err(Errno::EEXIST.into());
            }
            fs::rename(&from, &to)?;
        }
        result => result?,
    }
    server.ok(id);
    Ok(())
}

pub fn readlink(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let target = fs::read_link(server.path(&mut fields)?)?;
    name(&mut server.answers, id, &target);
    Ok(())
}

/// Makes a link. The target comes first, which is not the draft's order but
/// everybody's (OpenSSH PROTOCOL section 4.1).
pub fn symlink(server: &mut Server, id: u32, mut fields: Fields<'_>) -> Done {
    let (target, link) = (fields.path()?, server.path(&mut fields)?);
    std::os::unix::fs::symlink(target, link)?;
    server.ok(id);
    Ok(())
}
