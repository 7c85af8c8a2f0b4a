//! Projects with a dev container's config: what is used of it, what is said
//! about the rest, and images that are built.

use std::fs;
use std::path::{Path, PathBuf};

use vendetta_tests::{Gateway, Node, TOOLS};

/// A project `site` with a `.devcontainer` of these files.
fn project(gateway: &Gateway, config: &str, dockerfile: Option<&str>) -> PathBuf {
    let root = gateway.scratch().join("site");
    let dir = root.join(".devcontainer");
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join("devcontainer.json"), config).expect("a config");
    if let Some(dockerfile) = dockerfile {
        fs::write(dir.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    }
    root
}

fn create(gateway: &Gateway, root: &Path, words: &str) -> vendetta_tests::Finished {
    let words = format!("workspace create ws {words}");
    gateway
        .front()
        .current_dir(root)
        .args(words.trim().split(' '))
        .finish()
}

/// The tags of the images that were built for workspaces of the gateway.
fn images(gateway: &Gateway) -> Vec<String> {
    let mut resources = gateway.resources();
    resources.retain(|name| name.starts_with("image "));
    resources
}

#[test]
fn an_image_with_its_environment_users_directories_and_volumes() {
    let gateway = Gateway::docker();
    let config = format!(
        r#"{{
            // With a comment, and a comma at the end.
            "name": "A site", "image": "{TOOLS}",
            "features": {{"ghcr.io/x/y:1": {{}}}},
            "runArgs": ["--privileged"],
            "workspaceFolder": "/workspaces/${{localWorkspaceFolderBasename}}",
            "containerEnv": {{"A": "a"}},
            "remoteEnv": {{"B": "${{containerEnv:A}}b", "PATH": "${{containerEnv:PATH}}:/extra", "NONE": "${{localEnv:X}}"}},
            "mounts": ["source=${{localWorkspaceFolderBasename}}-cache,target=/cache,type=volume",
                       "source=${{localEnv:HOME}},target=/h,type=bind"],
            "hostRequirements": {{"cpus": 1, "memory": "256mb"}},
            "forwardPorts": [3000],
            "onCreateCommand": "true", "postCreateCommand": ["true", ""],
            "postStartCommand": {{"a": "true"}}, "postAttachCommand": "true",
            "remoteUser": "dev",
        }}"#
    );
    let root = project(&gateway, &config, None);
    let run = create(&gateway, &root, "").ok();
    for key in ["features", "runArgs", "remoteEnv.NONE", "mounts.1"] {
        let words = format!("not honoured: {key} (");
        assert!(run.error_text().contains(&words), "{words}: {run}");
    }
    gateway.control("workspace up ws").ok();
    let said = gateway
        .exec("ws", "id -un; pwd; echo $A $B ${NONE-none}; echo $PATH; mount | grep -c -E ' on (/cache|/workspaces/site) '")
        .ok()
        .text();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[..3],
        ["dev", "/workspaces/site", "a ab none"],
        "{said}"
    );
    assert!(
        lines[3].ends_with(":/extra") && lines[3].contains("/bin"),
        "{said}"
    );
    assert_eq!(lines[4], "2", "{said}");

    let checked = gateway
        .front()
        .current_dir(&root)
        .args(["config", "check", "--json"])
        .ok()
        .json();
    let hooks = &checked["config"]["hooks"];
    assert_eq!(
        hooks["create"],
        serde_json::json!([{"onCreateCommand": "true"}, ["true", ""]])
    );
    assert_eq!(hooks["up"], serde_json::json!({"a": "true"}));
    assert_eq!(hooks["attach"], "true");
    assert_eq!(checked["config"]["ports"], serde_json::json!([3000]));
    assert_eq!(checked["config"]["name"], "a-site");

    // Both disks are the user's and survive a rebuild; nothing survives the workspace.
    let write = "echo kept | tee /cache/file >/workspaces/site/file; stat -c %U:%G /cache";
    assert_eq!(gateway.exec("ws", write).ok().text(), "dev:dev");
    gateway.control("workspace rebuild ws").ok();
    let read = gateway
        .exec("ws", "cat /cache/file /workspaces/site/file; echo $PATH")
        .ok()
        .text();
    assert!(
        read.starts_with("kept\nkept\n") && read.ends_with(":/extra"),
        "{read}"
    );
    gateway.control("workspace destroy ws --yes").ok();
    assert_eq!(gateway.resources(), Vec::<String>::new());
}

const BUILD: &str = r#"{
    "build": {"dockerfile": "Dockerfile", "context": "..", "args": {"WHO": "somebody"}, "target": "development"},
    "workspaceFolder": "/src"
}"#;

