//! The distribution of connections over servers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use testbed::{AnnouncementKind, Lan, Probe, Signal};

use super::fixture::{
    bind_to_one_address, ipvsadm, plan, served, settled, virtual_server, wait_for_servers, with_slow_election,
};
use crate::support::{Cluster, PORT, VIP_HOST};

/// Every server receives its share, the director's own too, and only the Active node has the service.
pub(crate) fn spread(kind: &str, v6: bool) {
    let mut cluster = Cluster::build(Lan::builder(), plan(kind, v6, 0));
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let method = match kind {
        "NAT" => "Masq",
        "TUN" => "Tunnel",
        _ => "Route",
    };
    // The kernel recognises the director's own server.
    let complete = |listing: &str| {
        let count = |word| listing.split_whitespace().filter(|it| *it == word).count();
        count(method) + count("Local") == 3 && count(method) >= 2
    };
    cluster.wait("IPVS has three servers", || complete(&ipvsadm(&cluster, owner, &["-Ln"])));
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(10));
    let since = Instant::now();
    let probe = probe.start(cluster.client()).expect("the probe starts");
    cluster.wait("100 requests have ended", || probe.report().samples().len() >= 100);
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

/// This holds from the first second on, though every node has the address.
pub(crate) fn arp() {
    let mut cluster = Cluster::build(Lan::builder(), plan("DR", false, 0));
    let capture = cluster.lan.capture().expect("the capture starts");
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(20)).fresh_neighbour();
    let probe = probe.start(cluster.client()).expect("the probe starts");
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    cluster.wait("100 requests have ended", || probe.report().samples().len() >= 100);
    drop(probe);
    let mac = cluster.node(owner).mac();
    let seen = capture.announcements(cluster.vip());
    let answers = |own: bool| {
        let replies = seen.iter().filter(|(_, it)| matches!(it.kind, AnnouncementKind::ArpReply));
        replies.filter(|(_, it)| (it.mac == mac) == own).count()
    };
    cluster.check(answers(true) > 0, || "the owner did not answer".to_owned());
    cluster.check(answers(false) == 0, || format!("answered: {seen:?}"));
    // The addresses on the dummy links name no one in a round of questions.
    let since = Instant::now();
    cluster.wait("a round of questions", || {
        for node in 0..cluster.len() {
            let foreign = cluster.status(node)["instances"][0]["foreignOwners"].clone();
            cluster.check(foreign == serde_json::json!([]), || foreign.to_string());
        }
        since.elapsed() > Duration::from_secs(34)
    });
    // A Backup has the address, too, and cannot check the way of a client.
    let backup = (owner + 1) % cluster.len();
    cluster.wait("the check is not made", || {
        cluster.status(backup)["instances"][0]["endToEnd"][0]["state"] == "local"
    });
}

/// IPVS has no server for the IPv6 address, but the proxy has.
pub(crate) fn other_family() {
    let mut plan = with_slow_election(plan("DR", false, 0).dual_stack());
    for line in &mut plan.spec {
        *line = line.replace("virtualServers: [", "virtualServers: [{ipAddress: 'fd09::100'}, ");
    }
    let mut cluster = Cluster::build(Lan::builder(), plan);
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let server = |ip: &str| {
        let all = cluster.status(owner)["ipvs"]["virtualServers"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|it| it["ipAddress"] == ip).unwrap_or_default()
    };
    cluster.wait("IPVS directs the IPv4 VIP", || server("10.9.0.100")["directing"] == true);
    let six = cluster.vips()[1];
    let since = Instant::now();
    let probe = Probe::to(SocketAddr::new(six, PORT)).every(Duration::from_millis(10));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    cluster.wait("30 requests have ended", || probe.report().samples().len() >= 30);
    let report = probe.stop();
    cluster.check(report.failures_since(since).is_empty(), || format!("{:?}", report.failures_since(since)));
    cluster.check(report.served_by_since(since).len() == 3, || format!("{:?}", report.samples()));
    let shown = server(&six.to_string());
    cluster.check(shown["held"] == true && shown["directing"] == false, || shown.to_string());
    cluster.check(shown["excluded"].to_string().matches("address family").count() == 3, || shown.to_string());
}

