//! The work on an environment: idempotent, and safe to cut off anywhere.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};
use vendetta_proto::agent::{AgentConfig, CONFIG_VERSION};
use vendetta_sshio::keys::certify_host;

use super::entry::Entry;
use super::error::Explain;
use super::manager::AgentTarget;
use super::services::{Services, allowed};
use super::{ErrorKind, WorkspaceError};
use crate::node::{ByteStream, NodeTransport};
use crate::provider::{
    Context, Endpoint, Environment, Exit, Placement, Provider, ProviderError, run_dir,
};

/// How long an environment may take to end before it is made to.
const GRACE: Duration = Duration::from_secs(10);

/// How long an agent may take to answer.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Time between two tries to reach it.
const READY_POLL: Duration = Duration::from_millis(5);

/// What every SSH server says first (RFC 4253 section 4.2).
const IDENTIFICATION: &[u8; 8] = b"SSH-2.0-";

/// Brings the environment up; returns where its agent is.
pub(super) async fn start(
    services: &Services,
    entry: &Entry,
    generation: u64,
    boot: u64,
    context: &Context,
) -> Result<AgentTarget, WorkspaceError> {
    let about = entry.context();
    allowed(&entry.node.place(), entry.spec.provider)?;
    for line in entry.spec.inactive() {
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
        generation,
        config: entry.spec.config.clone(),
        build_context: entry
            .spec
            .build()
            .map(|_| services.contexts.path(&entry.reference.id)),
        agent,
        run_dir: run_dir(node.as_ref(), &entry.reference.id),
    };
    node.make_dir(&environment.run_dir)
        .await
        .map_err(|error| error.explain(&about))?;
    let placement = provider
        .create(&environment, context)
        .await
        .map_err(|error| error.explain(&about))?;
    let config = agent_config(services, entry, &placement)?;
    node.put(&environment.run_dir.join("agent.json"), 0o600, &config)
        .await
        .map_err(|error| error.explain(&about))?;
    let step = context.progress.step("start");
    let started = async {
        provider
            .start(&environment)
            .await
            .map_err(|error| error.explain(&about))?;
        ready(node.as_ref(), provider.as_ref(), entry, &placement, context).await
    };
    step.end(started.await)?;
    Ok(AgentTarget {
        workspace: entry.reference.name.clone(),
        id: entry.reference.id.clone(),
        boot,
        node,
        endpoint: placement.endpoint,
        host_key: entry.host_public.clone(),
    })
}

/// Takes the environment down.
pub(super) async fn stop(entry: &Entry, context: &Context) -> Result<(), WorkspaceError> {
    let (_, provider) = entry.place()?;
    let step = context.progress.step("stop");
    let stopped = provider.stop(&entry.reference.id, GRACE).await;
    step.end(stopped.map_err(|error| error.explain(&entry.context())))
}

/// Removes all of it.
pub(super) async fn destroy(entry: &Entry, context: &Context) -> Result<(), WorkspaceError> {
    let (_, provider) = entry.place()?;
    let step = context.progress.step("remove");
    let removed = provider.destroy(&entry.reference.id).await;
    step.end(removed.map_err(|error| error.explain(&entry.context())))
}

fn agent_config(
    services: &Services,
    entry: &Entry,
    placement: &Placement,
) -> Result<Vec<u8>, WorkspaceError> {
    let about = entry.context();
    let name = &entry.reference.name;
    let certificate = certify_host(
        &services.host_ca,
        &entry.host_public,
        &[name.to_string()],
        &format!("vendetta workspace {name}"),
    );
    let config = &entry.spec.config;
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
        services: config.services.clone(),
        host_ports: BTreeMap::new(),
        log_dir: None,
    };
    serde_json::to_vec_pretty(&config)
        .map_err(|error| WorkspaceError::new(ErrorKind::Internal, about, error.to_string()))
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
    tokio::select! {
        () = answers(node, &placement.endpoint) => Ok(()),
        exit = provider.exited(&entry.reference.id) => match exit {
            Ok(exit) => Err(failed(how_it_ended(&exit))),
            Err(error) => Err(error.explain(&about)),
        },
        () = sleep(READY_LIMIT) => Err(failed(format!(
            "its agent does not answer after {} s",
            READY_LIMIT.as_secs()
        ))
        .with_remedy(format!("ssh vendetta workspace logs {}", entry.reference.name))),
        () = context.cancel.cancelled() => Err(ProviderError::Cancelled.explain(&about)),
    }
}

/// Tells how an environment ended, with the last lines of its log.
pub(super) fn how_it_ended(exit: &Exit) -> String {
    let status = match exit.status {
        Some(status) => format!("its agent ended with status {status}"),
        None => "its agent ended".to_owned(),
    };
    if exit.log.is_empty() {
        status
    } else {
        format!("{status}; the last it said:\n{}", exit.log)
    }
}

/// Returns once something there speaks SSH.
async fn answers(node: &dyn NodeTransport, endpoint: &Endpoint) {
    loop {
        let next = Instant::now() + READY_POLL;
        // A refusal, or nothing there, is what is waited out.
        if let Ok(mut stream) = open(node, endpoint).await {
            let mut said = [0; IDENTIFICATION.len()];
            let read = timeout(Duration::from_secs(5), stream.read_exact(&mut said)).await;
            if matches!(read, Ok(Ok(_))) && said == *IDENTIFICATION {
                return;
            }
        }
        tokio::time::sleep_until(next).await;
    }
}

async fn open(
    node: &dyn NodeTransport,
    endpoint: &Endpoint,
) -> Result<Box<dyn ByteStream>, crate::node::NodeError> {
    match endpoint {
        Endpoint::Unix(path) => node.open_unix(path).await,
        Endpoint::Tcp { host, port } => node.open_tcp(host, *port).await,
    }
}
