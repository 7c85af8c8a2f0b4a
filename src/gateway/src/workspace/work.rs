//! The work on an environment: idempotent, and safe to cut off anywhere.
//!
//! ```text
//!   start: environment ─▶ agent answers ─▶ set up (once) ─▶ sessions ─▶ services ─▶ up hook
//!   stop:  down hook ─▶ services ─▶ environment
//! ```
//!
//! A start that replaces an environment that runs takes leave of it as a stop does, once
//! its provider has all that the new one needs: until then it serves on.
//! Each keeps to what its environment is, or was, made from.
//!
//! Sessions are let in as soon as the environment has been set up, so that
//! they do not wait for services; and also when setting up failed, so that
//! somebody can look why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use vendetta_proto::agent::{AgentConfig, CONFIG_VERSION};
use vendetta_proto::name::HOST_SUFFIX;
use vendetta_proto::rpc::{Answer, Request};
use vendetta_proto::spec::ProviderKind;
use vendetta_proto::{ServiceName, WorkspaceName};
use vendetta_sshio::keys::certify_host;

use super::entry::Entry;
use super::error::Explain;
use super::hook::Place;
use super::manager::AgentTarget;
use super::provision::provision;
use super::service::{self, ServiceRequest};
use super::services::{Services, allowed};
use super::{ErrorKind, ProgressSink, Spec, WorkspaceError, restart};
use crate::agent::client::AgentClient;
use crate::agent::pool::AgentError;
use crate::node::{AgentAccess, ByteStream, NodeError, NodeTransport};
use crate::provider::{
    Context, Endpoint, Environment, Exit, Farewell, Placement, Provider, ProviderError, run_dir,
};

/// Time between two tries to reach an agent, at first; the longer it takes, the
/// seldomer it is tried.
const READY_POLL: Duration = Duration::from_millis(5);

/// Longest time between two tries.
const MAX_READY_POLL: Duration = Duration::from_millis(500);

/// How long the down hook, and then the services, may hold a stop up.
const FAREWELL_LIMIT: Duration = Duration::from_secs(120);

/// How long a start that is no longer wanted may take to end: one that is cut off may still
/// take effect, one that hangs must not keep what is wanted now.
const START_GRACE: Duration = Duration::from_secs(10);

/// The word by which an agent remembers that the up hook has run.
const UP_HOOK_RAN: &str = "hook up";

/// Exit status of what SIGKILL ended.
const KILLED: i64 = 128 + 9;

/// What every SSH server says first (RFC 4253 section 4.2).
const IDENTIFICATION: &[u8; 8] = b"SSH-2.0-";

/// What a start needs beside the workspace.
pub(super) struct Start {
    /// The generation of the environment.
    pub generation: u64,
    /// The number of this start.
    pub boot: u64,
    /// What it is made from.
    pub spec: Arc<Spec>,
    /// The ssh-agent of whoever asked.
    pub ssh_agent: Option<Arc<dyn AgentAccess>>,
    /// The agent that was there, where it is known: of this environment, or of
    /// the one that it replaces.
    pub before: Option<Arc<AgentTarget>>,
    /// Is told where the agent is once sessions can be opened.
    pub reached: oneshot::Sender<Arc<AgentTarget>>,
}

