//! The latest sequence of each sender.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::sequence::Sequence;

/// The most senders that are remembered. Only holders of a key can become one.
const MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Senders(BTreeMap<IpAddr, Accepted>);

#[derive(Debug, Clone, Copy)]
struct Accepted {
    sequence: Sequence,
    key: u8,
    at: Instant,
}

/// The place of a sequence among those of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Later than all before, or the first.
    Ahead,
    /// The latest, which was signed with this key.
    Same(u8),
    /// Earlier than the latest.
    Behind,
}

impl Senders {
    /// The place of a sequence. The sender is forgotten if it has been silent for longer than `memory`.
    pub(super) fn order(&self, now: Instant, memory: Duration, source: IpAddr, sequence: Sequence) -> Order {
        match self.0.get(&source) {
            Some(accepted) if now.saturating_duration_since(accepted.at) <= memory => {
                match sequence.cmp(&accepted.sequence) {
                    std::cmp::Ordering::Greater => Order::Ahead,
                    std::cmp::Ordering::Equal => Order::Same(accepted.key),
                    std::cmp::Ordering::Less => Order::Behind,
                }
            }
            _ => Order::Ahead,
        }
    }

    /// Notes a verified message. The sender that has been silent for longest makes room.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        memory: Duration,
        source: IpAddr,
        sequence: Sequence,
        key: u8,
    ) {
        self.0.retain(|_, accepted| now.saturating_duration_since(accepted.at) <= memory);
        if self.0.len() >= MAX && !self.0.contains_key(&source) {
            let oldest = self.0.iter().min_by_key(|(_, accepted)| accepted.at).map(|(source, _)| *source);
            oldest.map(|source| self.0.remove(&source));
        }
        self.0.insert(source, Accepted { sequence, key, at: now });
    }
}
