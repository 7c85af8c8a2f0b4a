//! Reads the logs of services, merged by time.

use std::fs::File;
use std::io::{self, BufRead as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use vendetta_proto::rpc::{LogLine, Millis, Stream};

use super::line;
use super::writer::{Log, Position, files, path};

/// Size of one read, in bytes.
const BLOCK: usize = 64 * 1024;
/// Text of one batch, in bytes, at which it is full.
const BATCH_TEXT: usize = 128 * 1024;
/// Lines of one batch at which it is full.
const BATCH_LINES: usize = 1024;

/// Reads one or several logs, oldest line first. Everything blocks on the disk.
#[derive(Debug)]
pub struct Reader {
    cursors: Vec<Cursor>,
    /// Lines to leave out, because only so many of the last are wanted.
    skip: u64,
    since: Millis,
}

impl Reader {
    /// A reader of `logs` that gives only the last `tail` lines of what is there, and
    /// nothing older than `since`.
    #[must_use]
    pub fn new(logs: Vec<Arc<Log>>, tail: Option<u32>, since: Option<Millis>) -> Self {
        let since = since.unwrap_or(0);
        let mut lines = 0;
        let cursors = logs
            .into_iter()
            .map(|log| {
                let end = log.end();
                let start = match tail {
                    None => first_since(&log, since),
                    Some(tail) => {
                        let (start, count) = tail_of(&log, end, u64::from(tail));
                        lines += count;
                        start
                    }
                };
                Cursor::new(log, start, end)
            })
            .collect();
        Self {
            cursors,
            skip: tail.map_or(0, |tail| u64::saturating_sub(lines, tail.into())),
            since,
        }
    }

    /// Some of the lines up to the end that was last taken note of; nothing
    /// once all have been given.
    pub fn batch(&mut self) -> Vec<LogLine> {
        let mut lines = Vec::new();
        let mut size = 0;
        while size < BATCH_TEXT && lines.len() < BATCH_LINES {
            for cursor in &mut self.cursors {
                cursor.fill();
            }
            let earliest = self
                .cursors
                .iter_mut()
                .filter(|cursor| cursor.head.is_some())
                .min_by_key(|cursor| cursor.head.as_ref().map(|line| line.time));
            let Some(line) = earliest.and_then(|cursor| cursor.head.take()) else {
                break;
            };
            if self.skip > 0 {
                self.skip -= 1;
            } else if line.time >= self.since {
                size += line.text.len();
                lines.push(line);
            }
        }
        lines
    }

    /// Takes note of where the logs end by now; false when all was read.
    pub fn refresh(&mut self) -> bool {
        for cursor in &mut self.cursors {
            cursor.end = cursor.log.end();
        }
        self.cursors
            .iter()
            .any(|cursor| cursor.head.is_some() || cursor.at < cursor.end)
    }
}

/// A place in one log.
#[derive(Debug)]
struct Cursor {
    log: Arc<Log>,
    /// Where to read next.
    at: Position,
    /// Where to stop.
    end: Position,
    file: Option<File>,
    /// Whole lines that were read, and the beginning of one.
    buffer: Vec<u8>,
    /// How much of that was taken.
    taken: usize,
    /// The next line.
    head: Option<LogLine>,
}

impl Cursor {
    fn new(log: Arc<Log>, at: Position, end: Position) -> Self {
        Self {
            log,
            at,
            end,
            file: None,
            buffer: Vec::new(),
            taken: 0,
            head: None,
        }
    }

    /// Sees to it that the next line is at hand, if there is one.
    fn fill(&mut self) {
        while self.head.is_none() {
            let mut rest = self.buffer.get(self.taken..).unwrap_or_default();
            let mut line = Vec::new();
            let length = rest.read_until(b'\n', &mut line).unwrap_or(0);
            if line.pop() == Some(b'\n') {
                self.taken += length;
                self.head = line::parse(&line).map(|(time, stream, text)| LogLine {
                    service: self.log.service().clone(),
                    time,
                    stream,
                    text,
                });
            } else if self.at >= self.end || !self.read() {
                return;
            }
        }
    }

    /// Reads a block, or goes on to the next file; false when there is no more.
    fn read(&mut self) -> bool {
        let file = match &self.file {
            Some(file) => file,
            None => match File::open(path(self.log.directory(), self.at.file)) {
                Ok(file) => self.file.insert(file),
                Err(error) => return self.skip_to_next(&error),
            },
        };
        let mut wanted = BLOCK;
        if self.at.file == self.end.file {
            let left = self.end.offset.saturating_sub(self.at.offset);
            wanted = wanted.min(usize::try_from(left).unwrap_or(BLOCK));
        }
        let mut block = vec![0; wanted];
        match file.read_at(&mut block, self.at.offset) {
            Ok(0) => self.next_file(self.at.file + 1),
            Ok(read) => {
                self.at.offset += read as u64;
                self.buffer.drain(..self.taken);
                self.taken = 0;
                self.buffer.extend(block.get(..read).unwrap_or_default());
                true
            }
            Err(error) => self.skip_to_next(&error),
        }
    }

    fn next_file(&mut self, file: u64) -> bool {
        self.file = None;
        self.buffer.clear();
        self.taken = 0;
        if file > self.end.file {
            self.at = self.end;
            return false;
        }
        self.at = Position { file, offset: 0 };
        true
    }

    /// The file is not there any more: says so and goes on with the next that is.
    fn skip_to_next(&mut self, error: &io::Error) -> bool {
        let next = files(self.log.directory())
            .into_iter()
            .find(|file| *file > self.at.file);
        let begun = self.at.offset > 0 || error.kind() != io::ErrorKind::NotFound;
        let more = self.next_file(next.unwrap_or(u64::MAX));
        if begun || more {
            self.head = Some(LogLine {
                service: self.log.service().clone(),
                time: super::wall_clock(),
                stream: Stream::Supervisor,
                text: "lines between these are not kept any more".to_owned(),
            });
        }
        more
    }
}

/// The beginning of the first file that was written to at or after `since`.
fn first_since(log: &Log, since: Millis) -> Position {
    let files = files(log.directory());
    let since = UNIX_EPOCH + Duration::from_millis(since);
    let written_since = |file: &&u64| {
        std::fs::metadata(path(log.directory(), **file))
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified >= since)
    };
    match files.iter().find(written_since) {
        Some(file) => Position {
            file: *file,
            offset: 0,
        },
        None => log.end(),
    }
}

