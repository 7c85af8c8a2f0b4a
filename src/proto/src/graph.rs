//! The order in which services start: what each depends on comes before it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::spec::Service;
use crate::{ServiceName, nearest};

/// Why services cannot be put in an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A service depends on one that is not there.
    #[error("service {service} depends on {dependency}, which is not among the services{}", hint(nearest.as_ref()))]
    Unknown {
        /// Whose `depends_on` is wrong.
        service: ServiceName,
        /// The name in it.
        dependency: ServiceName,
        /// The service that may have been meant.
        nearest: Option<ServiceName>,
    },
    /// A service depends on itself.
    #[error("service {service} depends on itself; remove it from its own depends_on")]
    Itself {
        /// Which.
        service: ServiceName,
    },
    /// Services depend on one another.
    #[error("services depend on one another in a circle: {path}; remove one of these dependencies")]
    Cycle {
        /// The way round.
        path: CyclePath,
    },
}

impl GraphError {
    /// The service whose `depends_on` holds the fault.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Unknown { service, .. } | Self::Itself { service } => Some(service),
            Self::Cycle { path } => path.0.first(),
        }
    }
}

/// A way along dependencies that leads back to its start, which is its first
/// and its last name; printed as "web -> api -> web".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CyclePath(pub Vec<ServiceName>);

impl fmt::Display for CyclePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(" -> ")?;
            }
            name.fmt(f)?;
        }
        Ok(())
    }
}

fn hint(nearest: Option<&ServiceName>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

/// The services in groups: each depends only on those in groups before its
/// own, so those of one group may start at once. Within a group by name.
///
/// # Errors
/// When a dependency is not there, or leads back to its service.
pub fn order(
    services: &BTreeMap<ServiceName, Service>,
) -> Result<Vec<Vec<ServiceName>>, GraphError> {
    for (name, service) in services {
        for dependency in &service.depends_on {
            if dependency == name {
                return Err(GraphError::Itself {
                    service: name.clone(),
                });
            }
            if !services.contains_key(dependency) {
                return Err(GraphError::Unknown {
                    service: name.clone(),
                    dependency: dependency.clone(),
                    nearest: nearest(
                        dependency.as_str(),
                        services.keys().filter(|other| *other != name),
                    )
                    .cloned(),
                });
            }
        }
    }
    let mut placed: BTreeSet<&ServiceName> = BTreeSet::new();
    let mut groups = Vec::new();
    while placed.len() < services.len() {
        let group: Vec<&ServiceName> = services
            .iter()
            .filter(|(name, service)| {
                !placed.contains(name) && service.depends_on.iter().all(|d| placed.contains(d))
            })
            .map(|(name, _)| name)
            .collect();
        if group.is_empty() {
            return Err(GraphError::Cycle {
                path: cycle(services, &placed),
            });
        }
        groups.push(group.iter().map(|&name| name.clone()).collect());
        placed.extend(group);
    }
    Ok(groups)
}

/// A cycle among the services that are not `placed`. Each of them depends on
/// another of them, so following dependencies must come to one a second time.
fn cycle(services: &BTreeMap<ServiceName, Service>, placed: &BTreeSet<&ServiceName>) -> CyclePath {
    let mut path: Vec<&ServiceName> = Vec::new();
    let mut next = services.keys().find(|name| !placed.contains(name));
    while let Some(name) = next {
        if let Some(start) = path.iter().position(|seen| *seen == name) {
            path.drain(..start);
            path.push(name);
            break;
        }
        path.push(name);
        next = services
            .get(name)
            .and_then(|service| service.depends_on.iter().find(|d| !placed.contains(d)));
    }
    CyclePath(path.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn services(edges: &[(&str, &[&str])]) -> BTreeMap<ServiceName, Service> {
        edges
            .iter()
            .map(|(name, on)| {
                let service = Service {
                    command: "true".to_owned(),
                    depends_on: on.iter().map(|name| name.parse().unwrap()).collect(),
                    ..Service::default()
                };
                (name.parse().unwrap(), service)
            })
            .collect()
    }

    fn refusal(edges: &[(&str, &[&str])]) -> String {
        order(&services(edges)).unwrap_err().to_string()
    }

    #[test]
    fn a_chain_and_a_diamond_are_put_in_order() {
        let names = |edges: &[(&str, &[&str])]| {
            let groups = order(&services(edges)).unwrap();
            let line = |group: Vec<ServiceName>| {
                let names: Vec<String> = group.into_iter().map(String::from).collect();
                names.join(" ")
            };
            groups.into_iter().map(line).collect::<Vec<_>>().join(" | ")
        };
        assert_eq!(names(&[]), "");
        assert_eq!(
            names(&[("api", &["db"]), ("db", &[]), ("web", &["api"])]),
            "db | api | web"
        );
        assert_eq!(
            names(&[
                ("a", &["b", "c"]),
                ("b", &["d"]),
                ("c", &["d", "d"]),
                ("d", &[]),
                ("e", &[])
            ]),
            "d e | b c | a"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            refusal(&[("web", &["api"]), ("api", &["web"]), ("db", &[])]),
            "services depend on one another in a circle: api -> web -> api; remove one of these dependencies"
        );
        assert_eq!(
            refusal(&[("a", &["b"]), ("b", &["c"]), ("c", &["d"]), ("d", &["b"])]),
            "services depend on one another in a circle: b -> c -> d -> b; remove one of these dependencies"
        );
        assert_eq!(
            refusal(&[("web", &["web"])]),
            "service web depends on itself; remove it from its own depends_on"
        );
        assert_eq!(
            refusal(&[("web", &["databse"]), ("database", &[])]),
            "service web depends on databse, which is not among the services; did you mean database?"
        );
        assert_eq!(
            refusal(&[("web", &["x"]), ("database", &[])]),
            "service web depends on x, which is not among the services"
        );
    }

    proptest! {
        #[test]
        fn every_graph_is_ordered_or_has_a_cycle_that_is_one(
            edges in proptest::collection::vec((0usize..8, 0usize..8), 0..16)
        ) {
            let name = |at: usize| format!("s{at}").parse::<ServiceName>().unwrap();
            let mut services: BTreeMap<ServiceName, Service> =
                (0..8).map(|at| (name(at), Service::default())).collect();
            for (from, to) in edges.into_iter().filter(|(from, to)| from != to) {
                services.get_mut(&name(from)).unwrap().depends_on.push(name(to));
            }
            match order(&services) {
                Ok(groups) => {
                    let mut before = BTreeSet::new();
                    for group in groups {
                        for name in &group {
                            prop_assert!(services[name].depends_on.iter().all(|d| before.contains(d)));
                        }
                        before.extend(group);
                    }
                    prop_assert_eq!(before.len(), services.len());
                }
                Err(GraphError::Cycle { path: CyclePath(path) }) => {
                    prop_assert!(path.len() > 2);
                    prop_assert_eq!(path.first(), path.last());
                    for pair in path.windows(2) {
                        prop_assert!(services[&pair[0]].depends_on.contains(&pair[1]));
                    }
                    let distinct: BTreeSet<_> = path.iter().collect();
                    prop_assert_eq!(distinct.len(), path.len() - 1);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
