//! Writes the log of one service.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use vendetta_proto::ServiceName;
use vendetta_proto::rpc::Stream;

use super::line::Batch;
use super::wall_clock;

/// Size of a file at which the next is begun, in bytes.
const FILE_SIZE: u64 = 4 << 20;
/// Most files that are kept.
const MOST_FILES: u64 = 8;

/// A place in a log: the number of a file, and an offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub file: u64,
    pub offset: u64,
}

/// The log of one service. All methods but [`Log::end`] block on the disk.
#[derive(Debug)]
pub struct Log {
    service: ServiceName,
    directory: PathBuf,
    limits: (u64, u64),
    writing: Mutex<Writing>,
    end: watch::Sender<Position>,
    activity: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Writing {
    file: Option<File>,
    /// Lines that could not be written since the last that could.
    lost: u64,
}

impl Log {
    pub(super) fn new(
        service: &ServiceName,
        directory: PathBuf,
        activity: watch::Sender<()>,
    ) -> Self {
        Self::limited(service, directory, activity, (FILE_SIZE, MOST_FILES))
    }

    pub(super) fn limited(
        service: &ServiceName,
        directory: PathBuf,
        activity: watch::Sender<()>,
        limits: (u64, u64),
    ) -> Self {
        let file = files(&directory).last().copied().unwrap_or(1);
        let offset = mend(&path(&directory, file)).unwrap_or(0);
        Self {
            service: service.clone(),
            directory,
            limits,
            writing: Mutex::default(),
            end: watch::Sender::new(Position { file, offset }),
            activity,
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the log ends by now: all before it are whole lines.
    pub(super) fn end(&self) -> Position {
        *self.end.borrow()
    }

    /// Writes lines. When the disk refuses them they are lost, and how many
    /// is written once it takes lines again: a full disk is not to stop a service.
    pub fn append(&self, batch: &Batch) {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if writing.lost > 0 {
            let mut notice = Batch::default();
            let text = format!(
                "{} lines before this one could not be written",
                writing.lost
            );
            notice.push(wall_clock(), Stream::Supervisor, text.as_bytes());
            if self.write(&mut writing, &notice.bytes).is_ok() {
                writing.lost = 0;
            }
        }
        if let Err(error) = self.write(&mut writing, &batch.bytes) {
            if writing.lost == 0 {
                let directory = self.directory.display();
                tracing::warn!(service = %self.service, %directory, "cannot write the log: {error}");
            }
            writing.lost += batch.lines;
        }
    }

    /// Writes one line of the supervisor's.
    pub fn note(&self, text: &str) {
        let mut batch = Batch::default();
        batch.push(wall_clock(), Stream::Supervisor, text.as_bytes());
        self.append(&batch);
    }

    fn write(&self, writing: &mut Writing, bytes: &[u8]) -> io::Result<()> {
        let mut end = self.end();
        let (size, count) = self.limits;
        if end.offset > 0 && end.offset + bytes.len() as u64 > size {
            writing.file = None;
            end = Position {
                file: end.file + 1,
                offset: 0,
            };
            for old in files(&self.directory) {
                if old + count <= end.file {
                    let _ = std::fs::remove_file(path(&self.directory, old));
                }
            }
        }
        let file = match &mut writing.file {
            Some(file) => file,
            empty => {
                std::fs::create_dir_all(&self.directory)?;
                let file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path(&self.directory, end.file))?;
                empty.insert(file)
            }
        };
        if let Err(error) = file.write_all(bytes) {
            // Whatever of it was written was not published.
            let _ = file.set_len(end.offset);
            writing.file = None;
            return Err(error);
        }
        end.offset += bytes.len() as u64;
        self.end.send_replace(end);
        self.activity.send_replace(());
        Ok(())
    }
}

/// The file with a number; names sort as numbers do, for `cat *`.
pub(super) fn path(directory: &Path, file: u64) -> PathBuf {
    directory.join(format!("{file:010}.log"))
}

/// The numbers of the files that there are, ascending.
pub(super) fn files(directory: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(".log")?.parse().ok()
        })
        .collect();
    found.sort_unstable();
    found
}

/// Ends a last line that the agent was killed in; gives the file's size.
fn mend(path: &Path) -> io::Result<u64> {
    let mut file = OpenOptions::new().read(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    if size == 0 {
        return Ok(0);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(size - 1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(size);
    }
    file.write_all(b"\n")?;
    Ok(size + 1)
}
