//! What each file may hold, and what is said about one that is wrong.

use serde_json::Value;

use super::{Config, LogLevel, Project, project};

const EXAMPLE: &str = include_str!("../../../../config/vendetta.toml");

/// The example with every `#key = value` line made effective.
fn uncommented() -> String {
    let key = |line: &str| {
        line.split_once(" = ")
            .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if key(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect()
}

fn keys(value: &Value, prefix: &str, into: &mut Vec<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => keys(value, &format!("{prefix}{key}."), into),
            _ => into.push(format!("{prefix}{key}")),
        }
    }
}

#[test]
fn the_example_changes_nothing_until_a_line_is_uncommented() {
    assert_eq!(
        Config::parse("vendetta.toml", EXAMPLE).unwrap(),
        Config::default()
    );
}

#[test]
fn the_example_names_every_key_with_its_default() {
    let text = uncommented();
    let shown: Value = serde_json::to_value(toml::from_str::<toml::Table>(&text).unwrap()).unwrap();
    let (mut in_example, mut in_config) = (Vec::new(), Vec::new());
    keys(&shown, "", &mut in_example);
    keys(
        &serde_json::to_value(Config::default()).unwrap(),
        "",
        &mut in_config,
    );
    in_example.sort();
    in_config.sort();
    assert_eq!(in_example, in_config);

    let mut config = Config::parse("vendetta.toml", &text).unwrap();
    // These have no fixed default: the example shows a likely value.
    let default = Config::default();
    assert!(config.advertise.take().is_some() && config.agent_dir.take().is_some());
    config.state_dir.clone_from(&default.state_dir);
    assert!(config.metrics.listen.take().is_some() && config.lxc.socket.take().is_some());
    assert_eq!(config, default);
}

#[test]
fn a_misspelt_key_is_refused_with_its_position_and_the_key_that_was_meant() {
    let error = Config::parse("g.toml", "[limits]\nconections = 5\n").unwrap_err();
    assert_eq!(error.to_string(), "g.toml:2:1: unknown key `conections`");
    assert_eq!(error.remedy.as_deref(), Some("did you mean `connections`?"));
    let shown = error.render(80, true, false);
    assert!(
        shown.contains("[g.toml:2:1]") && shown.contains("conections = 5"),
        "{shown}"
    );
}

#[test]
fn a_wrong_type_or_value_is_refused_with_its_position() {
    let error = Config::parse("g.toml", "listen = \"here\"\n").unwrap_err();
    assert_eq!(error.at, Some((1, 10)), "{error}");
    let error = Config::parse("g.toml", "[log]\nlevel = \"inof\"\n").unwrap_err();
    assert_eq!(error.at, Some((2, 9)), "{error}");
    assert_eq!(error.remedy.as_deref(), Some("did you mean `info`?"));
    let error = Config::parse("g.toml", "[limits]\nconnections = -1\n").unwrap_err();
    assert_eq!(error.at, Some((2, 15)), "{error}");
    Config::parse(
        "g.toml",
        "listen = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"\n",
    )
    .unwrap_err();
}

#[test]
fn settings_that_would_lock_everybody_out_are_refused() {
    for text in [
        "limits.connections = 0",
        "limits.login_grace_seconds = 0",
        "ssh.rekey_bytes = 0",
        "ssh.rekey_bytes = 2147483648",
        "ssh.ciphers = []",
        "state_dir = \"here\"",
        "users.trusted_user_ca_keys = [\"nonsense\"]",
    ] {
        let error = Config::parse("g.toml", text).unwrap_err();
        assert!(error.remedy.is_some(), "{text}: {error}");
    }
}

#[test]
fn certificate_authorities_come_inline_or_from_a_file() {
    let line = vendetta_sshio::keys::PrivateKey::generate_ed25519("ca")
        .unwrap()
        .public()
        .to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pub");
    std::fs::write(&file, format!("# ours\n\n{line} the ca\n")).unwrap();
    let text = format!("[users]\ntrusted_user_ca_keys = [\"{line}\", {file:?}]\n");
    let keys = Config::parse("g.toml", &text)
        .unwrap()
        .users
        .certificate_authorities()
        .unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);

    std::fs::write(&file, "# ours\nssh-ed25519 AAAA\n").unwrap();
    let error = Config::parse("g.toml", &text).unwrap_err();
    assert!(error.to_string().contains("ca.pub:2"), "{error}");
}

#[test]
fn a_file_that_is_not_there_says_so() {
    let error = Config::load(Some("/nowhere/vendetta.toml".as_ref())).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/nowhere/vendetta.toml: cannot be read"),
        "{error}"
    );
}

#[test]
fn the_address_shown_to_users_is_the_advertised_one_or_the_bound_one() {
    let bound = "127.0.0.1:2222".parse().unwrap();
    let shown = |advertise: Option<&str>| {
        Config {
            advertise: advertise.map(str::to_owned),
            ..Config::default()
        }
        .address(bound)
    };
    assert_eq!(shown(None), ("127.0.0.1".to_owned(), 2222));
    assert_eq!(
        shown(Some("dev.example.org")),
        ("dev.example.org".to_owned(), 22)
    );
    assert_eq!(
        shown(Some("dev.example.org:2022")),
        ("dev.example.org".to_owned(), 2022)
    );
    assert_eq!(
        shown(Some("[2001:db8::1]:2022")),
        ("2001:db8::1".to_owned(), 2022)
    );
    assert_eq!(shown(Some("2001:db8::1")), ("2001:db8::1".to_owned(), 22));
}

