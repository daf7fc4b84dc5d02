//! Other hosts that use the group's addresses or its VRID, and nodes that do not receive each other's advertisements:
//! clients stay with one controller as long as there is one, and every node's status names the other host.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use testbed::{Lan, Probe, Test};

use crate::support::packet::Packet;
use crate::support::{Cluster, OTHER_HOST, Plan};

/// Longer than three times Active_Down_Interval at k0s's settings.
const CONTENTION: Duration = Duration::from_secs(11);

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("unknown_router_and_foreign_group_are_reported_and_move_no_vip", strangers),
        Test::new("nodes_with_filtered_vrrp_report_each_other", filtered),
        Test::new("strict_reverse_path_filter_is_reported_and_one_node_is_active", reverse_path),
    ]
}

fn wait_for_report_of_every_node(cluster: &Cluster, texts: &[&str]) {
    for index in 0..cluster.len() {
        cluster.wait("the status of every node reports it", || {
            let shown = cluster.degraded(index);
            texts.iter().all(|text| shown.contains(text))
        });
        println!("MEASURED {} says {}", cluster.node(index).name(), cluster.degraded(index));
    }
}

fn probe(cluster: &Cluster) -> Probe {
    Probe::to(cluster.address())
        .every(Duration::from_millis(10))
        .start(cluster.client())
        .expect("the probe starts")
}

/// Sends the packet from the client every 100 ms until `during` returns.
fn send_beside(cluster: &Cluster, packet: &Packet, during: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                packet.send(cluster.client(), 1);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        during();
        done.store(true, Ordering::Relaxed);
    });
}

fn strangers() {
    let cluster = Cluster::start(Plan::default());
    let owner = cluster.wait_until_settled();
    let takeovers = cluster.takeovers();
    let probe = probe(&cluster);
    let client = cluster.client().v4().to_string();
    let since = Instant::now();

    let weaker = Packet::good(cluster.vip()).byte(2, 150);
    send_beside(&cluster, &weaker, || {
        wait_for_report_of_every_node(&cluster, &[&client, "is no known controller"]);
        cluster.wait("three times Active_Down_Interval are over", || since.elapsed() >= CONTENTION);
    });
    let other: Ipv4Addr = cluster.lan.v4(OTHER_HOST);
    let group = Packet::good(IpAddr::V4(other)).byte(2, 254);
    let began = Instant::now();
    send_beside(&cluster, &group, || {
        wait_for_report_of_every_node(&cluster, &[&client, &other.to_string(), "another virtualRouterID"]);
        cluster.wait("Active_Down_Interval is over", || began.elapsed() >= CONTENTION / 3);
    });

    let report = probe.stop();
    let failures = report.failures_since(since);
    println!(
        "MEASURED clients: {:?}, longest gap {:?}",
        report.served_by_since(since),
        report.blackout_since(since)
    );
    cluster.check(failures.is_empty(), || format!("new connections failed: {failures:?}"));
    cluster.check(cluster.owners() == [owner], || format!("{:?} own the VIP", cluster.owners()));
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
    let counted = cluster.status(owner)["instances"][0]["discarded"]["other_group"].as_u64();
    cluster.check(counted.is_some_and(|count| count >= 20), || format!("{counted:?}"));
}

/// A host firewall has no effect, since advertisements are received before it. Where the network drops them, each node
/// becomes Active and receives only the other nodes' announcements of the address.
fn filtered() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    let owner = cluster.wait_until_settled();
    let rules = "add table inet quiet; add chain inet quiet input { type filter hook input priority 0; }; \
                 add rule inet quiet input meta l4proto 112 counter drop";
    for node in cluster.lan.controllers() {
        node.exec("nft", [rules]).unwrap_or_else(|error| cluster.fail(&error.to_string()));
    }
    let since = Instant::now();
    cluster.wait("two times Active_Down_Interval are over", || since.elapsed() >= Duration::from_secs(1));
    cluster.check(cluster.owners() == [owner], || format!("{:?} hold the VIP", cluster.owners()));
    for index in 0..cluster.len() {
        let shown = cluster.degraded(index);
        cluster.check(!shown.contains("announces"), || shown.clone());
    }
    let rules = "add table bridge quiet; add chain bridge quiet forward { type filter hook forward priority 1; }; \
                 add rule bridge quiet forward ip protocol 112 drop";
    let switch = cluster.lan.switch();
    switch.exec("nft", [rules]).unwrap_or_else(|error| cluster.fail(&error.to_string()));
    cluster.wait("all nodes have the VIP", || cluster.owners().len() == cluster.len());
    let vip = cluster.vip().to_string();
    wait_for_report_of_every_node(&cluster, &["announces", &vip, "protocol 112"]);
    // Clients reach the node that announced the address last, and are served there.
    let probe = probe(&cluster);
    probe.wait_until_stable(Duration::from_secs(1), crate::support::TIMEOUT).expect("clients are served");
    println!(
        "MEASURED clients are served by {:?}",
        probe.stop().served_by_since(Instant::now() - Duration::from_secs(1))
    );
    switch.exec("nft", ["delete table bridge quiet"]).expect("the filter is removed");
    cluster.wait("one node has the VIP", || cluster.owners().len() == 1);
    println!("MEASURED the Active was {owner}, then all, then {:?}", cluster.owners());
}

/// `eth1` is a second interface on the same segment, and `eth0` has the route to it. The election still works, and
/// status reports that clients of the subnet are not reached.
fn reverse_path() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::default().instance("interface: eth1"));
    for (index, node) in cluster.lan.controllers().iter().enumerate() {
        let second = cluster.lan.v4(21 + u8::try_from(index).expect("three"));
        node.exec("ip", "link add link eth0 name eth1 type macvlan mode bridge".split(' '))
            .expect("a macvlan");
        node.exec("ip", "link set eth1 up".split(' ')).expect("it is up");
        node.exec("ip", format!("addr add {second}/24 dev eth1").split(' ')).expect("an address");
        node.set_sysctl("net.ipv4.conf.all.rp_filter", "1").expect("a sysctl");
        node.set_sysctl("net.ipv4.conf.eth0.rp_filter", "1").expect("a sysctl");
        node.set_sysctl("net.ipv4.conf.eth1.rp_filter", "1").expect("a sysctl");
    }
    cluster.start_all();
    let owner = cluster.wait_for_owner(None);
    wait_for_report_of_every_node(&cluster, &["rp_filter", "eth1"]);
    let probe = probe(&cluster);
    let since = Instant::now();
    cluster.wait("two times Active_Down_Interval pass without a move", || {
        cluster.check(cluster.owners() == [owner], || format!("{:?} hold the VIP", cluster.owners()));
        since.elapsed() >= Duration::from_secs(7)
    });
    let report = probe.stop();
    println!(
        "MEASURED clients: {:?}, failures {:?}",
        report.served_by_since(since),
        report.failures_since(since)
    );
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.conf.eth1.rp_filter", "2").expect("a sysctl");
    }
    for index in 0..cluster.len() {
        cluster.wait("the problem is no longer reported", || !cluster.degraded(index).contains("rp_filter"));
    }
    cluster.wait_until_settled();
    cluster.check(cluster.owners() == [owner], || "the VIP moved".to_owned());
}
