//! Does what the policy says, and tells it what comes of it. One task owns
//! the policy; all others send it messages.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use vendetta_proto::ServiceName;

use super::ended::describe;
use super::health;
use super::launch;
use super::output;
use super::policy::{Act, Change, End, Event, News, Now, Policy, Run};
use super::process::Process;
use super::remains;
use super::spec::Spec;
use super::{Concerned, Statuses};
use crate::connection::Agent;
use crate::logs::wall_clock;

/// How long the last output of a process may take to be read before its end is
/// told: longer only when others hold its output open.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Messages that may wait.
pub(super) const QUEUE: usize = 64;

/// What the runner is told.
pub(super) enum Message {
    /// Somebody asks for a change. The answer comes when it is under way.
    Change {
        change: Change,
        services: BTreeSet<ServiceName>,
        reply: oneshot::Sender<Concerned>,
    },
    /// Something happened to a run.
    News(ServiceName, Run, News),
    /// Nothing may be started any more.
    Close,
    /// There is no more time to stop in order.
    Hurry,
}

/// The task that runs the services.
pub struct Runner {
    agent: Arc<Agent>,
    policy: Policy,
    processes: BTreeMap<ServiceName, Arc<Process>>,
    messages: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    statuses: watch::Sender<Statuses>,
    begin: Instant,
    closed: bool,
}

impl Runner {
    pub(super) fn new(
        agent: Arc<Agent>,
        sender: mpsc::Sender<Message>,
        messages: mpsc::Receiver<Message>,
        statuses: watch::Sender<Statuses>,
    ) -> Self {
        let begin = Instant::now();
        let plans = agent.settings.services.iter();
        let plans = plans.map(|(name, spec)| (name.clone(), spec.plan.clone()));
        Self {
            policy: Policy::new(plans.collect(), now(begin)),
            agent,
            processes: BTreeMap::new(),
            messages,
            sender,
            statuses,
            begin,
            closed: false,
        }
    }

