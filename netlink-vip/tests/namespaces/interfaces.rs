//! Interfaces that are not there, go, come, change their name, or are chosen by a route; groups that share one.

use netlink_vip::{
    GroupState, InterfaceSelector, InterfaceState, Inventory, KeeperEvent, Release, Removal, VipAddress,
    VipGroupConfig,
};

use crate::fixture::{Fixture, MS, ONE, Observer, TWO, group};

crate::trials![
    an_interface_that_is_missing_at_the_start_is_waited_for,
    an_interface_that_vanishes_takes_the_group_to_waiting,
    a_renamed_interface_is_another_one,
    a_mac_is_followed_through_a_rename,
    the_best_default_route_chooses_the_interface,
    an_ipv6_default_route_chooses_where_there_is_no_other,
    a_subnet_chooses_where_there_is_no_default_route,
    an_inventory_chooses_as_the_keeper_does,
    a_vip_is_listed_after_the_nodes_own_address_of_whatever_subnet,
    two_groups_share_an_interface_and_a_route,
    groups_trade_and_inherit_addresses,
    groups_are_added_changed_and_removed_at_work,
    a_node_with_several_addresses_of_a_subnet_has_its_vips_written_once,
];

fn interface(
    keeper: &Observer,
    what: &str,
    matches: impl Fn(Option<&InterfaceState>) -> bool,
) -> Option<InterfaceState> {
    let event = keeper
        .wait(what, |event| matches!(event, KeeperEvent::Interface { state, .. } if matches(state.as_ref())));
    let KeeperEvent::Interface { state, .. } = event.1 else { unreachable!() };
    state
}

fn named(keeper: &Observer, name: &str) -> InterfaceState {
    interface(keeper, name, |state| state.is_some_and(|state| state.up && state.name == name)).unwrap()
}

fn selected(fixture: &Fixture, interface: InterfaceSelector, addresses: &[&str]) -> Observer {
    fixture.keeper(vec![VipGroupConfig { interface, ..group(ONE, "", addresses) }])
}

fn an_interface_that_is_missing_at_the_start_is_waited_for(fixture: &Fixture) {
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24"])]);
    interface(&keeper, "None", |state| state.is_none());
    keeper.shows("waiting", |status| status.groups[0].state == GroupState::WaitingForInterface);
    keeper.claim(ONE);
    fixture.until("a counted claim", || {
        keeper.handle.status().counters.claims_without_interface > 0 || {
            keeper.claim(ONE);
            false
        }
    });
    fixture.veth("eth0", "peer0");
    let state = named(&keeper, "eth0");
    assert!(state.mac.is_some() && state.source_v4().is_none());
    fixture.ip("addr add 10.0.0.1/24 dev eth0");
    let state =
        interface(&keeper, "the address", |state| state.is_some_and(|state| state.source_v4().is_some()));
    assert_eq!(state.unwrap().source_v4(), Some([10, 0, 0, 1].into()));
    interface(&keeper, "a ready link-local address", |state| {
        state.is_some_and(|state| state.source_v6().is_some())
    });
    keeper.install(ONE);
    keeper.end();
}

fn an_interface_that_vanishes_takes_the_group_to_waiting(fixture: &Fixture) {
    fixture.with_eth0();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64"])]);
    keeper.install(ONE);
    fixture.ip("link del eth0");
    let (_, event) = keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
    let KeeperEvent::Removed { reason, .. } = event else { unreachable!() };
    assert!(matches!(reason, Removal::InterfaceGone | Removal::InterfaceDown), "{reason:?}");
    interface(&keeper, "None", |state| state.is_none());
    assert!(!fixture.ip("addrlabel list").contains("fd00::100"), "its label went with it");
    fixture.with_eth0();
    named(&keeper, "eth0");
    keeper.install(ONE);
    assert!(fixture.has("fd00::100"));
    keeper.end();
}

fn a_renamed_interface_is_another_one(fixture: &Fixture) {
    fixture.with_eth0();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24"])]);
    keeper.install(ONE);
    fixture.ip("link set eth0 name lan0");
    interface(&keeper, "None", |state| state.is_none());
    assert!(!fixture.has("10.0.0.100"));
    fixture.ip("link set lan0 name eth0");
    named(&keeper, "eth0");
    keeper.install(ONE);
    keeper.end();
}

