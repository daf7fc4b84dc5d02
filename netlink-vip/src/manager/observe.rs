//! Observation: the kernel's events, and the consequences of its tables.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::{MIN_RESYNC_INTERVAL, Manager, RETRY, Urgency};
use crate::event::{InterfaceAddress, InterfaceState, KeeperEvent, Removal, ResyncCause, Warning};
use crate::group::Group;
use crate::kernel::Kernel;
use crate::lease::LeaseState;
use crate::listener::Notification;
use crate::ownership::is_ours;
use crate::plan::{Step, plan};
use crate::select::{Link, View, merge, select};
use crate::socket::KernelError;
use crate::types::{GroupId, InterfaceSelector, Release};
use crate::wire::PROTOCOL;
use crate::wire::decode::{NetEvent, ObservedAddress, ObservedRoute};

/// A default route that leads elsewhere is followed when it still does so after this long: a DHCP renewal or a
/// restart of the network manager takes it away for a moment.
const SWITCH_AFTER: Duration = Duration::from_secs(1);

impl<K: Kernel> Manager<K> {
    /// Handles a notification of the listener. Nothing is done before [`Manager::reconcile`].
    pub(crate) fn handle_notification(&mut self, notification: Notification) {
        let now = self.kernel.now();
        match notification {
            Notification::Event(NetEvent::Link(update)) => {
                let index = update.index;
                merge(&mut self.links, update);
                self.dirty.selection = true;
                if self.is_relevant(index) {
                    self.dirty.interfaces.insert(index);
                    self.forget_refusals(index);
                }
                self.dirty.mark(now, Urgency::Now);
            }
            Notification::Event(NetEvent::LinkRemoved { index }) => {
                self.links.remove(&index);
                self.dirty.selection = true;
                self.dirty.mark(now, Urgency::Now);
            }
            Notification::Event(NetEvent::Address(address)) => self.handle_address(&address),
            Notification::Event(NetEvent::AddressRemoved(address)) => self.handle_address_removal(&address),
            Notification::Event(NetEvent::Route(route) | NetEvent::RouteRemoved(route)) => {
                self.handle_route_change(&route);
            }
            Notification::Event(NetEvent::Label(_) | NetEvent::Other { .. }) => {}
            Notification::Unreadable(error) => {
                tracing::debug!(%error, "unreadable netlink event");
                self.counters.unreadable += 1;
                self.dirty.everything(now, ResyncCause::Unreadable);
            }
            Notification::Overrun => {
                self.counters.overruns += 1;
                self.dirty.everything(now, ResyncCause::Overrun);
            }
        }
    }

    /// An address came or changed. Our own refreshes, which are most of these, change nothing.
    fn handle_address(&mut self, address: &ObservedAddress) {
        let now = self.kernel.now();
        if self.groups.values().any(Group::waits_for_a_subnet) {
            self.dirty.defaults = true;
            self.dirty.mark(now, Urgency::Soon);
        }
        if !is_ours(address, self.kernel.marks_addresses()) {
            self.mark_copies_dirty(address.ip);
        }
        if !self.is_relevant(address.index) {
            return;
        }
        let expected = |group: &&mut Group| group.interface == Some(address.index) && group.has(address.ip);
        let owner = self.groups.values_mut().find(expected);
        match owner.filter(|_| is_ours(address, self.kernel.marks_addresses())) {
            Some(group) => {
                if group.arriving.as_mut().is_some_and(|arriving| arriving.ips.remove(&address.ip)) {
                    self.report_arrivals(now);
                }
            }
            None => {
                self.forget_refusals(address.index);
                self.dirty.interfaces.insert(address.index);
                self.dirty.mark(now, Urgency::Soon);
            }
        }
    }

    /// Forgets refusals of an earlier term: the kernel may accept the address now that the interface has changed.
    fn forget_refusals(&mut self, index: u32) {
        let vacant = |group: &&mut Group| group.interface == Some(index) && group.lease.held().is_none();
        self.groups.values_mut().filter(vacant).for_each(|group| group.refused.clear());
    }

    /// An address went. A VIP that should be here is checked at once; the removal of one that should not be here is
    /// our own doing.
    fn handle_address_removal(&mut self, address: &ObservedAddress) {
        if !is_ours(address, self.kernel.marks_addresses()) {
            self.mark_copies_dirty(address.ip);
        }
        if !self.is_relevant(address.index) {
            return;
        }
        let owner = self
            .groups
            .values()
            .find(|group| group.interface == Some(address.index) && group.has(address.ip));
        let urgency = match owner {
            Some(group) if group.present().contains(&address.ip) => Urgency::Now,
            Some(group) if !group.refused.contains_key(&address.ip) => return,
            _ => Urgency::Soon,
        };
        self.dirty.interfaces.insert(address.index);
        self.dirty.mark(self.kernel.now(), urgency);
    }

