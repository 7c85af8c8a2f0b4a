//! Clients that are not OpenSSH's, each with all that people do with it, and the table of
//! them in `docs/clients.md`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vendetta_tests::{Gateway, Node, PATIENCE, Run, clients, eventually, free_port, random_bytes};

/// A client, what is shown to work with it, and the test that shows it.
struct Row {
    client: &'static str,
    works: &'static str,
    note: &'static str,
    test: &'static str,
}

const fn row(
    client: &'static str,
    works: &'static str,
    note: &'static str,
    test: &'static str,
) -> Row {
    Row {
        client,
        works,
        note,
        test,
    }
}

/// The rows of `docs/clients.md`.
const ROWS: [Row; 17] = [
    row(
        "OpenSSH `ssh`",
        "sessions, terminals, `-L` `-R` `-D` `-W` `-A` `-X`, ControlMaster, `-t`",
        "",
        "multiplex::the_exit_statuses_of_20_sessions_at_once_all_arrive",
    ),
    row(
        "OpenSSH `scp`, `scp -O`, `sftp`",
        "files and folders both ways",
        "`-O` needs `scp` in the image",
        "transfer::names_modes_times_and_links_survive_scp_and_sftp",
    ),
    row(
        "rsync",
        "folders both ways",
        "needs `rsync` in the image",
        "transfer::rsync_copies_2000_files_both_ways",
    ),
    row(
        "git",
        "push, clone, fetch",
        "needs `git` in the image",
        "transfer::git_pushes_into_and_clones_from_the_environment",
    ),
    row(
        "sshfs",
        "mount",
        "",
        "transfer::sshfs_mounts_the_environment",
    ),
    row(
        "Dropbear `dbclient`",
        "sessions, `-L`, rsync over it",
        "",
        "clients::dropbear",
    ),
    row(
        "PuTTY `plink`, `pscp`, `psftp`",
        "sessions, `-L`, files by SFTP and by SCP",
        "`pscp -scp` needs `scp` in the image",
        "clients::putty",
    ),
    row(
        "curl (libssh2)",
        "`sftp://` and `scp://` both ways",
        "`scp://` needs `scp` in the image",
        "clients::curl",
    ),
    row(
        "lftp",
        "`sftp://` files, `mirror` both ways",
        "",
        "clients::lftp",
    ),
    row(
        "rclone",
        "`copy`, `check` with checksums, `sync`",
        "",
        "clients::rclone",
    ),
    row(
        "Paramiko",
        "sessions, terminals, SFTP, forwards",
        "",
        "clients::paramiko",
    ),
    row(
        "AsyncSSH",
        "20 sessions at once, terminals, signals, SFTP, SCP, forwards both ways",
        "",
        "clients::asyncssh",
    ),
    row(
        "Fabric",
        "`run`, terminals, `put`, `get`, forwards",
        "",
        "clients::fabric",
    ),
    row(
        "Ansible",
        "`ping`, `copy`, `command`, `fetch`, with and without pipelining",
        "needs Python in the image",
        "clients::ansible",
    ),
    row(
        "ssh2 (Node.js)",
        "sessions, terminals, SFTP, forwards, long commands beside a held one",
        "",
        "clients::ssh2_of_node",
    ),
    row(
        "ssh2-sftp-client (Node.js)",
        "files and folders both ways",
        "",
        "clients::ssh2_sftp_client_of_node",
    ),
    row(
        "ssh-audit",
        "warns of nothing that it does not warn of in OpenSSH's sshd",
        "",
        "clients::ssh_audit_finds_nothing_that_it_does_not_find_in_openssh",
    ),
];

/// A workspace `ws`, an echo server in it, and what clients that do not read OpenSSH's
/// files have to be told.
struct Lab {
    gateway: Gateway,
    port: String,
    known_hosts: PathBuf,
    fingerprint: String,
}

/// Where the echo server listens in the environment.
const ECHO: &str = "7000";

