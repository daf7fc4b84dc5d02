//! Links and services of other software that only a distribution's kernel supports.

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{Backend, Lan, Node, Sessions};

use super::fixture::{ipvsadm, served, with_slow_election};
use crate::support::{Cluster, PORT, Plan};

/// The port of a server of kube-proxy's service.
const OTHER_PORT: u16 = 8443;
const SESSIONS: usize = 10;

fn ip(node: &Node, command: &str) {
    node.exec("ip", command.split(' ')).unwrap_or_else(|error| panic!("{error}"));
}

/// The delivery of connections, with the reason.
fn delivery(cluster: &Cluster) -> String {
    cluster.status(0)["services"][0]["delivery"][0].to_string()
}

fn is_transparent(cluster: &Cluster) -> bool {
    delivery(cluster).contains("\"mode\":\"transparent\"")
}

/// A Service whose external address is the VIP, as kube-proxy creates it in IPVS mode, added and removed.
pub(crate) fn external_address() {
    let mut cluster = Cluster::build(Lan::builder().controllers(1), with_slow_election(Plan::default()));
    let other = Backend::echo(cluster.node(0), "behind kube-proxy", OTHER_PORT).expect("the server starts");
    cluster.start_all();
    cluster.wait_until_settled();
    cluster.wait("the delivery is transparent", || is_transparent(&cluster));
    let open = || Sessions::open(cluster.client(), cluster.address(), SESSIONS).expect("sessions open");
    let before = open();
    let vip = cluster.address().to_string();
    ip(cluster.node(0), "link add kube-ipvs0 type dummy");
    ip(cluster.node(0), &format!("addr add {}/32 dev kube-ipvs0", cluster.vip()));
    ipvsadm(&cluster, 0, &["-A", "-t", &vip, "-s", "rr"]);
    let server = SocketAddr::new(cluster.node(0).v4().into(), OTHER_PORT).to_string();
    ipvsadm(&cluster, 0, &["-a", "-t", &vip, "-r", &server, "-m"]);
    cluster.wait("the IPVS service is detected", || {
        let shown = delivery(&cluster);
        shown.contains("\"mode\":\"dnat\"") && shown.contains("IPVS")
    });
    let accepted = other.stats().accepted;
    let found = served(&cluster, 20);
    cluster.check(found.keys().all(|name| name == "api-c1"), || format!("{found:?}"));
    let beside = open();
    ipvsadm(&cluster, 0, &["-D", "-t", &vip]);
    cluster.wait("the delivery is transparent again", || is_transparent(&cluster));
    let found = served(&cluster, 20);
    cluster.check(found.keys().all(|name| name == "api-c1"), || format!("{found:?}"));
    cluster.check(other.stats().accepted == accepted, || "IPVS took connections".to_owned());
    for sessions in [before, beside] {
        cluster.wait("all sessions have an echo", || sessions.hanging(Duration::from_secs(1)) == 0);
        cluster.check(sessions.ended() == 0, || format!("{} sessions ended", sessions.ended()));
    }
}

/// The nodes' addresses and the VIP on a VLAN of `eth0`.
pub(crate) fn vlan() {
    on_link("vlan5", |node| {
        ip(node, "link add link eth0 name vlan5 type vlan id 5");
    });
}

/// `eth0` as a port of a bond.
pub(crate) fn bond() {
    on_link("bond0", |node| {
        ip(node, "link add bond0 type bond mode active-backup miimon 100");
        ip(node, "link set eth0 down");
        ip(node, "link set eth0 master bond0");
    });
}

/// Creates `link` on all nodes, with their addresses, and checks that clients of a VIP there are served.
fn on_link(link: &str, build: impl Fn(&Node)) {
    let plan = with_slow_election(Plan::default()).instance(format!("interface: {link}"));
    let mut cluster = Cluster::build(Lan::builder().controllers(2), plan);
    for node in cluster.lan.nodes() {
        build(node);
        ip(node, &format!("addr del {}/24 dev eth0", node.v4()));
        ip(node, &format!("link set {link} up"));
        ip(node, &format!("addr add {}/24 dev {link}", node.v4()));
    }
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    cluster.wait("the delivery is transparent", || is_transparent(&cluster));
    // The firewall accepts only the service's port.
    for node in cluster.lan.controllers() {
        node.exec("nft", ["add", "table", "ip", "fw"]).expect("a table");
        let rule = format!(
            "add chain ip fw input {{ type filter hook input priority 0; policy drop; }}; \
             add rule ip fw input iif lo accept; add rule ip fw input ct state established,related accept; \
             add rule ip fw input ip protocol 112 accept; add rule ip fw input tcp dport {PORT} accept"
        );
        node.exec("nft", [rule.as_str()]).expect("rules");
    }
    let found = served(&cluster, 20);
    cluster.check(found.len() == 2, || format!("{owner} is Active: {found:?}"));
}

/// `eth0` as a member of a VRF, and backends that are reached through the main table.
pub(crate) fn vrf(plan: Plan) {
    let mut cluster = Cluster::build(Lan::builder().controllers(2), with_slow_election(plan));
    for node in cluster.lan.controllers() {
        ip(node, "link add vrf0 type vrf table 10");
        ip(node, "link set vrf0 up");
        ip(node, "link set eth0 master vrf0");
        // The link was down for a moment.
        node.configure().expect("the node's addresses are configured");
        ip(node, "route add 10.9.0.0/24 dev eth0");
        ip(node, &format!("route add local {} dev vrf0", node.v4()));
        ip(node, "-6 route add fd09::/64 dev eth0");
        ip(node, &format!("-6 route add local {} dev vrf0", node.v6()));
    }
    cluster.start_all();
    cluster.wait_for_owner(None);
    for node in 0..cluster.len() {
        cluster.wait("the missing VRF setting is reported", || {
            cluster.degraded(node).contains("is in the VRF vrf0")
        });
    }
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.tcp_l3mdev_accept", "1").expect("a sysctl");
    }
    for node in 0..cluster.len() {
        cluster.wait("the VRF setting is no longer reported", || !cluster.degraded(node).contains("VRF"));
    }
    let shown = delivery(&cluster);
    cluster.check(shown.contains("dnat") && shown.contains("in the VRF vrf0"), || shown);
    cluster.wait_until_settled();
    let found = served(&cluster, 20);
    cluster.check(found.len() == 2, || format!("{found:?}"));
}