/// Where the last `wanted` lines before `end` begin, and how many there are.
fn tail_of(log: &Log, end: Position, wanted: u64) -> (Position, u64) {
    let mut start = end;
    let mut found = 0;
    if wanted == 0 {
        return (start, found);
    }
    for number in files(log.directory()).into_iter().rev() {
        if number > end.file {
            continue;
        }
        let Ok(file) = File::open(path(log.directory(), number)) else {
            break;
        };
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let size = if number == end.file {
            end.offset.min(size)
        } else {
            size
        };
        match tail_of_file(&file, size, wanted - found) {
            Ok((offset, lines)) => {
                start = Position {
                    file: number,
                    offset,
                };
                found += lines;
            }
            Err(_) => break,
        }
        if found >= wanted {
            break;
        }
    }
    (start, found)
}

/// Where the last `wanted` lines of the first `size` bytes begin, and how many there are.
fn tail_of_file(file: &File, size: u64, wanted: u64) -> io::Result<(u64, u64)> {
    let mut block = vec![0; BLOCK];
    let mut ends = 0;
    let mut upto = size;
    while upto > 0 {
        let from = upto.saturating_sub(BLOCK as u64);
        let length = usize::try_from(upto - from).unwrap_or(BLOCK);
        let part = block.get_mut(..length).unwrap_or_default();
        file.read_exact_at(part, from)?;
        for (at, byte) in part.iter().enumerate().rev() {
            if *byte == b'\n' {
                if ends == wanted {
                    return Ok((from + at as u64 + 1, wanted));
                }
                ends += 1;
            }
        }
        upto = from;
    }
    Ok((0, ends))
}

