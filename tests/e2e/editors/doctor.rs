//! What `workspace doctor` says of an environment, and what happens where it says no.

use vendetta_tests::{BUSYBOX, Gateway, TOOLS};

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
