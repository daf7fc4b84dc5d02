//! The handlers of the subsystems' events.

use std::net::IpAddr;

use lb_proxy::Event as Balancer;
use netlink_vip::{GroupId, KeeperEvent};
use vrrp::runner::InstanceId;

use super::backends::{Discovered, Resolved};
use super::ids::{group_of, instance_of};
use super::ipvs::{Input, Ipvs, ProbeReport, ReconcilerReport, Sessions};
use super::problems::Cause;
use super::table::{Reason, TableChange, TableState, degraded_delivery};
use super::vip::{Election, Instance, VipReport};
use super::{Daemon, event_log};

impl Daemon {
    pub(super) async fn on_vip(&mut self, event: VipReport) {
        match event {
            VipReport::Runner(event) => {
                let instance = Election::log_fields(self.election.as_ref());
                event_log::log_election(&event, instance, &mut self.problems);
                self.record_election(&event);
            }
            VipReport::Keeper(event) => self.on_keeper(&event).await,
            VipReport::PlannedRelease(id) => self.withdraw_and_release(id).await,
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
        if matches!(event, KeeperEvent::Interface { .. }) {
            // The channel opens at once, so that the others know this node before it would take the addresses.
            self.update_group();
        }
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

    /// Reports the state of the table that was observed.
    pub(super) fn report_table(&mut self, state: Option<&TableState>) {
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

    /// Logs the delivery of connections, once per change.
    fn log_delivery(&mut self) {
        let delivered = self.delivered();
        for (endpoint, now) in
            delivered.iter().filter(|(endpoint, now)| self.delivered.get(endpoint) != Some(now))
        {
            let (vip, port, mode) = (endpoint.ip(), endpoint.port(), now.mode());
            match &now.reason {
                None => tracing::info!(%vip, port, %mode, "delivery of connections"),
                Some(reason @ Reason::Unavailable(_)) => {
                    tracing::warn!(%vip, port, %mode, %reason, "delivery of connections");
                }
                Some(reason) => tracing::info!(%vip, port, %mode, %reason, "delivery of connections"),
            }
        }
        self.problems.raise_all(Cause::Delivery, degraded_delivery(&delivered));
        self.delivered = delivered;
    }

    fn report_table_fault(&mut self, why: &str) {
        if self.problems.raise(Cause::Table, why) {
            tracing::warn!("{why}");
        }
    }

    /// Carries out a deferred release: removes the IPVS services of an instance, then lets the keeper remove its addresses;
    /// does nothing if they are already gone or claimed again.
    async fn withdraw_and_release(&mut self, id: InstanceId) {
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

    /// Takes the end of a round of name resolution, for the configuration in use or for a reload.
    pub(super) fn on_resolved(&mut self, Resolved { answers, reload }: Resolved) {
        self.backends.resolver.round_ended();
        if let Some(number) = reload {
            self.on_resolved_for_reload(number, answers);
        } else if answers.are_for(&self.config) && self.reloads.is_idle() {
            event_log::log_names(&answers, &mut self.problems);
            let backends = self.backends.resolved.after(&answers);
            if backends != self.backends.resolved {
                tracing::info!(addresses = ?backends.resolved(), "backend names resolve to other addresses");
                self.backends.resolved = backends;
                self.update_desired();
                self.update_ipvs(Input::Tick);
            }
        }
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
}
