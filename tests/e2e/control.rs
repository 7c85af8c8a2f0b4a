//! The control plane's four doors: a command, a subsystem, a prompt, and the
//! local `vendetta`.

use std::fs;

use vendetta_tests::Gateway;

#[test]
fn a_command_and_a_subsystem_take_the_same_words() {
    let gateway = Gateway::builder().host().start();
    gateway.create("box", "provider: host\n");
    let exec = gateway.control("workspace list --json").ok();
    let subsystem = gateway
        .ssh("vendetta")
        .args(["-s", "workspace list --json"])
        .ok();
    assert_eq!(exec.json()["workspaces"][0]["name"], "box");
    assert_eq!(subsystem.json()["workspaces"][0]["name"], "box");
    gateway
        .ssh("vendetta")
        .args(["-s", "workspace status missing"])
        .finish()
        .exits(3);
}

#[test]
fn a_script_on_stdin_runs_line_by_line_and_stops_at_an_error() {
    let gateway = Gateway::builder().host().start();
    let script = "# a comment\n\nworkspace create one --provider host\nwhoami --json\n";
    let run = gateway.ssh("vendetta").arg("-T").stdin(script).ok();
    assert!(run.text().contains("\"user\""), "{run}");
    assert_eq!(gateway.workspaces(), ["one"]);
    let script = "workspace status missing\nworkspace create two --provider host\n";
    let run = gateway.ssh("vendetta").arg("-T").stdin(script).finish();
    assert_eq!(run.code(), 3, "{run}");
    assert_eq!(gateway.workspaces(), ["one"]);
}

#[test]
fn a_terminal_gets_a_prompt_with_editing_history_and_completion() {
    let gateway = Gateway::builder().host().start();
    gateway.create("box", "provider: host\n");
    let mut prompt = gateway
        .ssh("vendetta")
        .env("TERM", "xterm")
        .start_on_terminal(24, 100);
    // A slip mended with backspace.
    prompt.send("whoamix\x7f\r");
    let at = prompt.expect_stdout(0, "(admin)");
    // Completion of a command and of a workspace's name.
    prompt.send("worksp\tstat\tbo\t\r");
    let at = prompt.expect_stdout(at, "Provider");
    // History: the line before the last, once more.
    prompt.send("\x1b[A\x1b[A\r");
    let at = prompt.expect_stdout(at, "(admin)");
    prompt.send("no-such-command\r");
    let at = prompt.expect_stdout(at, "no-such-command");
    prompt.send("version\r");
    prompt.expect_stdout(at, "vendetta 0");
    prompt.send("exit\r");
    let _ = prompt.finish();
}

#[test]
fn every_command_has_help_with_examples_and_json() {
    let gateway = Gateway::builder().start();
    let help = gateway.control("help").ok().text();
    assert!(
        help.contains("Examples:") && help.contains("workspace"),
        "{help}"
    );
    for noun in ["workspace", "user", "key"] {
        let help = gateway.control(&format!("{noun} --help")).ok().text();
        let verbs = help
            .split("Commands:")
            .nth(1)
            .and_then(|rest| rest.split("\n\n").next())
            .unwrap_or_default();
        let verbs: Vec<&str> = verbs
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert!(verbs.len() >= 3, "{help}");
        for verb in verbs.into_iter().filter(|verb| *verb != "help") {
            let help = gateway
                .control(&format!("{noun} {verb} --help"))
                .ok()
                .text();
            assert!(
                help.contains("Examples:") && help.contains("--json"),
                "{noun} {verb}: {help}"
            );
        }
    }
    let local = gateway.front().args(["help", "--json"]).ok().json();
    assert!(local["help"].to_string().contains("Examples:"), "{local}");
    for line in [
        "help --json",
        "status --json",
        "whoami --json",
        "version --json",
        "user list --json",
        "key list --json",
    ] {
        assert!(gateway.control(line).ok().json().is_object(), "{line}");
    }
}

#[test]
fn a_bare_command_never_waits_for_stdin() {
    let gateway = Gateway::builder().host().start();
    let mut run = gateway
        .control("workspace create box --provider host")
        .spawn();
    // Stdin stays open; the command ends all the same.
    vendetta_tests::eventually("the command ends", || !run.runs());
    let _ = run.finish().ok();
}

#[test]
fn the_local_command_is_a_front_to_ssh() {
    let gateway = Gateway::builder().host().start();
    assert_eq!(
        gateway.front().args(["whoami", "--json"]).ok().json()["role"],
        "admin"
    );
    gateway
        .front()
        .args(["workspace", "status", "missing"])
        .finish()
        .exits(3);
    // It sends the project config of the folder that it stands in.
    let project = gateway.scratch().join("project");
    fs::create_dir_all(project.join(".vendetta")).expect("a folder");
    fs::write(
        project.join(".vendetta/config.yaml"),
        "name: from-here\nprovider: host\n",
    )
    .expect("a config");
    gateway
        .front()
        .current_dir(&project)
        .args(["workspace", "create"])
        .ok();
    assert_eq!(gateway.workspaces(), ["from-here"]);
    gateway.front().args(["workspace", "up", "from-here"]).ok();
    let run = gateway
        .front()
        .args(["workspace", "exec", "from-here", "--", "cat; exit 6"])
        .stdin("in");
    assert_eq!(run.finish().exits(6).text(), "in");
    // Words arrive as they are, whatever a shell would make of them.
    let run = gateway.front().args([
        "workspace",
        "exec",
        "from-here",
        "--",
        "printf",
        "%s|",
        "a b",
        "$HOME",
        "it's",
    ]);
    assert_eq!(run.ok().text(), "a b|$HOME|it's|");
}

#[test]
fn a_gateway_that_is_not_there_is_said_so_and_not_with_255() {
    let gateway = Gateway::builder().start();
    let run = gateway
        .front()
        .env("VENDETTA_GATEWAY", "127.0.0.1:1")
        .arg("whoami")
        .finish();
    assert_eq!(run.code(), 5, "{run}");
    assert!(run.error_text().contains("127.0.0.1"), "{run}");
}
