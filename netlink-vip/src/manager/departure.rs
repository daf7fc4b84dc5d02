//! Addresses on their way out: first the sessions through them, then the addresses, within a bound.
//!
//! Once an address is gone not even a RST leaves in its name, and a client that waits for an answer hangs. So its
//! sessions are reset while it is still there, unless the link is down or the lease may be over. That takes about 10 µs
//! for each, so it is done in slices between which the leases of other groups are refreshed. Clients that were reset
//! may connect again as long as the address is there, so the last sessions are reset in one go with its removal.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Manager, SessionPolicy};
use crate::event::{KeeperEvent, Removal, Warning};
use crate::kernel::Kernel;
use crate::plan::{Desired, Managed, Step, plan};
use crate::select::Link;
use crate::sessions::SessionsError;
use crate::types::{GroupId, full_prefix};
use crate::wire::diag::SocketId;

/// Sessions that are ended in one slice, about a millisecond.
const SLICE: usize = 128;
/// The last sessions are ended without a turn for other groups, in so long at most.
const LAST_ROUNDS: Duration = Duration::from_millis(10);

/// Sessions may keep an address for so long.
const BASE: Duration = Duration::from_millis(100);
/// And each of them for so much longer: five times what it takes on an idle machine.
const PER_SESSION: Duration = Duration::from_micros(50);
/// But not longer than this.
const LIMIT: Duration = Duration::from_secs(1);

/// The longest delay by resetting this many sessions of the removal of their addresses, 0.1 s to 1 s: meanwhile another
/// router may have them, too.
fn reset_bound(sessions: usize) -> Duration {
    let each = PER_SESSION * u32::try_from(sessions).unwrap_or(u32::MAX / 2).min(1 << 20);
    (BASE + each).min(LIMIT)
}

/// Returns whether clients connect again about as fast as their sessions are reset.
fn is_coming_back(before: usize, found: usize) -> bool {
    found > before / 2
}

/// Addresses that go.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) id: GroupId,
    /// The interface that they are on.
    pub(super) index: u32,
    /// The objects that may be deleted with them.
    pub(super) managed: Managed,
    /// Why, if they are all of their group's.
    pub(super) reason: Option<Removal>,
    /// Those that go.
    pub(super) ips: Vec<IpAddr>,
    /// Of these, those whose sessions end with them.
    pub(super) ending: Vec<IpAddr>,
    begun: Instant,
    /// When the addresses go, whatever is left.
    until: Instant,
    phase: Phase,
    left: Vec<SocketId>,
    reset: usize,
    silent: usize,
}

/// Phase of a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Sessions are being reset; so many were found when they were last listed, if they were.
    Resetting(Option<usize>),
    /// The kernel cannot reset them, and the program that has them was asked to.
    Waiting,
    /// The addresses are gone; what is left of the sessions is closed without a word to their peers.
    Closing(Rest),
}

/// Which sessions are left when addresses have gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Those that are known. They are not listed again where a list was empty just before: the address may be on this
    /// node by other means (the dummy link of a real server), and new sessions through it are no concern of this.
    Known,
    /// All that are listed now.
    Unknown,
}

impl Departure {
    pub(super) fn new(id: GroupId, index: u32, managed: Managed, ips: Vec<IpAddr>, now: Instant) -> Self {
        let (reason, ending, left) = (None, Vec::new(), Vec::new());
        let phase = Phase::Closing(Rest::Unknown);
        Self {
            id,
            index,
            managed,
            reason,
            ips,
            ending,
            begun: now,
            until: now,
            phase,
            left,
            reset: 0,
            silent: 0,
        }
    }

    /// Returns whether its addresses are still there.
    pub(super) fn is_present(&self) -> bool {
        !matches!(self.phase, Phase::Closing(_))
    }
}

impl<K: Kernel> Manager<K> {
    /// Lets addresses go. `lease_end` is the time until which they are there by themselves; without one, as after a
    /// fault, they go at once.
    pub(super) fn depart(&mut self, mut departure: Departure, lease_end: Option<Instant>) {
        let now = self.kernel.now();
        let lasting = self.groups.get(&departure.id).map(|group| &group.config.lasting);
        let lasts = |ip: &IpAddr| lasting.is_some_and(|lasting| lasting.contains(ip));
        if self.sessions == SessionPolicy::Reset {
            departure.ending = departure.ips.iter().copied().filter(|ip| !lasts(ip)).collect();
        }
        let up = self.links.get(&departure.index).is_some_and(Link::is_up);
        let time_left = lease_end.filter(|end| up && now < *end && !departure.ending.is_empty());
        let Some(end) = time_left else {
            self.remove_addresses(&mut departure, Rest::Unknown);
            self.departures.push(departure);
            return;
        };
        departure.until = end;
        departure.phase = Phase::Resetting(None);
        self.departures.push(departure);
    }

