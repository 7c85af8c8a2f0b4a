//! What the gateway asks about services, logs and ports, on the subsystem
//! [`SUBSYSTEM`](vendetta_proto::rpc::SUBSYSTEM): one request, then answers.
//!
//! Whoever asks is answered by a task of the channel's own, which waits for
//! the client's window with nothing but one answer in hand. So a slow watcher
//! sees fewer of the states in between, and holds up nobody.

mod channel;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::ChannelReadHalf;
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vendetta_proto::nearest;
use vendetta_proto::rpc::{Answer, Millis, Request, Settled};
use vendetta_proto::{ServiceName, TerminalName, rpc};

use crate::connection::{Agent, Connection};
use crate::logs::{Log, Reader};
use crate::supervisor::Change;
use channel::Answers;

/// Time between two looks at the ports, while somebody follows them.
const PORTS_INTERVAL: Duration = Duration::from_millis(1500);
/// Most words that are remembered.
const MOST_MARKS: usize = 1024;
/// Longest word, in bytes.
const LONGEST_MARK: usize = 256;

/// Words that the gateway wants remembered.
#[derive(Debug, Default)]
pub struct Marks(Mutex<BTreeSet<String>>);

/// Why a request is not carried out.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// It is none.
    #[error("{0}; gateway and agent are of different releases, or this is not the gateway")]
    Malformed(String),
    /// It names what is not there.
    #[error("there is no service {name} here{}", hint(name, services))]
    Unknown {
        name: ServiceName,
        services: BTreeSet<ServiceName>,
    },
    /// Nothing may be started any more.
    #[error("the environment is stopping; start it again first")]
    Stopping,
    /// A word is too long, or there are too many.
    #[error("a mark has at most {LONGEST_MARK} bytes, and there are at most {MOST_MARKS}")]
    Mark,
    /// There is no such terminal.
    #[error("there is no terminal {0}")]
    NoTerminal(TerminalName),
    /// The client is gone.
    #[error("the channel is closed")]
    Gone,
}

fn hint(name: &ServiceName, services: &BTreeSet<ServiceName>) -> String {
    match nearest(name.as_str(), services) {
        Some(name) => format!("; did you mean {name}?"),
        None if services.is_empty() => "; it has no services".to_owned(),
        None => {
            let names: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
            format!("; there are {}", names.join(", "))
        }
    }
}

/// Serves one channel to its end; `closed` is cancelled by the client's CLOSE.
pub async fn serve(
    connection: &Connection,
    mut reader: ChannelReadHalf,
    writer: &ChannelWriteHalf<Msg>,
    closed: &CancellationToken,
) {
    let served = async {
        let answers = Answers(writer);
        let answered = match channel::request(&mut reader).await {
            Err(problem) => Err(Refusal::Malformed(problem)),
            Ok(request) => {
                tokio::select! {
                    answered = answer(&connection.agent, &answers, request) => answered,
                    // Nothing more is expected; what comes all the same must not fill the channel.
                    () = channel::drain(&mut reader) => Err(Refusal::Gone),
                }
            }
        };
        let answered = match answered {
            Err(Refusal::Gone) => return,
            Ok(()) => Ok(()),
            Err(refusal) => {
                let error = Answer::Error {
                    problem: refusal.to_string(),
                    not_found: matches!(refusal, Refusal::Unknown { .. } | Refusal::NoTerminal(_)),
                };
                answers.send(&error).await
            }
        };
        if answered.is_ok() {
            let _ = writer.exit_status(0).await;
            let _ = writer.eof().await;
        }
    };
    tokio::select! {
        () = served => {}
        () = connection.gone.cancelled() => {}
        () = closed.cancelled() => {}
        () = connection.agent.stopping.cancelled() => {}
    }
}

