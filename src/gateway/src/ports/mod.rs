//! Ports of the gateway's machine that lead into workspaces.
//!
//! Each port of a project config ([`wanted`]) is given one ([`choose`]), which
//! stays its own as long as the config wants it. While sessions can be opened
//! in the workspace a listener is there ([`Ports::open`]), and what connects to
//! it is dialled inside the environment, over one connection to its agent.

mod choose;
mod link;
mod machine;
mod mapper;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use serde::Serialize;
use vendetta_proto::spec::{Probe, ProjectConfig};
use vendetta_proto::{ServiceName, UserName};

use crate::store::{PortChange, PortRow, Store, StoreError};
use crate::workspace::{Record, WorkspaceId};
use choose::{Refusal, choose};

pub use mapper::{Open, Opening};

/// Where ports are taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Those that are given without a wish.
    pub range: RangeInclusive<u16>,
    /// The address that their listeners are bound to.
    pub bind: IpAddr,
}

/// What in a workspace a port leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortKey {
    /// The port of a service.
    Service(ServiceName),
    /// A port that the config lists by its number.
    Port(u16),
}

impl PortKey {
    /// The word in the store. A service's name has no colon.
    fn as_word(&self) -> String {
        match self {
            Self::Service(name) => name.to_string(),
            Self::Port(port) => format!("port:{port}"),
        }
    }

    /// The service, when it is one.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Service(name) => Some(name),
            Self::Port(_) => None,
        }
    }

    /// "service db", "port 8000".
    fn described(word: &str) -> String {
        match word.strip_prefix("port:") {
            Some(port) => format!("port {port}"),
            None => format!("service {word}"),
        }
    }
}

impl std::fmt::Display for PortKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&Self::described(&self.as_word()))
    }
}

/// A port that a config wants to be reachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What it leads to.
    pub key: PortKey,
    /// The port inside the environment.
    pub port: u16,
    /// The port of the gateway's machine that the config asks for.
    pub wish: Option<u16>,
    /// Whether it is known to speak HTTP.
    pub http: bool,
}

/// The ports that a config wants to be reachable: of its services, and those it
/// lists besides.
#[must_use]
pub fn wanted(config: &ProjectConfig) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = config
        .services
        .iter()
        .filter_map(|(name, service)| {
            let check = service.health_check.as_ref();
            Some(Wanted {
                key: PortKey::Service(name.clone()),
                port: service.port?,
                wish: service.host_port,
                http: check.is_some_and(|check| matches!(check.probe, Probe::Http(_))),
            })
        })
        .collect();
    for &port in &config.ports {
        if !all.iter().any(|wanted| wanted.port == port) {
            all.push(Wanted {
                key: PortKey::Port(port),
                port,
                wish: None,
                http: false,
            });
        }
    }
    all
}

/// A port of the gateway's machine and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// What in the workspace it leads to.
    #[serde(rename = "service", serialize_with = "service_name")]
    pub key: PortKey,
    /// The port inside the environment.
    pub port: u16,
    /// The port of the gateway's machine.
    pub host_port: u16,
    /// Where it is reached on the gateway's machine.
    pub url: String,
}

fn service_name<S: serde::Serializer>(key: &PortKey, serializer: S) -> Result<S::Ok, S::Error> {
    key.service().serialize(serializer)
}

/// How the listener of a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// There is none: the workspace does not run.
    Closed,
    /// It is there.
    Open,
    /// It cannot be there for now, and is tried again.
    Taken,
}

impl PortState {
    /// The word shown to people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Taken => "taken",
        }
    }
}

/// A port and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortStatus {
    /// Where it leads.
    #[serde(flatten)]
    pub mapping: Mapping,
    /// How its listener is.
    pub state: PortState,
    /// Why it is not open although the workspace runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl From<Mapping> for PortStatus {
    fn from(mapping: Mapping) -> Self {
        Self {
            mapping,
            state: PortState::Closed,
            problem: None,
        }
    }
}

/// A port that could not be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What is in the way, for people.
    pub problem: String,
    /// What to do.
    pub remedy: &'static str,
}

/// What a workspace was given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assigned {
    /// The ports it has.
    pub mappings: Vec<Mapping>,
    /// Those it could not be given.
    pub refused: Vec<Refused>,
}

/// All that a workspace has been given, by the words of the store, and what it could not be.
type Outcome = (Vec<(String, u16)>, Vec<(PortKey, Refusal)>);

/// Gives ports and listens on them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ports {
    settings: Settings,
    store: Store,
}

impl Ports {
    /// Remembers in `store` what was given.
    #[must_use]
    pub fn new(settings: Settings, store: Store) -> Self {
        Self { settings, store }
    }

    /// Gives the workspace `id` of `owner` the ports that its config wants and it
    /// has not got yet; those that it has and the config does not want are taken
    /// from it. Blocks no other thread on programs that hold ports.
    ///
    /// # Errors
    /// When the store refuses; a port that cannot be given is in the result.
    pub async fn assign(
        &self,
        id: &WorkspaceId,
        owner: &UserName,
        config: &ProjectConfig,
    ) -> Result<Assigned, StoreError> {
        let wanted = wanted(config);
        if wanted.is_empty() {
            // What it had was taken with the config that wanted it.
            return Ok(Assigned::default());
        }
        let choose = self.chooser(id, wanted.clone());
        let (rows, refusals) = self.store.assign_ports(id, choose).await?;
        let mut refused = Vec::new();
        for (key, refusal) in refusals {
            refused.push(self.explain(owner, &key, refusal).await);
        }
        let rows = rows.iter().map(|(key, port)| (key.as_str(), *port));
        let mappings = self.join(&wanted, rows);
        Ok(Assigned { mappings, refused })
    }

