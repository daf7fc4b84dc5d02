//! The IPVS subsystem: the controller, the tasks that do its work, and their reports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lb_proxy::nft::Director;
use vrrp::runner::InstanceId;

use crate::daemon::instance_log::{InstanceFields, instance_log};
use crate::daemon::problems::{Cause, Problems};
use crate::daemon::sender::EventSender;
use crate::status::schema;

use super::RECORDS;
use super::controller::Controller;
use super::input::Input;
use super::plan::{IpvsPlan, Members, servers};
use super::prober::{ProbeReport, ProbeResult, ProbeTarget, ProberHandle};
use super::reconciler::{ReconcilerHandle, ReconcilerReport};
use super::status::Place;

/// The time that a planned release waits for the reconciler to remove the services.
const WITHDRAWAL: Duration = Duration::from_millis(100);

/// IPVS under the configuration in use.
#[derive(Debug)]
pub(crate) struct Ipvs {
    state_dir: PathBuf,
    observations: EventSender<ReconcilerReport>,
    probes: EventSender<ProbeReport>,
    controller: Controller,
    reconciler: Option<ReconcilerHandle>,
    prober: Option<ProberHandle>,
    /// The results of probes that were logged last.
    last_logged: BTreeMap<ProbeTarget, ProbeResult>,
}

