//! A file of a node that something appends to, read as the log of an environment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use tokio::time::sleep;
use vendetta_proto::spec::ProviderKind;

use super::{LogOptions, LogStream, ProviderError};
use crate::node::{Command, MAX_OUTPUT, NodeTransport};

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// A log.
#[derive(Debug, Clone)]
pub(super) struct LogFile {
    /// Where it is.
    pub node: Arc<dyn NodeTransport>,
    /// Its path there; a file that is not there yet is empty.
    pub path: PathBuf,
    /// Whose log it is.
    pub provider: ProviderKind,
}

/// Says whether what writes the log still runs.
pub(super) type Lives = Box<dyn Fn() -> BoxFuture<'static, Result<bool, ProviderError>> + Send>;

impl LogFile {
    /// Its last lines.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn last_lines(&self, lines: u32) -> Result<String, ProviderError> {
        let script = r#"[ ! -e "$1" ] || tail -n "$2" -- "$1""#;
        let said = self.script(script, &[lines.to_string()]).await?;
        Ok(String::from_utf8_lossy(&said).trim_end().to_owned())
    }

    /// What `options` ask for; followed as long as it `lives`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn stream(
        self,
        options: LogOptions,
        lives: Lives,
    ) -> Result<LogStream, ProviderError> {
        let begin = match options.tail {
            None => 0,
            Some(lines) => {
                let script = r#"[ ! -e "$1" ] || tail -n "$2" -- "$1" | wc -c"#;
                let of_lines = self.number(script, &[lines.to_string()]).await?;
                self.length().await?.saturating_sub(of_lines)
            }
        };
        let chunks = stream::try_unfold((self, lives, begin), move |state| async move {
            let (file, lives, mut from) = state;
            loop {
                // In this order: what was written before the end is read.
                let goes_on = options.follow && lives().await?;
                let chunk = file.read(from).await?;
                if !chunk.is_empty() {
                    from += u64::try_from(chunk.len()).unwrap_or(0);
                    return Ok(Some((Bytes::from(chunk), (file, lives, from))));
                }
                if !goes_on {
                    return Ok(None);
                }
                // Shorter than before: it was begun anew.
                if file.length().await? < from {
                    from = 0;
                    continue;
                }
                sleep(LOOK).await;
            }
        });
        Ok(chunks.boxed())
    }

    async fn read(&self, from: u64) -> Result<Vec<u8>, ProviderError> {
        let script = r#"[ ! -e "$1" ] || tail -c "+$2" -- "$1" | head -c "$3""#;
        self.script(script, &[(from + 1).to_string(), MAX_OUTPUT.to_string()])
            .await
    }

    async fn length(&self) -> Result<u64, ProviderError> {
        self.number(r#"[ ! -e "$1" ] || wc -c <"$1""#, &[]).await
    }

    async fn number(&self, script: &str, arguments: &[String]) -> Result<u64, ProviderError> {
        let said = self.script(script, arguments).await?;
        Ok(String::from_utf8_lossy(&said).trim().parse().unwrap_or(0))
    }

    async fn script(&self, script: &str, arguments: &[String]) -> Result<Vec<u8>, ProviderError> {
        let mut command = Command::new(["sh", "-c", script, "sh"]);
        command.argv.push(self.path.display().to_string());
        command.argv.extend_from_slice(arguments);
        let output = self.node.exec(&command).await?;
        if output.status == Some(0) {
            return Ok(output.stdout);
        }
        Err(ProviderError::Engine {
            provider: self.provider,
            node: self.node.name(),
            operation: "read log",
            problem: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            remedy: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::LocalNode;
    use futures::TryStreamExt;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn file() -> (tempfile::TempDir, LogFile) {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFile {
            node: Arc::new(LocalNode::new(dir.path().to_owned())),
            path: dir.path().join("-log"),
            provider: ProviderKind::Host,
        };
        (dir, log)
    }

    async fn read(log: &LogFile, tail: Option<u32>) -> Vec<u8> {
        let options = LogOptions {
            follow: false,
            tail,
        };
        let never: Lives = Box::new(|| Box::pin(async { Ok(true) }));
        let stream = log.clone().stream(options, never).await.unwrap();
        stream.try_collect::<Vec<_>>().await.unwrap().concat()
    }

    #[tokio::test]
    async fn it_is_read_whole_however_long_and_by_its_last_lines() {
        let (_dir, log) = file();
        assert!(read(&log, None).await.is_empty(), "not there yet");
        assert_eq!(log.last_lines(3).await.unwrap(), "");
        let mut content = vec![b'x'; 2 * MAX_OUTPUT + 77];
        content.extend(b"\none\ntwo\n");
        std::fs::write(&log.path, &content).unwrap();
        assert_eq!(read(&log, None).await, content);
        assert_eq!(read(&log, Some(2)).await, b"one\ntwo\n");
        assert_eq!(read(&log, Some(0)).await, b"");
        assert_eq!(log.last_lines(1).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn it_is_followed_to_its_end_even_when_begun_anew() {
        let (_dir, log) = file();
        std::fs::write(&log.path, "first line\n").unwrap();
        let lives = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&lives);
        let lives_still: Lives = Box::new(move || {
            let lives = asked.load(Ordering::SeqCst);
            Box::pin(async move { Ok(lives) })
        });
        let options = LogOptions {
            follow: true,
            tail: None,
        };
        let mut stream = log.clone().stream(options, lives_still).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "first line\n");
        let mut writer = std::fs::OpenOptions::new()
            .append(true)
            .open(&log.path)
            .unwrap();
        writer.write_all(b"second\n").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "second\n");
        std::fs::write(&log.path, "anew\n").unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "anew\n");
        writer.write_all(b"last\n").unwrap();
        lives.store(false, Ordering::SeqCst);
        assert_eq!(stream.next().await.unwrap().unwrap(), "last\n");
        assert!(stream.next().await.is_none());
    }
}
