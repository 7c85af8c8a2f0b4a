//! `vendetta setup`: plain `ssh` knows a gateway after it, and nothing in the way it is
//! configured has it believe another.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use vendetta_tests::{Client, Gateway, Run, eventually};

use crate::jump::audited;

/// A home of somebody whose key the gateways know.
struct Home(PathBuf);

impl Home {
    fn of(client: &Client) -> Self {
        let home = Self(client.home().join("home"));
        let ssh = home.ssh();
        fs::create_dir_all(&ssh).expect("a folder");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o700)).expect("its mode");
        for file in ["id_ed25519", "id_ed25519.pub"] {
            fs::copy(client.home().join(file), ssh.join(file)).expect("a key");
        }
        home
    }

    fn ssh(&self) -> PathBuf {
        self.0.join(".ssh")
    }

    fn configure(&self, text: &str) {
        fs::write(self.ssh().join("config"), text).expect("a configuration");
    }

    /// Runs `script` where this is root's home, since ssh takes that from /etc/passwd.
    fn run(&self, script: &str) -> Run {
        let bound = format!("mount --bind {} /root && cd && {script}", self.0.display());
        Run::new("unshare")
            .args(["--mount", "sh", "-c", &bound])
            .env("HOME", "/root")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    }

    fn says(&self, script: &str) -> String {
        self.run(script).ok().text()
    }

    /// That nothing of ours is there, and the user's file is `config`.
    fn is_untouched(&self, config: &str) {
        let text = fs::read_to_string(self.ssh().join("config")).expect("a configuration");
        assert_eq!(text, config);
        assert!(!self.ssh().join("vendetta").exists());
    }
}

/// The command, without what sets up.
fn vendetta() -> String {
    Gateway::binary("vendetta").display().to_string()
}

fn setup_of(gateway: &Gateway) -> String {
    let port = gateway.address().port();
    format!("{} --gateway 127.0.0.1:{port} setup", vendetta())
}

/// The fingerprint of the gateway's host key.
fn fingerprint(gateway: &Gateway) -> String {
    let port = gateway.address().port();
    let line = format!("ssh-keyscan -t ed25519 -p {port} 127.0.0.1 2>&- | ssh-keygen -lf -");
    let listed = Run::new("sh").args(["-c", &line]).ok().text();
    let fingerprint = listed.split(' ').nth(1).expect("a fingerprint");
    fingerprint.to_owned()
}

/// A fingerprint of no key.
fn another() -> String {
    format!("SHA256:{}", "A".repeat(43))
}

/// That nobody has logged in on the gateway since it had `before` logins in its audit log.
fn nobody_has_logged_in(gateway: &Gateway, before: usize) {
    gateway.control("whoami").ok();
    eventually("that login alone is in the audit log", || {
        audited(gateway, "login") == before + 1
    });
}

