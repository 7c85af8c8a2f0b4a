//! ProxyJump: clients that come to a workspace end to end, with what
//! `ssh-config` gives them and StrictHostKeyChecking=yes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use vendetta_tests::{
    Agent, BUSYBOX, Client, Gateway, Link, Node, PATIENCE, Run, TOOLS, eventually, free_port,
    random_bytes, sha256,
};

/// The gateway's subsystem of agents.
const SUBSYSTEM: &str = "agent@vendetta";

/// Somebody with an ssh configuration made of what the gateway says.
pub(crate) struct Jumper {
    home: PathBuf,
    config: PathBuf,
}

impl Jumper {
    pub(crate) fn new(client: &Client) -> Self {
        let home = client.home().to_owned();
        let config = home.join("jump_config");
        let told = client.control("ssh-config --json").ok().json();
        let text = |key: &str| told[key].as_str().expect("a text").to_owned();
        fs::write(home.join("jump_known_hosts"), text("known_hosts")).expect("known_hosts");
        let rest = format!(
            "Host *\n  IdentityFile {home}/id_ed25519\n  IdentitiesOnly yes\n  IdentityAgent none\n  \
             UserKnownHostsFile {home}/jump_known_hosts\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking yes\n  BatchMode yes\n  ConnectTimeout 30\n",
            home = home.display()
        );
        fs::write(&config, format!("{}\n{rest}", text("config"))).expect("an ssh configuration");
        Self { home, config }
    }

    /// Its `ssh_config`.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// `program` with its `-F ssh_config`.
    pub(crate) fn tool(&self, program: &str) -> Run {
        Run::new(program)
            .env("HOME", &self.home)
            .current_dir(&self.home)
            .arg("-F")
            .arg(&self.config)
    }

    fn ssh(&self, args: &[&str]) -> Run {
        self.tool("ssh").args(args)
    }

    /// `ssh DESTINATION COMMAND` and its output.
    fn text(&self, destination: &str, command: &str) -> String {
        self.ssh(&[destination, command]).ok().text()
    }

    /// What ssh says when it is not let through.
    fn refused(&self, args: &[&str]) -> String {
        self.ssh(args).finish().exits(255).error_text()
    }
}

/// What is left of a refusal without the name of the workspace.
fn without(text: &str, name: &str) -> String {
    text.replace(name, "NAME")
}

#[test]
fn every_form_leads_into_the_workspace_and_asks_nothing() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &format!(
            "provider: docker\ndocker: {{image: \"{TOOLS}\"}}\nuser: dev\nenv: {{COLOUR: blue}}\n\
             services: {{web: {{command: \"exec sleep 1000\", port: 80}}}}\n"
        ),
    );
    gateway.control("workspace up ws").ok();
    let jumper = Jumper::new(gateway.admin());
    // The gateway under its name, and through it as ever.
    jumper.ssh(&["vendetta", "whoami"]).ok();
    assert_eq!(jumper.text("ws@vendetta", "id -un"), "dev");
    // End to end: the workspace's own user unless another one of it is named.
    assert_eq!(jumper.text("ws.vendetta", "id -un"), "dev");
    assert_eq!(jumper.text("root@ws.vendetta", "id -un"), "root");
    let jump = |destination: &str| {
        jumper
            .ssh(&["-J", "vendetta", destination, "id -un"])
            .ok()
            .text()
    };
    assert_eq!(jump("vendetta@ws"), "dev");
    assert_eq!(jump("nobody-of-that-name@ws"), "dev");
    assert_eq!(jump("root@ws"), "root");
    // The local user's name is sent when none is: that of a user there means it.
    assert_eq!(jump("ws"), "root");
    let alias = ["-J", "vendetta", "-o", "HostKeyAlias=ws", "ws.any.suffix"];
    jumper.ssh(&alias).arg("true").ok();

    // The same session as through the gateway.
    let run = jumper.ssh(&["ws.vendetta", "cat; echo mine >&2; exit 7"]);
    let run = run.stdin(random_bytes(1, 3_000_000)).finish().exits(7);
    assert_eq!(sha256(&run.stdout), sha256(&random_bytes(1, 3_000_000)));
    assert_eq!(run.error_text(), "mine");
    jumper
        .ssh(&["ws.vendetta", "kill -9 $$"])
        .finish()
        .exits(255);
    let variables = "echo $COLOUR $VENDETTA_WORKSPACE $VENDETTA_SERVICE_WEB_PORT; pwd";
    let direct = gateway.exec("ws", variables).ok().text();
    assert!(direct.starts_with("blue ws 80"), "{direct}");
    assert_eq!(jumper.text("ws.vendetta", variables), direct);
    let run = jumper.ssh(&["-tt", "ws.vendetta", "tty"]).ok();
    assert!(run.text().contains("/dev/pts/"), "{run}");
    let audit = audited(&gateway, "jump");
    assert!(audit > 5, "{audit}");
}

