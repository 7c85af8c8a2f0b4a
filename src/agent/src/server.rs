//! Listens, accepts, stops.
//!
//! ```text
//!   SERVING ── SIGTERM | SIGINT ──▶ STOPPING: services asked to end in order, sessions told and
//!      hung up, all other descendants SIGTERM ──▶ all gone | grace over, SIGKILL ──▶ exit 0
//! ```

use std::collections::HashSet;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use russh::{MethodKind, MethodSet, SshId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_sshio::cut::Cut;
use vendetta_sshio::read_ahead::ReadAhead;
use vendetta_sshio::transport;
use vendetta_sshio::workers::Workers;

use crate::admission::{Admission, Peer};
use crate::config::Settings;
use crate::connection::Agent;
use crate::forward::Resolver;
use crate::forward::agent_socket::AgentSockets;
use crate::handler::ConnectionHandler;
use crate::listen::{Listen, Listener, Stream};
use crate::ports::Ports;
use crate::process::{Reaper, Table, descendants};
use crate::rpc::Marks;
use crate::supervisor;
use crate::terminal::Terminals;
use crate::users::Users;

/// How long a connection may take to log in.
const LOGIN_GRACE: Duration = Duration::from_secs(30);

/// How long a rejection takes. Not a defence (whether a key is known shows in
/// the answer itself), but a brake on guessing.
const REJECTION: Duration = Duration::from_millis(10);

/// How long processes may take to end after SIGTERM, well within the ten
/// seconds that container engines give PID 1.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How much of that services have to end in order.
const ORDER_GRACE: Duration = Duration::from_secs(3);

/// How often to look whether all processes have ended.
const STOP_POLL: Duration = Duration::from_millis(50);

/// How long connections may take to end in order.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Pause after a failed accept (out of descriptors), so that it is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a peer that says nothing is asked whether it is there, and how
/// often in vain before its processes are hung up: a quarter of an hour, for
/// one that is cut off or asleep. Of a gateway whose machine lost its power a
/// far node's sshd notices nothing for hours.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_MAX: usize = 15;

/// Messages that may wait between the channels and the connection's writer.
const EVENT_BUFFER: usize = 16;

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The runtime or a signal handler cannot be set up.
    #[error("cannot {operation}: {source}")]
    Setup {
        /// What failed.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Nothing can connect.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// Where.
        listen: Listen,
        /// The cause.
        source: io::Error,
    },
}

/// Serves until SIGTERM or SIGINT, then stops in order.
///
/// # Errors
/// When it cannot begin to serve.
pub fn run(settings: Settings) -> Result<(), ServeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServeError::Setup {
            operation: "start the runtime",
            source,
        })?
        .block_on(serve(settings))
}

