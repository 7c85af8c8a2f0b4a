//! VS Code's Remote-SSH: a long script typed into a shell, an archive that comes by scp
//! meanwhile, VS Code's own server unpacked from it and left behind, and all that the window
//! says to it, through SOCKS or a forwarded unix socket. The script is an imitation of
//! Remote-SSH's, the server and what is said to it are not.

use std::fs;
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;
use vendetta_tests::{Gateway, PATIENCE, Running, free_port, sha256, vscode_server};

use super::remote_protocol::{Server, Window, extension_host_starts, get};
use super::{LOGINS, Login, Way, connect};
use crate::forward::socks;

/// How a server is told where to listen.
const TCP: &str = "--host=127.0.0.1 --port=0";
const SOCKET: &str = "--socket-path=/tmp/vscode-server.sock";

/// How long an editor is left alone.
const SILENCE: Duration = Duration::from_secs(200);

const TOKEN: &str = "5f1f6e7c-connection-token";

/// What is typed into a shell: more than a pipe or a terminal's line takes at once, with
/// marks around what is read of it. Where neither curl nor wget is, it asks for the archive;
/// a server that runs already is used as it is.
fn script(commit: &str, listen: &str) -> String {
    let padding = "# nothing but length ........................................\n".repeat(400);
    format!(
        r#"{padding}echo 'c0ffee: running'
folder=$HOME/.vscode-server/bin/{commit}
log=$folder.{kind}.log pid=$folder.{kind}.pid
archive=$folder/vscode-server.tar.gz
unpacked=
mkdir -p "$folder"
if [ ! -x "$folder/node" ]; then
    if command -v curl || command -v wget; then
        echo 'c0ffee: it could be downloaded'
    fi
    echo 'c0ffee:trigger_server_download'
    echo "destFolder==$folder=="
    echo 'c0ffee:trigger_server_download_end'
    while [ ! -e "$archive.done" ]; do sleep 0.1; done
    echo 'Found flag and server on host'
    tar -xzf "$archive" --strip-components 1 -C "$folder" && unpacked=success
    rm "$archive" "$archive.done"
fi
if [ ! -e "$pid" ] || ! kill -0 "$(cat "$pid")"; then
    : >"$log"
    nohup "$folder/bin/code-server-oss" --start-server {listen} --connection-token={TOKEN} \
        --accept-server-license-terms --telemetry-level off --enable-remote-auto-shutdown \
        --server-data-dir "$folder.{kind}.data" >"$log" 2>&1 </dev/null &
    echo $! >"$pid"
fi
while ! grep -q '^Extension host agent listening on ' "$log"; do sleep 0.1; done
echo 'c0ffee: start'
echo 'exitCode==0=='
echo "listeningOn==$(sed -n 's/^Extension host agent listening on //p' "$log")=="
echo "arch==$(uname -m)=="
echo "unpackResult==$unpacked=="
echo 'c0ffee: end'
"#,
        kind = if listen == TCP { "tcp" } else { "socket" },
    )
}

/// The marks of a script that asks for the archive, up to where it waits.
fn asks_for_archive(folder: &str) -> String {
    format!(
        "c0ffee: running\nc0ffee:trigger_server_download\ndestFolder=={folder}==\n\
         c0ffee:trigger_server_download_end\n"
    )
}

/// The rest of the marks.
fn tells(listening_on: &str, unpacked: &str) -> String {
    format!(
        "c0ffee: start\nexitCode==0==\nlisteningOn=={listening_on}==\narch=={}==\n\
         unpackResult=={unpacked}==\nc0ffee: end\n",
        std::env::consts::ARCH
    )
}

/// A window's `ssh -T`, and what it is for.
struct Shell {
    ssh: Running,
    /// Where the proxy listens into the environment.
    proxy: u16,
}

impl Shell {
    /// `ssh -T -D PORT` to a shell that has been told nothing yet. Whose login shell is of
    /// another language asks for sh by name.
    fn open(way: &Way<'_>, login: &Login) -> Self {
        let proxy = free_port();
        let ssh = way.tool("ssh").args(["-T", "-D", &proxy.to_string()]);
        let mut ssh = ssh.arg(way.destination(login.user));
        if login.shell.ends_with("fish") {
            ssh = ssh.arg("sh");
        }
        // As long as a window stays open here.
        let ssh = ssh.limit(SILENCE + 3 * PATIENCE).spawn();
        Self { ssh, proxy }
    }

