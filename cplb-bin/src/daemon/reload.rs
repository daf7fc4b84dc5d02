//! Another configuration takes the place of the one in use: the whole of it, or nothing.
//!
//! A file that was read goes through these steps, one file at a time:
//!
//! 1. Its names are resolved, in a task.
//! 2. [`Daemon::stage`]: it is checked, new virtual IPs are locked, and the load balancer takes its services over, with
//!    the former ports still open.
//! 3. What else may fail and takes time is done in a task: the nftables table leads the virtual IPs of both
//!    configurations, and the keeper has the new groups.
//! 4. [`Daemon::commit`]: the election takes over. An instance that is no longer there hands its addresses over before
//!    it goes, as at a stop; only then the table forgets them.
//!
//! If a step fails, those before it are taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use cplb_config::Config;
use lb_proxy::ReconfigureError;
use lb_proxy::nft::Table;
use netlink_vip::{KeeperHandle, RegisterError, VipGroupConfig};
use vrrp::runner::InstanceId;

use crate::exit::{Failure, Kind};
use crate::logging::ANSWER;

use super::backends::{Answers, Resolved, ResolvedBackends};
use super::desired::{self, Desired};
use super::ipvs::{self, Input, Interfaces, Members};
use super::prepare::{self, Prepared, Reading};
use super::problems::Cause;
use super::sender::EventSender;
use super::table::{TableChange, TableKeeper};
use super::vip::{Change, Election, Instance};
use super::{Daemon, events, resolve, serving};

/// What becomes of the files that were read.
#[derive(Default)]
pub(crate) struct Reloads {
    /// How often a reload was asked for.
    asked: u64,
    reading: ReadingState,
    /// Files whose names are being resolved, by the number of the reload.
    unresolved: BTreeMap<u64, Candidate>,
    /// The one that comes after the one under way.
    next: Option<(Candidate, Answers)>,
    staged: Option<Staged>,
}

/// Whether the file is being read, which may take long.
#[derive(Debug, Default, PartialEq, Eq)]
enum ReadingState {
    #[default]
    Idle,
    Reading,
    /// It may have changed since reading began.
    ReadingOutdated,
}

/// A file that was read.
#[derive(Debug)]
struct Candidate {
    config: Config,
    /// The warnings about it.
    warnings: Vec<String>,
    /// Which reload asked for it.
    number: u64,
}

/// The result of the third step.
#[derive(Debug)]
pub(crate) struct Staging(Result<(), Failure>);

/// A file whose third step is under way.
struct Staged {
    candidate: Candidate,
    answers: Answers,
    backends: ResolvedBackends,
    /// What to do to the election; if there is none yet, it is started.
    change: Option<Change>,
}

impl Reloads {
    /// Whether no file is being put into effect.
    pub(super) fn is_idle(&self) -> bool {
        self.staged.is_none()
    }

    /// The file of a reload whose names are resolved. Those before it were superseded while they waited.
    fn take_resolved(&mut self, number: u64) -> Option<Candidate> {
        let later = self.unresolved.split_off(&(number + 1));
        let candidate = self.unresolved.remove(&number);
        self.unresolved = later;
        candidate
    }
}

impl Daemon {
    /// Reads the configuration again. A wrong one changes nothing.
    pub(super) fn reload(&mut self) {
        if self.stopping {
            return;
        }
        self.reloads.asked += 1;
        if self.reloads.reading != ReadingState::Idle {
            self.reloads.reading = ReadingState::ReadingOutdated;
            return;
        }
        self.reloads.reading = ReadingState::Reading;
        prepare::start(self.args.clone(), EventSender::new(&self.channel));
    }

    /// The file is read, or takes long to be.
    pub(super) fn on_read(&mut self, reading: Reading) {
        let Reading::Done(result) = reading else { return self.refuse(&prepare::slow(&self.args)) };
        let is_outdated = std::mem::take(&mut self.reloads.reading) == ReadingState::ReadingOutdated;
        if self.stopping {
            return;
        }
        if is_outdated {
            self.reloads.reading = ReadingState::Reading;
            return prepare::start(self.args.clone(), EventSender::new(&self.channel));
        }
        match *result {
            Ok(Prepared { config, warnings }) => {
                tracing::info!(target: ANSWER, "the configuration file is read again");
                let number = self.reloads.asked;
                self.resolver.resolve_for_reload(&config, number);
                self.reloads.unresolved.insert(number, Candidate { config, warnings, number });
            }
            Err(failure) => self.refuse(&failure),
        }
    }