async fn serve(settings: Settings) -> Result<(), ServeError> {
    let setup = |operation| move |source| ServeError::Setup { operation, source };
    // What we make is for us alone, until said otherwise; children have their own umask.
    umask(Mode::from_bits_truncate(0o077));
    if std::process::id() != 1 {
        // Orphans of this environment come to us, so that a stop finds them.
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|errno| setup("become a subreaper")(errno.into()))?;
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(setup("catch SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(setup("catch SIGINT"))?;

    let config = Arc::new(ssh_config(&settings));
    let listen = settings.listen.clone();
    let (services, inbox) = supervisor::new(&settings);
    let agent = Arc::new(Agent {
        service_variables: supervisor::variables(&settings.services, &settings.host_ports),
        services,
        ports: Ports::default(),
        marks: Marks::default(),
        terminals: Terminals::default(),
        agent_sockets: AgentSockets::default(),
        settings,
        users: Users::system(),
        reaper: Reaper::default(),
        inherited: std::env::vars_os().collect(),
        admission: Admission::default(),
        resolver: Resolver::default(),
        sessions: TaskTracker::new(),
        tasks: TaskTracker::new(),
        stopping: CancellationToken::new(),
        closing: CancellationToken::new(),
    });
    hand_disks_over(&agent);
    let reaping = {
        let agent = Arc::clone(&agent);
        tokio::spawn(async move { agent.reaper.run().await })
    };
    agent
        .tasks
        .spawn(supervisor::runner(Arc::clone(&agent), inbox).run());
    let listener = listen.bind().await.map_err(|source| ServeError::Listen {
        listen: listen.clone(),
        source,
    })?;
    let listen = listener.bound(listen);
    tracing::info!(workspace = agent.settings.workspace, %listen, "serving");

    let workers = Workers::start().map_err(setup("start the threads of connections"))?;
    tokio::select! {
        () = accept(&agent, &config, &listener, &workers) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(listener);
    listen.remove();
    tokio::select! {
        () = stop(&agent) => {}
        _ = terminate.recv() => {}
    }
    reaping.abort();
    let _ = tokio::task::spawn_blocking(|| workers.stop()).await;
    Ok(())
}

/// Gives disks that are fresh to the default user.
fn hand_disks_over(agent: &Agent) {
    let Settings {
        user,
        workdir,
        volumes,
        ..
    } = &agent.settings;
    let user = user.as_deref();
    let Some(user) = user.and_then(|user| agent.users.by_specification(user)) else {
        return;
    };
    for directory in workdir.iter().chain(volumes) {
        if let Err(error) = crate::disk::hand_over(directory, &user) {
            tracing::warn!(directory = %directory.display(), %error, "handing over");
        }
    }
}

fn ssh_config(settings: &Settings) -> russh::server::Config {
    russh::server::Config {
        server_id: SshId::Standard(transport::IDENTIFICATION.into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REJECTION,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![settings.host_key.clone()],
        certificates: settings.host_certificate.iter().cloned().collect(),
        limits: transport::link_limits(),
        window_size: transport::SERVER_WINDOW,
        maximum_packet_size: transport::LINK_PACKET,
        event_buffer_size: EVENT_BUFFER,
        preferred: transport::agent_algorithms(),
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        ..russh::server::Config::default()
    }
}

async fn accept(
    agent: &Arc<Agent>,
    config: &Arc<russh::server::Config>,
    listener: &Listener,
    workers: &Workers,
) {
    loop {
        match listener.accept().await {
            Ok(accepted) => {
                let Some(worker) = workers.next() else { return };
                let (agent, config) = (Arc::clone(agent), Arc::clone(config));
                let tasks = agent.tasks.clone();
                let serving = async move {
                    // The worker's own runtime is to watch it.
                    match accepted.watched() {
                        Ok(Stream::Local(stream)) => connection(&agent, config, stream).await,
                        Ok(Stream::Tcp(stream)) => connection(&agent, config, stream).await,
                        Err(error) => tracing::warn!("connection lost at once: {error}"),
                    }
                };
                tasks.spawn_on(serving, worker);
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn connection(
    agent: &Arc<Agent>,
    config: Arc<russh::server::Config>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let cut = CancellationToken::new();
    let stream = ReadAhead::new(Cut::new(stream, cut.clone()));
    let deadline = Instant::now() + LOGIN_GRACE;
    let (tell, logged_in) = oneshot::channel();
    let handler = ConnectionHandler::new(Arc::clone(agent), tell);
    let started = timeout_at(deadline, russh::server::run_stream(config, stream, handler));
    let Ok(Ok(session)) = started.await else {
        return;
    };
    let handle = session.handle();
    tokio::pin!(session);
    let unwelcome = async {
        match timeout_at(deadline, logged_in).await {
            Err(_) => "login took too long",
            Ok(Ok(Peer::Guest(credential))) => {
                agent.admission.ended(&credential).await;
                tracing::info!(%credential, "may no longer log in: cut off");
                "this key may no longer log in"
            }
            Ok(Ok(Peer::Gateway | Peer::Client) | Err(_)) => pending().await,
        }
    };
    let farewell = async {
        tokio::select! {
            () = agent.closing.cancelled() => "the workspace is stopping",
            reason = unwelcome => reason,
        }
    };
    let result = tokio::select! {
        result = &mut session => result,
        reason = farewell => {
            let code = russh::Disconnect::ByApplication;
            let end = async {
                let _ = handle.disconnect(code, reason.to_owned(), String::new()).await;
                (&mut session).await
            };
            match timeout(CLOSE_GRACE, end).await {
                Ok(result) => result,
                // It takes nothing any more, so it is not told.
                Err(_) => {
                    cut.cancel();
                    session.await
                }
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!("connection ended: {error}");
    }
}

/// Ends all that runs in the environment: services in order, sessions learn of
/// it and are hung up, every other process gets SIGTERM, and after the grace
/// all get SIGKILL.
async fn stop(agent: &Agent) {
    tracing::info!("stopping");
    agent.sessions.close();
    agent.tasks.close();
    agent.stopping.cancel();
    let services_stopped = AtomicBool::new(false);
    let services = async {
        agent.services.shut_down(ORDER_GRACE).await;
        services_stopped.store(true, Ordering::Relaxed);
    };
    let others = async {
        // Each process once: to many, a second SIGTERM means "at once".
        let mut told = HashSet::new();
        loop {
            let all_stopped = services_stopped.load(Ordering::Relaxed);
            let table = Table::now();
            let mut processes = table.below(Pid::this());
            if processes.is_empty() && all_stopped {
                break;
            }
            if !all_stopped {
                let theirs = agent.services.processes(&table);
                processes.retain(|pid| !theirs.contains(pid));
            }
            for pid in processes.into_iter().filter(|pid| told.insert(*pid)) {
                let _ = kill(pid, Signal::SIGTERM);
            }
            sleep(STOP_POLL).await;
        }
        agent.sessions.wait().await;
    };
    let ended = async { tokio::join!(services, others) };
    if timeout(STOP_GRACE, ended).await.is_err() {
        let left = descendants();
        for pid in &left {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        tracing::warn!(processes = left.len(), "killed what did not stop in time");
        let _ = timeout(CLOSE_GRACE, agent.sessions.wait()).await;
    }
    agent.closing.cancel();
    let _ = timeout(CLOSE_GRACE, agent.tasks.wait()).await;
}
