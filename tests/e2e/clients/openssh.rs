//! OpenSSH's own programs, and those that start its `ssh`: end to end with `ProxyJump` of
//! the configuration that `ssh-config` gives. Their long tests are in modules of their own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

use vendetta_tests::{Agent, Run, clients, eventually, free_port, random_bytes};

use super::fixture;
use super::lab::{ECHO, Visit, connect, same, session, tunnel};
use crate::forward::{X11_CLIENT, socks, x11_leads_back};

/// Sessions, a terminal, forwards, and several sessions of one connection.
pub(super) fn ssh(visit: &Visit<'_>) {
    let ssh = || visit.tool("ssh");
    let login = visit.login();
    session(ssh().arg(&login));
    let terminal = ssh().args(["-tt", &login, "stty size; tty; exit 3"]);
    let terminal = terminal.start_on_terminal(40, 100).finish().exits(3);
    let said = terminal.text();
    assert!(
        said.contains("40 100") && said.contains("/dev/pts/"),
        "{said}"
    );
    tunnel(|forward| ssh().args(["-N", "-L", forward, &login]));
    let standard = ssh().args(["-W", &format!("127.0.0.1:{ECHO}"), &login]);
    assert_eq!(standard.stdin("ping").ok().text(), "ping");

    let proxy = free_port();
    let forward = ssh().args(["-N", "-D", &proxy.to_string(), &login]).spawn();
    drop(connect(proxy));
    let mut stream = socks(proxy, ECHO.parse().expect("a port"));
    stream.write_all(b"by SOCKS").expect("writing");
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"by SOCKS");
    drop(stream);
    drop(forward);

    // The user's key signs for a program there.
    let agent = Agent::with(&[visit.key()]);
    let public = fs::read_to_string(visit.key().with_extension("pub")).expect("a key");
    let option = format!("IdentityAgent={}", agent.socket().display());
    let signs = format!("cat >{0} && ssh-add -T {0}", visit.there("key.pub"));
    let signs = ssh().args(["-A", "-o", &option, &login, &signs]);
    signs.stdin(public).ok();

    let put = ssh().args([&login, "cat >/tmp/x11-client.py"]);
    put.stdin(X11_CLIENT).ok();
    x11_leads_back(visit.lab.gateway.admin(), ssh().arg(&login));

    // A port there that leads to one here.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let here = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"from here");
        }
    });
    let read = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); print(s.recv(9))";
    let read = format!("read port && python3 -c \"{read}\" $port");
    let remote = ssh().args(["-R", &format!("0:{here}"), &login, &read]);
    let mut remote = remote.spawn();
    remote.expect_stderr(0, "for remote forward");
    let told = String::from_utf8_lossy(&remote.stderr()).into_owned();
    let port = told
        .split("Allocated port ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    remote.send(format!("{}\n", port.expect("a port")));
    assert_eq!(remote.finish().ok().text(), "b'from here'");

    let socket = visit.here("m");
    let master = ssh().args(["-M", "-N", "-S"]).arg(&socket).arg(&login);
    let master = master.spawn();
    let shared = |args: &[&str]| ssh().arg("-S").arg(&socket).args(args);
    eventually("the master listens", || {
        shared(&["-O", "check", &login]).finish().status.success()
    });
    for status in 0..10 {
        let run = shared(&[&login, &format!("exit {status}")]);
        run.finish().exits(status);
    }
    shared(&["-O", "exit", &login]).ok();
    // Its status says that it was told to end.
    let _ = master.finish();
}

/// A file there and back by each of them.
pub(super) fn scp_and_sftp(visit: &Visit<'_>) {
    for protocol in ["-s", "-O"] {
        let (file, copy) = visit.files();
        let remote = format!("{}:{}", visit.login(), visit.there("file"));
        let scp = || visit.tool("scp").args(["-q", protocol]);
        scp().arg(&file).arg(&remote).ok();
        scp().arg(&remote).arg(&copy).ok();
        same(&file, &copy);
    }
    let (file, copy) = visit.files();
    let (put, moved) = (visit.there("put"), visit.there("moved"));
    let batch = format!(
        "put {} {put}\nrename {put} {moved}\nget {moved} {}\nrm {moved}\n",
        file.display(),
        copy.display()
    );
    let sftp = visit.tool("sftp").args(["-q", "-b", "-"]);
    sftp.arg(visit.login()).stdin(batch).ok();
    same(&file, &copy);
}

/// Whether two folders have the same files.
fn same_folders(folder: &Path, copy: &Path) {
    Run::new("diff").arg("-r").arg(folder).arg(copy).ok();
}

