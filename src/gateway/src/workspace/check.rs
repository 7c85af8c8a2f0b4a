//! What a project config may not say although its types can: each check names
//! the key that is wrong, so that whoever has the file can show where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr as _;

use nix::sys::signal::Signal;
use vendetta_proto::graph::{self, GraphError};
use vendetta_proto::spec::{
    Build, DockerConfig, HealthCheck, HookCommand, Probe, ProjectConfig, ProviderKind, Resources,
    Service,
};

use super::{ErrorKind, WorkspaceError};
use crate::provider::ImageReference;

/// Longest user name or number.
const MAX_USER: usize = 256;

/// Directories of an environment that are not a workspace's to place.
const RESERVED: [&str; 4] = ["/.vendetta", "/dev", "/proc", "/sys"];

/// A part of a project config that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The way to the key, from the top; items of a list by their number.
    pub key: Vec<String>,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it, where it does not go without saying.
    pub remedy: Option<String>,
}

impl Wrong {
    pub(super) fn new(key: &[&str], problem: impl Into<String>) -> Self {
        Self {
            key: key.iter().map(|&part| part.to_owned()).collect(),
            problem: problem.into(),
            remedy: None,
        }
    }

    pub(super) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same, further down than `key`.
    fn below(mut self, key: &[&str]) -> Self {
        self.key
            .splice(..0, key.iter().map(|&part| part.to_owned()));
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key.join("."))?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Wrong {}

impl From<Wrong> for WorkspaceError {
    fn from(wrong: Wrong) -> Self {
        Self {
            remedy: wrong.remedy.clone(),
            ..Self::new(ErrorKind::Usage, "config", wrong.to_string())
        }
    }
}

type Checked = Result<(), Wrong>;

/// Checks what `provider` is to run.
pub(super) fn check(config: &ProjectConfig, provider: ProviderKind) -> Checked {
    check_provider(config, provider)?;
    check_resources(config.resources)?;
    if let Some(user) = &config.user {
        check_user(user).map_err(|problem| Wrong::new(&["user"], problem))?;
    }
    if let Some(folder) = &config.workspace_folder {
        check_folder(folder).map_err(|problem| Wrong::new(&["workspace_folder"], problem))?;
    }
    if let Some(docker) = &config.docker {
        check_volumes(docker, config.workspace_folder.as_deref())?;
    }
    check_env(&config.env)?;
    for (name, service) in &config.services {
        check_service(service).map_err(|wrong| wrong.below(&["services", name.as_str()]))?;
    }
    check_dependencies(config)?;
    check_ports(config)?;
    check_hooks(config)?;
    for (key, url) in [("repo", &config.repo), ("dotfiles", &config.dotfiles)] {
        if let Some(url) = url {
            check_repository(url).map_err(|problem| {
                Wrong::new(&[key], format!("{url:?} {problem}"))
                    .with_remedy("give https://HOST/PATH, ssh://[USER@]HOST/PATH or USER@HOST:PATH")
            })?;
        }
    }
    Ok(())
}

fn check_provider(config: &ProjectConfig, provider: ProviderKind) -> Checked {
    match provider {
        ProviderKind::Docker => match &config.docker {
            Some(DockerConfig {
                image: Some(_),
                build: Some(_),
                ..
            }) => Err(Wrong::new(
                &["docker", "build"],
                "image and build are two answers to one question",
            )
            .with_remedy("keep one of the two")),
            Some(DockerConfig {
                image: Some(image), ..
            }) => ImageReference::parse(image)
                .map(drop)
                .map_err(|error| Wrong::new(&["docker", "image"], error.to_string())),
            Some(DockerConfig {
                build: Some(build), ..
            }) => check_build(build).map_err(|wrong| wrong.below(&["docker", "build"])),
            _ => Err(
                Wrong::new(&[], "provider docker needs an image").with_remedy(
                    "add --image IMAGE, or docker: {image: IMAGE} or docker: {build: {}} to the config",
                ),
            ),
        },
        ProviderKind::Host => Ok(()),
        ProviderKind::Lxc | ProviderKind::Qemu => Err(Wrong::new(
            &["provider"],
            format!("provider {provider} is not built into this version"),
        )
        .with_remedy("use provider docker or host")),
    }
}

fn check_build(build: &Build) -> Checked {
    for (key, path) in [
        ("dockerfile", &build.dockerfile),
        ("context", &build.context),
    ] {
        if let Some(path) = path
            && !is_below(path)
        {
            return Err(Wrong::new(
                &[key],
                format!("{path:?} is not a path below the project's directory"),
            ));
        }
    }
    for (name, value) in &build.args {
        check_variable(name, value).map_err(|problem| Wrong::new(&["args", name], problem))?;
    }
    let odd = |c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c));
    match &build.target {
        Some(target) if target.is_empty() || target.contains(odd) => Err(Wrong::new(
            &["target"],
            format!("{target:?} is not the name of a stage"),
        )),
        _ => Ok(()),
    }
}