/// How often the audit log has `event`.
pub(crate) fn audited(gateway: &Gateway, event: &str) -> usize {
    let query = format!(
        "import sqlite3,sys; print(sqlite3.connect(sys.argv[1]).execute(\"select count(*) from audit where event='{event}'\").fetchone()[0])"
    );
    let count = Run::new("python3")
        .args(["-c", &query])
        .arg(gateway.state_dir().join("state.db"))
        .ok();
    count.text().parse().expect("a number")
}

#[test]
fn keys_of_every_kind_open_an_agent() {
    let gateway = Gateway::builder().host().start();
    gateway.create("ws", "provider: host\n");
    let admin = gateway.admin();
    let jumper = Jumper::new(admin);
    for kind in ["ecdsa", "rsa"] {
        let key = admin.generate_key(&format!("key-{kind}"), kind);
        let public = fs::read(key.with_extension("pub")).expect("a public key");
        admin.control("key add").stdin(public).ok();
        // The inner connection's alone: the command line's are not those of its jump host.
        let identity = format!("IdentityFile={}", key.display());
        let config = fs::read_to_string(&jumper.config).expect("the configuration");
        let mine = format!(
            "Host ws.vendetta\n  {}\n{config}",
            identity.replace('=', " ")
        );
        let file = jumper.home.join("one-key");
        let own = format!("  IdentityFile {}/id_ed25519\n", jumper.home.display());
        let mine = mine.replace(&own, "");
        let mine = mine.replace("Host vendetta\n", &format!("Host vendetta\n{own}"));
        fs::write(&file, mine).expect("a configuration");
        let ssh = Run::new("ssh")
            .env("HOME", &jumper.home)
            .arg("-F")
            .arg(&file);
        let run = ssh.args(["-v", "ws.vendetta", "true"]).ok();
        let name = format!("key-{kind}");
        assert!(
            run.error_text().contains(&name),
            "it is the key that was offered: {run}"
        );
    }
}

#[test]
fn files_go_both_ways() {
    let gateway = Gateway::with_workspace();
    let jumper = Jumper::new(gateway.admin());
    let data = random_bytes(2, 5_000_000);
    let at = |name: &str| jumper.home.join(name);
    fs::write(at("data"), &data).expect("a file");
    let there = |path: &str| format!("ws.vendetta:{path}");
    jumper
        .tool("scp")
        .args(["-q", "data", &there("/tmp/data")])
        .ok();
    jumper
        .tool("scp")
        .args(["-q", &there("/tmp/data"), "back"])
        .ok();
    assert!(fs::read(at("back")).expect("a file") == data);
    let jump = ["-q", "-o", "ProxyJump=vendetta", "ws:/tmp/data", "back2"];
    jumper.tool("scp").args(jump).ok();
    assert!(fs::read(at("back2")).expect("a file") == data);
    let batch = "put data /tmp/data3\nget /tmp/data3 back3\n";
    let sftp = jumper.tool("sftp").args(["-q", "-b", "-", "ws.vendetta"]);
    sftp.stdin(batch).ok();
    assert!(fs::read(at("back3")).expect("a file") == data);
    let ssh = format!("ssh -F {}", jumper.config.display());
    for (from, to) in [
        ("data", there("/tmp/data4").as_str()),
        (&there("/tmp/data4"), "back4"),
    ] {
        let rsync = Run::new("rsync").current_dir(&jumper.home);
        rsync
            .env("HOME", &jumper.home)
            .args(["-e", &ssh, from, to])
            .ok();
    }
    assert!(fs::read(at("back4")).expect("a file") == data);
}

