//! What comes of each key, and what is said about the others.

use serde_json::{Value, json};

use super::*;

fn read(text: &str) -> Result<Project, Invalid> {
    parse(PATHS[0], text.as_bytes(), "app")
}

/// The config that comes of `text`, and what it says that is not honoured.
fn converted(text: &str) -> (Value, Vec<String>) {
    let project = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let not_honoured = project.not_honoured.into_iter().map(|part| part.key);
    (
        serde_json::to_value(project.config).unwrap(),
        not_honoured.collect(),
    )
}

#[test]
fn each_key_becomes_one_of_ours() {
    for (text, config) in [
        ("{}", json!({})),
        (r#"{"$schema": "x", "init": true}"#, json!({})),
        (
            r#"{"image": "debian:12"}"#,
            json!({"docker": {"image": "debian:12"}}),
        ),
        (
            r#"{"name": "Node.js & Postgres"}"#,
            json!({"name": "node-js-postgres"}),
        ),
        (
            r#"{"build": {"dockerfile": "Dockerfile"}}"#,
            json!({"docker": {"build": {"dockerfile": ".devcontainer/Dockerfile", "context": ".devcontainer"}}}),
        ),
        (
            r#"{"build": {"context": "..", "dockerfile": "../docker/Dev", "target": "dev",
                "args": {"VARIANT": "22", "DIR": "${containerWorkspaceFolder}"}}}"#,
            json!({"docker": {"build": {"context": ".", "dockerfile": "docker/Dev", "target": "dev",
                   "args": {"VARIANT": "22", "DIR": "/workspace"}}}}),
        ),
        (
            r#"{"dockerFile": "Dockerfile", "context": ".."}"#,
            json!({"docker": {"build": {"dockerfile": ".devcontainer/Dockerfile", "context": "."}}}),
        ),
        (
            r#"{"workspaceFolder": "/workspaces/${localWorkspaceFolderBasename}"}"#,
            json!({"workspace_folder": "/workspaces/app"}),
        ),
        (
            r#"{"remoteEnv": {"PATH": "${containerEnv:PATH}:/x", "B": "${containerEnv:A}b"}, "containerEnv": {"A": "a"}}"#,
            json!({"env": {"A": "a", "B": "ab", "PATH": "${containerEnv:PATH}:/x"}}),
        ),
        (
            r#"{"containerEnv": {"HERE": "${containerWorkspaceFolder}"}, "workspaceFolder": "/src"}"#,
            json!({"env": {"HERE": "/src"}, "workspace_folder": "/src"}),
        ),
        (r#"{"remoteUser": "dev"}"#, json!({"user": "dev"})),
        (r#"{"containerUser": "dev"}"#, json!({"user": "dev"})),
        (
            r#"{"containerUser": "dev", "remoteUser": "dev"}"#,
            json!({"user": "dev"}),
        ),
        (
            r#"{"forwardPorts": [3000, "localhost:3001", "3002", 3000]}"#,
            json!({"ports": [3000, 3001, 3002]}),
        ),
        (
            r#"{"mounts": ["source=${localWorkspaceFolderBasename}-cache,target=/cache,type=volume",
                {"type": "volume", "source": "my data", "target": "/data"}]}"#,
            json!({"docker": {"volumes": {"app-cache": "/cache", "my-data": "/data"}}}),
        ),
        (
            r#"{"hostRequirements": {"cpus": 2, "memory": "8gb"}}"#,
            json!({"resources": {"cpu": 2.0, "memory": "8G"}}),
        ),
        (
            r#"{"onCreateCommand": "make"}"#,
            json!({"hooks": {"create": "make"}}),
        ),
        (
            r#"{"postCreateCommand": ["npm", "run", ""], "postStartCommand": {"a": "x", "b": ["y", "z"]}, "postAttachCommand": "w"}"#,
            json!({"hooks": {"create": ["npm", "run", ""], "up": {"a": "x", "b": ["y", "z"]}, "attach": "w"}}),
        ),
        (
            r#"{"postCreateCommand": "c", "onCreateCommand": "a", "updateContentCommand": ["b", "b"]}"#,
            json!({"hooks": {"create": [{"onCreateCommand": "a"}, ["b", "b"], {"postCreateCommand": "c"}]}}),
        ),
        (
            r#"{"postCreateCommand": "", "postStartCommand": {}}"#,
            json!({}),
        ),
    ] {
        let (converted, not_honoured) = converted(text);
        assert_eq!(converted, config, "{text}");
        assert!(not_honoured.is_empty(), "{text}: {not_honoured:?}");
        // As it is stored: what it says survives.
        let stored: ProjectConfig = serde_json::from_value(converted.clone()).unwrap();
        assert_eq!(serde_json::to_value(stored).unwrap(), converted, "{text}");
    }
}

