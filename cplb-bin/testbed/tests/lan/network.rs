//! Addresses, routes and reachability.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use testbed::{AddressPeriod, AddressWatch, Lan, Node, Test, Tool, eventually};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("all_nodes_reach_each_other", all_nodes_reach_each_other).needs([Tool::Ping]),
        Test::new("nodes_have_the_documented_configuration", nodes_have_the_documented_configuration)
            .needs([Tool::Ip]),
        Test::new("secondaries_follow_promote_secondaries", secondaries_follow_promote_secondaries),
        Test::new("leased_addresses_have_a_lifetime", leased_addresses_have_a_lifetime),
        Test::new("link_down_and_up_restores_reachability", link_down_and_up_restores_reachability)
            .needs([Tool::Ping]),
        Test::new("flush_neighbours_empties_the_cache", flush_neighbours_empties_the_cache)
            .needs([Tool::Ping]),
        Test::new("address_watch_records_every_change", address_watch_records_every_change).needs([Tool::Ip]),
        Test::new("lans_are_isolated_from_each_other", lans_are_isolated_from_each_other).needs([Tool::Ping]),
    ]
}

/// Returns whether an echo request is answered, with time for a busy machine.
pub(crate) fn pings(from: &Node, to: impl Into<IpAddr>) -> bool {
    from.exec("ping", ["-c1", "-W3", &to.into().to_string()]).is_ok()
}

/// Returns whether an echo request stays without an answer for half a second.
pub(crate) fn gets_no_reply(from: &Node, to: impl Into<IpAddr>) -> bool {
    from.exec("ping", ["-c1", "-W0.5", &to.into().to_string()]).is_err()
}

/// Waits until a node reaches an address: after a failed attempt, neighbour resolution is retried once a second only.
pub(crate) fn reaches(from: &Node, to: impl Into<IpAddr>) {
    let to = to.into();
    eventually(format!("{} reaches {to}", from.name()), Duration::from_secs(5), || pings(from, to));
}

fn all_nodes_reach_each_other() {
    let lan = Lan::builder().clients(2).routed_client(0).routed_client(2).build().expect("a LAN");
    for from in lan.nodes() {
        for to in lan.nodes().chain([lan.switch()]) {
            for ip in to.own_ips() {
                assert!(pings(from, ip), "{} does not reach {} at {ip}", from.name(), to.name());
            }
        }
    }
}

fn nodes_have_the_documented_configuration() {
    let lan = Lan::builder()
        .network_v4([192, 168, 7, 0].into(), 22)
        .network_v6("fd77::".parse().expect("an address"), 112)
        .routed_client(1)
        .build()
        .expect("a LAN");
    let c2 = lan.controller(1);
    assert_eq!(
        (c2.name(), c2.v4().to_string(), c2.v6().to_string()),
        ("c2", "192.168.7.2".into(), "fd77::2".into())
    );
    assert_eq!(lan.client(0).v6().to_string(), "fd77::101");
    assert_eq!(
        (lan.v4(100).to_string(), lan.v6(100).to_string()),
        ("192.168.7.100".into(), "fd77::100".into())
    );
    let refused =
        Lan::builder().network_v4([192, 168, 7, 0].into(), 25).build().expect_err("the network is too small");
    assert!(refused.to_string().contains("/24"), "{refused}");
    assert_eq!(c2.sysctl("net.ipv4.ip_forward").expect("a value"), "1");
    assert_eq!(lan.client(0).sysctl("net.ipv4.ip_forward").expect("a value"), "0");
    let addresses = c2.addresses().expect("addresses");
    assert!(addresses.iter().all(|address| !address.tentative && address.valid.is_none()), "{addresses:?}");
    assert!(
        addresses.iter().any(|address| address.ip == c2.v4() && address.prefix_len == 22),
        "{addresses:?}"
    );
    assert!(c2.has_address(c2.link_local()));
    assert!(c2.exec("ip", ["route"]).expect("routes").contains("default via 192.168.7.254 dev eth0"));
    assert!(c2.exec("ip", ["-6", "route"]).expect("routes").contains("default via fd77::254 dev eth0"));
    let link = c2.exec("ip", ["link", "show", "eth0"]).expect("a link");
    assert!(link.contains(&c2.mac().to_string()), "{link}");
    let behind = c2.exec("ip", ["-4", "address", "show", "dev", "cali1"]).expect("addresses");
    assert_eq!(behind, "", "the interface towards a routed client has no IPv4 address");
    let bridge = lan.switch().exec("ip", ["-d", "link", "show", "br0"]).expect("a bridge");
    for expected in ["forward_delay 0", "stp_state 0", "mcast_snooping 0"] {
        assert!(bridge.contains(expected), "{expected} in {bridge}");
    }
}

