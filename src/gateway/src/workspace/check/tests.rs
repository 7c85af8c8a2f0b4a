//! What is refused, by the key at which it is refused.

use super::*;
use serde_json::{Value, json};

fn checked(value: Value) -> Checked {
    let config: ProjectConfig = serde_json::from_value(value).unwrap();
    check(&config, config.provider.unwrap_or(ProviderKind::Docker))
}

/// A config with an image and `more`.
fn with(more: &Value) -> Value {
    let mut config = json!({"docker": {"image": "x"}});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn what_cannot_be_is_refused_at_its_key() {
    for (more, key) in [
        (json!({"docker": {}}), ""),
        (json!({"docker": {"image": "Bad Image"}}), "docker.image"),
        (
            json!({"docker": {"image": "x", "build": {}}}),
            "docker.build",
        ),
        (
            json!({"docker": {"build": {"context": "../x"}}}),
            "docker.build.context",
        ),
        (
            json!({"docker": {"build": {"dockerfile": "/x"}}}),
            "docker.build.dockerfile",
        ),
        (
            json!({"docker": {"build": {"args": {"A-B": "x"}}}}),
            "docker.build.args.A-B",
        ),
        (
            json!({"docker": {"build": {"target": "a b"}}}),
            "docker.build.target",
        ),
        (
            json!({"docker": {"image": "x", "volumes": {"a/b": "/x"}}}),
            "docker.volumes.a/b",
        ),
        (
            json!({"docker": {"image": "x", "volumes": {"a": "x"}}}),
            "docker.volumes.a",
        ),
        (
            json!({"docker": {"image": "x", "volumes": {"a": "/x", "b": "/x"}}}),
            "docker.volumes.b",
        ),
        (
            json!({"docker": {"image": "x", "volumes": {"a": "/workspace"}}}),
            "docker.volumes.a",
        ),
        (
            json!({"docker": {"image": "x", "volumes": {"a": "/.vendetta/run"}}}),
            "docker.volumes.a",
        ),
        (json!({"workspace_folder": "src"}), "workspace_folder"),
        (json!({"workspace_folder": "/"}), "workspace_folder"),
        (
            json!({"workspace_folder": "/a/../.vendetta"}),
            "workspace_folder",
        ),
        (json!({"workspace_folder": "/proc/1"}), "workspace_folder"),
        (json!({"env": {"A-B": "1"}}), "env.A-B"),
        (json!({"env": {"": "1"}}), "env."),
        (json!({"env": {"A": "\u{0}"}}), "env.A"),
        (json!({"resources": {"cpu": 0}}), "resources.cpu"),
        (json!({"resources": {"memory": "1M"}}), "resources.memory"),
        (json!({"user": "a b"}), "user"),
        (json!({"ports": [0]}), "ports.0"),
        (json!({"ports": [1, 2, 1]}), "ports.2"),
        (json!({"hooks": {"up": [["a\u{0}"]]}}), "hooks.up"),
        (json!({"repo": "-x"}), "repo"),
        (json!({"dotfiles": "ext::sh -c x"}), "dotfiles"),
        (
            json!({"provider": "lxc", "lxc": {"image": "nowhere:x"}}),
            "lxc.image",
        ),
        (
            json!({"provider": "qemu", "qemu": {"image": "x"}}),
            "qemu.image",
        ),
        (json!({"provider": "qemu"}), ""),
        (
            json!({"provider": "qemu", "qemu": {"image": "debian:12", "cpu": 0}}),
            "qemu.cpu",
        ),
        (
            json!({"provider": "qemu", "qemu": {"image": "debian:12", "memory": "64M"}}),
            "qemu.memory",
        ),
        (
            json!({"provider": "qemu", "qemu": {"image": "debian:12"}, "resources": {"memory": "64M"}}),
            "resources.memory",
        ),
        (
            json!({"provider": "qemu", "qemu": {"image": "debian:12", "disk": "1M"}}),
            "qemu.disk",
        ),
    ] {
        let wrong = checked(with(&more)).unwrap_err();
        assert_eq!(wrong.key.join("."), key, "{more}: {wrong}");
    }
}

#[test]
fn what_a_service_cannot_be_is_refused_at_its_key() {
    for (service, key) in [
        (json!({"command": " "}), "command"),
        (json!({"command": "x\u{0}"}), "command"),
        (json!({"command": "x", "port": 0}), "port"),
        (json!({"command": "x", "host_port": 80}), "host_port"),
        (
            json!({"command": "x", "health_check": "/"}),
            "health_check.http",
        ),
        (
            json!({"command": "x", "port": 1, "health_check": {"http": "x"}}),
            "health_check.http",
        ),
        (
            json!({"command": "x", "health_check": {"tcp": 0}}),
            "health_check.tcp",
        ),
        (
            json!({"command": "x", "health_check": {"command": ""}}),
            "health_check.command",
        ),
        (
            json!({"command": "x", "health_check": {"tcp": 1, "interval": "0s"}}),
            "health_check.interval",
        ),
        (
            json!({"command": "x", "health_check": {"tcp": 1, "retries": 0}}),
            "health_check.retries",
        ),
        (json!({"command": "x", "env": {"1": "x"}}), "env.1"),
        (json!({"command": "x", "user": ""}), "user"),
        (
            json!({"command": "x", "working_dir": "../x"}),
            "working_dir",
        ),
        (
            json!({"command": "x", "stop_signal": "sigterm"}),
            "stop_signal",
        ),
        (
            json!({"command": "x", "stop_signal": "SIGNONE"}),
            "stop_signal",
        ),
        (json!({"command": "x", "depends_on": ["y"]}), "depends_on.0"),
        (json!({"command": "x", "depends_on": ["a"]}), "depends_on.0"),
    ] {
        let wrong = checked(with(&json!({"services": {"a": service}}))).unwrap_err();
        assert_eq!(wrong.key.join("."), format!("services.a.{key}"), "{wrong}");
    }
}

#[test]
fn services_that_stand_in_one_anothers_way_are_refused() {
    for (services, key, words) in [
        (
            json!({"a": {"command": "x", "depends_on": ["c", "b"]}, "b": {"command": "x", "depends_on": ["a"]}, "c": {"command": "x"}}),
            "services.a.depends_on.1",
            "a -> b -> a",
        ),
        (
            json!({"a": {"command": "x", "port": 80}, "b": {"command": "x", "port": 80}}),
            "services.b.port",
            "service a",
        ),
        (
            json!({"a": {"command": "x", "port": 80, "host_port": 8080}, "b": {"command": "x", "port": 81, "host_port": 8080}}),
            "services.b.host_port",
            "service a",
        ),
    ] {
        let wrong = checked(with(&json!({"services": services}))).unwrap_err();
        assert_eq!(wrong.key.join("."), key, "{wrong}");
        assert!(wrong.problem.contains(words), "{wrong}");
    }
    let wrong = checked(with(
        &json!({"services": {"a": {"command": "x", "port": 80}}, "ports": [80]}),
    ))
    .unwrap_err();
    assert_eq!(wrong.key, ["ports", "0"]);
}

#[test]
fn what_can_be_passes() {
    for more in [
        json!({}),
        json!({"docker": {"build": {}}}),
        json!({"docker": {"build": {"context": "a/../b", "dockerfile": ".devcontainer/Dockerfile",
               "args": {"A": "b c"}, "target": "dev-1"}, "volumes": {"cache": "/home/dev/.cache"}}}),
        json!({"workspace_folder": "/workspaces/x", "env": {"_A1": ""}, "user": "1000:1000"}),
        json!({"services": {
            "db": {"command": "x", "port": 5432, "health_check": {"tcp": 5432}},
            "web": {"command": "x", "port": 80, "host_port": 8080, "health_check": "/", "depends_on": ["db"],
                    "working_dir": "src", "stop_signal": "QUIT", "user": "www"},
        }, "ports": [3000]}),
        json!({"provider": "host", "docker": {"image": "Not Used"}}),
    ] {
        checked(with(&more)).unwrap_or_else(|wrong| panic!("{more}: {wrong}"));
    }
}