#[test]
fn what_has_no_counterpart_is_listed_and_the_rest_is_used() {
    for (text, keys) in [
        (
            r#"{"image": "x", "features": {}, "runArgs": ["--privileged"], "customizations": {"vscode": {}},
                "initializeCommand": "x", "dockerComposeFile": "c.yml", "portsAttributes": {}}"#,
            vec![
                "features",
                "runArgs",
                "customizations",
                "initializeCommand",
                "portsAttributes",
                "dockerComposeFile",
            ],
        ),
        (
            r#"{"image": "x", "mounts": ["type=bind,source=/x,target=/y"]}"#,
            vec!["mounts.0"],
        ),
        (
            r#"{"image": "x", "mounts": [{"type": "tmpfs", "target": "/y"}]}"#,
            vec!["mounts.0"],
        ),
        (
            r#"{"image": "x", "mounts": ["type=volume,source=${devcontainerId},target=/y"]}"#,
            vec!["mounts.0"],
        ),
        (
            r#"{"image": "x", "containerEnv": {"A": "${localEnv:A}", "B": "b"}, "remoteEnv": {"C": null}}"#,
            vec!["containerEnv.A", "remoteEnv.C"],
        ),
        (
            r#"{"image": "x", "remoteUser": "a", "containerUser": "b"}"#,
            vec!["containerUser"],
        ),
        (
            r#"{"image": "x", "forwardPorts": ["db:5432", 1]}"#,
            vec!["forwardPorts.0"],
        ),
        (
            r#"{"image": "x", "hostRequirements": {"gpu": true, "storage": "1gb"}}"#,
            vec!["hostRequirements.gpu", "hostRequirements.storage"],
        ),
        (
            r#"{"build": {"dockerfile": "D", "cacheFrom": "x", "options": []}}"#,
            vec!["build.cacheFrom", "build.options"],
        ),
        (r#"{"image": "x", "name": "123"}"#, vec!["name"]),
        (r#"{"image": "x", "imgae": "y"}"#, vec!["imgae"]),
    ] {
        let (config, not_honoured) = converted(text);
        assert_eq!(not_honoured, keys, "{text}");
        assert!(config["docker"].is_object(), "{text}: {config}");
    }
    let project = read(r#"{"forwardPort": [1]}"#).unwrap();
    assert_eq!(
        project.not_honoured[0].to_string(),
        "not honoured: forwardPort (unknown; did you mean forwardPorts?)"
    );
}

#[test]
fn what_cannot_be_read_is_refused_where_it_stands() {
    for (text, at, words) in [
        ("", None, "object"),
        ("[1]", Some((1, 1)), "object"),
        (
            "{\n  \"image\": \"x\"\n  \"name\": \"y\"\n}",
            Some((2, 15)),
            "comma",
        ),
        ("{\"image\": 'x'}", Some((1, 11)), "quoted"),
        (
            "{\n  // a comment\n  \"image\": 1,\n}",
            Some((3, 12)),
            "`image` is a string",
        ),
        (
            "{\"image\": \"x\",\n\"image\": \"y\"}",
            Some((2, 1)),
            "twice",
        ),
        (
            "{\"image\": \"${localEnv:IMAGE}\"}",
            Some((1, 11)),
            "localEnv:IMAGE",
        ),
        ("{\"forwardPorts\": [70000]}", Some((1, 19)), "port"),
        ("{\"forwardPorts\": 1}", Some((1, 18)), "list"),
        ("{\"postCreateCommand\": [1]}", Some((1, 24)), "string"),
        (
            "{\"postCreateCommand\": [\"\"]}",
            Some((1, 23)),
            "no program",
        ),
        (
            "{\"postStartCommand\": {\"a\": {\"b\": \"c\"}}}",
            Some((1, 28)),
            "string",
        ),
        (
            "{\"hostRequirements\": {\"memory\": \"much\"}}",
            Some((1, 33)),
            "size",
        ),
        ("{\"remoteEnv\": {\"A\": 1}}", Some((1, 21)), "string"),
    ] {
        let error = read(text).unwrap_err();
        assert_eq!(error.at, at, "{text}: {error}");
        assert!(error.problem.contains(words), "{text}: {error}");
    }
    let error = read("{\"dockerComposeFile\": \"c.yml\", \"service\": \"a\"}").unwrap_err();
    assert_eq!(error.at, Some((1, 2)), "{error}");
    assert!(
        error.remedy.unwrap().contains("services"),
        "compose has a remedy"
    );
    read(&format!(
        "{{\"a\": {}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    ))
    .unwrap_err();
    parse(PATHS[0], b"{\xff}", "app").unwrap_err();
}

#[test]
fn comments_commas_at_the_end_and_a_byte_order_mark_are_fine() {
    let text = "\u{feff}// one\n{\n  /* two */ \"image\": \"x\", // three\n  \"forwardPorts\": [1, 2,],\n}\n";
    assert_eq!(converted(text).0["ports"], json!([1, 2]));
}

#[test]
fn a_file_beside_the_project_is_of_its_directory() {
    let text = br#"{"build": {"dockerfile": "docker/Dockerfile"}}"#;
    let project = parse(PATHS[1], text, "app").unwrap();
    let build = project.config.docker.unwrap().build.unwrap();
    assert_eq!(build.dockerfile.as_deref(), Some("docker/Dockerfile"));
    assert_eq!(build.context_dir(), "");
}

#[test]
fn what_is_wrong_with_a_config_is_shown_in_the_dev_container_config_it_came_from() {
    let project =
        read("{\n  \"image\": \"Not An Image\",\n  \"hostRequirements\": {\"cpus\": 0}\n}")
            .unwrap();
    for (key, at) in [
        (vec!["docker", "image"], Some((2, 12))),
        (vec!["resources", "cpu"], Some((3, 32))),
        (vec!["services"], None),
    ] {
        let key: Vec<String> = key.into_iter().map(str::to_owned).collect();
        let refused = project
            .refuse(&key, "it is wrong".to_owned(), None)
            .unwrap();
        assert_eq!(refused.at, at, "{key:?}");
    }
}