    fn handle_route_change(&mut self, route: &ObservedRoute) {
        if route.destination.is_empty() {
            self.dirty.defaults = true;
        } else if route.protocol == PROTOCOL && self.routes_in_use {
            self.dirty.interfaces.extend(route.interfaces.iter().copied());
        } else {
            return;
        }
        self.dirty.mark(self.kernel.now(), Urgency::Soon);
    }

    fn is_relevant(&self, index: u32) -> bool {
        self.groups.values().any(|group| group.interface == Some(index))
    }

    /// Looks at what was marked, when it is due.
    pub(crate) fn reconcile(&mut self) {
        let now = self.kernel.now();
        if self.dirty.due.is_none_or(|due| due > now) {
            return;
        }
        self.dirty.due = None;
        match self.read_tables() {
            Ok(()) => self.warned_read_failed = false,
            Err(error) => self.read_failed(error),
        }
    }

    fn read_tables(&mut self) -> Result<(), KernelError> {
        let now = self.kernel.now();
        if self.dirty.everything != Some(ResyncCause::Start) {
            // What is known already is acted on first, whether or not the kernel lets us see more.
            self.update_selection()?;
        }
        let Some(cause) = self.dirty.everything else {
            self.read_interfaces()?;
            return self.read_copies();
        };
        if let Some(next) = self.dirty.next_resync.filter(|next| *next > now) {
            self.dirty.due = Some(next);
            return self.read_interfaces();
        }
        self.dirty.next_resync = Some(now + MIN_RESYNC_INTERVAL);
        // Should it fail on the way, it is still to be done.
        self.dirty.everything = Some(ResyncCause::Retry);
        let links = self.kernel.links()?;
        self.links.clear();
        for update in links {
            merge(&mut self.links, update);
        }
        self.dirty.defaults = true;
        self.dirty.copies = true;
        self.dirty.interfaces.extend(self.groups.values().filter_map(|group| group.interface));
        self.update_selection()?;
        self.read_interfaces()?;
        self.read_copies()?;
        self.dirty.everything = None;
        self.counters.resyncs += 1;
        self.events.push_back(KeeperEvent::Resynced { cause });
        Ok(())
    }

    fn update_selection(&mut self) -> Result<(), KernelError> {
        let mut result = Ok(());
        if self.dirty.defaults {
            self.dirty.selection = true;
            let wanted = |group: &Group| group.config.interface == InterfaceSelector::DefaultRoute;
            let defaults = self.groups.values().any(wanted).then(|| self.kernel.default_routes());
            match defaults {
                Some(Err(error)) => result = Err(error),
                Some(Ok(defaults)) => {
                    let all = if defaults.is_empty() { self.kernel.addresses(0) } else { Ok(Vec::new()) };
                    self.defaults = defaults;
                    match all {
                        Err(error) => result = Err(error),
                        Ok(addresses) => {
                            self.addresses = addresses;
                            self.dirty.defaults = false;
                        }
                    }
                }
                None => self.dirty.defaults = false,
            }
        }
        if std::mem::take(&mut self.dirty.selection) {
            let ids: Vec<GroupId> = self.groups.keys().copied().collect();
            for id in ids {
                self.choose_interface(id);
            }
        }
        result
    }

    /// Evaluates the group's selector and moves it if its interface is another one now.
    fn choose_interface(&mut self, id: GroupId) {
        let now = self.kernel.now();
        let Some(group) = self.groups.get_mut(&id) else { return };
        let selector = &group.config.interface;
        let current = group.interface;
        let held_link = current.and_then(|index| self.links.get(&index)).is_some_and(Link::is_up);
        let view = View { links: &self.links, defaults: &self.defaults, addresses: &self.addresses };
        let chosen = select(selector, &group.config.addresses, current, view);
        let still_there = current.is_some_and(|index| self.links.contains_key(&index));
        if chosen == current {
            group.switch_at = None;
        } else if still_there && *selector == InterfaceSelector::DefaultRoute {
            let at = *group.switch_at.get_or_insert(now + SWITCH_AFTER);
            if now < at {
                return;
            }
        }
        group.switch_at = None;
        let vacant = group.lease.state == LeaseState::Vacant;
        let up = chosen.and_then(|index| self.links.get(&index)).is_some_and(Link::is_up);
        if !vacant && chosen != current {
            // Another one may have been chosen while this one still works.
            let release = if held_link { Release::Planned } else { Release::Lost };
            self.take_down(id, Removal::InterfaceGone, release);
        } else if !vacant && !up {
            self.take_down(id, Removal::InterfaceDown, Release::Lost);
        }
        if let Some(group) = self.groups.get_mut(&id) {
            group.interface = chosen;
        }
        match chosen {
            Some(index) if chosen != current => {
                self.dirty.interfaces.insert(index);
            }
            None => self.report(id, None),
            Some(_) => {}
        }
    }

