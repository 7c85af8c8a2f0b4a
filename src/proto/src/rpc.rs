//! What the gateway asks of an agent, and what the agent answers: JSON, one
//! value a line, on an SSH session channel with the subsystem [`SUBSYSTEM`].
//!
//! A channel carries one [`Request`], then any number of [`Answer`]s. The agent
//! ends the channel after the last one; the gateway may end it at any time,
//! which stops the watching and not what was asked for. Only the gateway may use
//! it, on connections that it makes for itself
//! ([`FOR_CLIENT`](crate::agent::FOR_CLIENT)).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{ServiceName, TerminalName};

/// Name of the SSH subsystem (RFC 4254 section 6.5).
pub const SUBSYSTEM: &str = "agent@vendetta";

/// Longest line either side sends, in bytes; a longer one is an error.
pub const MAX_LINE: usize = 1 << 20;

/// Milliseconds since the Unix epoch.
pub type Millis = u64;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// [`Answer::Services`] now and, with `follow`, whenever something changed.
    Services {
        /// Go on until the channel is closed.
        follow: bool,
    },
    /// Starts services with all they depend on; those that run are left alone,
    /// one that waits for its back-off is started at once. Answers with
    /// [`Answer::Services`] as it goes, until all of them have settled
    /// ([`ServiceStatus::settled`]), and ends with [`Answer::Done`].
    Start {
        /// Which; none: all.
        services: BTreeSet<ServiceName>,
    },
    /// Stops services, and before them those that depend on them. Answers as `Start` does.
    Stop {
        /// Which; none: all.
        services: BTreeSet<ServiceName>,
    },
    /// Stops and starts services; those that depend on them keep running.
    /// Answers as `Start` does.
    Restart {
        /// Which; none: all.
        services: BTreeSet<ServiceName>,
    },
    /// What services wrote: [`Answer::Log`] for each line, oldest first.
    Logs {
        /// Whose; none: of all, merged by time.
        services: BTreeSet<ServiceName>,
        /// Go on until the channel is closed.
        follow: bool,
        /// Only so many of the last lines.
        tail: Option<u32>,
        /// Nothing older than this.
        since: Option<Millis>,
    },
    /// TCP ports on which processes of the environment listen:
    /// [`Answer::Ports`] now and, with `follow`, whenever that changed.
    Ports {
        /// Go on until the channel is closed.
        follow: bool,
    },
    /// Remembers a word until the agent ends; [`Answer::Marked`] says whether
    /// it was known before. The gateway keeps what it has done in this start
    /// of the environment with it (its `up` hook), so that its own restart
    /// does not do it again.
    Mark {
        /// The word.
        mark: String,
    },
    /// Terminals that outlive their clients: [`Answer::Terminals`].
    Terminals,
    /// Ends the programs of terminals (SIGHUP, after a grace SIGKILL): [`Answer::Done`].
    EndTerminal {
        /// Their name.
        name: TerminalName,
        /// Only this user's.
        user: Option<String>,
    },
    /// Whether a word was remembered: [`Answer::Marked`].
    IsMarked {
        /// The word.
        mark: String,
    },
    /// Lets people log in to the agent themselves, in place of those who were
    /// let in before: [`Answer::Admitted`], and then nothing, until the channel
    /// ends. Then nobody is let in any more but those whom a later channel admits.
    /// Who is connected and no longer let in is cut off.
    Admit {
        /// Who.
        guests: Guests,
    },
}

/// Who may log in to an agent besides the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guests {
    /// Fingerprints ("SHA256:…") of the keys that may.
    pub keys: BTreeSet<String>,
    /// Fingerprints of the authorities whose user certificates may.
    pub authorities: BTreeSet<String>,
    /// The users that such a certificate may be for: one of its principals.
    pub users: BTreeSet<String>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// All services, by name.
    Services {
        /// How each is.
        services: Vec<ServiceStatus>,
    },
    /// One line of a service's output.
    Log(LogLine),
    /// All listening TCP ports.
    Ports {
        /// By port.
        ports: Vec<ListeningPort>,
    },
    /// All terminals, by user and name.
    Terminals {
        /// How each is.
        terminals: Vec<TerminalStatus>,
    },
    /// Whether a word was remembered before.
    Marked {
        /// It was.
        before: bool,
    },
    /// Those whom [`Request::Admit`] names are let in, and nobody else.
    Admitted,
    /// What was asked for has settled, well or not; the statuses before say how.
    Done,
    /// The request was refused or cannot be carried out.
    Error {
        /// What is wrong.
        problem: String,
        /// Whether the request names what is not there.
        not_found: bool,
    },
}

/// A terminal that outlives its clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalStatus {
    /// Its name.
    pub name: TerminalName,
    /// Whose it is, of the environment's users.
    pub user: String,
    /// When it was started.
    pub since: Millis,
    /// How many clients show it.
    pub attached: u32,
}

/// What a service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Not asked for, or stopped on request.
    Stopped,
    /// Waits until what it depends on is healthy.
    Waiting,
    /// Runs; its health check has not passed yet.
    Starting,
    /// Runs, and its health check passes; without one: it has run for a moment.
    Healthy,
    /// Runs, and its health check fails.
    Unhealthy,
    /// Ended, and is started again when its back-off is over.
    BackingOff,
    /// Is being stopped.
    Stopping,
    /// Ended with status 0, and is not to be started again.
    Exited,
    /// Ended with a failure, or could not be started, and is not to be started again.
    Failed,
}

impl ServiceState {
    /// The word shown to people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::BackingOff => "backing-off",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Failed => "failed",
        }
    }
}

/// Whether what was last asked of a service has come to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settled {
    /// Under way.
    NotYet,
    /// As asked: healthy, ended with status 0, or stopped.
    Well,
    /// Unhealthy, failed, crashing over and over, or waiting for one that is.
    Badly,
}

/// How one service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// What it is doing.
    pub state: ServiceState,
    /// Whether what was asked for is so.
    pub settled: Settled,
    /// Since when it is in this state.
    pub since: Millis,
    /// Its main process.
    pub pid: Option<u32>,
    /// Its port, from its config.
    pub port: Option<u16>,
    /// How often it was started again by itself since it was last asked for.
    pub restarts: u32,
    /// How its process last ended, for people: "exit status 1", "killed by SIGSEGV".
    pub ended: Option<String>,
    /// Why it is as it is, for people: the last failure of its health check,
    /// what it waits for, why it cannot be started.
    pub reason: Option<String>,
    /// When a back-off is over.
    pub next_start: Option<Millis>,
}

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// What the supervisor says about the service: starts, ends, health.
    Supervisor,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Whose.
    pub service: ServiceName,
    /// When it was read.
    pub time: Millis,
    /// From where.
    pub stream: Stream,
    /// The text without its end of line; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// A TCP port on which something listens inside the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningPort {
    /// The port.
    pub port: u16,
    /// The address it is bound to, such as "0.0.0.0", "127.0.0.1" or "::".
    pub address: String,
    /// The process, when it can be told.
    pub pid: Option<u32>,
    /// Its program's name, when it can be told.
    pub program: Option<String>,
    /// The service it belongs to.
    pub service: Option<ServiceName>,
}
