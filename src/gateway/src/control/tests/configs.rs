//! Project configs: what is said about them, in whatever form they come.

use std::path::Path;

use super::*;

/// The samples of a directory of tests/fixtures: name and content.
fn samples(dir: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(dir);
    let mut samples: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    samples.sort();
    samples
}

/// A project's files, packed.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Lab {
    async fn check(&self, config: &[u8], json: bool) -> Ran {
        let line = format!(
            "config check --config -{}",
            if json { " --json" } else { "" }
        );
        self.session("alice", Some(line.as_bytes()), config, false)
            .await
    }
}

#[tokio::test]
async fn a_config_that_cannot_be_is_refused_at_its_place_by_check_and_by_create() {
    let lab = Lab::new().await;
    for (name, content) in samples("configs/impossible") {
        let ran = lab.check(&content, false).await;
        assert_eq!((ran.code(), ran.stdout.as_str()), (2, ""), "{name}");
        // What is not there has no place.
        let placed = ran.stderr.contains("[.vendetta/config.yaml:");
        assert_eq!(placed, name != "no-image", "{name}: {}", ran.stderr);
        let create = b"workspace create x --config -";
        let created = lab.session("alice", Some(create), &content, false).await;
        assert_eq!(
            (created.code(), &created.stderr),
            (2, &ran.stderr),
            "{name}"
        );
        insta::assert_snapshot!(name, ran.stderr);
    }
    assert!(lab.names().await.is_empty());
}

#[tokio::test]
async fn a_config_is_shown_as_what_it_comes_to() {
    let lab = Lab::new().await;
    let all = samples("configs/good");
    let full = all.iter().find(|(name, _)| name == "full").unwrap();
    let ran = lab.check(&full.1, false).await;
    assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""));
    insta::assert_snapshot!("checked_full", ran.stdout);
    let json = lab.check(&full.1, true).await.json();
    assert_eq!(json["services"], serde_json::json!(["db", "job", "web"]));
    assert_eq!(json["config"]["services"]["web"]["port"], 80);

    let all = samples("devcontainers");
    let build = all.iter().find(|(name, _)| name == "build").unwrap();
    let ran = lab.check(&build.1, false).await;
    assert_eq!((ran.code(), ran.stdout.as_str()), (2, ""));
    for words in ["devcontainer.json:3:", "were not sent", "tar c ."] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    let whole = archive(&[
        (".devcontainer/devcontainer.json", &build.1),
        (".devcontainer/Dockerfile", b"FROM x\n"),
    ]);
    let ran = lab.check(&whole, false).await;
    assert_eq!((ran.code(), ran.stderr.as_str()), (0, ""));
    insta::assert_snapshot!("checked_devcontainer", ran.stdout);
    let json = lab.check(&whole, true).await.json();
    assert_eq!(
        json["not_honoured"][0]["key"], "containerEnv.TOKEN",
        "{json}"
    );

    assert_eq!(lab.run("config check").await.code(), 2);
    assert_eq!(lab.run("config check --config x.yaml").await.code(), 2);
    let schema: Value = serde_json::from_str(&lab.run("config schema").await.stdout).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    assert!(lab.names().await.is_empty());
}

#[tokio::test]
async fn what_a_flag_says_is_not_shown_in_the_config() {
    let lab = Lab::new().await;
    let config = "docker: {image: x}\nresources: {cpu: 1}\n";
    let line = "workspace create x --config - --cpu 0";
    let ran = lab.run_as("alice", line, config).await;
    assert_eq!(ran.code(), 2);
    assert!(!ran.stderr.contains("config.yaml"), "{}", ran.stderr);
    assert!(ran.stderr.contains("resources.cpu"), "{}", ran.stderr);
}

#[tokio::test]
async fn what_is_not_honoured_is_told_at_creation_and_the_rest_is_used() {
    let lab = Lab::new().await;
    let config = r#"{"image": "debian:12", "features": {}, "remoteUser": "dev"}"#;
    let ran = lab
        .run_as("alice", "workspace create one --config -", config)
        .await;
    assert_eq!(ran.code(), 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("not honoured: features ("),
        "{}",
        ran.stderr
    );
    let ran = lab
        .run_as("alice", "workspace create two --config - --json", config)
        .await;
    assert_eq!(ran.json()["not_honoured"][0]["key"], "features");
    assert_eq!(ran.json()["workspace"]["image"], "debian:12");
    let files = "{\"build\": {\"dockerfile\": \"Dockerfile\"}}";
    let ran = lab
        .run_as("alice", "workspace create three --config -", files)
        .await;
    assert_eq!(ran.code(), 2);
    for words in ["devcontainer.json:1:", "were not sent", "tar c ."] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert_eq!(lab.names().await, ["one", "two"]);
}

#[tokio::test]
async fn an_archive_is_kept_privately_until_its_workspace_is_gone() {
    let lab = Lab::new().await;
    let archive = archive(&[
        (".vendetta/config.yaml", b"docker: {build: {}}\n"),
        ("Dockerfile", b"FROM x\n"),
    ]);
    let kept = || {
        let dir = lab._dir.path().join("state/contexts");
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    let create = b"workspace create one --config -";
    let ran = lab.session("alice", Some(create), &archive, false).await;
    assert_eq!((ran.code(), kept()), (0, 1), "{}", ran.stderr);
    // The name is taken: nothing more is kept.
    let ran = lab.session("alice", Some(create), &archive, false).await;
    assert_eq!((ran.code(), kept()), (4, 1), "{}", ran.stderr);
    let create = b"workspace create two --config - --image x";
    let ran = lab.session("alice", Some(create), &archive, false).await;
    assert_eq!((ran.code(), kept()), (0, 1), "{}", ran.stderr);
}