/// Brings the environment up, sets it up, and brings its services up.
pub(super) async fn start(
    services: &Arc<Services>,
    entry: &Arc<Entry>,
    start: Start,
    context: &Context,
) -> Result<(), WorkspaceError> {
    let about = entry.context();
    let farewell = match &start.before {
        Some(before) if before.generation != start.generation => {
            let (services, entry) = (Arc::clone(services), Arc::clone(entry));
            let (before, progress) = (Arc::clone(before), context.progress.clone());
            Farewell::new(async move { take_leave(&services, &entry, &before, &progress).await })
        }
        _ => Farewell::default(),
    };
    let context = &Context {
        farewell,
        ..context.clone()
    };
    let target = match start_environment(services, entry, &start, context).await {
        Ok(target) => Arc::new(target),
        Err(error) => {
            if let Some(before) = start.before.filter(|_| context.farewell.is_to_come()) {
                // What it was to replace serves on.
                let _ = start.reached.send(before);
            }
            return Err(error);
        }
    };
    let spec = &target.spec;
    let Start {
        generation,
        ssh_agent,
        reached,
        ..
    } = start;
    // The agent's own user is there.
    if is_plain(entry, spec, generation) && target.user.is_none() {
        let _ = reached.send(target);
        return Ok(());
    }
    let inside = async {
        let with_ssh_agent = ssh_agent.is_some();
        let client = match log_in(services, entry, &target, ssh_agent).await {
            Err(error @ AgentError::NoUser { .. }) => {
                // Others can log in, and see which users there are.
                let _ = reached.send(Arc::clone(&target));
                let step = context.progress.step("log in");
                return step.end(Err(error.explain(&about)));
            }
            client => client.map_err(|error| error.explain(&about))?,
        };
        let marked = restart::mark(&client).await;
        marked.map_err(|error| error.explain(&about))?;
        let place = Place {
            about: &about,
            client: &client,
            with_ssh_agent,
        };
        let provisioned = provision(services, entry, spec, generation, &place, context).await;
        // Gone when the work is no longer wanted, and then nobody wants to know.
        let _ = reached.send(Arc::clone(&target));
        provisioned?;
        start_services(entry, spec, &place, context).await
    };
    match context.cancel.run_until_cancelled(inside).await {
        Some(result) => result,
        None => Err(ProviderError::Cancelled.explain(&about)),
    }
}

/// Logs in as the user of sessions, whom the environment may be about to add.
async fn log_in(
    services: &Services,
    entry: &Entry,
    target: &AgentTarget,
    ssh_agent: Option<Arc<dyn AgentAccess>>,
) -> Result<Arc<AgentClient>, AgentError> {
    let provider = entry.place().ok().map(|(_, provider)| provider);
    let limit = provider.map_or(Duration::ZERO, |provider| provider.users_limit());
    let deadline = Instant::now() + limit;
    loop {
        match AgentClient::connect(&services.pool, target, ssh_agent.clone()).await {
            Err(AgentError::NoUser { .. }) if Instant::now() < deadline => {
                sleep(MAX_READY_POLL).await;
            }
            client => return client,
        }
    }
}

/// Whether nothing is to be done in the environment itself.
fn is_plain(entry: &Entry, spec: &Spec, generation: u64) -> bool {
    let config = &spec.config;
    let to_set_up =
        config.repo.is_some() || config.dotfiles.is_some() || config.hooks.create.is_some();
    !spec.starts_something() && (!to_set_up || entry.provisioned() == generation)
}

async fn start_services(
    entry: &Entry,
    spec: &Spec,
    place: &Place<'_>,
    context: &Context,
) -> Result<(), WorkspaceError> {
    let config = &spec.config;
    let name = &entry.reference.name;
    if !config.services.is_empty() {
        let (request, all) = (ServiceRequest::Start, BTreeSet::new());
        let progress = &context.progress;
        service::change(
            place.about,
            name.as_str(),
            place.client,
            request,
            all,
            progress,
        )
        .await?;
    }
    let Some(hook) = &config.hooks.up else {
        return Ok(());
    };
    let ask = |request: Request| async move {
        match place.client.ask_one(&request).await {
            Ok(Answer::Marked { before }) => Ok(before),
            Ok(_) => Ok(false),
            Err(error) => Err(error.explain(place.about)),
        }
    };
    let mark = || UP_HOOK_RAN.to_owned();
    if ask(Request::IsMarked { mark: mark() }).await? {
        return Ok(());
    }
    let step = context.progress.step("hook up");
    let ran = place.hook(&step, hook).await;
    step.end(ran.map_err(|error| {
        error
            .explain(place.about, "hook up")
            .with_remedy(format!("mend what it runs, then: ssh vendetta workspace up {name}; a changed config goes in with: ssh vendetta workspace rebuild {name} --config -"))
    }))?;
    ask(Request::Mark { mark: mark() }).await.map(|_| ())
}

