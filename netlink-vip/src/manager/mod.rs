//! Keeps the groups' addresses as the claims and the kernel's events ask.
//!
//! Inputs: [`Manager::add`], [`Manager::update`], [`Manager::remove`], [`Manager::claim`], [`Manager::release`],
//! [`Manager::handle_notification`], [`Manager::handle_timeout`]; after each batch of them [`Manager::reconcile`], and
//! [`Manager::advance`] as long as [`Manager::is_busy`]. Outputs: [`Manager::poll_event`] and
//! [`Manager::poll_timeout`]. Everything runs on one thread, so refreshes and removals are in order by construction.
//!
//! Events of the kernel are only hints: the tables are read again, and only what they show counts. Own changes thus
//! need no exact filter, and the order in which an event and an answer arrive does not matter.

mod claims;
mod copies;
mod departure;
#[cfg(test)]
mod departure_tests;
#[cfg(test)]
mod fake_kernel;
mod observe;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::departure::Departure;
use crate::event::{KeeperEvent, Removal, ResyncCause, Warning};
use crate::group::{Group, Registered};
use crate::kernel::Kernel;
use crate::select::Link;
use crate::status::{Counters, GroupState, GroupStatus, Status};
use crate::types::{GroupId, InterfaceSelector, Release};
use crate::validity::Validity;
use crate::wire::decode::{ObservedAddress, ObservedRoute};

/// Treatment of TCP sessions when an address goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionPolicy {
    /// Before the address goes, if there is time (their peers get a RST); what is left of them is closed after it.
    #[default]
    Reset,
    /// They are left to their owner.
    Leave,
}

/// See the module's documentation.
pub(crate) struct Manager<K> {
    kernel: K,
    sessions: SessionPolicy,
    validity: Arc<Validity>,
    groups: BTreeMap<GroupId, Group>,
    departures: Vec<Departure>,
    links: BTreeMap<u32, Link>,
    defaults: Vec<ObservedRoute>,
    /// Those of all interfaces, where there is no default route to choose one by.
    addresses: Vec<ObservedAddress>,
    dirty: Dirty,
    /// `true` if a route of ours may exist, so that routes need watching.
    routes_in_use: bool,
    /// Warnings of which once is enough until things change.
    warned_sessions: bool,
    warned_read_failed: bool,
    events: VecDeque<KeeperEvent>,
    counters: Counters,
}

/// Tables that have to be read again.
#[derive(Debug, Default)]
struct Dirty {
    everything: Option<ResyncCause>,
    selection: bool,
    defaults: bool,
    /// Addresses of groups may be elsewhere, or no longer.
    copies: bool,
    interfaces: BTreeSet<u32>,
    /// When to read them.
    due: Option<Instant>,
    /// Not before this is everything read again.
    next_resync: Option<Instant>,
}

/// Urgency of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Urgency {
    Now,
    /// Changes that come in bursts are handled together.
    Soon,
}

/// Delay in which changes that are not urgent are collected.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Two readings of everything lie at least so far apart, however often events are dropped.
const MIN_RESYNC_INTERVAL: Duration = Duration::from_millis(100);
/// Delay after a failed read.
const RETRY: Duration = Duration::from_millis(200);