#[test]
fn setup_lets_plain_ssh_know_everything_and_undo_leaves_nothing() {
    let gateway = Gateway::builder().host().start();
    let alice = gateway.member("alice");
    alice
        .control("workspace create my-project --provider host --up")
        .ok();
    let home = Home::of(&alice);
    let ssh = home.ssh();
    let dotfiles = home.0.join("dotfiles");
    fs::create_dir(&dotfiles).expect("a folder");
    let original = "# mine\nHost *\n  User somebody\n  StrictHostKeyChecking yes\n  BatchMode yes\n  GlobalKnownHostsFile /dev/null";
    fs::write(dotfiles.join("ssh"), original).expect("a configuration");
    fs::set_permissions(dotfiles.join("ssh"), fs::Permissions::from_mode(0o640)).expect("its mode");
    symlink("../dotfiles/ssh", ssh.join("config")).expect("a link");

    let setup = setup_of(&gateway);
    // Nobody knows the gateway yet, and nobody is there to be asked.
    let run = home.run(&setup).finish().exits(5);
    assert!(
        run.error_text().contains("Host key verification failed"),
        "{run}"
    );
    assert!(run.error_text().contains("--host-key"), "{run}");
    home.is_untouched(original);
    // One who knows the fingerprint is asked nothing.
    home.run(&format!("{setup} --host-key nonsense"))
        .finish()
        .exits(2);
    let fingerprint = fingerprint(&gateway);
    home.says(&format!("{setup} --host-key {fingerprint}"));
    assert!(home.says("ssh vendetta whoami").contains("alice"));
    // So is the local command, which goes to the address.
    let whoami = setup.replace("setup", "whoami");
    assert!(home.says(&whoami).contains("alice"));
    home.says(&format!("{} setup --undo", vendetta()));
    home.is_untouched(original);
    // A file that something holds in its place stays, and then so does everything.
    let held = format!("mount --bind dotfiles/ssh dotfiles/ssh && {setup}");
    let run = home.run(&format!("{held} --host-key {fingerprint}"));
    let run = run.finish().exits(5);
    assert!(run.error_text().contains("nothing is written"), "{run}");
    home.is_untouched(original);

    let port = gateway.address().port();
    let known = ssh.join("known_hosts");
    home.says(&format!(
        "ssh-keyscan -t ed25519 -p {port} 127.0.0.1 >.ssh/known_hosts"
    ));
    for _ in 0..2 {
        assert!(home.says(&setup).contains("ssh my-project.vendetta"));
    }
    fs::remove_file(known).expect("the keys of before");
    let text = fs::read_to_string(dotfiles.join("ssh")).expect("the configuration");
    assert_eq!(text, format!("Include ~/.ssh/vendetta/config\n{original}"));

    assert!(home.says("ssh vendetta whoami").contains("alice"));
    assert_eq!(home.says("ssh my-project@vendetta echo relayed"), "relayed");
    assert_eq!(home.says("ssh my-project.vendetta echo direct"), "direct");
    // To a client that knows no certificates too.
    let bare = "ssh -o HostKeyAlgorithms=ssh-ed25519 my-project.vendetta echo bare";
    assert_eq!(home.says(bare), "bare");
    // `User somebody` is the user's own for every host that we say nothing about.
    let alias = "ssh -J vendetta -o HostKeyAlias=my-project.vendetta -o UserKnownHostsFile=.ssh/vendetta/known_hosts my-project echo jumped";
    assert_eq!(home.says(alias), "jumped");
    fs::write(home.0.join("file"), "content").expect("a file");
    home.says("scp -q file my-project.vendetta:copied && ssh my-project.vendetta cat copied");
    // A gateway may say any name, so it is believed for no other machine's.
    for name in ["my-project", "my-project.elsewhere"] {
        let run = home.run(&format!("ssh -J vendetta {name} true")).finish();
        assert!(
            run.error_text().contains("Host key verification failed"),
            "{run}"
        );
    }
    // The gateway that is known by its name can be set up by it.
    alice.control("workspace create other --provider host").ok();
    home.says(&format!("{} --gateway vendetta setup", vendetta()));
    assert_eq!(home.says("ssh my-project.vendetta echo direct"), "direct");
    let text = fs::read_to_string(ssh.join("vendetta/config")).expect("our configuration");
    assert!(
        text.contains("\nHost my-project.vendetta\nHost other.vendetta\n"),
        "{text}"
    );

    let undo = format!("{} setup --undo", vendetta());
    home.says(&undo);
    let link = ssh.join("config");
    assert!(link.is_symlink());
    home.is_untouched(original);
    let mode = fs::metadata(&link).expect("its mode").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(home.says(&undo).contains("nothing to take back"));
}

