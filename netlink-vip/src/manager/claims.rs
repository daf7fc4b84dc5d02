//! Writing: claims, releases, and everything else that changes the kernel's tables.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::departure::Departure;
use super::{Manager, Urgency};
use crate::event::{KeeperEvent, Refusal, Removal, Warning};
use crate::group::{Arriving, Group};
use crate::kernel::Kernel;
use crate::lease::{Claim, ClaimOutcome};
use crate::plan::{Desired, Managed, Observed, Step, plan, routes_needed};
use crate::select::Link;
use crate::socket::KernelError;
use crate::types::{GroupId, Release, VipAddress};
use crate::wire::decode::ObservedAddress;

/// A group of which every address was refused is tried again after this.
const REFUSED_RETRY: Duration = Duration::from_millis(500);

/// New IPv6 addresses are reported as installed after this, even without an event of the kernel that they work.
const ARRIVAL_LIMIT: Duration = Duration::from_millis(100);

/// Outcome of writing addresses.
enum Written {
    /// These are in place; the first was sent at this time.
    Done { since: Instant, steps: Vec<Step> },
    /// So much time passed that they may have been re-created without permission.
    Overslept,
}

impl<K: Kernel> Manager<K> {
    /// This node may hold the group's addresses for a while longer.
    pub(crate) fn claim(&mut self, id: GroupId, claim: &Claim) {
        let now = self.kernel.now();
        let claim = &self.extended(id, claim);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(index) = group.interface.filter(|index| self.links.get(index).is_some_and(Link::is_up))
        else {
            self.counters.claims_without_interface += 1;
            return;
        };
        match group.lease.decide(now, claim) {
            ClaimOutcome::Stale => self.counters.claims_stale += 1,
            ClaimOutcome::Fresh => {
                self.counters.claims_fresh += 1;
                group.lease.extended(claim);
            }
            ClaimOutcome::Refresh if group.refused.is_empty() => self.refresh(id, claim),
            ClaimOutcome::Install | ClaimOutcome::Refresh => {
                if group.retry_at.is_none_or(|at| at <= now) {
                    self.install(id, index, claim);
                }
            }
            ClaimOutcome::Lost => self.give_up(id, Release::Planned),
        }
    }

    /// The claim as long as the election's last word makes it.
    fn extended(&self, id: GroupId, claim: &Claim) -> Claim {
        let end = self.validity.end(id).map_or(claim.valid_until, |end| end.max(claim.valid_until));
        Claim { valid_until: end, ..*claim }
    }

    /// This node may no longer hold the group's addresses.
    pub(crate) fn release(&mut self, id: GroupId, release: Release) {
        self.take_down(id, Removal::Released(release), release);
    }

