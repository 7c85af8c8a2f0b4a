//! What agents are known by: certificates to OpenSSH, bare keys to clients that know none.

use std::fs;

use vendetta_tests::{Gateway, Run};

use crate::jump::Jumper;

/// How ssh was convinced of the workspace, StrictHostKeyChecking being on.
fn convinced(jumper: &Jumper, options: &[&str]) -> &'static str {
    let ssh = jumper.tool("ssh").arg("-v").args(options);
    let told = ssh.args(["ws.vendetta", "true"]).ok().error_text();
    // The gateway's own key, on the way, is never certified.
    if told.contains("Server host certificate:") {
        "certificate"
    } else {
        "key"
    }
}

#[test]
fn openssh_asks_for_the_certificate_and_others_find_the_bare_key() {
    let gateway = Gateway::builder().host().start();
    gateway.create("ws", "provider: host\n");
    let jumper = Jumper::new(gateway.admin());
    let bare = ["-o", "HostKeyAlgorithms=ssh-ed25519"];
    assert_eq!(convinced(&jumper, &[]), "certificate");
    assert_eq!(convinced(&jumper, &bare), "key");
    gateway.control("workspace rebuild ws").ok();
    assert_eq!(convinced(&jumper, &[]), "certificate");
    assert_eq!(convinced(&jumper, &bare), "key");

    // One of that name that is made later has another key, which only the certificate tells of.
    gateway.control("workspace destroy ws --yes").ok();
    gateway.create("ws", "provider: host\n");
    assert_eq!(convinced(&jumper, &[]), "certificate");
    let other = jumper.tool("ssh").args(bare).args(["ws.vendetta", "true"]);
    let other = other.finish().exits(255).error_text();
    assert!(other.contains("HOST IDENTIFICATION HAS CHANGED"), "{other}");
    let jumper = Jumper::new(gateway.admin());
    assert_eq!(convinced(&jumper, &bare), "key");
}

#[test]
fn a_host_key_is_told_to_whom_the_workspace_is_and_by_status() {
    let gateway = Gateway::builder().host().start();
    gateway.create("of-admin", "provider: host\n");
    let alice = gateway.member("alice");
    alice.control("workspace create ws --provider host").ok();
    let told = alice.control("ssh-config --json").ok().json();
    let keys = told["workspace_host_keys"].as_object().expect("keys");
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["ws"]);
    let key = keys["ws"].as_str().expect("a key");
    let lines = alice.control("ssh-config --known-hosts").ok().text();
    let bare: Vec<&str> = lines.lines().skip(2).collect();
    assert_eq!(bare, [format!("ws {key}"), format!("ws.vendetta {key}")]);

    let status = alice.control("workspace status ws --json").ok().json();
    let status = &status["workspace"];
    assert_eq!(status["host_key"], key);
    let file = alice.home().join("key");
    fs::write(&file, key).expect("a file");
    let listed = Run::new("ssh-keygen").arg("-lf").arg(&file).ok().text();
    let fingerprint = status["host_key_fingerprint"].as_str().expect("one");
    assert!(listed.contains(&format!(" {fingerprint} ")), "{listed}");
    let page = alice.control("workspace status ws").ok().text();
    assert!(page.contains(&format!("Host key  {fingerprint}")), "{page}");
}
