//! The handlers of the subsystems' events.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_proxy::Event as Balancer;
use netlink_vip::{GroupId, KeeperEvent};
use vrrp::runner::InstanceId;

use super::backends::Discovered;
use super::desired;
use super::event::Event;
use super::ids::{group_of, instance_of};
use super::ipvs::{Input, Ipvs, ProbeReport, ReconcilerReport, Sessions};
use super::problems::Cause;
use super::serving::{self, Lease, Observation, Sources};
use super::table::{TableChange, TableState};
use super::vip::{Election, Instance, VipReport};
use super::{Daemon, event_log};

/// The shortest and the longest time between two rounds of evidence for the serving verdict.
const EVIDENCE_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

impl Daemon {
    /// The time between two rounds of evidence: the interval of the deciding service's health checks.
    pub(super) fn evidence_interval(&self) -> Duration {
        let service = desired::deciding_service(&self.config);
        let health = self.config.services.iter().find(|found| Some(found.name.as_str()) == service);
        health
            .map_or(Duration::from_secs(1), |service| service.health.interval)
            .clamp(EVIDENCE_INTERVAL.0, EVIDENCE_INTERVAL.1)
    }

    /// Gathers evidence for the serving verdict, unless a round is in progress.
    pub(super) fn gather_evidence(&mut self) {
        let output = self.verdict.handle(serving::Input::Due, Instant::now());
        self.gather(output.gather);
    }

    fn gather(&self, generation: Option<u64>) {
        let Some(generation) = generation else { return };
        let sources = Sources {
            generation,
            keeper: self.election.as_ref().map(|election| election.keeper.clone()),
            balancer: self.proxy.balancer().cloned(),
            ipvs: self.ipvs.evidence(),
            service: desired::deciding_service(&self.config).map(str::to_owned),
        };
        let (table, channel) = (Arc::clone(&self.table), self.channel.clone());
        tokio::spawn(async move {
            let table = table.resync().await;
            let fault = table.as_ref().and_then(|table| table.fault().map(str::to_owned));
            let observation = sources.gather(fault).await;
            let _ = channel.send(Event::Serving(observation, table));
        });
    }

    pub(super) async fn on_vip(&mut self, event: VipReport) {
        match event {
            VipReport::Runner(event) => {
                let instance = Election::log_fields(self.election.as_ref());
                event_log::log_election(&event, instance, &mut self.problems);
            }
            VipReport::Keeper(event) => self.on_keeper(&event).await,
            VipReport::PlannedRelease(id) => self.release(id).await,
            VipReport::Source { id, source, present } => {
                let instance = Election::log_fields(self.election.as_ref());
                event_log::log_source(id, (source, present), instance, &mut self.problems);
            }
        }
    }

    async fn on_keeper(&mut self, event: &KeeperEvent) {
        let election = self.election.as_ref();
        let instances = election.map(|election| &election.instances);
        let wanted = |group: GroupId| {
            let instance = instances.and_then(|instances| instances.get(&instance_of(group)));
            instance.map(|instance| instance.group.interface.to_string()).unwrap_or_default()
        };
        event_log::log_keeper(event, Election::log_fields(election), wanted, &mut self.problems);
        let multicasts = |group: GroupId| {
            let instance = instances.and_then(|instances| instances.get(&instance_of(group)));
            instance.is_some_and(Instance::multicasts_v6)
        };
        event_log::log_link_local(event, Election::log_fields(election), multicasts, &mut self.problems);
        self.on_addresses(event);
        if let KeeperEvent::SessionsLeft { id, ips } = event {
            let instance = Election::log_fields(self.election.as_ref())(instance_of(*id));
            self.proxy.reset_sessions(&instance, ips).await;
        }
    }

    pub(super) fn on_proxy(&mut self, event: &Balancer) {
        event_log::log_balancer(event, &mut self.problems);
        match event {
            Balancer::TransparentRefused { reason } => {
                let why = format!("listeners cannot be transparent: {reason}");
                self.table.expect_ordinary_listeners(why);
                self.gather_evidence();
            }
            Balancer::BackendUp { .. }
            | Balancer::BackendTerminating { .. }
            | Balancer::BackendDown { .. } => {
                self.gather_evidence();
                self.update_ipvs(Input::Tick);
            }
            _ => {}
        }
    }

    /// Passes the keeper's reports about an instance's addresses and interface to IPVS.
    fn on_addresses(&mut self, event: &KeeperEvent) {
        let input = match event {
            KeeperEvent::Installed { id, .. } => Input::Held(instance_of(*id)),
            KeeperEvent::Removed { id, .. } => Input::Lost(instance_of(*id)),
            KeeperEvent::Interface { id, state } => {
                Input::Interface(instance_of(*id), state.as_ref().map(|state| state.name.clone()))
            }
            KeeperEvent::Resynced { .. } => Input::InitialSync,
            _ => return,
        };
        self.update_ipvs(input);
    }

