//! Builds the gateway, owns every task of it, and takes it down again.
//!
//! ```text
//!   starting ──▶ serving ── SIGTERM, SIGINT ──▶ draining ── all sessions ended ──▶ stopped
//!                                                  └─ drain_seconds, or a second signal ─▶ stopped
//! ```
//!
//! Draining accepts nobody new and lets sessions end. Workspaces run on in
//! every case: the gateway is in front of them, not under them.

use std::fs::{self, DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vendetta_sshio::keys::PrivateKey;
use vendetta_sshio::workers::Workers;

use crate::cannot_start::CannotStart;
use crate::config::{Config, MachineNetwork};
use crate::control::{Control, HostKeys};
use crate::events::Events;
use crate::first_admin;
use crate::memory;
use crate::metrics::Metrics;
use crate::provider::{Mirrors, QemuSettings};
use crate::ssh::auth::Authenticator;
use crate::ssh::{Services, listener};
use crate::store::Store;
use crate::workspace::{self, Workspaces};

/// How long tasks may take to notice that they are to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What `vendetta serve` was given on its command line; each wins over the configuration file.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// Configuration file.
    pub config: Option<PathBuf>,
    /// Address to listen on.
    pub listen: Option<SocketAddr>,
    /// Directory of keys and state.
    pub state_dir: Option<PathBuf>,
    /// Public key file of the first admin.
    pub admin_key: Option<PathBuf>,
}

/// The gateway's own keys.
struct Keys {
    /// Proves the gateway to its clients.
    host: PrivateKey,
    /// Certifies the host keys of agents.
    host_ca: PrivateKey,
    /// Opens agents.
    agent: PrivateKey,
    /// Opens nodes.
    node: PrivateKey,
}

impl Keys {
    fn load(state_dir: &Path) -> anyhow::Result<Self> {
        let dir = state_dir.join("keys");
        private_dir(&dir)?;
        let key =
            |name: &str| PrivateKey::load_or_generate(&dir.join(name), &format!("vendetta {name}"));
        Ok(Self {
            host: key("host_key")?,
            host_ca: key("host_ca")?,
            agent: key("agent_key")?,
            node: key("node_key")?,
        })
    }
}

fn private_dir(dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("creating {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("making {} private", dir.display()))
}

/// Only one gateway may own a state directory.
fn lock(state_dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = state_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(CannotStart::taken(
            format!("another gateway uses {}", state_dir.display()),
            "stop it, or give this one a directory of its own with --state-dir",
        )),
        Err((_, error)) => bail!("locking {}: {error}", path.display()),
    }
}

/// `vendetta serve`: runs a gateway until it is told to stop.
///
/// # Errors
/// When it cannot start; once it serves, problems are logged.
pub fn serve(options: &ServeOptions) -> anyhow::Result<()> {
    let mut config = Config::load(options.config.as_deref())?;
    if let Some(listen) = options.listen {
        config.listen = listen;
    }
    if let Some(dir) = &options.state_dir {
        config.state_dir = std::path::absolute(dir).context("--state-dir")?;
    }
    log_to_stderr(&config);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(run(config, options.admin_key.as_deref()))
}

fn log_to_stderr(config: &Config) {
    use crate::config::LogFormat;
    // russh says at "info" what is of interest to its own developers only.
    let filter = format!("{level},russh=warn", level = config.log.level.as_str());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Fails when a test has set up logging before, which is as well.
    let _ = match config.log.format {
        LogFormat::Json => log.json().try_init(),
        LogFormat::Text => log.with_ansi(false).try_init(),
    };
}

