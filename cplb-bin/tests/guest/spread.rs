//! Who gets the connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use testbed::{AnnouncementKind, Lan, Probe};

use super::ground::{ipvsadm, plan, served, settled, wait_for_servers};
use crate::support::{Cluster, VIP_HOST};

/// Every server gets its share, the director's own too, and only the node that is Active has the service.
pub(crate) fn spread(kind: &str, v6: bool) {
    let mut cluster = Cluster::build(Lan::builder(), plan(kind, v6, 0));
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    cluster.wait("IPVS has three servers", || ipvsadm(&cluster, owner, &["-Ln"]).matches("->").count() == 4);
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(10));
    let since = Instant::now();
    let probe = probe.start(cluster.client()).expect("the probe starts");
    cluster.wait("a hundred requests are made", || probe.report().samples().len() >= 100);
    let report = probe.stop();
    let served: BTreeMap<String, usize> = report.served_by_since(since);
    eprintln!("{kind} {served:?}");
    cluster.check(report.failures_since(since).is_empty(), || format!("{:?}", report.failures_since(since)));
    cluster.check(served.len() == 3 && served.values().all(|count| *count >= 25), || format!("{served:?}"));
    for node in 0..cluster.len() {
        let services = ipvsadm(&cluster, node, &["-Ln", "--stats"]);
        cluster.check(services.contains("FWM") == (node == owner), || format!("node {node}: {services}"));
    }
}

pub(crate) fn persistence() {
    let (cluster, owner) = settled(plan("DR", false, 60));
    let served = served(&cluster, 50);
    cluster.check(served.len() == 1, || format!("{served:?}"));
    let listing = ipvsadm(&cluster, owner, &["-Ln"]);
    cluster.check(listing.contains("persistent 60"), || listing.clone());
}

/// From the first second on, though every node has the address.
pub(crate) fn arp() {
    let mut cluster = Cluster::build(Lan::builder(), plan("DR", false, 0));
    let capture = cluster.lan.capture().expect("the capture starts");
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(20)).fresh_neighbour();
    let probe = probe.start(cluster.client()).expect("the probe starts");
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    cluster.wait("a hundred requests are made", || probe.report().samples().len() >= 100);
    drop(probe);
    let mac = cluster.node(owner).mac();
    let seen = capture.announcements(cluster.vip());
    let answers = |own: bool| {
        let replies = seen.iter().filter(|(_, it)| matches!(it.kind, AnnouncementKind::ArpReply));
        replies.filter(|(_, it)| (it.mac == mac) == own).count()
    };
    cluster.check(answers(true) > 0, || "nobody answered".to_owned());
    cluster.check(answers(false) == 0, || format!("answered: {seen:?}"));
}

/// An address that no instance moves: whoever has it directs.
pub(crate) fn held_by_hand() {
    let vip = IpAddr::from([10, 9, 0, VIP_HOST]);
    let mut cluster = Cluster::build(Lan::builder(), plan("NAT", false, 0));
    let servers: Vec<String> = cluster.lan.controllers().iter().map(|node| node.v4().to_string()).collect();
    let text = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  virtualServers: [{{ipAddress: {vip}, \
         lbKind: NAT, persistenceTimeoutSeconds: 0}}]\n  backends: {{static: [{}]}}\n",
        servers.join(", ")
    );
    for node in 0..cluster.len() {
        let command = cluster.command(node);
        std::fs::write(cluster.config_file(node), &text).expect("the configuration is written");
        cluster.launch(node, command);
        cluster.wait("the daemon can serve", || {
            cluster.try_status(node).is_some_and(|status| status["serving"]["serving"] == true)
        });
    }
    for owner in [0, 1] {
        cluster.node(owner).add_address(vip, 24).expect("it is added");
        cluster.client().flush_neighbours().expect("they are flushed");
        wait_for_servers(&cluster, owner, 3);
        let served = served(&cluster, 60);
        cluster.check(served.len() == 3, || format!("{served:?}"));
        cluster.node(owner).delete_address(vip).expect("it is deleted");
        cluster.wait("the service goes with the address", || {
            !ipvsadm(&cluster, owner, &["-Ln"]).contains("FWM")
        });
    }
}
