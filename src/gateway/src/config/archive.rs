//! Archives (tar) of projects that somebody sent, and what an engine is given of them.
//!
//! Nothing is ever unpacked into a file system here; entries go from one
//! archive to another, and those whose path leads elsewhere are refused.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Builder, EntryType, Header};
use vendetta_proto::build::{below, plain};
use vendetta_proto::spec::Build;

use super::ignore::{self, Ignore};
use super::invalid::Invalid;

/// What messages call an archive.
const STDIN: &str = "the archive on stdin";

/// Where the first header says that it is one (POSIX.1, pax Interchange Format, ustar).
const MAGIC: std::ops::Range<usize> = 257..262;

/// What a file begins with that gzip made (RFC 1952 section 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Whether bytes are an archive, compressed or not.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(&GZIP) || bytes.get(MAGIC) == Some(b"ustar")
}

/// The archive itself, of at most `limit` bytes.
pub(super) fn uncompressed(bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>, Invalid> {
    if !bytes.starts_with(&GZIP) {
        return Ok(bytes);
    }
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let mut unpacked = Vec::new();
    let mut decoder = MultiGzDecoder::new(bytes.as_slice()).take(limit.saturating_add(1));
    decoder
        .read_to_end(&mut unpacked)
        .map_err(|error| broken(&error))?;
    if u64::try_from(unpacked.len()).unwrap_or(u64::MAX) > limit {
        return Err(Invalid::whole(
            STDIN,
            format!("is larger than {} MiB when it is unpacked", limit >> 20),
            "leave out what the build does not need, in .dockerignore; the limit is limits.upload_bytes of the gateway's configuration",
        ));
    }
    Ok(unpacked)
}

fn broken(error: &io::Error) -> Invalid {
    Invalid::whole(
        STDIN,
        format!("cannot be read: {error}"),
        "make it with: tar c . | ssh vendetta …",
    )
}

/// An archive that somebody sent, and where the project begins in it.
#[derive(Debug)]
pub(super) struct Sent<'a> {
    bytes: &'a [u8],
    /// The one directory that everything is in; empty: none.
    pub(super) top: String,
}

