//! Project configs before anything is made of them: check, schema, and the
//! forms in which they are sent.

use std::fs;
use std::path::{Path, PathBuf};

use vendetta_tests::{Gateway, Run, TOOLS};

/// Writes a file and the directories that it is in.
fn put(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("making directories");
    fs::write(path, content).expect("writing a file");
}

/// A project with a config of ours that builds an image, and much that the build does not need.
fn project(gateway: &Gateway) -> PathBuf {
    let root = gateway.scratch().join("my project");
    put(
        &root.join(".vendetta/config.yaml"),
        "docker: {build: {context: app, dockerfile: docker/Dockerfile, args: {WHO: somebody}}}\n\
         services:\n  web: {command: serve, port: 80, health_check: /, depends_on: [db]}\n  db: {command: db, port: 5432}\n",
    );
    put(
        &root.join("docker/Dockerfile"),
        &format!("FROM {TOOLS}\nARG WHO\nCOPY . /app\nRUN echo \"$WHO\" >/who\n"),
    );
    put(&root.join("app/.dockerignore"), "big\n");
    put(&root.join("app/file"), "content\n");
    put(&root.join("app/big"), &"x".repeat(3 << 20));
    root
}

#[test]
fn a_config_is_checked_from_anywhere_in_its_project_and_over_plain_ssh() {
    let gateway = Gateway::builder().start();
    let root = project(&gateway);
    let check = |dir: &Path, words: &str| gateway.front().current_dir(dir).args(words.split(' '));
    let said = check(&root.join("app"), "config check").ok().text();
    for words in ["built from docker/Dockerfile", "80 of web", "web, after db"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let json = check(&root, "config check --json").ok().json();
    assert_eq!(json["services"], serde_json::json!(["db", "web"]));
    let whole = Run::new("tar").current_dir(&root).args(["c", "."]);
    let over_ssh = |stdin: Vec<u8>| gateway.control("config check --config -").stdin(stdin);
    let over_ssh_said = over_ssh(whole.ok().stdout).ok().text();
    assert_eq!(over_ssh_said, said.trim_end());
    // What it is built from did not come along.
    let file = fs::read(root.join(".vendetta/config.yaml")).expect("the config");
    let run = over_ssh(file).finish().exits(2);
    for words in ["1:10", "were not sent", "tar c ."] {
        assert!(run.error_text().contains(words), "{words}: {run}");
    }

    put(
        &root.join("wrong.yaml"),
        "docker: {image: x}\nservices:\n  a: {command: x, depends_on: [b]}\n",
    );
    let run = check(&root, "config check --config wrong.yaml")
        .finish()
        .exits(2);
    for words in ["3:32", "services.a.depends_on", "b"] {
        assert!(run.error_text().contains(words), "{words}: {run}");
    }
    let run = check(Path::new("/"), "config check").finish().exits(3);
    assert!(run.error_text().contains("--config FILE"), "{run}");
    assert!(gateway.workspaces().is_empty(), "a check makes nothing");
}

#[test]
fn the_schema_is_printed_here_and_there() {
    let gateway = Gateway::builder().start();
    let there = gateway.control("config schema").ok();
    let here = gateway
        .front()
        .env("VENDETTA_GATEWAY", "127.0.0.1:1")
        .args(["config", "schema"])
        .ok();
    assert_eq!(there.stdout, here.stdout);
    assert_eq!(there.json()["properties"]["services"]["type"], "object");
}

#[test]
fn an_archive_of_a_project_makes_a_workspace_whatever_packed_it() {
    let gateway = Gateway::docker();
    let root = project(&gateway);
    let config =
        "docker: {build: {context: app, dockerfile: docker/Dockerfile, args: {WHO: somebody}}}\n";
    put(&root.join(".vendetta/config.yaml"), config);
    let tar = |args: &[&str]| Run::new("tar").current_dir(&root).args(args).ok().stdout;
    let parent = root.parent().expect("a parent").display().to_string();
    for (name, archive) in [
        ("one", tar(&["c", "."])),
        ("two", tar(&["cz", "--format=pax", "."])),
        ("three", tar(&["c", "-C", &parent, "my project"])),
    ] {
        gateway
            .control(&format!("workspace create {name} --config -"))
            .stdin(archive)
            .ok();
    }
    let create = ["workspace", "create", "four"];
    gateway
        .front()
        .current_dir(root.join("app"))
        .args(create)
        .ok();
    // What was sent is all that is needed, and nobody else's to read.
    fs::remove_dir_all(&root).expect("removing the project");
    let kept = gateway.state_dir().join("contexts");
    let sizes: Vec<u64> = fs::read_dir(&kept)
        .expect("the archives")
        .map(|entry| entry.expect("an entry").metadata().expect("a size").len())
        .collect();
    assert_eq!(sizes.len(), 4);
    assert!(
        sizes.iter().all(|size| *size < 1 << 20),
        "ignored files are kept: {sizes:?}"
    );
    for name in ["one", "four"] {
        gateway.control(&format!("workspace up {name}")).ok();
        let run = gateway.exec(name, "cat /who /app/file; ls /app").ok();
        assert_eq!(run.text(), "somebody\ncontent\nfile");
    }
    for name in ["one", "two", "three", "four"] {
        gateway
            .control(&format!("workspace destroy {name} --yes"))
            .ok();
    }
    assert_eq!(gateway.resources(), Vec::<String>::new());
    assert_eq!(fs::read_dir(&kept).expect("the archives").count(), 0);
}

#[test]
fn an_archive_that_is_too_large_or_plays_tricks_is_refused() {
    let gateway = Gateway::builder()
        .config("[limits]\nupload_bytes = 1048576")
        .start();
    let root = project(&gateway);
    let create = "workspace create x --config -";
    for args in [&["c", "."][..], &["cz", "."]] {
        let archive = Run::new("tar").current_dir(&root).args(args).ok().stdout;
        let run = gateway.control(create).stdin(archive).finish();
        // The gateway need not read to the end what it refuses.
        assert!(!run.status.success(), "{run}");
        assert!(
            run.error_text().contains("larger") || run.error_text().contains("longer"),
            "{run}"
        );
    }
    let tricks = ["c", "-P", "--transform=s,^,../,", ".vendetta"];
    let archive = Run::new("tar").current_dir(&root).args(tricks).ok().stdout;
    let run = gateway.control(create).stdin(archive).finish().exits(2);
    assert!(run.error_text().contains("leads out"), "{run}");
    let archive = Run::new("tar")
        .current_dir(&root)
        .args(["c", "app/file"])
        .ok()
        .stdout;
    let run = gateway.control(create).stdin(archive).finish().exits(2);
    assert!(run.error_text().contains(".vendetta/config.yaml"), "{run}");
    assert!(gateway.workspaces().is_empty());
}