/// Sends `data` and reads until the other side ends.
fn exchange(port: u16, data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connecting to a forward");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    let mut sending = stream.try_clone().expect("another handle");
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            sending.write_all(data).expect("sending");
            sending.shutdown(Shutdown::Write).expect("half-closing");
        });
        stream.read_to_end(&mut answer).expect("an answer");
    });
    answer
}

#[test]
fn ports_and_the_ssh_agent_are_forwarded_end_to_end() {
    let gateway = Gateway::with_workspace();
    gateway.echo_server("ws", "tcp 127.0.0.1 7000");
    let jumper = Jumper::new(gateway.admin());
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listening");
    let here = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"from here");
        }
    });
    let tunnel = jumper.ssh(&[
        "-o",
        "ExitOnForwardFailure=yes",
        "-L",
        &format!("{port}:localhost:7000"),
        "-R",
        &format!("7001:127.0.0.1:{here}"),
        "ws.vendetta",
        "echo ready; cat",
    ]);
    let mut tunnel = tunnel.spawn();
    tunnel.expect_stdout(0, "ready");
    let data = random_bytes(3, 2_000_000);
    assert!(exchange(port, &data) == data, "other bytes came back");
    let read = "socat -u TCP:127.0.0.1:7001 STDOUT";
    assert_eq!(gateway.exec("ws", read).ok().text(), "from here");
    tunnel.close_stdin();
    let _ = tunnel.finish().ok();

    let key = gateway.admin().generate_key("signing", "ed25519");
    let agent = Agent::with(&[&key]);
    let config = format!("IdentityAgent={}", agent.socket().display());
    let forwarded = jumper.ssh(&["-o", &config, "-A", "ws.vendetta", "ssh-add -L"]);
    let public = fs::read_to_string(key.with_extension("pub")).expect("a public key");
    assert_eq!(forwarded.ok().text(), public.trim());
    // Only where it was asked for.
    jumper
        .ssh(&["-o", &config, "ws.vendetta", "ssh-add -L"])
        .finish()
        .exits(2);
}

#[test]
fn a_key_that_is_removed_is_refused_at_once_and_its_connection_ends() {
    let gateway = Gateway::builder().host().start();
    let alice = gateway.member("alice");
    alice
        .control("workspace create ws --provider host --up")
        .ok();
    let second = alice.generate_key("second", "ed25519");
    let public = fs::read_to_string(second.with_extension("pub")).expect("a public key");
    let jumper = Jumper::new(&alice);
    // The first key opens the gateway, the second the agent.
    let text = fs::read_to_string(&jumper.config).expect("the configuration");
    let own = format!("  IdentityFile {}/id_ed25519\n", jumper.home.display());
    let text = text
        .replace(&own, "")
        .replace("Host vendetta\n", &format!("Host vendetta\n{own}"))
        .replace(
            "Host *.vendetta\n",
            &format!("Host *.vendetta\n  IdentityFile {}\n", second.display()),
        );
    fs::write(&jumper.config, text).expect("the configuration");

    let refused = jumper.refused(&["ws.vendetta", "true"]);
    assert!(refused.contains("Permission denied"), "{refused}");
    // Others keep the agent open meanwhile: it learns of each change.
    let first = Jumper {
        home: jumper.home.clone(),
        config: jumper.home.join("first"),
    };
    let text = fs::read_to_string(&jumper.config).expect("the configuration");
    let text = text.replace(
        &second.display().to_string(),
        &alice.key().display().to_string(),
    );
    fs::write(&first.config, text).expect("a configuration");
    let mut other = first.ssh(&["ws.vendetta", "echo ready; cat"]).spawn();
    other.expect_stdout(0, "ready");

    let added = alice.control("key add --json").stdin(public).ok().json();
    let fingerprint = added["keys"][0]["fingerprint"]
        .as_str()
        .expect("a fingerprint");
    let mut live = jumper.ssh(&["ws.vendetta", "echo ready; cat"]).spawn();
    live.expect_stdout(0, "ready");
    alice.control(&format!("key remove {fingerprint}")).ok();
    let refused = jumper.refused(&["ws.vendetta", "true"]);
    assert!(refused.contains("Permission denied"), "{refused}");
    eventually("its connection ends", || !live.runs());
    let _ = live.finish().exits(255);
    assert!(other.runs(), "the other key's connection goes on");
    other.close_stdin();
    let _ = other.finish().ok();
}

