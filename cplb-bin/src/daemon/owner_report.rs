//! The foreign owners of virtual IPs: what is watched, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use vrrp::MacAddr;
use vrrp::owners::ForeignOwner;
use vrrp::runner::{InstanceId, Transport};

use super::Daemon;
use super::instance_log::instance_log;
use super::owners::{Link, Watched};
use super::problems::Cause;
use super::vip::Election;

/// A foreign owner that was logged: the instance, the virtual IP, and the link-layer address.
pub(super) type Logged = BTreeSet<(InstanceId, IpAddr, MacAddr)>;

impl Daemon {
    /// Watches the virtual IPs as the instances and interfaces are, and reports the hosts that answer for them.
    pub(super) fn update_owners(&mut self) {
        let wanted = if self.stopping { BTreeMap::new() } else { self.watched_links() };
        self.owners.set(wanted, self.election.as_ref().map(|election| &election.runner));
        self.report_owners();
        self.report_watches();
    }

    fn watched_links(&self) -> BTreeMap<Link, BTreeMap<InstanceId, Watched>> {
        let mut links = BTreeMap::<Link, BTreeMap<InstanceId, Watched>>::new();
        let Some(election) = &self.election else { return links };
        let peers: BTreeSet<IpAddr> = self.group.peers().into_iter().map(|peer| peer.address).collect();
        for instance in election.instances.values() {
            let Some(interface) = election.interface(instance.id).filter(|interface| interface.up) else {
                continue;
            };
            let router = &instance.router.router;
            let own = if router.addresses_v4.is_empty() {
                interface.v6.map(IpAddr::V6)
            } else {
                interface.v4.map(IpAddr::V4)
            };
            let Some(own) = own else { continue };
            let unicast: &[IpAddr] = match &instance.router.transport {
                Transport::Multicast => &[],
                Transport::Unicast { peers } => peers,
            };
            let controllers = election.controllers().iter().chain(&peers).chain(unicast).copied();
            let controllers = controllers.filter(|ip| *ip != own).collect();
            let link = Link {
                index: interface.index,
                interface: interface.name.clone(),
                mac: interface.mac,
                source: interface.v6,
            };
            let addresses = instance.addresses().collect();
            let watched = Watched { vrid: router.vrid, own, addresses, controllers };
            links.entry(link).or_default().insert(instance.id, watched);
        }
        links
    }

    fn report_owners(&mut self) {
        let found = self.owners.found();
        let mut named = Logged::new();
        for (id, (interface, owners)) in &found {
            let fields = Election::log_fields(self.election.as_ref())(*id);
            for owner in owners {
                named.insert((*id, owner.ip, owner.mac));
                if !self.logged_owners.contains(&(*id, owner.ip, owner.mac)) {
                    let (ip, mac) = (owner.ip, owner.mac);
                    instance_log!(warn, fields, %ip, %mac, "another host than the Active answers for a virtual IP");
                }
            }
            let texts = owners.iter().map(|owner| self.owner_text(id.0, interface, owner)).collect();
            self.problems.raise_all(Cause::Owner(id.0), texts);
        }
        for (id, ip, mac) in self.logged_owners.difference(&named) {
            let fields = Election::log_fields(self.election.as_ref())(*id);
            instance_log!(info, fields, %ip, %mac, "the other host no longer answers for the virtual IP");
        }
        self.logged_owners = named;
        let gone = |cause: &Cause| matches!(cause, Cause::Owner(id) if !found.contains_key(&InstanceId(*id)));
        self.problems.retain(|cause| !gone(cause));
    }

    fn owner_text(&self, vrid: u32, interface: &str, owner: &ForeignOwner) -> String {
        let ForeignOwner { ip, mac, first, last, controller } = owner;
        let (first, last) = (self.time_of_day(*first), self.time_of_day(*last));
        let why = match controller {
            Some(address) => format!(
                "which is the controller {address}: is the address left over there, or does the network answer from an old \
                 cache (ARP suppression)?"
            ),
            None => "which is no controller: does another host have the address?".to_owned(),
        };
        format!(
            "virtual router {vrid}: beside the Active, {mac} answers for {ip} on {interface} (first at {first}, last at {last}), \
             {why}"
        )
    }

    /// The wall clock at a moment of this daemon's life, as hours, minutes and seconds in UTC.
    fn time_of_day(&self, at: Instant) -> String {
        let seconds = self.started_at + at.saturating_duration_since(self.started).as_secs();
        let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
        format!("{hours:02}:{minutes:02}:{:02} UTC", seconds % 60)
    }

    fn report_watches(&mut self) {
        let errors = self.owners.errors();
        for (interface, error) in &errors {
            let text =
                format!("other hosts that answer for the virtual IPs on {interface} are not seen: {error}");
            if self.problems.raise(Cause::OwnerWatch(interface.clone()), text) {
                tracing::warn!(interface, error, "the neighbours' claims cannot be watched; retrying");
            }
        }
        let works =
            |cause: &Cause| matches!(cause, Cause::OwnerWatch(interface) if !errors.contains_key(interface));
        self.problems.retain(|cause| !works(cause));
    }

    /// The foreign owners of an instance, for the status.
    pub(super) fn foreign_owners(&self, id: InstanceId) -> Vec<crate::status::schema::ForeignOwner> {
        let found = self.owners.found().remove(&id);
        let shown = |owner: ForeignOwner| crate::status::schema::ForeignOwner {
            address: owner.ip.to_string(),
            mac: owner.mac.to_string(),
            first_seconds_ago: owner.first.elapsed().as_secs_f64(),
            last_seconds_ago: owner.last.elapsed().as_secs_f64(),
            controller: owner.controller.map(|controller| controller.to_string()),
        };
        found.into_iter().flat_map(|(_, owners)| owners).map(shown).collect()
    }
}
