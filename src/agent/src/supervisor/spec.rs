//! A service's part of the configuration, checked and with its defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use vendetta_proto::ServiceName;
use vendetta_proto::graph::{self, GraphError};
use vendetta_proto::spec::{HealthCheck, Probe, Restart, Service};

use super::policy::{Plan, Schedule};

/// Time between two tries of a health check.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a try has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Failures in a row that make a service unhealthy.
const RETRIES: u32 = 3;
/// Time between the stop signal and SIGKILL.
const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// Why services cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// They cannot be put in an order.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// One is impossible.
    #[error("service {service}: {problem}")]
    Service {
        /// Which.
        service: ServiceName,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// What to run, and how to treat it.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What its lifecycle depends on.
    pub plan: Plan,
    /// Shell command line.
    pub command: String,
    /// Its port.
    pub port: Option<u16>,
    /// How to tell that it works.
    pub check: Option<Check>,
    /// Its own variables.
    pub env: BTreeMap<String, String>,
    /// Its user, where it is not the workspace's.
    pub user: Option<String>,
    /// Its working directory, absolute or below the workspace's.
    pub working_dir: Option<String>,
    /// What asks it to end.
    pub stop_signal: Signal,
}

/// One try of a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is tried.
    pub target: Target,
    /// Time after which it has failed.
    pub timeout: Duration,
}

/// What a health check tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// GET of a path on a loopback port answers 2xx or 3xx.
    Http {
        /// The port.
        port: u16,
        /// The path, fit for a request line.
        path: String,
    },
    /// A loopback port accepts.
    Tcp(u16),
    /// A shell command exits with status 0.
    Command(String),
}

/// Checks all services of an environment.
///
/// # Errors
/// When one cannot be run as it is written.
pub fn check(
    services: &BTreeMap<ServiceName, Service>,
) -> Result<BTreeMap<ServiceName, Spec>, SpecError> {
    graph::order(services)?;
    let check_one = |(name, service): (&ServiceName, &Service)| match Spec::new(service) {
        Ok(spec) => Ok((name.clone(), spec)),
        Err(problem) => Err(SpecError::Service {
            service: name.clone(),
            problem,
        }),
    };
    services.iter().map(check_one).collect()
}

impl Spec {
    fn new(service: &Service) -> Result<Self, String> {
        let texts = [
            Some(("command", &service.command)),
            service.user.as_ref().map(|user| ("user", user)),
            service.working_dir.as_ref().map(|dir| ("working_dir", dir)),
        ];
        for (key, text) in texts.into_iter().flatten() {
            if text.trim().is_empty() {
                return Err(format!("{key} is empty"));
            }
            if text.contains('\0') {
                return Err(format!("{key} holds a null character"));
            }
        }
        for (name, value) in &service.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(format!("env: {name:?} cannot be a variable"));
            }
        }
        let health = service.health_check.as_ref();
        let restart = service.restart.unwrap_or(Restart::OnFailure);
        Ok(Self {
            plan: Plan {
                depends_on: service.depends_on.iter().cloned().collect(),
                // Nothing tells when it works but that it has ended, and it is to run once.
                job: restart == Restart::No && health.is_none() && service.port.is_none(),
                restart,
                check: health.map(schedule).transpose()?,
                grace: service
                    .stop_grace_period
                    .map_or(STOP_GRACE_PERIOD, |span| span.as_duration()),
            },
            command: service.command.clone(),
            port: service.port,
            check: health
                .map(|health| check_of(health, service.port))
                .transpose()?,
            env: service.env.clone(),
            user: service.user.clone(),
            working_dir: service.working_dir.clone(),
            stop_signal: service
                .stop_signal
                .as_deref()
                .map_or(Ok(Signal::SIGTERM), signal)?,
        })
    }
}