impl Dirty {
    fn mark(&mut self, now: Instant, urgency: Urgency) {
        let due = match urgency {
            Urgency::Now => now,
            Urgency::Soon => now + DEBOUNCE,
        };
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    fn everything(&mut self, now: Instant, cause: ResyncCause) {
        self.everything = self.everything.or(Some(cause));
        let due = self.next_resync.map_or(now, |next| next.max(now));
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }
}

impl<K: Kernel> Manager<K> {
    pub(crate) fn new(kernel: K, sessions: SessionPolicy, validity: Arc<Validity>) -> Self {
        let mut dirty = Dirty::default();
        dirty.everything(kernel.now(), ResyncCause::Start);
        Self {
            kernel,
            sessions,
            validity,
            groups: BTreeMap::new(),
            departures: Vec::new(),
            links: BTreeMap::new(),
            defaults: Vec::new(),
            addresses: Vec::new(),
            dirty,
            routes_in_use: false,
            warned_sessions: false,
            warned_read_failed: false,
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Adds a group; a group of that id is replaced as by [`Manager::update`].
    pub(crate) fn add(&mut self, registered: Registered) {
        if self.groups.contains_key(&registered.config.id) {
            self.update(registered);
            return;
        }
        self.groups.insert(registered.config.id, Group::new(registered));
        self.mark_selection_dirty();
    }

    /// Changes a group. Addresses that it keeps stay, those that it loses go now, new ones come with the next claim.
    pub(crate) fn update(&mut self, registered: Registered) {
        let Some(group) = self.groups.get_mut(&registered.config.id) else {
            self.add(registered);
            return;
        };
        let Registered { config, labels } = registered;
        let id = config.id;
        let before = group.managed();
        let added: Vec<IpAddr> = config.ips().difference(&before.addresses).copied().collect();
        group.lease.time = config.lease;
        group.lease.rewrite();
        group.lease.add_missing(added.into_iter());
        group.refused.retain(|ip, _| config.addresses.iter().any(|vip| vip.ip() == *ip));
        let moved = group.config.interface != config.interface;
        (group.config, group.labels) = (config, labels);
        self.drop_obsolete(id, &before);
        if moved {
            self.take_down(id, Removal::Reconfigured, Release::Planned);
            self.groups.entry(id).and_modify(|group| group.interface = None);
        }
        self.mark_selection_dirty();
    }

    /// Removes a group and what is there of it.
    pub(crate) fn remove(&mut self, id: GroupId) {
        self.take_down(id, Removal::Reconfigured, Release::Planned);
        self.groups.remove(&id);
    }

    /// Removes everything, at the end.
    pub(crate) fn shutdown(&mut self) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            self.take_down(id, Removal::Shutdown, Release::Planned);
        }
    }

    /// Lets time pass: leases that were not refreshed are given up before the kernel does it.
    pub(crate) fn handle_timeout(&mut self) {
        let now = self.kernel.now();
        let over = |group: &Group| group.lease.deadline().is_some_and(|deadline| deadline <= now);
        let lapsed: Vec<GroupId> = self.groups.iter().filter(|(_, g)| over(g)).map(|(id, _)| *id).collect();
        for id in lapsed {
            self.counters.leases_lapsed += 1;
            let reason = match self.groups.get(&id) {
                Some(group) if group.lease.may_have_expired(now) => Removal::Expired,
                _ => Removal::Lapsed,
            };
            self.take_down(id, reason, Release::Planned);
            if let Some(group) = self.groups.get_mut(&id) {
                group.lease.lapse();
            }
        }
        self.report_arrivals(now);
        if self.groups.values().any(|group| group.switch_at.is_some_and(|at| at <= now)) {
            self.dirty.selection = true;
            self.dirty.mark(now, Urgency::Now);
        }
    }

    /// When [`Manager::handle_timeout`] and [`Manager::reconcile`] have something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let groups = self.groups.values().flat_map(|group| {
            let arrival = group.arriving.as_ref().map(|arriving| arriving.deadline);
            [group.lease.deadline(), group.switch_at, arrival]
        });
        groups.chain([self.dirty.due, self.departure_deadline()]).flatten().min()
    }

    /// The next event to deliver.
    pub(crate) fn poll_event(&mut self) -> Option<KeeperEvent> {
        self.events.pop_front()
    }

    /// Returns whether changes of routes matter.
    pub(crate) fn needs_routes(&self) -> bool {
        self.routes_in_use
            || self.groups.values().any(|group| group.config.interface == InterfaceSelector::DefaultRoute)
    }

    /// The clock.
    pub(crate) fn now(&self) -> Instant {
        self.kernel.now()
    }

    /// Adds a warning from outside the manager to the queue.
    pub(crate) fn warn(&mut self, id: Option<GroupId>, warning: Warning) {
        self.events.push_back(KeeperEvent::Warning { id, warning });
    }

    /// A snapshot.
    pub(crate) fn status(&self, realtime: bool) -> Status {
        Status {
            groups: self.groups.values().map(|group| self.group_status(group)).collect(),
            realtime,
            counters: self.counters,
        }
    }

    fn group_status(&self, group: &Group) -> GroupStatus {
        let id = group.config.id;
        let departing =
            self.departures.iter().any(|it| it.id == id && it.reason.is_some() && it.is_present());
        let mut status = group.status();
        if departing && status.state == GroupState::Vacant {
            status.state = GroupState::Departing;
        }
        status
    }

    /// Routes may have changed unheard.
    pub(crate) fn mark_routes_dirty(&mut self) {
        self.dirty.interfaces.extend(self.groups.values().filter_map(|group| group.interface));
        self.mark_selection_dirty();
    }

    fn mark_selection_dirty(&mut self) {
        self.dirty.selection = true;
        self.dirty.defaults = true;
        self.dirty.copies = true;
        self.dirty.mark(self.kernel.now(), Urgency::Now);
    }
}
