//! Forwarding of ports, unix sockets, the agent and X11, both ways. What a
//! session forwards is dialled inside the environment.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use vendetta_tests::{
    Agent, Client, Gateway, PATIENCE, Run, Running, eventually, free_port, random_bytes,
};

use crate::jump::Jumper;

const MIB: usize = 1024 * 1024;

/// Sends `data` over a fresh connection, half-closes it, and reads to the end.
fn exchange<S: Sync>(stream: &S, data: &[u8], half_close: impl FnOnce()) -> Vec<u8>
where
    for<'a> &'a S: Read + Write,
{
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut stream = stream;
            stream.read_to_end(&mut answer).expect("reading the answer");
        });
        let mut stream = stream;
        stream.write_all(data).expect("sending");
        half_close();
        reader.join().expect("the reader");
    });
    answer
}

fn connect(port: u16) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connecting to a forward");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    stream
}

fn tcp_exchange(port: u16, data: &[u8]) -> Vec<u8> {
    let stream = connect(port);
    exchange(&stream, data, || {
        stream.shutdown(Shutdown::Write).expect("half-closing")
    })
}

fn unix_exchange(path: &Path, data: &[u8]) -> Vec<u8> {
    let stream = UnixStream::connect(path).expect("connecting to a forward");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    exchange(&stream, data, || {
        stream.shutdown(Shutdown::Write).expect("half-closing")
    })
}

/// Starts `ssh -N` with `args` and waits until its forwards stand.
fn tunnel(gateway: &Gateway, login: &str, args: &[&str]) -> Running {
    let run = gateway
        .ssh(login)
        .args(["-v", "-o", "ExitOnForwardFailure=yes"])
        .args(args);
    // A session that says something is opened after the forwards were asked for.
    let tunnel = run.arg("echo ready; cat").spawn();
    tunnel.expect_stdout(0, "ready");
    tunnel
}

/// Accepts connections and sends back what each gets; returns the port.
fn echo_server() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listening");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(&stream, || stream.shutdown(Shutdown::Write)));
        }
    });
    port
}

fn echo<S>(stream: &S, half_close: impl FnOnce() -> std::io::Result<()>)
where
    for<'a> &'a S: Read + Write,
{
    let (mut from, mut to) = (stream, stream);
    let _ = std::io::copy(&mut from, &mut to).and_then(|_| half_close());
}

#[test]
fn a_local_port_leads_to_a_port_of_the_environment() {
    let gateway = Gateway::with_workspace();
    gateway.echo_server("ws", "tcp 127.0.0.1 7000");
    let port = free_port();
    let tunnel = tunnel(&gateway, "ws", &["-L", &format!("{port}:localhost:7000")]);
    let data = random_bytes(20, 4 * MIB);
    assert!(tcp_exchange(port, &data) == data, "other bytes came back");
    std::thread::scope(|scope| {
        for seed in 0..20 {
            scope.spawn(move || {
                let data = random_bytes(seed, 64 * 1024);
                assert!(tcp_exchange(port, &data) == data, "other bytes came back");
            });
        }
    });
    let _ = tunnel.finish().ok();
}

#[test]
fn a_local_unix_socket_leads_to_one_of_the_environment() {
    let gateway = Gateway::with_workspace();
    gateway.echo_server("ws", "unix /tmp/echo.sock");
    let local = gateway.scratch().join("local.sock");
    let tunnel = tunnel(
        &gateway,
        "ws",
        &["-L", &format!("{}:/tmp/echo.sock", local.display())],
    );
    let data = random_bytes(21, MIB);
    assert!(
        unix_exchange(&local, &data) == data,
        "other bytes came back"
    );
    let _ = tunnel.finish().ok();
}

/// A connection to a port of the environment through the SOCKS proxy (RFC 1928) at port `proxy`.
pub(crate) fn socks(proxy: u16, port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy)).expect("the proxy");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream.write_all(&[5, 1, 0]).expect("a greeting");
    let mut method = [0; 2];
    stream.read_exact(&mut method).expect("a method");
    let [high, low] = port.to_be_bytes();
    let request = [5, 1, 0, 1, 127, 0, 0, 1, high, low];
    stream.write_all(&request).expect("a request");
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply[1], 0, "SOCKS reply");
    stream
}

