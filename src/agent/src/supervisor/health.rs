//! One try of a health check.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::ended::describe;
use super::launch;
use super::spec::{Check, Spec, Target};
use crate::connection::Agent;
use crate::process::signal_group;

/// Longest head of an HTTP answer that is looked at, in bytes.
const LONGEST_HEAD: usize = 16 * 1024;
/// How much of an HTTP answer is read after its status, in bytes.
const LONGEST_REST: u64 = 4 << 20;
/// How long that may take.
const REST_LIMIT: Duration = Duration::from_secs(1);
/// How much of a command's output is looked at for its last line, in bytes.
const LONGEST_OUTPUT: usize = 4096;
/// How long its last output may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How much of that line is shown, in characters.
const LONGEST_REASON: usize = 200;

/// Tries a check once.
///
/// # Errors
/// When it fails; the text says how, for people.
pub async fn probe(agent: &Agent, spec: &Spec, check: &Check) -> Result<(), String> {
    let late = || format!("no answer within {}s", check.timeout.as_secs());
    match &check.target {
        Target::Http { port, path } => {
            let mut answer = None;
            let healthy = timeout(check.timeout, http(*port, path, &mut answer)).await;
            if let Some(answer) = answer {
                let _ = timeout(REST_LIMIT, read_out(answer)).await;
            }
            healthy.unwrap_or_else(|_| Err(format!("GET {path} on port {port}: {}", late())))
        }
        Target::Tcp(port) => match timeout(check.timeout, connect(*port)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("port {port}: {error}")),
            Err(_) => Err(format!("port {port}: {}", late())),
        },
        Target::Command(command) => run(agent, spec, check, command).await,
    }
}

/// Connects to a port of this machine; a program may serve either family only.
async fn connect(port: u16) -> io::Result<TcpStream> {
    match TcpStream::connect((IpAddr::from(Ipv4Addr::LOCALHOST), port)).await {
        Ok(stream) => Ok(stream),
        Err(error) => TcpStream::connect((IpAddr::from(Ipv6Addr::LOCALHOST), port))
            .await
            .map_err(|_| error),
    }
}

/// Asks for a path; `answer` is what is left of the answer once its status is known.
async fn http(port: u16, path: &str, answer: &mut Option<TcpStream>) -> Result<(), String> {
    let failed = |error: io::Error| format!("GET {path} on port {port}: {error}");
    let mut stream = connect(port).await.map_err(failed)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: vendetta-agent/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::new();
    loop {
        match status(&head) {
            Head::Status(status) => {
                *answer = Some(stream);
                if (200..=399).contains(&status) {
                    return Ok(());
                }
                return Err(format!("GET {path} on port {port}: answered {status}"));
            }
            Head::Other => {
                return Err(format!("GET {path} on port {port}: the answer is not HTTP"));
            }
            Head::Begun if head.len() > LONGEST_HEAD => {
                return Err(format!(
                    "GET {path} on port {port}: the answer does not begin"
                ));
            }
            Head::Begun => {}
        }
        if stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            return Err(format!(
                "GET {path} on port {port}: closed without an answer"
            ));
        }
    }
}

/// Takes an answer to its end, if that is not far: a connection that is closed
/// with some of it unread is reset, and many a service logs that as an error.
async fn read_out(answer: TcpStream) {
    let mut rest = answer.take(LONGEST_REST);
    // However it ends: what was asked is known.
    let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
}

/// What the beginning of an HTTP/1 answer says.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// Nothing yet.
    Begun,
    /// The final status.
    Status(u16),
    /// It is another protocol.
    Other,
}

/// Reads a status line (RFC 9112 section 4); interim answers (RFC 9110
/// section 15.2) are passed over.
fn status(mut head: &[u8]) -> Head {
    const VERSION: &[u8] = b"HTTP/1.";
    loop {
        let begins = head.len().min(VERSION.len());
        if head.get(..begins) != VERSION.get(..begins) {
            return Head::Other;
        }
        let Some(end) = head.iter().position(|byte| *byte == b'\n') else {
            return Head::Begun;
        };
        let line = String::from_utf8_lossy(head.get(..end).unwrap_or_default());
        let mut words = line.split_ascii_whitespace();
        let status = words.nth(1).filter(|word| word.len() == 3);
        match status.and_then(|word| word.parse().ok()) {
            None => return Head::Other,
            Some(100..=199) => {}
            Some(status) => return Head::Status(status),
        }
        match end_of_head(head) {
            None => return Head::Begun,
            Some(next) => head = head.get(next..).unwrap_or_default(),
        }
    }
}

