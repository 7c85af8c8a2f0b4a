//! Forwards in and out, the ssh-agent, X11.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use crate::fixture::{Agent, Environment, PATIENCE, finish, is_root, wait_until};

/// A client that only forwards, until it is dropped.
struct Forwarding(Child);

impl Forwarding {
    fn start(agent: &Agent, arguments: &[&str]) -> Self {
        let client = agent
            .ssh()
            .args([
                "-N",
                "-v",
                "-o",
                "ExitOnForwardFailure=yes",
                "-o",
                "LogLevel=DEBUG1",
            ])
            .args(arguments)
            .arg("ws")
            .stderr(std::fs::File::create(agent.path("client.log")).unwrap())
            .spawn()
            .unwrap();
        wait_until("the client forwards", || {
            log(agent).contains("Entering interactive session")
        });
        Self(client)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn log(agent: &Agent) -> String {
    std::fs::read_to_string(agent.path("client.log")).unwrap_or_default()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn connect(port: u16) -> TcpStream {
    let mut stream = None;
    wait_until("the port answers", || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A server that reads to the end and answers with the number of bytes.
fn counting_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                let _ = write!(stream, "{}", received.len());
            });
        }
    });
    port
}

fn count_through(
    mut stream: impl std::io::Read + std::io::Write,
    end: impl FnOnce(),
    length: usize,
) -> String {
    let _ = &mut stream;
    stream.write_all(&vec![7; length]).unwrap();
    end();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn count_over(port: u16, length: usize) -> String {
    let stream = connect(port);
    let other = stream.try_clone().unwrap();
    count_through(
        stream,
        || other.shutdown(std::net::Shutdown::Write).unwrap(),
        length,
    )
}

#[test]
fn a_local_forward_carries_both_directions_and_their_ends() {
    let agent = Agent::start();
    let (local, server) = (free_port(), counting_server());
    let _client = Forwarding::start(&agent, &["-L", &format!("{local}:127.0.0.1:{server}")]);
    for length in [0, 1, 100_000, 5_000_000] {
        assert_eq!(count_over(local, length), length.to_string());
    }
}

#[test]
fn fifty_short_connections_at_a_time_all_get_their_answers() {
    let agent = Agent::start();
    let (local, server) = (free_port(), counting_server());
    let _client = Forwarding::start(&agent, &["-L", &format!("{local}:localhost:{server}")]);
    drop(connect(local));
    let workers: Vec<_> = (0..50)
        .map(|worker| {
            std::thread::spawn(move || {
                for round in 0..20 {
                    let length = worker * 20 + round;
                    assert_eq!(count_over(local, length), length.to_string());
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn a_refused_dial_says_why_and_leaves_the_session_alive() {
    let agent = Agent::start();
    let (local, closed) = (free_port(), free_port());
    let target = format!("{local}:127.0.0.1:{closed}");
    let output = agent
        .ssh()
        .args(["-v", "-L", &target, "ws", "sleep 2; echo alive"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(connect(local).read(&mut [0; 8]).unwrap(), 0);
    let output = output.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"alive\n");
    let log = String::from_utf8_lossy(&output.stderr);
    let reason = format!("connect failed: connect to 127.0.0.1:{closed}: Connection refused");
    assert!(log.contains(&reason), "{log}");
}

#[test]
fn standard_streams_can_be_one_forward() {
    let agent = Agent::start();
    let server = counting_server();
    let mut client = agent
        .ssh()
        .args(["-W", &format!("127.0.0.1:{server}"), "ws"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(b"hello").unwrap();
    let mut answer = String::new();
    client
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut answer)
        .unwrap();
    assert_eq!(answer, "5");
    assert!(finish(&mut client).success());
}

#[test]
fn a_dynamic_forward_is_dialled_inside() {
    let agent = Agent::start();
    let (proxy, server) = (free_port(), counting_server());
    let _client = Forwarding::start(&agent, &["-D", &proxy.to_string()]);
    let mut stream = connect(proxy);
    let mut request = vec![5, 1, 0, 5, 1, 0, 3, 9];
    request.extend_from_slice(b"localhost");
    request.extend_from_slice(&server.to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[2..4], [5, 0]);
    let other = stream.try_clone().unwrap();
    assert_eq!(
        count_through(
            stream,
            || other.shutdown(std::net::Shutdown::Write).unwrap(),
            77
        ),
        "77"
    );
}

#[test]
fn a_remote_forward_reports_its_port_and_ends_with_its_cancel() {
    let agent = Agent::start();
    let server = counting_server();
    let mut master = agent.ssh().args(["-M", "-N", "ws"]).spawn().unwrap();
    wait_until("the connection is up", || agent.path("control").exists());
    let target = format!("0:127.0.0.1:{server}");
    let output = agent
        .ssh()
        .args(["-O", "forward", "-R", &target, "ws"])
        .output()
        .unwrap();
    let port: u16 = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(count_over(port, 12_345), "12345");
    let v6 = TcpStream::connect(("::1", port));
    assert!(v6.is_ok() || !std::path::Path::new("/proc/net/if_inet6").exists());
    let other = TcpListener::bind(("127.0.0.2", port));
    assert!(other.is_ok(), "localhost is not every address");

    let cancel = agent
        .ssh()
        .args(["-O", "cancel", "-R", &target, "ws"])
        .output()
        .unwrap();
    assert!(cancel.status.success(), "{cancel:?}");
    wait_until("nobody listens", || {
        TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    master.kill().unwrap();
    master.wait().unwrap();
}

#[test]
fn a_port_that_is_taken_is_refused() {
    let agent = Agent::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("{}:127.0.0.1:9", taken.local_addr().unwrap().port());
    let options = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", &target, "ws"];
    let output = agent.ssh().args(options).output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("remote port forwarding failed"));
}

#[test]
fn unix_sockets_are_forwarded_both_ways() {
    let agent = Agent::start();
    let (near, far) = (agent.path("near.sock"), agent.path("far.sock"));
    let (out, inner) = (agent.path("out.sock"), agent.path("inner.sock"));
    let serve = |path: &std::path::Path, answer: &'static [u8]| {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                stream.unwrap().write_all(answer).unwrap();
            }
        });
    };
    serve(&inner, b"from inside");
    serve(&near, b"from the client");
    let client = Forwarding::start(
        &agent,
        &[
            "-L",
            &format!("{}:{}", out.display(), inner.display()),
            "-R",
            &format!("{}:{}", far.display(), near.display()),
        ],
    );
    let read = |path: &std::path::Path| {
        let mut text = String::new();
        UnixStream::connect(path)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    };
    wait_until("both sockets are there", || out.exists() && far.exists());
    assert_eq!(read(&out), "from inside");
    assert_eq!(read(&far), "from the client");
    assert_eq!(
        std::fs::metadata(&far).unwrap().permissions().mode() & 0o777,
        0o600
    );
    drop(client);
    wait_until("the socket is removed", || !far.exists());
}

#[test]
fn forwards_have_the_rights_of_their_user() {
    if !is_root() {
        return;
    }
    let prepare = "passwd=$(mktemp) && echo dev:x:4242:4343::/:/bin/sh >$passwd && chmod 644 $passwd \
                   && mount --bind $passwd /etc/passwd && rm $passwd";
    let agent = Agent::start_with(
        Environment {
            prepare: Some(prepare),
        },
        |_| {},
    );
    let run = |arguments: &[&str]| {
        let options = [
            "-v",
            "-o",
            "User=dev",
            "-o",
            "ExitOnForwardFailure=yes",
            "-o",
            "LogLevel=VERBOSE",
        ];
        agent.ssh().args(options).args(arguments).output().unwrap()
    };
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (allowed, denied) = (open.path().join("s"), agent.path("s"));
    let owner = run(&[
        "-R",
        &format!("{}:localhost:9", allowed.display()),
        "ws",
        &format!("stat -c '%u %a' {}", allowed.display()),
    ]);
    assert_eq!(
        String::from_utf8_lossy(&owner.stdout),
        "4242 600\n",
        "{owner:?}"
    );
    // A directory of root's, mode 0700.
    let refused = run(&[
        "-R",
        &format!("{}:localhost:9", denied.display()),
        "ws",
        "true",
    ]);
    assert_eq!(refused.status.code(), Some(255));
    assert!(!denied.exists());
    let refused = run(&["-R", "81:localhost:9", "ws", "true"]);
    let first: u32 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(
        refused.status.code(),
        Some(if first > 81 { 255 } else { 0 })
    );
    // The agent's own socket lies in that directory, too.
    let near = agent.path("near.sock");
    let _client = Forwarding::start(
        &agent,
        &[
            "-o",
            "User=dev",
            "-L",
            &format!("{}:{}", near.display(), agent.path("agent.sock").display()),
        ],
    );
    let mut answer = Vec::new();
    let _ = UnixStream::connect(&near).unwrap().read_to_end(&mut answer);
    assert_eq!(answer, b"");
    assert!(log(&agent).contains("Permission denied"), "{}", log(&agent));
}

#[test]
fn the_clients_ssh_agent_signs_in_parallel() {
    let agent = Agent::start();
    let socket = agent.path("ssh-agent.sock");
    let mut ssh_agent = Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("ssh-agent serves", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let added = Command::new("ssh-add")
        .arg(agent.path("key"))
        .env("SSH_AUTH_SOCK", &socket)
        .output()
        .unwrap();
    assert!(added.status.success(), "{added:?}");
    let run = |command: &str| {
        let mut client = agent.ssh();
        let identity = format!("IdentityAgent={}", socket.display());
        client.args(["-A", "-o", &identity, "ws", command]);
        let output = client.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let script = "cd $(mktemp -d); ssh-add -L > k.pub; for i in $(seq 16); do echo $i > f$i; done; \
                  for i in $(seq 16); do ssh-keygen -q -Y sign -n t -f k.pub f$i 2>/dev/null & done; wait; \
                  ls f*.sig | wc -l; stat -c %a $(dirname $SSH_AUTH_SOCK) $SSH_AUTH_SOCK; echo $SSH_AUTH_SOCK";
    let text = run(script);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..3], ["16", "700", "600"]);
    assert_eq!(run("echo $SSH_AUTH_SOCK").trim_end(), lines[3], "it stays");
    assert!(
        !agent.text("env").contains("SSH_AUTH_SOCK"),
        "only who asks gets an agent"
    );
    drop(agent);
    let path = std::path::Path::new(lines[3]);
    wait_until("the socket is removed", || !path.exists());
    ssh_agent.kill().unwrap();
    ssh_agent.wait().unwrap();
}

#[test]
fn x11_reaches_the_clients_display_with_its_cookie() {
    let agent = Agent::start();
    // A display that answers with the first bytes of what it is sent.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(display) = port.checked_sub(6000) else {
        return;
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut setup = [0; 12];
            stream.read_exact(&mut setup).unwrap();
            stream.write_all(b"X says hello").unwrap();
        }
    });
    let script = "test -s $XAUTHORITY && stat -c %a $XAUTHORITY; echo $DISPLAY; python3 - <<'END'\n\
import os, socket, struct\n\
data = open(os.environ['XAUTHORITY'], 'rb').read()\n\
fields = []\n\
rest = data[2:]\n\
while len(fields) < 4:\n    n = struct.unpack('>H', rest[:2])[0]; fields.append(rest[2:2+n]); rest = rest[2+n:]\n\
name, cookie = fields[2], fields[3]\n\
pad = lambda b: b + b'\\0' * (-len(b) % 4)\n\
s = socket.create_connection(('localhost', 6000 + int(os.environ['DISPLAY'].split(':')[1].split('.')[0])))\n\
s.sendall(struct.pack('<cxHHHHxx', b'l', 11, 0, len(name), len(cookie)) + pad(name) + pad(cookie))\n\
print(s.recv(12).decode())\n\
END";
    let output = agent
        .ssh()
        .args(["-X", "-o", "XAuthLocation=/nonexistent", "ws", script])
        .env("DISPLAY", format!("127.0.0.1:{display}"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("600"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("localhost:")),
        "{text}"
    );
    assert_eq!(lines.next(), Some("X says hello"));
}
