//! What `workspace doctor` says of an environment, and what editors are told where it says no.

use vendetta_tests::{BUSYBOX, Gateway, TOOLS};

use crate::jump::Jumper;

#[test]
fn an_environment_with_all_that_vs_code_needs_is_ready() {
    let gateway = Gateway::docker();
    gateway.workspace("ws", TOOLS);
    let run = gateway.control("workspace doctor ws --for vscode --json");
    let found = run.finish().ok().json();
    assert_eq!(found["ready"], true, "{found}");
    let findings = found["findings"].as_array().expect("findings");
    assert!(
        findings.iter().all(|one| one["verdict"] != "missing"),
        "{found}"
    );
}

#[test]
fn what_is_missing_is_installed_by_the_line_that_it_shows() {
    let gateway = Gateway::docker();
    gateway.workspace("ws", BUSYBOX);
    let doctor = "workspace doctor ws --for vscode";
    let json = gateway.control(&format!("{doctor} --json")).finish();
    let json = json.exits(4).json();
    assert_eq!(json["ready"], false, "{json}");
    assert!(json["install"].is_null(), "{json}");
    let run = gateway.control(doctor).finish().exits(4);
    assert!(run.text().contains("bash"), "{run}");
    for told in ["VS Code cannot work", "create it from an image"] {
        assert!(run.error_text().contains(told), "{run}");
    }

    // A package manager that writes down what it is told.
    let log = "#!/bin/sh\necho \"$@\" >>/tmp/installed\n";
    gateway.put("ws", "/bin/apt-get", log);
    gateway.exec("ws", "chmod 755 /bin/apt-get").ok();
    let json = gateway.control(&format!("{doctor} --json")).finish();
    let json = json.exits(4).json();
    let install = json["install"].as_str().expect("a command");
    let begins = "apt-get update && apt-get install -y --no-install-recommends bash ";
    assert!(install.starts_with(begins), "{install}");
    let run = gateway.control(doctor).finish().exits(4);
    let lines = run.text();
    let line = lines
        .lines()
        .find_map(|line| line.strip_prefix("To install what is not there: "))
        .unwrap_or_else(|| panic!("no such line: {run}"));
    assert!(line.starts_with("ssh ws+root@"), "{line}");
    assert!(line.ends_with(&format!("\"{install}\"")), "{line}");
    assert!(run.error_text().contains(line), "the remedy: {run}");
    // It runs as it stands in the environment's own shell.
    gateway.exec("ws+root", install).ok();
    let told = gateway.exec("ws", "cat /tmp/installed").ok().text();
    let packages = install.strip_prefix("apt-get update && apt-get ");
    assert_eq!(told, format!("update\n{}", packages.expect("an install")));
}

#[test]
fn an_editor_that_starts_bash_is_told_that_there_is_none() {
    let gateway = Gateway::docker();
    gateway.workspace("ws", BUSYBOX);
    let relayed = gateway.ssh("ws");
    let direct = Jumper::new(gateway.admin()).tool("ssh").arg("ws.vendetta");
    for ssh in [relayed, direct] {
        let run = ssh.args(["-T", "bash"]).stdin("echo in\n").finish();
        let run = run.exits(127);
        assert!(run.error_text().contains("bash: not found"), "{run}");
        assert!(run.stdout.is_empty(), "{run}");
    }
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
