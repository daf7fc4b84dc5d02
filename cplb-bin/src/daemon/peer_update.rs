//! The peers of `unicastPeers: auto`: what is known of them, and what follows from a change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use vrrp::LinkPrefix;
use vrrp::runner::{InstanceId, InstanceStatus};

use super::Daemon;
use super::instance_log::instance_log;
use super::problems::Cause;
use super::vip::{Election, Instance};

impl Daemon {
    /// Computes the peers of instances with `auto` again, and passes a change to the election.
    pub(super) fn update_peers(&mut self) {
        let Some(election) = &self.election else { return };
        let finding: Vec<u32> =
            election.instances.values().filter(|instance| instance.finds_peers()).map(|it| it.id.0).collect();
        if finding.is_empty() || self.stopping || !self.reloads.is_idle() {
            return;
        }
        let now = Instant::now();
        let status = election.runner.status();
        let finds_peers = |router: &&InstanceStatus| finding.contains(&router.id.0);
        let routers: Vec<&InstanceStatus> = status.instances.iter().filter(finds_peers).collect();
        let prefixes: Vec<LinkPrefix> = routers
            .iter()
            .filter_map(|router| election.interface(router.id))
            .flat_map(|it| it.prefixes)
            .collect();
        let groups: BTreeSet<u64> = routers.iter().map(|router| self.group_number(router)).collect();
        // Members with other software report nothing.
        self.auto_peers.hear(routers.iter().filter_map(|router| Some((router.active?.source, now))));
        let peers = self.group.peers();
        let of_group =
            peers.iter().filter(|peer| peer.report.instances.iter().any(|it| groups.contains(&it.group)));
        for peer in of_group {
            // Without keys a report may be forged: no advertisements are sent through a router on its word.
            let is_believed =
                |ip: &&IpAddr| peer.authenticated || prefixes.iter().any(|prefix| prefix.contains(**ip));
            let heard = peer.report.heard.iter().filter(is_believed);
            self.auto_peers.hear(std::iter::once(&peer.address).chain(heard).map(|ip| (*ip, peer.heard)));
        }
        let own: BTreeSet<IpAddr> =
            self.own_addresses().into_iter().chain(self.backends.resolved.node().iter().copied()).collect();
        let (added, removed) = self.auto_peers.update(now, &self.desired.controllers, &own);
        if !added.is_empty() || !removed.is_empty() {
            tracing::info!(?added, ?removed, "unicast peers changed");
        }
        if let Some(election) = &mut self.election {
            election.set_peers(self.auto_peers.current());
        }
        let fields = Election::log_fields(self.election.as_ref());
        for id in &finding {
            if self.auto_peers.current().is_some() {
                self.problems.clear(&Cause::Peers(*id));
                continue;
            }
            let text = format!(
                "virtual router {id} waits: unicastPeers is `auto`, and no controller is known yet (backends, discovery, reports \
                 of controllers)"
            );
            if self.problems.raise(Cause::Peers(*id), text) {
                instance_log!(info, fields(InstanceId(*id)), "waiting until a controller is known");
            }
        }
    }

    /// The controllers of the instances with `auto` that this node hears, for the others.
    pub(super) fn heard(&self) -> Vec<IpAddr> {
        let finds_peers = |election: &Election| election.instances.values().any(Instance::finds_peers);
        if !self.election.as_ref().is_some_and(finds_peers) {
            return Vec::new();
        }
        self.group.peers().into_iter().map(|peer| peer.address).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Gives instances of another configuration the peers that are known.
    pub(super) fn with_peers(&self, mut instances: Vec<Instance>) -> Vec<Instance> {
        instances.iter_mut().for_each(|instance| instance.set_peers(self.auto_peers.current()));
        instances
    }
}