impl Ipvs {
    /// IPVS under `plan`, before [`Ipvs::start`]. `interfaces` are those that the configuration names.
    pub(crate) fn new(
        plan: IpvsPlan,
        interfaces: BTreeMap<InstanceId, Option<String>>,
        state_dir: &Path,
        observations: EventSender<ReconcilerReport>,
        probes: EventSender<ProbeReport>,
    ) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            observations,
            probes,
            controller: Controller::new(plan, interfaces),
            reconciler: None,
            prober: None,
            last_logged: BTreeMap::new(),
        }
    }

    /// Starts the tasks where the configuration, or the records of a daemon that crashed, need them.
    pub(crate) fn start(&mut self) {
        let is_wanted = self.is_wanted();
        let needed = is_wanted || RECORDS.iter().any(|name| self.state_dir.join(name).exists());
        if self.reconciler.is_none() && needed {
            let started = ReconcilerHandle::start(self.state_dir.clone(), self.observations.clone());
            self.reconciler = Some(started);
        }
        if self.prober.is_none() && is_wanted {
            self.prober = Some(ProberHandle::start(self.probes.clone()));
        }
    }

    /// Takes an input together with the current servers, and starts the work that follows. Returns the rules for the table,
    /// if they have changed.
    pub(crate) fn handle(&mut self, input: Input, members: Members, now: Instant) -> Option<Vec<Director>> {
        self.controller.record(Input::Members(members), now);
        let is_other_plan = matches!(input, Input::Configured(..));
        let output = self.controller.handle(input, now);
        if is_other_plan {
            self.start();
        }
        if let Some(prober) = &self.prober {
            prober.probe(output.probe);
        }
        if let Some(reconciler) = &self.reconciler {
            if let Some(wanted) = output.wanted {
                reconciler.want(wanted);
            }
            if output.resync {
                reconciler.resync();
            }
        }
        output.rules
    }

    /// Returns whether the configuration has virtual servers.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.controller.plan.is_empty()
    }

    /// Returns whether the kernel has IPVS; true before the first observation.
    pub(crate) fn is_available(&self) -> bool {
        self.controller.is_available()
    }

    /// Returns whether the reconciler's task has ended without a request.
    pub(crate) fn is_dead(&self) -> bool {
        self.reconciler.as_ref().is_some_and(ReconcilerHandle::is_dead)
    }

    /// Returns whether the reconciler runs.
    pub(crate) fn is_running(&self) -> bool {
        self.reconciler.is_some()
    }

    /// The reconciler whose state decides whether this node serves.
    pub(crate) fn evidence(&self) -> Option<ReconcilerHandle> {
        self.reconciler.clone().filter(|_| self.is_wanted())
    }

    /// The rules for the table.
    pub(crate) fn rules(&self) -> Vec<Director> {
        self.controller.rules().to_vec()
    }

    /// The time by which directors on other nodes have noticed that this node departs; `None` while it does not.
    pub(crate) fn departure(&self) -> Option<Instant> {
        self.controller.departure()
    }

    /// Waits until the services of an instance that is handed over are removed, for [`WITHDRAWAL`] at most.
    pub(crate) async fn withdrawn(&self, instance: &InstanceFields) {
        let Some(reconciler) = &self.reconciler else { return };
        if tokio::time::timeout(WITHDRAWAL, reconciler.reconciled()).await.is_err() {
            instance_log!(warn, instance, "IPVS services not removed in time before the handover");
        }
    }

    /// Removes everything from the kernel and ends the tasks. Returns the objects left behind, for the operator.
    pub(crate) async fn end(&mut self) -> Vec<String> {
        match self.reconciler.take() {
            Some(reconciler) => reconciler.end().await,
            None => Vec::new(),
        }
    }

    /// Reports the faults of IPVS where it is wanted.
    pub(crate) fn report_faults(&self, problems: &mut Problems) {
        let observed = self.controller.observed.iter().filter(|_| self.is_wanted());
        let faults: Vec<String> =
            observed.flat_map(|it| it.unavailable.iter().chain(&it.faults)).cloned().collect();
        if faults.is_empty() {
            if problems.clear(&Cause::Ipvs) {
                tracing::info!("IPVS reconciled");
            }
            return;
        }
        let known = problems.of(&Cause::Ipvs);
        for text in faults.iter().filter(|text| !known.contains(text)) {
            tracing::warn!("{text}");
        }
        problems.raise_all(Cause::Ipvs, faults);
    }

    /// Logs the results of probes that have changed.
    pub(crate) fn log_probes(&mut self) {
        let results = &self.controller.report.results;
        self.last_logged.retain(|target, _| results.contains_key(target));
        for (target, result) in results {
            let ProbeTarget { vip, server, .. } = target;
            let former = self.last_logged.insert(*target, *result);
            match result {
                _ if former == Some(*result) => {}
                ProbeResult::NotProbed => {}
                ProbeResult::Accepts if former.is_none() => {}
                ProbeResult::Accepts => tracing::info!(%vip, %server, "real server: {result}"),
                _ => tracing::warn!(%vip, %server, "real server: {result}"),
            }
        }
    }

    /// Reports the problems that a report of the prober shows.
    pub(crate) fn report_probes(report: &ProbeReport, problems: &mut Problems) {
        let refuses = |(target, result): &(&ProbeTarget, &ProbeResult)| {
            **result == ProbeResult::Refuses && report.local.contains_key(&target.server)
        };
        match report.results.iter().find(refuses) {
            Some((ProbeTarget { vip, .. }, _)) => {
                let text = format!(
                    "the server on this node does not listen on {vip}: let it listen on all addresses, or use lbKind NAT"
                );
                problems.raise(Cause::Acceptance, text);
            }
            None => drop(problems.clear(&Cause::Acceptance)),
        }
        match &report.failure {
            Some(why) => {
                let text = format!("real servers cannot be probed for a virtual IP: {why}");
                if problems.raise(Cause::Probing, text.as_str()) {
                    tracing::warn!("{text}");
                }
            }
            None => drop(problems.clear(&Cause::Probing)),
        }
    }

    /// IPVS in `cplb status`.
    pub(crate) fn status(&self, members: &Members) -> Option<schema::Ipvs> {
        let observed = self.reconciler.as_ref()?.observed();
        if !self.is_wanted() {
            return None;
        }
        let controller = &self.controller;
        let virtual_servers = controller.plan.virtual_servers.iter().map(|it| {
            let place = match controller.holds(it) {
                true if controller.is_applied(it) => Place::Directed,
                true => Place::Held,
                false => Place::Elsewhere,
            };
            it.status(&observed, servers(members, it), &controller.report.results, place)
        });
        Some(schema::Ipvs {
            available: observed.unavailable.is_none(),
            virtual_servers: virtual_servers.collect(),
            sync_daemons: observed.daemons.iter().map(|daemon| daemon.state.to_string()).collect(),
            reason: observed.unavailable.clone(),
        })
    }
}
