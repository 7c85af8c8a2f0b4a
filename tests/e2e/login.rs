//! Where a login name leads, and that the key alone says who somebody is.

use vendetta_tests::{BUSYBOX, Gateway};

/// A gateway with the workspace `project` of the administrator, running.
fn gateway() -> Gateway {
    let gateway = Gateway::docker();
    gateway.workspace("project", BUSYBOX);
    gateway
}

#[test]
fn a_workspace_s_name_leads_into_it_and_with_a_plus_to_a_user_of_it() {
    let gateway = gateway();
    assert_eq!(gateway.exec("project", "id -un").ok().text(), "root");
    assert_eq!(gateway.exec("project+dev", "id -un").ok().text(), "dev");
}

#[test]
fn the_reserved_name_and_a_user_s_name_lead_to_the_control_plane() {
    let gateway = gateway();
    let alice = gateway.member("alice");
    for login in ["vendetta", "alice"] {
        assert_eq!(
            alice.exec(login, "whoami --json").ok().json()["user"],
            "alice"
        );
        alice.exec(login, "no-such-command").finish().exits(2);
    }
}

#[test]
fn any_other_name_runs_a_control_command_when_the_line_begins_with_one() {
    let gateway = gateway();
    let run = gateway.exec("somebody", "workspace list --json").ok();
    assert_eq!(run.json()["workspaces"][0]["name"], "project");
    let run = gateway.exec("somebody", "ls").finish().exits(3);
    assert!(run.error_text().contains("somebody"), "{run}");
    let run = gateway.ssh("somebody").finish().exits(3);
    assert!(run.error_text().contains("somebody"), "{run}");
}

#[test]
fn a_misspelt_workspace_is_answered_with_the_one_that_was_meant() {
    let gateway = gateway();
    for login in ["projcet", "projcet+dev"] {
        let run = gateway.exec(login, "true").finish().exits(3);
        assert!(run.error_text().contains("project"), "{run}");
        assert!(run.stdout.is_empty(), "{run}");
    }
}

#[test]
fn identity_comes_from_the_key_and_never_from_the_login_name() {
    let gateway = gateway();
    let (alice, bob) = (gateway.member("alice"), gateway.member("bob"));
    assert_eq!(
        bob.exec("alice", "whoami --json").ok().json()["user"],
        "bob"
    );
    assert_eq!(
        alice.exec("bob", "whoami --json").ok().json()["user"],
        "alice"
    );
    let nobody = gateway.stranger("mallory");
    for login in ["vendetta", "alice", "project", "root", "mallory"] {
        let run = nobody.exec(login, "whoami").finish().exits(255);
        assert!(run.error_text().contains("Permission denied"), "{run}");
    }
}

#[test]
fn a_workspace_that_is_not_yours_looks_as_one_that_does_not_exist() {
    let gateway = gateway();
    let bob = gateway.member("bob");
    for (login, command) in [
        ("NAME", "true"),
        ("NAME+dev", "true"),
        ("vendetta", "workspace status NAME"),
        ("vendetta", "workspace up NAME"),
        ("vendetta", "workspace destroy NAME --yes"),
        ("vendetta", "workspace exec NAME -- true"),
        ("vendetta", "workspace logs NAME --json"),
    ] {
        let answer = |name: &str| {
            let run = bob
                .exec(&login.replace("NAME", name), &command.replace("NAME", name))
                .finish();
            (
                run.code(),
                run.text().replace(name, "NAME"),
                run.error_text().replace(name, "NAME"),
            )
        };
        let there = answer("project");
        assert_eq!(there.0, 3, "{there:?}");
        assert_eq!(there, answer("quarter"), "{login} {command}");
    }
    let tunnel = |name: &str| {
        let run = bob
            .ssh("vendetta")
            .args(["-W", &format!("{name}:22")])
            .finish();
        (run.code(), run.error_text().replace(name, "NAME"))
    };
    assert_eq!(tunnel("project"), tunnel("quarter"));
}

#[test]
fn workspaces_and_users_share_one_name_space() {
    let gateway = gateway();
    gateway.member("alice");
    let config = format!("provider: docker\ndocker: {{image: \"{BUSYBOX}\"}}\n");
    for (name, code) in [("alice", 4), ("project", 4), ("vendetta", 2)] {
        let create = gateway.control(&format!("workspace create {name} --config -"));
        create.stdin(config.clone()).finish().exits(code);
    }
    gateway
        .control("user add project --role member")
        .finish()
        .exits(4);
    gateway
        .control("user add vendetta --role member")
        .finish()
        .exits(2);
    assert_eq!(gateway.workspaces(), ["project"]);
}

#[test]
fn a_member_has_workspaces_of_their_own_and_an_admin_sees_all() {
    let gateway = gateway();
    let bob = gateway.member("bob");
    let config = format!("provider: docker\ndocker: {{image: \"{BUSYBOX}\"}}\n");
    bob.control("workspace create bobs --config -")
        .stdin(config)
        .ok();
    bob.control("workspace up bobs").ok();
    assert_eq!(bob.exec("bobs", "echo mine").ok().text(), "mine");
    let list = bob.control("workspace list --json").ok().json();
    assert_eq!(
        list["workspaces"].as_array().map(Vec::len),
        Some(1),
        "{list}"
    );
    assert_eq!(gateway.workspaces(), ["bobs", "project"]);
    assert_eq!(gateway.exec("bobs", "echo admin").ok().text(), "admin");
}

#[test]
fn a_name_that_leads_nowhere_is_told_with_what_was_probably_meant() {
    let gateway = gateway();
    let near = gateway.exec("projetc", "true").finish().exits(3);
    let said = "no workspace \"projetc\"; did you mean \"project\"?";
    assert!(near.error_text().contains(said), "{near}");
    let far = gateway.exec("nothing-like-it", "true").finish().exits(3);
    let said = "list yours with: ssh vendetta workspace list";
    assert!(far.error_text().contains(said), "{far}");
}