fn schedule(health: &HealthCheck) -> Result<Schedule, String> {
    let interval = health.interval.map_or(INTERVAL, |span| span.as_duration());
    let retries = health.retries.unwrap_or(RETRIES);
    if interval.is_zero() || retries == 0 {
        return Err("health_check: interval and retries must be more than 0".to_owned());
    }
    Ok(Schedule {
        interval,
        retries,
        start_period: health
            .start_period
            .map_or(Duration::ZERO, |span| span.as_duration()),
    })
}

fn check_of(health: &HealthCheck, port: Option<u16>) -> Result<Check, String> {
    let target = match &health.probe {
        Probe::Http(path) => {
            // Anything else would end the request line (RFC 9112 section 3).
            if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "health_check: {path:?} is not a path; write one such as /health, with other characters percent-encoded"
                ));
            }
            let port = port.filter(|port| *port != 0).ok_or(
                "health_check asks for an HTTP path, and the service has no port; give it one",
            )?;
            Target::Http {
                port,
                path: path.clone(),
            }
        }
        Probe::Tcp(0) => return Err("health_check: port 0 does not exist".to_owned()),
        Probe::Tcp(port) => Target::Tcp(*port),
        Probe::Command(command) if command.trim().is_empty() || command.contains('\0') => {
            return Err("health_check: the command is empty or holds a null character".to_owned());
        }
        Probe::Command(command) => Target::Command(command.clone()),
    };
    let timeout = health.timeout.map_or(TIMEOUT, |span| span.as_duration());
    if timeout.is_zero() {
        return Err("health_check: timeout must be more than 0".to_owned());
    }
    Ok(Check { target, timeout })
}

/// The signal of a name such as SIGTERM or TERM.
fn signal(name: &str) -> Result<Signal, String> {
    let full = if name.starts_with("SIG") {
        name.to_owned()
    } else {
        format!("SIG{name}")
    };
    full.parse().map_err(|_| {
        format!(
            "stop_signal: {name:?} is not a signal; write one such as SIGTERM, SIGINT or SIGQUIT"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        let services = serde_json::from_str(json).unwrap();
        check(&services).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let services = serde_json::from_str(
            r#"{"web": {"command": "x", "port": 80, "health_check": "/up", "stop_signal": "QUIT"}}"#,
        );
        let specs = check(&services.unwrap()).unwrap();
        let web = specs.values().next().unwrap();
        assert_eq!(web.stop_signal, Signal::SIGQUIT);
        assert_eq!(web.plan.restart, Restart::OnFailure);
        assert_eq!(web.plan.grace, Duration::from_secs(10));
        let schedule = web.plan.check.as_ref().unwrap();
        assert_eq!(
            (schedule.interval, schedule.retries, schedule.start_period),
            (Duration::from_secs(5), 3, Duration::ZERO)
        );
        assert_eq!(web.check.as_ref().unwrap().timeout, Duration::from_secs(5));
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_the_reason() {
        for (json, reason) in [
            (
                r#"{"a": {"command": "x", "depends_on": ["b"]}, "b": {"command": "x", "depends_on": ["a"]}}"#,
                "a -> b -> a",
            ),
            (r#"{"a": {"command": " "}}"#, "service a: command is empty"),
            (
                r#"{"a": {"command": "x", "health_check": "/"}}"#,
                "has no port; give it one",
            ),
            (
                r#"{"a": {"command": "x", "port": 1, "health_check": "/a b"}}"#,
                "is not a path",
            ),
            (
                r#"{"a": {"command": "x", "health_check": {"tcp": 0}}}"#,
                "port 0",
            ),
            (
                r#"{"a": {"command": "x", "health_check": {"tcp": 1, "retries": 0}}}"#,
                "more than 0",
            ),
            (
                r#"{"a": {"command": "x", "stop_signal": "SIGNONSENSE"}}"#,
                "\"SIGNONSENSE\" is not a signal",
            ),
            (
                r#"{"a": {"command": "x", "env": {"A=B": "c"}}}"#,
                "cannot be a variable",
            ),
        ] {
            let refusal = refusal(json);
            assert!(refusal.contains(reason), "{reason:?} in {refusal:?}");
        }
    }
}
