//! `config …`: what a project config comes to, before anything is made of it.

use clap::Subcommand;
use serde_json::json;
use vendetta_proto::graph;
use vendetta_proto::spec::{Build, HookCommand};

use super::command::{Done, Session};
use super::failure::Failure;
use super::text::printable;
use crate::config::sent::{self, Sent};
use crate::workspace::{Overrides, Spec, Wrong};

/// The JSON schema of `.vendetta/config.yaml`, as it is generated from the types.
pub const SCHEMA: &str = include_str!("../../../../config/vendetta.schema.json");

/// The verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a project config and show what it comes to
    #[command(
        long_about = "Check a project config and show what it comes to; nothing is made or changed.\n\n\
            Over SSH it comes on stdin, as for \"workspace create\". The local command \"vendetta\"\n\
            also takes a path, and finds .vendetta/config.yaml or .devcontainer/devcontainer.json\n\
            of the directory it stands in, or of one above, by itself.",
        after_help = "Examples:\n  ssh vendetta config check --config - < .vendetta/config.yaml\n  vendetta config check\n  vendetta config check --config .devcontainer/devcontainer.json --json"
    )]
    Check {
        /// Project config; "-" reads it from stdin
        #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
        config: Option<String>,
    },

    /// Print the JSON schema of .vendetta/config.yaml, for editors
    #[command(after_help = "Examples:\n  vendetta config schema > config.schema.json")]
    Schema,
}

impl ConfigCommand {
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<Done, Failure> {
        match self {
            Self::Check { config } => check(session, config.as_deref()).await,
            Self::Schema => {
                session.console.out(SCHEMA).await?;
                Ok(Done::Ok)
            }
        }
    }
}

/// Reads the project config that `flag` names, if it names one. `name` is what
/// the workspace is to be called.
pub(super) async fn read_config(
    session: &mut Session<'_>,
    context: &str,
    flag: Option<&str>,
    name: Option<&str>,
) -> Result<Sent, Failure> {
    match flag {
        None => Ok(Sent::default()),
        Some("-") => {
            let limit = session.control.config.limits.upload_bytes;
            let bytes = session
                .read_stdin(context, "a project config", limit)
                .await?;
            let name = name.map(str::to_owned);
            // An archive takes its time.
            let read =
                tokio::task::spawn_blocking(move || sent::read(bytes, name.as_deref(), limit));
            match read.await {
                Ok(sent) => Ok(sent?),
                Err(error) => Err(Failure::internal(context, &error)),
            }
        }
        Some(path) => Err(Failure::usage(
            context,
            format!("{path:?} would be a file of the gateway, which control commands never read"),
        )
        .remedy(format!(
            "send your own file on stdin: ssh vendetta {context} … --config - < FILE"
        ))),
    }
}

/// A build whose files did not come along to the command `context`.
pub(super) fn no_files(context: &str) -> Wrong {
    Wrong {
        key: ["docker", "build"].map(str::to_owned).to_vec(),
        problem: "an image is built from the project's files, and they were not sent".to_owned(),
        remedy: Some(format!(
            "send the whole project: tar c . | ssh vendetta {context} --config -"
        )),
    }
}

