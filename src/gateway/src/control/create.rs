//! `workspace create`.

use clap::Args;
use serde_json::json;
use vendetta_proto::spec::Remote;
use vendetta_proto::{NodeName, WorkspaceName};

use super::command::{Done, Session};
use super::config::read_config;
use super::failure::Failure;
use super::lifecycle::{self, Change};
use super::node::{self, permit};
use super::settings::{Named, Settings, named_node, note_unused, resolve};
use super::workspace::find;
use crate::access::Action;
use crate::inventory::NewNode;
use crate::workspace::{ErrorKind, Overrides};

/// Flags of `workspace create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the workspace; omitted: the one in the project config
    name: Option<WorkspaceName>,
    #[command(flatten)]
    settings: Settings,
    /// Project config; "-" reads it from stdin
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) config: Option<String>,
    /// Bring it up as well
    #[arg(long)]
    up: bool,
}

impl Create {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        let name = self.name.as_ref().map(WorkspaceName::as_str);
        let sent = read_config(session, "workspace create", self.config.as_deref(), name).await?;
        let config = sent.project.config.clone();
        let flag = self.settings.remote.as_deref();
        let remote = remote(session, flag, config.remote.as_ref()).await?;
        let overrides = Overrides {
            remote,
            ..self.settings.into()
        };
        let (spec, context) = resolve(&sent, config, overrides, "workspace create NAME")?;
        let control = session.control;
        let status = control
            .workspaces
            .create(&session.caller.principal, self.name, spec, context)
            .await?;
        note_unused(session, &sent, &status.inactive).await?;
        let name = status.name.as_str();
        let not_honoured = &sent.project.not_honoured;
        if self.up {
            session
                .note(&format!("Workspace {name} created.\n"))
                .await?;
            let workspace = find(session, Action::Operate, name)?;
            return lifecycle::follow(session, &workspace, Change::Up, not_honoured).await;
        }
        if session.json {
            let result = lifecycle::result(&status, not_honoured);
            session.console.out(&result).await?;
            return Ok(Done::Ok);
        }
        let text = format!(
            "Workspace {name} created. Bring it up with: ssh vendetta workspace up {name}\n"
        );
        session.answer(&text, json!({})).await
    }
}

/// The node that the flag or the config names. An address that is no node yet
/// is made one, for an admin.
async fn remote(
    session: &mut Session<'_>,
    flag: Option<&str>,
    config: Option<&Remote>,
) -> Result<Option<NodeName>, Failure> {
    let context = "workspace create";
    let address = match named_node(session, context, flag, config)? {
        Some(Named::Machine(address)) => address,
        Some(Named::Node(node)) => return Ok(Some(node.name())),
        None => return Ok(None),
    };
    let permit = permit(session, "add nodes").map_err(|_| {
        Failure::new(
            ErrorKind::NotFound,
            context,
            format!("there is no node at {address}"),
        )
        .remedy("ask an admin to add it; \"ssh vendetta node list\" shows the nodes there are")
    })?;
    let new = NewNode {
        name: session.control.workspaces.inventory().name_for(&address),
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
