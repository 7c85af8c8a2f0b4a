//! `workspace create`.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use serde_json::json;
use vendetta_proto::spec::{AutoUp, ProjectConfig, ProviderKind, Remote};
use vendetta_proto::value::ByteSize;
use vendetta_proto::{NodeName, WorkspaceName};

use super::command::{Done, Session};
use super::config::{no_files, read_config};
use super::failure::Failure;
use super::lifecycle::{self, Change};
use super::node::{self, permit};
use super::text::printable;
use super::workspace::find;
use crate::access::Action;
use crate::config::Project;
use crate::config::sent::Sent;
use crate::inventory::{Address, InvalidAddress, NewNode};
use crate::store::NodeRow;
use crate::workspace::{ErrorKind, Overrides, Spec, is_variable_name};

/// What is said of an environment by flags; each wins over the project config.
#[derive(Debug, Args)]
pub struct Settings {
    /// Image to make it from
    #[arg(long)]
    image: Option<String>,
    /// User of sessions and services; the image's own when omitted
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Processors, in cores
    #[arg(long, value_name = "CORES")]
    cpu: Option<f64>,
    /// Memory, such as 512M or 4G
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Environment variable of every session; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Whether connecting brings it up
    #[arg(long, value_name = "WHEN", value_parser = auto_up_parser())]
    auto_up: Option<AutoUp>,
}

impl Settings {
    /// Whether they say anything.
    pub(super) fn say_something(&self) -> bool {
        let Self {
            image,
            user,
            cpu,
            memory,
            env,
            auto_up,
        } = self;
        image.is_some()
            || user.is_some()
            || cpu.is_some()
            || memory.is_some()
            || !env.is_empty()
            || auto_up.is_some()
    }
}

impl From<Settings> for Overrides {
    fn from(settings: Settings) -> Self {
        Self {
            provider: None,
            remote: None,
            image: settings.image,
            user: settings.user,
            cpu: settings.cpu,
            memory: settings.memory,
            env: settings.env,
            auto_up: settings.auto_up,
        }
    }
}

/// Flags of `workspace create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the workspace; omitted: the one in the project config
    name: Option<WorkspaceName>,
    /// What runs it
    #[arg(long, value_parser = provider_parser())]
    provider: Option<ProviderKind>,
    /// Node to run it on, or [USER@]HOST[:PORT] of a machine to make one; the
    /// gateway's own machine when omitted
    #[arg(long, value_name = "NODE")]
    remote: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Project config; "-" reads it from stdin
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) config: Option<String>,
    /// Bring it up as well
    #[arg(long)]
    up: bool,
}

fn provider_parser() -> impl clap::builder::TypedValueParser<Value = ProviderKind> {
    use ProviderKind::{Docker, Host, Lxc, Qemu};
    let kinds = [Docker, Lxc, Qemu, Host];
    PossibleValuesParser::new(kinds.map(ProviderKind::as_str)).try_map(move |word| {
        kinds
            .into_iter()
            .find(|kind| kind.as_str() == word)
            .ok_or("not a provider")
    })
}

fn auto_up_parser() -> impl clap::builder::TypedValueParser<Value = AutoUp> {
    PossibleValuesParser::new(["true", "false", "always"]).map(|word| match word.as_str() {
        "always" => AutoUp::Always,
        "false" => AutoUp::Never,
        _ => AutoUp::Unless,
    })
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if is_variable_name(name) => Ok((name.to_owned(), value.to_owned())),
        _ => Err("use NAME=VALUE, with a NAME of letters, digits and '_' that does not start with a digit".to_owned()),
    }
}

impl Create {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        let name = self.name.as_ref().map(WorkspaceName::as_str);
        let sent = read_config(session, "workspace create", self.config.as_deref(), name).await?;
        let project = &sent.project;
        let config = &project.config;
        let remote = remote(session, self.remote.as_deref(), config.remote.as_ref()).await?;
        let overrides = Overrides {
            provider: self.provider,
            remote,
            ..self.settings.into()
        };
        let spec = resolve(project, config.clone(), overrides)?;
        let context = context(&sent, &spec, "workspace create NAME")?;
        let control = session.control;
        let status = control
            .workspaces
            .create(&session.caller.principal, self.name, spec, context)
            .await?;
        note_unused(session, project, &status.inactive).await?;
        let name = status.name.as_str();
        if self.up {
            session
                .note(&format!("Workspace {name} created.\n"))
                .await?;
            let workspace = find(session, Action::Operate, name)?;
            return lifecycle::follow(session, &workspace, Change::Up).await;
        }
        if session.json {
            let mut result = json!({ "event": "result", "workspace": status });
            if !project.not_honoured.is_empty()
                && let Some(result) = result.as_object_mut()
            {
                result.insert("not_honoured".to_owned(), json!(project.not_honoured));
            }
            session.console.out(&format!("{result}\n")).await?;
            return Ok(Done::Ok);
        }
        let text = format!(
            "Workspace {name} created. Bring it up with: ssh vendetta workspace up {name}\n"
        );
        session.answer(&text, json!({})).await
    }
}