/// Whether a relative path stays where it begins.
fn is_below(path: &str) -> bool {
    let mut depth = 0_i32;
    !path.starts_with('/')
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| {
            depth += match part {
                "" | "." => 0,
                ".." => -1,
                _ => 1,
            };
            depth >= 0
        })
}

/// A directory of an environment that may be a disk of a workspace.
fn check_folder(path: &str) -> Result<(), String> {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let whole = path
        .strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(plain));
    if !whole || path.chars().any(char::is_control) {
        return Err(format!(
            "{path:?} is not an absolute path without '.' and '..', such as /workspace"
        ));
    }
    match RESERVED.iter().find(|reserved| is_in(path, reserved)) {
        Some(reserved) => Err(format!(
            "{path:?} is in {reserved}, which is not the workspace's"
        )),
        None => Ok(()),
    }
}

/// Whether `path` is `dir` or below it.
fn is_in(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check_volumes(docker: &DockerConfig, folder: Option<&str>) -> Checked {
    let mut taken: BTreeMap<&str, &str> = BTreeMap::from([(
        folder.unwrap_or(super::WORKSPACE_DIR),
        "the workspace's disk",
    )]);
    for (name, path) in &docker.volumes {
        let wrong = |problem: String| Err(Wrong::new(&["docker", "volumes", name], problem));
        let letters = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || name.len() > 63 || !name.bytes().all(letters) {
            return wrong(format!(
                "{name:?} is not the name of a volume; use letters, digits, '_', '.' and '-'"
            ));
        }
        if let Err(problem) = check_folder(path) {
            return wrong(problem);
        }
        if let Some(other) = taken.insert(path, name) {
            return wrong(format!("{path} is where {other} is already"));
        }
    }
    Ok(())
}

fn check_resources(resources: Resources) -> Checked {
    if let Some(cpu) = resources.cpu
        && !(cpu.is_finite() && (0.01..=4096.0).contains(&cpu))
    {
        return Err(Wrong::new(
            &["resources", "cpu"],
            format!("{cpu} is not a number of processors between 0.01 and 4096"),
        ));
    }
    if let Some(memory) = resources.memory
        && memory.as_bytes() < 6 << 20
    {
        return Err(Wrong::new(
            &["resources", "memory"],
            format!("{memory} is less than 6M, the least an engine takes"),
        ));
    }
    Ok(())
}

fn check_user(user: &str) -> Result<(), String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if user.is_empty() || user.len() > MAX_USER || user.contains(odd) {
        return Err(format!("{user:?} is not a user name or number"));
    }
    Ok(())
}

