//! Bridges whose packets pass the IP hooks twice, as Kubernetes requires it (`bridge-nf-call-iptables=1`).

use std::net::IpAddr;

use testbed::{Lan, Node};

use super::{delivery, is_served};
use crate::support::{Cluster, Plan};

/// Runs `ip` on a node.
fn ip(node: &Node, command: &str) {
    node.exec("ip", command.split(' ')).unwrap_or_else(|error| panic!("{error}"));
}

/// Makes `eth0` a port of a bridge that has the node's address.
fn bridge_uplink(node: &Node) {
    ip(node, "link add br0 type bridge");
    ip(node, &format!("link set br0 address {}", node.mac()));
    ip(node, "addr flush dev eth0");
    ip(node, "link set eth0 master br0");
    ip(node, "link set br0 up");
    ip(node, &format!("addr add {}/24 dev br0", node.v4()));
}

/// Makes the near end of a pod's link a port of a bridge, as most network plugins do.
fn bridge_pod(node: &Node, pod: &Node) {
    let IpAddr::V4(address) = pod.own_ips()[0] else { panic!("pods have IPv4") };
    ip(node, "link add cni0 type bridge");
    ip(node, "link set cali1 master cni0");
    ip(node, "link set cni0 up");
    ip(node, "addr add 169.254.1.1/32 dev cni0");
    ip(node, &format!("route replace {address}/32 dev cni0"));
}

pub(crate) fn vip_and_pods() {
    let lan = Lan::builder().controllers(1).routed_client(0);
    let mut cluster = Cluster::build(lan, Plan::v3("100ms").instance("interface: br0"));
    let node = cluster.node(0);
    bridge_uplink(node);
    bridge_pod(node, &cluster.lan.routed_clients()[0]);
    for table in ["iptables", "ip6tables"] {
        node.set_sysctl(&format!("net.bridge.bridge-nf-call-{table}"), "1").expect("br_netfilter");
    }
    cluster.start_all();
    cluster.wait_until_settled();
    let expected = ("dnat".to_owned(), "br0 is a bridge".to_owned());
    cluster.wait("status names the bridge", || delivery(&cluster, 0) == expected);
    let accepted = || cluster.status(0)["services"][0]["connectionsAccepted"].as_u64().expect("a number");
    for client in [cluster.client(), &cluster.lan.routed_clients()[0], cluster.node(0)] {
        let before = accepted();
        let served = is_served(client, cluster.address());
        cluster.check(served && accepted() > before, || format!("{} does not meet the proxy", client.name()));
    }
}
