//! Foreign owners: hosts that answer for the virtual addresses of an instance without being its Active.
//!
//! VRRP does not see them. A server with a leftover address, a forged ARP packet or a second cluster takes a part of the
//! clients, and every router believes that all is well. [`Owners`] listens to the neighbours' claims, asks each
//! [`Timing::interval`] who has the addresses, and names those that are not the Active. It never changes an election.
//!
//! The Active is known by its *reference*, the address that its advertisements come from: whatever link-layer address
//! answers for that one may answer for the virtual addresses, too. So bonds, keepalived's virtual MAC and proxy ARP, which
//! answers for everything, name no one. A change of the Active begins with a grace period, as its predecessor still answers
//! for a moment.
//!
//! It does no I/O and reads no clock: claims ([`parse_claim`]) and the time go in through `handle_*`, the addresses to ask for
//! and the next deadline come out through `poll_*`.

mod frame;
#[cfg(feature = "runner")]
mod socket;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use frame::{arp_probe, neighbour_solicitation, parse_claim};
#[cfg(feature = "runner")]
pub use socket::OwnersSocket;

use crate::announce::Announcement;
use crate::types::{MacAddr, Vrid};

/// The most owners that are remembered, so that forged claims cost no memory.
pub const MAX_OWNERS: usize = 64;

/// The times of [`Owners`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The time between two rounds of questions while nothing is found; a third of it afterwards.
    pub interval: Duration,
    /// The time after a first claim at which it is asked again. An owner is named if it claims for half of that.
    pub confirm: Duration,
    /// The time after a change of the Active in which claims do not count.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            confirm: Duration::from_secs(1),
            grace: Duration::from_secs(3),
        }
    }
}

/// A question for the link-layer address of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// It claims no address, so that it changes no cache (RFC 5227 §2.1.1).
    Probe(IpAddr),
    /// It claims this node's own address, as any host on the link does that has something to send. Routers with proxy ARP may
    /// answer no other question.
    Request(IpAddr),
}

/// The holder of the addresses as the election knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The source of its advertisements.
    pub reference: IpAddr,
    /// Set if it is this node.
    pub is_own: bool,
}

/// A host that answers for a virtual address and is not the Active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignOwner {
    /// The virtual address.
    pub ip: IpAddr,
    /// The link-layer address that claims it.
    pub mac: MacAddr,
    /// The first claim.
    pub first: Instant,
    /// The last claim.
    pub last: Instant,
    /// The controller that has this link-layer address, if it is one.
    pub controller: Option<IpAddr>,
}

/// The watch over the addresses of one instance on one link.
#[derive(Debug)]
pub struct Owners {
    timing: Timing,
    vrid: Vrid,
    own: MacAddr,
    addresses: BTreeSet<IpAddr>,
    controllers: BTreeSet<IpAddr>,
    holder: Option<Holder>,
    /// The time from which claims count.
    judged_from: Instant,
    /// The link-layer addresses that answer for the reference, and when they did last.
    references: BTreeMap<MacAddr, Instant>,
    /// The link-layer addresses of controllers.
    hosts: BTreeMap<MacAddr, IpAddr>,
    claims: BTreeMap<(IpAddr, MacAddr), Claims>,
    next_round: Instant,
    questions: VecDeque<Question>,
}

#[derive(Debug, Clone, Copy)]
struct Claims {
    first: Instant,
    last: Instant,
}

impl Owners {
    /// A watch on an interface with the link-layer address `own`, whose first round is due.
    #[must_use]
    pub const fn new(timing: Timing, vrid: Vrid, own: MacAddr, now: Instant) -> Self {
        Self {
            timing,
            vrid,
            own,
            addresses: BTreeSet::new(),
            controllers: BTreeSet::new(),
            holder: None,
            judged_from: now,
            references: BTreeMap::new(),
            hosts: BTreeMap::new(),
            claims: BTreeMap::new(),
            next_round: now,
            questions: VecDeque::new(),
        }
    }

    /// Replaces the virtual addresses, and the addresses of controllers on the link, by which an owner is named.
    pub fn handle_addresses(&mut self, addresses: BTreeSet<IpAddr>, controllers: BTreeSet<IpAddr>) {
        self.claims.retain(|(ip, _), _| addresses.contains(ip));
        self.hosts.retain(|_, ip| controllers.contains(ip));
        (self.addresses, self.controllers) = (addresses, controllers);
    }