    /// Returns whether [`Manager::advance`] has something to do now.
    pub(crate) fn is_busy(&self) -> bool {
        self.departures.iter().any(|departure| departure.phase != Phase::Waiting)
    }

    /// Returns whether there are departures that have not ended.
    pub(crate) fn is_departing(&self) -> bool {
        !self.departures.is_empty()
    }

    /// Does the next slice of work for addresses that go. Returns whether there was some.
    pub(crate) fn advance(&mut self) -> bool {
        let now = self.kernel.now();
        let is_due = |it: &Departure| it.phase != Phase::Waiting || it.until <= now || !self.is_up(it.index);
        // Addresses come first.
        let next = self.departures.iter().position(|it| it.is_present() && is_due(it));
        let Some(at) = next.or_else(|| self.departures.iter().position(is_due)) else { return false };
        let mut departure = self.departures.swap_remove(at);
        if departure.is_present() && (departure.until <= now || !self.is_up(departure.index)) {
            self.remove_addresses(&mut departure, Rest::Unknown);
        }
        let done = match departure.phase {
            Phase::Resetting(_) => {
                self.reset_slice(&mut departure);
                false
            }
            Phase::Waiting => false,
            Phase::Closing(rest) => self.close_slice(&mut departure, rest),
        };
        if done {
            self.conclude(departure);
        } else {
            self.departures.push(departure);
        }
        true
    }

    /// When an address goes whose sessions the kernel cannot reset.
    pub(super) fn departure_deadline(&self) -> Option<Instant> {
        self.departures.iter().filter(|it| it.phase == Phase::Waiting).map(|it| it.until).min()
    }

    /// Some of these addresses are about to be held again: what of them is still going goes now, and its sessions stay.
    pub(super) fn cut_departures_short(&mut self, ips: &[IpAddr]) {
        let overlaps = |it: &Departure| it.ips.iter().any(|ip| ips.contains(ip));
        while let Some(at) = self.departures.iter().position(overlaps) {
            let mut departure = self.departures.swap_remove(at);
            if departure.is_present() {
                self.remove_addresses(&mut departure, Rest::Known);
            }
            self.conclude(departure);
        }
    }

    /// Returns whether a group has been taken down, and its addresses are still there.
    pub(super) fn has_departing(&self, id: GroupId) -> bool {
        let held = self.groups.get(&id).is_some_and(|group| group.lease.held().is_some());
        !held && self.departures.iter().any(|it| it.id == id && it.reason.is_some() && it.is_present())
    }

    /// No time is left for the addresses of a group that are going.
    pub(super) fn end_departures_now(&mut self, id: GroupId) {
        let now = self.kernel.now();
        let mut going: Vec<Departure> =
            self.departures.extract_if(.., |it| it.id == id && it.is_present()).collect();
        for departure in &mut going {
            departure.until = now;
            self.remove_addresses(departure, Rest::Unknown);
        }
        self.departures.extend(going);
    }

    fn is_up(&self, index: u32) -> bool {
        self.links.get(&index).is_some_and(Link::is_up)
    }

    fn reset_slice(&mut self, departure: &mut Departure) {
        let Phase::Resetting(before) = departure.phase else { return };
        if !departure.left.is_empty() {
            self.end_slice(departure);
            return;
        }
        let found = self.list_sessions(departure);
        if found == 0 {
            return;
        }
        if before.is_none() {
            departure.until = departure.until.min(departure.begun + reset_bound(found));
        }
        if found <= SLICE || before.is_some_and(|before| is_coming_back(before, found)) {
            self.end_last(departure);
        } else {
            self.end_slice(departure);
        }
    }

    /// Ends the listed sessions and those of clients that connect again meanwhile, then removes the addresses, without
    /// a turn for other groups in between: in such a turn more clients would connect again, and hang when the addresses
    /// are gone. Goes back to slices if this takes too long.
    fn end_last(&mut self, departure: &mut Departure) {
        let deadline = departure.until.min(self.kernel.now() + LAST_ROUNDS);
        let mut before = departure.left.len();
        loop {
            while !departure.left.is_empty() {
                if self.kernel.now() >= deadline || !self.end_slice(departure) {
                    return;
                }
            }
            if before == 0 {
                break;
            }
            let found = self.list_sessions(departure);
            if found == 0 {
                return;
            }
            // Another round would find as many: this one is the last.
            before = if is_coming_back(before, found) { 0 } else { found };
        }
        self.remove_addresses(departure, Rest::Unknown);
        // Looked for at once: later the address may be on this node by other means.
        self.close_slice(departure, Rest::Unknown);
    }