#[test]
fn a_socks_proxy_resolves_and_dials_inside_the_environment() {
    let gateway = Gateway::with_workspace();
    // Not python's http.server: it asks DNS for its own name before it listens.
    let answer = "while read -r line && [ ${#line} -gt 1 ]; do :; done\n\
                  printf 'HTTP/1.0 200 OK\\r\\nContent-Length: 11\\r\\n\\r\\nfrom-inside'\n";
    gateway.put("ws", "/tmp/answer", answer);
    gateway
        .exec(
            "ws",
            "setsid -f socat TCP-LISTEN:8000,fork,reuseaddr SYSTEM:'sh /tmp/answer' \
             </dev/null >/tmp/http.log 2>&1",
        )
        .ok();
    let name = gateway
        .exec("ws", "cat /proc/sys/kernel/hostname")
        .ok()
        .text();
    let port = free_port();
    let tunnel = tunnel(&gateway, "ws", &["-D", &port.to_string()]);
    for host in ["localhost", &name] {
        let proxy = format!("127.0.0.1:{port}");
        let url = format!("http://{host}:8000/page");
        eventually("the web server answers through the proxy", || {
            let curl = Run::new("curl").args([
                "-sS",
                "--max-time",
                "10",
                "--socks5-hostname",
                &proxy,
                &url,
            ]);
            curl.finish().text() == "from-inside"
        });
    }
    let _ = tunnel.finish().ok();
}

#[test]
fn a_remote_port_leads_back_and_port_0_is_told() {
    let gateway = Gateway::with_workspace();
    let local = echo_server();
    let mut tunnel = tunnel(&gateway, "ws", &["-R", &format!("0:127.0.0.1:{local}")]);
    let seen = tunnel.expect_stderr(0, "Allocated port ");
    tunnel.expect_stderr(seen, " ");
    let log = String::from_utf8_lossy(&tunnel.stderr()).into_owned();
    let allocated = log
        .split("Allocated port ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let port: u16 = allocated
        .and_then(|port| port.parse().ok())
        .unwrap_or_else(|| panic!("no port told: {log}"));
    assert_ne!(port, 0);
    let client = format!(
        "import socket; s = socket.create_connection(('127.0.0.1', {port})); s.sendall(b'hello'); \
         s.shutdown(socket.SHUT_WR); print(s.makefile().read())"
    );
    assert_eq!(
        gateway
            .exec("ws", &format!("python3 -c \"{client}\""))
            .ok()
            .text(),
        "hello"
    );
    tunnel.close_stdin();
    let _ = tunnel.finish().ok();
    eventually("the port is closed", || {
        let run = gateway.exec("ws", &format!("python3 -c \"{client}\""));
        run.finish().error_text().contains("refused")
    });
}

#[test]
fn a_remote_forward_listens_on_the_address_that_was_asked_for() {
    let gateway = Gateway::with_workspace();
    let local = echo_server();
    let loopback = format!("127.0.0.1:7101:127.0.0.1:{local}");
    let all = format!("*:7102:127.0.0.1:{local}");
    let tunnel = tunnel(&gateway, "ws", &["-R", &loopback, "-R", &all]);
    // proc(5), net/tcp: the local address in hexadecimal, state 0A for listening.
    let sockets = gateway
        .exec("ws", "cat /proc/net/tcp /proc/net/tcp6")
        .ok()
        .text();
    let listens = |address: &str| {
        let mut fields = sockets
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        fields.any(|fields| fields.len() > 3 && fields[1] == address && fields[3] == "0A")
    };
    assert!(
        listens("0100007F:1BBD"),
        "127.0.0.1:7101 is missing: {sockets}"
    );
    let any = ["00000000:1BBE", "00000000000000000000000000000000:1BBE"];
    assert!(
        any.iter().any(|address| listens(address)),
        "*:7102 is missing: {sockets}"
    );
    let _ = tunnel.finish().ok();
}

#[test]
fn a_remote_port_in_use_is_refused_and_the_session_lives_on() {
    let gateway = Gateway::with_workspace();
    gateway.echo_server("ws", "tcp 127.0.0.1 7103");
    let run = gateway
        .ssh("ws")
        .args(["-R", "7103:127.0.0.1:1", "echo alive"])
        .ok();
    assert_eq!(run.text(), "alive");
    assert!(
        run.error_text()
            .contains("remote port forwarding failed for listen port 7103"),
        "{run}"
    );
}

#[test]
fn a_remote_unix_socket_leads_back() {
    let gateway = Gateway::with_workspace();
    let path = gateway.scratch().join("local.sock");
    let listener = UnixListener::bind(&path).expect("listening");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            echo(&stream, || stream.shutdown(Shutdown::Write));
        }
    });
    let tunnel = tunnel(
        &gateway,
        "ws",
        &["-R", &format!("/tmp/remote.sock:{}", path.display())],
    );
    let client = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/tmp/remote.sock'); \
                  s.sendall(b'hello'); s.shutdown(socket.SHUT_WR); print(s.makefile().read())";
    assert_eq!(
        gateway
            .exec("ws", &format!("python3 -c \"{client}\""))
            .ok()
            .text(),
        "hello"
    );
    let _ = tunnel.finish().ok();
    eventually("the socket goes with its session", || {
        gateway
            .exec("ws", "test -e /tmp/remote.sock")
            .finish()
            .code()
            == 1
    });
}

