//! Setting an environment up: hooks, the project's repository, dotfiles.

use vendetta_tests::{Agent, Gateway, Run, TOOLS};

fn config(rest: &str) -> String {
    format!("provider: docker\ndocker: {{image: \"{TOOLS}\"}}\n{rest}")
}

/// What the hooks of a test have noted, one word a line.
fn notes(gateway: &Gateway) -> String {
    gateway
        .exec("ws", "cat /workspace/notes")
        .ok()
        .text()
        .replace('\n', " ")
}

/// The same without a session, which would be one that the hooks see.
fn notes_seen_by_the_engine(gateway: &Gateway) -> String {
    let Some(container) = gateway.container() else {
        return String::new();
    };
    let look = ["exec", &container, "cat", "/workspace/notes"];
    gateway.engine().docker(&look).finish().text()
}

#[test]
fn hooks_run_in_the_environment_at_their_moment() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &config(
            "user: dev\nenv: {WORD: hello}\nhooks:\n  create: echo create-$(id -un)-$WORD-$(pwd) >>notes\n  \
             up: [sh, -c, echo \"up $0\" >>notes, \"with a blank\"]\n  down: echo down >>notes\n",
        ),
    );
    gateway.control("workspace up ws").ok();
    let first = "create-dev-hello-/workspace up with a blank";
    assert_eq!(notes(&gateway), first);
    gateway.control("workspace up ws").ok();
    assert_eq!(notes(&gateway), first, "it runs already");
    gateway.control("workspace down ws").ok();
    gateway.control("workspace up ws").ok();
    let second = format!("{first} down up with a blank");
    assert_eq!(notes(&gateway), second, "created once");
    gateway.control("workspace rebuild ws").ok();
    assert_eq!(
        notes(&gateway),
        format!("{second} down {first}"),
        "the old environment is left, and a new one is created anew"
    );
}

#[test]
fn several_commands_run_one_after_the_other_or_at_once_and_are_told_apart() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &config(
            "hooks:\n  create:\n    - [sh, -c, echo first >>notes]\n    - {one: \"until [ -e two ]; do sleep 0.1; done; echo one is done\", \
             two: \"touch two; echo two is done\"}\n    - [sh, -c, echo last >>notes]\n",
        ),
    );
    let up = gateway.control("workspace up ws --json").ok();
    assert_eq!(notes(&gateway), "first last");
    for line in ["one: one is done", "two: two is done"] {
        assert!(up.text().contains(line), "{up}");
    }
}

#[test]
fn a_create_hook_that_fails_says_why_lets_people_look_and_is_run_again() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &config("hooks: {create: \"echo looking for the file >&2; cat /workspace/needed\"}\n"),
    );
    let up = gateway.control("workspace up ws").finish().exits(5);
    for word in [
        "hook create",
        "status 1",
        "looking for the file",
        "needed",
        "workspace up ws",
    ] {
        assert!(up.error_text().contains(word), "{word}: {up}");
    }
    assert_eq!(gateway.state("ws"), "failed");
    gateway.exec("ws", "echo here >/workspace/needed").ok();
    gateway.control("workspace up ws").ok();
    assert_eq!(gateway.state("ws"), "running");
}

#[test]
fn the_attach_hook_runs_beside_the_first_session_of_each_client_and_says_nothing_to_it() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &config("hooks: {attach: \"echo attached >>notes; echo not for the client\"}\n"),
    );
    gateway.control("workspace up ws").ok();
    for clients in 1..=2 {
        let session = gateway.exec("ws", "echo mine").ok();
        assert_eq!(
            (session.text(), session.error_text()),
            ("mine".to_owned(), String::new())
        );
        let mut told = String::new();
        vendetta_tests::eventually("the hook has run", || {
            told = notes_seen_by_the_engine(&gateway);
            told.lines().count() == clients
        });
        assert!(told.lines().all(|line| line == "attached"), "{told}");
    }
}

#[test]
fn whoever_brings_a_workspace_up_gets_in_before_its_up_hook_ends_and_is_attached_after_it() {
    let gateway = Gateway::docker();
    gateway.create(
        "ws",
        &config(
            "auto_up: always\nhooks:\n  up: \"until [ -e go ]; do sleep 0.1; done; echo up >>notes\"\n  \
             attach: echo attach >>notes\n  down: rm go\n",
        ),
    );
    for starts in 1..=2 {
        // Long enough for an attach hook that does not wait.
        gateway.exec("ws", "sleep 1; touch go").ok();
        let mut told = String::new();
        vendetta_tests::eventually("both hooks have run", || {
            told = notes_seen_by_the_engine(&gateway);
            told.lines().count() == 2 * starts
        });
        assert_eq!(told.trim(), ["up\nattach"].repeat(starts).join("\n"));
        gateway.control("workspace down ws").ok();
    }
}

