//! The loop of the reconciler, and its requests to the kernel.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipvs::reconcile::{Options, Planner, Table};
use ipvs::{Client, RequestError, SyncDaemon, SyncState};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::daemon::ipvs::node::Node;
use crate::daemon::ipvs::record::Record;
use crate::daemon::ipvs::{kube_proxy, sysctls};
use crate::daemon::sender::EventSender;

use super::{Command, NodePlan, Observed, ReconcilerReport, Wanted};

/// The time between two reads of the kernel when nothing changes.
const RESYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The number of transient failures in a row after which IPVS counts as unavailable, and the number of attempts to remove
/// everything at the end.
const MAX_FAILURES: u8 = 3;

/// The effect of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changed {
    Nothing,
    Something,
}

/// The state of the task.
pub(super) struct Reconciler {
    client: Option<Client>,
    node: Arc<Mutex<Node>>,
    planner: Planner,
    record: Record,
    wanted: Wanted,
    /// Set after the first desired state.
    has_plan: bool,
    /// The number of failed resyncs in a row.
    failures: u8,
    /// Cleared while the kernel has no IPVS.
    has_family: bool,
    observed: Arc<Mutex<Observed>>,
    last_sent: Option<ReconcilerReport>,
    events: EventSender<ReconcilerReport>,
}

impl Reconciler {
    pub(super) fn new(
        node: Node,
        record: Record,
        observed: Arc<Mutex<Observed>>,
        events: EventSender<ReconcilerReport>,
    ) -> Self {
        Self {
            client: None,
            node: Arc::new(Mutex::new(node)),
            planner: Planner::new(Options::default()),
            record,
            wanted: Wanted::default(),
            has_plan: false,
            failures: 0,
            has_family: true,
            observed,
            last_sent: None,
            events,
        }
    }

    /// Runs until [`Command::End`], or until the last handle is dropped.
    pub(super) async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        let mut resyncs = tokio::time::interval(RESYNC_INTERVAL);
        resyncs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                command = commands.recv() => {
                    let mut next = command;
                    // Only the last desired state counts, so all pending commands are taken together.
                    while let Some(command) = next {
                        match command {
                            Command::Want(wanted) => (self.wanted, self.has_plan) = (*wanted, true),
                            Command::Resync => {}
                            Command::Reconciled(done) => waiting.push(done),
                            Command::End(done) => {
                                let _ = done.send(self.remove_all().await);
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

    /// Removes everything. Returns the objects left behind, for the operator.
    async fn remove_all(&mut self) -> Vec<String> {
        self.wanted = Wanted::default();
        let mut left = Vec::new();
        for _ in 0..MAX_FAILURES {
            self.resync().await;
            let observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // The kernel removes everything itself when its module is unloaded.
            let unreachable = observed.unavailable.filter(|_| !self.record.is_empty() && self.has_family);
            left = unreachable.into_iter().chain(observed.faults).collect();
            if left.is_empty() {
                break;
            }
        }
        left
    }

    /// Reads the kernel, repairs the differences, and reports changes.
    async fn resync(&mut self) {
        let mut observed = Observed::default();
        // A second round after changes, so that status shows the result. Without a desired state or a record there is none,
        // because a request would load the kernel's module.
        let rounds = if self.wanted == Wanted::default() && self.record.is_empty() { 0 } else { 2 };
        for _ in 0..rounds {
            observed = Observed::default();
            match self.reconcile(&mut observed).await {
                Ok(changed) => {
                    self.failures = 0;
                    self.has_family = true;
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
            NodePlan::Server(config) => config.interfaces.as_slice(),
            NodePlan::None | NodePlan::Unchanged => &[],
        };
        observed.faults.extend(self.wanted.forwarding.faults(interfaces));
        if self.wanted != Wanted::default() {
            observed.faults.extend(kube_proxy::fault(kube_proxy::is_present()));
        }
        let report = ReconcilerReport {
            unavailable: observed.unavailable.clone(),
            faults: observed.faults.clone(),
            ready: observed.ready().collect(),
        };
        *self.observed.lock().unwrap_or_else(PoisonError::into_inner) = observed;
        if self.last_sent.as_ref() != Some(&report) {
            self.last_sent = Some(report.clone());
            let _ = self.events.send(report);
        }
    }

    /// Reconciles the node in a thread of the pool, since its requests block. Returns the faults.
    async fn node(&self) -> Vec<String> {
        let wanted = match &self.wanted.node {
            NodePlan::Unchanged => return Vec::new(),
            NodePlan::None => None,
            NodePlan::Server(config) => Some(config.clone()),
        };
        let node = Arc::clone(&self.node);
        let reconciled = tokio::task::spawn_blocking(move || {
            node.lock().unwrap_or_else(PoisonError::into_inner).reconcile(wanted.as_ref())
        });
        reconciled.await.unwrap_or_else(|error| vec![error.to_string()])
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

    /// The state to report after a failed resync.
    fn failed(&mut self, error: &RequestError) -> Observed {
        if *error == RequestError::Closed {
            self.client = None;
        }
        self.has_family = *error != RequestError::NoFamily;
        if matches!(error, RequestError::NoFamily | RequestError::NotPermitted) {
            self.failures = 0;
            return Observed { unavailable: Some(error.to_string()), ..Observed::default() };
        }
        self.failures = self.failures.saturating_add(1);
        let mut last = self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.faults = vec![error.to_string()];
        if self.failures >= MAX_FAILURES {
            last.unavailable = Some(error.to_string());
        }
        last
    }

    async fn services(&mut self, client: &Client, observed: &mut Observed) -> Result<Changed, RequestError> {
        let mut table = Table::default();
        for entry in client.services().await? {
            let key = entry.service.key();
            let is_owned = self.record.services().contains(&key);
            let destinations = if is_owned { client.destinations(&key).await? } else { Vec::new() };
            table.insert(entry.service.clone(), &destinations);
            if is_owned {
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
            observed
                .faults
                .push(format!("IPVS is not changed, because its owned services cannot be recorded: {error}"));
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

    /// Reconciles the sync daemons: one that receives and one that sends, on every node, because they are per network
    /// namespace, and each address may be on another node.
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
        // Stopped daemons are removed from the record now, because there may be no further resync.
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
    format!("owned IPVS services cannot be recorded: {error}")
}