/// Whether it is a name of POSIX.1, Environment Variables, section 8.1.
#[must_use]
pub fn is_variable_name(name: &str) -> bool {
    let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty()
        && name.bytes().all(letters)
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

fn check_variable(name: &str, value: &str) -> Result<(), String> {
    if !is_variable_name(name) {
        return Err(format!(
            "{name:?} is not a variable name; use letters, digits and '_', not a digit first"
        ));
    }
    if value.contains('\0') {
        return Err("the value has a NUL character".to_owned());
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Checked {
    for (name, value) in env {
        check_variable(name, value).map_err(|problem| Wrong::new(&["env", name], problem))?;
    }
    Ok(())
}

/// What is wrong with a line for a shell.
fn check_line(line: &str) -> Result<(), &'static str> {
    if line.trim().is_empty() {
        return Err("there is no command in it");
    }
    if line.contains('\0') {
        return Err("it has a NUL character");
    }
    Ok(())
}

fn check_service(service: &Service) -> Checked {
    check_line(&service.command).map_err(|problem| Wrong::new(&["command"], problem))?;
    if service.host_port.is_some() && service.port.is_none() {
        return Err(Wrong::new(
            &["host_port"],
            "it leads to the service's port, and there is none",
        )
        .with_remedy("add port: the port on which the service listens"));
    }
    for (key, port) in [("port", service.port), ("host_port", service.host_port)] {
        if port == Some(0) {
            return Err(Wrong::new(&[key], "a port is a number from 1 to 65535"));
        }
    }
    if let Some(check) = &service.health_check {
        check_health(check, service.port).map_err(|wrong| wrong.below(&["health_check"]))?;
    }
    check_env(&service.env)?;
    if let Some(user) = &service.user {
        check_user(user).map_err(|problem| Wrong::new(&["user"], problem))?;
    }
    if let Some(dir) = &service.working_dir
        && (dir.trim().is_empty() || !is_below(dir.trim_start_matches('/')))
    {
        return Err(Wrong::new(
            &["working_dir"],
            format!("{dir:?} is neither absolute nor below the workspace's directory"),
        ));
    }
    if let Some(signal) = &service.stop_signal
        && Signal::from_str(&format!(
            "SIG{}",
            signal.strip_prefix("SIG").unwrap_or(signal)
        ))
        .is_err()
    {
        return Err(Wrong::new(
            &["stop_signal"],
            format!("{signal:?} is not the name of a signal"),
        )
        .with_remedy("write one such as SIGTERM, SIGINT or SIGQUIT"));
    }
    Ok(())
}

fn check_health(check: &HealthCheck, port: Option<u16>) -> Checked {
    match &check.probe {
        Probe::Http(path) => {
            // Anything else would end the request line (RFC 9112 section 3).
            if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(Wrong::new(
                    &["http"],
                    format!(
                        "{path:?} is not a path such as /health, with other characters percent-encoded"
                    ),
                ));
            }
            if port.is_none() {
                return Err(Wrong::new(
                    &["http"],
                    "it asks at the service's port, and there is none",
                )
                .with_remedy("add port: the port on which the service listens"));
            }
        }
        Probe::Tcp(0) => return Err(Wrong::new(&["tcp"], "a port is a number from 1 to 65535")),
        Probe::Tcp(_) => {}
        Probe::Command(line) => {
            check_line(line).map_err(|problem| Wrong::new(&["command"], problem))?;
        }
    }
    for (key, span) in [("interval", check.interval), ("timeout", check.timeout)] {
        if span.is_some_and(|span| span.as_duration().is_zero()) {
            return Err(Wrong::new(&[key], "it is at least 1s"));
        }
    }
    if check.retries == Some(0) {
        return Err(Wrong::new(&["retries"], "it is at least 1"));
    }
    Ok(())
}

fn check_dependencies(config: &ProjectConfig) -> Checked {
    let Err(error) = graph::order(&config.services) else {
        return Ok(());
    };
    let (service, dependency) = match &error {
        GraphError::Unknown {
            service,
            dependency,
            ..
        } => (Some(service), Some(dependency)),
        GraphError::Itself { service } => (Some(service), Some(service)),
        GraphError::Cycle { path } => (path.0.first(), path.0.get(1)),
    };
    let Some(service) = service else {
        return Err(Wrong::new(&["services"], error.to_string()));
    };
    let listed = config
        .services
        .get(service)
        .and_then(|of| of.depends_on.iter().position(|on| Some(on) == dependency));
    let mut wrong = Wrong::new(
        &["services", service.as_str(), "depends_on"],
        error.to_string(),
    );
    wrong.key.extend(listed.map(|at| at.to_string()));
    Err(wrong)
}

/// A port has one purpose, inside the environment and on the gateway's machine.
fn check_ports(config: &ProjectConfig) -> Checked {
    let (mut inside, mut outside) = (BTreeMap::new(), BTreeMap::new());
    for (name, service) in &config.services {
        for (key, port, taken) in [
            ("port", service.port, &mut inside),
            ("host_port", service.host_port, &mut outside),
        ] {
            if let Some(port) = port
                && let Some(other) = taken.insert(port, name)
            {
                return Err(Wrong::new(
                    &["services", name.as_str(), key],
                    format!("{port} is the {key} of service {other} already"),
                ));
            }
        }
    }
    let mut listed = BTreeSet::new();
    for (at, port) in config.ports.iter().enumerate() {
        let at = at.to_string();
        let wrong = |problem: String| Err(Wrong::new(&["ports", &at], problem));
        if *port == 0 {
            return wrong("a port is a number from 1 to 65535".to_owned());
        }
        if let Some(service) = inside.get(port) {
            return wrong(format!(
                "{port} is the port of service {service}, which has a host port anyway"
            ));
        }
        if !listed.insert(port) {
            return wrong(format!("{port} is listed twice"));
        }
    }
    Ok(())
}

fn check_hooks(config: &ProjectConfig) -> Checked {
    let hooks = &config.hooks;
    for (key, hook) in [
        ("create", &hooks.create),
        ("up", &hooks.up),
        ("attach", &hooks.attach),
        ("down", &hooks.down),
    ] {
        if let Some(hook) = hook
            && has_nul(hook)
        {
            return Err(Wrong::new(&["hooks", key], "it has a NUL character"));
        }
    }
    Ok(())
}

fn has_nul(command: &HookCommand) -> bool {
    match command {
        HookCommand::Line(line) => line.contains('\0'),
        HookCommand::Program(words) => words.iter().any(|word| word.contains('\0')),
        HookCommand::Sequence(commands) => commands.iter().any(has_nul),
        HookCommand::Parallel(commands) => commands.values().any(has_nul),
    }
}

/// What git may be told to clone: nothing that it would take for an option, and
/// none of its transports that run a program of the URL's choice (gitremote-helpers(7), ext::).
fn check_repository(url: &str) -> Result<(), &'static str> {
    if url.starts_with('-') {
        return Err("begins with '-', as an option does");
    }
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("has a space or a control character");
    }
    let (host, path) = match url.split_once("://") {
        Some(("https" | "http" | "ssh" | "git", rest)) => {
            rest.split_once('/').unwrap_or((rest, ""))
        }
        Some(("file", path)) => ("localhost", path),
        Some(_) => return Err("has a scheme that is not used"),
        None => url.split_once(':').ok_or("is not a URL")?,
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    if host.is_empty() || host.starts_with('-') || host.contains('/') {
        return Err("has no host");
    }
    if path.is_empty() || path.starts_with(['-', ':']) {
        return Err("has no path");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
                json!({"provider": "lxc", "lxc": {"image": "x"}}),
                "provider",
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

    #[test]
    fn a_repository_is_a_url_that_git_cannot_take_for_anything_else() {
        for good in [
            "https://example.org/a/b.git",
            "https://user@example.org:8443/a",
            "ssh://git@example.org:2222/a.git",
            "git@example.org:a/b.git",
            "example.org:a",
            "file:///srv/a.git",
        ] {
            assert_eq!(check_repository(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-oProxyCommand=x",
            "--upload-pack=x",
            "a",
            "/a",
            "ext::sh -c x",
            "ext::sh",
            "fd::17",
            "ssh://-oProxyCommand=x/a",
            "ssh://x@-oProxyCommand=x/a",
            "-x@host:a",
            "x@-host:a",
            "host:-a",
            "host:",
            "https://",
            "https://host",
            "https:///a",
            "javascript://host/a",
            "https://host/a b",
            "https://host/a\n",
            "./a:b",
        ] {
            assert!(check_repository(bad).is_err(), "{bad}");
        }
    }
}
