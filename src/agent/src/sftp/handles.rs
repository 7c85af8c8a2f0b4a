//! Open files and directories, and the numbers the client knows them by.

use std::fs::{File, ReadDir};
use std::path::PathBuf;

use super::status::Failure;

/// Something open.
#[derive(Debug)]
pub enum Open {
    /// A file.
    File(File),
    /// A directory.
    Directory(Directory),
}

/// A directory that is being read.
#[derive(Debug)]
pub struct Directory {
    /// Its path.
    pub path: PathBuf,
    /// What has not been read yet.
    pub entries: ReadDir,
    /// `.` and `..`, which the standard library leaves out.
    pub dots: std::slice::Iter<'static, &'static str>,
}

/// Most files and directories that a client may have open.
pub const MOST_OPEN: usize = 4096;

/// Handles.
#[derive(Debug, Default)]
pub struct Handles {
    open: Vec<Option<Open>>,
    free: Vec<u32>,
}

fn number(handle: &[u8]) -> Option<usize> {
    handle
        .try_into()
        .ok()
        .map(|bytes| u32::from_be_bytes(bytes) as usize)
}

fn unknown() -> Failure {
    nix::errno::Errno::EBADF.into()
}

impl Handles {
    /// A handle for something open.
    ///
    /// # Errors
    /// When the client has too many already.
    pub fn add(&mut self, open: Open) -> Result<[u8; 4], Failure> {
        let full = self.open.len() == MOST_OPEN;
        let place = self
            .free
            .pop()
            .and_then(|free| Some((free, self.open.get_mut(free as usize)?)));
        let handle = match place {
            Some((free, place)) => {
                *place = Some(open);
                free
            }
            None if full => return Err(nix::errno::Errno::EMFILE.into()),
            None => {
                self.open.push(Some(open));
                u32::try_from(self.open.len() - 1).unwrap_or(u32::MAX)
            }
        };
        Ok(handle.to_be_bytes())
    }

    /// Closes.
    pub fn close(&mut self, handle: &[u8]) -> Result<(), Failure> {
        let index = number(handle).ok_or_else(unknown)?;
        self.open
            .get_mut(index)
            .and_then(Option::take)
            .ok_or_else(unknown)?;
        self.free.extend(u32::try_from(index));
        Ok(())
    }

    /// The file of a handle.
    pub fn file(&self, handle: &[u8]) -> Result<&File, Failure> {
        match number(handle).and_then(|index| self.open.get(index)?.as_ref()) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(unknown()),
        }
    }

    /// What a handle stands for.
    pub fn get(&mut self, handle: &[u8]) -> Result<&mut Open, Failure> {
        number(handle)
            .and_then(|index| self.open.get_mut(index)?.as_mut())
            .ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_handle_is_unknown_until_it_is_given_again() {
        let file = || Open::File(File::open("/dev/null").unwrap());
        let mut handles = Handles::default();
        let (first, second) = (handles.add(file()).unwrap(), handles.add(file()).unwrap());
        assert_ne!(first, second);
        handles.close(&first).unwrap();
        assert!(handles.file(&first).is_err());
        assert!(handles.close(&first).is_err());
        assert!(handles.file(&second).is_ok());
        assert_eq!(handles.add(file()).unwrap(), first);
        assert!(handles.file(b"").is_err());
        assert!(handles.file(&[255; 4]).is_err());
    }
}
