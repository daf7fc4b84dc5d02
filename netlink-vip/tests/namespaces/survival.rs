//! Foreign addresses, routes and labels survive every operation on a VIP.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use netlink_vip::{AddressState, KeeperEvent, LeaseTime, Refusal, Release, VipGroupConfig, Warning};
use nix::sys::signal::Signal;

use crate::child::Remote;
use crate::fixture::{Fixture, MS, ONE, Observer, group};

crate::trials![
    the_nodes_addresses_survive_an_expiry_after_a_flush,
    the_nodes_addresses_survive_with_promotion,
    the_nodes_leased_addresses_survive,
    the_nodes_leased_addresses_survive_with_promotion,
    refreshes_add_no_route,
    a_vip_is_never_the_default_source,
    vip_is_never_the_default_source_beside_addresses_with_a_prefix_of_32_bits,
    a_foreign_address_is_refused_and_left,
    foreign_labels_stay,
    a_family_that_is_disabled_does_not_stop_the_other,
];

const VIPS: [&str; 2] = ["10.0.0.100/24", "fd00::100/64"];

fn the_nodes_addresses_survive_an_expiry_after_a_flush(fixture: &Fixture) {
    survive(fixture, "0", "");
}

fn the_nodes_addresses_survive_with_promotion(fixture: &Fixture) {
    survive(fixture, "1", "");
}

fn the_nodes_leased_addresses_survive(fixture: &Fixture) {
    survive(fixture, "0", "valid_lft 600 preferred_lft 600");
}

fn the_nodes_leased_addresses_survive_with_promotion(fixture: &Fixture) {
    survive(fixture, "1", "valid_lft 600 preferred_lft 600");
}

/// The node loses its addresses, the VIP is restored first, the node gets its addresses back, and the keeper dies:
/// when the kernel ends the lease, exactly the VIP may go.
fn survive(fixture: &Fixture, promote_secondaries: &str, lifetime: &str) {
    fixture.veth("eth0", "peer0");
    fixture.wait_for_link_local("eth0");
    fixture.wait_for_link_local("peer0");
    fixture.write_sysctl("net/ipv4/conf/eth0/promote_secondaries", promote_secondaries);
    let give_addresses = || {
        fixture.ip(&format!("addr add 10.0.0.1/24 dev eth0 {lifetime}"));
        fixture.ip(&format!("addr add 10.0.0.2/24 dev eth0 {lifetime}"));
        fixture.ip(&format!("addr add fd00::1/64 dev eth0 nodad {lifetime}"));
        fixture.ip("route replace default via 10.0.0.254 dev eth0");
        fixture.ip("-6 route replace default via fd00::fe dev eth0");
    };
    give_addresses();
    let state = fixture.fresh_state();
    let mut child = Remote::start(&state, "2", &VIPS);
    child.install();
    let before = without_vips(fixture);

    fixture.ip("addr flush dev eth0 scope global");
    fixture.ip("route flush table main");
    child.wait("Missing");
    child.wait("Missing");
    child.claim(1_800 * MS);
    child.wait("Installed");
    give_addresses();
    // The kernel brought its route back with the address; ours, which stood in for it, goes.
    fixture.until("our routes are gone", || !fixture.ip("route show table all").contains("proto 203"));
    child.claim(1_800 * MS);
    std::thread::sleep(600 * MS);
    child.claim(1_800 * MS);
    std::thread::sleep(100 * MS);
    child.signal(Signal::SIGKILL);
    child.exit_code();
    fixture.until("the end of the lease", || !fixture.has("10.0.0.100") && !fixture.has("fd00::100"));
    std::thread::sleep(200 * MS);
    assert_eq!(without_vips(fixture), before);
}

fn without_vips(fixture: &Fixture) -> Vec<String> {
    let all = fixture.tables().into_iter();
    all.filter(|line| !line.contains("10.0.0.100") && !line.contains("fd00::100")).collect()
}

