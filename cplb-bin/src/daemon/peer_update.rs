//! The peers of `unicastPeers: auto`: what is known of them, and what follows from a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use vrrp::runner::{InstanceId, InstanceStatus, Transport};

use super::Daemon;
use super::group::{LinkKey, PeerState};
use super::instance_log::instance_log;
use super::problems::Cause;
use super::vip::{Election, Instance};

impl Daemon {
    /// Computes the peers of instances with `auto` again, and passes a change to the election.
    pub(super) fn update_peers(&mut self) {
        let Some(election) = &self.election else { return };
        let finding: Vec<InstanceId> =
            election.instances.values().filter(|instance| instance.finds_peers()).map(|it| it.id).collect();
        self.auto_peers.retain(|id, _| finding.contains(id));
        if finding.is_empty() || self.stopping || !self.reloads.is_idle() {
            return;
        }
        let (links, own, listed) =
            (self.group.peers_by_link(), self.all_own_addresses(), self.desired.controllers.clone());
        let status = election.runner.status();
        for id in finding {
            if let Some(router) = status.instances.iter().find(|router| router.id == id) {
                let heard = self.routers_heard(router, &links);
                self.auto_peers.entry(id).or_default().hear(heard);
            }
            let Some(election) = &mut self.election else { return };
            let Some(instance) = election.instances.get(&id) else { continue };
            let peers = self.auto_peers.entry(id).or_default();
            let (added, removed) =
                peers.update(Instant::now(), &listed, &own, |ip| instance.has_family_of(ip));
            let fields = Election::log_fields(Some(election))(id);
            if !added.is_empty() || !removed.is_empty() {
                instance_log!(info, fields, ?added, ?removed, "unicast peers changed");
            }
            election.set_peers(id, peers.current());
            if peers.current().is_some() {
                self.problems.clear(&Cause::Peers(id.0));
                continue;
            }
            let text = format!(
                "virtual router {} waits: unicastPeers is `auto`, and no controller is known yet by an address of its family \
                 (backends, discovery, reports of controllers)",
                id.0
            );
            if self.problems.raise(Cause::Peers(id.0), text) {
                instance_log!(info, fields, "waiting until a controller is known");
            }
        }
    }

    /// The routers of an instance that this node hears, or that these hear.
    fn routers_heard(
        &self,
        router: &InstanceStatus,
        links: &BTreeMap<LinkKey, Vec<PeerState>>,
    ) -> Vec<(IpAddr, Instant)> {
        // Members with other software report nothing.
        let mut heard: Vec<_> =
            router.active.map(|active| (active.source, Instant::now())).into_iter().collect();
        let Some(election) = &self.election else { return heard };
        let (Some(interface), Some(instance)) =
            (election.interface(router.id), election.instances.get(&router.id))
        else {
            return heard;
        };
        let group = self.group_number(router);
        let link = LinkKey::of(&interface, !instance.router.router.addresses_v4.is_empty());
        let peers = links.get(&link).into_iter().flatten();
        for peer in peers.filter(|peer| peer.report.instances.iter().any(|it| it.group == group)) {
            // Without keys a report may be forged: no advertisements are sent through a router on its word.
            let is_believed = |ip: &&IpAddr| {
                peer.authenticated || interface.prefixes.iter().any(|prefix| prefix.contains(**ip))
            };
            let others = peer.report.heard.iter().filter(is_believed);
            heard.extend(std::iter::once(&peer.address).chain(others).map(|ip| (*ip, peer.heard)));
        }
        heard
    }

    pub(super) fn all_own_addresses(&self) -> BTreeSet<IpAddr> {
        self.own_addresses().into_iter().chain(self.backends.resolved.node().iter().copied()).collect()
    }

    /// Gives instances of another configuration the peers that are known under it. One that runs goes on with those that it has.
    pub(super) fn with_peers(
        &mut self,
        mut instances: Vec<Instance>,
        controllers: &BTreeSet<IpAddr>,
    ) -> Vec<Instance> {
        let own = self.all_own_addresses();
        for instance in instances.iter_mut().filter(|instance| instance.finds_peers()) {
            let running = self.election.as_ref().and_then(|election| election.instances.get(&instance.id));
            let former = match running.map(|running| &running.router.transport) {
                Some(Transport::Unicast { peers }) => peers.clone(),
                _ => Vec::new(),
            };
            let peers = self.auto_peers.entry(instance.id).or_default();
            peers.hear(former.into_iter().map(|peer| (peer, Instant::now())));
            peers.update(Instant::now(), controllers, &own, |ip| instance.has_family_of(ip));
            let current =
                peers.current().or(running.filter(|running| !running.settings.waits).map(|_| &[][..]));
            instance.set_peers(current);
        }
        instances
    }
}