async fn check(session: &mut Session<'_>, flag: Option<&str>) -> Result<Done, Failure> {
    let context = "config check";
    if flag.is_none() {
        return Err(Failure::usage(context, "there is no config to check")
            .remedy("ssh vendetta config check --config - < .vendetta/config.yaml"));
    }
    let sent = read_config(session, context, flag, None).await?;
    let project = &sent.project;
    let spec = Spec::resolve(project.config.clone(), Overrides::default())
        .map_err(|wrong| Failure::wrong(project, wrong, false, context))?;
    if let Some(build) = spec.build()
        && sent.context(build, context)?.is_none()
    {
        return Err(Failure::wrong(project, no_files(context), false, context));
    }
    // Without an order it was refused.
    let order = graph::order(&spec.config.services).unwrap_or_default();
    let order: Vec<_> = order.into_iter().flatten().collect();
    let (not_honoured, inactive) = (&project.not_honoured, spec.inactive());
    if session.json {
        let value = json!({
            "config": spec.config,
            "services": order,
            "not_honoured": not_honoured,
            "inactive": inactive,
        });
        return session.answer("", value).await;
    }
    let mut lines = described(&spec);
    for (at, name) in order.iter().enumerate() {
        let service = spec.config.services.get(name);
        let after = service
            .map(|service| service.depends_on.as_slice())
            .unwrap_or_default();
        let after: Vec<&str> = after.iter().map(|name| name.as_str()).collect();
        let heading = if at == 0 { "Services" } else { "" };
        lines.push((
            heading,
            match after.as_slice() {
                [] => name.to_string(),
                names => format!("{name}, after {}", names.join(", ")),
            },
        ));
    }
    let not_used = not_honoured
        .iter()
        .map(|part| format!("{} ({})", part.key, part.why));
    lines.extend(not_used.chain(inactive).map(|part| ("Not used", part)));
    let text: String = lines
        .iter()
        .map(|(name, value)| format!("{name:<12}{}\n", printable(value)))
        .collect();
    session.answer(&text, json!({})).await
}

/// What is run, and how.
fn described(spec: &Spec) -> Vec<(&'static str, String)> {
    let config = &spec.config;
    let mut lines = Vec::new();
    lines.extend(config.name.as_ref().map(|name| ("Name", name.to_string())));
    lines.push((
        "Provider",
        format!("{} on {}", spec.provider, spec.remote()),
    ));
    lines.extend(spec.image().map(|image| ("Image", image.to_owned())));
    lines.extend(spec.build().map(|build| ("Image", built(build))));
    lines.extend(config.user.clone().map(|user| ("User", user)));
    lines.extend(
        config
            .workspace_folder
            .clone()
            .map(|folder| ("Folder", folder)),
    );
    lines.extend(
        config
            .resources
            .cpu
            .map(|cpu| ("Processors", cpu.to_string())),
    );
    lines.extend(
        config
            .resources
            .memory
            .map(|memory| ("Memory", memory.to_string())),
    );
    let volumes = config.docker.iter().flat_map(|docker| &docker.volumes);
    lines.extend(volumes.map(|(name, path)| ("Volume", format!("{name} at {path}"))));
    let names: Vec<&str> = config.env.keys().map(String::as_str).collect();
    if !names.is_empty() {
        lines.push(("Variables", names.join(", ")));
    }
    let services = config.services.iter().filter_map(|(name, service)| {
        let host = service
            .host_port
            .map(|port| format!(" at host port {port}"));
        Some(format!(
            "{} of {name}{}",
            service.port?,
            host.unwrap_or_default()
        ))
    });
    let ports: Vec<String> = services
        .chain(config.ports.iter().map(ToString::to_string))
        .collect();
    if !ports.is_empty() {
        lines.push(("Ports", ports.join(", ")));
    }
    let hooks = &config.hooks;
    for (name, hook) in [
        ("create", &hooks.create),
        ("up", &hooks.up),
        ("attach", &hooks.attach),
        ("down", &hooks.down),
    ] {
        lines.extend(
            hook.as_ref()
                .map(|hook| ("Hook", format!("{name}: {}", command(hook)))),
        );
    }
    lines
}

fn built(build: &Build) -> String {
    match &build.target {
        Some(target) => format!("built from {}, stage {target}", build.dockerfile_path()),
        None => format!("built from {}", build.dockerfile_path()),
    }
}

/// A command on one line.
fn command(command: &HookCommand) -> String {
    let list = |commands: Vec<String>, between: &str| commands.join(between);
    match command {
        HookCommand::Line(line) => line.clone(),
        HookCommand::Program(words) => {
            shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
        }
        HookCommand::Sequence(all) => list(all.iter().map(self::command).collect(), "; then "),
        HookCommand::Parallel(all) => list(all.values().map(self::command).collect(), " and "),
    }
}