#[cfg(test)]
mod tests {
    use super::super::line::Batch;
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;
    use std::path::Path;
    use tokio::sync::watch;

    fn log(directory: &Path, name: &str, limits: (u64, u64)) -> Arc<Log> {
        let service = name.parse().unwrap();
        let activity = watch::Sender::new(());
        Arc::new(Log::limited(
            &service,
            directory.join(name),
            activity,
            limits,
        ))
    }

    fn write(log: &Log, time: Millis, text: &str) {
        let mut batch = Batch::default();
        batch.push(time, Stream::Stdout, text.as_bytes());
        log.append(&batch);
    }

    fn texts(reader: &mut Reader) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            let batch = reader.batch();
            if batch.is_empty() {
                return found;
            }
            found.extend(batch.into_iter().map(|line| line.text));
        }
    }

    fn read(logs: &[&Arc<Log>], tail: Option<u32>, since: Option<Millis>) -> Vec<String> {
        let logs = logs.iter().map(|log| Arc::clone(log)).collect();
        texts(&mut Reader::new(logs, tail, since))
    }

    #[test]
    fn several_logs_are_merged_by_time() {
        let directory = tempfile::tempdir().unwrap();
        let a = log(directory.path(), "a", (1000, 3));
        let b = log(directory.path(), "b", (1000, 3));
        for (log, time) in [(&a, 1), (&b, 2), (&b, 3), (&a, 4), (&b, 5)] {
            write(log, time, &time.to_string());
        }
        assert_eq!(read(&[&a, &b], None, None), ["1", "2", "3", "4", "5"]);
        assert_eq!(read(&[&a, &b], Some(2), None), ["4", "5"]);
        assert_eq!(read(&[&a, &b], None, Some(3)), ["3", "4", "5"]);
        assert_eq!(read(&[&a, &b], Some(3), Some(4)), ["4", "5"]);
        assert!(read(&[&a, &b], Some(0), None).is_empty());
    }

    #[test]
    fn a_line_that_the_agent_was_killed_in_is_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let first = log(directory.path(), "a", (1000, 3));
        write(&first, 1, "whole");
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(path(first.directory(), 1))
            .unwrap();
        file.write_all(b"17").unwrap();
        let second = log(directory.path(), "a", (1000, 3));
        write(&second, 3, "next");
        assert_eq!(read(&[&second], None, None), ["whole", "next"]);
        let plain = std::fs::read_to_string(path(first.directory(), 1)).unwrap();
        assert_eq!(plain, "1 O whole\n17\n3 O next\n");
    }

    #[test]
    fn a_slow_reader_is_told_what_it_has_lost() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(directory.path(), "a", (20, 2));
        write(&log, 1, "0");
        let mut reader = Reader::new(vec![Arc::clone(&log)], None, None);
        assert_eq!(texts(&mut reader), ["0"]);
        for number in 1..40 {
            write(&log, 1, &number.to_string());
        }
        assert!(reader.refresh());
        let rest = texts(&mut reader);
        assert!(rest[..3].contains(&"lines between these are not kept any more".to_owned()));
        assert_eq!(rest.last().unwrap(), "39");
        assert!(!reader.refresh());
        assert_eq!(files(log.directory()).len(), 2);
    }

    proptest! {
        #[test]
        fn a_reader_gives_what_a_plain_list_would(
            lines in proptest::collection::vec("[a-z ]{0,40}", 0..60),
            tail in proptest::option::of(0u32..70),
            later in proptest::collection::vec("[a-z ]{0,40}", 0..20),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let log = log(directory.path(), "a", (200, 1000));
            for text in &lines {
                write(&log, 1, text);
            }
            let mut reader = Reader::new(vec![Arc::clone(&log)], tail, None);
            let from = lines.len().saturating_sub(tail.map_or(usize::MAX, |tail| tail as usize));
            prop_assert_eq!(texts(&mut reader), &lines[from..]);
            for text in &later {
                write(&log, 1, text);
            }
            prop_assert_eq!(reader.refresh(), !later.is_empty());
            prop_assert_eq!(texts(&mut reader), later);
        }
    }
}