    pub(super) fn on_ipvs(&mut self, report: ReconcilerReport) {
        self.update_ipvs(Input::Observed(report));
        self.ipvs.report_faults(&mut self.problems);
    }

    pub(super) fn on_probed(&mut self, report: ProbeReport) {
        Ipvs::report_probes(&report, &mut self.problems);
        self.update_ipvs(Input::Probed(report));
        self.ipvs.log_probes();
    }

    /// Announces to directors on other nodes that this one departs. Returns whether they have had time to notice.
    pub(super) fn poll_departure(&mut self) -> bool {
        let now = Instant::now();
        if self.ipvs.departure().is_none() {
            self.update_ipvs(Input::Depart);
            let until = self.ipvs.departure().filter(|until| *until > now);
            if let Some(until) = until {
                let seconds = (until - now).as_secs_f64();
                tracing::info!(seconds, "departing; waiting for directors on other nodes to notice");
            }
        }
        self.ipvs.departure().is_none_or(|until| now >= until)
    }

    pub(super) fn on_observation(&mut self, observation: &Observation, table: Option<&TableState>) {
        let Observation { generation, evidence, fitness } = observation;
        if self.verdict.is_current(*generation) {
            self.report_table(table);
            self.ipvs.log_probes();
            self.update_ipvs(Input::Tick);
            let instance = Election::log_fields(self.election.as_ref());
            event_log::log_fitness(fitness, instance, &mut self.problems);
        }
        let interval = self.evidence_interval();
        let input = serving::Input::Observed { generation: *generation, evidence, fitness, interval };
        let output = self.verdict.handle(input, Instant::now());
        self.gather(output.gather);
        match output.changed {
            Some(Ok(())) => tracing::info!("this node can serve"),
            Some(Err(why)) => tracing::warn!("this node cannot serve: {why}"),
            None => {}
        }
        let Some(election) = &self.election else { return };
        match output.lease {
            // The lease expires if this thread or a check hangs.
            Some(Lease::Until(until, unfit)) => election.runner.serving_except(until, unfit),
            Some(Lease::Withheld) => election.runner.not_serving(),
            None => {}
        }
    }

    /// Reports the state of the table that was observed.
    fn report_table(&mut self, state: Option<&TableState>) {
        match state {
            Some(TableState::Restored) => {
                tracing::warn!("nftables table removed or changed by another program; restored");
                self.problems.clear(&Cause::Table);
            }
            Some(TableState::Failed(why)) => self.report_table_fault(why),
            Some(TableState::Present | TableState::Applied) | None => {
                self.problems.clear(&Cause::Table);
            }
        }
        self.log_delivery();
    }

    pub(super) fn on_table(&mut self, change: TableChange) {
        if let Err(failure) = &change.result {
            self.report_table_fault(failure.message());
        }
        self.log_delivery();
        self.update_ipvs(Input::RulesApplied(change.directors));
    }

    fn report_table_fault(&mut self, why: &str) {
        if self.problems.raise(Cause::Table, why) {
            tracing::warn!("{why}");
        }
    }

    /// Removes the IPVS services of an instance, then its addresses: unless the addresses are already gone or claimed
    /// again.
    async fn release(&mut self, id: InstanceId) {
        let Some(election) = &self.election else { return };
        let Some(instance) = election.instances.get(&id) else { return };
        let (keeper, group) = (election.keeper.clone(), group_of(id));
        let fields = Election::log_fields(Some(election))(id);
        if !keeper.defers_release(group) {
            return;
        }
        if !self.ipvs.is_available() {
            // The proxy served in place of IPVS. No other node continues its sessions, and the keeper does not reset those of
            // lasting addresses.
            let lasting: Vec<IpAddr> = instance.group.lasting.iter().copied().collect();
            self.proxy.reset_sessions(&fields, &lasting).await;
        }
        let sessions = if instance.group.lasting.is_empty() { Sessions::End } else { Sessions::Continue };
        self.update_ipvs(Input::PlannedRelease(id, sessions));
        if sessions == Sessions::End {
            self.ipvs.withdrawn(&fields).await;
        }
        keeper.finish_release(group);
    }

    pub(super) fn on_discovered(&mut self, discovered: Discovered) {
        let kubeconfig = discovered.kubeconfig.clone();
        self.backends.clusters.update(discovered, &self.config);
        let faults = self.backends.clusters.faults(&kubeconfig);
        let cause = Cause::Discovery(kubeconfig);
        if faults.is_empty() {
            self.problems.clear(&cause);
        } else {
            self.problems.raise_all(cause, faults);
        }
        self.use_discovered();
    }

    /// Resolves the backends again, and applies a change.
    pub(super) fn use_discovered(&mut self) {
        let backends = self.backends.resolve(&self.config, self.backends.resolved.clone());
        if backends != self.backends.resolved && self.reloads.is_idle() {
            self.backends.resolved = backends;
            self.update_desired();
            self.update_ipvs(Input::Tick);
        }
    }
}
