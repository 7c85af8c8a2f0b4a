//! How to tell that a service works.

use serde::{Deserialize, Serialize};

use crate::value::Span;

/// How to tell that a service works: an HTTP path, or a map with exactly one of
/// `http`, `tcp` and `command`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "HealthCheckMap")]
pub struct HealthCheck {
    /// What is tried.
    pub probe: Probe,
    /// Time between two tries; omitted: the agent's default.
    pub interval: Option<Span>,
    /// Time after which a try has failed; omitted: the agent's default.
    pub timeout: Option<Span>,
    /// Failures in a row that make a service unhealthy; omitted: the agent's default.
    pub retries: Option<u32>,
    /// Time after the start in which failures do not count.
    pub start_period: Option<Span>,
}

/// What a health check tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// GET of this path on the service's port answers 2xx or 3xx.
    Http(String),
    /// This TCP port accepts.
    Tcp(u16),
    /// This shell command exits with status 0.
    Command(String),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthCheckMap {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_period: Option<Span>,
}

impl From<HealthCheck> for HealthCheckMap {
    fn from(check: HealthCheck) -> Self {
        let mut map = Self {
            http: None,
            tcp: None,
            command: None,
            interval: check.interval,
            timeout: check.timeout,
            retries: check.retries,
            start_period: check.start_period,
        };
        match check.probe {
            Probe::Http(path) => map.http = Some(path),
            Probe::Tcp(port) => map.tcp = Some(port),
            Probe::Command(command) => map.command = Some(command),
        }
        map
    }
}

impl TryFrom<HealthCheckMap> for HealthCheck {
    type Error = &'static str;
    fn try_from(map: HealthCheckMap) -> Result<Self, Self::Error> {
        let probe = match (map.http, map.tcp, map.command) {
            (Some(path), None, None) => Probe::Http(path),
            (None, Some(port), None) => Probe::Tcp(port),
            (None, None, Some(command)) => Probe::Command(command),
            _ => return Err("health_check needs exactly one of http, tcp and command"),
        };
        Ok(Self {
            probe,
            interval: map.interval,
            timeout: map.timeout,
            retries: map.retries,
            start_period: map.start_period,
        })
    }
}

impl<'de> Deserialize<'de> for HealthCheck {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = HealthCheck;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an HTTP path or a map with one of http, tcp and command")
            }
            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<HealthCheck, E> {
                if !path.starts_with('/') {
                    return Err(E::invalid_value(serde::de::Unexpected::Str(path), &self));
                }
                Ok(HealthCheck {
                    probe: Probe::Http(path.to_owned()),
                    interval: None,
                    timeout: None,
                    retries: None,
                    start_period: None,
                })
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                map: A,
            ) -> Result<HealthCheck, A::Error> {
                HealthCheckMap::deserialize(serde::de::value::MapAccessDeserializer::new(map))?
                    .try_into()
                    .map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_tries_exactly_one_thing() {
        let of = |text: &str| serde_json::from_str::<HealthCheck>(text);
        assert_eq!(of(r#"{"tcp": 5432}"#).unwrap().probe, Probe::Tcp(5432));
        assert!(of(r#"{"tcp": 1, "http": "/x"}"#).is_err());
        assert!(of(r#"{"interval": "1s"}"#).is_err());
        assert!(of(r#""health""#).is_err());
    }
}