impl Lab {
    fn new() -> Self {
        let gateway = Gateway::with_workspace();
        gateway.echo_server("ws", &format!("tcp 127.0.0.1 {ECHO}"));
        let home = gateway.admin().home();
        let known = fs::read_to_string(home.join("known_hosts")).expect("known_hosts");
        let port = gateway.address().port().to_string();
        let (_, key) = known.trim().split_once(' ').expect("a host and its key");
        fs::create_dir_all(home.join(".ssh")).expect("a folder");
        let known_hosts = home.join(".ssh/known_hosts");
        fs::write(&known_hosts, format!("[127.0.0.1]:{port} {key}\n")).expect("known_hosts");
        let listed = Run::new("ssh-keygen").arg("-lf").arg(&known_hosts).ok();
        let fingerprint = listed.text();
        let fingerprint = fingerprint.split(' ').nth(1).expect("a fingerprint");
        Self {
            fingerprint: fingerprint.to_owned(),
            port,
            known_hosts,
            gateway,
        }
    }

    fn key(&self) -> PathBuf {
        self.gateway.admin().key()
    }

    fn run(&self, program: impl AsRef<Path>) -> Run {
        let program = program.as_ref().display().to_string();
        self.gateway.admin().program(&program)
    }

    /// A file of random bytes, and where a copy of it may go.
    fn files(&self) -> (PathBuf, PathBuf) {
        let dir = self.gateway.scratch();
        let (there, back) = (dir.join("there"), dir.join("back"));
        fs::write(&there, random_bytes(1, 1 << 20)).expect("a file");
        let _ = fs::remove_file(&back);
        (there, back)
    }

    /// A client brought `there` into the environment and out again.
    fn same(&self, there: &Path, back: &Path) {
        let read = |path| fs::read(path).expect("a file");
        assert!(read(there) == read(back), "the copy differs");
    }

    /// A script of `tests/fixtures/clients`, told the gateway's port, the key, the host's
    /// key and the port of the echo server.
    fn script(&self, interpreter: impl AsRef<Path>, script: &str, host: impl AsRef<Path>) {
        let done = self
            .run(interpreter)
            .env("NODE_PATH", clients().join("node_modules"))
            .env("TMPDIR", self.gateway.scratch())
            .arg(fixture(script))
            .arg(&self.port)
            .arg(self.key())
            .arg(host.as_ref())
            .arg(ECHO);
        done.ok();
    }

    fn python(&self, script: &str) {
        self.script(clients().join("venv/bin/python"), script, &self.known_hosts);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/clients")
        .join(name)
}

/// An exchange that a client's session does in its own words: input, output, status.
fn session(run: Run) {
    let done = run.arg("cat; exit 7").stdin("there and back").finish();
    assert_eq!(done.exits(7).text(), "there and back");
}

/// A tunnel to the echo server; `forward` is how the client is told of it.
fn tunnel(forward: impl Fn(&str) -> Run) {
    let local = free_port();
    let client = forward(&format!("{local}:127.0.0.1:{ECHO}")).spawn();
    let address = SocketAddr::from(([127, 0, 0, 1], local));
    let mut stream = None;
    eventually("the client listens", || {
        stream = TcpStream::connect(address).ok();
        stream.is_some()
    });
    let mut stream = stream.expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream.write_all(b"ping").expect("writing");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"ping");
    drop(client);
}

#[test]
fn dropbear() {
    let lab = Lab::new();
    let key = lab.gateway.scratch().join("dropbear.key");
    let convert = lab.run("dropbearconvert").args(["openssh", "dropbear"]);
    convert.arg(lab.key()).arg(&key).ok();
    let dbclient = || {
        let run = lab.run("dbclient").args(["-y", "-i"]).arg(&key);
        run.args(["-p", &lab.port])
    };
    session(dbclient().arg("ws@127.0.0.1"));
    tunnel(|forward| dbclient().args(["-N", "-L", forward, "ws@127.0.0.1"]));
    let (there, back) = lab.files();
    let rsh = format!("dbclient -y -i {} -p {}", key.display(), lab.port);
    let copy = |from: &str, to: &str| {
        lab.run("rsync").args(["-a", "-e", &rsh, from, to]).ok();
    };
    copy(&there.display().to_string(), "ws@127.0.0.1:file");
    copy("ws@127.0.0.1:file", &back.display().to_string());
    lab.same(&there, &back);
}