fn secondaries_follow_promote_secondaries() {
    for promote in [false, true] {
        let builder = Lan::builder().controllers(1);
        let builder = if promote { builder.promote_secondaries() } else { builder };
        let lan = builder.build().expect("a LAN");
        let node = lan.controller(0);
        node.add_address(lan.v4(50), 24).expect("a secondary address");
        node.delete_address(node.v4()).expect("the primary is deleted");
        assert_eq!(node.has_address(lan.v4(50)), promote);
    }
}

fn leased_addresses_have_a_lifetime() {
    let lan = Lan::builder().leased_addresses(Duration::from_secs(300)).build().expect("a LAN");
    let lease = |node: &Node, ip: IpAddr| {
        let addresses = node.addresses().expect("addresses");
        addresses.iter().find(|address| address.ip == ip).expect("the node's own address").valid
    };
    for ip in lan.controller(0).own_ips() {
        let lease = lease(lan.controller(0), ip).expect("a lease");
        assert!(lease > Duration::from_secs(290) && lease <= Duration::from_secs(300), "{lease:?}");
    }
    assert_eq!(lease(lan.client(0), lan.client(0).v4().into()), None);
}

fn link_down_and_up_restores_reachability() {
    let lan = Lan::builder().build().expect("a LAN");
    let (client, node) = (lan.client(0), lan.controller(0));
    assert!(pings(client, node.v6()));
    node.link_down().expect("down");
    assert!(gets_no_reply(client, node.v4()) && gets_no_reply(client, node.v6()));
    node.link_up().expect("up");
    reaches(client, node.v4());
    assert!(!node.has_address(node.v6()), "the kernel drops IPv6 addresses of a link that goes down");
    node.configure().expect("configured");
    reaches(client, node.v6());
    reaches(node, lan.v4(254));
}

fn flush_neighbours_empties_the_cache() {
    let lan = Lan::builder().build().expect("a LAN");
    let (client, node) = (lan.client(0), lan.controller(1));
    for ip in node.own_ips() {
        assert!(pings(client, ip));
        let neighbour = client.neighbour(ip).expect("the cache").expect("an entry");
        assert_eq!(neighbour.mac, Some(node.mac()));
    }
    client.flush_neighbours().expect("flushed");
    for ip in node.own_ips() {
        assert_eq!(client.neighbour(ip).expect("the cache"), None);
    }
}

fn address_watch_records_every_change() {
    let lan = Lan::builder().controllers(1).build().expect("a LAN");
    let node = lan.controller(0);
    let watch = AddressWatch::on(node).expect("a watch");
    for ip in [IpAddr::from(lan.v4(100)), lan.v6(100).into()] {
        assert!(watch.has(node.v4()) && !watch.has(ip));
        assert_eq!(watch.wait_for_loss(ip, Duration::ZERO).expect("the address is absent"), None);
        let length = if ip.is_ipv4() { "32" } else { "128" };
        let (before, address) = (Instant::now(), format!("{ip}/{length}"));
        let lease = |seconds: &str| {
            let arguments =
                ["addr", "replace", &address, "dev", "eth0", "valid_lft", seconds, "preferred_lft", "0"];
            node.exec("ip", arguments).expect("an address");
        };
        lease("30");
        let since = watch.wait_for(ip, Duration::from_secs(1)).expect("the address is present");
        assert!(since >= before);
        lease("1");
        let lost = watch
            .wait_for_loss(ip, Duration::from_secs(4))
            .expect("it expires")
            .expect("the address was present");
        assert!(lost - since >= Duration::from_millis(900), "{:?}", lost - since);
        assert_eq!(watch.periods(ip), [AddressPeriod { from: since, until: Some(lost) }]);
        // A change that is shorter than any polling interval.
        node.exec("sh", ["-c", &format!("ip addr add {address} dev eth0; ip addr del {address} dev eth0")])
            .expect("both");
        testbed::eventually("both changes are recorded", Duration::from_secs(1), || {
            watch.periods(ip).len() == 2 && !watch.has(ip)
        });
    }
}

fn lans_are_isolated_from_each_other() {
    let (one, other) =
        (Lan::builder().build().expect("a LAN"), Lan::builder().controllers(1).build().expect("a LAN"));
    assert!(pings(one.client(0), one.controller(2).v4()));
    assert!(gets_no_reply(other.client(0), one.controller(2).v4()));
    drop(one);
    assert!(pings(other.client(0), other.controller(0).v4()));
}
