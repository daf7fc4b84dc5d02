//! What is not ours survives everything that happens to a VIP.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use netlink_vip::{AddressState, KeeperEvent, LeaseTime, Refusal, Release, VipGroupConfig, Warning};
use nix::sys::signal::Signal;

use crate::child::Remote;
use crate::ground::{Ground, MS, ONE, Observer, group};

crate::trials![
    the_nodes_addresses_survive_an_expiry_after_a_flush,
    the_nodes_addresses_survive_with_promotion,
    the_nodes_leased_addresses_survive,
    the_nodes_leased_addresses_survive_with_promotion,
    refreshes_add_no_route,
    a_vip_is_never_the_default_source,
    a_vip_is_never_the_default_source_of_a_node_with_whole_addresses,
    an_address_of_somebody_else_is_refused_and_left,
    labels_of_somebody_else_stay,
    a_family_that_is_disabled_does_not_stop_the_other,
];

const VIPS: [&str; 2] = ["10.0.0.100/24", "fd00::100/64"];

fn the_nodes_addresses_survive_an_expiry_after_a_flush(ground: &Ground) {
    survive(ground, "0", "");
}

fn the_nodes_addresses_survive_with_promotion(ground: &Ground) {
    survive(ground, "1", "");
}

fn the_nodes_leased_addresses_survive(ground: &Ground) {
    survive(ground, "0", "valid_lft 600 preferred_lft 600");
}

fn the_nodes_leased_addresses_survive_with_promotion(ground: &Ground) {
    survive(ground, "1", "valid_lft 600 preferred_lft 600");
}

/// The node loses its addresses, the VIP is restored first, the node gets its addresses back, and the keeper dies:
/// when the kernel ends the lease, exactly the VIP may go.
fn survive(ground: &Ground, promote_secondaries: &str, lifetime: &str) {
    ground.veth("eth0", "peer0");
    ground.wait_for_link_local("eth0");
    ground.wait_for_link_local("peer0");
    ground.write_sysctl("net/ipv4/conf/eth0/promote_secondaries", promote_secondaries);
    let give_addresses = || {
        ground.ip(&format!("addr add 10.0.0.1/24 dev eth0 {lifetime}"));
        ground.ip(&format!("addr add 10.0.0.2/24 dev eth0 {lifetime}"));
        ground.ip(&format!("addr add fd00::1/64 dev eth0 nodad {lifetime}"));
        ground.ip("route replace default via 10.0.0.254 dev eth0");
        ground.ip("-6 route replace default via fd00::fe dev eth0");
    };
    give_addresses();
    let state = ground.fresh_state();
    let mut child = Remote::start(&state, "2", &VIPS);
    child.install();
    let before = without_vips(ground);

    ground.ip("addr flush dev eth0 scope global");
    ground.ip("route flush table main");
    child.wait("Missing");
    child.wait("Missing");
    child.claim(1_800 * MS);
    child.wait("Installed");
    give_addresses();
    // The kernel brought its route back with the address; ours, which stood in for it, goes.
    ground.until("our routes are gone", || !ground.ip("route show table all").contains("proto 203"));
    child.claim(1_800 * MS);
    std::thread::sleep(600 * MS);
    child.claim(1_800 * MS);
    std::thread::sleep(100 * MS);
    child.signal(Signal::SIGKILL);
    child.exit_code();
    ground.until("the end of the lease", || !ground.has("10.0.0.100") && !ground.has("fd00::100"));
    std::thread::sleep(200 * MS);
    assert_eq!(without_vips(ground), before);
}

fn without_vips(ground: &Ground) -> Vec<String> {
    let all = ground.tables().into_iter();
    all.filter(|line| !line.contains("10.0.0.100") && !line.contains("fd00::100")).collect()
}