#[test]
fn putty() {
    let lab = Lab::new();
    let key = lab.gateway.scratch().join("key.ppk");
    let convert = lab.run("puttygen").arg(lab.key()).arg("-o").arg(&key);
    convert.ok();
    let tool = |name: &str| {
        let run = lab.run(name).args(["-batch", "-noagent", "-P", &lab.port]);
        run.args(["-hostkey", &lab.fingerprint, "-i"]).arg(&key)
    };
    let plink = || tool("plink").args(["-ssh", "-l", "ws"]);
    session(plink().arg("127.0.0.1"));
    tunnel(|forward| plink().args(["-N", "-L", forward, "127.0.0.1"]));
    for protocol in ["-sftp", "-scp"] {
        let (there, back) = lab.files();
        let pscp = |from: &str, to: &str| {
            let run = tool("pscp").args([protocol, "-q", from, to]);
            run.ok();
        };
        let file = "ws@127.0.0.1:/workspace/file";
        pscp(&there.display().to_string(), file);
        pscp(file, &back.display().to_string());
        lab.same(&there, &back);
    }
    let script = lab.gateway.scratch().join("script");
    let (there, back) = lab.files();
    let lines = [
        "cd /workspace".to_owned(),
        "mkdir folder".to_owned(),
        format!("put {} folder/file", there.display()),
        "chmod 640 folder/file".to_owned(),
        "mv folder/file renamed".to_owned(),
        format!("get renamed {}", back.display()),
        "rm renamed".to_owned(),
        "rmdir folder".to_owned(),
    ];
    fs::write(&script, lines.join("\n")).expect("a script");
    let psftp = tool("psftp").arg("-b").arg(&script);
    psftp.arg("ws@127.0.0.1").ok();
    lab.same(&there, &back);
}

#[test]
fn curl() {
    let lab = Lab::new();
    for scheme in ["sftp", "scp"] {
        let (there, back) = lab.files();
        let curl = || {
            let run = lab.run("curl").args(["--silent", "--show-error"]);
            let run = run.args(["--user", "ws:", "--key"]).arg(lab.key());
            let run = run.arg("--pubkey").arg(lab.key().with_extension("pub"));
            let sha256 = lab.fingerprint.trim_start_matches("SHA256:");
            run.args(["--hostpubsha256", sha256])
                .arg(format!("{scheme}://127.0.0.1:{}/workspace/file", lab.port))
        };
        curl().arg("--upload-file").arg(&there).ok();
        curl().arg("--output").arg(&back).ok();
        lab.same(&there, &back);
    }
}

/// A folder with some files in a folder.
fn folder(lab: &Lab) -> PathBuf {
    let folder = lab.gateway.scratch().join("folder");
    fs::create_dir_all(folder.join("deeper")).expect("a folder");
    for file in 0..20 {
        let content = random_bytes(file, 10_000);
        fs::write(folder.join(format!("deeper/file{file}")), content).expect("a file");
    }
    folder
}

#[test]
fn lftp() {
    let lab = Lab::new();
    let (folder, copy) = (folder(&lab), lab.gateway.scratch().join("copy"));
    let script = format!(
        "set sftp:connect-program 'ssh -a -x -F {}'; set cmd:fail-exit yes; set net:max-retries 1; \
         open -u ws, sftp://gateway; cd /workspace; mirror -R {} there; mv there moved; \
         mirror moved {}; rm -r moved; bye",
        lab.gateway.admin().config().display(),
        folder.display(),
        copy.display()
    );
    lab.run("lftp").args(["--norc", "-c", &script]).ok();
    Run::new("diff").arg("-r").arg(&folder).arg(&copy).ok();
}

#[test]
fn rclone() {
    let lab = Lab::new();
    let (folder, copy) = (folder(&lab), lab.gateway.scratch().join("copy"));
    let rclone = |command: &str, from: &str, to: &str| {
        let run = lab.run("rclone").args(["--config", "/dev/null"]);
        let run = run.args(["--sftp-host", "127.0.0.1", "--sftp-user", "ws"]);
        let run = run.args(["--sftp-port", &lab.port, "--sftp-key-file"]);
        let run = run.arg(lab.key()).arg("--sftp-known-hosts-file");
        run.arg(&lab.known_hosts).args([command, from, to]).ok();
    };
    let (from, to) = (folder.display().to_string(), copy.display().to_string());
    rclone("copy", &from, ":sftp:/workspace/there");
    rclone("check", &from, ":sftp:/workspace/there");
    rclone("sync", ":sftp:/workspace/there", &to);
    Run::new("diff").arg("-r").arg(&folder).arg(&copy).ok();
}

#[test]
fn paramiko() {
    Lab::new().python("use_paramiko.py");
}

#[test]
fn asyncssh() {
    Lab::new().python("use_asyncssh.py");
}