#[test]
fn log_levels_read_as_they_are_written() {
    let config = Config::parse("g.toml", "log = { level = \"debug\", format = \"json\" }").unwrap();
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.log.level.as_str(), "debug");
}

#[test]
fn a_project_config_is_read_whole() {
    let config = project::parse(
        "config.yaml",
        b"name: my-project\nprovider: docker\ndocker: {image: \"ubuntu:22.04\"}\nenv: {RUST_LOG: info}\n",
    )
    .unwrap()
    .config;
    assert_eq!(config.name.unwrap().as_str(), "my-project");
    assert_eq!(config.env["RUST_LOG"], "info");
}

#[test]
fn a_misspelt_project_key_is_refused_with_its_position_and_the_key_that_was_meant() {
    let error = project::parse("config.yaml", b"name: x\ndocker:\n  imgae: y\n").unwrap_err();
    assert_eq!(error.to_string(), "config.yaml:3:3: unknown key `imgae`");
    assert_eq!(error.remedy.as_deref(), Some("did you mean `image`?"));
    let error = project::parse("config.yaml", b"provider: dokcer\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.yaml:1:11: unknown value `dokcer`"
    );
    assert_eq!(error.remedy.as_deref(), Some("did you mean `docker`?"));
}

#[test]
fn a_bad_name_a_wrong_type_a_repeated_key_and_broken_yaml_are_refused_where_they_stand() {
    for (text, at) in [
        ("name: My_Project\n", (1, 7)),
        ("name: x\nresources:\n  cpu: many\n", (3, 8)),
        ("env:\n  A: 1\n  A: 2\n", (3, 3)),
        ("name: x\nenv: {A: \"b\n", (2, 10)),
        ("name: x\n---\nname: y\n", (2, 1)),
    ] {
        let error = project::parse("config.yaml", text.as_bytes()).unwrap_err();
        assert_eq!(error.at, Some(at), "{text:?}: {error}");
        assert!(!error.problem.contains("line "), "{error}");
    }
    project::parse("config.yaml", b"name: \xff\n").unwrap_err();
}

#[test]
fn an_alias_bomb_costs_nothing_and_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    text.push_str("env: {A: *a11}\n");
    let start = std::time::Instant::now();
    project::parse("config.yaml", text.as_bytes()).unwrap_err();
    assert!(start.elapsed() < std::time::Duration::from_secs(20));

    let deep = format!("env: {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    project::parse("config.yaml", deep.as_bytes()).unwrap_err();
    project::parse("config.yaml", &vec![b'#'; project::MAX_SIZE + 1]).unwrap_err();
}

#[test]
fn a_range_of_ports_has_a_first_and_a_last_one_that_need_no_privileges() {
    let of = |range: &str| Config::parse("g.toml", &format!("[ports]\nrange = \"{range}\"\n"));
    let ports = of("30000-30099").unwrap().ports;
    assert_eq!(ports.range.0, 30000..=30099);
    assert_eq!(String::from(ports.range), "30000-30099");
    for wrong in ["30000", "30001-30000", "80-90", "1024-70000", "-", ""] {
        let error = of(wrong).unwrap_err();
        assert_eq!(error.at, Some((2, 9)), "{wrong}: {error}");
        assert!(error.to_string().contains("20000-29999"), "{error}");
    }
}

#[test]
fn what_a_check_says_is_shown_at_the_key_or_the_nearest_above_it() {
    let text = "\
name: x
docker: {image: y, volumes: {a: /a}}
services:
  web:
    command: &run serve
    health_check: /health
    depends_on: [db,
      cache]
  ü:
    command: *run
ports:
- 80
";
    let project = project::parse("config.yaml", text.as_bytes());
    // Not every name here is one; the places are those of the text all the same.
    assert_eq!(project.unwrap_err().at, Some((9, 3)));
    let text = text.replace("  ü:", "  u:");
    let project = project::parse("config.yaml", text.as_bytes()).unwrap();
    for (key, at) in [
        ("name", (1, 7)),
        ("docker", (2, 1)),
        ("docker.volumes.a", (2, 33)),
        ("services.web", (4, 3)),
        ("services.web.health_check", (6, 19)),
        ("services.web.health_check.http", (6, 19)),
        ("services.web.depends_on", (7, 5)),
        ("services.web.depends_on.1", (8, 7)),
        ("services.web.port", (4, 3)),
        ("services.u.command", (10, 14)),
        ("ports.0", (12, 3)),
    ] {
        let key: Vec<String> = key.split('.').map(str::to_owned).collect();
        let refused = project
            .refuse(&key, "it is wrong".to_owned(), None)
            .unwrap();
        assert_eq!(refused.at, Some(at), "{key:?}");
    }
    let refused = project.refuse(&[], "it is wrong".to_owned(), None).unwrap();
    assert_eq!((refused.at, refused.file.as_str()), (None, "config.yaml"));
    assert!(
        Project::default()
            .refuse(&[], String::new(), None)
            .is_none()
    );
}
