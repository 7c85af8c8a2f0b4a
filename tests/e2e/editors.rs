//! Editors: what VS Code's Remote-SSH, JetBrains Gateway and their kin do on the wire, and
//! what `workspace doctor` says of an environment for them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use vendetta_tests::{
    BUSYBOX, Gateway, PATIENCE, Run, Running, TOOLS, eventually, free_port, full, random_bytes,
    sha256,
};

use crate::jump::Jumper;

/// Where the editor's server listens in the environment.
const SERVER: u16 = 7100;

/// What VS Code types into a shell: more than a pipe or a terminal's line takes at once,
/// with marks around what it reads. It waits for a file that comes by scp meanwhile, and
/// leaves a server behind.
fn bootstrap() -> String {
    let padding = "# nothing but length ........................................\n".repeat(400);
    format!(
        "{padding}echo 'c0ffee: running'\n\
         while ! [ -e /workspace/server.tar.complete ]; do sleep 0.1; done\n\
         sum=$(sha256sum </workspace/server.tar)\n\
         echo \"c0ffee: unpacked $sum\"\n\
         python3 /workspace/server.py tcp 127.0.0.1 {SERVER}\n\
         echo 'listeningOn=={SERVER}=='\n\
         echo 'c0ffee: end'\n"
    )
}

/// How somebody gets to a workspace.
struct Way<'a> {
    /// A program of OpenSSH with their configuration.
    tool: &'a dyn Fn(&str) -> Run,
    destination: &'a str,
}

impl Way<'_> {
    /// `ssh -T -D PORT` with a shell that has been told nothing yet.
    fn connection(&self, proxy: u16) -> Running {
        let ssh = (self.tool)("ssh").args(["-T", "-D"]);
        ssh.arg(proxy.to_string()).arg(self.destination).spawn()
    }
}

/// A connection through a SOCKS proxy (RFC 1928) to the server's port.
fn through(proxy: u16) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], proxy)))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    let [high, low] = SERVER.to_be_bytes();
    stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low])?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    if reply[1] == 0 {
        Ok(stream)
    } else {
        Err(std::io::Error::other(format!("SOCKS reply {}", reply[1])))
    }
}

/// The server sends back what it gets, over 64 connections at once.
fn answers(proxy: u16) {
    let connections: Vec<_> = (0..64)
        .map(|n| {
            std::thread::spawn(move || {
                let content = random_bytes(n, 50_000);
                let mut stream = through(proxy).expect("a connection");
                let mut sender = stream.try_clone().expect("a second handle");
                let sent = content.clone();
                let sending = std::thread::spawn(move || sender.write_all(&sent));
                let mut received = vec![0; content.len()];
                stream.read_exact(&mut received).expect("an answer");
                sending.join().expect("sending").expect("sending");
                assert!(received == content, "connection {n}");
            })
        })
        .collect();
    for connection in connections {
        connection.join().expect("a connection");
    }
}

/// One who opens a folder by Remote-SSH, loses the link, and comes back.
fn remote_ssh(gateway: &Gateway, way: &Way<'_>) {
    let echo = include_str!("../fixtures/echo-server.py");
    gateway.put("ws", "/workspace/server.py", echo);
    gateway.exec("ws", "chmod 777 /workspace").ok();

    let proxy = free_port();
    let mut shell = way.connection(proxy);
    shell.send(bootstrap());
    let seen = shell.expect_stdout(0, "c0ffee: running\n");
    let content = random_bytes(7, 3 << 20);
    let archive = gateway.scratch().join("server.tar");
    fs::write(&archive, &content).expect("an archive");
    let scp = (way.tool)("scp").arg("-q").arg(&archive);
    scp.arg(format!("{}:/workspace/server.tar", way.destination))
        .ok();
    let touch = (way.tool)("ssh").arg(way.destination);
    touch.arg("touch /workspace/server.tar.complete").ok();
    shell.expect_stdout(seen, "c0ffee: end\n");
    let expected = format!(
        "c0ffee: running\nc0ffee: unpacked {}  -\nlisteningOn=={SERVER}==\nc0ffee: end\n",
        sha256(&content)
    );
    assert_eq!(String::from_utf8_lossy(&shell.stdout()), expected);
    assert_eq!(shell.stderr(), b"");
    answers(proxy);
    // An editor that is left open over lunch.
    let silence = if full() { 200 } else { 3 };
    let mut quiet = through(proxy).expect("a connection");
    sleep(Duration::from_secs(silence));
    quiet.write_all(b"still here").expect("writing");
    let mut answer = [0; 10];
    quiet.read_exact(&mut answer).expect("an answer");

    // The link is lost; the server is not, and a new connection finds it.
    shell.signal(nix::sys::signal::Signal::SIGKILL);
    let _ = shell.finish();
    let proxy = free_port();
    let mut shell = way.connection(proxy);
    shell.send("echo back\n");
    shell.expect_stdout(0, "back\n");
    answers(proxy);
    shell.close_stdin();
    drop(quiet);
    assert_eq!(shell.finish().code(), 0);
}

