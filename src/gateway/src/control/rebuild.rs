//! `workspace rebuild`, also from another config.

use clap::Args;
use vendetta_proto::spec::ProviderKind;

use super::command::{Done, Session};
use super::config::read_config;
use super::failure::Failure;
use super::lifecycle::{self, Change};
use super::settings::{Named, Settings, named_node, note_unused, resolve};
use super::workspace::{Target, find};
use crate::access::{Action, Authorized};
use crate::config::sent::Sent;
use crate::workspace::{ErrorKind, NewConfig, Overrides, Spec, WORKSPACE_DIR, WorkspaceRef};

const VERB: &str = "workspace rebuild";

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
        let name = workspace.name.as_str();
        let sent = read_config(session, VERB, self.config.as_deref(), Some(name)).await?;
        let stored = session.control.workspaces.spec(&workspace)?;
        stays(session, &workspace, &stored, &self.settings, &sent)?;
        let overrides = Overrides::from(self.settings);
        let overrides = Overrides {
            provider: None,
            ..overrides
        };
        let (config, new) = if self.config.is_some() {
            let mut config = sent.project.config.clone();
            config.provider = Some(stored.provider);
            config.remote.clone_from(&stored.config.remote);
            let command = format!("{VERB} {name}");
            let (spec, context) = resolve(&sent, config, overrides, &command)?;
            let new = spec.config.clone();
            let spec = Box::new(spec);
            (Some(NewConfig::Replaced { spec, context }), new)
        } else {
            let mut new = stored.config.clone();
            new.user = overrides.user.clone().or(new.user);
            let changed = overrides != Overrides::default();
            (changed.then_some(NewConfig::Changed(overrides)), new)
        };
        if let Some(other) = sent
            .project
            .config
            .name
            .as_ref()
            .filter(|other| **other != workspace.name)
        {
            let note = format!("note: the config is that of {other}; {name} is made from it\n");
            session.note(&note).await?;
        }
        // What else is not used is told as it starts.
        note_unused(session, &sent, &[]).await?;
        if let Some(user) = &new.user
            && stored.config.user != new.user
            && stored.provider != ProviderKind::Host
        {
            let folder = new.workspace_folder.as_deref().unwrap_or(WORKSPACE_DIR);
            let note = format!(
                "note: what is in {folder} stays whose it is; to give it to {user}: ssh vendetta workspace exec {name} --user root -- chown -R {user} {folder}\n"
            );
            session.note(&note).await?;
        }
        let change = Change::Rebuild(config);
        lifecycle::follow(session, &workspace, change, &sent.project.not_honoured).await
    }
}

/// Refuses what would leave the workspace's files behind: another provider or node.
fn stays(
    session: &Session<'_>,
    workspace: &Authorized<WorkspaceRef>,
    stored: &Spec,
    settings: &Settings,
    sent: &Sent,
) -> Result<(), Failure> {
    let name = &workspace.name;
    let refuse = |problem: String, flag: String| {
        let failure = Failure::new(ErrorKind::Conflict, format!("workspace {name}"), problem);
        Err(failure.remedy(format!(
            "a rebuild keeps what is in it where it is: leave that out, or say {flag}; to move it, copy what you need and make it anew: ssh vendetta workspace destroy {name}"
        )))
    };
    let config = &sent.project.config;
    if let Some(provider) = settings.provider.or(config.provider)
        && provider != stored.provider
    {
        let has = stored.provider;
        return refuse(
            format!("its provider is {has}, and not {provider}"),
            format!("--provider {has}"),
        );
    }
    let here = session.control.workspaces.status(workspace)?.node;
    let flag = settings.remote.as_deref();
    let other = match named_node(session, VERB, flag, config.remote.as_ref())? {
        None => return Ok(()),
        Some(Named::Node(node)) if node.name() == here => return Ok(()),
        Some(Named::Node(node)) => node.name().to_string(),
        Some(Named::Machine(address)) => address.to_string(),
    };
    refuse(
        format!("it is on node {here}, and not on {other}"),
        format!("--remote {here}"),
    )
}