    /// Runs until the agent has stopped.
    pub async fn run(mut self) {
        let closing = self.agent.closing.clone();
        self.end_remains();
        self.publish();
        loop {
            let next = self.policy.next().map(|at| self.begin + at);
            let tick = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = closing.cancelled() => return,
                Some(message) = self.messages.recv() => self.hear(message),
                () = tick => self.step(Event::Tick),
            }
        }
    }

    fn end_remains(&self) {
        let settings = &self.agent.settings;
        for service in settings.services.keys() {
            if remains::end(&settings.log_dir, service)
                && let Some(log) = self.agent.services.logs().get(service)
            {
                log.note("killed: the agent that had started it was");
            }
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Change {
                change,
                services,
                reply,
            } => {
                if self.closed && change != Change::Stop {
                    let _ = reply.send(None);
                    return;
                }
                let concerned = self.policy.concerned(change, &services);
                self.step(Event::Request(change, services));
                let _ = reply.send(Some(concerned));
            }
            Message::News(service, run, news) => self.step(Event::News(service, run, news)),
            Message::Close => self.closed = true,
            Message::Hurry => self.step(Event::Hurry),
        }
    }

    /// One step of the policy, and what follows from it at once.
    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.policy.step(event, now(self.begin)) {
                if let Act::Start(run) = effect.act {
                    let news = self.start(&effect.service, run);
                    events.push(Event::News(effect.service, run, news));
                } else {
                    self.carry_out(&effect.service, effect.act);
                }
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        let mut services = self.policy.statuses();
        for status in &mut services {
            status.port = self
                .agent
                .settings
                .services
                .get(&status.name)
                .and_then(|spec| spec.port);
        }
        self.statuses.send_if_modified(|current| {
            let changed = **current != services;
            if changed {
                *current = Arc::new(services);
            }
            changed
        });
    }

    fn process(&self, service: &ServiceName, run: Run) -> Option<&Arc<Process>> {
        let process = self.processes.get(service);
        process.filter(|process| process.run == run)
    }

    fn carry_out(&mut self, service: &ServiceName, act: Act) {
        match act {
            Act::Start(_) => {}
            Act::Ask(run) => {
                if let Some(process) = self.process(service, run) {
                    process.ask();
                }
            }
            Act::Kill(run) => {
                if let Some(process) = self.process(service, run) {
                    process.kill();
                }
            }
            Act::Clear(run) => {
                let (service, sender) = (service.clone(), self.sender.clone());
                let process = self.process(&service, run).cloned();
                self.agent.tasks.spawn(async move {
                    if let Some(process) = process {
                        process.clear().await;
                    }
                    let _ = sender
                        .send(Message::News(service, run, News::Cleared))
                        .await;
                });
            }
            Act::Probe(run) => self.probe(service, run),
            Act::Note(text) => {
                if let Some(log) = self.agent.services.logs().get(service) {
                    log.note(&text);
                }
            }
        }
    }

    fn start(&mut self, service: &ServiceName, run: Run) -> News {
        let Some(spec) = self.agent.settings.services.get(service) else {
            return News::NotStarted("it is not configured".to_owned());
        };
        match self.spawn(service, spec, run) {
            Err(problem) => News::NotStarted(problem),
            Ok(process) => {
                let pid = process.leader.as_raw().cast_unsigned();
                self.processes.insert(service.clone(), process);
                News::Started(pid)
            }
        }
    }

    fn spawn(&self, service: &ServiceName, spec: &Spec, run: Run) -> Result<Arc<Process>, String> {
        let pipe = || -> io::Result<(pipe::Receiver, OwnedFd)> {
            let (ours, theirs) = io::pipe()?;
            Ok((pipe::Receiver::from_owned_fd(ours.into())?, theirs.into()))
        };
        let pipes = pipe().and_then(|stdout| Ok((stdout, pipe()?)));
        let ((stdout, their_stdout), (stderr, their_stderr)) =
            pipes.map_err(|error| format!("cannot make pipes: {error}"))?;
        let child = launch::spawn(&self.agent, spec, &spec.command, their_stdout, their_stderr)
            .map_err(|error| error.to_string())?;
        if let Err(error) = remains::note(&self.agent.settings.log_dir, service, child.pid) {
            tracing::warn!(%service, "cannot note its process: {error}");
        }
        let output = self.agent.services.logs().get(service).map(|log| {
            let keeping = output::keep(Arc::clone(log), stdout, stderr);
            self.agent.tasks.spawn(keeping)
        });
        let process = Arc::new(Process::new(run, child.pid, spec.stop_signal));
        let ended = Arc::clone(&process);
        let (service, sender) = (service.clone(), self.sender.clone());
        self.agent.tasks.spawn(async move {
            // The reaper lives as long as the agent.
            let Ok(status) = child.exit.await else { return };
            ended.has_ended();
            if let Some(output) = output {
                let _ = timeout(LAST_WORDS, output).await;
            }
            let end = End {
                success: status.success(),
                text: describe(status),
            };
            let _ = sender
                .send(Message::News(service, run, News::Ended(end)))
                .await;
        });
        Ok(process)
    }

    fn probe(&self, service: &ServiceName, run: Run) {
        let Some(process) = self.process(service, run) else {
            return;
        };
        let (agent, over) = (Arc::clone(&self.agent), process.over.clone());
        let (service, sender) = (service.clone(), self.sender.clone());
        self.agent.tasks.spawn(async move {
            let Some(spec) = agent.settings.services.get(&service) else {
                return;
            };
            let Some(check) = &spec.check else { return };
            let result = tokio::select! {
                result = health::probe(&agent, spec, check) => result,
                () = over.cancelled() => return,
                () = agent.closing.cancelled() => return,
            };
            let news = News::Probed(result);
            let _ = sender.send(Message::News(service, run, news)).await;
        });
    }
}

fn now(begin: Instant) -> Now {
    Now {
        steady: begin.elapsed(),
        wall: wall_clock(),
    }
}