    /// Lists the sessions to reset. Without any, the addresses are removed. Returns how many are left.
    fn list_sessions(&mut self, departure: &mut Departure) -> usize {
        match self.kernel.sessions(&departure.ending) {
            Ok(found) if found.is_empty() => self.remove_addresses(departure, Rest::Known),
            Ok(found) => {
                departure.phase = Phase::Resetting(Some(found.len()));
                departure.left = found;
            }
            Err(error) => self.cannot_reset(departure, error),
        }
        departure.left.len()
    }

    /// Resets the next of the listed sessions. Returns whether the kernel can.
    fn end_slice(&mut self, departure: &mut Departure) -> bool {
        let later = departure.left.split_off(departure.left.len().min(SLICE));
        let slice = std::mem::replace(&mut departure.left, later);
        match self.kernel.end_sessions(&slice) {
            Ok(ended) => departure.reset += ended,
            Err(error) => {
                self.cannot_reset(departure, error);
                return false;
            }
        }
        true
    }

    /// Returns whether that was all.
    fn close_slice(&mut self, departure: &mut Departure, rest: Rest) -> bool {
        if departure.left.is_empty() {
            if rest == Rest::Known || departure.ending.is_empty() {
                return true;
            }
            departure.phase = Phase::Closing(Rest::Known);
            match self.kernel.sessions(&departure.ending) {
                Ok(found) if found.is_empty() => return true,
                Ok(found) => departure.left = found,
                Err(error) => {
                    self.leave_sessions(departure, error);
                    return true;
                }
            }
        }
        let later = departure.left.split_off(departure.left.len().min(SLICE));
        let slice = std::mem::replace(&mut departure.left, later);
        match self.kernel.end_sessions(&slice) {
            Ok(ended) => departure.silent += ended,
            Err(error) => {
                self.leave_sessions(departure, error);
                return true;
            }
        }
        false
    }

    /// Leaves the sessions to the program that has them, for which the addresses stay a little longer.
    fn cannot_reset(&mut self, departure: &mut Departure, error: SessionsError) {
        let now = self.kernel.now();
        departure.until = departure.until.min(now + BASE);
        departure.phase = Phase::Waiting;
        self.leave_sessions(departure, error);
    }

    fn leave_sessions(&mut self, departure: &mut Departure, error: SessionsError) {
        let id = departure.id;
        departure.left.clear();
        let ips = std::mem::take(&mut departure.ending);
        self.events.push_back(KeeperEvent::SessionsLeft { id, ips });
        if !std::mem::replace(&mut self.warned_sessions, true) {
            self.warn(Some(id), Warning::Sessions(error));
        }
    }

    fn remove_addresses(&mut self, departure: &mut Departure, rest: Rest) {
        departure.phase = Phase::Closing(rest);
        let Departure { id, index, .. } = *departure;
        let desired = self.desired_beside(id, index);
        match self.observe_for(&departure.managed, index, &desired) {
            Ok(observed) => {
                let mut steps = plan(index, &desired, &departure.managed, &observed).steps;
                steps.retain(|step| !step.needs_claim());
                self.carry_out(id, &steps);
            }
            Err(error) => {
                // Without reading the tables: exactly the addresses that go.
                let delete = |&ip| Step::DeleteAddress { index, ip, prefix_len: full_prefix(ip) };
                let steps: Vec<Step> = departure.ips.iter().map(delete).collect();
                self.carry_out(id, &steps);
                self.read_failed(error);
            }
        }
        if let Some(reason) = departure.reason {
            self.events.push_back(KeeperEvent::Removed { id, reason });
        }
    }

    /// The desired state of an interface when addresses of a group go.
    fn desired_beside(&self, id: GroupId, index: u32) -> Desired {
        let group = self.groups.get(&id).filter(|group| group.interface == Some(index));
        match group.filter(|group| group.lease.held().is_some()) {
            Some(group) => self.desired_with_others(group, index),
            None => Desired { reachable: self.reachable_for_others(id, index), ..Desired::default() },
        }
    }

    fn conclude(&mut self, departure: Departure) {
        let Departure { id, ips, begun, reset, silent, .. } = departure;
        self.counters.sessions_reset += reset as u64;
        self.counters.sessions_silent += silent as u64;
        if reset + silent > 0 {
            let took = self.kernel.now().saturating_duration_since(begun);
            self.events.push_back(KeeperEvent::SessionsEnded { id, ips, reset, silent, took });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_grows_with_the_sessions_and_ends_at_a_second() {
        let ms = Duration::from_millis;
        assert_eq!([0, 1_000, 8_000].map(reset_bound), [ms(100), ms(150), ms(500)]);
        assert_eq!([18_000, 1_000_000, usize::MAX].map(reset_bound), [ms(1_000); 3]);
    }
}