    /// Runs the script to its end where the server is there already; returns where it listens.
    fn finds_server(&mut self, script: &str) -> String {
        self.ssh.send(script);
        self.ssh.expect_stdout(0, "c0ffee: end\n");
        let listening_on = self.listening_on();
        let expected = format!("c0ffee: running\n{}", tells(&listening_on, ""));
        assert_eq!(String::from_utf8_lossy(&self.ssh.stdout()), expected);
        assert_eq!(String::from_utf8_lossy(&self.ssh.stderr()), "");
        listening_on
    }

    fn listening_on(&self) -> String {
        let told = String::from_utf8_lossy(&self.ssh.stdout()).into_owned();
        let after = told
            .split_once("listeningOn==")
            .expect("where it listens")
            .1;
        after.split_once("==\n").expect("an end").0.to_owned()
    }

    /// A connection through the proxy to a port of the environment.
    fn dial(&self, port: u16) -> TcpStream {
        socks(self.proxy, port)
    }

    /// The client dies with its connection.
    fn kill(mut self) {
        self.ssh.signal(Signal::SIGKILL);
        let _ = self.ssh.finish();
    }

    /// The window is closed.
    fn close(self) {
        assert_eq!(self.ssh.finish().code(), 0);
    }
}

/// The archive goes where the script asks for it, then the flag that it waits for.
fn upload(gateway: &Gateway, way: &Way<'_>, login: &Login, folder: &str) {
    let flag = gateway.scratch().join("done");
    fs::write(&flag, "").expect("a flag");
    let archive = vscode_server().join("vscode-server.tar.gz");
    for (file, name) in [(archive, ""), (flag, ".done")] {
        let target = format!(
            "{}:{folder}/vscode-server.tar.gz{name}",
            way.destination(login.user)
        );
        let scp = way.tool("scp").arg("-q").arg(file).arg(target);
        scp.limit(3 * PATIENCE).ok();
    }
}

/// Requests over 64 connections that are open at once: which server it is, and files of it
/// as windows load them.
fn answers(server: &Server, folder: &str, file: &str, dial: impl Fn() -> TcpStream + Sync) {
    let path = format!("/vscode-remote-resource?path={folder}/out/server-main.js&tkn={TOKEN}");
    let all_open = Barrier::new(64);
    let dialed = || {
        let stream = dial();
        all_open.wait();
        stream
    };
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let (status, body) = get(dialed(), "/version");
                assert_eq!((status, body.as_slice()), (200, server.commit.as_bytes()));
            });
            scope.spawn(|| {
                let (status, body) = get(dialed(), &path);
                assert_eq!((status, sha256(&body).as_str()), (200, file));
            });
        }
    });
    assert_eq!(get(dial(), &path.replace(TOKEN, "guessed")).0, 403);
}

/// The server that the archive brings.
fn server() -> Server {
    let commit = fs::read_to_string(vscode_server().join("commit")).expect("a commit");
    Server {
        commit: commit.trim().to_owned(),
        connection_token: TOKEN,
    }
}

/// Where the server is in the environment.
fn folder(server: &Server, login: &Login) -> String {
    format!("{}/.vscode-server/bin/{}", login.home, server.commit)
}

/// A first window: the server is sent and started; returns the port that it listens on.
fn installs(gateway: &Gateway, way: &Way<'_>, login: &Login, server: &Server) -> (Shell, String) {
    let folder = folder(server, login);
    let mut shell = Shell::open(way, login);
    shell.ssh.send(script(&server.commit, TCP));
    let asked = asks_for_archive(&folder);
    let seen = shell
        .ssh
        .expect_stdout(0, "c0ffee:trigger_server_download_end\n");
    assert_eq!(String::from_utf8_lossy(&shell.ssh.stdout()), asked);
    upload(gateway, way, login, &folder);
    shell.ssh.expect_stdout(seen, "c0ffee: end\n");
    let listening_on = shell.listening_on();
    let told = format!(
        "{asked}Found flag and server on host\n{}",
        tells(&listening_on, "success")
    );
    assert_eq!(String::from_utf8_lossy(&shell.ssh.stdout()), told);
    assert_eq!(String::from_utf8_lossy(&shell.ssh.stderr()), "");
    (shell, listening_on)
}

