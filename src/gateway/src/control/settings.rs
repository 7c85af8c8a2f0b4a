//! What `workspace create` and `workspace rebuild` are both told of an
//! environment: flags, a project config, the node.

use std::sync::Arc;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use vendetta_proto::spec::{AutoUp, ProjectConfig, ProviderKind, Remote};
use vendetta_proto::value::ByteSize;

use super::command::Session;
use super::config::no_files;
use super::failure::Failure;
use super::text::printable;
use crate::config::sent::Sent;
use crate::inventory::{Address, InvalidAddress, Node};
use crate::store::NodeRow;
use crate::workspace::{Overrides, Spec, is_variable_name};

/// Flags that say what an environment is; each wins over the project config.
#[derive(Debug, Args)]
pub struct Settings {
    /// What runs it
    #[arg(long, value_parser = provider_parser())]
    pub(super) provider: Option<ProviderKind>,
    /// Image to make it from
    #[arg(long)]
    image: Option<String>,
    /// Node to run it on, or [USER@]HOST[:PORT] of a machine to make one; the
    /// gateway's own machine when omitted
    #[arg(long, value_name = "NODE")]
    pub(super) remote: Option<String>,
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

/// All but the node, which is known by its name only once it has been looked up.
impl From<Settings> for Overrides {
    fn from(settings: Settings) -> Self {
        Self {
            provider: settings.provider,
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

/// What the config `config`, which was sent to `command`, and `overrides` come
/// to, with the files that its image is built from, when it is.
pub(super) fn resolve(
    sent: &Sent,
    config: ProjectConfig,
    overrides: Overrides,
    command: &str,
) -> Result<(Spec, Option<Vec<u8>>), Failure> {
    let wrong = |wrong, flag| Failure::wrong(&sent.project, wrong, flag, command);
    let spec = Spec::resolve(config, overrides.clone()).map_err(|error| {
        let flag = overrides.say(&error.key);
        wrong(error, flag)
    })?;
    let Some(build) = spec.build() else {
        return Ok((spec, None));
    };
    match sent.context(build, command)? {
        Some(context) => Ok((spec, Some(context))),
        None => Err(wrong(no_files(command), false)),
    }
}

/// Says what of a config nothing is done about.
pub(super) async fn note_unused(
    session: &mut Session<'_>,
    sent: &Sent,
    inactive: &[String],
) -> Result<(), Failure> {
    let not_honoured = sent.project.not_honoured.iter().map(ToString::to_string);
    for part in not_honoured.chain(inactive.iter().cloned()) {
        let note = format!("note: {}\n", printable(&part));
        session.note(&note).await?;
    }
    Ok(())
}

/// A node as people name it.
pub(super) enum Named {
    /// One that there is.
    Node(Arc<Node>),
    /// The address of a machine that is none yet.
    Machine(Address),
}

/// The node that the flag or the config of the command `context` names, if they name one.
pub(super) fn named_node(
    session: &Session<'_>,
    context: &str,
    flag: Option<&str>,
    config: Option<&Remote>,
) -> Result<Option<Named>, Failure> {
    let (text, user, port) = match (flag, config) {
        (Some(flag), _) => (flag, None, None),
        (None, Some(remote)) => (remote.node.as_str(), remote.user.clone(), remote.port),
        (None, None) => return Ok(None),
    };
    let inventory = session.control.workspaces.inventory();
    if let Some(node) = text.parse().ok().and_then(|name| inventory.find(&name)) {
        let place = node.place();
        let is = |row: &NodeRow| {
            user.as_ref().is_none_or(|user| *user == row.user)
                && port.is_none_or(|port| port == row.port)
        };
        if place.row.as_ref().is_none_or(is) {
            return Ok(Some(Named::Node(node)));
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
        let node = inventory.get(text);
        let node = node.map_err(|error| Failure::inventory(context, error))?;
        return Ok(Some(Named::Node(node)));
    }
    let given: Address = text
        .parse()
        .map_err(|error: InvalidAddress| Failure::usage(context, error.to_string()))?;
    let address = Address {
        user: user.or(given.user),
        port: port.or(given.port),
        host: given.host,
    };
    Ok(Some(match inventory.at(&address) {
        Some(node) => Named::Node(node),
        None => Named::Machine(address),
    }))
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