#[test]
fn a_user_that_is_removed_is_cut_off_from_what_it_reaches_end_to_end() {
    let gateway = Gateway::builder().host().start();
    gateway.create("ws", "provider: host\n");
    gateway.control("workspace up ws").ok();
    let bob = gateway.stranger("bob");
    let add = gateway.control("user add bob --role admin --key -");
    add.stdin(bob.public_key()).ok();
    let (jumper, admin) = (Jumper::new(&bob), Jumper::new(gateway.admin()));
    let held = |who: &Jumper| {
        let live = who.ssh(&["ws.vendetta", "echo ready; cat"]).spawn();
        live.expect_stdout(0, "ready");
        live
    };
    let (mut live, mut other) = (held(&jumper), held(&admin));
    gateway.control("user remove bob --yes").ok();
    eventually("its connection ends", || !live.runs());
    let _ = live.finish().exits(255);
    jumper.refused(&["ws.vendetta", "true"]);
    other.send("still here\n");
    other.expect_stdout(0, "still here");
    other.close_stdin();
    let _ = other.finish().ok();
}

#[test]
fn a_workspace_of_others_is_refused_like_one_that_is_not_there() {
    let gateway = Gateway::builder().host().start();
    gateway.create("secret", "provider: host\n");
    gateway.control("workspace up secret").ok();
    let alice = Jumper::new(&gateway.member("alice"));
    let theirs = alice.refused(&["-J", "vendetta", "-o", "HostKeyAlias=x", "secret", "true"]);
    let absent = alice.refused(&["-J", "vendetta", "-o", "HostKeyAlias=x", "absent", "true"]);
    assert!(theirs.contains("no workspace"), "{theirs}");
    assert_eq!(without(&theirs, "secret"), without(&absent, "absent"));
    // Nor is anything else reached from a control login.
    let port = gateway.address().port();
    for (host, port) in [("127.0.0.1", port), ("secret", 80), ("ws", 23)] {
        let run = alice.ssh(&["-W", &format!("{host}:{port}"), "vendetta"]);
        let run = run.finish().exits(255);
        let text = run.error_text();
        assert!(text.contains("administratively prohibited"), "{text}");
        assert!(text.contains("WORKSPACE@vendetta"), "{text}");
    }
}

#[test]
fn it_comes_up_on_the_way_stays_itself_and_stays_down_when_that_was_decided() {
    let mut gateway = Gateway::docker();
    gateway.create(
        "ws",
        &format!("provider: docker\ndocker: {{image: \"{TOOLS}\"}}\n"),
    );
    let jumper = Jumper::new(gateway.admin());
    // Never started.
    assert_eq!(jumper.text("ws.vendetta", "echo up"), "up");
    // The key is the environment's own, and the same after a rebuild.
    let key = || {
        let scan = jumper.ssh(&[
            "-v",
            "-o",
            "HostKeyAlgorithms=ssh-ed25519",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "ws.vendetta",
            "true",
        ]);
        let text = scan.finish().error_text();
        let line = text
            .lines()
            .filter(|line| line.contains("Server host key:"));
        let mut keys: Vec<String> = line.map(str::to_owned).collect();
        keys.pop().unwrap_or_else(|| panic!("no host key: {text}"))
    };
    let before = key();
    gateway.control("workspace rebuild ws").ok();
    assert_eq!(key(), before);
    assert_eq!(jumper.text("ws.vendetta", "echo rebuilt"), "rebuilt");

    // A gateway that comes back lets everybody in again.
    gateway.kill();
    gateway.start();
    assert_eq!(jumper.text("ws.vendetta", "echo again"), "again");

    // Its end ends the connections into it.
    let mut live = jumper
        .ssh(&["ws.vendetta", "echo ready; exec sleep 1000"])
        .spawn();
    live.expect_stdout(0, "ready");
    gateway.control("workspace down ws").ok();
    eventually("the connection ends", || !live.runs());
    let refused = jumper.refused(&["ws.vendetta", "true"]);
    assert!(refused.contains("taken down on purpose"), "{refused}");
    assert!(refused.contains("workspace up ws"), "{refused}");
    assert_eq!(gateway.state("ws"), "stopped");
    gateway.control("workspace up ws").ok();
    assert_eq!(jumper.text("ws.vendetta", "echo back"), "back");
}