/// One who opens a folder, loses the link, comes back, and opens a second window that is
/// told of a unix socket instead of a port.
fn opens_a_folder_and_comes_back(gateway: &Gateway, way: &Way<'_>, login: &Login) {
    let server = server();
    let folder = folder(&server, login);
    let (shell, listening_on) = installs(gateway, way, login, &server);
    let port = listening_on.parse().expect("a port");

    let sum = format!("sha256sum <{folder}/out/server-main.js");
    let ssh = way.tool("ssh").arg(way.destination(login.user));
    let sum = ssh.arg(sum).ok().text();
    let file = sum.split(' ').next().expect("a sum");
    answers(&server, &folder, file, || shell.dial(port));
    extension_host_starts(&server, shell.dial(port), "2f-extension-host");
    let mut window = Window::open(&server, shell.dial(port), "1e-management");
    let before = window.environment();
    assert_eq!(before["connectionToken"], TOKEN, "{before}");
    assert_eq!(before["appRoot"]["path"], folder, "{before}");

    // The link is lost; the server is not, and a new connection finds it and goes on.
    shell.kill();
    let mut shell = Shell::open(way, login);
    let tcp = script(&server.commit, TCP);
    assert_eq!(shell.finds_server(&tcp), listening_on);
    window.reopen(shell.dial(port));
    assert_eq!(window.environment()["pid"], before["pid"]);
    answers(&server, &folder, file, || shell.dial(port));
    // ssh ends when its last forwarded connection has.
    drop(window);
    shell.close();

    let mut shell = Shell::open(way, login);
    let socket = shell.finds_server(&script(&server.commit, SOCKET));
    assert_eq!(SOCKET, format!("--socket-path={socket}"));
    let local = free_port();
    let forward = way
        .tool("ssh")
        .args(["-N", "-L", &format!("{local}:{socket}")]);
    let forward = forward.arg(way.destination(login.user)).spawn();
    answers(&server, &folder, file, || connect(local));
    let mut window = Window::open(&server, connect(local), "3d-socket");
    let other = window.environment();
    assert_eq!(other["connectionToken"], TOKEN, "{other}");
    assert_ne!(other["pid"], before["pid"]);
    drop(forward);
    shell.close();
}

#[test]
fn vs_code_opens_a_folder_and_comes_back_to_its_server() {
    let gateway = Gateway::with_workspace();
    let [bash, _] = &LOGINS;
    opens_a_folder_and_comes_back(&gateway, &Way::Relayed(gateway.admin()), bash);
}

#[test]
fn vs_code_does_the_same_end_to_end() {
    let gateway = Gateway::with_workspace();
    let [bash, _] = &LOGINS;
    opens_a_folder_and_comes_back(&gateway, &Way::end_to_end(gateway.admin()), bash);
}

#[test]
fn vs_code_needs_no_posix_shell_as_login_shell() {
    let gateway = Gateway::with_workspace();
    let [_, fish] = &LOGINS;
    opens_a_folder_and_comes_back(&gateway, &Way::Relayed(gateway.admin()), fish);
}

#[test]
fn vs_code_needs_no_posix_shell_end_to_end_either() {
    let gateway = Gateway::with_workspace();
    let [_, fish] = &LOGINS;
    opens_a_folder_and_comes_back(&gateway, &Way::end_to_end(gateway.admin()), fish);
}

/// An editor that is left open over lunch, while nobody types and nothing is asked.
#[test]
fn vs_code_outlives_200_s_of_silence() {
    let gateway = Gateway::with_workspace();
    let [bash, fish] = &LOGINS;
    let server = server();
    let ways = [
        (Way::Relayed(gateway.admin()), bash),
        (Way::end_to_end(gateway.admin()), fish),
    ];
    let mut windows = ways.map(|(way, login)| {
        let (shell, port) = installs(&gateway, &way, login, &server);
        let stream = shell.dial(port.parse().expect("a port"));
        let mut window = Window::open(&server, stream, "1e-management");
        let pid = window.environment()["pid"].clone();
        (way, shell, window, pid)
    });
    sleep(SILENCE);
    for (_, _, window, pid) in &mut windows {
        assert_eq!(window.environment()["pid"], *pid);
    }
    for (_, shell, window, _) in windows {
        drop(window);
        shell.close();
    }
}
