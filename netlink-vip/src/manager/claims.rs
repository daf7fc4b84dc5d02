//! Writing: claims, releases, and everything else that changes the kernel's tables.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{Manager, SessionPolicy, Urgency};
use crate::event::{KeeperEvent, Refusal, Removal, Warning};
use crate::group::{Arriving, Group};
use crate::kernel::{Kernel, KernelError};
use crate::lease::{Claim, Verdict};
use crate::plan::{Desired, Managed, Observed, Step, plan, routes_needed};
use crate::select::Link;
use crate::types::{GroupId, Release, VipAddress};
use crate::wire::decode::ObservedAddress;

/// A group of which every address was refused is tried again after this.
const REFUSED_RETRY: Duration = Duration::from_millis(500);

/// New IPv6 addresses are reported as installed after this, even if the kernel has not said that they work.
const ARRIVAL_LIMIT: Duration = Duration::from_millis(100);

/// What became of writing addresses.
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
        match group.lease.judge(now, claim) {
            Verdict::Stale => self.counters.claims_stale += 1,
            Verdict::Fresh => {
                self.counters.claims_fresh += 1;
                group.lease.extended(claim);
            }
            Verdict::Refresh if group.refused.is_empty() => self.refresh(id, claim),
            Verdict::Install | Verdict::Refresh => {
                if group.retry_at.is_none_or(|at| at <= now) {
                    self.install(id, index, claim);
                }
            }
            Verdict::Lost => self.lose(id),
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

    /// Adds what is absent and refreshes what is there, after a look at the interface.
    fn install(&mut self, id: GroupId, index: u32, claim: &Claim) {
        let Some(desired) = self.groups.get(&id).map(|group| self.desired_with_others(group, index)) else {
            return;
        };
        let observed = match self.observe_for(id, index, &desired) {
            Ok(observed) => observed,
            Err(error) => return self.unobserved(error),
        };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let plan = plan(index, &desired, &group.managed(), &observed);
        let absent = plan.steps.iter().filter_map(Step::leases);
        let missing = group.lease.held().into_iter().flat_map(|held| held.missing.iter().copied());
        let news: BTreeSet<IpAddr> = absent.chain(missing).collect();
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
            Written::Overslept => self.lose(id),
            Written::Done { since, steps } => {
                self.carry_out(id, &routes);
                let written = steps.iter().filter_map(Step::leases);
                let news = written.filter(|ip| first || news.contains(ip)).collect();
                self.written(id, since, steps, claim, news);
            }
        }
    }

    /// Takes note of what was written, and says so if there is something new.
    fn written(
        &mut self,
        id: GroupId,
        since: Instant,
        steps: Vec<Step>,
        claim: &Claim,
        news: BTreeSet<IpAddr>,
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
        if news.is_empty() {
            self.counters.refreshes += 1;
            return;
        }
        self.counters.installs += 1;
        let new_v6 = news
            .into_iter()
            .filter(|ip| ip.is_ipv6() && group.written.iter().any(|s| s.leases() == Some(*ip)));
        let ips: BTreeSet<IpAddr> = new_v6.collect();
        group.arriving = Some(Arriving { ips, issued: claim.issued, deadline: now + ARRIVAL_LIMIT });
        self.tell_arrivals(now);
    }

    /// Reports the groups of which nothing is on the way any more.
    pub(super) fn tell_arrivals(&mut self, now: Instant) {
        for (&id, group) in &mut self.groups {
            let done = |arriving: &mut Arriving| arriving.ips.is_empty() || arriving.deadline <= now;
            if let Some(Arriving { issued, .. }) = group.arriving.take_if(done) {
                let took = now.saturating_duration_since(issued);
                self.events.push_back(KeeperEvent::Installed { id, took });
            }
        }
    }

    /// Refreshes without looking first: nothing was heard that would make it necessary.
    fn refresh(&mut self, id: GroupId, claim: &Claim) {
        let Some(group) = self.groups.get(&id) else { return };
        let steps = group.written.clone();
        match self.write(id, &steps, claim) {
            Written::Overslept => self.lose(id),
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
            if self.groups.get(&id).is_some_and(|group| group.lease.overslept(acked, claim)) {
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

    fn lose(&mut self, id: GroupId) {
        self.counters.leases_lost += 1;
        if self.groups.get(&id).is_some_and(|group| group.lease.held().is_some()) {
            self.take_down(id, Removal::LeaseLost, Release::Lost);
        } else {
            // They went when the lease lapsed, or were written just now without anybody having been told.
            self.clear(id, Release::Lost);
        }
        let now = self.kernel.now();
        if let Some(group) = self.groups.get_mut(&id) {
            group.lease.vacate(now);
            group.arriving = None;
        }
        self.events.push_back(KeeperEvent::LeaseLost { id });
    }

    /// Removes what there is of a group and says so.
    pub(super) fn take_down(&mut self, id: GroupId, reason: Removal, release: Release) {
        self.clear(id, release);
        let now = self.kernel.now();
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.lease.vacate(now);
        group.arriving = None;
        group.refused.clear();
        group.retry_at = None;
        group.last_removal = Some(reason);
        self.events.push_back(KeeperEvent::Removed { id, reason });
    }

    /// Removes what there is of a group: addresses first, because other nodes wait for that.
    fn clear(&mut self, id: GroupId, release: Release) {
        let Some(group) = self.groups.get(&id) else { return };
        let Some(index) = group.interface else { return };
        let present = group.present();
        let managed = group.managed();
        if release == Release::Planned {
            self.reset_sessions(id, &present);
        }
        let Some(group) = self.groups.get(&id) else { return };
        let mut desired = self.desired_with_others(group, index);
        desired.addresses.clear();
        desired.labels.clear();
        let own: Vec<VipAddress> = group.config.addresses.clone();
        desired.reachable.retain(|vip| !own.contains(vip));
        match self.observe_for(id, index, &desired) {
            Ok(observed) => self.carry_out(id, &plan(index, &desired, &managed, &observed).steps),
            Err(error) => {
                // Without a look: exactly the addresses that we hold.
                let steps: Vec<Step> = present.iter().map(|&ip| delete(index, ip)).collect();
                self.carry_out(id, &steps);
                self.unobserved(error);
            }
        }
        if release == Release::Lost {
            self.reset_sessions(id, &present);
        }
    }

    /// After a change of a group: removes what it no longer wants.
    pub(super) fn drop_obsolete(&mut self, id: GroupId, before: &Managed) {
        let Some(group) = self.groups.get(&id) else { return };
        let Some(index) = group.interface.filter(|_| group.lease.held().is_some()) else { return };
        let desired = self.desired_with_others(group, index);
        let mut managed = group.managed();
        managed.addresses.extend(&before.addresses);
        managed.labels.extend(&before.labels);
        managed.subnets.extend(&before.subnets);
        match self.observe_for(id, index, &desired) {
            Ok(observed) => {
                let mut steps = plan(index, &desired, &managed, &observed).steps;
                steps.retain(|step| !step.needs_claim());
                let gone: Vec<IpAddr> = steps
                    .iter()
                    .filter_map(|step| match step {
                        Step::DeleteAddress { ip, .. } => Some(*ip),
                        _ => None,
                    })
                    .collect();
                self.reset_sessions(id, &gone);
                self.carry_out(id, &steps);
            }
            Err(error) => self.unobserved(error),
        }
    }

    /// What should be on the interface: the group's own, and the subnets that other groups need there.
    pub(super) fn desired_with_others(&self, group: &Group, index: u32) -> Desired {
        let mut desired = group.desired();
        let others = self.groups.values().filter(|other| {
            other.config.id != group.config.id
                && other.interface == Some(index)
                && other.lease.held().is_some()
        });
        for other in others {
            desired.reachable.extend(other.config.addresses.iter().copied());
        }
        desired
    }

    /// Looks at what a plan for the group needs to know, and no more: listing all labels or routes takes time.
    pub(super) fn observe_for(
        &mut self,
        id: GroupId,
        index: u32,
        desired: &Desired,
    ) -> Result<Observed, KernelError> {
        let labelled = self.groups.get(&id).is_some_and(|group| !group.labels.is_empty());
        let addresses = self.kernel.addresses(index)?;
        let mut observed = self.observe_routes(index, desired, addresses)?;
        if labelled {
            observed.labels = self.kernel.labels()?;
        }
        Ok(observed)
    }

    /// Adds our routes to a look at addresses, if there can be any.
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

    fn reset_sessions(&mut self, id: GroupId, ips: &[IpAddr]) {
        let lasting = self.groups.get(&id).map(|group| &group.config.lasting);
        let lasts = |ip: &IpAddr| lasting.is_some_and(|lasting| lasting.contains(ip));
        let ips: Vec<IpAddr> = ips.iter().copied().filter(|ip| !lasts(ip)).collect();
        if self.sessions == SessionPolicy::Leave || ips.is_empty() {
            return;
        }
        match self.kernel.reset_sessions(&ips) {
            Ok(reset) => self.counters.sessions_reset += reset as u64,
            Err(_) if self.warned_sessions => {}
            Err(error) => {
                self.warned_sessions = true;
                self.warn(Some(id), Warning::Sessions(error));
            }
        }
    }
}

fn delete(index: u32, ip: IpAddr) -> Step {
    Step::DeleteAddress { index, ip, prefix_len: crate::types::full_prefix(ip) }
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