/// A folder there and back.
pub(super) fn rsync(visit: &Visit<'_>) {
    let (folder, copy) = (visit.files_in_a_folder(), visit.here("copy"));
    let remote = format!("{}:{}/", visit.login(), visit.there("folder"));
    let rsync = |from: &str, to: &str| {
        let run = visit
            .run("rsync")
            .args(["-a", "-e", &visit.ssh_command(), from, to]);
        run.ok();
    };
    rsync(&format!("{}/", folder.display()), &remote);
    rsync(&remote, &format!("{}/", copy.display()));
    same_folders(&folder, &copy);
}

/// A push, and a clone of what was pushed.
pub(super) fn git(visit: &Visit<'_>) {
    let (folder, copy) = (visit.files_in_a_folder(), visit.here("clone"));
    let git = |args: &[&str]| {
        let git = visit.run("git").current_dir(&folder);
        let git = git.env("GIT_SSH_COMMAND", visit.ssh_command());
        let git = git.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]);
        git.args(args).ok();
    };
    let bare = visit.there("project.git");
    let init = format!("git init -q --bare {bare}");
    visit.tool("ssh").args([&visit.login(), &init]).ok();
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "all"]);
    git(&[
        "push",
        "-q",
        &format!("{}:{bare}", visit.login()),
        "HEAD:main",
    ]);
    let url = format!("ssh://{}{bare}", visit.login());
    let copy_text = copy.display().to_string();
    git(&["clone", "-q", "-b", "main", &url, &copy_text]);
    same_folders(&folder.join("deeper"), &copy.join("deeper"));
}

/// A mounted sshfs; dropped, it is unmounted.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let unmount = Run::new("fusermount3").args(["-u", "-z"]).arg(self.0);
        let _ = unmount.finish();
    }
}

/// A file written and read through a mount.
pub(super) fn sshfs(visit: &Visit<'_>) {
    let mount = visit.here("mount");
    fs::create_dir(&mount).expect("a mount point");
    let remote = format!("{}:{}", visit.login(), visit.there(""));
    visit.tool("sshfs").arg(remote).arg(&mount).ok();
    let mounted = Mounted(&mount);
    let content = random_bytes(32, 1 << 20);
    fs::write(mount.join("file"), &content).expect("writing through sshfs");
    let copy = format!("cp {} {}", visit.there("file"), visit.there("copy"));
    visit.tool("ssh").args([&visit.login(), &copy]).ok();
    let mut read = Vec::new();
    fs::File::open(mount.join("copy"))
        .and_then(|mut file| file.read_to_end(&mut read))
        .expect("reading through sshfs");
    assert!(read == content, "the copy differs");
    fs::rename(mount.join("copy"), mount.join("moved")).expect("renaming");
    fs::remove_file(mount.join("moved")).expect("removing");
    drop(mounted);
    eventually("sshfs is unmounted", || {
        let mounts = fs::read_to_string("/proc/mounts").expect("proc");
        !mounts.contains(&mount.display().to_string())
    });
}

/// A folder mirrored both ways.
pub(super) fn lftp(visit: &Visit<'_>) {
    let (folder, copy) = (visit.files_in_a_folder(), visit.here("copy"));
    let script = format!(
        "set sftp:connect-program 'ssh -a -x -F {}'; set cmd:fail-exit yes; set net:max-retries 1; \
         open -u {}, sftp://{}; cd {}; mirror -R {} there; mv there moved; \
         mirror moved {}; rm -r moved; bye",
        visit.config().display(),
        visit.user(),
        visit.host(),
        visit.there(""),
        folder.display(),
        copy.display()
    );
    visit.run("lftp").args(["--norc", "-c", &script]).ok();
    same_folders(&folder, &copy);
}

/// A playbook, with and without pipelining.
pub(super) fn ansible(visit: &Visit<'_>) {
    for pipelining in ["False", "True"] {
        let fetched = visit.here("ansible-fetched");
        let ansible = visit.run(clients().join("venv/bin/ansible-playbook"));
        let ansible = ansible
            .env("ANSIBLE_HOME", visit.here("ansible"))
            .env("ANSIBLE_PIPELINING", pipelining)
            .env(
                "ANSIBLE_SSH_ARGS",
                format!("-F {}", visit.config().display()),
            )
            .env("ANSIBLE_TIMEOUT", "60")
            .env("ANSIBLE_PYTHON_INTERPRETER", "/usr/bin/python3")
            .env("LC_ALL", "C.UTF-8")
            .args(["--inventory", &format!("{},", visit.host())])
            .args(["--user", visit.user(), "--extra-vars"])
            .arg(format!("fetched={}", fetched.display()))
            .arg(fixture("playbook.yaml"))
            .limit(4 * visit.lab.patience);
        ansible.ok();
        let text = fs::read_to_string(&fetched).expect("what was fetched");
        assert_eq!(text, "from ansible\n");
        fs::remove_file(&fetched).expect("removing it");
    }
}
