//! The gateway's own machine, without SSH.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use nix::fcntl::OFlag;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use vendetta_proto::NodeName;
use vendetta_sshio::local_stream::LocalStream;

use super::{
    Arch, ByteStream, Command, MAX_OUTPUT, MAX_SOCKET_PATH, NodeError, NodeTransport, Output,
};

/// Time limit of a connection to a TCP port or a unix socket.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The node `local`.
#[derive(Debug)]
pub struct LocalNode {
    name: NodeName,
    state_dir: PathBuf,
}

impl LocalNode {
    /// The gateway's machine, with our files under `state_dir`.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            name: NodeName::local(),
            state_dir,
        }
    }

    fn failed(
        &self,
        operation: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> NodeError {
        let (node, subject) = (self.name.clone(), subject.into());
        move |source| NodeError::Io {
            node,
            operation,
            subject,
            source,
        }
    }

    /// Runs a blocking file operation off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &Path,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, NodeError> {
        let owned = path.to_owned();
        tokio::task::spawn_blocking(move || work(&owned))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(self.failed(operation, path.display().to_string()))
    }

    async fn in_time<T>(
        &self,
        operation: &'static str,
        subject: &str,
        limit: Duration,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, NodeError> {
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result.map_err(self.failed(operation, subject)),
            Err(_) => Err(NodeError::Timeout {
                node: self.name.clone(),
                operation,
                subject: subject.to_owned(),
                limit,
            }),
        }
    }
}

#[async_trait]
impl NodeTransport for LocalNode {
    fn name(&self) -> NodeName {
        self.name.clone()
    }

    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    async fn open_unix(&self, path: &Path) -> Result<Box<dyn ByteStream>, NodeError> {
        let subject = path.display().to_string();
        let ours = path.starts_with(&self.state_dir);
        if !ours && path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
            return Err(NodeError::SocketPath {
                node: self.name.clone(),
                path: path.to_owned(),
                max: MAX_SOCKET_PATH,
            });
        }
        let stream = self
            .in_time("connect to", &subject, CONNECT_LIMIT, async {
                let stream = if ours {
                    connect_unfollowed(path).await?
                } else {
                    UnixStream::connect(path).await?
                };
                LocalStream::new(stream.into_std()?)
            })
            .await?;
        Ok(Box::new(stream))
    }

    async fn open_tcp(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, NodeError> {
        let subject = format!("{host}:{port}");
        let connect = async {
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = self
            .in_time("connect to", &subject, CONNECT_LIMIT, connect)
            .await?;
        Ok(Box::new(stream))
    }

    async fn exec(&self, command: &Command) -> Result<Output, NodeError> {
        let subject = command.argv.first().cloned().unwrap_or_default();
        self.in_time("run", &subject, command.time_limit, run(command))
            .await
    }

    async fn put(&self, path: &Path, mode: u32, content: &[u8]) -> Result<(), NodeError> {
        let content = content.to_owned();
        self.blocking("write", path, move |path| {
            let parent = path.parent().unwrap_or(Path::new("/"));
            make_private_dir(parent)?;
            let mut file = tempfile::Builder::new()
                .prefix(".new-")
                .permissions(std::fs::Permissions::from_mode(0o600))
                .tempfile_in(parent)?;
            io::Write::write_all(&mut file, &content)?;
            file.as_file()
                .set_permissions(std::fs::Permissions::from_mode(mode))?;
            file.as_file().sync_data()?;
            file.persist(path).map_err(|error| error.error)?;
            Ok(())
        })
        .await
    }

    async fn make_dir(&self, path: &Path) -> Result<(), NodeError> {
        self.blocking("make directory", path, make_private_dir)
            .await
    }

    async fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, NodeError> {
        self.blocking("read", path, |path| {
            let opened = std::fs::OpenOptions::new()
                .read(true)
                .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
                .open(path);
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let mut content = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, MAX_OUTPUT as u64), &mut content)?;
            Ok(Some(content))
        })
        .await
    }

    async fn list_dir(&self, path: &Path) -> Result<Vec<String>, NodeError> {
        self.blocking("list", path, |path| {
            let entries = match std::fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut names = Vec::new();
            for entry in entries {
                // Names that are not UTF-8 are not ours.
                if let Ok(name) = entry?.file_name().into_string() {
                    names.push(name);
                }
            }
            Ok(names)
        })
        .await
    }

    async fn exists(&self, path: &Path) -> Result<bool, NodeError> {
        match tokio::fs::symlink_metadata(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed("look at", path.display().to_string())(error)),
        }
    }

    async fn remove_tree(&self, path: &Path) -> Result<(), NodeError> {
        self.blocking("remove", path, |path| {
            let removed = match std::fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
                Ok(_) => std::fs::remove_file(path),
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        })
        .await
    }

    async fn arch(&self) -> Result<Arch, NodeError> {
        Ok(Arch::new(std::env::consts::ARCH))
    }
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Connects to the socket that is at `path` itself. Between a check and a
/// connect by name a link could be put there; a descriptor cannot be swapped.
async fn connect_unfollowed(path: &Path) -> io::Result<UnixStream> {
    let socket = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits())
        .open(path)?;
    if !socket.metadata()?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