/// Where the empty line after the fields ends.
fn end_of_head(head: &[u8]) -> Option<usize> {
    let after = |pattern: &[u8]| {
        head.windows(pattern.len())
            .position(|window| window == pattern)
            .map(|at| at + pattern.len())
    };
    [after(b"\r\n\r\n"), after(b"\n\n")]
        .into_iter()
        .flatten()
        .min()
}

/// Runs a command; what it leaves behind is killed, as it is when it takes too
/// long or nobody waits for it any more.
async fn run(agent: &Agent, spec: &Spec, check: &Check, command: &str) -> Result<(), String> {
    let pipes = || -> io::Result<(OwnedFd, OwnedFd, pipe::Receiver)> {
        let (ours, theirs) = io::pipe()?;
        let both = theirs.try_clone()?;
        let ours = pipe::Receiver::from_owned_fd(ours.into())?;
        Ok((theirs.into(), both.into(), ours))
    };
    let (stdout, stderr, mut output) =
        pipes().map_err(|error| format!("cannot make pipes: {error}"))?;
    let child = launch::spawn(agent, spec, command, stdout, stderr)
        .map_err(|error| format!("the check cannot be run: {error}"))?;
    let mut group = Group {
        leader: child.pid,
        reaped: false,
    };
    let mut last = Vec::new();
    let mut exit = child.exit;
    let status = {
        let reading = drain(&mut output, &mut last);
        tokio::pin!(reading);
        let mut all_read = false;
        let ended = async {
            tokio::select! {
                status = &mut exit => status,
                () = &mut reading => {
                    all_read = true;
                    exit.await
                }
            }
        };
        let Ok(ended) = timeout(check.timeout, ended).await else {
            return Err(format!(
                "the check did not end within {}s",
                check.timeout.as_secs()
            ));
        };
        group.reaped = true;
        drop(group);
        let Ok(status) = ended else {
            return Err("the check's end was lost".to_owned());
        };
        if status.success() {
            return Ok(());
        }
        if !all_read {
            let _ = timeout(LAST_WORDS, reading).await;
        }
        status
    };
    let text = String::from_utf8_lossy(&last);
    let line: Option<String> = text
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .map(|line| line.trim().chars().take(LONGEST_REASON).collect());
    let how = describe(status);
    Err(match line {
        Some(line) => format!("the check ended with {how}: {line}"),
        None => format!("the check ended with {how}"),
    })
}

/// The process group of a check's command, killed when nobody needs it any more.
struct Group {
    leader: nix::unistd::Pid,
    reaped: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        signal_group(self.leader, Signal::SIGKILL, self.reaped);
    }
}

/// Reads to the end, and keeps the last part.
async fn drain(output: &mut pipe::Receiver, last: &mut Vec<u8>) {
    let mut buffer = [0; LONGEST_OUTPUT];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        last.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let excess = last.len().saturating_sub(LONGEST_OUTPUT);
        last.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_final_status_is_found() {
        for (head, expected) in [
            ("", Head::Begun),
            ("HTT", Head::Begun),
            ("HTTP/1.1 200 OK", Head::Begun),
            ("HTTP/1.1 200 OK\r\n", Head::Status(200)),
            ("HTTP/1.0 404 Not Found\n", Head::Status(404)),
            ("HTTP/1.1 503\r\n", Head::Status(503)),
            ("HTTP/1.1 100 Continue\r\n\r\n", Head::Begun),
            (
                "HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 204 x\r\n",
                Head::Status(204),
            ),
            ("SSH-2.0-x\r\n", Head::Other),
            ("HTTP/1.1 2000 OK\r\n", Head::Other),
            ("HTTP/1.1\r\n", Head::Other),
        ] {
            assert_eq!(status(head.as_bytes()), expected, "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(head: Vec<u8>, rest: Vec<u8>) {
            let _ = status(&head);
            let _ = status(&[&b"HTTP/1.1 100 x\r\n"[..], &rest].concat());
        }
    }
}
