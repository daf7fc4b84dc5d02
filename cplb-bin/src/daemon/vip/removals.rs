//! Removed instances that hand their addresses over before they are forgotten.

use std::collections::BTreeMap;
use std::time::Instant;

use vrrp::runner::InstanceId;

/// The instances that hand over, each with its deadline.
#[derive(Debug, Default)]
pub(super) struct Removals(BTreeMap<InstanceId, Instant>);

impl Removals {
    /// Adds an instance that begins to hand over.
    pub(super) fn begin(&mut self, id: InstanceId, bound: Instant) {
        self.0.insert(id, bound);
    }

    /// Returns whether no instance hands over.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out the instances that have handed over or reached their deadline. `is_busy` returns whether the router of an
    /// instance runs, or its addresses are on this node.
    pub(super) fn poll(&mut self, is_busy: impl Fn(InstanceId) -> bool, now: Instant) -> Vec<InstanceId> {
        let over: Vec<InstanceId> =
            self.0.iter().filter(|(id, bound)| now >= **bound || !is_busy(**id)).map(|(id, _)| *id).collect();
        self.0.retain(|id, _| !over.contains(id));
        over
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_instance_is_removed_after_its_handover_or_at_its_deadline() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut removals = Removals::default();
        removals.begin(InstanceId(1), start + second);
        removals.begin(InstanceId(2), start + 3 * second);
        removals.begin(InstanceId(3), start + 3 * second);
        let is_busy = |id| id != InstanceId(3);
        assert_eq!(removals.poll(is_busy, start), [InstanceId(3)]);
        assert_eq!(removals.poll(is_busy, start), []);
        assert_eq!(removals.poll(is_busy, start + second), [InstanceId(1)], "its deadline has passed");
        assert!(!removals.is_empty());
        assert_eq!(removals.poll(|_| false, start + second), [InstanceId(2)]);
        assert!(removals.is_empty());
    }
}