#[test]
fn a_down_hook_that_fails_is_told_and_the_workspace_goes_down() {
    let gateway = Gateway::docker();
    gateway.create("ws", &config("hooks: {down: \"echo not yet; exit 7\"}\n"));
    gateway.control("workspace up ws").ok();
    let down = gateway.control("workspace down ws --json").ok();
    assert!(down.text().contains("status 7"), "{down}");
    assert_eq!(gateway.state("ws"), "stopped");
}

#[test]
fn a_gateway_that_was_killed_runs_the_create_hook_to_its_end_and_no_hook_twice() {
    let mut gateway = Gateway::docker();
    gateway.create(
        "ws",
        &config(
            "hooks:\n  create: \"echo begun >>notes; until [ -e go ]; do sleep 0.1; done; echo created >>notes\"\n  \
             up: echo up >>notes\n",
        ),
    );
    let up = gateway.control("workspace up ws").start();
    vendetta_tests::eventually("the hook has begun", || {
        notes_seen_by_the_engine(&gateway).contains("begun")
    });
    gateway.kill();
    let _ = up.finish();
    gateway.start();
    let watching = gateway.control("workspace up ws").start();
    let container = gateway.container().expect("a container");
    gateway
        .engine()
        .docker(&["exec", &container, "touch", "/workspace/go"])
        .ok();
    watching.finish().ok();
    let told = notes(&gateway);
    assert!(told.starts_with("begun "), "{told}");
    assert!(told.ends_with("created up"), "{told}");
    gateway.kill();
    gateway.start();
    gateway.control("workspace up ws").ok();
    assert_eq!(notes(&gateway), told, "everything had run");
}

/// A Git server in a workspace of its own, for whoever has the administrator's
/// key; returns the address of its repository, and that of dotfiles.
fn forge(gateway: &Gateway) -> (String, String) {
    gateway.workspace("forge", TOOLS);
    let script = format!(
        "set -e; mkdir -p ~/.ssh /run/sshd /srv/project /srv/dotfiles; echo '{key}' >~/.ssh/authorized_keys; chmod -R go= ~ ~/.ssh
         ssh-keygen -q -t ed25519 -N '' -f /etc/host_key
         git config --global user.name a; git config --global user.email a@b; git config --global init.defaultBranch main
         cd /srv/project; git init -q; echo text >README; mkdir sub; echo deep >sub/file; git add -A; git commit -qm one
         cd /srv/dotfiles; git init -q; echo 'set x' >.examplerc; git add -A; git commit -qm one
         /usr/sbin/sshd -f /dev/null -h /etc/host_key -o UsePAM=no -o Port=2022 -o StrictModes=no
         until echo >/dev/tcp/127.0.0.1/2022; do sleep 0.1; done 2>/dev/null
         hostname -i",
        key = gateway.admin().public_key().trim()
    );
    let address = gateway.exec("forge", &script).ok().text();
    let url = |name: &str| format!("ssh://root@{address}:2022/srv/{name}");
    (url("project"), url("dotfiles"))
}

/// The same command with the administrator's ssh-agent forwarded.
fn with_agent(gateway: &Gateway, agent: &Agent, line: &str) -> Run {
    let run = gateway.ssh("vendetta").arg("-A");
    run.arg("-o")
        .arg(format!("IdentityAgent={}", agent.socket().display()))
        .arg(line)
}

#[test]
fn a_private_repository_is_cloned_with_the_key_of_the_caller_s_agent() {
    let gateway = Gateway::docker();
    let (project, dotfiles) = forge(&gateway);
    gateway.create(
        "ws",
        &config(&format!(
            "user: dev\nrepo: {project}\ndotfiles: {dotfiles}\n"
        )),
    );
    let alone = gateway.control("workspace up ws").finish().exits(5);
    for word in ["clone", "ssh -A"] {
        assert!(alone.error_text().contains(word), "{word}: {alone}");
    }
    let agent = Agent::with(&[gateway.admin().key()]);
    with_agent(&gateway, &agent, "workspace up ws").ok();
    let found = gateway.exec(
        "ws",
        "cat README sub/file; git status --porcelain; git remote get-url origin; cat ~/.examplerc; grep -c github.com ~/.ssh/known_hosts",
    );
    assert_eq!(
        found.ok().text(),
        format!("text\ndeep\n{project}\nset x\n1")
    );
    // What somebody changed is never overwritten.
    gateway.exec("ws", "echo mine >README").ok();
    let rebuilt = gateway.control("workspace rebuild ws --json").finish();
    assert!(rebuilt.text().contains("has files already"), "{rebuilt}");
    assert_eq!(gateway.exec("ws", "cat README").ok().text(), "mine");
}
