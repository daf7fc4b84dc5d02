//! The planner.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::step::{Deletion, Step};
use super::table::{
    Desired, DesiredService, ObservedDestination, ObservedService, Table, destination_is_as, service_is_as,
};
use crate::model::{DestinationKey, ServiceKey, Weight};

/// New services that are added before the first of them gets its destinations. A destination is added only after the
/// kernel confirmed its service, so that one which another program added in the meantime is not touched; a group shares
/// the time of waiting for that.
const GROUP: usize = 32;
/// Longer times are cut to this, so that they can be added to a point in time.
const MAX_DRAIN: Duration = Duration::from_secs(365 * 86_400);

/// Options of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// For how long a destination that goes may keep its active connections; 0 deletes it at once. 30 s by default.
    /// The kernel counts no connection of UDP as active. Clients that persistence binds to the destination keep coming
    /// while it is quiesced, unless the sysctl `net.ipv4.vs.expire_quiescent_template` is 1.
    pub drain: Duration,
    /// Removal of a service that is no longer desired.
    pub service_removal: ServiceRemoval,
}

impl Default for Options {
    fn default() -> Self {
        Self { drain: Duration::from_secs(30), service_removal: ServiceRemoval::AtOnce }
    }
}

/// Removal of a service that is no longer desired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceRemoval {
    /// At once, and with it the connections through it. This is for a director that is no longer in charge of the
    /// address.
    AtOnce,
    /// When all of its destinations are drained. Until then it refuses new connections.
    Drained,
}

/// The steps of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Plan {
    /// The commands, in the order in which they are to be carried out.
    pub steps: Vec<Step>,
    /// Services that are desired but exist without being owned. Nothing is done about them.
    pub conflicts: BTreeSet<ServiceKey>,
    /// Services that the steps add and that were not owned. Record them as owned *before* the steps are carried out, so
    /// that they are not forgotten in a crash.
    pub claims: BTreeSet<ServiceKey>,
    /// Owned services that are neither desired nor there; they need no longer be recorded.
    pub gone: BTreeSet<ServiceKey>,
    /// Destinations that wait for their connections to end, or will after the steps. Look again when that may be so.
    pub draining: Vec<Draining>,
}

impl Plan {
    /// Returns whether everything is as desired, except for what is being drained.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// When the first of the destinations that are being drained is overdue.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.draining.iter().map(|draining| draining.deadline).min()
    }
}

/// A destination that waits for its connections to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Draining {
    /// Its service.
    pub service: ServiceKey,
    /// Its key.
    pub destination: DestinationKey,
    /// Its active connections.
    pub active_connections: u32,
    /// When it is deleted whatever it has.
    pub deadline: Instant,
}

/// Plans, and remembers between plans since when a destination is being drained. Call [`Planner::plan`] with a fresh
/// look at the table, carry the plan out, and repeat when something changes or is being drained. A planner that starts
/// anew gives destinations that are being drained their whole time again.
#[derive(Debug, Clone)]
pub struct Planner {
    options: Options,
    deadlines: BTreeMap<(ServiceKey, DestinationKey), Instant>,
}

impl Planner {
    /// A planner that has drained nothing yet.
    #[must_use]
    pub const fn new(options: Options) -> Self {
        Self { options, deadlines: BTreeMap::new() }
    }

    /// Plans the steps at the time `now`. `observed` needs the destinations of the services that are both owned and
    /// there; `owned` may name services that are not there.
    pub fn plan(
        &mut self,
        now: Instant,
        desired: &Desired,
        observed: &Table,
        owned: &BTreeSet<ServiceKey>,
    ) -> Plan {
        let before = std::mem::take(&mut self.deadlines);
        let mut draft = Draft::new(now, self.options, before);
        for service in desired.services() {
            let key = service.service.key();
            match observed.service(&key) {
                None => draft.add(service, owned.contains(&key)),
                Some(_) if !owned.contains(&key) => {
                    draft.conflicts.insert(key);
                }
                Some(there) => draft.adapt(service, there),
            }
        }
        for key in owned.iter().filter(|key| desired.service(key).is_none()) {
            match observed.service(key) {
                Some(there) => draft.remove(there),
                None => {
                    draft.gone.insert(*key);
                }
            }
        }
        self.deadlines = std::mem::take(&mut draft.deadlines);
        draft.finish()
    }
}

