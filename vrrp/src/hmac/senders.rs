//! The latest sequence of each sender, and the time that the group follows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::sequence::Sequence;

/// The most senders that are remembered. Only holders of a key can become one.
const MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Senders {
    latest: BTreeMap<IpAddr, Accepted>,
    /// The last message that was accepted, of any sender.
    group: Option<(Sequence, Instant)>,
}

#[derive(Debug, Clone)]
struct Accepted {
    sequence: Sequence,
    /// The keys of the copies that were accepted.
    keys: Vec<u8>,
    at: Instant,
}

/// The place of a message among those of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Later than all before, or the first.
    Ahead,
    /// The latest, signed with another key.
    Copy,
    /// The latest or an earlier one.
    Replayed,
}

impl Senders {
    /// The place of a message. The sender's former messages do not count if `is_over` says so of the latest one and of
    /// the time for which the sender has been silent.
    pub(super) fn order(
        &self,
        now: Instant,
        source: IpAddr,
        sequence: Sequence,
        key: u8,
        is_over: impl FnOnce(Sequence, Duration) -> bool,
    ) -> Order {
        let Some(accepted) = self.latest.get(&source) else { return Order::Ahead };
        match sequence.cmp(&accepted.sequence) {
            std::cmp::Ordering::Greater => Order::Ahead,
            _ if is_over(accepted.sequence, now.saturating_duration_since(accepted.at)) => Order::Ahead,
            std::cmp::Ordering::Equal if !accepted.keys.contains(&key) => Order::Copy,
            _ => Order::Replayed,
        }
    }

    /// Returns whether a sequence is greater than all of this sender that are remembered, however long it has been silent.
    pub(super) fn is_newest(&self, source: IpAddr, sequence: Sequence) -> bool {
        self.latest.get(&source).is_none_or(|accepted| sequence > accepted.sequence)
    }

    /// The time of signing that a message of the group should have now, by the last one that was accepted.
    pub(super) fn group_time(&self, now: Instant) -> Option<Duration> {
        self.group.map(|(sequence, at)| sequence.time() + now.saturating_duration_since(at))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.latest.is_empty()
    }

    /// Notes an accepted message. The sender that has been silent for longest makes room.
    pub(super) fn accept(&mut self, now: Instant, source: IpAddr, sequence: Sequence, key: u8) {
        if let Some(accepted) = self.latest.get_mut(&source)
            && accepted.sequence == sequence
        {
            accepted.keys.push(key);
            return;
        }
        if self.latest.len() >= MAX && !self.latest.contains_key(&source) {
            let oldest =
                self.latest.iter().min_by_key(|(_, accepted)| accepted.at).map(|(source, _)| *source);
            oldest.map(|source| self.latest.remove(&source));
        }
        self.latest.insert(source, Accepted { sequence, keys: vec![key], at: now });
        self.group = Some((sequence, now));
    }
}