/// Brings the environment up; returns where its agent is.
async fn start_environment(
    services: &Services,
    entry: &Entry,
    start: &Start,
    context: &Context,
) -> Result<AgentTarget, WorkspaceError> {
    let about = entry.context();
    allowed(&entry.node.place(), entry.provider)?;
    let spec = &start.spec;
    for line in spec.inactive() {
        context.progress.message("config", line);
    }
    let (node, provider) = entry.place()?;
    let agent = services
        .payloads
        .install(node.as_ref(), &context.progress)
        .await
        .map_err(|error| error.explain(&about))?;
    let environment = Environment {
        id: entry.reference.id.clone(),
        name: entry.reference.name.clone(),
        generation: start.generation,
        config: spec.config.clone(),
        build_context: spec.build().map(|_| {
            services
                .contexts
                .path(&entry.reference.id, start.generation)
        }),
        agent,
        run_dir: run_dir(node.as_ref(), &entry.reference.id),
    };
    begin(services, entry, provider.as_ref()).await?;
    node.make_dir(&environment.run_dir)
        .await
        .map_err(|error| error.explain(&about))?;
    let placement = provider
        .create(&environment, context)
        .await
        .map_err(|error| not_made(error, entry))?;
    let host_ports = host_ports(services, entry, spec, context).await?;
    let config = agent_config(services, entry, spec, &placement, host_ports)?;
    node.put(&environment.run_dir.join("agent.json"), 0o600, &config)
        .await
        .map_err(|error| error.explain(&about))?;
    let step = context.progress.step("start");
    let started = async {
        let given_up = async {
            context.cancel.cancelled().await;
            sleep(START_GRACE).await;
        };
        let started = tokio::select! {
            started = provider.start(&environment) => started,
            () = given_up => Err(ProviderError::Cancelled),
        };
        started.map_err(|error| error.explain(&about))?;
        ready(node.as_ref(), provider.as_ref(), entry, &placement, context).await
    };
    step.end(started.await)?;
    Ok(AgentTarget {
        workspace: entry.reference.name.clone(),
        id: entry.reference.id.clone(),
        boot: start.boot,
        generation: start.generation,
        user: placement.user,
        node: Arc::clone(&entry.node),
        endpoint: placement.endpoint,
        host_key: entry.host_public.clone(),
        spec: Arc::clone(spec),
    })
}

/// Why there is no environment, with what mends what it was to be made from.
fn not_made(error: ProviderError, entry: &Entry) -> WorkspaceError {
    let name = &entry.reference.name;
    let rebuild = format!("ssh vendetta workspace rebuild {name}");
    let remedy = match error.remedy() {
        _ if matches!(error, ProviderError::BuildFailed { .. }) => Some(format!(
            "mend the Dockerfile, and send the project again: tar c . | {rebuild} --config -"
        )),
        Some(remedy) if error.lacks_image() => Some(format!(
            "{remedy}; for another image: {rebuild} --image IMAGE"
        )),
        remedy => remedy,
    };
    let error = error.explain(&entry.context());
    WorkspaceError { remedy, ..error }
}

/// Remembers that something of it may be on its node from now on, once its
/// engine has answered: one that nothing was ever made of is destroyed
/// whether its engine is there or not.
async fn begin(
    services: &Services,
    entry: &Entry,
    provider: &dyn Provider,
) -> Result<(), WorkspaceError> {
    if entry.begun() {
        return Ok(());
    }
    let (id, about) = (&entry.reference.id, entry.context());
    let found = provider.inspect(id).await;
    found.map_err(|error| error.explain(&about))?;
    let saved = services.store.save_begun(id).await;
    saved.map_err(|error| error.explain(&about))?;
    entry.set_begun();
    Ok(())
}

