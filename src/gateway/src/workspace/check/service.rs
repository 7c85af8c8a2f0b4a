//! Services: each by itself, and what they have to do with one another.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;

use nix::sys::signal::Signal;
use vendetta_proto::graph::{self, GraphError};
use vendetta_proto::spec::{HealthCheck, Probe, ProjectConfig, Service};

use super::{Checked, Wrong, check_env, check_line, check_user, is_below};

pub(super) fn check_service(service: &Service) -> Checked {
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

pub(super) fn check_health(check: &HealthCheck, port: Option<u16>) -> Checked {
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

pub(super) fn check_dependencies(config: &ProjectConfig) -> Checked {
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
pub(super) fn check_ports(config: &ProjectConfig) -> Checked {
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
