//! The peers of `unicastPeers: auto`, without I/O: the controllers that are listed (by the configuration, by names, by discovery
//! now or in an earlier run), those that this node hears, and those that these hear.
//!
//! A list may be incomplete or out of date, and routers that do not know each other would both be Active. So a router that is
//! heard is a peer whatever the lists say, for as long as it is heard and a while longer: where the lists connect the routers in
//! any way, each soon knows all. Until any controller is known this node does not take part.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The time after which a router that is not heard and not listed is no peer any more: longer than a restart takes.
const MEMORY: Duration = Duration::from_secs(60);
/// The most peers: each is sent every advertisement.
const MAX_PEERS: usize = 255;

/// The peers of all instances with `auto`.
#[derive(Debug, Default)]
pub(crate) struct AutoPeers {
    heard: BTreeMap<IpAddr, Instant>,
    current: Option<BTreeSet<IpAddr>>,
}

impl AutoPeers {
    /// Notes routers of the group, with the times at which they were heard by this node or a router that it hears.
    pub(crate) fn hear(&mut self, routers: impl IntoIterator<Item = (IpAddr, Instant)>) {
        for (address, at) in routers {
            if self.heard.len() < MAX_PEERS || self.heard.contains_key(&address) {
                let last = self.heard.entry(address).or_insert(at);
                *last = (*last).max(at);
            }
        }
    }

    /// Computes the peers from the listed controllers, which may include the addresses in `own`. Returns those that came and
    /// those that went.
    pub(crate) fn update(
        &mut self,
        now: Instant,
        listed: &BTreeSet<IpAddr>,
        own: &BTreeSet<IpAddr>,
    ) -> (Vec<IpAddr>, Vec<IpAddr>) {
        self.heard.retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
        if listed.is_empty() && self.heard.is_empty() {
            // What was known stays: no list is no evidence that a controller is gone.
            return (Vec::new(), Vec::new());
        }
        // Those that are heard first, as they certainly exist.
        let peers = self.heard.keys().chain(listed).filter(|ip| !own.contains(ip)).copied();
        let mut next = BTreeSet::new();
        for peer in peers {
            if next.len() < MAX_PEERS {
                next.insert(peer);
            }
        }
        let former = self.current.replace(next.clone()).unwrap_or_default();
        (next.difference(&former).copied().collect(), former.difference(&next).copied().collect())
    }

    /// The peers; `None` while no controller is known.
    pub(crate) const fn current(&self) -> Option<&BTreeSet<IpAddr>> {
        self.current.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(host: u8) -> IpAddr {
        [10, 0, 0, host].into()
    }

    fn ips(hosts: &[u8]) -> BTreeSet<IpAddr> {
        hosts.iter().map(|host| ip(*host)).collect()
    }

    #[test]
    fn nothing_is_decided_until_a_controller_is_known() {
        let (mut peers, now) = (AutoPeers::default(), Instant::now());
        assert_eq!(peers.update(now, &ips(&[]), &ips(&[1])), (vec![], vec![]));
        assert_eq!(peers.current(), None);
        // The first controller of a cluster is alone.
        assert_eq!(peers.update(now, &ips(&[1]), &ips(&[1])), (vec![], vec![]));
        assert_eq!(peers.current(), Some(&ips(&[])));
        assert_eq!(peers.update(now, &ips(&[1, 2]), &ips(&[1])), (vec![ip(2)], vec![]));
        peers.update(now, &ips(&[]), &ips(&[1]));
        assert_eq!(peers.current(), Some(&ips(&[2])), "a list that vanished says nothing");
    }

    #[test]
    fn a_router_that_is_heard_is_a_peer_whatever_the_lists_say() {
        let (mut peers, start) = (AutoPeers::default(), Instant::now());
        let (listed, own) = (ips(&[1, 2]), ips(&[1]));
        peers.hear([(ip(4), start), (ip(1), start)]);
        assert_eq!(peers.update(start, &listed, &own), (vec![ip(2), ip(4)], vec![]));
        let later = start + MEMORY - Duration::from_secs(1);
        peers.hear([(ip(4), later), (ip(4), start)]);
        assert_eq!(peers.update(start + MEMORY, &listed, &own), (vec![], vec![]));
        assert_eq!(peers.update(later + MEMORY, &listed, &own), (vec![], vec![ip(4)]));
        assert_eq!(peers.update(later + MEMORY, &ips(&[1]), &own), (vec![], vec![ip(2)]), "it left");
    }

    #[test]
    fn the_number_of_peers_is_bounded() {
        let (mut peers, now) = (AutoPeers::default(), Instant::now());
        let many = |net: u8| (0..=255).map(move |host| IpAddr::from([10, 0, net, host]));
        peers.hear(many(1).chain(many(2)).map(|ip| (ip, now)));
        peers.update(now, &many(3).collect(), &BTreeSet::new());
        assert_eq!(peers.current().unwrap().len(), MAX_PEERS);
    }

    proptest! {
        /// Two nodes that hear each other are peers of each other, whatever their lists are; this node itself never is one.
        #[test]
        fn routers_that_hear_each_other_are_peers(
            lists in proptest::collection::vec(proptest::collection::btree_set(1..8u8, 0..6), 1..10),
        ) {
            let (mut peers, now) = (AutoPeers::default(), Instant::now());
            for (second, list) in (0..).zip(lists) {
                let now = now + Duration::from_secs(second);
                let listed: BTreeSet<IpAddr> = list.iter().map(|host| ip(*host)).collect();
                peers.hear([(ip(7), now)]);
                peers.update(now, &listed, &ips(&[1]));
                let current = peers.current().unwrap();
                prop_assert!(current.contains(&ip(7)) && !current.contains(&ip(1)));
                prop_assert!(listed.iter().all(|peer| *peer == ip(1) || current.contains(peer)));
            }
        }
    }
}
