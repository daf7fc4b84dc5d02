//! Two controllers that both hold an instance's addresses, as their reports tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vrrp::router::StateName;

use super::PeerState;

/// The time for which both must hold them: reports are up to an interval old, and a handover overlaps on purpose.
const LASTING: Duration = Duration::from_secs(3);

/// The age up to which a report shows the present holder.
const CURRENT: Duration = Duration::from_millis(2500);

/// Another holder of an instance's addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) vrid: u8,
    pub(crate) peer: IpAddr,
    pub(crate) node: String,
}

/// Watches for other holders.
#[derive(Debug, Default)]
pub(crate) struct Contention {
    since: BTreeMap<Holder, Instant>,
}

impl Contention {
    /// The peers that have held the addresses of an instance together with this node for a while. `active` are the numbers
    /// of the instances ([`group_of`](vrrp::channel::group_of)) for which this node is Active.
    pub(crate) fn observe(
        &mut self,
        now: Instant,
        active: &BTreeSet<u64>,
        peers: &[PeerState],
    ) -> BTreeSet<Holder> {
        // The last report of a node that died outlives it for a while.
        let current = peers.iter().filter(|peer| now.saturating_duration_since(peer.heard) <= CURRENT);
        let holders: BTreeSet<Holder> = current.flat_map(|peer| holders(peer, active)).collect();
        self.since.retain(|holder, _| holders.contains(holder));
        for holder in holders {
            self.since.entry(holder).or_insert(now);
        }
        let lasting =
            self.since.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= LASTING);
        lasting.map(|(holder, _)| holder.clone()).collect()
    }
}

fn holders(peer: &PeerState, active: &BTreeSet<u64>) -> Vec<Holder> {
    let held = peer.report.instances.iter().filter(|instance| {
        instance.state == Some(StateName::Active) && instance.claim > 0 && active.contains(&instance.group)
    });
    let holder = |vrid| Holder { vrid, peer: peer.address, node: peer.report.node.clone() };
    held.map(|instance| holder(instance.vrid)).collect()
}

#[cfg(test)]
mod tests {
    use vrrp::channel::{InstanceReport, Report};

    use super::*;

    fn peer(state: StateName, claim: u32, heard: Instant) -> PeerState {
        let instances = vec![InstanceReport { vrid: 51, state: Some(state), priority: 200, group: 7, claim }];
        let report = Report { node: "node-2".to_owned(), instances, ..Report::default() };
        PeerState { address: [10, 0, 0, 12].into(), report, heard, authenticated: true, clock_ahead: 0 }
    }

    #[test]
    fn two_holders_are_named_once_they_last_and_no_longer_than_that() {
        let start = Instant::now();
        let mut contention = Contention::default();
        let mut observe = |millis, active: u64, state, claim| {
            let now = start + Duration::from_millis(millis);
            contention.observe(now, &[active].into(), &[peer(state, claim, now)]).len()
        };
        assert_eq!(observe(0, 7, StateName::Active, 2900), 0, "a handover overlaps");
        assert_eq!(observe(2999, 7, StateName::Active, 2900), 0);
        assert_eq!(observe(3000, 7, StateName::Active, 2900), 1);
        assert_eq!(observe(3500, 7, StateName::Backup, 0), 0);
        assert_eq!(observe(4000, 7, StateName::Active, 2900), 0, "counted anew");
        assert_eq!(observe(9000, 8, StateName::Active, 2900), 0, "of another group with the same identifier");
        assert_eq!(observe(9500, 7, StateName::Active, 0), 0, "without a claim");
        assert_eq!(observe(20_000, 7, StateName::Active, 0), 0);
    }

    #[test]
    fn a_node_that_died_is_no_holder() {
        let start = Instant::now();
        let mut contention = Contention::default();
        for millis in (0..10_000).step_by(500) {
            let now = start + Duration::from_millis(millis);
            let holders = contention.observe(now, &[7].into(), &[peer(StateName::Active, 2900, start)]);
            assert_eq!(holders.len(), 0, "after {millis} ms");
        }
    }
}
