//! The task that keeps the kernel's IPVS as it should be: services, their servers, and the sync daemons.
//!
//! It resyncs once a second, and at once when it is last_sent that something changed. The kernel's module may come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipvs::reconcile::{Desired, Options, Planner, Table};
use ipvs::{
    Client, DestinationEntry, InterfaceName, RequestError, ServiceEntry, ServiceKey, SyncDaemon, SyncState,
};
use netlink_vip::RealServerConfig;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::daemon::sender::EventSender;

use super::forwarding::Forwarding;
use super::node::Node;
use super::record::Record;
use super::{kube_proxy, sysctls};

/// The time between two reads of the kernel when nothing changes.
const RESYNC_INTERVAL: Duration = Duration::from_secs(1);

/// How long the kernel may take to take everything back.
const END: Duration = Duration::from_secs(5);

/// So many resyncs may fail in a row, for reasons that usually pass, before IPVS counts as missing, and so often what is
/// ours is taken back.
const FAILURES: u8 = 3;

/// What IPVS should have.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) services: Desired,
    /// Interface and id of the sync daemons, if there are to be any.
    pub(crate) sync: Option<(InterfaceName, u32)>,
    pub(crate) sysctls: sysctls::Wanted,
    pub(crate) forwarding: Forwarding,
    /// What this node needs as a server behind directors.
    pub(crate) node: NodeWish,
}

/// What a node is to be as a server behind directors.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum NodeWish {
    #[default]
    Nothing,
    /// Not known yet: what a daemon before this one made stays.
    AsItIs,
    Server(RealServerConfig),
}

/// What IPVS has.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Observed {
    /// Why there is none of it.
    pub(crate) unavailable: Option<String>,
    /// What is not as it should be, for people.
    pub(crate) faults: Vec<String>,
    /// Our services with their servers.
    pub(crate) services: BTreeMap<ServiceKey, (ServiceEntry, Vec<DestinationEntry>)>,
    pub(crate) daemons: Vec<SyncDaemon>,
}

impl Observed {
    fn ready(&self) -> impl Iterator<Item = ServiceKey> {
        let takes = |server: &DestinationEntry| server.destination.weight.0 > 0;
        self.services.iter().filter(move |(_, (_, servers))| servers.iter().any(takes)).map(|(key, _)| *key)
    }
}

/// Something to tell the main thread: whether there is IPVS, what is wrong with it, and what it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) unavailable: Option<String>,
    pub(crate) faults: Vec<String>,
    /// Services with a server that takes connections.
    pub(crate) ready: BTreeSet<ServiceKey>,
}

enum Command {
    Want(Box<Wanted>),
    /// Something changed that the kernel knows.
    Resync,
    /// Answered once what was wanted before is so, or could not be made so.
    Reconciled(oneshot::Sender<()>),
    /// Answered with what is left behind.
    End(oneshot::Sender<Vec<String>>),
}

/// Talks to the task; it ends with [`ReconcilerHandle::end`].
#[derive(Debug, Clone)]
pub(crate) struct ReconcilerHandle {
    commands: UnboundedSender<Command>,
    observed: Arc<Mutex<Observed>>,
    /// The last wish.
    wanted: Arc<Mutex<Option<Wanted>>>,
}

impl ReconcilerHandle {
    /// Starts the task in the current runtime.
    pub(crate) fn start(state_dir: PathBuf, events: EventSender<News>) -> Self {
        let (record, wrong) = Record::open(&state_dir);
        if let Some(why) = wrong {
            tracing::warn!(why, "the record of what is ours in IPVS cannot be read and is put aside");
        }
        let (commands, inbox) = unbounded_channel();
        let observed = Arc::new(Mutex::new(Observed::default()));
        let reconciler = Reconciler {
            client: None,
            node: Arc::new(Mutex::new(Node::new(state_dir))),
            planner: Planner::new(Options::default()),
            record,
            wanted: Wanted::default(),
            has_plan: false,
            failures: 0,
            observed: Arc::clone(&observed),
            last_sent: None,
            events,
        };
        tokio::spawn(reconciler.run(inbox));
        Self { commands, observed, wanted: Arc::default() }
    }

