//! The task of a workspace: the only one that steps its machine, writes its
//! row, and works on its environment.
//!
//! It takes one message at a time. Work runs beside it, so that a request for
//! something else can cut the work off. An operation belongs to the latest
//! request and ends when the machine rests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::attend::{Attendance, attend};
use super::callers::Callers;
use super::entry::{Entry, Message, NewConfig, Snapshot};
use super::error::Explain;
use super::manager::AgentTarget;
use super::services::Services;
use super::state::{Desired, Effect, Event, Found, Machine, Outcome, Phase, Record, Request, Work};
use super::{ErrorKind, Failure, Operation, ProgressSink, Spec, WorkspaceError, restart, work};
use crate::events::Happening;
use crate::node::AgentAccess;
use crate::provider::{Context, Farewell};

/// How long the engine may take to say what it has of a workspace.
const LOOK_LIMIT: Duration = Duration::from_secs(15);

/// What a work came to.
type Result = std::result::Result<(), WorkspaceError>;

/// Work under way.
struct UnderWay {
    cancel: CancellationToken,
    task: AbortOnDropHandle<Result>,
    /// Where the agent is, once sessions can be opened; none when that is told.
    reached: Option<oneshot::Receiver<Arc<AgentTarget>>>,
}

/// What a workspace is to be made from, and the files that its image is built
/// from; none: those that there are serve on.
struct Resolved {
    spec: Spec,
    context: Option<Vec<u8>>,
}

/// What an actor waits for.
enum Next {
    /// Sessions can be opened in the environment.
    Reached(Arc<AgentTarget>),
    /// The work under way ended.
    Ended(Result),
    /// It was told something; none when nobody is left to tell it anything.
    Told(Option<Message>),
}

pub(super) struct Actor {
    services: Arc<Services>,
    entry: Arc<Entry>,
    inbox: mpsc::Receiver<Message>,
    machine: Machine,
    under_way: Option<UnderWay>,
    /// Where the work under way, and what follows from it, is reported.
    sink: Option<ProgressSink>,
    target: Option<Arc<AgentTarget>>,
    /// What is there as long as sessions can be opened.
    attendance: Option<Attendance>,
    /// The ssh-agents of those who asked for what is under way.
    callers: Callers,
    /// What it is to be made from once the next record is saved.
    resolved: Option<Resolved>,
    failure: Option<Failure>,
    note: Option<String>,
}

impl Actor {
    pub(super) fn new(
        services: Arc<Services>,
        entry: Arc<Entry>,
        inbox: mpsc::Receiver<Message>,
    ) -> Self {
        Self {
            services,
            entry,
            inbox,
            machine: Machine::new(),
            under_way: None,
            sink: None,
            target: None,
            attendance: None,
            callers: Callers::default(),
            resolved: None,
            failure: None,
            note: None,
        }
    }

    /// Runs until the workspace is destroyed or the gateway ends. `stored` is
    /// the record of a workspace that was there before this gateway was.
    pub(super) async fn run(mut self, stored: Option<Record>) {
        let shutdown = self.services.cancel.clone();
        // Cut off anywhere, at the latest by the next start: that is what
        // the saved record is for.
        let _ = shutdown.run_until_cancelled(self.live(stored)).await;
        self.part();
    }

    async fn live(&mut self, stored: Option<Record>) {
        match stored {
            Some(record) => self.recover(record).await,
            None => self
                .services
                .events
                .tell(self.state_event(None, Phase::Created)),
        }
        while self.machine.phase() != Phase::Destroyed {
            match self.next().await {
                Next::Reached(target) => {
                    let sink = self.sink.get_or_insert_default();
                    let attendance = attend(&self.services, &self.entry, &target, sink);
                    self.attendance = Some(attendance.await);
                    self.target = Some(target);
                    self.publish();
                }
                Next::Ended(result) => {
                    let under_way = self.under_way.take();
                    let cancelled =
                        under_way.is_some_and(|under_way| under_way.cancel.is_cancelled());
                    self.ended(result, cancelled).await;
                }
                Next::Told(Some(Message::Ask(ask))) => {
                    let operation = self.asked(ask.request, ask.config, ask.ssh_agent).await;
                    // Who asked may be gone; what they asked for is not.
                    let _ = ask.reply.send(operation);
                }
                Next::Told(Some(Message::Look(done))) => {
                    self.look().await;
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                }
                Next::Told(Some(Message::Restarted { boot })) => self.restarted(boot).await,
                Next::Told(Some(Message::Idle)) => self.idle().await,
                Next::Told(Some(Message::Forget(done))) => {
                    self.forget().await;
                    let _ = done.send(());
                    return;
                }
                Next::Told(None) => return,
            }
        }
    }

