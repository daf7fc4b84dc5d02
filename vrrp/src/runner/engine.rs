//! The event loop: read the sockets, handle commands, handle deadlines, publish, sleep.

mod interfaces;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::handle::Command;
use super::instance::Instance;
use super::opener::{Opened, Opener};
use super::outside::Outside;
use super::realtime::{self, ForcedSleep};
use super::status::{Punctuality, RunnerStatus};
use super::timer::DeadlineTimer;
use super::{InstanceConfig, InstanceId, RunnerEvent, RunnerOptions, SpawnError, VipKeeper, socket};
use crate::router::{self, Release, StateName};

/// The longest time that a change stays unpublished.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);

/// The time that the routers have to resign when all handles are gone.
const ABANDONED: Duration = Duration::from_secs(5);

/// The most commands that one iteration handles.
const BATCH: usize = 1024;

/// The owner's end of the runner.
pub(super) struct Owner {
    pub(super) commands: UnboundedReceiver<Command>,
    pub(super) status: Arc<ArcSwap<RunnerStatus>>,
    pub(super) keeper: Box<dyn VipKeeper>,
    pub(super) events: Box<dyn Fn(RunnerEvent) + Send>,
}

/// All routers of the thread.
pub(super) struct Engine {
    instances: BTreeMap<InstanceId, Instance>,
    deadlines: BTreeSet<(Instant, InstanceId)>,
    outside: Outside,
    opener: Opener,
    opened: UnboundedReceiver<Opened>,
    answers: Vec<Opened>,
    tickets: u64,
    commands: UnboundedReceiver<Command>,
    inbox: Vec<Command>,
    timer: DeadlineTimer,
    sleeper: Option<ForcedSleep>,
    /// The serving verdict for new routers.
    serving: Option<(Instant, BTreeSet<InstanceId>)>,
    controllers: BTreeSet<IpAddr>,
    shutdown_at: Option<Instant>,
    phase: Phase,
    board: Arc<ArcSwap<RunnerStatus>>,
    published: Instant,
    /// Something has changed since then.
    unpublished: Option<Urgency>,
    punctuality: Punctuality,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Resign first.
    ShuttingDown,
    /// Leave everything as it is.
    Aborted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Soon,
    Now,
}

impl Engine {
    /// Must be called on the runner's thread, within its runtime.
    pub(super) fn new(
        options: &RunnerOptions,
        instances: Vec<InstanceConfig>,
        owner: Owner,
    ) -> Result<Self, SpawnError> {
        let now = Instant::now();
        let (answers, opened) = unbounded_channel();
        let RunnerOptions { realtime, runaway, .. } = *options;
        let prepare = move || {
            // The runner's own attempt reports a refusal.
            let _refused = realtime.then(|| realtime::schedule(runaway));
        };
        let answer = move |opened| {
            let _ended = answers.send(opened);
        };
        let opener = Opener::spawn(prepare, answer).map_err(SpawnError::Thread)?;
        let mut engine = Self {
            instances: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            outside: Outside::new(owner.keeper, owner.events),
            opener,
            opened,
            answers: Vec::new(),
            tickets: 0,
            commands: owner.commands,
            inbox: Vec::new(),
            timer: DeadlineTimer::new().map_err(SpawnError::Reactor)?,
            sleeper: options.realtime.then(|| ForcedSleep::new(now)),
            serving: None,
            controllers: BTreeSet::new(),
            shutdown_at: None,
            phase: Phase::Running,
            board: owner.status,
            published: now,
            unpublished: Some(Urgency::Now),
            punctuality: Punctuality::default(),
            buffer: vec![0; socket::MAX_PACKET],
        };
        engine.become_punctual(options);
        for config in instances {
            engine.add(config, now);
        }
        engine.publish(now);
        Ok(engine)
    }

    fn become_punctual(&mut self, options: &RunnerOptions) {
        let scheduled =
            if options.realtime { realtime::schedule(options.runaway).map(|()| true) } else { Ok(false) };
        let locked = if options.lock_memory { realtime::lock_memory().map(|()| true) } else { Ok(false) };
        let refused: Vec<String> =
            [&scheduled, &locked].into_iter().filter_map(|got| got.as_ref().err().cloned()).collect();
        self.punctuality = Punctuality {
            realtime: scheduled == Ok(true),
            memory_locked: locked == Ok(true),
            refused: (!refused.is_empty()).then(|| refused.join("; ")),
        };
        if let Some(why) = self.punctuality.refused.clone() {
            self.outside.report(RunnerEvent::RealtimeUnavailable { why });
        }
    }

