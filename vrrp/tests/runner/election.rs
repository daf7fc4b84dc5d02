//! Runners among themselves.

use std::time::{Duration, Instant};

use vrrp::Version;
use vrrp::router::{Reason, StateName};

use crate::Test;
use crate::capture::Capture;
use crate::fixture::{Lan, always, eventually, fast};
use crate::member::{
    Member, VIP4, VIP6, config, config_v2, config_v6, sole_active, unicast, with_first_active,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        ("two_runners_elect_the_higher_priority", two_runners_elect_the_higher_priority),
        ("three_equal_runners_elect_one", three_equal_runners_elect_one),
        ("ipv6_elects_by_link_local_multicast", ipv6_elects_by_link_local_multicast),
        ("one_router_holds_both_families", one_router_holds_both_families),
        ("unicast_reaches_the_peers_only", unicast_reaches_the_peers_only),
        ("version_2_with_a_password_as_k0s_configures_it", version_2_with_a_password_as_k0s_configures_it),
        ("sent_packets_conform_to_the_standard", sent_packets_conform_to_the_standard),
    ]
}

const SECOND: Duration = Duration::from_secs(1);

fn two_runners_elect_the_higher_priority() {
    let lan = Lan::new();
    let (a, b) = (lan.node(1), lan.node(2));
    let members = [Member::start(&a, vec![config(254, fast())]), Member::start(&b, vec![config(50, fast())])];
    let active = sole_active(&members, 3 * SECOND);
    assert_eq!(active.node.number, 1);
    always("one router each", 5 * fast(), || {
        members[0].is_active() && members[1].state() == StateName::Backup
    });
    let backup = members[1].status();
    let peer = backup.active.expect("the backup follows the active");
    assert_eq!((peer.source, peer.priority.0), (a.v4().into(), 254));
    assert!(peer.heard.elapsed() < 5 * fast());
    assert!(backup.counters.discarded.total() == 0, "{:?}", backup.counters);
    assert!(
        members[0]
            .status()
            .transitions
            .iter()
            .any(|past| past.transition.reason == Reason::ActiveSilent { source: None })
    );
}

fn three_equal_runners_elect_one() {
    let lan = Lan::new();
    let nodes = [lan.node(1), lan.node(2), lan.node(3)];
    let members: Vec<_> = nodes.iter().map(|node| Member::start(node, vec![config_v2(200)])).collect();
    let active = sole_active(&members, 5 * SECOND).node.number;
    always("the same one", 3 * SECOND, || {
        members.iter().all(|member| member.is_active() == (member.node.number == active))
    });
    for member in &members {
        let counters = member.status().counters;
        assert_eq!(counters.became_active, u64::from(member.node.number == active), "no bounce");
    }
}

fn ipv6_elects_by_link_local_multicast() {
    let lan = Lan::new();
    let (a, b) = (lan.node(1), lan.node(2));
    let members = with_first_active(vec![(&a, config_v6(150, fast())), (&b, config_v6(100, fast()))]);
    assert_eq!(sole_active(&members, 3 * SECOND).node.number, 1);
    let peer = eventually("the backup hears the active", SECOND, || members[1].status().active);
    assert_eq!(Some(peer.source), a.interface("eth0").and_then(|interface| interface.v6).map(Into::into));
}

fn one_router_holds_both_families() {
    let lan = Lan::new();
    let (a, b, observer) = (lan.node(1), lan.node(2), lan.node(9));
    let capture = Capture::on(&observer);
    let mut both = config(150, fast());
    both.router.addresses_v6 = vec![VIP6];
    let mut lower = both.clone();
    lower.router.priority = vrrp::Priority::new(120).expect("a priority");
    let members = with_first_active(vec![(&a, both), (&b, lower)]);
    assert_eq!(sole_active(&members, 3 * SECOND).node.number, 1);
    let settled = Instant::now() + 2 * fast();
    always("one owner", 10 * fast(), || members[0].is_active() && !members[1].is_active());
    let seen = capture.advertisements(settled);
    let a = a.interface("eth0").expect("eth0");
    let owner = [a.v4.map(Into::into), a.v6.map(Into::into)];
    for source in owner {
        let count = seen.iter().filter(|seen| Some(seen.source) == source).count();
        assert!((4..=10).contains(&count), "{count} advertisements from {source:?}");
    }
    assert!(seen.iter().all(|seen| owner.contains(&Some(seen.source))), "{seen:?}");
    assert!(members[1].status().counters.follower_received > 0, "the IPv6 advertisements arrive, too");
}

fn unicast_reaches_the_peers_only() {
    let lan = Lan::new();
    let (a, b, stranger, observer) = (lan.node(1), lan.node(2), lan.node(3), lan.node(9));
    let capture = Capture::on(&observer);
    let first = unicast(config(200, fast()), &[b.v4().into()]);
    let second = unicast(config(100, fast()), &[a.v4().into()]);
    let members = with_first_active(vec![(&a, first), (&b, second)]);
    assert_eq!(sole_active(&members, 3 * SECOND).node.number, 1);
    // A stranger of the highest priority that sends to both changes nothing.
    let intruder =
        Member::start(&stranger, vec![unicast(config(254, fast()), &[a.v4().into(), b.v4().into()])]);
    eventually("the stranger is heard", 3 * SECOND, || {
        let discarded = members[0].status().counters.discarded;
        (discarded.get(vrrp::router::Discard::UnknownPeer) > 3).then_some(())
    });
    assert!(intruder.is_active() && members[0].is_active() && !members[1].is_active());
    assert!(capture.advertisements(Instant::now() - 10 * SECOND).is_empty(), "nothing goes to the group");
}

fn version_2_with_a_password_as_k0s_configures_it() {
    let lan = Lan::new();
    let (a, b, c) = (lan.node(1), lan.node(2), lan.node(3));
    let mut wrong = config_v2(254);
    wrong.router.auth = Some(vrrp::AuthPass::new("secret").expect("a password"));
    let members = with_first_active(vec![(&a, config_v2(200)), (&b, config_v2(150))]);
    assert_eq!(sole_active(&members, 5 * SECOND).node.number, 1);
    let other = Member::start(&c, vec![wrong]);
    eventually("the wrong password is seen", 6 * SECOND, || {
        let discarded = members[0].status().counters.discarded;
        (discarded.get(vrrp::router::Discard::Password) > 0).then_some(())
    });
    assert!(other.status().counters.discarded.get(vrrp::router::Discard::Password) > 0);
    assert!(members[0].is_active() && !members[1].is_active());
}

fn sent_packets_conform_to_the_standard() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let mut both = config(177, fast());
    both.router.addresses_v6 = vec![VIP6];
    let member = Member::start(&a, vec![both]);
    member.await_state(StateName::Active, 3 * SECOND);
    let start = Instant::now() - 10 * SECOND;
    eventually("several advertisements", 3 * SECOND, || {
        (capture.advertisements(start).len() > 6).then_some(())
    });
    for seen in capture.advertisements(start) {
        assert_eq!((seen.ttl, seen.traffic_class), (255, 0xc0), "{seen:?}");
        assert_eq!((seen.advertisement.version, seen.advertisement.priority.0), (Version::V3, 177));
        assert_eq!(seen.advertisement.interval.get(), fast());
        let vip = if seen.source.is_ipv4() { VIP4.into() } else { VIP6.into() };
        assert!(seen.advertisement.addresses.len() == 1 && seen.advertisement.addresses.contains(vip));
    }
}