async fn run(command: &Command) -> io::Result<Output> {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program"));
    };
    let mut process = tokio::process::Command::new(program);
    process.args(arguments).env_clear().kill_on_drop(true);
    for name in ["HOME", "USER", "LOGNAME", "PATH", "LANG", "TZ"] {
        if let Some(value) = std::env::var_os(name) {
            process.env(name, value);
        }
    }
    let mut child = process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input is no error of ours.
            let _ = stdin.write_all(&command.stdin).await;
        }
        Ok(())
    };
    let (_, stdout, stderr, status) =
        tokio::try_join!(feed, drain(stdout), drain(stderr), child.wait())?;
    Ok(Output {
        status: status.code(),
        stdout,
        stderr,
    })
}

/// Reads to the end, so that the writer never blocks, and keeps the first [`MAX_OUTPUT`] bytes.
async fn drain(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let Some(mut stream) = stream else {
        return Ok(Vec::new());
    };
    let mut kept = Vec::new();
    (&mut stream)
        .take(MAX_OUTPUT as u64)
        .read_to_end(&mut kept)
        .await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> (tempfile::TempDir, LocalNode) {
        let dir = tempfile::tempdir().unwrap();
        let node = LocalNode::new(dir.path().join("state"));
        (dir, node)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    }

    #[tokio::test]
    async fn a_file_is_put_whole_with_its_mode_below_private_directories() {
        let (_dir, node) = node();
        let path = node.state_dir().join("w/abc/agent.json");
        node.put(&path, 0o600, b"one").await.unwrap();
        node.put(&path, 0o640, b"two").await.unwrap();
        assert_eq!(node.read(&path).await.unwrap().unwrap(), b"two");
        assert_eq!(mode(&path), 0o640);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(
            node.list_dir(path.parent().unwrap()).await.unwrap(),
            ["agent.json"]
        );
    }

    #[tokio::test]
    async fn a_link_in_the_place_of_a_file_is_replaced_and_never_read() {
        let (dir, node) = node();
        let outside = dir.path().join("secret");
        std::fs::write(&outside, "secret").unwrap();
        let path = node.state_dir().join("w/abc/agent.json");
        node.make_dir(path.parent().unwrap()).await.unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        assert!(node.read(&path).await.is_err());
        node.put(&path, 0o600, b"new").await.unwrap();
        assert_eq!(std::fs::read(&outside).unwrap(), b"secret");
        assert_eq!(node.read(&path).await.unwrap().unwrap(), b"new");
    }

    #[tokio::test]
    async fn an_environment_cannot_point_its_socket_at_another_one() {
        let (dir, node) = node();
        let outside = dir.path().join("engine.sock");
        let _engine = tokio::net::UnixListener::bind(&outside).unwrap();
        let run = node.state_dir().join("w/abc");
        node.make_dir(&run).await.unwrap();
        let link = run.join("agent.sock");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        assert!(node.open_unix(&link).await.is_err());
        assert!(node.open_unix(&outside).await.is_ok());
        std::fs::remove_file(&link).unwrap();
        let _agent = tokio::net::UnixListener::bind(&link).unwrap();
        assert!(node.open_unix(&link).await.is_ok());
    }

    #[tokio::test]
    async fn a_tree_is_removed_without_following_links_and_gone_already_is_fine() {
        let (dir, node) = node();
        let outside = dir.path().join("precious");
        std::fs::create_dir(&outside).unwrap();
        let run = node.state_dir().join("w/abc");
        node.put(&run.join("deep/file"), 0o600, b"x").await.unwrap();
        std::os::unix::fs::symlink(&outside, run.join("link")).unwrap();
        node.remove_tree(&run).await.unwrap();
        node.remove_tree(&run).await.unwrap();
        assert!(!node.exists(&run).await.unwrap());
        assert!(outside.exists());
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_its_output_and_status_come_back() {
        let (_dir, node) = node();
        let mut command = Command::new(["sh", "-c", "cat; echo oops >&2; exit 3"]);
        command.stdin = b"hello".to_vec();
        let output = node.exec(&command).await.unwrap();
        assert_eq!(output.status, Some(3));
        assert_eq!(output.stdout, b"hello");
        assert_eq!(output.stderr, b"oops\n");
    }

    #[tokio::test]
    async fn output_is_bounded_and_a_slow_program_is_cut_off() {
        let (_dir, node) = node();
        let flood = Command::new(["head", "-c", "1000000", "/dev/zero"]);
        assert_eq!(node.exec(&flood).await.unwrap().stdout.len(), MAX_OUTPUT);
        let mut slow = Command::new(["sleep", "60"]);
        slow.time_limit = Duration::from_millis(50);
        let error = node.exec(&slow).await.unwrap_err();
        assert!(matches!(error, NodeError::Timeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_program_does_not_see_the_environment_of_the_gateway() {
        let (_dir, node) = node();
        let output = node.exec(&Command::new(["env"])).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        assert!(!text.contains("CARGO"), "{text}");
    }
}