fn a_mac_is_followed_through_a_rename(fixture: &Fixture) {
    fixture.with_eth0();
    fixture.veth("eth1", "peer1");
    fixture.ip("link set eth0 address 02:00:00:00:00:aa");
    let mac = [2, 0, 0, 0, 0, 0xaa];
    let keeper = selected(fixture, InterfaceSelector::Mac(mac), &["10.0.0.100/24"]);
    assert_eq!(named(&keeper, "eth0").mac, Some(mac));
    keeper.install(ONE);
    fixture.ip("link set eth0 name lan0");
    named(&keeper, "lan0");
    assert!(fixture.has("10.0.0.100"), "the same interface");
    keeper.shows("held", |status| matches!(status.groups[0].state, GroupState::Held { .. }));
    fixture.ip("link set lan0 address 02:00:00:00:00:bb");
    interface(&keeper, "None", |state| state.is_none());
    fixture.ip("link set eth1 address 02:00:00:00:00:aa");
    named(&keeper, "eth1");
    keeper.end();
}

fn the_best_default_route_chooses_the_interface(fixture: &Fixture) {
    fixture.with_eth0();
    fixture.veth("eth1", "peer1");
    fixture.ip("addr add 10.0.1.1/24 dev eth1");
    fixture.ip("route add default via 10.0.0.254 dev eth0 metric 100");
    fixture.ip("route add default via 10.0.1.254 dev eth1 metric 200");
    let keeper = selected(fixture, InterfaceSelector::DefaultRoute, &["10.0.0.100/24"]);
    named(&keeper, "eth0");
    keeper.install(ONE);

    // A route that vanishes for a moment moves nothing.
    fixture.ip("route del default via 10.0.0.254 dev eth0 metric 100");
    std::thread::sleep(300 * MS);
    fixture.ip("route add default via 10.0.0.254 dev eth0 metric 100");
    std::thread::sleep(1_200 * MS);
    assert!(keeper.said().iter().all(|event| !matches!(event, KeeperEvent::Interface { .. })));

    fixture.ip("route add default via 10.0.1.254 dev eth1 metric 50");
    named(&keeper, "eth1");
    assert!(!fixture.has("10.0.0.100"), "it does not stay behind");
    fixture.ip("route flush exact 0.0.0.0/0");
    std::thread::sleep(1_500 * MS);
    assert!(keeper.said().is_empty(), "without any default route the interface stays");
    keeper.end();
}

fn an_ipv6_default_route_chooses_where_there_is_no_other(fixture: &Fixture) {
    fixture.with_eth0();
    fixture.veth("eth1", "peer1");
    fixture.ip("-6 route add default via fd00::fe dev eth0 metric 1024");
    fixture.ip("addr add 10.0.1.1/24 dev eth1");
    fixture.ip("route add default via 10.0.1.254 dev eth1 metric 10");
    let v4 = selected(fixture, InterfaceSelector::DefaultRoute, &["10.0.1.100/24"]);
    named(&v4, "eth1");
    let v6 = selected(fixture, InterfaceSelector::DefaultRoute, &["fd00::100/64"]);
    named(&v6, "eth0");
    fixture.ip("route del default");
    let other = selected(fixture, InterfaceSelector::DefaultRoute, &["10.0.0.101/24"]);
    named(&other, "eth0");
    for keeper in [v4, v6, other] {
        keeper.end();
    }
}

fn a_subnet_chooses_where_there_is_no_default_route(fixture: &Fixture) {
    fixture.with_eth0();
    fixture.veth("eth1", "peer1");
    let keeper = selected(fixture, InterfaceSelector::DefaultRoute, &["10.0.1.100/24"]);
    interface(&keeper, "None", |state| state.is_none());
    // Its address comes later, as by DHCP.
    fixture.ip("addr add 10.0.1.1/24 dev eth1");
    named(&keeper, "eth1");
    keeper.install(ONE);
    fixture.ip("route add default via 10.0.0.254 dev eth0");
    named(&keeper, "eth0");
    keeper.end();
}

