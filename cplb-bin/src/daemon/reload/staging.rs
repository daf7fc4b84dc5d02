//! The changes that a reload makes to the parts of the daemon.

use std::sync::Arc;
use std::time::Instant;

use lb_proxy::nft::Table;
use netlink_vip::{KeeperHandle, RegisterError, VipGroupConfig};

use crate::daemon::backends::{Answers, ResolvedBackends};
use crate::daemon::desired::{self, Desired};
use crate::daemon::ipvs::Input;
use crate::daemon::problems::Cause;
use crate::daemon::sender::EventSender;
use crate::daemon::table::TableKeeper;
use crate::daemon::vip::{Change, Election, Instance};
use crate::daemon::{Daemon, event_log, serving};
use crate::exit::{Failure, Kind};
use crate::logging::ANSWER;

use super::transaction::{AT_ONCE, Part, Participants, Transaction};
use super::{Candidate, answer};

/// The result of the task for [`Part::Kernel`].
#[derive(Debug)]
pub(crate) struct Staging(Result<(), Failure>);

/// A file whose task is in progress.
pub(super) struct Staged {
    transaction: Transaction,
    next: Next,
}

/// The state that a reload leads to.
struct Next {
    candidate: Candidate,
    answers: Answers,
    backends: ResolvedBackends,
    desired: Desired,
    /// The instances, until the change to them is known.
    instances: Vec<Instance>,
    /// The change to the election; if there is none yet, it is started.
    change: Option<Change>,
}

/// The daemon, and the state that it is changed to.
struct Parts<'a> {
    daemon: &'a mut Daemon,
    next: &'a mut Next,
}

impl Daemon {
    pub(super) fn stage(&mut self, candidate: Candidate, answers: Answers) -> Result<(), Failure> {
        let backends = self.backends.resolved.after(&answers);
        let (desired, instances) = (Desired::default(), Vec::new());
        let mut next = Next { candidate, answers, backends, desired, instances, change: None };
        let transaction =
            Transaction::default().stage(&AT_ONCE, &mut Parts { daemon: self, next: &mut next })?;
        self.reloads.staged = Some(Staged { transaction, next });
        Ok(())
    }

    /// Takes the result of the task of a reload.
    pub(in crate::daemon) fn on_staged(&mut self, Staging(result): Staging) {
        let Some(Staged { transaction, mut next }) = self.reloads.staged.take() else { return };
        if self.stopping {
            // Neither committed nor rolled back: `take_down` removes everything.
            return;
        }
        let mut parts = Parts { daemon: self, next: &mut next };
        let staged = match result {
            Ok(()) => transaction.stage(&[Part::Election], &mut parts),
            Err(failure) => {
                transaction.roll_back(&mut parts);
                Err(failure)
            }
        };
        match staged {
            Ok(transaction) => {
                transaction.commit(&mut parts);
                self.adopt(next);
            }
            Err(failure) => self.refuse(&failure, next.candidate.number),
        }
        if self.drains_changed {
            self.apply_drains();
        }
        self.begin_next();
    }

    /// Makes the new configuration the one in use, and adapts all parts that were not staged.
    fn adopt(&mut self, next: Next) {
        let Next { candidate: Candidate { config, warnings, number }, answers, backends, .. } = next;
        let is_asked = self.reloads.waiting.is_asked(number);
        let outcome = is_asked.then(|| answer::reloaded(&self.config, &config, &warnings));
        (self.config, self.backends.resolved) = (config, backends);
        self.desired = Desired::new(&self.config, &self.backends.resolved, &self.held(), &self.drains);
        self.verdict.handle(serving::Input::Configured, Instant::now());
        self.problems.clear(&Cause::Services);
        self.report_refusals();
        self.backends.clusters.follow(&self.config);
        self.page.follow(self.config.status_listen, &mut self.problems);
        if let Some(election) = &mut self.election {
            election.forget_controllers();
        }
        self.update_controllers();
        self.update_ipvs(Input::Configured(self.desired.ipvs.clone(), self.interfaces()));
        self.ipvs.report_faults(&mut self.problems);
        self.change_table();
        self.forget_problems();
        self.use_discovered();
        self.problems.raise_all(Cause::Configuration, warnings);
        event_log::log_names(&answers, &mut self.problems);
        if number == self.reloads.requested {
            self.problems.clear(&Cause::Reload);
        }
        tracing::info!(target: ANSWER, "the configuration is reloaded");
        if let Some(outcome) = outcome {
            self.reloads.waiting.conclude(number, &outcome);
        }
    }
}