#[test]
fn a_cancelled_forward_is_gone_and_the_connection_stays() {
    let gateway = Gateway::with_workspace();
    let local = echo_server();
    let master = gateway.admin().master("ws");
    let connect =
        "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 7104)).close()\"";
    for path in ["/tmp/cancelled.sock", "7104"] {
        let specification = format!("{path}:127.0.0.1:{local}");
        master.order("forward").args(["-R", &specification]).ok();
        let there = if path == "7104" {
            connect
        } else {
            "test -S /tmp/cancelled.sock"
        };
        master.exec(there).ok();
        master.order("cancel").args(["-R", &specification]).ok();
        eventually("the forward is gone", || {
            master.exec(there).finish().code() == 1
        });
    }
    assert_eq!(master.exec("echo alive").ok().text(), "alive");
}

#[test]
fn a_refused_forward_carries_the_reason_and_leaves_the_session_alive() {
    let gateway = Gateway::with_workspace();
    let port = free_port();
    let missing = gateway.scratch().join("missing.sock");
    let forwards = [
        format!("{port}:127.0.0.1:1"),
        format!("{}:/no/such.sock", missing.display()),
    ];
    // Nobody listens at any of its addresses.
    let named = gateway.ssh("ws").args(["-W", "localhost:1"]).finish();
    assert!(named.error_text().contains("Connection refused"), "{named}");
    let mut tunnel = tunnel(&gateway, "ws", &["-L", &forwards[0], "-L", &forwards[1]]);
    assert_eq!(tcp_exchange_or_reset(port), b"");
    let at = tunnel.expect_stderr(0, "open failed: connect failed: ");
    tunnel.expect_stderr(at, "Connection refused");
    let _ = UnixStream::connect(&missing)
        .expect("connecting to a forward")
        .read(&mut [0]);
    tunnel.expect_stderr(0, "No such file");
    tunnel.send("alive\n");
    tunnel.expect_stdout(0, "alive\n");
    let _ = tunnel.finish().ok();
    let run = gateway
        .ssh("ws")
        .args(["-W", "no-such-host.invalid:80"])
        .finish();
    assert!(
        run.error_text().contains("open failed: connect failed"),
        "{run}"
    );
}

/// What a forward to a dead end gives: nothing, or a reset.
fn tcp_exchange_or_reset(port: u16) -> Vec<u8> {
    let mut answer = Vec::new();
    match connect(port).read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("a refused forward hangs: {error}"),
    }
    answer
}

#[test]
fn standard_io_leads_to_a_port_of_the_environment() {
    let gateway = Gateway::with_workspace();
    gateway.echo_server("ws", "tcp 127.0.0.1 7000");
    let data = random_bytes(22, 8 * MIB);
    let run = gateway
        .ssh("ws")
        .args(["-W", "127.0.0.1:7000"])
        .stdin(data.clone())
        .ok();
    assert!(run.stdout == data, "other bytes came back");
}