/// Takes the environment down; what runs in it is told before, where its agent is known.
pub(super) async fn stop(
    services: &Services,
    entry: &Entry,
    target: Option<Arc<AgentTarget>>,
    context: &Context,
) -> Result<(), WorkspaceError> {
    let (_, provider) = entry.place()?;
    if let Some(target) = target {
        let farewell = take_leave(services, entry, &target, &context.progress);
        context.cancel.run_until_cancelled(farewell).await;
    }
    let step = context.progress.step("stop");
    let stopped = provider
        .stop(&entry.reference.id, provider.stop_grace())
        .await;
    step.end(stopped.map_err(|error| error.explain(&entry.context())))
}

/// The down hook, then the services. Whatever goes wrong with them is told and
/// does not keep the environment up.
async fn take_leave(
    services: &Services,
    entry: &Entry,
    target: &AgentTarget,
    progress: &ProgressSink,
) {
    let config = &target.spec.config;
    if config.hooks.down.is_none() && config.services.is_empty() {
        return;
    }
    let about = entry.context();
    let client = match AgentClient::connect(&services.pool, target, None).await {
        Ok(client) => client,
        Err(error) => {
            progress.message("stop", error.to_string());
            return;
        }
    };
    if let Some(hook) = &config.hooks.down {
        let place = Place {
            about: &about,
            client: &client,
            with_ssh_agent: false,
        };
        let step = progress.step("hook down");
        let ran = match timeout(FAREWELL_LIMIT, place.hook(&step, hook)).await {
            Ok(ran) => ran.map_err(|error| error.explain(&about, "hook down")),
            Err(_) => Err(too_long(&about, "hook down")),
        };
        if let Err(error) = step.end(ran) {
            tracing::info!(%error, "hook down");
        }
    }
    if !config.services.is_empty() {
        let (request, all) = (ServiceRequest::Stop, BTreeSet::new());
        let name = entry.reference.name.as_str();
        let stopping = service::change(&about, name, &client, request, all, progress);
        let stopped = timeout(FAREWELL_LIMIT, stopping).await;
        if let Err(error) = stopped.unwrap_or_else(|_| Err(too_long(&about, "stopping services"))) {
            progress.message("stop", error.to_string());
        }
    }
}

fn too_long(about: &str, what: &str) -> WorkspaceError {
    let limit = FAREWELL_LIMIT.as_secs();
    WorkspaceError::new(
        ErrorKind::Unavailable,
        about,
        format!("{what} did not end within {limit} s: given up"),
    )
}

/// Removes all of it.
pub(super) async fn destroy(entry: &Entry, context: &Context) -> Result<(), WorkspaceError> {
    if !entry.begun() {
        return Ok(());
    }
    let (_, provider) = entry.place()?;
    let step = context.progress.step("remove");
    let removed = provider.destroy(&entry.reference.id).await;
    step.end(removed.map_err(|error| error.explain(&entry.context())))
}

/// The ports of the gateway's machine for its services. One that it cannot be
/// given is told, and nothing else waits for it.
async fn host_ports(
    services: &Services,
    entry: &Entry,
    spec: &Spec,
    context: &Context,
) -> Result<BTreeMap<ServiceName, u16>, WorkspaceError> {
    let reference = &entry.reference;
    let assigned = services
        .ports
        .assign(&reference.id, &reference.owner, &spec.config);
    let assigned = assigned
        .await
        .map_err(|error| error.explain(&entry.context()))?;
    for refused in assigned.refused {
        context.progress.message("ports", refused.problem);
    }
    let mappings = assigned.mappings.iter();
    let host_ports = mappings
        .filter_map(|mapping| Some((mapping.key.service()?.clone(), mapping.host_port)))
        .collect();
    entry.set_ports(assigned.mappings);
    Ok(host_ports)
}