impl Participants for Parts<'_> {
    fn stage(&mut self, part: Part) -> Result<(), Failure> {
        let Self { daemon, next } = self;
        let config = &next.candidate.config;
        match part {
            Part::HostLock => daemon.host_lock.acquire_for(config, &mut daemon.problems)?,
            Part::Backends => {
                daemon.backends.clusters.follow_also(config);
                next.backends = daemon.backends.resolve(config, next.backends.clone());
            }
            Part::Proxy => {
                next.desired = Desired::new(config, &next.backends, &daemon.held(), &daemon.drains);
                next.instances = daemon.with_peers(desired::instances(config)?, &next.desired.controllers);
                daemon.proxy.stage(next.desired.proxy.clone())?;
            }
            Part::Bridge => {
                if let Some(election) = &mut daemon.election {
                    let change = election.prepare(std::mem::take(&mut next.instances));
                    election.join_added(&change);
                    next.change = Some(change);
                }
            }
            Part::Kernel => {
                let keeper = daemon.election.as_ref().zip(next.change.as_ref());
                let steps = KernelSteps {
                    table: Arc::clone(&daemon.table),
                    desired: next.desired.table(daemon.ipvs.rules()),
                    keeper: keeper
                        .map(|(election, change)| (election.keeper.clone(), election.groups(change))),
                };
                let events = EventSender::<Staging>::new(&daemon.channel);
                tokio::spawn(async move {
                    let _ = events.send(Staging(steps.run().await));
                });
            }
            // A running election is changed by the commit.
            Part::Election if daemon.election.is_some() => {}
            Part::Election => {
                let (instances, events) =
                    (std::mem::take(&mut next.instances), EventSender::new(&daemon.channel));
                daemon.election = Election::start(instances, &daemon.args.state_dir, events)?;
            }
        }
        Ok(())
    }

    fn roll_back(&mut self, part: Part) {
        let Self { daemon, next } = self;
        match part {
            // Maintenance releases a lock that is not needed.
            Part::HostLock => {}
            Part::Backends => daemon.backends.clusters.follow(&daemon.config),
            Part::Proxy => {
                if let Some(result) = daemon.proxy.roll_back(&daemon.desired.proxy) {
                    daemon.report_reconfigured(result);
                }
            }
            Part::Bridge => {
                if let (Some(election), Some(change)) = (&daemon.election, &next.change) {
                    election.leave_added(change);
                }
            }
            Part::Kernel => daemon.change_table(),
            // It is staged last, so it is never rolled back.
            Part::Election => {}
        }
    }

    fn commit(&mut self, part: Part) {
        let Self { daemon, next } = self;
        match part {
            Part::Election => {
                if let (Some(election), Some(change)) = (&mut daemon.election, next.change.take()) {
                    election.commit(change);
                }
            }
            Part::Proxy => daemon.proxy.commit(),
            // Staging was all that they need.
            Part::HostLock | Part::Backends | Part::Bridge | Part::Kernel => {}
        }
    }
}

/// The work for [`Part::Kernel`], done in a task.
struct KernelSteps {
    table: Arc<TableKeeper>,
    /// The table for the virtual IPs of both configurations; `None` where the new one needs none, so that the former table
    /// stays until the commit.
    desired: Option<Table>,
    keeper: Option<(KeeperHandle, Vec<VipGroupConfig>)>,
}

impl KernelSteps {
    async fn run(self) -> Result<(), Failure> {
        if self.desired.is_some() {
            self.table.set(self.desired).await?;
        }
        let Some((keeper, groups)) = self.keeper else { return Ok(()) };
        let set = tokio::task::spawn_blocking(move || keeper.set_groups(groups)).await;
        set.map_err(|error| Failure::new(Kind::Internal, error))?.map_err(|error| refused_groups(&error))
    }
}

fn refused_groups(error: &RegisterError) -> Failure {
    Failure::new(Kind::System, format_args!("cannot manage the virtual IPs: {error}"))
}