#[test]
fn a_workspace_on_another_machine_is_reached_alike_and_ends_with_it() {
    let node = Node::builder().docker().start();
    let gateway = Gateway::builder().operator_key(node.user_key()).start();
    let add = format!("node add n1 dev@{}", node.address());
    gateway.control(&add).ok();
    let create = format!("workspace create ws --remote n1 --provider docker --image {BUSYBOX}");
    gateway.control(&create).ok();
    let jumper = Jumper::new(gateway.admin());
    assert_eq!(jumper.text("ws.vendetta", "echo far"), "far");
    let data = random_bytes(4, 3_000_000);
    let run = jumper.ssh(&["ws.vendetta", "cat"]).stdin(data.clone()).ok();
    assert_eq!(sha256(&run.stdout), sha256(&data));
    let mut live = jumper
        .ssh(&["ws.vendetta", "echo ready; sleep 1000"])
        .spawn();
    live.expect_stdout(0, "ready");
    node.link(Link::Down);
    eventually("the connection ends", || !live.runs());
    let _ = live.finish().exits(255);
    node.link(Link::Up);
    eventually("it is reached again", || {
        let run = jumper.ssh(&["ws.vendetta", "echo again"]).finish();
        run.text() == "again"
    });
}

#[test]
fn a_pipe_is_a_use_of_its_workspace() {
    let gateway = Gateway::builder().host().start();
    gateway.create("ws", "provider: host\nidle_timeout: 2s\n");
    let jumper = Jumper::new(gateway.admin());
    let session = jumper.ssh(&["ws.vendetta", "sleep 6; echo done"]);
    assert_eq!(session.ok().text(), "done");
    eventually("it goes idle", || gateway.state("ws") == "stopped");
    assert_eq!(jumper.text("ws.vendetta", "echo back"), "back");
}