async fn answer(
    agent: &Arc<Agent>,
    answers: &Answers<'_>,
    request: Request,
) -> Result<(), Refusal> {
    match request {
        Request::Services { follow } => statuses(agent, answers, follow).await,
        Request::Start { services } => change(agent, answers, Change::Start, services).await,
        Request::Stop { services } => change(agent, answers, Change::Stop, services).await,
        Request::Restart { services } => change(agent, answers, Change::Restart, services).await,
        Request::Logs {
            services,
            follow,
            tail,
            since,
        } => {
            known(agent, &services)?;
            let all = agent.services.logs().all();
            let wanted = |log: &&Arc<Log>| services.is_empty() || services.contains(log.service());
            let logs = all.filter(wanted).cloned().collect();
            read(agent, answers, logs, follow, tail, since).await
        }
        Request::Ports { follow } => ports(agent, answers, follow).await,
        Request::Mark { mark } => {
            let before = agent.marks.add(mark)?;
            answers.send(&Answer::Marked { before }).await
        }
        Request::Terminals => {
            let terminals = agent.terminals.list();
            answers.send(&Answer::Terminals { terminals }).await
        }
        Request::EndTerminal { name, user } => {
            if agent.terminals.end(&name, user.as_deref()) {
                answers.send(&Answer::Done).await
            } else {
                Err(Refusal::NoTerminal(name))
            }
        }
        Request::IsMarked { mark } => {
            let before = agent.marks.has(&mark);
            answers.send(&Answer::Marked { before }).await
        }
    }
}

async fn statuses(agent: &Agent, answers: &Answers<'_>, follow: bool) -> Result<(), Refusal> {
    let mut statuses = agent.services.statuses();
    loop {
        let services = statuses.borrow_and_update().to_vec();
        answers.send(&Answer::Services { services }).await?;
        if !follow || statuses.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn change(
    agent: &Agent,
    answers: &Answers<'_>,
    change: Change,
    services: BTreeSet<ServiceName>,
) -> Result<(), Refusal> {
    known(agent, &services)?;
    let concerned = agent.services.change(change, services).await;
    let concerned = concerned.ok_or(Refusal::Stopping)?;
    let mut statuses = agent.services.statuses();
    loop {
        let services = statuses.borrow_and_update().to_vec();
        let settled = services
            .iter()
            .filter(|status| concerned.contains(&status.name))
            .all(|status| status.settled != Settled::NotYet);
        answers.send(&Answer::Services { services }).await?;
        if settled {
            return answers.send(&Answer::Done).await;
        }
        if statuses.changed().await.is_err() {
            return Err(Refusal::Stopping);
        }
    }
}

fn known(agent: &Agent, services: &BTreeSet<ServiceName>) -> Result<(), Refusal> {
    let there = &agent.settings.services;
    match services.iter().find(|name| !there.contains_key(name)) {
        None => Ok(()),
        Some(name) => Err(Refusal::Unknown {
            name: name.clone(),
            services: there.keys().cloned().collect(),
        }),
    }
}

async fn read(
    agent: &Agent,
    answers: &Answers<'_>,
    logs: Vec<Arc<Log>>,
    follow: bool,
    tail: Option<u32>,
    since: Option<Millis>,
) -> Result<(), Refusal> {
    // What is written from here on is told, and so is not missed by the reader.
    let mut activity = agent.services.logs().activity();
    let opened = spawn_blocking(move || Reader::new(logs, tail, since)).await;
    let mut reader = opened.map_err(|_| Refusal::Stopping)?;
    loop {
        let (lines, back) = spawn_blocking(move || (reader.batch(), reader))
            .await
            .map_err(|_| Refusal::Stopping)?;
        reader = back;
        if !lines.is_empty() {
            answers.send_all(lines.into_iter().map(Answer::Log)).await?;
            continue;
        }
        if !follow {
            return Ok(());
        }
        while !reader.refresh() {
            if activity.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

async fn ports(agent: &Arc<Agent>, answers: &Answers<'_>, follow: bool) -> Result<(), Refusal> {
    let mut told = None;
    loop {
        let ports = agent.ports.list(agent).await;
        if told.as_ref() != Some(&ports) {
            let list = rpc::Answer::Ports {
                ports: ports.to_vec(),
            };
            answers.send(&list).await?;
            told = Some(ports);
        }
        if !follow {
            return Ok(());
        }
        sleep(PORTS_INTERVAL).await;
    }
}

impl Marks {
    /// Remembers a word; whether it was known before.
    fn add(&self, mark: String) -> Result<bool, Refusal> {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.contains(&mark) {
            return Ok(true);
        }
        if mark.len() > LONGEST_MARK || marks.len() >= MOST_MARKS {
            return Err(Refusal::Mark);
        }
        marks.insert(mark);
        Ok(false)
    }

    fn has(&self, mark: &str) -> bool {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.contains(mark)
    }
}