    fn refuse(&mut self, failure: &Failure) {
        let why = failure.summary();
        tracing::error!(target: ANSWER, "the configuration is not reloaded: {why}");
        // One line for each error of the file.
        for line in failure.to_string().lines().skip(1).map(str::trim).filter(|line| !line.is_empty()) {
            tracing::error!(target: ANSWER, "the configuration is not reloaded: {line}");
        }
        let text = format!("the configuration is not reloaded, and the former one is in use: {why}");
        self.problems.raise(Cause::Reload, text);
    }

    /// The names of the configuration in use, or of a file, were resolved.
    pub(super) fn on_resolved(&mut self, Resolved { answers, reload }: Resolved) {
        self.resolver.round_ended();
        if let Some(number) = reload {
            if let Some(candidate) = self.reloads.take_resolved(number) {
                self.reloads.next = Some((candidate, answers));
                self.begin_next();
            }
        } else if answers.are_for(&self.config) && self.reloads.staged.is_none() {
            events::names(&answers, &mut self.problems);
            let backends = self.backends.after(&answers);
            if backends != self.backends {
                tracing::info!(addresses = ?backends.resolved(), "backends' names have other addresses");
                self.backends = backends;
                self.update_desired();
            }
        }
    }

    /// Begins with the file that waits, once the one before is in effect.
    fn begin_next(&mut self) {
        let removing = self.election.as_ref().is_some_and(Election::is_removing);
        if self.stopping || removing || self.reloads.staged.is_some() {
            return;
        }
        let Some((candidate, answers)) = self.reloads.next.take() else { return };
        if let Err(failure) = self.stage(candidate, answers) {
            self.clusters.follow(&self.config);
            self.refuse(&failure);
        }
    }

    fn stage(&mut self, candidate: Candidate, answers: Answers) -> Result<(), Failure> {
        let config = &candidate.config;
        self.lock_for(config)?;
        self.clusters.follow_also(config);
        let backends = resolve(config, self.backends.after(&answers), &self.clusters);
        let desired = Desired::new(config, &backends, &self.held());
        let instances = desired::instances(config)?;
        let change = self.election.as_ref().map(|election| election.prepare(instances));
        self.proxy.stage(desired.proxy.clone())?;
        let mut steps =
            Steps { table: Arc::clone(&self.table), desired: desired.table(self.ipvs.rules()), keeper: None };
        if let (Some(election), Some(change)) = (&self.election, &change) {
            election.expect(change);
            steps.keeper = Some((election.keeper.clone(), election.groups(change)));
        }
        let events = EventSender::<Staging>::new(&self.channel);
        tokio::spawn(async move {
            let _ = events.send(Staging(steps.take().await));
        });
        self.reloads.staged = Some(Staged { candidate, answers, backends, change });
        Ok(())
    }

    /// The third step of a reload has been done, or has failed.
    pub(super) fn on_staged(&mut self, Staging(result): Staging) {
        let Some(staged) = self.reloads.staged.take() else { return };
        if self.stopping {
            return;
        }
        let Staged { candidate, answers, backends, change } = staged;
        let Candidate { config, warnings, number } = candidate;
        let result = match (&mut self.election, change) {
            (Some(election), Some(change)) => match result {
                Ok(()) => {
                    election.commit(change);
                    Ok(())
                }
                Err(failure) => {
                    election.forget(&change);
                    Err(failure)
                }
            },
            _ => result.and_then(|()| {
                self.election = Election::start(
                    desired::instances(&config)?,
                    &self.args.state_dir,
                    EventSender::new(&self.channel),
                )?;
                Ok(())
            }),
        };
        match result {
            Ok(()) => {
                self.commit(config, backends);
                self.problems.raise_all(Cause::Configuration, warnings);
                events::names(&answers, &mut self.problems);
                if number == self.reloads.asked {
                    self.problems.clear(&Cause::Reload);
                }
                tracing::info!(target: ANSWER, "the configuration is reloaded");
            }
            Err(failure) => {
                self.clusters.follow(&self.config);
                self.roll_back();
                self.refuse(&failure);
            }
        }
        self.begin_next();
    }

    fn commit(&mut self, config: Config, backends: ResolvedBackends) {
        self.proxy.commit();
        (self.config, self.backends) = (config, backends);
        self.desired = Desired::new(&self.config, &self.backends, &self.held());
        self.verdict.handle(serving::Input::Configured, Instant::now());
        self.problems.clear(&Cause::Services);
        self.report_refusals();
        self.clusters.follow(&self.config);
        if let Some(election) = &mut self.election {
            election.forget_controllers();
        }
        self.update_controllers();
        self.update_ipvs(Input::Configured(self.desired.ipvs.clone(), self.interfaces()));
        self.ipvs.report_faults(&mut self.problems);
        self.change_table();
        self.forget_problems();
        self.use_discovered();
    }

