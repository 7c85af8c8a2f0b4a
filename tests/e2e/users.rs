//! Users, keys and certificates: who gets in, and as whom.

use std::path::Path;

use vendetta_tests::{Client, Gateway, Run, Running};

#[test]
fn a_user_with_a_key_gets_in_until_key_or_user_is_removed() {
    let gateway = Gateway::builder().start();
    let alice = gateway.stranger("alice");
    alice.control("whoami").finish().exits(255);
    gateway
        .control("user add alice --role member --key -")
        .stdin(alice.public_key())
        .ok();
    assert_eq!(alice.control("whoami --json").ok().json()["role"], "member");

    let other = alice.generate_key("second", "ecdsa");
    let public = std::fs::read(other.with_extension("pub")).expect("a public key");
    alice.control("key add").stdin(public).ok();
    let keys = alice.control("key list --json").ok().json();
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(2), "{keys}");
    let fingerprint = keys["keys"][0]["fingerprint"]
        .as_str()
        .expect("a fingerprint")
        .to_owned();
    let first = Run::new("ssh-keygen")
        .args(["-l", "-f"])
        .arg(alice.key())
        .ok()
        .text();
    assert!(first.contains(&fingerprint), "{first} {fingerprint}");
    gateway
        .control(&format!("key remove --user alice {fingerprint}"))
        .ok();
    alice.control("whoami").finish().exits(255);

    gateway.control("user remove alice --yes").ok();
    let users = gateway.control("user list --json").ok().json();
    assert_eq!(users["users"].as_array().map(Vec::len), Some(1), "{users}");
}

#[test]
fn what_a_removed_key_or_user_had_opened_ends() {
    let gateway = Gateway::builder().host().start();
    gateway.create("ws", "provider: host\n");
    gateway.control("workspace up ws").ok();
    let admin = gateway.admin();
    let key = admin.generate_key("second", "ed25519");
    let public = std::fs::read(key.with_extension("pub")).expect("a public key");
    let added = admin.control("key add --json").stdin(public).ok().json();
    let fingerprint = added["keys"][0]["fingerprint"]
        .as_str()
        .expect("a fingerprint");
    let echo = "echo in; exec cat";
    let with_second = admin.tool("ssh").arg("-i").arg(&key);
    let lost = with_second.args(["ws@gateway", echo]).spawn();
    let mut kept = gateway.exec("ws", echo).spawn();
    lost.expect_stdout(0, "in\n");
    let seen = kept.expect_stdout(0, "in\n");
    gateway.control(&format!("key remove {fingerprint}")).ok();
    is_cut_off(lost);
    kept.send("still here\n");
    kept.expect_stdout(seen, "still here\n");

    // Their own removal is still answered.
    let alice = gateway.member("alice");
    let own = alice.control("whoami --json").ok().json();
    let own = own["key_fingerprint"].as_str().expect("a fingerprint");
    let removed = alice.control(&format!("key remove {own}")).ok();
    assert!(removed.text().contains("removed"), "{removed}");
    alice.control("whoami").finish().exits(255);

    let bob = gateway.member("bob");
    let prompt = script_of(&bob);
    gateway.control("user remove bob --yes").ok();
    is_cut_off(prompt);
}

/// An ssh that nobody has ended says why it ends.
fn is_cut_off(ssh: Running) {
    ssh.expect_stderr(0, "was removed");
    ssh.finish().exits(255);
}

/// Control commands that come line by line, one of which was answered.
fn script_of(client: &Client) -> Running {
    let mut script = client.tool("ssh").args(["-T", "vendetta@gateway"]).spawn();
    script.send("whoami\n");
    script.expect_stdout(0, "member");
    script
}

#[test]
fn keys_of_every_kept_kind_log_in() {
    let gateway = Gateway::builder().start();
    let alice = gateway.member("alice");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let key = alice.generate_key(&format!("key-{kind}"), kind);
        let public = std::fs::read(key.with_extension("pub")).expect("a public key");
        alice.control("key add").stdin(public).ok();
        let run = alice
            .tool("ssh")
            .arg("-i")
            .arg(&key)
            .args(["-o", "IdentityFile=none"]);
        run.args(["vendetta@gateway", "whoami"]).ok();
    }
}

#[test]
fn the_last_admin_and_their_last_key_cannot_be_removed() {
    let gateway = Gateway::builder().start();
    let me = gateway.control("whoami --json").ok().json();
    let (user, key) = (
        me["user"].as_str().expect("a name"),
        me["key_fingerprint"].as_str().expect("a key"),
    );
    gateway
        .control(&format!("user remove {user} --yes"))
        .finish()
        .exits(4);
    gateway
        .control(&format!("key remove {key}"))
        .finish()
        .exits(4);
    gateway.control("whoami").ok();
}

#[test]
fn a_key_stands_for_one_user() {
    let gateway = Gateway::builder().start();
    let alice = gateway.member("alice");
    gateway
        .control("user add bob --role member --key -")
        .stdin(alice.public_key())
        .finish()
        .exits(4);
    let users = gateway.control("user list --json").ok().json();
    assert_eq!(
        users["users"].as_array().map(Vec::len),
        Some(2),
        "nothing was changed: {users}"
    );
}

#[test]
fn a_member_manages_neither_users_nor_the_keys_of_others() {
    let gateway = Gateway::builder().start();
    let (alice, bob) = (gateway.member("alice"), gateway.member("bob"));
    alice.control("user list").finish().exits(3);
    alice.control("user add eve --role admin").finish().exits(3);
    alice.control("user remove bob --yes").finish().exits(3);
    alice.control("key list --user bob").finish().exits(3);
    alice
        .control("key add --user bob")
        .stdin(alice.public_key())
        .finish()
        .exits(3);
    bob.control("key list").ok();
}