    /// Saves another config of a workspace and what it is meant to be, with the
    /// ports that this config wants; when one cannot be given, nothing is saved,
    /// and that one is returned.
    ///
    /// # Errors
    /// When the store refuses.
    pub async fn reconfigure(
        &self,
        id: &WorkspaceId,
        owner: &UserName,
        record: Record,
        config: &ProjectConfig,
    ) -> Result<Option<Refused>, StoreError> {
        let choose = self.chooser(id, wanted(config));
        let all_or_none = move |rows: &[PortRow]| {
            let (change, (_, refusals)) = choose(rows);
            (refusals.is_empty().then_some(change), refusals)
        };
        let refusals = self.store.reconfigure(id, record, config, all_or_none);
        match refusals.await?.into_iter().next() {
            Some((key, refusal)) => Ok(Some(self.explain(owner, &key, refusal).await)),
            None => Ok(None),
        }
    }

    /// Chooses for a workspace, of all rows of the store: what changes, and what
    /// that comes to.
    fn chooser(
        &self,
        id: &WorkspaceId,
        wanted: Vec<Wanted>,
    ) -> impl FnOnce(&[PortRow]) -> (PortChange, Outcome) + Send + 'static {
        let Settings { range, bind } = self.settings.clone();
        let id = id.clone();
        move |rows| {
            let own = || rows.iter().filter(|row| row.workspace == id);
            // Who listens on what it has is ourselves.
            let is_free = |port| {
                own().any(|row| row.host_port == port)
                    || machine::is_free(SocketAddr::new(bind, port))
            };
            let choice = choose(&range, &wanted, &id, rows, is_free);
            let given = choice.given.iter();
            let given: Vec<_> = given.map(|(key, port)| (key.as_word(), *port)).collect();
            let released = choice.released;
            let kept = own().filter(|row| !released.contains(&row.host_port));
            let kept = kept.map(|row| (row.key.clone(), row.host_port));
            let all = kept.chain(given.iter().cloned()).collect();
            (PortChange { released, given }, (all, choice.refused))
        }
    }

    /// The ports that a workspace was given before, of all rows of the store.
    #[must_use]
    pub fn of(&self, id: &WorkspaceId, config: &ProjectConfig, rows: &[PortRow]) -> Vec<Mapping> {
        let own = rows.iter().filter(|row| row.workspace == *id);
        let own = own.map(|row| (row.key.as_str(), row.host_port));
        self.join(&wanted(config), own)
    }

    fn join<'a>(
        &self,
        wanted: &[Wanted],
        rows: impl Iterator<Item = (&'a str, u16)> + Clone,
    ) -> Vec<Mapping> {
        let given = |key: &PortKey| {
            let word = key.as_word();
            rows.clone().find(|(key, _)| *key == word).map(|(_, p)| p)
        };
        let wanted = wanted.iter();
        wanted
            .filter_map(|wanted| {
                let host_port = given(&wanted.key)?;
                let scheme = if wanted.http { "http" } else { "tcp" };
                let address = SocketAddr::new(self.reachable_at(), host_port);
                Some(Mapping {
                    key: wanted.key.clone(),
                    port: wanted.port,
                    host_port,
                    url: format!("{scheme}://{address}"),
                })
            })
            .collect()
    }

    /// The address by which the gateway's machine itself reaches a listener.
    fn reachable_at(&self) -> IpAddr {
        match self.settings.bind {
            IpAddr::V4(address) if address.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
            address => address,
        }
    }

    async fn explain(&self, owner: &UserName, key: &PortKey, refusal: Refusal) -> Refused {
        const OTHER: &str = "give it another host_port, or leave host_port out";
        let (problem, remedy) = match refusal {
            Refusal::Held(row) if row.owner == *owner => (
                format!(
                    "port {} is held by {} of workspace {}",
                    row.host_port,
                    PortKey::described(&row.key),
                    row.name
                ),
                OTHER,
            ),
            // Whose it is and what for is not theirs to know.
            Refusal::Held(row) => (
                format!("port {} is held by another workspace", row.host_port),
                OTHER,
            ),
            Refusal::Twice { port, by } => {
                (format!("port {port} is wanted by {by} as well"), OTHER)
            }
            Refusal::Taken(port) => {
                let address = SocketAddr::new(self.settings.bind, port);
                let holder = machine::holder(address).await;
                (format!("port {port} is held by {holder}"), OTHER)
            }
            Refusal::Privileged(port) => (
                format!("port {port} is one of the machine's own, as all below 1024"),
                OTHER,
            ),
            Refusal::Full => (
                format!(
                    "all ports from {} to {} are in use",
                    self.settings.range.start(),
                    self.settings.range.end()
                ),
                "destroy a workspace, or widen range in section [ports] of the gateway's config",
            ),
        };
        Refused {
            problem: format!("{key}: {problem}"),
            remedy,
        }
    }
}