async fn run(config: Config, admin_key: Option<&Path>) -> anyhow::Result<()> {
    let mut stop_signal = StopSignal::new()?;
    private_dir(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    let keys = Keys::load(&config.state_dir)?;
    let stop_accepting = CancellationToken::new();
    let end = CancellationToken::new();
    let tasks = TaskTracker::new();
    let sessions = TaskTracker::new();

    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| CannotStart::listening(config.listen, "--listen", &error))?;
    let bound = listener.local_addr()?;
    let services =
        Arc::new(build(&config, &keys, admin_key, bound, &tasks, &sessions, &end).await?);
    let server = Arc::new(crate::ssh::server_config::server_config(
        &config.ssh,
        config.limits.auth_attempts,
        vec![keys.host.as_russh().clone()],
        Vec::new(),
    )?);
    let limits = listener::Limits {
        connections: config.limits.connections,
        unauthenticated: config.limits.unauthenticated,
        login_grace: Duration::from_secs(config.limits.login_grace_seconds),
    };
    if let Some(address) = config.metrics.listen {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            CannotStart::listening(address, "listen in section [metrics]", &error)
        })?;
        let bound = listener.local_addr()?;
        let metrics = Metrics::new(services.workspaces.clone(), sessions.clone());
        tasks.spawn(metrics.serve(listener, tasks.clone(), end.clone()));
        tracing::info!(address = %bound, "metrics at http://{bound}/metrics");
    }
    let give_back = memory::give_back(services.freed.clone());
    let ended = end.clone();
    tasks.spawn(async move { ended.run_until_cancelled(give_back).await });
    tasks.spawn(listener::serve(
        listener,
        server,
        services.clone(),
        limits,
        stop_accepting.clone(),
        end.clone(),
    ));
    tracing::info!(address = %bound, host_key = %keys.host.public().fingerprint(), "listening on {bound}");

    stop_signal.recv().await;
    tracing::info!(
        "stopping: no new connections; waiting up to {} s for sessions",
        config.drain_seconds
    );
    stop_accepting.cancel();
    sessions.close();
    tokio::select! {
        () = sessions.wait() => tracing::info!("all sessions ended"),
        () = tokio::time::sleep(Duration::from_secs(config.drain_seconds)) => {
            tracing::info!("sessions did not end in time: cutting them off");
        }
        () = stop_signal.recv() => tracing::info!("second signal: stopping at once"),
    }
    end.cancel();
    tasks.close();
    let ended = async { tokio::join!(sessions.wait(), tasks.wait()) };
    if tokio::time::timeout(END_TIMEOUT, ended).await.is_err() {
        tracing::warn!("tasks did not end in time");
    }
    // The listener has ended, so this is the last of it.
    if let Some(services) = Arc::into_inner(services) {
        tokio::task::spawn_blocking(|| services.workers.stop()).await?;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Builds the parts in the order in which they need one another.
async fn build(
    config: &Config,
    keys: &Keys,
    admin_key: Option<&Path>,
    bound: SocketAddr,
    tasks: &TaskTracker,
    sessions: &TaskTracker,
    end: &CancellationToken,
) -> anyhow::Result<Services> {
    let store = Store::open(&config.state_dir.join("state.db"))?;
    first_admin::ensure(&store, admin_key).await?;
    let trusted = config.users.certificate_authorities()?;
    let events = Events::default();
    let workspaces = Workspaces::start(workspace::Settings {
        store: store.clone(),
        host_ca: keys.host_ca.clone(),
        agent_key: keys.agent.clone(),
        user_authorities: trusted.clone(),
        agent_dir: config.agent_dir.clone(),
        state_dir: config.state_dir.clone(),
        docker_socket: config.docker.socket.clone(),
        lxc_socket: config.lxc.socket.clone(),
        qemu: QemuSettings {
            mirrors: Mirrors {
                debian: config.qemu.debian_images.clone(),
                ubuntu: config.qemu.ubuntu_images.clone(),
            },
            image_dirs: config.qemu.image_dirs.clone(),
            isolated: config.qemu.network == MachineNetwork::None,
        },
        allow_host: config.local.allow_host,
        ports: workspace::PortSettings {
            range: config.ports.range.0.clone(),
            bind: config.ports.bind,
        },
        node_key: keys.node.clone(),
        events: events.clone(),
        tracker: tasks.clone(),
        cancel: end.clone(),
    })
    .await?;
    Ok(Services {
        pool: workspaces.pool().clone(),
        control: Arc::new(Control::new(
            config,
            store.clone(),
            workspaces.clone(),
            events,
            bound,
            HostKeys {
                gateway: keys.host.public(),
                authority: keys.host_ca.public(),
            },
        )),
        authenticator: Authenticator::new(store.clone(), trusted),
        channels_per_connection: config.limits.channels_per_connection,
        freed: Arc::default(),
        workers: Workers::start().context("starting the threads of connections")?,
        tasks: sessions.clone(),
        store,
        workspaces,
    })
}

/// SIGTERM or SIGINT.
struct StopSignal {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignal {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