impl<'a> Sent<'a> {
    /// Looks through it.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, Invalid> {
        let mut sent = Self {
            bytes,
            top: String::new(),
        };
        let mut top: Option<String> = None;
        let mut one = true;
        sent.each(|path, entry| {
            let first = path.split('/').next().unwrap_or_default();
            let inside = first.len() < path.len() || entry.header().entry_type().is_dir();
            one &= inside && *top.get_or_insert_with(|| first.to_owned()) == first;
            Ok(())
        })?;
        sent.top = top.filter(|_| one).unwrap_or_default();
        Ok(sent)
    }

    /// Hands over each entry that is not the root, with its plain path.
    fn each(
        &self,
        mut take: impl FnMut(&str, &mut tar::Entry<'_, &[u8]>) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        let mut archive = Archive::new(self.bytes);
        for entry in archive.entries().map_err(|error| broken(&error))? {
            let mut entry = entry.map_err(|error| broken(&error))?;
            let path = safe_path(&entry)?;
            if !path.is_empty() {
                take(&path, &mut entry)?;
            }
        }
        Ok(())
    }

    /// The content of the first of `paths` that is there below the directory
    /// `top`; at most one byte more than `limit` of it.
    pub(super) fn first_of(
        &self,
        top: &str,
        paths: &[&'static str],
        limit: u64,
    ) -> Result<Option<(&'static str, Vec<u8>)>, Invalid> {
        let mut found: Option<(usize, Vec<u8>)> = None;
        self.each(|path, entry| {
            let inner = below(path, top);
            let at = paths.iter().position(|wanted| inner == Some(*wanted));
            if let Some(at) = at.filter(|_| entry.header().entry_type().is_file())
                && found.as_ref().is_none_or(|(before, _)| at <= *before)
            {
                let mut content = Vec::new();
                let mut limited = entry.take(limit.saturating_add(1));
                limited
                    .read_to_end(&mut content)
                    .map_err(|error| broken(&error))?;
                found = Some((at, content));
            }
            Ok(())
        })?;
        Ok(found.and_then(|(at, content)| Some((*paths.get(at)?, content))))
    }

    /// What the engine needs to build an image: the context, without what
    /// `.dockerignore` names, and the Dockerfile in it. `top` is the directory
    /// that is the project's, `command` what it was sent to.
    pub(super) fn context(
        &self,
        top: &str,
        build: &Build,
        command: &str,
    ) -> Result<Vec<u8>, Invalid> {
        let (dir, dockerfile) = (build.context_dir(), build.dockerfile_path());
        let project = |path: &str| below(path, top).map(str::to_owned);
        let mut ignore = Ignore::default();
        let mut has_dockerfile = false;
        self.each(|path, entry| {
            let Some(path) = project(path) else {
                return Ok(());
            };
            has_dockerfile |= path == dockerfile;
            if below(&path, &dir) == Some(ignore::FILE) {
                let mut text = String::new();
                entry
                    .take(ignore::MAX_SIZE)
                    .read_to_string(&mut text)
                    .map_err(|error| broken(&error))?;
                ignore = Ignore::parse(&text);
            }
            Ok(())
        })?;
        if !has_dockerfile {
            return Err(Invalid::whole(
                STDIN,
                format!("has no {dockerfile}, from which the image is to be built"),
                &format!("send the whole project: tar c . | ssh vendetta {command} --config -"),
            ));
        }
        let mut builder = Builder::new(Vec::new());
        self.each(|path, entry| {
            let Some(path) = project(path) else {
                return Ok(());
            };
            let inside = below(&path, &dir).filter(|inner| !inner.is_empty());
            let needed = |inner: &str| {
                path == dockerfile || inner == ignore::FILE || !ignore.is_ignored(inner)
            };
            let target = match inside {
                Some(inner) if needed(inner) => inner.to_owned(),
                _ if path == dockerfile => build.dockerfile_in_context(),
                _ => return Ok(()),
            };
            let relink = |link: &str| {
                let link = below(link, top)?;
                below(link, &dir).map(str::to_owned)
            };
            copy(&mut builder, entry, &target, relink)
        })?;
        builder.into_inner().map_err(|error| broken(&error))
    }
}

/// The path of an entry without '.' and needless slashes. One that leads out
/// of the archive, or is not text, is refused.
fn safe_path(entry: &tar::Entry<'_, &[u8]>) -> Result<String, Invalid> {
    let bytes = entry.path_bytes();
    let refuse = |problem: &str| {
        let shown = String::from_utf8_lossy(&bytes);
        Err(Invalid::whole(
            STDIN,
            format!("has the path {shown:?}, which {problem}"),
            "make it in the project's directory with: tar c .",
        ))
    };
    let Ok(path) = std::str::from_utf8(&bytes) else {
        return refuse("is not UTF-8");
    };
    if path.starts_with('/') {
        return refuse("is absolute");
    }
    if path.split('/').any(|part| part == "..") {
        return refuse("leads out of it");
    }
    if path.contains('\0') {
        return refuse("has a NUL character");
    }
    Ok(plain(path))
}

/// Copies an entry to another path; `relink` says where a file is now that it is a hard link to.
fn copy(
    builder: &mut Builder<Vec<u8>>,
    entry: &mut tar::Entry<'_, &[u8]>,
    path: &str,
    relink: impl Fn(&str) -> Option<String>,
) -> Result<(), Invalid> {
    let kind = entry.header().entry_type();
    let mode = entry.header().mode().unwrap_or(0o644);
    let mut header = header(kind, mode, entry.header().mtime().unwrap_or(0));
    let written = match kind {
        EntryType::Directory => builder.append_data(&mut header, path, io::empty()),
        EntryType::Regular | EntryType::Continuous => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(entry.size());
            builder.append_data(&mut header, path, entry)
        }
        EntryType::Symlink => {
            let link = entry.link_name().map_err(|error| broken(&error))?;
            builder.append_link(&mut header, path, link.unwrap_or_default())
        }
        EntryType::Link => {
            let link = entry.link_name_bytes().unwrap_or_default();
            let link = plain(&String::from_utf8_lossy(&link));
            let Some(link) = relink(&link) else {
                return Err(Invalid::whole(
                    STDIN,
                    format!(
                        "has {path:?}, a hard link to {link:?}, which is not in the build's context"
                    ),
                    "make it with: tar c --hard-dereference .",
                ));
            };
            builder.append_link(&mut header, path, link)
        }
        EntryType::XGlobalHeader => Ok(()),
        _ => {
            return Err(Invalid::whole(
                STDIN,
                format!("has {path:?}, which is neither a file nor a directory nor a link"),
                "leave it out: tar c --exclude …",
            ));
        }
    };
    written.map_err(|error| broken(&error))
}

/// The header of an entry that belongs to nobody in particular.
pub(super) fn header(kind: EntryType, mode: u32, mtime: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}
