//! The files of a node, by scripts ([`script`](super::script)).

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::super::{MAX_OUTPUT, Output};
use super::run::Job;
use super::trouble::Trouble;
use super::{SshNode, script};

/// Time limit of a script, on top of what its input takes.
const LIMIT: Duration = Duration::from_secs(30);
/// The slowest link that a file has to get through, in bytes a second.
const SLOWEST: u64 = 64 * 1024;

/// `path` without a slash at its end, which would have a link followed.
fn argument(path: &Path) -> Result<&[u8], Trouble> {
    let mut bytes = path.as_os_str().as_bytes();
    while let [rest @ .., b'/'] = bytes
        && !rest.is_empty()
    {
        bytes = rest;
    }
    if path.is_absolute() {
        Ok(bytes)
    } else {
        Err(Trouble::invalid("not an absolute path"))
    }
}

impl SshNode {
    /// Runs a script with arguments and input.
    pub(in super::super) async fn script(
        &self,
        body: &str,
        arguments: &[&[u8]],
        stdin: Bytes,
    ) -> Result<Output, Trouble> {
        let transfer = Duration::from_secs(stdin.len() as u64 / SLOWEST);
        let job = Job {
            script: script::of_files(body, arguments),
            stdin,
            limit: LIMIT + transfer,
        };
        self.run(job).await
    }

    /// Runs a script about one path: what it said, or none when there is nothing at the path.
    async fn about(
        &self,
        body: &str,
        path: &Path,
        more: &[&[u8]],
        stdin: Bytes,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let mut arguments = vec![argument(path)?];
        arguments.extend_from_slice(more);
        let output = self.script(body, &arguments, stdin).await?;
        match output.status {
            Some(0) => Ok(Some(output.stdout)),
            Some(script::ABSENT) => Ok(None),
            status => Err(Trouble::Io(script::failure(status, &output.stderr))),
        }
    }

    pub(super) async fn put_file(
        &self,
        path: &Path,
        mode: u32,
        content: &[u8],
    ) -> Result<(), Trouble> {
        let (mode, length) = (format!("{mode:o}"), content.len().to_string());
        let more = [mode.as_bytes(), length.as_bytes()];
        let content = Bytes::copy_from_slice(content);
        self.about(script::PUT, path, &more, content).await?;
        Ok(())
    }

    pub(super) async fn make_directory(&self, path: &Path) -> Result<(), Trouble> {
        self.about(script::MAKE_DIR, path, &[], Bytes::new())
            .await?;
        Ok(())
    }

    pub(super) async fn read_file(&self, path: &Path) -> Result<Option<Vec<u8>>, Trouble> {
        let limit = MAX_OUTPUT.to_string();
        let limit = [limit.as_bytes()];
        let read = self.about(script::READ, path, &limit, Bytes::new());
        match read.await {
            // It went between the script's look and its reading.
            Err(Trouble::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other,
        }
    }

    pub(super) async fn names_in(&self, path: &Path) -> Result<Vec<String>, Trouble> {
        let names = self
            .about(script::LIST_DIR, path, &[], Bytes::new())
            .await?
            .unwrap_or_default();
        if names.len() >= MAX_OUTPUT {
            return Err(Trouble::Io(io::Error::other("too many names")));
        }
        // Names that are not UTF-8 are not ours.
        Ok(names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .filter_map(|name| String::from_utf8(name.to_vec()).ok())
            .collect())
    }

    pub(super) async fn is_there(&self, path: &Path) -> Result<bool, Trouble> {
        let there = self.about(script::EXISTS, path, &[], Bytes::new()).await?;
        Ok(there.is_some())
    }

    pub(super) async fn remove(&self, path: &Path) -> Result<(), Trouble> {
        self.about(script::REMOVE_TREE, path, &[], Bytes::new())
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_loses_the_slash_that_would_follow_a_link() {
        assert_eq!(argument(Path::new("/a/b//")).unwrap(), b"/a/b");
        assert_eq!(argument(Path::new("/")).unwrap(), b"/");
        assert!(argument(Path::new("a")).is_err());
    }
}