fn refreshes_add_no_route(ground: &Ground) {
    ground.with_eth0();
    let lease = LeaseTime::new(Duration::from_secs(6)).unwrap();
    let keeper = ground.keeper(vec![VipGroupConfig { lease, ..group(ONE, "eth0", &VIPS) }]);
    let before = ground.tables();
    keeper.install(ONE);
    // The kernel adds the local IPv6 route a moment after it has acknowledged the address.
    ground.until("the local route", || ground.ip("-6 route show table local").contains("local fd00::100 "));
    let held = ground.tables();
    let new: Vec<_> = held.difference(&before).map(String::as_str).collect();
    let expected = [
        "-4 route show table all: local 10.0.0.100 dev eth0 table local proto kernel scope host src 10.0.0.100",
        "-6 route show table all: local fd00::100 dev eth0 table local proto kernel metric 0 pref medium",
        "-o addr show: 3: eth0 inet 10.0.0.100/32 scope global dynamic noprefixroute eth0",
        "-o addr show: 3: eth0 inet6 fd00::100/128 scope global nodad deprecated dynamic noprefixroute",
        "addrlabel list: prefix fd00::100/128 label 10000",
    ];
    assert_eq!(new, expected);
    for _ in 0..5 {
        std::thread::sleep(1_010 * MS);
        keeper.claim(ONE);
    }
    keeper.shows("the refreshes", |status| status.counters.refreshes == 5);
    ground.assert_unchanged_since(&held);
    keeper.handle.release(ONE, Release::Planned);
    keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
    ground.assert_unchanged_since(&before);
    keeper.end();
}

/// The source that the kernel chooses towards a destination.
fn source_towards(destination: &str) -> IpAddr {
    let any = if destination.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect((destination.parse::<IpAddr>().unwrap(), 9)).unwrap();
    socket.local_addr().unwrap().ip()
}

fn no_vip_is_a_source(vips: &[&str], destinations: &[&str]) {
    for destination in destinations {
        let source = source_towards(destination).to_string();
        assert!(!vips.contains(&source.as_str()), "{source} towards {destination}");
    }
}

fn a_vip_is_never_the_default_source(ground: &Ground) {
    ground.with_eth0();
    ground.ip("route replace default via 10.0.0.254 dev eth0");
    ground.ip("-6 route replace default via fd00::fe dev eth0");
    let keeper =
        ground.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64", "192.0.2.100/24"])]);
    let vips = ["10.0.0.100", "fd00::100", "192.0.2.100"];
    let destinations = ["10.0.0.77", "203.0.113.1", "192.0.2.7", "fd00::77", "2001:db8::1", "fd12::1"];
    keeper.install(ONE);
    no_vip_is_a_source(&vips, &destinations);
    let listed = ground.ip("-4 -o addr show dev eth0");
    assert!(
        listed.find("10.0.0.1/24") < listed.find("10.0.0.100/32"),
        "the node's address comes first: {listed}"
    );

    // The same when the VIP is older than the node's addresses.
    ground.ip("addr del 10.0.0.1/24 dev eth0");
    ground.ip("addr del fd00::1/64 dev eth0");
    keeper.claim(ONE);
    ground.ip("addr add 10.0.0.1/24 dev eth0");
    ground.ip("addr add fd00::1/64 dev eth0 nodad");
    ground.ip("route replace default via 10.0.0.254 dev eth0");
    let first = || {
        let listed = ground.ip("-4 -o addr show dev eth0");
        listed.find("10.0.0.1/24") < listed.find("10.0.0.100/32")
    };
    assert!(!first());
    keeper.while_claiming(ONE, 50 * MS, || {
        ground.until("the order is restored", first);
    });
    assert!(ground.has("10.0.0.100") && ground.has("fd00::100"));
    no_vip_is_a_source(&vips, &destinations);
    keeper.end();
}

fn a_vip_is_never_the_default_source_of_a_node_with_whole_addresses(ground: &Ground) {
    ground.veth("eth0", "peer0");
    let keeper = ground.keeper(vec![group(ONE, "eth0", &["10.0.0.100/32", "fd00::100/128"])]);
    // The VIP comes first, so that the kernel would find it first.
    keeper.wait("up", |event| matches!(event, KeeperEvent::Interface { state: Some(state), .. } if state.up));
    keeper.install(ONE);
    ground.ip("addr add 10.0.0.1/32 dev eth0");
    ground.ip("addr add fd00::1/128 dev eth0 nodad");
    ground.ip("route add 10.0.0.254/32 dev eth0");
    ground.ip("route replace default via 10.0.0.254 dev eth0");
    ground.ip("-6 route add fd00::fe/128 dev eth0");
    ground.ip("-6 route replace default via fd00::fe dev eth0");
    keeper.claim(ONE);
    assert!(ground.has("10.0.0.100") && ground.has("fd00::100"));
    no_vip_is_a_source(
        &["10.0.0.100", "fd00::100"],
        &["10.0.0.254", "203.0.113.1", "fd00::fe", "2001:db8::1"],
    );
    keeper.end();
}

