//! Those whom the gateway lets in beside itself.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use vendetta_proto::rpc::{Answer, Guests, Request, SUBSYSTEM};
use vendetta_sshio::keys::PrivateKey;

use crate::fixture::{Agent, Watch, finish, first_line, lives, wait_until, write_private};

/// Somebody with a key of their own.
struct Guest {
    config: PathBuf,
    fingerprint: String,
}

impl Guest {
    fn new(agent: &Agent, name: &str) -> Self {
        let key = PrivateKey::generate_ed25519(name).unwrap();
        let file = agent.path(name);
        write_private(&file, key.to_openssh().unwrap().as_bytes());
        let gateways = std::fs::read_to_string(agent.path("ssh_config")).unwrap();
        let own = gateways.replace(
            &agent.path("key").display().to_string(),
            &file.display().to_string(),
        );
        let config = agent.path(&format!("{name}.config"));
        write_private(&config, own.as_bytes());
        Self {
            config,
            fingerprint: key.public().fingerprint(),
        }
    }

    fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&self.config).stdin(Stdio::null());
        ssh
    }

    fn run(&self, destination: &str, command: &str) -> Output {
        self.ssh().args([destination, command]).output().unwrap()
    }

    fn is_let_in(&self) -> bool {
        self.run("ws", "true").status.success()
    }
}

fn admit(agent: &Agent, guests: &[&Guest]) -> Watch {
    let keys = guests.iter().map(|guest| guest.fingerprint.clone());
    let guests = Guests {
        keys: keys.collect(),
        ..Guests::default()
    };
    let mut watch = agent.watch(&Request::Admit { guests });
    assert_eq!(watch.next(), Some(Answer::Admitted));
    watch
}

#[test]
fn guests_are_let_in_as_long_as_the_gateway_says_so() {
    let agent = Agent::start();
    let (alice, bob) = (Guest::new(&agent, "alice"), Guest::new(&agent, "bob"));
    assert!(!alice.is_let_in());
    let both = admit(&agent, &[&alice, &bob]);
    assert!(alice.is_let_in() && bob.is_let_in());
    // A later admission takes the place of the one before, whose end is nothing then.
    let one = admit(&agent, &[&alice]);
    drop(both);
    assert!(alice.is_let_in() && !bob.is_let_in());
    drop(one);
    wait_until("nobody is let in", || !alice.is_let_in());
    // The gateway is let in whatever it says.
    assert_eq!(agent.text("echo gateway"), "gateway\n");
}

#[test]
fn one_who_is_no_longer_let_in_is_cut_off_with_all_they_run() {
    let agent = Agent::start();
    let (alice, bob) = (Guest::new(&agent, "alice"), Guest::new(&agent, "bob"));
    let _both = admit(&agent, &[&alice, &bob]);
    let start = |guest: &Guest, command: &str| {
        let mut ssh = guest.ssh();
        let line = format!("echo $$; exec {command}");
        ssh.args(["ws", &line]).stdout(Stdio::piped());
        ssh.spawn().unwrap()
    };
    let mut alices = start(&alice, "sleep 1000");
    let mut bobs = start(&bob, "sleep 1000");
    // One that takes nothing any more.
    let mut stalled = start(&alice, "yes");
    let pids = [&mut alices, &mut bobs, &mut stalled].map(first_line);
    let [alices_pid, bobs_pid, stalled_pid] = pids;
    let stop = nix::sys::signal::Signal::SIGSTOP;
    let client = nix::unistd::Pid::from_raw(stalled.id().cast_signed());
    nix::sys::signal::kill(client, stop).unwrap();
    let _one = admit(&agent, &[&bob]);
    assert!(!finish(&mut alices).success());
    for pid in [alices_pid, stalled_pid] {
        wait_until("what they ran has ended", || !lives(&pid));
    }
    assert!(lives(&bobs_pid), "the other goes on");
    stalled.kill().unwrap();
    stalled.wait().unwrap();
    bobs.kill().unwrap();
    bobs.wait().unwrap();
}

#[test]
fn a_guest_is_the_user_that_is_named_or_the_default_one_and_never_the_gateway() {
    let agent = Agent::configured(|config| config.user = Some("1234".to_owned()));
    let alice = Guest::new(&agent, "alice");
    let _stay = admit(&agent, &[&alice]);
    let user = |login: &str| {
        let output = alice.run(&format!("{login}@ws"), "id -u");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(user("nobody-of-that-name"), "1234");
    assert_eq!(user("vendetta"), "1234");
    assert_eq!(user("root"), "0");
    let ask = alice.ssh().args(["-s", "ws", SUBSYSTEM]).output().unwrap();
    assert!(!ask.status.success() && ask.stdout.is_empty(), "{ask:?}");
}
