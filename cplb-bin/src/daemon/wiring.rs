//! The consequences of a change in one subsystem for the others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use lb_proxy::ReconfigureError;
use vrrp::runner::InstanceId;

use super::Daemon;
use super::desired::Desired;
use super::ipvs::{self, Input, Interfaces, Members};
use super::problems::Cause;
use super::sender::EventSender;
use super::table::TableChange;
use super::vip::{Election, Instance};

impl Daemon {
    /// Resolves the backends again, and applies a change.
    pub(super) fn use_discovered(&mut self) {
        let backends = self.backends.resolve(&self.config, self.backends.resolved.clone());
        if backends != self.backends.resolved && self.reloads.is_idle() {
            self.backends.resolved = backends;
            self.update_desired();
            self.update_ipvs(Input::Tick);
        }
    }

    /// Computes the desired state again, after a change of the backends or of the virtual IPs that this node may hold, and hands
    /// it to the load balancer and the election.
    pub(super) fn update_desired(&mut self) {
        self.desired = Desired::new(&self.config, &self.backends.resolved, &self.held(), &self.drains);
        self.report_refusals();
        self.update_controllers();
        let result = self.proxy.reconfigure(&self.desired.proxy);
        self.report_reconfigured(result);
    }

    pub(super) fn report_reconfigured(&mut self, result: Result<(), ReconfigureError>) {
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
        self.backends.refusals.report(&proxy.services, refusals, &mut self.problems);
    }

    /// Passes the addresses of the controllers to the election.
    pub(super) fn update_controllers(&mut self) {
        if let Some(election) = &mut self.election {
            election.add_controllers(self.desired.controllers.clone());
        }
        self.update_peers();
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

    /// Passes an input to IPVS, and changes the nftables table where the rules change.
    pub(super) fn update_ipvs(&mut self, input: Input) {
        let members = self.members();
        if self.ipvs.handle(input, members, Instant::now()).is_some() {
            self.change_table();
        }
    }

    /// The servers of each service, also without virtual servers: those that were dropped a moment ago still forward.
    pub(super) fn members(&self) -> Members {
        ipvs::members(&self.desired.proxy.services, self.proxy.balancer().map(Arc::as_ref))
    }

    /// Applies the nftables table in a task, since that runs `nft`. A failure is retried with each round of evidence.
    pub(super) fn change_table(&self) {
        let (table, events) = (Arc::clone(&self.table), EventSender::<TableChange>::new(&self.channel));
        let directors = self.ipvs.rules();
        let desired = self.desired.table(directors.clone());
        tokio::spawn(async move {
            let result = table.set(desired).await;
            let _ = events.send(TableChange { result, directors });
        });
    }

    /// Forgets removed instances that have handed over, and continues a reload that waited for them.
    pub(super) fn finish_removals(&mut self) {
        let Some(election) = &mut self.election else { return };
        if !election.is_removing() {
            return;
        }
        // The event of a release is sent before the status shows it, and must be handled while its group is known.
        let status = election.runner.status();
        if !self.events.is_empty() {
            return;
        }
        election.finish_removals(&status);
        if election.is_removing() {
            return;
        }
        // Fewer listeners are needed without virtual IPs.
        self.update_desired();
        self.update_ipvs(Input::Instances(self.interfaces()));
        self.change_table();
        self.forget_problems();
        self.begin_next();
    }

    /// Clears the problems of instances that no longer exist, and of settings that they no longer have.
    pub(super) fn forget_problems(&mut self) {
        let instance = |id: u32| self.election.as_ref()?.instances.get(&InstanceId(id));
        self.problems.retain(|cause| match cause {
            Cause::LinkLocal(id) => instance(*id).is_some_and(Instance::multicasts_v6),
            Cause::Peers(id) => instance(*id).is_some_and(Instance::finds_peers),
            Cause::Source(id) => instance(*id).is_some_and(|instance| instance.settings.source.is_some()),
            Cause::Mark | Cause::Congestion => self.proxy.balancer().is_some(),
            Cause::Discovery(path) => self.backends.clusters.follows(path),
            other => other.instance().is_none_or(|id| instance(id).is_some()),
        });
    }
}
