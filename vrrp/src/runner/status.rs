//! A snapshot of everything, for `status` and metrics.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use super::InstanceId;
use crate::router::{Counters, PlannedMove, Reason, StateName, Transition};
use crate::types::{Version, Vrid, WirePriority};

/// The number of transitions that are kept per router.
const HISTORY: usize = 16;

/// The state of the runner at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunnerStatus {
    /// The time at which it was taken; at most 200 ms after the last change, unless the thread is held up.
    pub taken: Instant,
    /// Real-time priority and locked memory of the thread, or the reason why they are missing.
    pub realtime: Punctuality,
    /// The routers, by identifier.
    pub instances: Vec<InstanceStatus>,
    /// The interfaces in use, by index.
    pub interfaces: Vec<InterfaceStatus>,
}

impl RunnerStatus {
    pub(super) fn empty(now: Instant) -> Self {
        Self { taken: now, realtime: Punctuality::default(), instances: Vec::new(), interfaces: Vec::new() }
    }
}

/// The measures that keep the thread punctual.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Punctuality {
    /// The thread runs under SCHED_RR.
    pub realtime: bool,
    /// The memory of the process is locked as it is touched.
    pub memory_locked: bool,
    /// The reason for what was asked for and refused.
    pub refused: Option<String>,
}

/// One router.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct InstanceStatus {
    /// The identifier chosen by the owner.
    pub id: InstanceId,
    /// Its identifier on the wire.
    pub vrid: Vrid,
    /// The version of the advertisements that decide.
    pub version: Version,
    /// The state.
    pub state: StateName,
    /// The time at which the state was entered.
    pub since: Instant,
    /// The reason for the state.
    pub reason: Reason,
    /// The priority that it advertises, or would advertise as Active.
    pub priority: WirePriority,
    /// Set while this node counts as able to serve.
    pub serving: bool,
    /// Active_Down_Interval as it is now: with the Active's interval, where one was learned.
    pub down_interval: Duration,
    /// The interface it is on, if it is up and its sockets are open.
    pub interface: Option<String>,
    /// The Active router it follows; `None` while this router is Active itself or has heard no other.
    pub active: Option<ActivePeer>,
    /// The counters of the election.
    pub counters: Counters,
    /// The counters and maxima of its sockets and timers.
    pub traffic: Traffic,
    /// The last planned move that it took part in.
    pub last_move: Option<PlannedMove>,
    /// The last transitions, the newest last.
    pub transitions: Vec<PastTransition>,
    /// The number of transitions since the router was made, by the new state and the word of the reason
    /// ([`Reason::as_str`]).
    pub transition_totals: BTreeMap<(StateName, &'static str), u64>,
}

/// The Active router as a Backup sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ActivePeer {
    /// The source of its advertisements.
    pub source: IpAddr,
    /// The priority it advertises.
    pub priority: WirePriority,
    /// The time of its last advertisement.
    pub heard: Instant,
}

/// Counters between the wire and one router. None is ever reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Traffic {
    /// Advertisements handed to the kernel; one per peer in unicast mode.
    pub sent: u64,
    /// Advertisements that were decoded and given to the router, accepted or discarded.
    pub received: u64,
    /// Advertisements that the kernel did not take.
    pub send_errors: u64,
    /// Gratuitous ARP and neighbour advertisements handed to the kernel.
    pub announced: u64,
    /// Announcements that the kernel did not take.
    pub announce_errors: u64,
    /// The latest that a periodic advertisement ever left after it was due.
    pub latest_advertisement: Duration,
    /// The longest time between two advertisements while Active.
    pub longest_gap: Duration,
    /// The latest that any deadline was ever handled.
    pub latest_deadline: Duration,
}

/// A transition with the circumstances that only the runner can measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PastTransition {
    /// The wall-clock time.
    pub at: SystemTime,
    /// The transition; `after` is the time that the state left had lasted.
    pub transition: Transition,
    /// The time from the last advertisement of another router to the transition. For a takeover after a crash this is
    /// the time without a known Active.
    pub since_last_heard: Option<Duration>,
}

impl PastTransition {
    /// A transition at this time, without a router that was heard before.
    #[must_use]
    pub const fn new(at: SystemTime, transition: Transition) -> Self {
        Self { at, transition, since_last_heard: None }
    }
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InterfaceStatus {
    /// Its index.
    pub index: u32,
    /// Its name when it was first seen.
    pub name: String,
    /// Set while the sockets are open.
    pub open: bool,
    /// VRRP packets received, for any virtual router.
    pub received: u64,
    /// Packets that are not even the start of an advertisement.
    pub malformed: u64,
    /// Packets for routers that do not exist here, by identifier.
    pub foreign: BTreeMap<u8, u64>,
    /// Failed reads and opening attempts.
    pub errors: u64,
}

impl InterfaceStatus {
    pub(super) const fn new(index: u32, name: String) -> Self {
        Self { index, name, open: false, received: 0, malformed: 0, foreign: BTreeMap::new(), errors: 0 }
    }
}

/// The transitions of a router: the last ones, and the number of all.
#[derive(Debug, Default)]
pub(super) struct History {
    last: VecDeque<PastTransition>,
    totals: BTreeMap<(StateName, &'static str), u64>,
}

impl History {
    pub(super) fn push(&mut self, past: PastTransition) {
        if self.last.len() == HISTORY {
            self.last.pop_front();
        }
        self.last.push_back(past);
        *self.totals.entry((past.transition.to, past.transition.reason.as_str())).or_default() += 1;
    }

    pub(super) fn to_vec(&self) -> Vec<PastTransition> {
        self.last.iter().copied().collect()
    }

    pub(super) const fn totals(&self) -> &BTreeMap<(StateName, &'static str), u64> {
        &self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_transitions_are_counted_and_the_last_ones_kept() {
        let mut history = History::default();
        let past = |to, reason| PastTransition {
            at: SystemTime::UNIX_EPOCH,
            transition: Transition { from: StateName::Init, to, reason, after: Duration::ZERO },
            since_last_heard: None,
        };
        for _ in 0..HISTORY {
            history.push(past(StateName::Backup, Reason::InterfaceUp));
            history.push(past(StateName::Active, Reason::ActiveSilent { source: None }));
        }
        assert_eq!(history.to_vec().len(), HISTORY);
        let counted = [((StateName::Backup, "interface_up"), 16), ((StateName::Active, "active_silent"), 16)];
        assert_eq!(*history.totals(), counted.into());
    }
}
