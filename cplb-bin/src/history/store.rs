//! The entries that this node keeps: pure, without a clock and without files.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::format::{Content, Entry, Kind, MAX_ENTRIES, shortened};
use super::time::WallTime;

/// The own transitions that are kept in their order: those that the group channel reports.
const OWN_KEPT: usize = 8;
/// The most addresses of routers whose names are kept.
const MAX_NAMES: usize = 1024;

/// The history of this node.
///
/// Inputs are [`History::start`] first, then [`History::own`], [`History::active_seen`] and [`History::peer`] in any order,
/// and [`History::stop`] last. [`History::revision`] changes with the entries.
#[derive(Debug)]
pub(crate) struct History {
    node: String,
    entries: VecDeque<Arc<Entry>>,
    /// The names of routers that report themselves, by each of their addresses.
    names: BTreeMap<IpAddr, String>,
    revision: u64,
    /// The last transitions of this node in the order in which they happened, whatever its clock showed.
    own: VecDeque<Arc<Entry>>,
    /// The revision of the last entry that no other controller can tell of.
    own_revision: u64,
}

/// A transition of an instance of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnTransition {
    pub(crate) time: WallTime,
    pub(crate) address: Option<IpAddr>,
    pub(crate) vrid: u8,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) reason: String,
    pub(crate) silence_milliseconds: Option<u32>,
}

/// Another router is Active, as this node hears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActiveSeen {
    pub(crate) time: WallTime,
    pub(crate) vrid: u8,
    /// The source of its advertisements.
    pub(crate) address: IpAddr,
    pub(crate) reason: String,
}

/// The report of another controller about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerReport {
    pub(crate) node: String,
    /// All of its addresses, the one to show first.
    pub(crate) addresses: Vec<IpAddr>,
    /// The difference of its wall clock to this node's in milliseconds, positive if it is ahead.
    pub(crate) clock_ahead: i64,
    /// Its last transitions, the newest last.
    pub(crate) transitions: Vec<PeerTransition>,
    /// True if it has no room for earlier transitions, so that some may be missing.
    pub(crate) is_full: bool,
}

/// A transition that another controller reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerTransition {
    /// By its own wall clock.
    pub(crate) time: WallTime,
    pub(crate) vrid: u8,
    /// The state left, by its name, if it reports that.
    pub(crate) from: Option<&'static str>,
    /// The state entered.
    pub(crate) to: &'static str,
    pub(crate) reason: String,
    pub(crate) silence_milliseconds: Option<u32>,
}

impl History {
    /// The history of the node with this name, with the entries of earlier runs.
    pub(crate) fn new(node: &str, content: Content) -> Self {
        let entries: VecDeque<_> = content.entries.into_iter().map(Arc::new).collect();
        let is_own = |entry: &&Arc<Entry>| entry.kind == Kind::Transition && entry.node_time.is_none();
        let mut own: VecDeque<_> = entries.iter().rev().filter(is_own).take(OWN_KEPT).cloned().collect();
        own.make_contiguous().reverse();
        Self { own, node: shortened(node), entries, names: BTreeMap::new(), revision: 0, own_revision: 0 }
    }

    /// A number that is another one whenever the entries are.
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// The [`History::revision`] of the last entry about this node itself. Those of others are reported again.
    pub(crate) const fn own_revision(&self) -> u64 {
        self.own_revision
    }

    /// The entries, the oldest first.
    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    /// The daemon starts.
    pub(crate) fn start(&mut self, time: WallTime) {
        self.bound(time);
        let since = self.entries.back().map(|last| last.time);
        let entry = Entry { since, ..Entry::new(time, Kind::Started, &self.node) };
        self.insert(entry);
    }

    /// The daemon stops because it was asked to.
    pub(crate) fn stop(&mut self, time: WallTime) {
        self.insert(Entry::new(time, Kind::Stopped, &self.node));
    }

    /// An instance of this node has changed its state.
    pub(crate) fn own(&mut self, transition: OwnTransition) {
        let OwnTransition { time, address, vrid, from, to, reason, silence_milliseconds } = transition;
        self.bound(time);
        let entry = Arc::new(Entry {
            address,
            vrid: Some(vrid),
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
            reason: shortened(&reason),
            silence_milliseconds,
            ..Entry::new(time, Kind::Transition, &self.node)
        });
        if self.own.len() == OWN_KEPT {
            self.own.pop_front();
        }
        self.own.push_back(Arc::clone(&entry));
        self.insert_shared(entry);
        self.own_revision = self.revision;
    }

    /// This node follows another Active than before.
    pub(crate) fn active_seen(&mut self, seen: ActiveSeen) {
        let ActiveSeen { time, vrid, address, reason } = seen;
        let name = self.names.get(&address).map_or("", String::as_str);
        self.insert(Entry {
            address: Some(address),
            vrid: Some(vrid),
            reason: shortened(&reason),
            ..Entry::new(time, Kind::Heard, name)
        });
    }