/// A certificate authority and what it signs.
struct Authority {
    key: std::path::PathBuf,
}

impl Authority {
    fn new(dir: &Path) -> Self {
        let key = dir.join("user_ca");
        Run::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .ok();
        Self { key }
    }

    fn public_key(&self) -> String {
        std::fs::read_to_string(self.key.with_extension("pub"))
            .expect("a public key")
            .trim()
            .to_owned()
    }

    /// Certifies `client`'s key with the further `options` of ssh-keygen.
    fn certify(&self, client: &Client, options: &[&str]) {
        let sign = Run::new("ssh-keygen")
            .args(["-q", "-I", "test", "-s"])
            .arg(&self.key);
        sign.args(options)
            .arg(client.key().with_extension("pub"))
            .ok();
    }
}

#[test]
fn a_certificate_of_a_trusted_authority_logs_in_as_its_principal() {
    let scratch = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(scratch.path());
    let config = format!(
        "[users]\ntrusted_user_ca_keys = [\"{}\"]\n",
        authority.public_key()
    );
    let gateway = Gateway::builder().config(&config).start();
    gateway.member("alice");

    let carol = gateway.stranger("carol");
    carol.control("whoami").finish().exits(255);
    authority.certify(&carol, &["-n", "alice"]);
    assert_eq!(carol.control("whoami --json").ok().json()["user"], "alice");
    // Named by none of the gateway's users, expired, not yet valid, for a host,
    // of another place, of an option we do not know: refused, each.
    for options in [
        &["-n", "nobody"][..],
        &[],
        &["-n", "alice", "-V", "20200101:20200102"],
        &["-n", "alice", "-V", "20990101:20990102"],
        &["-n", "alice", "-h"],
        &["-n", "alice", "-O", "source-address=192.0.2.0/24"],
        &["-n", "alice", "-O", "critical:unknown@example.org=1"],
    ] {
        authority.certify(&carol, options);
        let run = carol.control("whoami").finish();
        assert_eq!(run.code(), 255, "let in with {options:?}: {run}");
    }
    let other = tempfile::tempdir().expect("a folder");
    Authority::new(other.path()).certify(&carol, &["-n", "alice"]);
    carol.control("whoami").finish().exits(255);
    authority.certify(
        &carol,
        &[
            "-n",
            "alice",
            "-O",
            "source-address=127.0.0.0/8",
            "-V",
            "-1h:+1h",
        ],
    );
    // It lasts as long as its user.
    let prompt = script_of(&carol);
    gateway.control("user remove alice --yes").ok();
    is_cut_off(prompt);
    carol.control("whoami").finish().exits(255);
}

#[test]
fn a_certificate_s_options_narrow_what_its_holder_may_do() {
    let scratch = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(scratch.path());
    let config = format!(
        "[users]\ntrusted_user_ca_keys = [\"{}\"]\n",
        authority.public_key()
    );
    let gateway = Gateway::builder().docker().config(&config).start();
    gateway.workspace("ws", vendetta_tests::TOOLS);
    let me = gateway.control("whoami --json").ok().json()["user"]
        .as_str()
        .expect("a name")
        .to_owned();
    let carol = gateway.stranger("carol");

    authority.certify(&carol, &["-n", &me, "-O", "no-port-forwarding"]);
    let run = carol
        .ssh("ws")
        .args(["-W", "127.0.0.1:22"])
        .finish()
        .exits(255);
    assert!(
        run.error_text().contains("administratively prohibited"),
        "{run}"
    );
    let forward = [
        "-o",
        "ExitOnForwardFailure=yes",
        "-R",
        "0:127.0.0.1:1",
        "true",
    ];
    carol.ssh("ws").args(forward).finish().exits(255);
    carol.exec("ws", "true").ok();

    authority.certify(&carol, &["-n", &me, "-O", "no-pty"]);
    let run = carol.ssh("ws").args(["-tt", "tty"]).finish();
    assert!(!run.text().contains("/dev/pts"), "{run}");

    authority.certify(&carol, &["-n", &me, "-O", "force-command=echo forced"]);
    assert_eq!(carol.exec("ws", "echo mine").ok().text(), "forced");
    assert_eq!(carol.ssh("ws").ok().text(), "forced");
    let options = "force-command=echo \"for $SSH_ORIGINAL_COMMAND\"";
    authority.certify(&carol, &["-n", &me, "-O", options]);
    assert_eq!(carol.exec("ws", "echo mine").ok().text(), "for echo mine");
    let run = carol.ssh("ws").args(["-s", "sftp"]).ok();
    assert_eq!(run.text(), "for sftp");
    // Only the gateway says what it was.
    let forged = ["-o", "SetEnv=SSH_ORIGINAL_COMMAND=forged"];
    assert_eq!(carol.ssh("ws").args(forged).ok().text(), "for");
    let shown = "echo \"for $SSH_ORIGINAL_COMMAND\"";
    let run = gateway.ssh("ws").args(forged).arg(shown).ok();
    assert_eq!(run.text(), "for");
    authority.certify(&carol, &["-n", &me, "-O", "force-command=echo forced"]);
    let run = carol
        .tool("sftp")
        .args(["-b", "-", "ws@gateway"])
        .stdin("ls\n")
        .finish();
    assert_ne!(run.code(), 0, "{run}");
}