#[test]
fn a_fingerprint_is_proved_before_the_login_however_ssh_is_configured() {
    let gateway = Gateway::builder().start();
    let home = Home::of(gateway.admin());
    let (setup, fingerprint) = (setup_of(&gateway), fingerprint(&gateway));
    let undo = format!("{} setup --undo", vendetta());
    for config in [
        "",
        "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n",
        "NoHostAuthenticationForLocalhost yes\n",
        "KnownHostsCommand /bin/echo %H %t %K\n",
        "HostKeyAlias elsewhere\nHashKnownHosts yes\nUpdateHostKeys yes\n",
        "VerifyHostKeyDNS yes\nForwardAgent yes\nForwardX11 yes\nPreferredAuthentications publickey\n",
    ] {
        home.configure(config);
        let run = home.run(&format!("{setup} --host-key {}", another()));
        let said = run.finish().exits(5).error_text();
        assert!(said.contains("somebody is in between"), "{config}: {said}");
        home.is_untouched(config);
    }
    nobody_has_logged_in(&gateway, 0);
    for config in [
        "StrictHostKeyChecking no\nNoHostAuthenticationForLocalhost yes\n",
        "KnownHostsCommand /bin/echo %H %t %K\nHostKeyAlias elsewhere\n",
    ] {
        home.configure(config);
        home.says(&format!("{setup} --host-key {fingerprint}"));
        let known = fs::read_to_string(home.ssh().join("vendetta/known_hosts")).expect("keys");
        fs::write(home.0.join("key"), known.lines().next().unwrap_or_default()).expect("a key");
        let listed = home.says("ssh-keygen -lf key");
        assert!(listed.contains(&fingerprint), "{listed}");
        home.says(&undo);
        home.is_untouched(config);
    }
    // A connection that is open already has proved nothing to us.
    let config = "ControlPath ~/.ssh/master\nControlMaster auto\nStrictHostKeyChecking no\n";
    home.configure(config);
    let port = gateway.address().port();
    let run = home.run(&format!(
        "ssh -fN -p {port} vendetta@127.0.0.1 >/dev/null 2>&1; {setup} --host-key {}; \
         status=$?; ssh -O exit -p {port} vendetta@127.0.0.1 || exit 1; exit $status",
        another()
    ));
    let said = run.finish().exits(5).error_text();
    assert!(said.contains("somebody is in between"), "{said}");
    home.is_untouched(config);
}

#[test]
fn another_that_takes_the_gateway_s_place_after_the_proof_is_not_logged_in_to() {
    let gateway = Gateway::builder().start();
    let home = Home::of(gateway.admin());
    let between = Gateway::builder().start();
    let key = gateway.admin().public_key();
    between
        .control("user add victim --role member --key -")
        .stdin(key)
        .ok();
    eventually("it is the only login there", || {
        audited(&between, "login") == 1
    });
    let config = format!(
        "StrictHostKeyChecking no\nKnownHostsCommand /bin/echo %H %t %K\n\
         ProxyCommand sh -c 'if mkdir .ssh/once 2>&-; then port={}; else port={}; fi; exec socat - TCP:127.0.0.1:$port'\n",
        gateway.address().port(),
        between.address().port()
    );
    home.configure(&config);
    let line = format!(
        "{} --host-key {}",
        setup_of(&gateway),
        fingerprint(&gateway)
    );
    let run = home.run(&line).finish().exits(5);
    assert!(
        run.error_text().contains("Host key verification failed"),
        "{run}"
    );
    home.is_untouched(&config);
    nobody_has_logged_in(&between, 1);
}

#[test]
fn without_a_fingerprint_ssh_knows_the_gateway_or_asks() {
    let gateway = Gateway::builder().start();
    let home = Home::of(gateway.admin());
    for config in [
        "StrictHostKeyChecking no\nBatchMode yes\n",
        "StrictHostKeyChecking accept-new\nBatchMode yes\n",
        "NoHostAuthenticationForLocalhost yes\nBatchMode yes\n",
    ] {
        home.configure(config);
        let said = home.run(&setup_of(&gateway)).finish().exits(5).error_text();
        assert!(said.contains("Host key verification failed"), "{said}");
        home.is_untouched(config);
    }
    nobody_has_logged_in(&gateway, 0);
}