#[test]
fn a_guest_may_not_ask_the_agent_what_the_gateway_may() {
    let mut gateway = Gateway::builder().host().start();
    let (alice, bob) = (gateway.member("alice"), gateway.member("bob"));
    alice
        .control("workspace create ws --provider host --up")
        .ok();
    let jumper = Jumper::new(&alice);
    // Whoever reaches an agent's socket is let in only with a key that may connect,
    // and only while the gateway has let such keys in.
    let status = alice.control("workspace status ws --json").ok().json();
    let id = status["workspace"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let find = format!(
        "find {} -path '*{id}*' -name '*.sock'",
        gateway.state_dir().display()
    );
    let socket = Run::new("sh").args(["-c", &find]).ok().text();
    let proxy = format!("ProxyCommand=socat - UNIX-CONNECT:{socket}");
    let direct = |who: &Jumper| who.ssh(&["-o", &proxy, "ws.vendetta", "echo in"]).finish();
    assert_eq!(direct(&jumper).code(), 255, "nobody is let in yet");

    let ask = jumper.ssh(&["-s", "ws.vendetta", SUBSYSTEM]);
    let run = ask
        .stdin("{\"request\":\"ports\",\"follow\":false}\n")
        .finish();
    assert_ne!(run.code(), 0, "{run}");
    assert!(run.stdout.is_empty(), "{run}");
    assert!(
        run.error_text().contains("subsystem request failed"),
        "{run}"
    );

    let mut live = jumper.ssh(&["ws.vendetta", "echo ready; cat"]).spawn();
    live.expect_stdout(0, "ready");
    assert_eq!(direct(&jumper).ok().text(), "in");
    let run = direct(&Jumper::new(&bob)).exits(255);
    assert!(run.error_text().contains("Permission denied"), "{run}");
    live.close_stdin();
    let _ = live.finish().ok();
    // An agent whose gateway is gone lets nobody in.
    gateway.kill();
    eventually("nobody is let in any more", || {
        direct(&jumper).code() == 255
    });
}

#[test]
fn a_certificate_opens_an_agent_when_it_restricts_nothing() {
    let scratch = tempfile::tempdir().expect("a folder");
    let authority = scratch.path().join("user_ca");
    let keygen = || Run::new("ssh-keygen").arg("-q");
    keygen()
        .args(["-t", "ed25519", "-N", "", "-f"])
        .arg(&authority)
        .ok();
    let public = fs::read_to_string(authority.with_extension("pub")).expect("a public key");
    let config = format!("[users]\ntrusted_user_ca_keys = [\"{}\"]\n", public.trim());
    let gateway = Gateway::builder().host().config(&config).start();
    let alice = gateway.member("alice");
    alice
        .control("workspace create ws --provider host --up")
        .ok();

    let carol = gateway.stranger("carol");
    let certify = |options: &[&str]| {
        let sign = keygen().args(["-I", "test", "-s"]).arg(&authority);
        sign.args(options)
            .arg(carol.key().with_extension("pub"))
            .ok();
    };
    certify(&["-n", "alice"]);
    let jumper = Jumper::new(&carol);
    assert_eq!(jumper.text("ws.vendetta", "echo in"), "in");
    for option in [
        "force-command=echo forced",
        "no-pty",
        "source-address=127.0.0.0/8",
    ] {
        certify(&["-n", "alice", "-O", option]);
        let refused = jumper.refused(&["ws.vendetta", "true"]);
        assert!(refused.contains("Permission denied"), "{option}: {refused}");
        carol.exec("ws", "true").ok();
    }
    // The gateway makes no pipe for a certificate that forbids forwarding.
    certify(&["-n", "alice", "-O", "no-port-forwarding"]);
    let refused = jumper.refused(&["ws.vendetta", "true"]);
    assert!(
        refused.contains("does not permit port forwarding"),
        "{refused}"
    );
    // For somebody else of this gateway: not of this workspace.
    gateway.member("bob");
    certify(&["-n", "bob"]);
    let refused = jumper.refused(&["ws.vendetta", "true"]);
    assert!(refused.contains("no workspace"), "{refused}");
}

#[test]
fn the_page_says_what_to_paste_and_for_which_address() {
    let gateway = Gateway::builder().start();
    let alice = gateway.member("alice");
    let page = alice.control("ssh-config").ok().text();
    let port = gateway.address().port();
    assert!(
        page.contains(&format!(
            "Host vendetta\n    HostName 127.0.0.1\n    Port {port}\n"
        )),
        "{page}"
    );
    assert!(
        page.contains("#@cert-authority *.vendetta ssh-ed25519 "),
        "{page}"
    );
    let elsewhere = "ssh-config --known-hosts --host-name dev.example.org --port 22";
    let lines = alice.control(elsewhere).ok().text();
    assert!(lines.starts_with("dev.example.org ssh-ed25519 "), "{lines}");
    // All of it can stand in a configuration as it is.
    let file = alice.home().join("page");
    fs::write(&file, &page).expect("a configuration");
    let ssh = Run::new("ssh").arg("-F").arg(&file);
    let resolved = ssh.args(["-G", "my-project.vendetta"]).ok().text();
    assert!(resolved.contains("proxyjump vendetta"), "{resolved}");
    alice
        .control("ssh-config --host-name 'x ProxyCommand'")
        .finish()
        .exits(2);
}