    /// Says what IPVS should have from now on. Nothing is touched before this is said first, so that what a daemon before
    /// this one made stays as far as it is still wanted.
    pub(crate) fn want(&self, wanted: Wanted) {
        let mut last = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&wanted) {
            *last = Some(wanted.clone());
            let _ = self.commands.send(Command::Want(Box::new(wanted)));
        }
    }

    /// Reads the kernel now, and not only when that is due.
    pub(crate) fn resync(&self) {
        let _ = self.commands.send(Command::Resync);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.commands.is_closed()
    }

    /// Waits until IPVS has what was wanted last, as far as that is possible.
    pub(crate) async fn reconciled(&self) {
        let (done, reconciled) = oneshot::channel();
        let _ = self.commands.send(Command::Reconciled(done));
        let _ = reconciled.await;
    }

    /// Removes everything that is ours, and ends the task. Returns what is left behind, for people.
    pub(crate) async fn end(&self) -> Vec<String> {
        let (done, ended) = oneshot::channel();
        let _ = self.commands.send(Command::End(done));
        let left = async { ended.await.unwrap_or_else(|_| vec!["its task ended unexpectedly".to_owned()]) };
        let late = vec![format!("the kernel has not answered within {END:?}")];
        tokio::time::timeout(END, left).await.unwrap_or(late)
    }

    /// What was observed last.
    pub(crate) fn observed(&self) -> Observed {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether a look led to commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changed {
    Nothing,
    Something,
}

struct Reconciler {
    client: Option<Client>,
    node: Arc<Mutex<Node>>,
    planner: Planner,
    record: Record,
    wanted: Wanted,
    /// Whether anything was wanted yet.
    has_plan: bool,
    /// Looks that failed, the last ones.
    failures: u8,
    observed: Arc<Mutex<Observed>>,
    last_sent: Option<News>,
    events: EventSender<News>,
}

impl Reconciler {
    async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        let mut resyncs = tokio::time::interval(RESYNC_INTERVAL);
        resyncs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                command = commands.recv() => {
                    let mut next = command;
                    // Only the last wish counts, so those that wait are taken together.
                    while let Some(command) = next {
                        match command {
                            Command::Want(wanted) => (self.wanted, self.has_plan) = (*wanted, true),
                            Command::Resync => {}
                            Command::Reconciled(done) => waiting.push(done),
                            Command::End(done) => {
                                let _ = done.send(self.take_back().await);
                                return;
                            }
                        }
                        next = commands.try_recv().ok();
                    }
                    if commands.is_closed() && waiting.is_empty() {
                        return;
                    }
                }
                _ = resyncs.tick() => {}
            }
            if self.has_plan {
                self.resync().await;
            }
            for done in waiting {
                let _ = done.send(());
            }
        }
    }

    /// Removes everything; what is left, for people.
    async fn take_back(&mut self) -> Vec<String> {
        self.wanted = Wanted::default();
        let mut left = Vec::new();
        for _ in 0..FAILURES {
            self.resync().await;
            let observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // What went with the kernel's module needs not be removed.
            let missing = observed.unavailable.filter(|_| !self.record.is_empty() && !self.is_missing());
            left = missing.into_iter().chain(observed.faults).collect();
            if left.is_empty() {
                break;
            }
        }
        left
    }

    /// Whether the last look failed because the kernel has no IPVS.
    fn is_missing(&self) -> bool {
        self.failures == 0
    }

    /// Reads the kernel, mends, and reports what is new.
    async fn resync(&mut self) {
        let mut observed = Observed::default();
        // What was changed is looked at again, so that what is shown is what is. Where nothing is wanted or left, the
        // kernel is not asked, as that loads its module.
        let rounds = if self.wanted == Wanted::default() && self.record.is_empty() { 0 } else { 2 };
        for _ in 0..rounds {
            observed = Observed::default();
            match self.reconcile(&mut observed).await {
                Ok(changed) => {
                    self.failures = 0;
                    if changed == Changed::Nothing {
                        break;
                    }
                }
                Err(error) => {
                    observed = self.failed(&error);
                    break;
                }
            }
        }
        observed.faults.extend(self.node().await);
        let interfaces = match &self.wanted.node {
            NodeWish::Server(config) => config.interfaces.as_slice(),
            NodeWish::Nothing | NodeWish::AsItIs => &[],
        };
        observed.faults.extend(self.wanted.forwarding.faults(interfaces));
        if self.wanted != Wanted::default() {
            observed.faults.extend(kube_proxy::fault(kube_proxy::is_here()));
        }
        let news = News {
            unavailable: observed.unavailable.clone(),
            faults: observed.faults.clone(),
            ready: observed.ready().collect(),
        };
        *self.observed.lock().unwrap_or_else(PoisonError::into_inner) = observed;
        if self.last_sent.as_ref() != Some(&news) {
            self.last_sent = Some(news.clone());
            let _ = self.events.send(news);
        }
    }

    /// The kernel answers at once, but not without a thread that waits.
    async fn node(&self) -> Vec<String> {
        let wanted = match &self.wanted.node {
            NodeWish::AsItIs => return Vec::new(),
            NodeWish::Nothing => None,
            NodeWish::Server(config) => Some(config.clone()),
        };
        let node = Arc::clone(&self.node);
        let kept = tokio::task::spawn_blocking(move || {
            node.lock().unwrap_or_else(PoisonError::into_inner).keep(wanted.as_ref())
        });
        kept.await.unwrap_or_else(|error| vec![error.to_string()])
    }

    async fn reconcile(&mut self, observed: &mut Observed) -> Result<Changed, RequestError> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => match Client::spawn() {
                Ok(client) => self.client.insert(client).clone(),
                Err(error) => {
                    observed.unavailable = Some(format!("no netlink socket: {error}"));
                    return Ok(Changed::Nothing);
                }
            },
        };
        let changed = self.services(&client, observed).await;
        observed.faults.extend(sysctls::apply(&self.wanted.sysctls, &mut self.record));
        let changed = changed?;
        self.daemons(&client, observed).await?;
        Ok(changed)
    }

    /// What is known after a look that failed.
    fn failed(&mut self, error: &RequestError) -> Observed {
        if *error == RequestError::Closed {
            self.client = None;
        }
        if matches!(error, RequestError::NoFamily | RequestError::NotPermitted) {
            self.failures = 0;
            return Observed { unavailable: Some(error.to_string()), ..Observed::default() };
        }
        self.failures = self.failures.saturating_add(1);
        let mut last = self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.faults = vec![error.to_string()];
        if self.failures >= FAILURES {
            last.unavailable = Some(error.to_string());
        }
        last
    }

    async fn services(&mut self, client: &Client, observed: &mut Observed) -> Result<Changed, RequestError> {
        let mut table = Table::default();
        for entry in client.services().await? {
            let key = entry.service.key();
            let ours = self.record.services().contains(&key);
            let destinations = if ours { client.destinations(&key).await? } else { Vec::new() };
            table.insert(entry.service.clone(), &destinations);
            if ours {
                observed.services.insert(key, (entry, destinations));
            }
        }
        let plan = self.planner.plan(Instant::now(), &self.wanted.services, &table, self.record.services());
        for key in &plan.conflicts {
            observed
                .faults
                .push(format!("the IPVS service {key} exists already and is not cplb's: remove it"));
        }
        if let Err(error) = self.record.claim(&plan.claims) {
            observed.faults.push(format!("IPVS is left alone, as what is ours cannot be recorded: {error}"));
            return Ok(Changed::Nothing);
        }
        let report = client.apply(&plan, |step, outcome| tracing::debug!(%step, ?outcome, "ipvs")).await;
        for (step, error) in report.failures(&plan) {
            observed.faults.push(format!("cannot {step}: {error}"));
        }
        if let Err(error) = self.record.change(|services| report.release(&plan, services)) {
            observed.faults.push(unrecorded(&error));
        }
        match report.stopped {
            Some(error) => Err(error),
            None if plan.is_empty() => Ok(Changed::Nothing),
            None => Ok(Changed::Something),
        }
    }

    /// One that receives and one that sends, on every node: they are per network namespace, and addresses may have
    /// different owners.
    async fn daemons(&mut self, client: &Client, observed: &mut Observed) -> Result<(), RequestError> {
        observed.daemons = client.daemons().await?;
        if let Err(error) = self.record.retain_daemons(&observed.daemons) {
            observed.faults.push(unrecorded(&error));
        }
        for state in [SyncState::MASTER, SyncState::BACKUP] {
            let wanted = self.wanted_daemon(state);
            match observed.daemons.iter().find(|daemon| daemon.state == state) {
                Some(found) if self.record.has_daemon(found) => {
                    if wanted.as_ref().is_some_and(|wanted| same(wanted, found)) {
                        continue;
                    }
                    if let Err(error) = client.stop_daemon(state).await {
                        observed.faults.push(format!("the {state} sync daemon cannot be stopped: {error}"));
                        continue;
                    }
                }
                Some(_) if wanted.is_some() => {
                    observed
                        .faults
                        .push(format!("a {state} sync daemon runs already and is not cplb's: stop it"));
                    continue;
                }
                _ => {}
            }
            let Some(wanted) = wanted else { continue };
            if let Err(error) = self.record.claim_daemon(&wanted) {
                observed.faults.push(unrecorded(&error));
                continue;
            }
            if let Err(error) = client.start_daemon(&wanted).await {
                observed.faults.push(format!("the {state} sync daemon cannot be started: {error}"));
            }
        }
        // What was stopped is forgotten now, as there may be no further look.
        observed.daemons = client.daemons().await?;
        if let Err(error) = self.record.retain_daemons(&observed.daemons) {
            observed.faults.push(unrecorded(&error));
        }
        Ok(())
    }

    fn wanted_daemon(&self, state: SyncState) -> Option<SyncDaemon> {
        let (interface, id) = self.wanted.sync.as_ref()?;
        Some(SyncDaemon::new(state, *interface, *id))
    }
}

fn same(one: &SyncDaemon, other: &SyncDaemon) -> bool {
    one.interface == other.interface && one.sync_id == other.sync_id
}

fn unrecorded(error: &std::io::Error) -> String {
    format!("what is ours in IPVS cannot be recorded: {error}")
}