/// A plan in the making, its steps by the phases of their order.
struct Draft {
    now: Instant,
    options: Options,
    before: BTreeMap<(ServiceKey, DestinationKey), Instant>,
    deadlines: BTreeMap<(ServiceKey, DestinationKey), Instant>,
    added: Vec<(Step, Vec<Step>)>,
    additions: Vec<Step>,
    changes: Vec<Step>,
    quiesced: Vec<Step>,
    deletions: Vec<Step>,
    conflicts: BTreeSet<ServiceKey>,
    claims: BTreeSet<ServiceKey>,
    gone: BTreeSet<ServiceKey>,
    draining: Vec<Draining>,
}

impl Draft {
    fn new(now: Instant, options: Options, before: BTreeMap<(ServiceKey, DestinationKey), Instant>) -> Self {
        Self {
            now,
            options,
            before,
            deadlines: BTreeMap::new(),
            added: Vec::new(),
            additions: Vec::new(),
            changes: Vec::new(),
            quiesced: Vec::new(),
            deletions: Vec::new(),
            conflicts: BTreeSet::new(),
            claims: BTreeSet::new(),
            gone: BTreeSet::new(),
            draining: Vec::new(),
        }
    }

    /// A service that is not there.
    fn add(&mut self, desired: &DesiredService, owned: bool) {
        let key = desired.service.key();
        if !owned {
            self.claims.insert(key);
        }
        let destinations = desired.destinations().map(|destination| Step::AddDestination(key, *destination));
        self.added.push((Step::AddService(desired.service.clone()), destinations.collect()));
    }

    /// A service that is there and ours.
    fn adapt(&mut self, desired: &DesiredService, observed: &ObservedService) {
        let service = desired.service.key();
        if !service_is_as(&desired.service, &observed.service) {
            self.changes.push(Step::SetService(desired.service.clone()));
        }
        for destination in desired.destinations() {
            match observed.destinations.get(&destination.key) {
                None => self.additions.push(Step::AddDestination(service, *destination)),
                Some(there) if destination_is_as(destination, &there.destination) => {}
                Some(_) => self.changes.push(Step::SetDestination(service, *destination)),
            }
        }
        for (key, there) in &observed.destinations {
            if desired.is_dead(key) {
                self.deletions.push(Step::DeleteDestination(service, *key, Deletion::Dead));
            } else if desired.destination(key).is_none()
                && let Some(why) = self.drain(service, there)
            {
                self.deletions.push(Step::DeleteDestination(service, *key, why));
            }
        }
    }

    /// A service that is ours and goes.
    fn remove(&mut self, observed: &ObservedService) {
        let service = observed.service.key();
        let mut drained = true;
        if self.options.service_removal == ServiceRemoval::Drained {
            for there in observed.destinations.values() {
                drained &= self.drain(service, there).is_some();
            }
        }
        if drained {
            self.deletions.push(Step::DeleteService(service));
        }
    }

    /// Quiesces a destination that goes, and says why it can be deleted, if it can.
    fn drain(&mut self, service: ServiceKey, there: &ObservedDestination) -> Option<Deletion> {
        let key = there.destination.key;
        let active_connections = there.active_connections;
        let known = self.before.get(&(service, key)).copied();
        let latest = || self.now.checked_add(self.options.drain.min(MAX_DRAIN));
        let deadline = known.or_else(latest).unwrap_or(self.now);
        if deadline <= self.now {
            let idle = active_connections == 0;
            return Some(if idle { Deletion::Drained } else { Deletion::Overdue { active_connections } });
        }
        if there.destination.weight == Weight::QUIESCED && active_connections == 0 {
            return Some(Deletion::Drained);
        }
        if there.destination.weight != Weight::QUIESCED {
            self.quiesced.push(Step::Quiesce(service, there.destination));
        }
        self.deadlines.insert((service, key), deadline);
        self.draining.push(Draining { service, destination: key, active_connections, deadline });
        None
    }

    fn finish(mut self) -> Plan {
        let mut steps = Vec::new();
        while !self.added.is_empty() {
            let rest = self.added.split_off(self.added.len().min(GROUP));
            let (services, destinations): (Vec<_>, Vec<_>) =
                std::mem::replace(&mut self.added, rest).into_iter().unzip();
            steps.extend(services);
            steps.extend(destinations.into_iter().flatten());
        }
        steps.append(&mut self.additions);
        steps.append(&mut self.changes);
        steps.append(&mut self.quiesced);
        steps.append(&mut self.deletions);
        Plan {
            steps,
            conflicts: self.conflicts,
            claims: self.claims,
            gone: self.gone,
            draining: self.draining,
        }
    }
}