    fn read_interfaces(&mut self) -> Result<(), KernelError> {
        while let Some(index) = self.dirty.interfaces.pop_first() {
            let ids: Vec<GroupId> =
                self.groups.iter().filter(|(_, g)| g.interface == Some(index)).map(|(id, _)| *id).collect();
            if ids.is_empty() {
                continue;
            }
            let addresses = match self.kernel.addresses(index) {
                Ok(addresses) => addresses,
                Err(error) => {
                    self.dirty.interfaces.insert(index);
                    return Err(error);
                }
            };
            let state = self.interface_state(index, &addresses);
            for id in ids {
                self.report(id, state.clone());
                self.verify(id, index, &addresses);
            }
        }
        Ok(())
    }

    fn interface_state(&self, index: u32, addresses: &[ObservedAddress]) -> Option<InterfaceState> {
        let link = self.links.get(&index)?;
        let departing = self.departures.iter().flat_map(|departure| departure.ips.iter().copied());
        let vips: BTreeSet<IpAddr> = self.groups.values().flat_map(Group::ips).chain(departing).collect();
        let own = addresses.iter().filter(|address| !vips.contains(&address.ip));
        Some(InterfaceState {
            name: link.name.clone(),
            index,
            mac: link.mac,
            kind: link.kind.clone(),
            vrf: link.vrf(&self.links).map(str::to_owned),
            up: link.is_up(),
            addresses: own
                .map(|&ObservedAddress { ip, prefix_len, scope, flags, .. }| InterfaceAddress {
                    ip,
                    prefix_len,
                    scope,
                    flags,
                })
                .collect(),
        })
    }

    fn report(&mut self, id: GroupId, state: Option<InterfaceState>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.reported.as_ref() != Some(&state) {
            group.reported = Some(state.clone());
            self.events.push_back(KeeperEvent::Interface { id, state });
        }
    }

    /// Compares what a held group should have with what is there.
    fn verify(&mut self, id: GroupId, index: u32, addresses: &[ObservedAddress]) {
        let now = self.kernel.now();
        let marks = self.kernel.marks_addresses();
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.lease.held().is_none() {
            return;
        }
        let there = |ip: IpAddr| addresses.iter().any(|seen| seen.ip == ip && is_ours(seen, marks));
        let gone: Vec<IpAddr> = group.present().into_iter().filter(|ip| !there(*ip)).collect();
        if !gone.is_empty() && group.lease.may_have_expired(now) {
            self.counters.leases_lapsed += 1;
            self.take_down(id, Removal::Expired, Release::Lost);
            if let Some(group) = self.groups.get_mut(&id) {
                group.lease.lapse();
            }
            return;
        }
        for ip in gone {
            if self.groups.get_mut(&id).is_some_and(|group| group.lease.mark_missing(now, ip)) {
                self.counters.missing += 1;
                self.events.push_back(KeeperEvent::Missing { id, ip });
            }
        }
        self.maintain(id, index, addresses);
    }

    /// The node's own addresses changed: a subnet may need a route of ours now, or no longer, and a VIP another place.
    fn maintain(&mut self, id: GroupId, index: u32, addresses: &[ObservedAddress]) {
        let Some(group) = self.groups.get(&id) else { return };
        let desired = self.desired_with_others(group, index);
        let managed = group.managed();
        match self.observe_routes(index, &desired, addresses.to_vec()) {
            Ok(observed) => {
                let mut steps = plan(index, &desired, &managed, &observed).steps;
                if steps.iter().any(|step| matches!(step, Step::MoveAddress { .. })) {
                    self.groups.entry(id).and_modify(|group| group.lease.rewrite());
                }
                steps.retain(|step| !step.needs_claim());
                self.carry_out(id, &steps);
            }
            Err(error) => self.read_failed(error),
        }
    }

    /// A read failed: a resync follows soon.
    pub(super) fn read_failed(&mut self, error: KernelError) {
        let now = self.kernel.now();
        self.counters.kernel_errors += 1;
        self.dirty.everything = Some(ResyncCause::Retry);
        self.dirty.due = Some(now + RETRY);
        if !std::mem::replace(&mut self.warned_read_failed, true) {
            self.warn(None, Warning::Unobserved(error));
        }
    }
}