#[test]
fn forwards_reach_neither_the_gateway_s_own_ports_nor_its_network() {
    let gateway = Gateway::with_workspace();
    let secret = echo_server();
    let target = format!("127.0.0.1:{secret}");
    let run = gateway
        .ssh("ws")
        .args(["-W", &target])
        .stdin("secret")
        .finish();
    assert!(
        run.error_text().contains("Connection refused"),
        "dialled outside the environment: {run}"
    );
    let run = gateway
        .ssh("vendetta")
        .args(["-W", &target])
        .stdin("secret")
        .finish();
    assert_ne!(run.code(), 0, "{run}");
    assert!(run.stdout.is_empty(), "{run}");
    assert!(
        run.error_text().contains("administratively prohibited"),
        "{run}"
    );
    let remote = format!("0:{target}");
    let run = gateway
        .ssh("vendetta")
        .args(["-o", "ExitOnForwardFailure=yes", "-N", "-R", &remote])
        .finish();
    assert_ne!(run.code(), 0, "{run}");
}

#[test]
fn the_forwarded_agent_signs_for_16_at_once() {
    let gateway = Gateway::with_workspace();
    let admin = gateway.admin();
    let key = admin.generate_key("signing", "ed25519");
    let agent = Agent::with(&[&key]);
    let socket = agent.socket();
    gateway.put(
        "ws",
        "/tmp/signing.pub",
        fs::read(key.with_extension("pub")).expect("the public key"),
    );

    let sign = "for i in $(seq 16); do (echo message $i >/tmp/message$i; \
                ssh-keygen -q -Y sign -n test -f /tmp/signing.pub /tmp/message$i || echo failed $i) & done; wait; \
                for i in $(seq 16); do ssh-keygen -Y check-novalidate -n test -s /tmp/message$i.sig </tmp/message$i; done";
    let config = ["-o".into(), format!("IdentityAgent={}", socket.display())];
    let run = gateway
        .ssh("ws")
        .args(config)
        .args(["-A", sign])
        .env("SSH_AUTH_SOCK", socket)
        .ok();
    assert_eq!(
        run.text().matches("Good \"test\" signature").count(),
        16,
        "{run}"
    );
    // Without -A there is no agent.
    let run = gateway.exec("ws", "echo \"[$SSH_AUTH_SOCK]\"").ok();
    assert_eq!(run.text(), "[]");
    drop(agent);
}

/// `ssh -A LOGIN@gateway COMMAND` with this agent.
fn with_agent(gateway: &Gateway, agent: &Agent, login: &str, command: &str) -> Run {
    let option = format!("IdentityAgent={}", agent.socket().display());
    let ssh = gateway.ssh(login).args(["-A", "-o", &option]);
    ssh.env("SSH_AUTH_SOCK", agent.socket()).arg(command)
}

#[test]
fn what_outlives_its_client_has_the_agent_of_the_next() {
    let gateway = Gateway::with_workspace();
    let key = |name: &str| gateway.admin().generate_key(name, "ed25519");
    let (first, second) = (Agent::with(&[key("first")]), Agent::with(&[key("second")]));
    // As a terminal multiplexer would: it lives on, and asks when it is told to.
    let multiplexer = "mkfifo /tmp/ask /tmp/told; (while read -r line </tmp/ask; do ssh-add -L >/tmp/told 2>&1; done) \
                       </dev/null >/dev/null 2>&1 & echo $SSH_AUTH_SOCK";
    let ask = "echo >/tmp/ask; cat /tmp/told";
    let path = with_agent(&gateway, &first, "ws", multiplexer).ok().text();
    let told = gateway.exec("ws", ask).ok().text();
    assert!(!told.contains("ssh-ed25519"), "nobody is there: {told}");

    let stays = with_agent(&gateway, &first, "ws", "echo here; cat").spawn();
    stays.expect_stdout(0, "here");
    let told = gateway.exec("ws", ask).ok().text();
    assert!(told.ends_with(" first"), "{told}");
    let newer = format!("echo $SSH_AUTH_SOCK; {ask}");
    let told = with_agent(&gateway, &second, "ws", &newer).ok().text();
    assert!(
        told.starts_with(&path) && told.ends_with(" second"),
        "{told}"
    );
    let told = gateway.exec("ws", ask).ok().text();
    assert!(told.ends_with(" first"), "the newest that is there: {told}");

    // Each user has a socket of their own, which no other user can reach.
    let other = with_agent(
        &gateway,
        &second,
        "ws+dev",
        "echo $SSH_AUTH_SOCK; ssh-add -L",
    );
    let other = other.ok().text();
    assert!(
        !other.starts_with(&path) && other.ends_with(" second"),
        "{other}"
    );
    let denied = gateway.exec("ws+dev", &format!("SSH_AUTH_SOCK={path} ssh-add -L"));
    assert!(denied.finish().error_text().contains("Permission denied"));
    let _ = stays.finish();
}