    /// Another controller reports itself at this time. What was known before is not added again.
    pub(crate) fn peer(&mut self, report: &PeerReport, now: WallTime) {
        let node = shortened(&report.node);
        if node.is_empty() || node == self.node {
            return;
        }
        self.learn(&node, &report.addresses);
        let is_known = |transition: &PeerTransition| {
            self.entries.iter().rev().any(|entry| is_same(entry, &node, transition))
        };
        let new: Vec<&PeerTransition> = report.transitions.iter().filter(|it| !is_known(it)).collect();
        let Some(first) = new.first() else { return };
        let to_own_clock = |time: WallTime| {
            let millis = time.millis().saturating_add_signed(report.clock_ahead.saturating_neg());
            // Nothing has happened later than now, whatever it reports.
            WallTime::from_millis(millis).min(now)
        };
        let begin = to_own_clock(first.time);
        if report.is_full
            && new.len() == report.transitions.len()
            && let Some(since) = self.last_of(&node).filter(|since| *since < begin)
        {
            self.insert(Entry { since: Some(since), ..Entry::new(begin, Kind::Gap, &node) });
        }
        let entry = |it: &&PeerTransition| Entry {
            address: report.addresses.first().copied(),
            vrid: Some(it.vrid),
            from: it.from.map(str::to_owned),
            to: Some(it.to.to_owned()),
            reason: shortened(&it.reason),
            silence_milliseconds: it.silence_milliseconds,
            node_time: Some(it.time),
            ..Entry::new(to_own_clock(it.time), Kind::Transition, &node)
        };
        let new: Vec<Entry> = new.iter().filter(|it| it.vrid > 0).map(entry).collect();
        new.into_iter().for_each(|entry| self.insert(entry));
    }

    /// The last transitions of this node's own instances, the newest last.
    pub(crate) fn last_own(&self, count: usize) -> Vec<Arc<Entry>> {
        self.own.iter().skip(self.own.len().saturating_sub(count)).cloned().collect()
    }

    /// The time of the last known transition of another controller.
    fn last_of(&self, node: &str) -> Option<WallTime> {
        let of_node = |entry: &&Arc<Entry>| entry.kind == Kind::Transition && entry.node == node;
        self.entries.iter().rev().find(of_node).map(|entry| entry.time)
    }

    /// Keeps the addresses of a controller, and names the routers that were heard before they were known.
    fn learn(&mut self, node: &str, addresses: &[IpAddr]) {
        let is_new = |address: &&IpAddr| self.names.get(address).is_none_or(|known| known != node);
        let new: Vec<IpAddr> = addresses.iter().filter(is_new).copied().collect();
        for address in new {
            if self.names.len() >= MAX_NAMES {
                self.names.clear();
            }
            self.names.insert(address, node.to_owned());
            for entry in self.entries.iter_mut().rev() {
                if entry.kind == Kind::Heard && entry.node.is_empty() && entry.address == Some(address) {
                    Arc::make_mut(entry).node = node.to_owned();
                    self.revision += 1;
                }
            }
        }
    }

    /// The clock of this node was set back: what it has noted as later happened before `now`.
    fn bound(&mut self, now: WallTime) {
        for entry in self.entries.iter_mut().rev().take_while(|entry| entry.time > now) {
            Arc::make_mut(entry).time = now;
        }
    }

    fn insert(&mut self, entry: Entry) {
        self.insert_shared(Arc::new(entry));
    }

    /// Inserts an entry by its time. If there are too many, the oldest one goes of the node that has the most.
    fn insert_shared(&mut self, entry: Arc<Entry>) {
        let at = self.entries.iter().rposition(|earlier| earlier.time <= entry.time).map_or(0, |at| at + 1);
        self.entries.insert(at, entry);
        if self.entries.len() > MAX_ENTRIES {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for entry in &self.entries {
                *counts.entry(&entry.node).or_default() += 1;
            }
            let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(node, _)| node.to_owned());
            let oldest = self.entries.iter().position(|entry| Some(&entry.node) == most.as_ref());
            let removed = oldest.and_then(|oldest| self.entries.remove(oldest).map(|_| oldest));
            if removed == Some(at) {
                // It is older than all that is kept.
                return;
            }
        }
        self.revision += 1;
    }
}

/// Returns whether an entry is this transition of another controller. Its own clock tells, which no receiver changes.
fn is_same(entry: &Entry, node: &str, transition: &PeerTransition) -> bool {
    entry.node_time == Some(transition.time)
        && entry.vrid == Some(transition.vrid)
        && entry.to.as_deref() == Some(transition.to)
        && entry.node == node
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