/// The servers are on another link than the address, and answer on the client's link.
pub(crate) fn two_links() {
    let lan = Lan::builder().back_link();
    let backends = "backends: {static: [10.8.0.1, 10.8.0.2, 10.8.0.3]}";
    let mut cluster = Cluster::build(lan, with_slow_election(plan("DR", false, 0).spec(backends)));
    // Some distributions set this: clients are behind another link than directors.
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.conf.eth1.rp_filter", "1").expect("the sysctl exists");
    }
    let settings = |cluster: &Cluster, node: usize| {
        ["arp_ignore", "arp_announce", "rp_filter"].map(|name| {
            cluster.node(node).sysctl(&format!("net.ipv4.conf.eth1.{name}")).expect("the sysctl exists")
        })
    };
    let before = settings(&cluster, 0);
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    wait_for_servers(&cluster, owner, 3);
    for node in 0..cluster.len() {
        cluster.wait("ARP for the VIP is suppressed on the second link", || {
            settings(&cluster, node) == ["1", "2", "2"]
        });
    }
    let served = served(&cluster, 90);
    cluster.check(served.len() == 3 && served.values().all(|count| *count >= 25), || format!("{served:?}"));
    for node in 0..cluster.len() {
        let proxied = cluster.status(node)["services"][0]["connectionsAccepted"].clone();
        cluster.check(proxied == 0, || format!("the proxy of node {node} has served {proxied}"));
    }
    // A former owner is a server again, and receives its packets by the second link.
    cluster.signal(owner, Signal::SIGTERM);
    cluster.wait_until_ended(owner);
    cluster.check(settings(&cluster, owner) == before, || format!("{:?}", settings(&cluster, owner)));
    cluster.start_daemon(owner);
    let next = cluster.wait_until_settled();
    wait_for_servers(&cluster, next, 3);
    cluster.check(next != owner, || "the former owner has the VIP again".to_owned());
    let served = self::served(&cluster, 90);
    cluster.check(served.len() == 3 && served.values().all(|count| *count >= 25), || format!("{served:?}"));
}

/// An address that no instance manages: the node that has it directs. With direct routing and tunnels, the
/// administrator configures the servers to accept it.
pub(crate) fn held_by_hand(kind: &str) {
    let vip = IpAddr::from([10, 9, 0, VIP_HOST]);
    let mut cluster = Cluster::build(Lan::builder(), plan(kind, false, 0));
    if kind == "NAT" {
        bind_to_one_address(&mut cluster);
    }
    for node in cluster.lan.controllers() {
        let own = node.v4().to_string();
        let link: &[&str] = match kind {
            "DR" => &["type", "dummy"],
            "TUN" => &["type", "ipip", "local", &own],
            _ => break,
        };
        node.exec("ip", ["link", "add", "byhand0"].iter().chain(link).copied()).expect("the link is made");
        node.exec("ip", ["link", "set", "byhand0", "up"]).expect("the link is up");
        node.exec("ip", ["addr", "add", &format!("{vip}/32"), "dev", "byhand0"])
            .expect("the address is added");
        node.set_sysctl("net.ipv4.conf.eth0.arp_ignore", "1").expect("the sysctl exists");
        node.set_sysctl("net.ipv4.conf.eth0.arp_announce", "2").expect("the sysctl exists");
    }
    let servers: Vec<String> = cluster.lan.controllers().iter().map(|node| node.v4().to_string()).collect();
    let text = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  virtualServers: [{{ipAddress: {vip}, \
         lbKind: {kind}, persistenceTimeoutSeconds: 0}}]\n  backends: {{static: [{}]}}\n",
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
    let address = format!("{vip}/24");
    let change = |node: usize, what: &str| {
        cluster
            .node(node)
            .exec("ip", ["addr", what, &address, "dev", "eth0"])
            .expect("the address is changed");
    };
    for owner in [0, 1] {
        change(owner, "add");
        cluster.client().flush_neighbours().expect("the neighbour cache is flushed");
        // Until IPVS has the service, the proxy serves, or the server on this node.
        self::served(&cluster, 30);
        cluster.wait("IPVS directs the VIP", || virtual_server(&cluster, owner)["directing"] == true);
        let served = served(&cluster, 60);
        cluster.check(served.len() == 3, || format!("{served:?}"));
        change(owner, "del");
        cluster.wait("the service is removed with the address", || {
            !ipvsadm(&cluster, owner, &["-Ln"]).contains("FWM")
        });
    }
}