    /// The load balancer and the table as the configuration in use wants them.
    fn roll_back(&mut self) {
        let result = self.proxy.roll_back();
        self.note_services(result);
        self.change_table();
    }

    /// Computes the work anew, after a change of the backends or of the virtual IPs that this node may hold, and hands
    /// it to the load balancer and the election.
    pub(super) fn update_desired(&mut self) {
        self.desired = Desired::new(&self.config, &self.backends, &self.held());
        self.report_refusals();
        self.update_controllers();
        let result = self.proxy.reconfigure(&self.desired.proxy);
        self.note_services(result);
    }

    fn note_services(&mut self, result: Result<(), ReconfigureError>) {
        match result {
            Ok(()) => {
                self.problems.clear(&Cause::Services);
            }
            Err(error) => {
                let text = format!("the load balancer keeps its former services: {error}");
                if self.problems.raise(Cause::Services, &text) {
                    tracing::error!("{text}");
                }
            }
        }
    }

    /// Logs the addresses that may not be backends, once for each change.
    pub(super) fn report_refusals(&mut self) {
        let Desired { proxy, refusals, .. } = &self.desired;
        self.refusals.report(&proxy.services, refusals, &mut self.problems);
    }

    /// Tells the election which controllers there are.
    pub(super) fn update_controllers(&mut self) {
        if let Some(election) = &mut self.election {
            election.add_controllers(self.desired.controllers.clone());
        }
    }

    /// Every virtual IP that this node may hold.
    pub(super) fn held(&self) -> BTreeSet<IpAddr> {
        self.election.iter().flat_map(Election::addresses).collect()
    }

    /// The interfaces of the instances that the election runs.
    pub(super) fn interfaces(&self) -> Interfaces {
        let instances = self.election.as_ref().map(|election| election.instances.values())?;
        Some(instances.map(|instance| (instance.id, instance.interface_name())).collect())
    }

    /// Takes a fact about IPVS, and has the table changed where its rules follow from it.
    pub(super) fn update_ipvs(&mut self, input: Input) {
        let members = self.members();
        if self.ipvs.handle(input, members, Instant::now()).is_some() {
            self.change_table();
        }
    }

    /// The servers behind virtual servers; none where IPVS is not wanted.
    pub(super) fn members(&self) -> Members {
        let balancer = self.proxy.balancer().filter(|_| !self.desired.ipvs.virtual_servers.is_empty());
        ipvs::members(&self.desired.proxy.services, balancer.map(Arc::as_ref))
    }

    /// Runs `nft` in a task of its own; a table that cannot be changed is tried again with each round of the verdict.
    pub(super) fn change_table(&self) {
        let (table, events) = (Arc::clone(&self.table), EventSender::<TableChange>::new(&self.channel));
        let directors = self.ipvs.rules();
        let desired = self.desired.table(directors.clone());
        tokio::spawn(async move {
            let result = table.set(desired).await;
            let _ = events.send(TableChange { result, directors });
        });
    }

    /// Takes down removed instances that have handed over, and goes on with a reload that waited for them.
    pub(super) fn finish_removals(&mut self) {
        let Some(election) = &mut self.election else { return };
        if !election.is_removing() {
            return;
        }
        // Releases are said before they are published, and carried out before their groups are forgotten.
        let status = election.runner.status();
        if !self.events.is_empty() {
            return;
        }
        election.finish_removals(&status);
        if election.is_removing() {
            return;
        }
        // Without virtual IPs the listeners may be fewer.
        self.update_desired();
        self.update_ipvs(Input::Instances(self.interfaces()));
        self.change_table();
        self.forget_problems();
        self.begin_next();
    }

    /// Forgets problems of instances that are no more, and of settings that they no longer have.
    pub(super) fn forget_problems(&mut self) {
        let instance = |id: u32| self.election.as_ref()?.instances.get(&InstanceId(id));
        self.problems.retain(|cause| match cause {
            Cause::LinkLocal(id) => instance(*id).is_some_and(Instance::multicasts_v6),
            Cause::Source(id) => instance(*id).is_some_and(|instance| instance.settings.source.is_some()),
            Cause::Mark | Cause::Congestion => self.proxy.balancer().is_some(),
            Cause::Discovery(path) => self.clusters.follows(path),
            other => other.instance().is_none_or(|id| instance(id).is_some()),
        });
    }
}

/// What of a reload takes time.
struct Steps {
    table: Arc<TableKeeper>,
    /// For the virtual IPs of both configurations; `None` where the new one needs none, and the former one stays.
    desired: Option<Table>,
    keeper: Option<(KeeperHandle, Vec<VipGroupConfig>)>,
}

impl Steps {
    async fn take(self) -> Result<(), Failure> {
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