    /// Adds absent addresses and refreshes present ones, after reading those of the interface.
    fn install(&mut self, id: GroupId, index: u32, claim: &Claim) {
        let Some(ips) = self.groups.get(&id).map(|group| group.ips().collect::<Vec<_>>()) else { return };
        self.cut_departures_short(&ips);
        let Some(group) = self.groups.get(&id) else { return };
        let (desired, managed) = (self.desired_with_others(group, index), group.managed());
        let observed = match self.observe_for(&managed, index, &desired) {
            Ok(observed) => observed,
            Err(error) => return self.read_failed(error),
        };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let plan = plan(index, &desired, &managed, &observed);
        let absent = plan.steps.iter().filter_map(Step::leases);
        let missing = group.lease.held().into_iter().flat_map(|held| held.missing.iter().copied());
        let added: BTreeSet<IpAddr> = absent.chain(missing).collect();
        let first = group.lease.held().is_none();

        // Labels first, then all addresses (those that are there start a new lease together with the others), then
        // routes.
        let (addresses, rest): (Vec<_>, Vec<_>) = plan.steps.iter().partition(|step| step.leases().is_some());
        let (routes, before): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|step| matches!(step, Step::PutRoute { .. }));
        let addresses: Vec<Step> = addresses.into_iter().chain(plan.refresh).collect();
        for &(ip, prefix_len) in &plan.foreign {
            self.refuse(id, ip, Refusal::Foreign { prefix_len });
        }
        self.carry_out(id, &before);
        match self.write(id, &addresses, claim) {
            Written::Overslept => self.give_up(id, Release::Lost),
            Written::Done { since, steps } => {
                self.carry_out(id, &routes);
                let written = steps.iter().filter_map(Step::leases);
                let added = written.filter(|ip| first || added.contains(ip)).collect();
                self.written(id, since, steps, claim, added);
            }
        }
    }

    /// Records what was written, and reports new addresses.
    fn written(
        &mut self,
        id: GroupId,
        since: Instant,
        steps: Vec<Step>,
        claim: &Claim,
        added: BTreeSet<IpAddr>,
    ) {
        let now = self.kernel.now();
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.refused.retain(|ip, _| !steps.iter().any(|step| step.leases() == Some(*ip)));
        if steps.is_empty() {
            group.retry_at = Some(now + REFUSED_RETRY);
            return;
        }
        group.retry_at = None;
        group.written = steps;
        group.lease.refreshed(since, claim);
        if added.is_empty() {
            self.counters.refreshes += 1;
            return;
        }
        self.counters.installs += 1;
        let new_v6 = added
            .into_iter()
            .filter(|ip| ip.is_ipv6() && group.written.iter().any(|s| s.leases() == Some(*ip)));
        let ips: BTreeSet<IpAddr> = new_v6.collect();
        group.arriving = Some(Arriving { ips, issued: claim.issued, deadline: now + ARRIVAL_LIMIT });
        self.report_arrivals(now);
    }

    /// Reports the groups of which nothing is on the way any more.
    pub(super) fn report_arrivals(&mut self, now: Instant) {
        for (&id, group) in &mut self.groups {
            let done = |arriving: &mut Arriving| arriving.ips.is_empty() || arriving.deadline <= now;
            if let Some(Arriving { issued, .. }) = group.arriving.take_if(done) {
                let took = now.saturating_duration_since(issued);
                self.events.push_back(KeeperEvent::Installed { id, took });
            }
        }
    }

    /// Refreshes without reading the tables first: no event made that necessary.
    fn refresh(&mut self, id: GroupId, claim: &Claim) {
        let Some(group) = self.groups.get(&id) else { return };
        let steps = group.written.clone();
        match self.write(id, &steps, claim) {
            Written::Overslept => self.give_up(id, Release::Lost),
            Written::Done { steps, .. } if steps.is_empty() => {}
            Written::Done { since, .. } => {
                self.counters.refreshes += 1;
                if let Some(group) = self.groups.get_mut(&id) {
                    group.lease.refreshed(since, claim);
                }
            }
        }
    }

    /// Writes addresses, reading the clock after each acknowledgement.
    fn write(&mut self, id: GroupId, steps: &[Step], claim: &Claim) -> Written {
        let since = self.kernel.now();
        let mut done = Vec::new();
        for step in steps {
            let Some(ip) = step.leases() else { continue };
            let sent = self.kernel.now();
            let result = self.kernel.apply(step);
            let acked = self.kernel.now();
            let took = acked.saturating_duration_since(sent);
            self.counters.longest_write = self.counters.longest_write.max(took);
            let claim = &self.extended(id, claim);
            if self.groups.get(&id).is_some_and(|group| group.lease.wrote_too_late(acked, claim)) {
                return Written::Overslept;
            }
            match result {
                Ok(()) => done.push(step.again()),
                Err(error) => {
                    self.counters.kernel_errors += 1;
                    self.refuse(id, ip, refusal_of(ip, error));
                }
            }
        }
        Written::Done { since, steps: done }
    }

    fn refuse(&mut self, id: GroupId, ip: IpAddr, reason: Refusal) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.refused.get(&ip) != Some(&reason) {
            group.refused.insert(ip, reason.clone());
            self.events.push_back(KeeperEvent::Refused { id, ip, reason });
        }
        // The refusal may mean that the interface is gone or that tables differ from what we know.
        let now = self.kernel.now();
        self.dirty.interfaces.extend(self.groups.get(&id).and_then(|group| group.interface));
        self.dirty.mark(now, Urgency::Soon);
    }

    fn give_up(&mut self, id: GroupId, release: Release) {
        self.counters.leases_lost += 1;
        if self.groups.get(&id).is_some_and(|group| group.lease.held().is_some()) {
            self.take_down(id, Removal::LeaseLost, release);
        } else if !self.has_departing(id)
            && let Some((departure, _)) = self.departure_of(id)
        {
            // They went when the lease lapsed, or were written just now and not yet reported.
            self.depart(departure, None);
        }
        let now = self.kernel.now();
        if let Some(group) = self.groups.get_mut(&id) {
            group.lease.vacate(now);
            group.arriving = None;
        }
        self.events.push_back(KeeperEvent::LeaseLost { id });
    }

    /// Removes what there is of a group and reports it. A planned release resets its sessions first, as long as the
    /// lease lasts.
    pub(super) fn take_down(&mut self, id: GroupId, reason: Removal, release: Release) {
        if self.has_departing(id) {
            if release == Release::Lost {
                self.end_departures_now(id);
            }
            let now = self.kernel.now();
            if let Some(group) = self.groups.get_mut(&id) {
                group.lease.vacate(now);
            }
            return;
        }
        let departure = self.departure_of(id);
        let now = self.kernel.now();
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.lease.vacate(now);
        group.arriving = None;
        group.refused.retain(|_, refusal| refusal.outlasts_a_release());
        group.retry_at = None;
        group.last_removal = Some(reason);
        match departure {
            Some((mut departure, lease_end)) => {
                departure.reason = Some(reason);
                self.depart(departure, lease_end.filter(|_| release == Release::Planned));
            }
            None => self.events.push_back(KeeperEvent::Removed { id, reason }),
        }
    }

    /// All that a group may have on its interface, and when the kernel removes it by itself.
    fn departure_of(&self, id: GroupId) -> Option<(Departure, Option<Instant>)> {
        let group = self.groups.get(&id)?;
        let now = self.kernel.now();
        let departure = Departure::new(id, group.interface?, group.managed(), group.present(), now);
        Some((departure, group.lease.expiry()))
    }

    /// After a change of a group: removes what it no longer wants.
    pub(super) fn drop_obsolete(&mut self, id: GroupId, before: &Managed) {
        let Some(group) = self.groups.get(&id) else { return };
        let Some(index) = group.interface.filter(|_| group.lease.held().is_some()) else { return };
        let mut managed = group.managed();
        managed.addresses.extend(&before.addresses);
        managed.labels.extend(&before.labels);
        managed.subnets.extend(&before.subnets);
        let lease_end = group.lease.expiry();
        let gone: Vec<IpAddr> = before.addresses.iter().copied().filter(|&ip| !group.has(ip)).collect();
        let now = self.kernel.now();
        self.depart(Departure::new(id, index, managed, gone, now), lease_end);
    }

    /// The desired state of the interface: the group's own, and the subnets that other groups need there.
    pub(super) fn desired_with_others(&self, group: &Group, index: u32) -> Desired {
        let mut desired = group.desired();
        desired.reachable.extend(self.reachable_for_others(group.config.id, index));
        desired
    }

    /// The addresses whose subnets other held groups need on the interface.
    pub(super) fn reachable_for_others(&self, id: GroupId, index: u32) -> BTreeSet<VipAddress> {
        let others = self.groups.values().filter(|other| {
            other.config.id != id && other.interface == Some(index) && other.lease.held().is_some()
        });
        others.flat_map(|other| other.config.addresses.iter().copied()).collect()
    }

    /// Looks at what a plan for the group needs to know, and no more: listing all labels or routes takes time.
    pub(super) fn observe_for(
        &mut self,
        managed: &Managed,
        index: u32,
        desired: &Desired,
    ) -> Result<Observed, KernelError> {
        let labelled = !managed.labels.is_empty();
        let addresses = self.kernel.addresses(index)?;
        let mut observed = self.observe_routes(index, desired, addresses)?;
        if labelled {
            observed.labels = self.kernel.labels()?;
        }
        Ok(observed)
    }

    /// Adds our routes to observed addresses, if there can be any.
    pub(super) fn observe_routes(
        &mut self,
        index: u32,
        desired: &Desired,
        addresses: Vec<ObservedAddress>,
    ) -> Result<Observed, KernelError> {
        let kernel_marks = self.kernel.marks_addresses();
        let mut observed = Observed { addresses, kernel_marks, ..Observed::default() };
        if self.routes_in_use || !routes_needed(index, desired, &observed).is_empty() {
            observed.routes = self.kernel.marked_routes()?;
            self.routes_in_use = !observed.routes.is_empty();
        }
        Ok(observed)
    }

    /// Takes steps that need no claim; a failure is reported and does not stop the others.
    pub(super) fn carry_out(&mut self, id: GroupId, steps: &[Step]) {
        for step in steps {
            self.routes_in_use |= matches!(step, Step::PutRoute { .. });
            if let Err(error) = self.kernel.apply(step) {
                self.counters.kernel_errors += 1;
                self.warn(Some(id), Warning::Incomplete { what: describe(step), error });
            }
        }
    }
}

fn refusal_of(ip: IpAddr, error: KernelError) -> Refusal {
    match error.refused() {
        Some(Errno::EACCES | Errno::EOPNOTSUPP) if ip.is_ipv6() => Refusal::Ipv6Disabled,
        _ => Refusal::Kernel(error),
    }
}

fn describe(step: &Step) -> String {
    match step {
        Step::DeleteAddress { ip, .. } => format!("removing {ip}"),
        Step::PutAddress { ip, .. } | Step::MoveAddress { ip, .. } => format!("adding {ip}"),
        Step::DeleteRoute { prefix, .. } => format!("removing the route to {prefix}"),
        Step::PutRoute { prefix, .. } => format!("adding a route to {prefix}"),
        Step::DeleteLabel { ip, .. } => format!("removing the address label of {ip}"),
        Step::PutLabel { ip, .. } => format!("setting the address label of {ip}"),
    }
}