fn an_inventory_chooses_as_the_keeper_does(fixture: &Fixture) {
    fixture.with_eth0();
    fixture.ip("link property add dev eth0 altname enx02000000000001uplink");
    let vips: Vec<VipAddress> = group(ONE, "", &["10.0.0.100/24"]).addresses;
    let here = Inventory::read().expect("the kernel answers");
    let name = InterfaceSelector::Name("enx02000000000001uplink".to_owned());
    assert_eq!(here.select(&name, &vips), Some("eth0"));
    assert_eq!(
        here.select(&InterfaceSelector::DefaultRoute, &vips),
        Some("eth0"),
        "its subnet covers the VIP"
    );
    fixture.veth("eth1", "peer1");
    fixture.ip("addr add 10.0.1.1/24 dev eth1");
    fixture.ip("route add default via 10.0.0.254 dev eth0 metric 100");
    fixture.ip("route add default via 10.0.1.254 dev eth1 metric 200");
    let keeper = selected(fixture, InterfaceSelector::DefaultRoute, &["10.0.0.100/24"]);
    for (chosen, next_route) in [("eth0", "metric 50"), ("eth1", "metric 60")] {
        named(&keeper, chosen);
        let there = Inventory::read().expect("the kernel answers");
        assert_eq!(there.select(&InterfaceSelector::DefaultRoute, &vips), Some(chosen), "the best metric");
        fixture.ip(&format!("route add default via 10.0.1.254 dev eth1 {next_route}"));
    }
    keeper.end();
    let eth0 = here.interfaces().find(|interface| interface.name == "eth0").unwrap();
    assert_eq!(eth0.alternative_names, ["enx02000000000001uplink"]);
    assert!(eth0.addresses.contains(&([10, 0, 0, 1].into(), 24)) && eth0.vrf.is_none());
}

/// Programs such as network plugins take the first address, and the kernel its source.
fn a_vip_is_listed_after_the_nodes_own_address_of_whatever_subnet(fixture: &Fixture) {
    for own in ["203.0.113.5/24", "203.0.113.5/32"] {
        fixture.veth("eth0", "peer0");
        fixture.ip(&format!("addr add {own} dev eth0"));
        fixture.ip("route add default dev eth0");
        let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24"])]);
        named(&keeper, "eth0");
        keeper.install(ONE);
        let first = || {
            let shown = fixture.ip("-4 -o addr show dev eth0");
            let place = |ip: &str| shown.find(ip).expect(&shown);
            let source = fixture.ip("route get 10.0.0.7") + &fixture.ip("route get 192.0.2.1");
            place("203.0.113.5") < place("10.0.0.100") && source.matches("src 203.0.113.5").count() == 2
        };
        assert!(first(), "{}", fixture.ip("-4 -o addr show dev eth0"));
        fixture.ip(&format!("addr del {own} dev eth0"));
        fixture.ip(&format!("addr add {own} dev eth0"));
        fixture.ip("route replace default dev eth0");
        fixture.until("the VIP is behind it again", || {
            keeper.claim(ONE);
            first()
        });
        keeper.end();
        fixture.ip("link del eth0");
    }
}

fn two_groups_share_an_interface_and_a_route(fixture: &Fixture) {
    fixture.with_eth0();
    let groups = vec![
        group(ONE, "eth0", &["192.0.2.100/24"]),
        group(TWO, "eth0", &["192.0.2.101/24", "fd00::101/64"]),
    ];
    let keeper = fixture.keeper(groups);
    keeper.install(ONE);
    keeper.install(TWO);
    let routed =
        || fixture.ip("route show").contains("192.0.2.0/24 dev eth0 proto 203 scope link metric 1024");
    assert!(routed() && fixture.has("192.0.2.100") && fixture.has("192.0.2.101") && fixture.has("fd00::101"));
    keeper.handle.release(ONE, Release::Lost);
    keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { id: ONE, .. }));
    assert!(
        !fixture.has("192.0.2.100") && fixture.has("192.0.2.101") && routed(),
        "the other group needs the route"
    );
    fixture.ip("route del 192.0.2.0/24 dev eth0 proto 203");
    fixture.until("the route is restored", routed);
    keeper.handle.release(TWO, Release::Lost);
    keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { id: TWO, .. }));
    assert!(!routed() && !fixture.has("fd00::101"));
    keeper.end();
}