    /// Tells who holds the addresses; `None` while no Active is known, when nothing is judged.
    pub fn handle_holder(&mut self, now: Instant, holder: Option<Holder>) {
        if self.holder == holder {
            return;
        }
        self.holder = holder;
        self.references.clear();
        self.claims.clear();
        self.judged_from = now + self.timing.grace;
        self.next_round = self.judged_from;
    }

    /// The holder that was told last.
    #[must_use]
    pub const fn holder(&self) -> Option<Holder> {
        self.holder
    }

    /// Handles the claim of a neighbour. Frames of this host are not to be given.
    pub fn handle_claim(&mut self, now: Instant, claim: Announcement) {
        let Announcement { ip, mac } = claim;
        let Some(holder) = self.holder else { return };
        if ip == holder.reference {
            if self.references.len() < MAX_OWNERS || self.references.contains_key(&mac) {
                self.references.insert(mac, now);
            }
            self.claims.retain(|(_, claimed), _| *claimed != mac);
            return;
        }
        if self.controllers.contains(&ip) && self.hosts.len() < MAX_OWNERS {
            self.hosts.insert(mac, ip);
        }
        if !self.addresses.contains(&ip) || now < self.judged_from {
            return;
        }
        if self.is_holder(now, holder, mac) {
            self.claims.remove(&(ip, mac));
            return;
        }
        if let Some(known) = self.claims.get_mut(&(ip, mac)) {
            known.last = now;
        } else if self.claims.len() < MAX_OWNERS {
            self.claims.insert((ip, mac), Claims { first: now, last: now });
            self.next_round = self.next_round.min(now + self.timing.confirm);
        }
    }

    /// Handles the deadline.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.next_round {
            return;
        }
        // Three questions without an answer.
        let silence = self.timing.interval + self.timing.confirm;
        self.claims.retain(|_, claims| now < claims.last + silence);
        let memory = self.memory();
        self.references.retain(|_, last| now < *last + memory);
        self.questions.clear();
        if let Some(Holder { reference, is_own }) = self.holder {
            let question = if is_own { Question::Probe } else { Question::Request };
            self.questions.push_back(question(reference));
            self.questions.extend(self.addresses.iter().map(|ip| Question::Probe(*ip)));
            if !self.claims.is_empty() {
                let others = self.controllers.iter().filter(|ip| **ip != reference);
                self.questions.extend(others.map(|ip| Question::Probe(*ip)));
            }
        }
        self.next_round =
            now + if self.claims.is_empty() { self.timing.interval } else { self.timing.interval / 3 };
    }

    /// The time at which to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub const fn poll_timeout(&self) -> Instant {
        self.next_round
    }

    /// The next question to ask.
    pub fn poll_question(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    /// The foreign owners: each has claimed an address for a while, and still does so as far as is known.
    pub fn foreign(&self) -> impl Iterator<Item = ForeignOwner> + '_ {
        let least = self.timing.confirm / 2;
        let named = self.claims.iter().filter(move |(_, claims)| claims.last - claims.first >= least);
        named.filter(|_| self.judges()).map(|((ip, mac), claims)| ForeignOwner {
            ip: *ip,
            mac: *mac,
            first: claims.first,
            last: claims.last,
            controller: self.hosts.get(mac).copied(),
        })
    }

    /// The time for which a link-layer address of the Active is remembered: two rounds and their answers.
    fn memory(&self) -> Duration {
        2 * (self.timing.interval + self.timing.confirm)
    }

    /// Returns whether the Active is told apart from others: it is this node, or has answered for its own address.
    fn judges(&self) -> bool {
        self.holder.is_some_and(|holder| holder.is_own || !self.references.is_empty())
    }

    fn is_holder(&self, now: Instant, holder: Holder, mac: MacAddr) -> bool {
        let answers = self.references.get(&mac).is_some_and(|last| now < *last + self.memory());
        let is_own = holder.is_own && mac == self.own;
        answers || is_own || (!holder.is_own && self.is_virtual(mac))
    }

    /// The link-layer addresses of RFC 9568 §7.3, which keepalived uses on request.
    fn is_virtual(&self, mac: MacAddr) -> bool {
        let [prefix @ .., vrid] = mac.0;
        matches!(prefix, [0, 0, 0x5e, 0, 1 | 2]) && vrid == self.vrid.get()
    }
}