fn refreshes_add_no_route(fixture: &Fixture) {
    fixture.with_eth0();
    let lease = LeaseTime::new(Duration::from_secs(6)).unwrap();
    let keeper = fixture.keeper(vec![VipGroupConfig { lease, ..group(ONE, "eth0", &VIPS) }]);
    let before = fixture.tables();
    keeper.install(ONE);
    // The kernel adds the local IPv6 route a moment after it has acknowledged the address.
    fixture.until("the local route", || fixture.ip("-6 route show table local").contains("local fd00::100 "));
    let held = fixture.tables();
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
    fixture.assert_unchanged_since(&held);
    keeper.handle.release(ONE, Release::Planned);
    keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
    fixture.assert_unchanged_since(&before);
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

fn a_vip_is_never_the_default_source(fixture: &Fixture) {
    fixture.with_eth0();
    fixture.ip("route replace default via 10.0.0.254 dev eth0");
    fixture.ip("-6 route replace default via fd00::fe dev eth0");
    let keeper =
        fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64", "192.0.2.100/24"])]);
    let vips = ["10.0.0.100", "fd00::100", "192.0.2.100"];
    let destinations = ["10.0.0.77", "203.0.113.1", "192.0.2.7", "fd00::77", "2001:db8::1", "fd12::1"];
    keeper.install(ONE);
    no_vip_is_a_source(&vips, &destinations);
    let listed = fixture.ip("-4 -o addr show dev eth0");
    assert!(
        listed.find("10.0.0.1/24") < listed.find("10.0.0.100/32"),
        "the node's address comes first: {listed}"
    );

    // The same when the VIP is older than the node's addresses.
    fixture.ip("addr del 10.0.0.1/24 dev eth0");
    fixture.ip("addr del fd00::1/64 dev eth0");
    keeper.claim(ONE);
    fixture.ip("addr add 10.0.0.1/24 dev eth0");
    fixture.ip("addr add fd00::1/64 dev eth0 nodad");
    fixture.ip("route replace default via 10.0.0.254 dev eth0");
    let first = || {
        let listed = fixture.ip("-4 -o addr show dev eth0");
        listed.find("10.0.0.1/24") < listed.find("10.0.0.100/32")
    };
    assert!(!first());
    keeper.while_claiming(ONE, 50 * MS, || {
        fixture.until("the order is restored", first);
    });
    assert!(fixture.has("10.0.0.100") && fixture.has("fd00::100"));
    no_vip_is_a_source(&vips, &destinations);
    keeper.end();
}

fn vip_is_never_the_default_source_beside_addresses_with_a_prefix_of_32_bits(fixture: &Fixture) {
    fixture.veth("eth0", "peer0");
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/32", "fd00::100/128"])]);
    // The VIP comes first, so that the kernel would find it first.
    keeper.wait("up", |event| matches!(event, KeeperEvent::Interface { state: Some(state), .. } if state.up));
    keeper.install(ONE);
    fixture.ip("addr add 10.0.0.1/32 dev eth0");
    fixture.ip("addr add fd00::1/128 dev eth0 nodad");
    fixture.ip("route add 10.0.0.254/32 dev eth0");
    fixture.ip("route replace default via 10.0.0.254 dev eth0");
    fixture.ip("-6 route add fd00::fe/128 dev eth0");
    fixture.ip("-6 route replace default via fd00::fe dev eth0");
    keeper.claim(ONE);
    assert!(fixture.has("10.0.0.100") && fixture.has("fd00::100"));
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

fn a_foreign_address_is_refused_and_left(fixture: &Fixture) {
    fixture.with_eth0();
    // As a killed keepalived leaves them.
    fixture.ip("addr add 10.0.0.100/24 dev eth0");
    fixture.ip("addr add fd00::100/128 dev eth0 nodad preferred_lft 0");
    let before = fixture.tables();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64"])]);
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
    let mut after = fixture.tables();
    after.retain(|line| !line.contains("addrlabel list: prefix fd00::100"));
    assert_eq!(after, before, "not changed into leases, not deleted");

    fixture.ip("addr del fd00::100/128 dev eth0");
    keeper.install(ONE);
    assert!(
        fixture
            .ip("addr show dev eth0")
            .contains("inet6 fd00::100/128 scope global nodad deprecated dynamic")
    );
    fixture.ip("addr del 10.0.0.100/24 dev eth0");
    keeper.while_claiming(ONE, 50 * MS, || {
        fixture.until("the IPv4 address", || fixture.has("10.0.0.100"));
    });
    assert!(fixture.ip("addr show dev eth0").contains("inet 10.0.0.100/32"));
    keeper.end();
    assert!(!fixture.has("10.0.0.100") && !fixture.has("fd00::100"));
}

fn foreign_labels_stay(fixture: &Fixture) {
    fixture.with_eth0();
    fixture.ip("addrlabel add prefix fd00::100/128 label 77");
    fixture.ip("addrlabel add prefix fd00::101/128 label 10000");
    fixture.ip("addrlabel add prefix fd00::/64 label 10000");
    let before = fixture.tables();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["fd00::100/64", "fd00::101/64", "fd00::102/64"])]);
    let (_, event) = keeper.wait("ForeignLabel", |event| {
        matches!(event, KeeperEvent::Warning { warning: Warning::ForeignLabel { found: 77, .. }, .. })
    });
    println!("{event:?}");
    keeper.install(ONE);
    assert!(fixture.ip("addrlabel list").contains("prefix fd00::102/128 label 10000"));
    keeper.end();
    fixture.assert_unchanged_since(&before);
}

fn a_family_that_is_disabled_does_not_stop_the_other(fixture: &Fixture) {
    fixture.with_eth0();
    fixture.write_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1");
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &VIPS)]);
    keeper.claim(ONE);
    assert_eq!(refusal(&keeper, "fd00::100"), Refusal::Ipv6Disabled);
    keeper.wait("Installed", |event| matches!(event, KeeperEvent::Installed { .. }));
    keeper.while_claiming(ONE, 100 * MS, || {
        std::thread::sleep(1_000 * MS);
        assert!(fixture.has("10.0.0.100"));
        assert!(
            !keeper
                .said()
                .iter()
                .any(|event| matches!(event, KeeperEvent::Installed { .. } | KeeperEvent::Refused { .. }))
        );
        fixture.write_sysctl("net/ipv6/conf/eth0/disable_ipv6", "0");
        keeper.wait("Installed", |event| matches!(event, KeeperEvent::Installed { .. }));
        assert!(fixture.has("fd00::100"));
    });
    keeper.end();
}