#[test]
fn vs_code_opens_a_folder_and_comes_back_to_its_server() {
    let gateway = Gateway::with_workspace();
    let tool = |program: &str| gateway.admin().tool(program);
    let destination = "ws@gateway";
    let way = Way {
        tool: &tool,
        destination,
    };
    remote_ssh(&gateway, &way);
}

#[test]
fn vs_code_does_the_same_end_to_end() {
    let gateway = Gateway::with_workspace();
    let jumper = Jumper::new(gateway.admin());
    let tool = |program: &str| jumper.tool(program);
    let destination = "ws.vendetta";
    let way = Way {
        tool: &tool,
        destination,
    };
    remote_ssh(&gateway, &way);
}

#[test]
fn vs_code_needs_no_posix_shell_as_login_shell() {
    let gateway = Gateway::with_workspace();
    // It asks for sh by name when the login shell is another one.
    let proxy = free_port();
    let ssh = gateway
        .ssh("ws+fish")
        .args(["-T", "-D", &proxy.to_string()]);
    let mut shell = ssh.arg("sh").spawn();
    shell.send("x=posix; echo \"c0ffee: ${x}\"\n");
    shell.expect_stdout(0, "c0ffee: posix\n");
    shell.close_stdin();
    assert_eq!(shell.finish().ok().text(), "c0ffee: posix");
}

#[test]
fn an_environment_without_bash_says_so() {
    let gateway = Gateway::docker();
    gateway.workspace("ws", BUSYBOX);
    let run = gateway.ssh("ws").args(["-T", "bash"]).finish().exits(127);
    assert!(run.error_text().contains("bash: not found"), "{run}");
    let run = gateway.control("workspace doctor ws --for vscode").finish();
    let run = run.exits(4);
    assert!(run.text().contains("bash"), "{run}");
    assert!(run.error_text().contains("VS Code cannot work"), "{run}");
}

#[test]
fn jetbrains_gateway_uploads_starts_and_reaches_its_backend() {
    let gateway = Gateway::with_workspace();
    let client = gateway.admin();
    let master = client.master("ws");
    for n in 0..20 {
        let probe = master.exec(&format!("uname -sm; echo $SHELL {n}")).ok();
        assert!(probe.text().ends_with(&format!("/bin/bash {n}")), "{probe}");
    }
    let backend = gateway.scratch().join("backend.py");
    fs::write(&backend, include_str!("../fixtures/echo-server.py")).expect("a file");
    let batch = gateway.scratch().join("batch");
    let lines = format!(
        "-mkdir /root/.cache\nmkdir /root/.cache/JetBrains\n\
         put {} /root/.cache/JetBrains/backend.part\n\
         rename /root/.cache/JetBrains/backend.part /root/.cache/JetBrains/backend.py\n\
         chmod 700 /root/.cache/JetBrains/backend.py\n",
        backend.display()
    );
    fs::write(&batch, lines).expect("a batch");
    let sftp = client.tool("sftp").arg("-b").arg(&batch);
    sftp.arg("ws@gateway").ok();
    let there = master
        .exec("stat -c %a /root/.cache/JetBrains/backend.py")
        .ok();
    assert_eq!(there.text(), "700");
    let start = "python3 /root/.cache/JetBrains/backend.py tcp 127.0.0.1 5990";
    master.exec(start).ok();
    let local = free_port();
    let forward = format!("{local}:127.0.0.1:5990");
    master.order("forward").args(["-L", &forward]).ok();
    let mut stream = None;
    eventually("the backend is reached", || {
        stream = TcpStream::connect(("127.0.0.1", local)).ok();
        stream.is_some()
    });
    let mut stream = stream.expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream.write_all(b"protocol").expect("writing");
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"protocol");
}

#[test]
fn a_doctor_looks_at_an_environment_from_any_login_shell() {
    let gateway = Gateway::docker();
    for user in ["root", "fish", "dash"] {
        let config = format!("provider: docker\ndocker: {{image: \"{TOOLS}\"}}\nuser: {user}\n");
        gateway.create(user, &config);
        let doctor = format!("workspace doctor {user} --json");
        let down = gateway.control(&doctor).finish().exits(4);
        assert!(down.error_text().contains("workspace up"), "{down}");
        gateway.control(&format!("workspace up {user}")).ok();
        let found = gateway.control(&doctor).finish().json();
        let findings = found["findings"].as_array().expect("findings");
        let state = |editor: &str, check: &str| {
            let found = findings
                .iter()
                .find(|one| one["editor"] == editor && one["check"] == check);
            found.unwrap_or_else(|| panic!("{check}: {findings:?}"))["verdict"].clone()
        };
        for check in ["architecture", "C library", "bash", "tar, gzip", "home"] {
            assert_eq!(state("vscode", check), "ok", "{user} {check}: {findings:?}");
        }
        assert_ne!(state("vscode", "memory"), "missing");
        assert_eq!(state("jetbrains", "ps"), "ok");
        gateway
            .control(&format!("workspace destroy {user} --yes"))
            .ok();
    }
}
