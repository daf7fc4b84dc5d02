//! The peers of an instance with `unicastPeers: auto`, without I/O: the controllers that are listed (by the configuration, by
//! names, by discovery now or in an earlier run), those that this node hears, and those that these hear.
//!
//! A list may be incomplete or out of date, and routers that do not know each other would both be Active. So a router that is
//! heard is a peer whatever the lists say, for as long as it is heard and a while longer: where the lists connect the routers in
//! any way, each soon knows all. Until any controller is known the instance does not take part.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The time after which a router that is not heard and not listed is no peer any more: longer than a restart takes.
const MEMORY: Duration = Duration::from_secs(60);
/// The most peers: each is sent every advertisement.
const MAX_PEERS: usize = 255;
/// The most routers that are peers because they are heard: more than a group has, and few enough for what a forger may cause.
const MAX_HEARD: usize = 32;

/// The peers of one instance.
#[derive(Debug, Default)]
pub(crate) struct AutoPeers {
    heard: BTreeMap<IpAddr, Instant>,
    current: Option<Vec<IpAddr>>,
}

impl AutoPeers {
    /// Notes routers of the group, with the times at which they were heard by this node or a router that it hears.
    pub(crate) fn hear(&mut self, routers: impl IntoIterator<Item = (IpAddr, Instant)>) {
        for (address, at) in routers {
            let last = self.heard.entry(address).or_insert(at);
            *last = (*last).max(at);
            if self.heard.len() > MAX_HEARD {
                let oldest = self.heard.iter().min_by_key(|(_, at)| **at).map(|(address, _)| *address);
                oldest.map(|address| self.heard.remove(&address));
            }
        }
    }

    /// Computes the peers from the listed controllers, which may include the addresses in `own`. `counts` tells whether an
    /// instance can have a peer at an address. Returns those that came and those that went.
    pub(crate) fn update(
        &mut self,
        now: Instant,
        listed: &BTreeSet<IpAddr>,
        own: &BTreeSet<IpAddr>,
        counts: impl Fn(IpAddr) -> bool,
    ) -> (Vec<IpAddr>, Vec<IpAddr>) {
        self.heard.retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
        let known = listed.iter().chain(self.heard.keys()).copied().filter(|ip| counts(*ip));
        let mut next = Vec::new();
        for ip in known {
            if !next.contains(&ip) {
                next.push(ip);
            }
        }
        if next.is_empty() {
            // The former peers stay: an empty list does not prove that a controller is gone.
            return (Vec::new(), Vec::new());
        }
        next.retain(|ip| !own.contains(ip));
        next.truncate(MAX_PEERS);
        let former = self.current.replace(next.clone()).unwrap_or_default();
        let without = |these: &[IpAddr], those: &[IpAddr]| -> Vec<IpAddr> {
            these.iter().filter(|ip| !those.contains(ip)).copied().collect()
        };
        (without(&next, &former), without(&former, &next))
    }

    /// The peers; `None` while no controller is known.
    pub(crate) fn current(&self) -> Option<&[IpAddr]> {
        self.current.as_deref()
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

    impl AutoPeers {
        /// Updates the peers of an IPv4 instance of node 1.
        fn of_node_1(&mut self, now: Instant, listed: &BTreeSet<IpAddr>) -> (Vec<IpAddr>, Vec<IpAddr>) {
            self.update(now, listed, &ips(&[1]), |ip| ip.is_ipv4())
        }
    }

    #[test]
    fn nothing_is_decided_until_a_controller_is_known() {
        let (mut peers, now) = (AutoPeers::default(), Instant::now());
        assert_eq!(peers.of_node_1(now, &ips(&[])), (vec![], vec![]));
        peers.of_node_1(now, &["fd00::2".parse().unwrap()].into());
        assert_eq!(peers.current(), None, "of the other family");
        // The first controller of a cluster is alone.
        assert_eq!(peers.of_node_1(now, &ips(&[1])), (vec![], vec![]));
        assert_eq!(peers.current(), Some(&[][..]));
        assert_eq!(peers.of_node_1(now, &ips(&[1, 2])), (vec![ip(2)], vec![]));
        peers.of_node_1(now, &ips(&[]));
        assert_eq!(peers.current(), Some(&[ip(2)][..]), "a list that vanished says nothing");
    }

    #[test]
    fn a_router_that_is_heard_is_a_peer_whatever_the_lists_say() {
        let (mut peers, start) = (AutoPeers::default(), Instant::now());
        let listed = ips(&[1, 2]);
        peers.hear([(ip(4), start), (ip(1), start)]);
        assert_eq!(peers.of_node_1(start, &listed), (vec![ip(2), ip(4)], vec![]));
        let later = start + MEMORY - Duration::from_secs(1);
        peers.hear([(ip(4), later), (ip(4), start)]);
        assert_eq!(peers.of_node_1(start + MEMORY, &listed), (vec![], vec![]));
        assert_eq!(peers.of_node_1(later + MEMORY, &listed), (vec![], vec![ip(4)]));
        assert_eq!(peers.of_node_1(later + MEMORY, &ips(&[1])), (vec![], vec![ip(2)]), "it left");
    }

    /// Whatever is heard, the listed controllers are peers, and a newcomer finds room.
    #[test]
    fn forged_addresses_crowd_out_no_one() {
        let (mut peers, start) = (AutoPeers::default(), Instant::now());
        let many = |net: u8| (0..=255).map(move |host| IpAddr::from([10, 0, net, host]));
        for second in 0..4 {
            let now = start + Duration::from_secs(second);
            peers.hear(many(1).chain(many(2)).map(|ip| (ip, now)));
        }
        let now = start + Duration::from_secs(5);
        peers.hear([(ip(4), now)]);
        peers.of_node_1(now, &ips(&[1, 2, 3]));
        let current = peers.current().unwrap();
        assert!([2, 3, 4].iter().all(|host| current.contains(&ip(*host))), "{current:?}");
        assert!(current.len() <= MAX_HEARD + 2);
        peers.of_node_1(now, &many(3).collect());
        assert_eq!(peers.current().unwrap().len(), MAX_PEERS);
    }

    proptest! {
        /// Routers that are heard now and those that are listed now are peers; this node itself never is one.
        #[test]
        fn peers_are_those_that_are_listed_or_heard(
            steps in proptest::collection::vec(
                (proptest::collection::btree_set(1..8u8, 0..6), proptest::option::of(1..8u8), 0..90u64), 1..20,
            ),
        ) {
            let (mut peers, mut now) = (AutoPeers::default(), Instant::now());
            for (list, heard, pause) in steps {
                now += Duration::from_secs(pause);
                let listed: BTreeSet<IpAddr> = list.iter().map(|host| ip(*host)).collect();
                peers.hear(heard.map(|host| (ip(host), now)));
                let before: Vec<IpAddr> = peers.current().unwrap_or_default().to_vec();
                let (came, went) = peers.of_node_1(now, &listed);
                let Some(current) = peers.current() else {
                    prop_assert!(listed.is_empty() && heard.is_none());
                    continue;
                };
                let wanted = listed.iter().copied().chain(heard.map(ip));
                prop_assert!(wanted.filter(|peer| *peer != ip(1)).all(|peer| current.contains(&peer)));
                prop_assert!(!current.contains(&ip(1)));
                let mut after: BTreeSet<IpAddr> = before.iter().copied().collect();
                after.retain(|peer| !went.contains(peer));
                after.extend(came);
                prop_assert_eq!(after, current.iter().copied().collect::<BTreeSet<_>>());
            }
        }
    }
}
