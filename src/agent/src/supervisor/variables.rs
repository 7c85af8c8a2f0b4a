//! What every session and service is told about the services of its environment.

use std::collections::BTreeMap;

use vendetta_proto::ServiceName;

use super::spec::{Spec, Target};

/// `VENDETTA_SERVICE_<NAME>_PORT`, `_URL` and `_HOST_PORT` of all services that have a port.
#[must_use]
pub fn variables(
    services: &BTreeMap<ServiceName, Spec>,
    host_ports: &BTreeMap<ServiceName, u16>,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, spec) in services {
        let Some(port) = spec.port else { continue };
        let upper = name.as_str().to_ascii_uppercase().replace('-', "_");
        let mut tell = |what: &str, value: String| {
            found.push((format!("VENDETTA_SERVICE_{upper}_{what}"), value));
        };
        let target = spec.check.as_ref().map(|check| &check.target);
        let scheme = match target {
            Some(Target::Http { .. }) => "http",
            _ => "tcp",
        };
        tell("PORT", port.to_string());
        tell("URL", format!("{scheme}://127.0.0.1:{port}"));
        if let Some(port) = host_ports.get(name) {
            tell("HOST_PORT", port.to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::spec;
    use super::*;

    #[test]
    fn each_port_is_told_in_three_ways() {
        let services = serde_json::from_str(
            r#"{"web-app": {"command": "x", "port": 80, "health_check": "/up"},
                "db": {"command": "x", "port": 5432}, "job": {"command": "x"}}"#,
        );
        let services = spec::check(&services.unwrap()).unwrap();
        let host_ports = BTreeMap::from([("web-app".parse().unwrap(), 20001)]);
        let told: Vec<String> = variables(&services, &host_ports)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            told,
            [
                "VENDETTA_SERVICE_DB_PORT=5432",
                "VENDETTA_SERVICE_DB_URL=tcp://127.0.0.1:5432",
                "VENDETTA_SERVICE_WEB_APP_PORT=80",
                "VENDETTA_SERVICE_WEB_APP_URL=http://127.0.0.1:80",
                "VENDETTA_SERVICE_WEB_APP_HOST_PORT=20001",
            ]
        );
    }
}