/// What `config` and `overrides` come to; what is wrong with it is shown where
/// `project` says it.
pub(super) fn resolve(
    project: &Project,
    config: ProjectConfig,
    overrides: Overrides,
) -> Result<Spec, Failure> {
    Spec::resolve(config, overrides.clone()).map_err(|wrong| {
        let flag = overrides.say(&wrong.key);
        Failure::wrong(project, wrong, flag)
    })
}

/// The files that the image is built from, when it is, of what was sent to the
/// command that `again` begins anew.
pub(super) fn context(sent: &Sent, spec: &Spec, again: &str) -> Result<Option<Vec<u8>>, Failure> {
    let Some(build) = spec.build() else {
        return Ok(None);
    };
    match sent.context(build)? {
        Some(context) => Ok(Some(context)),
        None => Err(Failure::wrong(&sent.project, no_files(again), false)),
    }
}

/// Says what of a config nothing is done about.
pub(super) async fn note_unused(
    session: &mut Session<'_>,
    project: &Project,
    inactive: &[String],
) -> Result<(), Failure> {
    let not_honoured = project.not_honoured.iter().map(ToString::to_string);
    for part in not_honoured.chain(inactive.iter().cloned()) {
        let note = format!("note: {}\n", printable(&part));
        session.note(&note).await?;
    }
    Ok(())
}

/// The node that the flag or the config names. An address that is no node yet
/// is made one, for an admin.
async fn remote(
    session: &mut Session<'_>,
    flag: Option<&str>,
    config: Option<&Remote>,
) -> Result<Option<NodeName>, Failure> {
    let context = "workspace create";
    let (text, user, port) = match (flag, config) {
        (Some(flag), _) => (flag, None, None),
        (None, Some(remote)) => (remote.node.as_str(), remote.user.clone(), remote.port),
        (None, None) => return Ok(None),
    };
    let inventory = session.control.workspaces.inventory().clone();
    if let Some(node) = text.parse().ok().and_then(|name| inventory.find(&name)) {
        let place = node.place();
        let is = |row: &NodeRow| {
            user.as_ref().is_none_or(|user| *user == row.user)
                && port.is_none_or(|port| port == row.port)
        };
        if place.row.as_ref().is_none_or(is) {
            return Ok(Some(place.name.clone()));
        }
        return Err(Failure::usage(
            context,
            format!(
                "remote says another user or port than node {} has, which is {}",
                place.name,
                place.address()
            ),
        )
        .remedy(format!("leave them out: remote: {{node: {}}}", place.name)));
    }
    if !Address::looks_like_one(text) && user.is_none() && port.is_none() {
        return match inventory.get(text) {
            Ok(node) => Ok(Some(node.name())),
            Err(error) => Err(Failure::inventory(context, error)),
        };
    }
    let given: Address = text
        .parse()
        .map_err(|error: InvalidAddress| Failure::usage(context, error.to_string()))?;
    let address = Address {
        user: user.or(given.user),
        port: port.or(given.port),
        host: given.host,
    };
    if let Some(node) = inventory.at(&address) {
        return Ok(Some(node.name()));
    }
    let permit = permit(session, "add nodes").map_err(|_| {
        Failure::new(
            ErrorKind::NotFound,
            context,
            format!("there is no node at {address}"),
        )
        .remedy("ask an admin to add it; \"ssh vendetta node list\" shows the nodes there are")
    })?;
    let new = NewNode {
        name: inventory.name_for(&address),
        address,
        host_key: None,
        jump: None,
        allow_host: false,
        moved: false,
    };
    let node = node::add(session, &permit, new).await?;
    let name = node.name();
    session.note(&format!("Node {name} added.\n")).await?;
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_a_posix_name_and_any_value() {
        assert_eq!(
            variable("A_1=b=c d"),
            Ok(("A_1".to_owned(), "b=c d".to_owned()))
        );
        assert_eq!(variable("A="), Ok(("A".to_owned(), String::new())));
        for wrong in ["A", "=b", "1A=b", "A-B=c", ""] {
            assert!(variable(wrong).is_err(), "{wrong:?}");
        }
    }
}