fn agent_config(
    services: &Services,
    entry: &Entry,
    spec: &Spec,
    placement: &Placement,
    host_ports: BTreeMap<ServiceName, u16>,
) -> Result<Vec<u8>, WorkspaceError> {
    let about = entry.context();
    let name = &entry.reference.name;
    let certificate = certify_host(
        &services.host_ca,
        &entry.host_public,
        &host_names(name),
        &format!("vendetta workspace {name}"),
    );
    let config = AgentConfig {
        version: CONFIG_VERSION,
        workspace: name.to_string(),
        host_key: entry
            .host_key
            .to_openssh()
            .map_err(|error| error.explain(&about))?,
        host_certificate: Some(certificate.map_err(|error| error.explain(&about))?),
        gateway_keys: vec![services.agent_login_key.to_string()],
        listen: placement.listen.clone(),
        user: placement.user.clone(),
        env: placement.env.clone(),
        workdir: Some(placement.workdir.clone()),
        volumes: placement.volumes.clone(),
        services: spec.config.services.clone(),
        host_ports,
        log_dir: placement.log_dir.clone(),
        own_network: placement.own_network,
    };
    serde_json::to_vec_pretty(&config)
        .map_err(|error| WorkspaceError::new(ErrorKind::Internal, about, error.to_string()))
}

/// The names that an agent proves to have: those by which clients that come to
/// it end to end know its workspace.
fn host_names(workspace: &WorkspaceName) -> [String; 2] {
    [workspace.to_string(), format!("{workspace}.{HOST_SUFFIX}")]
}

/// Waits until the agent answers, or its environment ends, or it takes too long.
async fn ready(
    node: &dyn NodeTransport,
    provider: &dyn Provider,
    entry: &Entry,
    placement: &Placement,
    context: &Context,
) -> Result<(), WorkspaceError> {
    let about = entry.context();
    let failed = |problem: String| WorkspaceError::new(ErrorKind::Unavailable, &about, problem);
    let limit = provider.ready_limit();
    tokio::select! {
        answered = answers(node, &placement.endpoint) => {
            answered.map_err(|error| error.explain(&about))
        }
        exit = provider.exited(&entry.reference.id) => match exit {
            Ok(exit) => Err(failed(how_it_ended(entry.provider, &exit))),
            Err(error) => Err(error.explain(&about)),
        },
        () = sleep(limit) => Err(failed(format!(
            "its agent does not answer after {} s",
            limit.as_secs()
        ))
        .with_remedy(format!("ssh vendetta workspace logs {}", entry.reference.name))),
        () = context.cancel.cancelled() => Err(ProviderError::Cancelled.explain(&about)),
    }
}

/// Tells how an environment ended, with the last lines of its log.
pub(super) fn how_it_ended(provider: ProviderKind, exit: &Exit) -> String {
    let what = match provider {
        ProviderKind::Qemu => "QEMU",
        ProviderKind::Docker | ProviderKind::Lxc | ProviderKind::Host => "its agent",
    };
    let status = match exit.status {
        Some(KILLED) => format!("{what} was killed (status {KILLED})"),
        Some(status) => format!("{what} ended with status {status}"),
        None => format!("{what} ended"),
    };
    if exit.log.is_empty() {
        status
    } else {
        format!("{status}; the last it said:\n{}", exit.log)
    }
}

/// Returns once something there speaks SSH.
///
/// # Errors
/// When the node's sshd lets nobody through to it, which no waiting changes.
async fn answers(node: &dyn NodeTransport, endpoint: &Endpoint) -> Result<(), NodeError> {
    let began = Instant::now();
    loop {
        let pause = (began.elapsed() / 50).clamp(READY_POLL, MAX_READY_POLL);
        let next = Instant::now() + pause;
        match open(node, endpoint).await {
            Ok(mut stream) => {
                let mut said = [0; IDENTIFICATION.len()];
                let read = timeout(Duration::from_secs(5), stream.read_exact(&mut said)).await;
                if matches!(read, Ok(Ok(_))) && said == *IDENTIFICATION {
                    return Ok(());
                }
            }
            Err(error @ NodeError::Refused { .. }) => return Err(error),
            // Nothing there yet, or not reached for a moment: that is waited out.
            Err(_) => {}
        }
        tokio::time::sleep_until(next).await;
    }
}

async fn open(
    node: &dyn NodeTransport,
    endpoint: &Endpoint,
) -> Result<Box<dyn ByteStream>, NodeError> {
    match endpoint {
        Endpoint::Unix(path) => node.open_unix(path).await,
        Endpoint::Tcp { host, port } => node.open_tcp(host, *port).await,
    }
}