fn dockerfile() -> String {
    format!(
        "FROM {TOOLS} AS base\nARG WHO\nRUN echo \"built for $WHO\" >/who\n\
         FROM base AS development\nCOPY file /file\nENV FROM_IMAGE=yes\n\
         FROM base AS production\nRUN false\n"
    )
}

#[test]
fn an_image_is_built_from_the_project_once_and_anew_with_a_rebuild() {
    let gateway = Gateway::docker();
    let root = project(&gateway, BUILD, Some(&dockerfile()));
    fs::write(root.join("file"), "of the project\n").expect("a file");
    create(&gateway, &root, "").ok();
    // A rebuild needs nothing of the machine that it was sent from.
    fs::remove_dir_all(&root).expect("removing the project");
    let up = gateway.control("workspace up ws --json").ok();
    assert!(up.text().contains("RUN echo"), "no step a command: {up}");
    let look = "cat /who /file; echo $FROM_IMAGE; pwd";
    let said = gateway.exec("ws", look).ok().text();
    assert_eq!(said, "built for somebody\nof the project\nyes\n/src");
    let first = images(&gateway);
    assert_eq!(first.len(), 1, "{first:?}");

    gateway.control("workspace down ws").ok();
    let up = gateway.control("workspace up ws --json").ok();
    assert!(!up.text().contains("build "), "built again: {up}");
    gateway.control("workspace rebuild ws").ok();
    assert_eq!(gateway.exec("ws", look).ok().text(), said);
    let second = images(&gateway);
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(first, second);

    gateway.control("workspace destroy ws --yes").ok();
    assert_eq!(gateway.resources(), Vec::<String>::new());
}

#[test]
fn an_image_is_built_on_the_node_that_it_is_for() {
    let node = Node::with_docker();
    let gateway = Gateway::builder().operator_key(node.user_key()).start();
    gateway
        .control(&format!("node add n1 dev@{}", node.address()))
        .ok();
    let root = project(&gateway, BUILD, Some(&dockerfile()));
    fs::write(root.join("file"), vec![b'x'; 3 << 20]).expect("a file");
    create(&gateway, &root, "--remote n1 --up").ok();
    let said = gateway.exec("ws", "cat /who; wc -c </file").ok().text();
    assert_eq!(said, format!("built for somebody\n{}", 3 << 20));
    gateway.control("workspace destroy ws --yes").ok();
    let left = node.labelled("vendetta.gateway");
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_dockerfile_that_fails_is_told_with_its_last_lines_and_leaves_nothing() {
    let gateway = Gateway::docker();
    let broken = format!("FROM {TOOLS}\nRUN echo what went wrong; exit 7\n");
    let config = r#"{"build": {"dockerfile": "Dockerfile"}}"#;
    let root = project(&gateway, config, Some(&broken));
    create(&gateway, &root, "").ok();
    let run = gateway.control("workspace up ws").finish().exits(2);
    for words in ["what went wrong", "code: 7", "Dockerfile"] {
        assert!(run.error_text().contains(words), "{words}: {run}");
    }
    assert_eq!(gateway.state("ws"), "failed");
    gateway.control("workspace destroy ws --yes").ok();
    assert_eq!(gateway.resources(), Vec::<String>::new());

    for (dockerfile, words) in [
        ("NONSENSE x\n", "NONSENSE"),
        ("FROM localhost:1/none\n", "localhost:1/none"),
    ] {
        fs::write(root.join(".devcontainer/Dockerfile"), dockerfile).expect("a Dockerfile");
        create(&gateway, &root, "").ok();
        let run = gateway.control("workspace up ws").finish();
        assert!([2, 3].contains(&run.code()), "{run}");
        assert!(run.error_text().contains(words), "{words}: {run}");
        gateway.control("workspace destroy ws --yes").ok();
    }
}

#[test]
fn what_cannot_come_to_a_workspace_is_refused_where_it_stands() {
    let gateway = Gateway::builder().start();
    for (config, words) in [
        (
            "{\n  \"image\": \"x\",\n  \"image\": \"y\"\n}",
            "devcontainer.json:3:3",
        ),
        (
            "{\n  \"image\": \"x\"\n  \"name\": \"y\"\n}",
            "devcontainer.json:2:15",
        ),
        (
            "{\n  \"image\": \"Not An Image\"\n}",
            "devcontainer.json:2:12",
        ),
        ("{\n  \"dockerComposeFile\": \"c.yml\"\n}", "services"),
        (
            "{\n  \"build\": {\"dockerfile\": \"Missing\"}\n}",
            "Missing",
        ),
        (
            "{\n  \"build\": {\"dockerfile\": \"../../Dockerfile\"}\n}",
            "below the project",
        ),
    ] {
        let root = project(&gateway, config, None);
        let run = create(&gateway, &root, "").exits(2);
        assert!(run.error_text().contains(words), "{words}: {run}");
    }
    assert!(gateway.workspaces().is_empty());
}