#[test]
fn somebody_who_takes_the_agent_socket_s_place_first_gets_nothing() {
    let gateway = Gateway::with_workspace();
    let agent = Agent::with(&[gateway.admin().key()]);
    let place = with_agent(&gateway, &agent, "ws", "dirname $SSH_AUTH_SOCK");
    let place = place.ok().text();
    // It goes with the agent, and so is there to be taken.
    gateway.control("workspace down ws").ok();
    gateway.control("workspace up ws").ok();
    let taken = gateway.exec("ws+dev", &format!("mkdir -m 777 {place}"));
    taken.ok();
    let told = with_agent(&gateway, &agent, "ws", "echo $SSH_AUTH_SOCK; ssh-add -L");
    let told = told.ok().text();
    assert!(!told.contains(&place), "{told}");
    assert!(told.contains("ssh-ed25519"), "{told}");
    let there = gateway.exec("ws+dev", &format!("ls {place}")).ok();
    assert_eq!(there.text(), "");
}

/// A tiny X server at TCP display `localhost:N`: checks the cookie of one client
/// (X11 protocol, section 8) and sends back in capitals the line that follows.
fn x_server(cookie: &'static [u8; 16]) -> (u16, JoinHandle<()>) {
    let (listener, display) = (50..2000)
        .find_map(|display| {
            Some((
                TcpListener::bind(("127.0.0.1", 6000 + display)).ok()?,
                display,
            ))
        })
        .expect("a free display");
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("an X client");
        client
            .set_read_timeout(Some(PATIENCE))
            .expect("a time limit");
        let mut setup = [0; 12 + 20 + 16]; // name and cookie, padded to 4 bytes
        client
            .read_exact(&mut setup)
            .expect("the setup of an X client");
        assert_eq!(&setup[..4], b"l\0\x0b\0", "byte order and protocol version");
        assert_eq!(&setup[12..30], b"MIT-MAGIC-COOKIE-1");
        assert_eq!(&setup[32..], cookie, "the real cookie must arrive");
        let mut said = String::new();
        let mut lines = BufReader::new(&client);
        lines.read_line(&mut said).expect("what the X client says");
        (&client)
            .write_all(said.to_ascii_uppercase().as_bytes())
            .expect("answering");
    });
    (display, server)
}

pub(crate) const X11_CLIENT: &str = include_str!("../fixtures/x11-client.py");

#[test]
fn x11_leads_to_the_client_s_display_with_the_display_s_own_cookie() {
    let gateway = Gateway::with_workspace();
    gateway.put("ws", "/tmp/x11-client.py", X11_CLIENT);
    let admin = gateway.admin();
    x11_leads_back(admin, admin.ssh("ws"));
    let jumper = Jumper::new(admin);
    x11_leads_back(admin, jumper.tool("ssh").arg("ws.vendetta"));
    assert_eq!(gateway.exec("ws", "echo \"[$DISPLAY]\"").ok().text(), "[]");
}

/// `ssh` runs /tmp/x11-client.py of the environment on a display of `admin`'s.
pub(crate) fn x11_leads_back(admin: &Client, ssh: Run) {
    let (display, server) = x_server(b"0123456789abcdef");
    let display = format!("localhost:{display}");
    let authority = admin.home().join(".Xauthority");
    fs::write(&authority, "").expect("an empty .Xauthority");
    let xauth = admin.program("xauth").arg("-f").arg(&authority).args([
        "add",
        &display,
        "MIT-MAGIC-COOKIE-1",
    ]);
    xauth
        .arg(vendetta_tests::hexadecimal(b"0123456789abcdef"))
        .ok();
    let run = ssh.args(["-Y", "python3 /tmp/x11-client.py 'hello x'"]);
    let run = run
        .env("DISPLAY", &display)
        .env("XAUTHORITY", &authority)
        .ok();
    assert_eq!(run.text(), "HELLO X", "{run}");
    server.join().expect("the X server saw what it should");
}
