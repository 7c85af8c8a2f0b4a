//! `workspace rebuild`, also with another config.

use clap::Args;
use vendetta_proto::spec::ProjectConfig;

use super::command::{Done, Session};
use super::config::read_config;
use super::create::{Settings, context, note_unused, resolve};
use super::failure::Failure;
use super::lifecycle::{self, Change};
use super::workspace::{Target, find};
use crate::access::{Action, Authorized};
use crate::inventory::Address;
use crate::workspace::{ErrorKind, NewConfig, Overrides, Spec, WorkspaceRef};

/// Flags of `workspace rebuild`.
#[derive(Debug, Args)]
pub struct Rebuild {
    /// Which workspace.
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    settings: Settings,
    /// Project config to make it from; "-" reads it from stdin
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) config: Option<String>,
}

impl Rebuild {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        let workspace = find(session, Action::Operate, self.target.name())?;
        let config = self.new_config(session, &workspace).await?;
        lifecycle::follow(session, &workspace, Change::Rebuild(config)).await
    }

    /// What it is to be made from, when that is said.
    async fn new_config(
        self,
        session: &mut Session<'_>,
        workspace: &Authorized<WorkspaceRef>,
    ) -> Result<Option<Box<NewConfig>>, Failure> {
        if self.config.is_none() && !self.settings.say_something() {
            return Ok(None);
        }
        let (verb, name) = ("workspace rebuild", workspace.name.as_str());
        let sent = read_config(session, verb, self.config.as_deref(), Some(name)).await?;
        let stored = session.control.workspaces.spec(workspace)?;
        let overrides = Overrides::from(self.settings);
        if self.config.is_none() {
            let spec = resolve(&sent.project, stored.config.clone(), overrides)?;
            let context = None;
            return Ok(Some(Box::new(NewConfig { spec, context })));
        }
        let mut config = sent.project.config.clone();
        stays(session, workspace, &stored, &config)?;
        config.provider = Some(stored.provider);
        config.remote.clone_from(&stored.config.remote);
        let spec = resolve(&sent.project, config, overrides)?;
        let context = context(&sent, &spec, &format!("{verb} {name}"))?;
        // What else is not used is told as it starts.
        note_unused(session, &sent.project, &[]).await?;
        Ok(Some(Box::new(NewConfig { spec, context })))
    }
}

/// Refuses what would leave the workspace's files behind: another provider or node.
fn stays(
    session: &Session<'_>,
    workspace: &Authorized<WorkspaceRef>,
    stored: &Spec,
    config: &ProjectConfig,
) -> Result<(), Failure> {
    let name = &workspace.name;
    let refuse = |problem: String| {
        let failure = Failure::new(ErrorKind::Conflict, format!("workspace {name}"), problem);
        Err(failure.remedy(format!(
            "a rebuild keeps /workspace where it is: leave that out of the config, or copy what you need and make it anew: ssh vendetta workspace destroy {name}"
        )))
    };
    match config.provider {
        Some(provider) if provider != stored.provider => {
            return refuse(format!(
                "its provider is {}, and its new config says {provider}",
                stored.provider
            ));
        }
        _ => {}
    }
    let Some(remote) = &config.remote else {
        return Ok(());
    };
    let workspaces = &session.control.workspaces;
    let here = workspaces.status(workspace)?.node;
    let inventory = workspaces.inventory();
    let named = remote.node.parse().ok();
    let named = named.and_then(|name| inventory.find(&name)).or_else(|| {
        let given: Address = remote.node.parse().ok()?;
        inventory.at(&Address {
            user: remote.user.clone().or(given.user),
            port: remote.port.or(given.port),
            host: given.host,
        })
    });
    match named {
        Some(node) if node.name() == here => Ok(()),
        _ => refuse(format!(
            "it is on node {here}, and its new config says {}",
            remote.node
        )),
    }
}
