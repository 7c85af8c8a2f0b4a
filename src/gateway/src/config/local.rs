//! A project on this machine, packed to be sent.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tar::{Builder, EntryType};
use vendetta_proto::build::plain;
use vendetta_proto::spec::Build;

use super::archive::header;
use super::ignore::{self, Ignore};

/// A project on this machine.
#[derive(Debug)]
pub struct LocalProject<'a> {
    /// Its directory.
    pub root: &'a Path,
    /// The directory of the archive that everything is put in; empty: none.
    pub top: &'a str,
    /// Its config: where that is in a project, and what is in it.
    pub config: (&'a str, &'a [u8]),
    /// What else is needed.
    pub build: Option<&'a Build>,
}

impl LocalProject<'_> {
    /// Writes an archive of the config, and of all that its build may use.
    ///
    /// # Errors
    /// When a file cannot be read or the archive cannot be written.
    pub fn pack(&self, into: impl Write) -> io::Result<()> {
        let mut builder = Builder::new(into);
        let (path, content) = self.config;
        let mut header = header(EntryType::Regular, 0o644, 0);
        header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
        builder.append_data(&mut header, self.at(path), content)?;
        if let Some(build) = self.build {
            self.pack_context(build, &mut builder)?;
        }
        builder.into_inner()?.flush()
    }

    fn pack_context<W: Write>(&self, build: &Build, builder: &mut Builder<W>) -> io::Result<()> {
        let dir = build.context_dir();
        let context = self.root.join(&dir);
        let ignore = match fs::read_to_string(context.join(ignore::FILE)) {
            Ok(text) => Ignore::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ignore::default(),
            Err(error) => return Err(named(error, &context.join(ignore::FILE))),
        };
        let always = [
            build.dockerfile_path(),
            plain(&format!("{dir}/{}", ignore::FILE)),
        ];
        for path in &always {
            let file = self.root.join(path);
            if file.is_file() {
                append(builder, &file, &self.at(path))?;
            }
        }
        let mut left = vec![String::new()];
        while let Some(inner) = left.pop() {
            for name in names(&context.join(&inner))? {
                let inner = plain(&format!("{inner}/{name}"));
                let path = plain(&format!("{dir}/{inner}"));
                let (file, ignored) = (context.join(&inner), ignore.is_ignored(&inner));
                let kind = fs::symlink_metadata(&file)
                    .map_err(|error| named(error, &file))?
                    .file_type();
                if kind.is_dir() && (!ignored || ignore.has_exceptions()) {
                    left.push(inner);
                }
                let sent = kind.is_dir() || kind.is_file() || kind.is_symlink();
                if sent && !ignored && !always.contains(&path) && path != self.config.0 {
                    append(builder, &file, &self.at(&path))?;
                }
            }
        }
        Ok(())
    }

    fn at(&self, path: &str) -> String {
        plain(&format!("{}/{path}", self.top))
    }
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| named(error, dir))? {
        let name = entry?.file_name().into_string();
        names.push(name.map_err(|name| io::Error::other(format!("{name:?} is not UTF-8")))?);
    }
    names.sort();
    Ok(names)
}

fn named(error: io::Error, file: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

fn append<W: Write>(builder: &mut Builder<W>, file: &Path, path: &str) -> io::Result<()> {
    let metadata = fs::symlink_metadata(file)?;
    let mtime = u64::try_from(metadata.mtime()).unwrap_or(0);
    let header = |kind| header(kind, metadata.mode(), mtime);
    if metadata.is_dir() {
        builder.append_data(&mut header(EntryType::Directory), path, io::empty())
    } else if metadata.is_symlink() {
        builder.append_link(&mut header(EntryType::Symlink), path, fs::read_link(file)?)
    } else {
        let mut header = header(EntryType::Regular);
        header.set_size(metadata.len());
        // A file that grows meanwhile is cut off where its header says.
        let content = File::open(file).map_err(|error| named(error, file))?;
        builder.append_data(&mut header, path, content.take(metadata.len()))
    }
}