    async fn next(&mut self) -> Next {
        loop {
            let Some(under_way) = &mut self.under_way else {
                return Next::Told(self.inbox.recv().await);
            };
            let UnderWay { task, reached, .. } = under_way;
            let told = async {
                match reached {
                    Some(reached) => reached.await,
                    None => std::future::pending().await,
                }
            };
            let result = tokio::select! {
                biased;
                target = told => {
                    under_way.reached = None;
                    match target {
                        Ok(target) => return Next::Reached(target),
                        // The work ends without it.
                        Err(_) => continue,
                    }
                }
                result = task => result,
                message = self.inbox.recv() => return Next::Told(message),
            };
            return Next::Ended(result.unwrap_or_else(|error| Err(self.internal(&error))));
        }
    }

    /// Stops it, unless somebody has begun to use it meanwhile.
    async fn idle(&mut self) {
        let activity = self.entry.activity.clone();
        if let Some(timeout) = self.entry.spec().idle_timeout()
            && self.machine.phase() == Phase::Running
            && activity.leave(timeout)
        {
            // Nobody watches it.
            self.asked(Request::Idle, None, None).await;
            activity.stay();
        }
    }

    /// Gives the workspace up without touching what there is of it.
    async fn forget(&mut self) {
        if let Some(under_way) = self.under_way.take() {
            under_way.cancel.cancel();
        }
        if let Err(error) = self
            .services
            .store
            .forget_workspace(&self.entry.reference.id)
            .await
        {
            tracing::error!(workspace = %self.entry.reference.name, %error, "not forgotten");
        }
        self.services.forget(&self.entry);
        self.rest(|actor| {
            Err(WorkspaceError::not_found(
                actor.entry.reference.name.as_str(),
            ))
        });
    }

    /// Ends the operation, and gives back what its callers lent it.
    fn rest(&mut self, outcome: impl FnOnce(&Self) -> Result) {
        self.callers = Callers::default();
        if let Some(sink) = self.sink.take() {
            sink.end(outcome(self));
        }
    }

    async fn recover(&mut self, record: Record) {
        let never_made = record.desired == Desired::Destroyed && !self.entry.begun();
        let found = match self.inspect().await {
            Ok(found) => Some(found),
            Err(_) if never_made => Some(Found::Absent),
            Err(error) => {
                self.failure = Some(failure("look at the environment", &error));
                None
            }
        };
        tracing::info!(workspace = %self.entry.reference.name, ?record, ?found, "taking up");
        let (machine, effects) = Machine::recovered(record, found);
        self.take(machine, effects).await;
    }