fn groups_trade_and_inherit_addresses(fixture: &Fixture) {
    fixture.with_eth0();
    let before = fixture.tables();
    let keeper = fixture.keeper(vec![
        group(ONE, "eth0", &["10.0.0.100/24"]),
        group(TWO, "eth0", &["10.0.0.101/24", "fd00::101/64"]),
    ]);
    keeper.install(ONE);
    keeper.install(TWO);
    let traded =
        vec![group(ONE, "eth0", &["10.0.0.101/24", "fd00::101/64"]), group(TWO, "eth0", &["10.0.0.100/24"])];
    keeper.handle.set_groups(traded.clone()).unwrap();
    fixture.until("they wait for claims", || !fixture.has("10.0.0.100") && !fixture.has("10.0.0.101"));
    keeper.install(ONE);
    assert!(fixture.has("10.0.0.101") && fixture.has("fd00::101") && !fixture.has("10.0.0.100"));
    keeper.install(TWO);
    assert!(fixture.has("10.0.0.101") && fixture.has("10.0.0.100"));

    let twice = vec![group(ONE, "eth0", &["10.0.0.100/24"]), group(TWO, "eth0", &["10.0.0.100/24"])];
    assert!(keeper.handle.set_groups(twice).is_err(), "the outcome is checked");
    keeper.handle.set_groups(traded).unwrap();
    assert!(fixture.has("10.0.0.101") && fixture.has("10.0.0.100"), "what is equal goes on");

    let one = vec![group(ONE, "eth0", &["10.0.0.101/24", "fd00::101/64", "10.0.0.100/24"])];
    keeper.handle.set_groups(one).unwrap();
    keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { id: TWO, .. }));
    assert!(fixture.has("10.0.0.101") && !fixture.has("10.0.0.100"));
    keeper.install(ONE);
    assert!(fixture.has("10.0.0.101") && fixture.has("fd00::101") && fixture.has("10.0.0.100"));
    keeper.end();
    fixture.assert_unchanged_since(&before);
}

fn groups_are_added_changed_and_removed_at_work(fixture: &Fixture) {
    fixture.with_eth0();
    let before = fixture.tables();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "10.0.0.101/24"])]);
    keeper.install(ONE);
    keeper.handle.add_group(group(TWO, "eth0", &["fd00::100/64"])).unwrap();
    keeper.wait("Interface", |event| matches!(event, KeeperEvent::Interface { id: TWO, state: Some(_) }));
    keeper.install(TWO);
    assert!(keeper.handle.add_group(group(TWO, "eth0", &["fd00::102/64"])).is_err());
    assert!(
        keeper.handle.update_group(group(ONE, "eth0", &["fd00::100/64"])).is_err(),
        "the other group's address"
    );

    keeper.handle.update_group(group(ONE, "eth0", &["10.0.0.101/24", "10.0.0.102/24"])).unwrap();
    fixture.until("the first address is gone", || !fixture.has("10.0.0.100"));
    assert!(
        fixture.has("10.0.0.101") && !fixture.has("10.0.0.102"),
        "what stays is not touched, what comes needs a claim"
    );
    keeper.install(ONE);
    assert!(fixture.has("10.0.0.101") && fixture.has("10.0.0.102") && fixture.has("fd00::100"));

    keeper.handle.remove_group(TWO).unwrap();
    keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { id: TWO, .. }));
    assert!(!fixture.has("fd00::100") && fixture.has("10.0.0.101"));
    assert!(keeper.handle.remove_group(TWO).is_err());
    keeper.end();
    fixture.assert_unchanged_since(&before);
}

fn a_node_with_several_addresses_of_a_subnet_has_its_vips_written_once(fixture: &Fixture) {
    fixture.with_eth0();
    for own in ["10.0.0.61/24", "10.0.0.62/24"] {
        fixture.ip(&format!("addr add {own} dev eth0"));
    }
    let before = fixture.tables();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24"])]);
    keeper.install(ONE);
    keeper.handle.set_groups(vec![group(ONE, "eth0", &["10.0.0.100/24", "10.0.0.101/24"])]).unwrap();
    keeper.install(ONE);
    assert!(fixture.has("10.0.0.100") && fixture.has("10.0.0.101"));
    let refreshes = keeper.handle.status().counters.refreshes;
    keeper.while_claiming(ONE, 100 * MS, || {
        keeper.shows("leases are refreshed", |status| status.counters.refreshes >= refreshes + 3);
    });
    let said = keeper.said();
    assert!(!said.iter().any(|event| matches!(event, KeeperEvent::Installed { .. })), "{said:?}");
    keeper.end();
    fixture.assert_unchanged_since(&before);
}
