//! The one SSH connection to a workspace's agent over which everything is
//! carried that comes to its ports: made at first use, made again when it was
//! lost, closed when nobody has used it for long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::agent::client::{AgentClient, Dialled};
use crate::agent::pool::{AgentError, Pool};
use crate::workspace::AgentTarget;

/// What is dialled: both loopback addresses, since some servers listen on one
/// of them only.
const INSIDE: &str = "localhost";

/// How long a connection is kept that nothing is carried over.
const UNUSED: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Link {
    pool: Pool,
    target: Arc<AgentTarget>,
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    client: Arc<AgentClient>,
    /// When it was last asked for.
    used: Instant,
}

/// A connection into the environment, and what keeps it.
pub(super) struct Carried {
    pub channel: Dialled,
    _link: Arc<AgentClient>,
}

impl Link {
    pub(super) fn new(pool: Pool, target: Arc<AgentTarget>) -> Self {
        Self {
            pool,
            target,
            kept: Mutex::default(),
        }
    }

    /// Connects to `port` inside the environment.
    pub(super) async fn dial(&self, port: u16, peer: SocketAddr) -> Result<Carried, AgentError> {
        let mut client = self.client().await?;
        let mut dialled = client.dial(INSIDE, port, peer).await;
        if dialled.is_err() && client.is_closed() {
            // It was lost, and nobody had noticed.
            client = self.client().await?;
            dialled = client.dial(INSIDE, port, peer).await;
        }
        Ok(Carried {
            channel: dialled?,
            _link: client,
        })
    }

    async fn client(&self) -> Result<Arc<AgentClient>, AgentError> {
        let mut kept = self.kept.lock().await;
        if let Some(Kept { client, used }) = &mut *kept
            && !client.is_closed()
        {
            *used = Instant::now();
            return Ok(Arc::clone(client));
        }
        let client = AgentClient::connect(&self.pool, &self.target, None).await?;
        *kept = Some(Kept {
            client: Arc::clone(&client),
            used: Instant::now(),
        });
        Ok(client)
    }

    /// Closes the connection when it is of no use any more; to be called from
    /// time to time.
    pub(super) async fn sweep(&self) {
        let mut kept = self.kept.lock().await;
        let is_idle = |kept: &mut Kept| {
            kept.client.is_closed()
                || Arc::strong_count(&kept.client) == 1 && kept.used.elapsed() >= UNUSED
        };
        kept.take_if(is_idle);
    }
}