    async fn look(&mut self) {
        if self.machine.work().is_some() {
            return;
        }
        let found = match self.inspect().await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(workspace = %self.entry.reference.name, %error, "looking");
                return;
            }
        };
        let before = self.machine.phase();
        let (machine, effects) = self.machine.step(Event::Found(found));
        if found != Found::Running {
            self.target = None;
        }
        if before == Phase::Running && machine.phase() == Phase::Stopped {
            self.note = Some(self.how_it_ended(found).await);
        }
        self.take(machine, effects).await;
    }

    /// Asks its agent whether what the last start brought up is still there.
    async fn look_inside(&mut self) {
        if let Some(target) = self.target.clone()
            && target.spec.starts_something()
            && restart::is_undone(&self.services.pool, &target).await
        {
            self.restarted(target.boot).await;
        }
    }

    /// Brings up again what a restart from inside ended, unless a start since
    /// the one of this number has done so.
    async fn restarted(&mut self, boot: u64) {
        if boot != self.machine.record().boot || self.machine.work().is_some() {
            return;
        }
        tracing::info!(workspace = %self.entry.reference.name, "restarted from inside");
        let (machine, effects) = self.machine.step(Event::Restarted);
        self.take(machine, effects).await;
    }

    async fn inspect(&self) -> std::result::Result<Found, WorkspaceError> {
        let about = self.entry.context();
        let (_, provider) = self.entry.place()?;
        let found = provider.inspect(&self.entry.reference.id);
        match tokio::time::timeout(LOOK_LIMIT, found).await {
            Ok(found) => found.map_err(|error| error.explain(&about)),
            Err(_) => Err(WorkspaceError::new(
                ErrorKind::Unavailable,
                about,
                "its engine does not answer",
            )),
        }
    }

    /// For one that ended by itself.
    async fn how_it_ended(&self, found: Found) -> String {
        if found == Found::Absent {
            return "its environment was removed by somebody else".to_owned();
        }
        let exit = async {
            let (_, provider) = self.entry.place().ok()?;
            provider.exited(&self.entry.reference.id).await.ok()
        };
        match tokio::time::timeout(LOOK_LIMIT, exit).await {
            Ok(Some(exit)) => format!(
                "it ended by itself: {}",
                work::how_it_ended(self.entry.provider, &exit)
            ),
            _ => "it ended by itself".to_owned(),
        }
    }

    async fn asked(
        &mut self,
        request: Request,
        config: Option<NewConfig>,
        ssh_agent: Option<Arc<dyn AgentAccess>>,
    ) -> Operation {
        if request == Request::Up && self.machine.phase() == Phase::Running {
            // It may have ended, or been restarted from inside, and nobody told us yet.
            self.look().await;
            self.look_inside().await;
        }
        let before = self.machine;
        let (machine, effects) = before.step(Event::Asked(request));
        if before.record().desired == Desired::Destroyed && request != Request::Destroy {
            return Operation::ended(Err(self.entry.being_destroyed()), None);
        }
        self.resolved = match config.map(|config| self.resolve(config)).transpose() {
            Ok(resolved) => resolved,
            Err(error) => return Operation::ended(Err(error), None),
        };
        let joins = before.work().is_some() && machine.record() == before.record();
        if !joins {
            self.callers = Callers::default();
        }
        self.callers.add(ssh_agent);
        if let (true, Some(sink)) = (joins, &self.sink) {
            return sink.watch();
        }
        let sink = ProgressSink::new();
        let operation = sink.watch();
        let superseded = self.sink.replace(sink.clone());
        if let Err(error) = self.carry_out(machine, effects).await {
            // Nothing was saved, so nothing changes.
            self.sink = superseded;
            sink.end(Err(error));
            return operation;
        }
        if let Some(superseded) = superseded {
            superseded.end(Err(self.superseded_by(request)));
        }
        if self.machine.work().is_none() {
            sink.message(word(request), format!("already {}", self.machine.phase()));
            self.rest(|_| Ok(()));
        }
        operation
    }

    /// What a new config comes to.
    fn resolve(&self, new: NewConfig) -> std::result::Result<Resolved, WorkspaceError> {
        match new {
            NewConfig::Replaced { spec, context } => Ok(Resolved {
                spec: *spec,
                context,
            }),
            NewConfig::Changed(overrides) => {
                let config = self.entry.spec().config.clone();
                let spec = Spec::resolve(config, overrides).map_err(|wrong| {
                    let mut error = WorkspaceError::from(wrong);
                    let help = || "ssh vendetta workspace rebuild --help".to_owned();
                    error.remedy.get_or_insert_with(help);
                    error
                })?;
                let context = None;
                Ok(Resolved { spec, context })
            }
        }
    }

    /// Saves the record and, with it, what the workspace is to be made from when
    /// that changes.
    async fn save(&mut self, record: Record) -> Result {
        let (services, about) = (&self.services, self.entry.context());
        let reference = &self.entry.reference;
        let id = &reference.id;
        let Some(Resolved { spec, context }) = self.resolved.take() else {
            let saved = services.store.save_record(id, record).await;
            return saved.map_err(|error| error.explain(&about));
        };
        let contexts = &services.contexts;
        contexts.put(id, record.generation, context).await?;
        let ports = &services.ports;
        let saved = ports.reconfigure(id, &reference.owner, record, &spec.config);
        let saved = match saved.await {
            Ok(None) => Ok(()),
            Ok(Some(refused)) => Err(refused.explain(&about)),
            Err(error) => Err(error.explain(&about)),
        };
        match saved {
            Ok(()) if spec.build().is_none() => contexts.remove(id),
            Ok(()) => contexts.keep_one(id, record.generation),
            Err(_) => contexts.keep_one(id, self.machine.record().generation),
        }
        saved?;
        self.entry.set_spec(spec);
        Ok(())
    }

    fn superseded_by(&self, request: Request) -> WorkspaceError {
        WorkspaceError::new(
            ErrorKind::Conflict,
            self.entry.context(),
            format!("given up, since {} was asked for meanwhile", word(request)),
        )
    }

    /// Whether sessions are opened in an environment that is to be replaced.
    fn serves_on(&self) -> bool {
        let generation = self.machine.record().generation;
        (self.target.as_ref()).is_some_and(|target| target.generation != generation)
    }

    async fn ended(&mut self, result: Result, cancelled: bool) {
        let outcome = match &result {
            Ok(_) => Outcome::Done,
            Err(_) if cancelled => Outcome::Cancelled,
            // One that serves on is left alone until somebody asks.
            Err(_) if self.serves_on() => Outcome::Refused,
            Err(error) if error.kind == ErrorKind::Unavailable => Outcome::Failed,
            Err(_) => Outcome::Refused,
        };
        let (machine, effects) = self.machine.step(Event::Ended(outcome));
        if let (Err(error), Outcome::Failed | Outcome::Refused) = (&result, outcome) {
            tracing::warn!(workspace = %self.entry.reference.name, work = ?self.machine.work(), %error, "work failed");
            self.failure = Some(failure(self.doing(), error));
        }
        self.take(machine, effects).await;
        if self.machine.work().is_none() {
            self.rest(|actor| {
                if !actor.machine.has_failed() {
                    return Ok(());
                }
                let error = result.err().unwrap_or_else(|| actor.not_saved());
                Err(match actor.machine.record().desired {
                    Desired::Destroyed => actor.entry.held_up(error),
                    _ => error,
                })
            });
        }
    }

    /// Goes on to `machine`. When that cannot be saved, the workspace has failed.
    async fn take(&mut self, machine: Machine, effects: Vec<Effect>) {
        if effects
            .iter()
            .any(|effect| matches!(effect, Effect::Begin(_)))
        {
            self.sink.get_or_insert_default();
        }
        if let Err(error) = self.carry_out(machine, effects).await {
            tracing::error!(workspace = %self.entry.reference.name, %error, "not saved");
            self.failure = Some(failure("save", &error));
            self.machine = self.machine.failed();
            self.publish();
        }
    }

    /// Carries the effects out, in order, and goes on to `machine`; or, when
    /// one fails, does neither.
    async fn carry_out(
        &mut self,
        machine: Machine,
        effects: Vec<Effect>,
    ) -> std::result::Result<(), WorkspaceError> {
        let about = self.entry.context();
        let entry = Arc::clone(&self.entry);
        let id = &entry.reference.id;
        for effect in effects {
            match effect {
                Effect::Save(record) => self.save(record).await?,
                Effect::Forget => {
                    let forgotten = self.services.store.forget_workspace(id).await;
                    forgotten.map_err(|error| error.explain(&about))?;
                    self.services.forget(&entry);
                }
                Effect::Cancel => {
                    if let Some(under_way) = &self.under_way {
                        under_way.cancel.cancel();
                    }
                }
                Effect::Begin(work) => self.begin(work),
            }
        }
        self.machine = machine;
        self.publish();
        Ok(())
    }

    fn begin(&mut self, work: Work) {
        let cancel = self.services.cancel.child_token();
        let context = Context {
            progress: self.sink.get_or_insert_default().clone(),
            cancel: cancel.clone(),
            farewell: Farewell::default(),
        };
        let (services, entry) = (Arc::clone(&self.services), Arc::clone(&self.entry));
        let (tell, reached) = oneshot::channel();
        let target = self.target.take();
        let attendance = self.attendance.take();
        let ssh_agent = self.callers.access();
        let spec = entry.spec();
        let task = self.services.tracker.spawn(async move {
            if let Some(attendance) = attendance {
                attendance.ended().await;
            }
            match work {
                Work::Start { generation, boot } => {
                    let start = work::Start {
                        generation,
                        boot,
                        spec,
                        ssh_agent,
                        before: target,
                        reached: tell,
                    };
                    work::start(&services, &entry, start, &context).await
                }
                Work::Stop => work::stop(&services, &entry, target, &context).await,
                Work::Destroy => work::destroy(&entry, &context).await,
            }
        });
        self.failure = None;
        self.note = None;
        self.under_way = Some(UnderWay {
            cancel,
            task: AbortOnDropHandle::new(task),
            reached: Some(reached),
        });
    }

    /// Shows everybody how it is.
    fn publish(&mut self) {
        let phase = self.machine.phase();
        if !self.machine.has_failed() {
            self.failure = None;
        }
        if !matches!(phase, Phase::Starting | Phase::Running | Phase::Failed) {
            self.target = None;
        }
        if let (None, Some(attendance)) = (&self.target, &self.attendance) {
            attendance.end();
        }
        if self.machine.record().desired == Desired::Idle && self.note.is_none() {
            self.note = self
                .entry
                .spec()
                .config
                .idle_timeout
                .map(|timeout| format!("it went idle: nothing had used it for {timeout}"));
        }
        let before = self.entry.snapshot();
        let mut snapshot = Snapshot::new(&self.machine, phase);
        if before.phase == phase {
            snapshot.since = before.since;
        } else {
            if phase == Phase::Running {
                self.entry.activity.restart();
            }
            tracing::info!(workspace = %self.entry.reference.name, from = %before.phase, to = %phase, "state");
            self.services
                .events
                .tell(self.state_event(Some(before.phase), phase));
        }
        snapshot.failure.clone_from(&self.failure);
        snapshot.note.clone_from(&self.note);
        snapshot.target.clone_from(&self.target);
        self.entry.publish(snapshot);
    }

    fn state_event(&self, from: Option<Phase>, to: Phase) -> Happening {
        let failure = self.failure.as_ref().map(|failure| failure.cause.clone());
        Happening::WorkspaceState {
            workspace: self.entry.reference.name.clone(),
            owner: self.entry.reference.owner.clone(),
            node: self.entry.node.name(),
            from: from.map(Phase::as_str),
            to: to.as_str(),
            cause: failure.or_else(|| self.note.clone()),
        }
    }

    fn doing(&self) -> &'static str {
        match self.machine.work() {
            Some(Work::Start { .. }) => "start",
            Some(Work::Stop) => "stop",
            Some(Work::Destroy) => "destroy",
            None => "nothing",
        }
    }

    fn not_saved(&self) -> WorkspaceError {
        WorkspaceError::new(
            ErrorKind::Internal,
            self.entry.context(),
            "its state could not be saved",
        )
    }

    fn internal(&self, error: &dyn std::fmt::Display) -> WorkspaceError {
        WorkspaceError::new(ErrorKind::Internal, self.entry.context(), error.to_string())
    }

    /// Tells those who watch that the gateway ends; the work goes on when it is back.
    fn part(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.end(Err(WorkspaceError::new(
                ErrorKind::Unavailable,
                self.entry.context(),
                "the gateway is stopping; it goes on with this when it is started again",
            )));
        }
    }
}

fn failure(step: &str, error: &WorkspaceError) -> Failure {
    Failure {
        step: step.to_owned(),
        cause: error.problem.clone(),
        remedy: error.remedy.clone(),
    }
}

fn word(request: Request) -> &'static str {
    match request {
        Request::Up => "up",
        Request::Down => "down",
        Request::Idle => "idle",
        Request::Rebuild => "rebuild",
        Request::Destroy => "destroy",
    }
}
