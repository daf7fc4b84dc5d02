//! Two controllers that both hold an instance's addresses, as their reports tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vrrp::router::StateName;

use super::PeerState;

/// The time for which both must hold them: reports are up to an interval old, and a handover overlaps on purpose.
const LASTING: Duration = Duration::from_secs(3);

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
    /// The peers that have held the addresses of an instance together with this node for a while. `active` are the
    /// instances for which this node is Active.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        active: &BTreeSet<u8>,
        peers: &[PeerState],
    ) -> BTreeSet<Holder> {
        let holders: BTreeSet<Holder> = peers.iter().flat_map(|peer| holders(peer, active)).collect();
        self.since.retain(|holder, _| holders.contains(holder));
        for holder in holders {
            self.since.entry(holder).or_insert(now);
        }
        let lasting =
            self.since.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= LASTING);
        lasting.map(|(holder, _)| holder.clone()).collect()
    }
}

fn holders(peer: &PeerState, active: &BTreeSet<u8>) -> Vec<Holder> {
    let held = peer.report.instances.iter().filter(|instance| {
        instance.state == Some(StateName::Active) && instance.claim > 0 && active.contains(&instance.vrid)
    });
    let holder = |vrid| Holder { vrid, peer: peer.address, node: peer.report.node.clone() };
    held.map(|instance| holder(instance.vrid)).collect()
}

#[cfg(test)]
mod tests {
    use vrrp::channel::{InstanceReport, Report};

    use super::*;

    fn peer(state: StateName, claim: u32, now: Instant) -> PeerState {
        let instances = vec![InstanceReport { vrid: 51, state: Some(state), priority: 200, claim }];
        let report = Report { node: "node-2".to_owned(), instances, ..Report::default() };
        PeerState { address: [10, 0, 0, 12].into(), report, heard: now, authenticated: true, clock_ahead: 0 }
    }

    #[test]
    fn two_holders_are_named_once_they_last_and_no_longer_than_that() {
        let start = Instant::now();
        let mut contention = Contention::default();
        let mut look = |millis, active: &[u8], peer: PeerState| {
            let now = start + Duration::from_millis(millis);
            contention.look(now, &active.iter().copied().collect(), &[peer]).len()
        };
        let active = |claim| peer(StateName::Active, claim, start);
        assert_eq!(look(0, &[51], active(2900)), 0, "a handover overlaps");
        assert_eq!(look(2999, &[51], active(2900)), 0);
        assert_eq!(look(3000, &[51], active(2900)), 1);
        assert_eq!(look(3500, &[51], peer(StateName::Backup, 0, start)), 0);
        assert_eq!(look(4000, &[51], active(2900)), 0, "counted anew");
        assert_eq!(look(9000, &[52], active(2900)), 0, "of another instance");
        assert_eq!(look(9500, &[51], active(0)), 0, "without a claim");
        assert_eq!(look(20_000, &[51], active(0)), 0);
    }
}