#[test]
fn fabric() {
    Lab::new().python("use_fabric.py");
}

#[test]
fn ansible() {
    let lab = Lab::new();
    for pipelining in ["False", "True"] {
        let config = lab.gateway.admin().config();
        let ansible = lab.run(clients().join("venv/bin/ansible-playbook"));
        let ansible = ansible
            .env("ANSIBLE_HOME", lab.gateway.scratch().join("ansible"))
            .env("ANSIBLE_PIPELINING", pipelining)
            .env("ANSIBLE_SSH_ARGS", format!("-F {}", config.display()))
            .env("ANSIBLE_PYTHON_INTERPRETER", "/usr/bin/python3")
            .env("LC_ALL", "C.UTF-8")
            .args(["--inventory", "gateway,", "--user", "ws", "--extra-vars"])
            .arg(format!("scratch={}", lab.gateway.scratch().display()))
            .arg(fixture("playbook.yaml"))
            .limit(Duration::from_secs(240));
        ansible.ok();
        let fetched = fs::read_to_string(lab.gateway.scratch().join("ansible-fetched"));
        assert_eq!(fetched.expect("what was fetched"), "from ansible\n");
        fs::remove_file(lab.gateway.scratch().join("ansible-fetched")).expect("removing it");
    }
}

#[test]
fn ssh2_of_node() {
    let lab = Lab::new();
    lab.script("node", "use_ssh2.js", &lab.fingerprint);
}

#[test]
fn ssh2_sftp_client_of_node() {
    let lab = Lab::new();
    lab.script("node", "use_ssh2_sftp_client.js", &lab.fingerprint);
}

/// What ssh-audit finds wrong at an address: the algorithm and why.
fn audited(lab: &Lab, host: &str, port: &str) -> BTreeSet<String> {
    let audit = lab.run(clients().join("venv/bin/ssh-audit"));
    // Its exit status says that there is something.
    let found = audit.args(["--json", "--port", port, host]).finish().json();
    let mut wrong = BTreeSet::new();
    for kind in ["kex", "key", "enc", "mac"] {
        let offered = found[kind].as_array().expect("a list");
        assert!(!offered.is_empty(), "{kind}: {found}");
        for one in offered {
            for level in ["fail", "warn"] {
                let notes = one["notes"][level].as_array();
                for note in notes.into_iter().flatten() {
                    wrong.insert(format!("{} {level}: {note}", one["algorithm"]));
                }
            }
        }
    }
    let advised: Vec<_> = found["cves"].as_array().into_iter().flatten().collect();
    assert!(advised.is_empty(), "{advised:?}");
    wrong
}

#[test]
fn ssh_audit_finds_nothing_that_it_does_not_find_in_openssh() {
    let lab = Lab::new();
    let node = Node::start();
    let ours = audited(&lab, "127.0.0.1", &lab.port);
    let theirs = audited(&lab, &node.address().to_string(), "22");
    let worse: Vec<_> = ours.difference(&theirs).collect();
    assert!(worse.is_empty(), "{worse:#?}");
    assert!(ours.len() < theirs.len(), "{ours:#?}");
}

/// A row's test is there, and the page says what the rows say.
#[test]
fn the_page_says_what_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut table = String::from("| client | works | note |\n|---|---|---|\n");
    for row in ROWS {
        let (module, test) = row.test.split_once("::").expect("MODULE::TEST");
        let source = root.join("e2e").join(module).with_extension("rs");
        let source = fs::read_to_string(source).expect("a module of tests");
        assert!(
            source.contains(&format!("#[test]\nfn {test}()")),
            "there is no test {}",
            row.test
        );
        table.push_str(&format!(
            "| {} | {} | {} |\n",
            row.client, row.works, row.note
        ));
    }
    let page = root.join("../docs/clients.md");
    let text = fs::read_to_string(&page).expect("the page");
    let (begin, end) = ("<!-- generated: tests/e2e/clients.rs -->\n", "<!-- end -->");
    let (before, rest) = text.split_once(begin).expect("where the table begins");
    let (_, after) = rest.split_once(end).expect("where the table ends");
    let current = format!("{before}{begin}{table}{end}{after}");
    if std::env::var_os("VENDETTA_REGENERATE").is_some() {
        fs::write(&page, &current).expect("writing the page");
        return;
    }
    assert!(text == current, "run it again with VENDETTA_REGENERATE=1");
}
