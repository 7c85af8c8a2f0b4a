//! The services of the environment: started in order, watched, started again,
//! and stopped in order.
//!
//! | module | idea |
//! |---|---|
//! | [`spec`] | a service's configuration, checked |
//! | [`policy`] | what is to be done; pure |
//! | `runner` | does it: the one task that owns the policy |
//! | `launch` | starts a command as a service does |
//! | `process` | the processes of one run, and their end |
//! | `health` | one try of a health check |
//! | `output` | from a process's output to its log |
//! | `remains` | what a former agent left |
//! | `variables` | what all processes are told about services |

mod ended;
mod health;
mod launch;
mod output;
pub mod policy;
mod process;
mod remains;
mod runner;
pub mod spec;
mod variables;

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use vendetta_proto::ServiceName;
use vendetta_proto::rpc::{ServiceState, ServiceStatus};

pub use policy::Change;
pub use runner::Runner;
pub use variables::variables;

use crate::config::Settings;
use crate::connection::Agent;
use crate::logs::Logs;
use crate::process::Table;
use runner::Message;

/// How all services are, by name.
pub type Statuses = Arc<Vec<ServiceStatus>>;

/// The services a change is about; none when nothing may be started any more.
type Concerned = Option<BTreeSet<ServiceName>>;

/// The supervisor, as others see it.
#[derive(Debug)]
pub struct Supervisor {
    messages: mpsc::Sender<Message>,
    statuses: watch::Receiver<Statuses>,
    logs: Logs,
}

/// What [`runner`] needs of the supervisor besides the agent.
pub struct Inbox {
    sender: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    statuses: watch::Sender<Statuses>,
}

/// The supervisor of the configured services, none of which runs, and what its
/// runner is to be made of.
#[must_use]
pub fn new(settings: &Settings) -> (Supervisor, Inbox) {
    let (sender, messages) = mpsc::channel(runner::QUEUE);
    let (statuses, watched) = watch::channel(Statuses::default());
    let supervisor = Supervisor {
        messages: sender.clone(),
        statuses: watched,
        logs: Logs::new(&settings.log_dir, settings.services.keys()),
    };
    let inbox = Inbox {
        sender,
        messages,
        statuses,
    };
    (supervisor, inbox)
}

/// The task that looks after the services of `agent`.
#[must_use]
pub fn runner(agent: Arc<Agent>, inbox: Inbox) -> Runner {
    Runner::new(agent, inbox.sender, inbox.messages, inbox.statuses)
}

impl Supervisor {
    /// Follows how the services are.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<Statuses> {
        self.statuses.clone()
    }

    /// What they write.
    #[must_use]
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// Asks for a change of `services` (all, when empty) and gives those that it is about;
    /// when this returns the statuses show it. None when the agent is stopping.
    pub async fn change(&self, change: Change, services: BTreeSet<ServiceName>) -> Concerned {
        let (reply, answer) = oneshot::channel();
        let message = Message::Change {
            change,
            services,
            reply,
        };
        self.messages.send(message).await.ok()?;
        answer.await.ok()?
    }

    /// Stops all services and lets nothing start any more: in order, and after
    /// `patience` all that are left at once. Returns when all have stopped.
    pub async fn shut_down(&self, patience: Duration) {
        let _ = self.messages.send(Message::Close).await;
        if self.change(Change::Stop, BTreeSet::new()).await.is_none() {
            return;
        }
        let mut statuses = self.statuses();
        let mut stopped = async || {
            let all = |statuses: &Statuses| {
                let mut states = statuses.iter().map(|status| status.state);
                states.all(|state| state == ServiceState::Stopped)
            };
            let _ = statuses.wait_for(all).await;
        };
        if timeout(patience, stopped()).await.is_err() {
            let _ = self.messages.send(Message::Hurry).await;
            stopped().await;
        }
    }

    /// The processes of all services that run.
    #[must_use]
    pub fn processes(&self, table: &Table) -> HashSet<Pid> {
        let mut found = HashSet::new();
        for (leader, _) in self.leaders() {
            found.insert(leader);
            found.extend(table.below(leader));
            found.extend(table.group(leader));
        }
        found
    }

    /// The service that a process belongs to.
    #[must_use]
    pub fn service_of(&self, table: &Table, pid: Pid) -> Option<ServiceName> {
        let line: Vec<Pid> = table.line(pid).collect();
        let group = table.group_of(pid);
        self.leaders()
            .into_iter()
            .find(|(leader, _)| line.contains(leader) || group == Some(*leader))
            .map(|(_, name)| name)
    }

    fn leaders(&self) -> Vec<(Pid, ServiceName)> {
        let statuses = self.statuses.borrow();
        let running = statuses.iter().filter_map(|status| {
            let pid = Pid::from_raw(status.pid?.cast_signed());
            Some((pid, status.name.clone()))
        });
        running.collect()
    }
}

/// Where the logs of services are kept when the configuration does not say.
#[must_use]
pub fn default_log_dir(socket: &std::path::Path) -> PathBuf {
    socket.with_file_name("log")
}