fn refusal(keeper: &Observer, ip: &str) -> Refusal {
    let ip: IpAddr = ip.parse().unwrap();
    let (_, event) = keeper
        .wait("Refused", |event| matches!(event, KeeperEvent::Refused { ip: refused, .. } if *refused == ip));
    let KeeperEvent::Refused { reason, .. } = event else { unreachable!() };
    reason
}

fn an_address_of_somebody_else_is_refused_and_left(ground: &Ground) {
    ground.with_eth0();
    // As a killed keepalived leaves them.
    ground.ip("addr add 10.0.0.100/24 dev eth0");
    ground.ip("addr add fd00::100/128 dev eth0 nodad preferred_lft 0");
    let before = ground.tables();
    let keeper = ground.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64"])]);
    let state =
        keeper.wait("Interface", |event| matches!(event, KeeperEvent::Interface { state: Some(_), .. })).1;
    let KeeperEvent::Interface { state: Some(state), .. } = state else { unreachable!() };
    assert_eq!(state.source_v4(), Some([10, 0, 0, 1].into()), "a VIP is no source, whoever placed it");
    keeper.claim(ONE);
    let refused = refusal(&keeper, "10.0.0.100");
    assert_eq!(refused, Refusal::Foreign { prefix_len: 24 });
    assert_eq!(refusal(&keeper, "fd00::100"), Refusal::Foreign { prefix_len: 128 });
    let refused = AddressState::Refused(refused);
    keeper.shows("the refusal", |status| status.groups[0].addresses[0].state == refused);
    keeper.while_claiming(ONE, 20 * MS, || std::thread::sleep(700 * MS));
    assert!(keeper.said().is_empty(), "said once");
    keeper.handle.release(ONE, Release::Planned);
    keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
    let mut after = ground.tables();
    after.retain(|line| !line.contains("addrlabel list: prefix fd00::100"));
    assert_eq!(after, before, "not changed into leases, not deleted");

    ground.ip("addr del fd00::100/128 dev eth0");
    keeper.install(ONE);
    assert!(
        ground.ip("addr show dev eth0").contains("inet6 fd00::100/128 scope global nodad deprecated dynamic")
    );
    ground.ip("addr del 10.0.0.100/24 dev eth0");
    keeper.while_claiming(ONE, 50 * MS, || {
        ground.until("the IPv4 address", || ground.has("10.0.0.100"));
    });
    assert!(ground.ip("addr show dev eth0").contains("inet 10.0.0.100/32"));
    keeper.end();
    assert!(!ground.has("10.0.0.100") && !ground.has("fd00::100"));
}

fn labels_of_somebody_else_stay(ground: &Ground) {
    ground.with_eth0();
    ground.ip("addrlabel add prefix fd00::100/128 label 77");
    ground.ip("addrlabel add prefix fd00::101/128 label 10000");
    ground.ip("addrlabel add prefix fd00::/64 label 10000");
    let before = ground.tables();
    let keeper = ground.keeper(vec![group(ONE, "eth0", &["fd00::100/64", "fd00::101/64", "fd00::102/64"])]);
    let (_, event) = keeper.wait("ForeignLabel", |event| {
        matches!(event, KeeperEvent::Warning { warning: Warning::ForeignLabel { found: 77, .. }, .. })
    });
    println!("{event:?}");
    keeper.install(ONE);
    assert!(ground.ip("addrlabel list").contains("prefix fd00::102/128 label 10000"));
    keeper.end();
    ground.assert_unchanged_since(&before);
}

fn a_family_that_is_disabled_does_not_stop_the_other(ground: &Ground) {
    ground.with_eth0();
    ground.write_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1");
    let keeper = ground.keeper(vec![group(ONE, "eth0", &VIPS)]);
    keeper.claim(ONE);
    assert_eq!(refusal(&keeper, "fd00::100"), Refusal::Ipv6Disabled);
    keeper.wait("Installed", |event| matches!(event, KeeperEvent::Installed { .. }));
    keeper.while_claiming(ONE, 100 * MS, || {
        std::thread::sleep(1_000 * MS);
        assert!(ground.has("10.0.0.100"));
        assert!(
            !keeper
                .said()
                .iter()
                .any(|event| matches!(event, KeeperEvent::Installed { .. } | KeeperEvent::Refused { .. }))
        );
        ground.write_sysctl("net/ipv6/conf/eth0/disable_ipv6", "0");
        keeper.wait("Installed", |event| matches!(event, KeeperEvent::Installed { .. }));
        assert!(ground.has("fd00::100"));
    });
    keeper.end();
}