    /// Runs until it is shut down.
    pub(super) async fn run(mut self) {
        while !self.is_done(Instant::now()) {
            poll_fn(|cx| self.poll_wake(cx)).await;
            self.run_once();
        }
        self.finish();
    }

    fn run_once(&mut self) {
        // Deadlines are compared with the time before the sockets are read: those that pass during the reading wait for
        // the next iteration, so no advertisement that has already arrived can be overlooked.
        let now = Instant::now();
        self.receive_all(now);
        self.take_opened(now);
        self.handle_commands(now);
        self.expire(now);
        let now = Instant::now();
        self.reopen(now);
        if self.unpublished == Some(Urgency::Now) || self.publish_at().is_some_and(|at| at <= now) {
            self.publish(now);
        }
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.sleep_if_busy(now);
        }
    }

    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut awake = self.timer.poll_expired(cx).is_ready();
        for link in self.outside.links.values_mut() {
            awake |= link.poll_readable(cx);
        }
        while let Poll::Ready(Some(answer)) = self.opened.poll_recv(cx) {
            self.answers.push(answer);
        }
        awake |= !self.answers.is_empty();
        while self.inbox.len() < BATCH {
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(command)) => self.inbox.push(command),
                // All handles are gone, so no command to stop can come.
                Poll::Ready(None) if self.phase == Phase::Running => {
                    self.inbox.push(Command::Shutdown(ABANDONED));
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        awake |= !self.inbox.is_empty();
        if awake {
            return Poll::Ready(());
        }
        let now = Instant::now();
        if let Err(error) = self.timer.arm(self.next_deadline(), now) {
            // Without a timer only packets would wake the thread; it polls rather than miss every deadline.
            tracing::debug!(%error, "cannot arm the timer");
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn next_deadline(&self) -> Option<Instant> {
        let routers = self.deadlines.first().map(|(at, _)| *at);
        let retries = self.outside.links.values().filter_map(super::link::Link::retry_at).min();
        [routers, retries, self.publish_at(), self.shutdown_at].into_iter().flatten().min()
    }

    fn publish_at(&self) -> Option<Instant> {
        self.unpublished.map(|_| self.published + PUBLISH_EVERY)
    }

    /// Gives an event to a router and carries out its outputs.
    fn with(&mut self, id: InstanceId, now: Instant, act: impl FnOnce(&mut Instance, &mut Outside)) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let before = instance.router.state();
        act(instance, &mut self.outside);
        instance.perform(&mut self.outside, now);
        let deadline = instance.deadline();
        if instance.filed != deadline {
            if let Some(at) = std::mem::replace(&mut instance.filed, deadline) {
                self.deadlines.remove(&(at, id));
            }
            self.deadlines.extend(deadline.map(|at| (at, id)));
        }
        let after = instance.router.state();
        self.unpublished =
            self.unpublished.max(Some(if before == after { Urgency::Soon } else { Urgency::Now }));
        if after == StateName::Stopped {
            if instance.leaving { self.forget(id) } else { self.retire(id) }
        }
    }

    fn expire(&mut self, now: Instant) {
        // A router sets new deadlines as it handles one; a bound keeps a mistake there from stopping the others.
        for _ in 0..self.instances.len() * 8 {
            let Some((_, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) else { return };
            self.with(id, now, |instance, _| instance.expire(now));
        }
    }

    fn handle_commands(&mut self, now: Instant) {
        for command in std::mem::take(&mut self.inbox) {
            self.unpublished = self.unpublished.max(Some(Urgency::Soon));
            match command {
                Command::Interface(id, interface) => self.place(id, interface, now),
                Command::Vip(id, event) => self.with(id, now, |instance, _| instance.vip(event, now)),
                Command::Serving(until, unfit) => {
                    for id in self.ids() {
                        let command = serving(id, until, &unfit);
                        self.with(id, now, |instance, _| instance.command(command, now));
                    }
                    self.serving = Some((until, unfit));
                }
                Command::NotServing => {
                    self.serving = None;
                    self.command_all(&router::Command::NotServing, now);
                }
                Command::Controllers(controllers) => {
                    self.command_all(&router::Command::Controllers(controllers.clone()), now);
                    self.controllers = controllers;
                }
                Command::ResignAll => self.command_all(&router::Command::Resign, now),
                Command::Resign(id) => {
                    self.with(id, now, |instance, _| instance.command(router::Command::Resign, now));
                }
                Command::Succession(id, [active, successor], until) => {
                    let command = router::Command::Succession { active, successor, until };
                    self.with(id, now, |instance, _| instance.command(command, now));
                }
                Command::HandOver(id) => {
                    self.with(id, now, |instance, _| instance.command(router::Command::HandOver, now));
                }
                Command::Peers(id, peers) => self.with(id, now, |instance, _| instance.set_peers(peers, now)),
                Command::Add(config) => self.add(*config, now),
                Command::Remove(id) => self.with(id, now, |instance, _| {
                    instance.leaving = true;
                    instance.command(router::Command::Resign, now);
                }),
                Command::Shutdown(bound) => self.shut_down(bound, now),
                Command::Abort => self.phase = Phase::Aborted,
                Command::Ping(answer, number) => answer.store(number, Ordering::Relaxed),
            }
        }
    }

    fn command_all(&mut self, command: &router::Command, now: Instant) {
        for id in self.ids() {
            self.with(id, now, |instance, _| instance.command(command.clone(), now));
        }
    }

    fn ids(&self) -> Vec<InstanceId> {
        self.instances.keys().copied().collect()
    }

    fn shut_down(&mut self, bound: Duration, now: Instant) {
        let at = now + bound;
        self.shutdown_at = Some(self.shutdown_at.map_or(at, |earlier| earlier.min(at)));
        if self.phase == Phase::Running {
            self.phase = Phase::ShuttingDown;
        }
        self.command_all(&router::Command::Resign, now);
    }

    fn is_done(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Running => false,
            Phase::Aborted => true,
            Phase::ShuttingDown => {
                self.shutdown_at.is_some_and(|at| at <= now)
                    || self.instances.values().all(|instance| instance.router.state() == StateName::Stopped)
            }
        }
    }

    fn finish(mut self) {
        if self.phase == Phase::ShuttingDown {
            for instance in self.instances.values() {
                if instance.router.state() != StateName::Stopped {
                    self.outside.release(instance.id(), Release::Planned);
                }
            }
        }
        for (_, link) in std::mem::take(&mut self.outside.links) {
            self.opener.close(link.into_fds());
        }
        self.publish(Instant::now());
    }

    fn add(&mut self, config: InstanceConfig, now: Instant) {
        let id = config.id;
        if self.instances.contains_key(&id) {
            self.with(id, now, |instance, _| instance.reconfigure(config, now));
            self.rejoin(id, now);
            return;
        }
        self.instances.insert(id, Instance::new(config, now));
        let command = self.serving.as_ref().map(|(until, unfit)| serving(id, *until, unfit));
        let controllers = self.controllers.clone();
        let stopping = self.phase != Phase::Running;
        self.with(id, now, |instance, _| {
            instance.command(router::Command::Controllers(controllers), now);
            if let Some(command) = command {
                instance.command(command, now);
            }
            if stopping {
                instance.command(router::Command::Resign, now);
            }
        });
    }

    fn publish(&mut self, now: Instant) {
        self.published = now;
        self.unpublished = None;
        self.board.store(Arc::new(RunnerStatus {
            taken: now,
            realtime: self.punctuality.clone(),
            instances: self.instances.values().map(Instance::status).collect(),
            interfaces: self.outside.links.values().map(|link| link.status.clone()).collect(),
        }));
    }
}

/// The command for a router on a node that can serve.
fn serving(id: InstanceId, until: Instant, unfit: &BTreeSet<InstanceId>) -> router::Command {
    if unfit.contains(&id) { router::Command::NotServing } else { router::Command::Serving { until } }
}
