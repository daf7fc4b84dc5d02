//! Virtual IPs that a node has without a lease, and virtual IPs that it cannot hold.

use std::net::IpAddr;

use serde_json::Value;
use testbed::{Test, Tool};

use crate::support::{Cluster, Plan, VIP_HOST};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("vip_copies_without_a_lease_are_reported_on_any_interface", copies)
            .needs([Tool::Nft, Tool::Ip]),
        Test::new("vip_moves_to_a_node_that_can_hold_both_families", together).needs([Tool::Nft, Tool::Ip]),
    ]
}

fn ip(cluster: &Cluster, index: usize, arguments: &str) {
    cluster.node(index).exec("ip", arguments.split(' ')).expect("ip succeeds");
}

fn instance(cluster: &Cluster, index: usize) -> Value {
    cluster.status(index)["instances"][0].clone()
}

/// The interfaces on which a node reports a copy.
fn interfaces(cluster: &Cluster, index: usize) -> Vec<String> {
    let copies = instance(cluster, index)["copies"].as_array().cloned().unwrap_or_default();
    copies.iter().filter_map(|copy| Some(copy["interface"].as_str()?.to_owned())).collect()
}

fn degraded(cluster: &Cluster, index: usize, text: &str) -> bool {
    cluster.degraded(index).contains(text)
}

fn copies() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    let owner = cluster.wait_until_settled();
    let (loopback, backup) = ((owner + 1) % 3, (owner + 2) % 3);
    let vip = cluster.vip();
    ip(&cluster, owner, "link add kube-ipvs0 type bridge");
    ip(&cluster, owner, &format!("addr add {vip}/32 dev kube-ipvs0"));
    ip(&cluster, loopback, &format!("addr add {vip}/32 dev lo"));
    ip(&cluster, backup, &format!("addr add {vip}/24 dev eth0"));
    for (index, interface) in [(owner, "kube-ipvs0"), (loopback, "lo"), (backup, "eth0")] {
        cluster.wait("the status reports the copy", || interfaces(&cluster, index) == [interface]);
        let text = format!("is on {interface} without a lease");
        cluster.check(degraded(&cluster, index, &text), || format!("{interface} is not in degraded"));
        let log = cluster.daemon(index).log().text();
        let logged = log.matches("virtual IP without a lease on this node").count();
        cluster.check(logged == 1, || format!("logged {logged} times"));
    }
    cluster.wait("the node with a copy on its interface is unfit", || {
        instance(&cluster, backup)["unfit"].as_array().is_some_and(|unfit| unfit.len() == 1)
    });
    for index in [owner, loopback] {
        cluster.check(instance(&cluster, index)["unfit"] == Value::Array(Vec::new()), || {
            "a copy elsewhere changes the election".to_owned()
        });
    }
    cluster.check(cluster.takeovers() == 1, || "the VIP moved".to_owned());

    // The Active cannot lease an address that exists without a lifetime: the node that can hold it takes over, not the
    // other one with a copy.
    ip(&cluster, owner, &format!("addr replace {vip}/32 dev eth0"));
    cluster.wait("the node that can lease the VIP takes over", || {
        instance(&cluster, loopback)["holdsVirtualIPs"] == true
    });
    cluster.wait("the former Active is Backup", || cluster.state(owner).as_deref() == Some("backup"));
    cluster.check(cluster.takeovers() == 2, || "the VIP moved more than once".to_owned());

    for (index, copy) in [
        (owner, "32 dev kube-ipvs0"),
        (owner, "32 dev eth0"),
        (loopback, "32 dev lo"),
        (backup, "24 dev eth0"),
    ] {
        ip(&cluster, index, &format!("addr del {vip}/{copy}"));
    }
    for index in 0..3 {
        cluster.wait("no copy is reported", || {
            interfaces(&cluster, index).is_empty() && !degraded(&cluster, index, "without a lease")
        });
    }
    cluster.check(cluster.takeovers() == 2, || "the VIP moved again".to_owned());
}

fn together() {
    let cluster = Cluster::start(Plan::v3("100ms").dual_stack());
    let first = cluster.wait_until_settled();
    let v6 = IpAddr::V6(cluster.lan.v6(VIP_HOST));
    cluster.wait("both VIPs are confirmed", || instance(&cluster, first)["holdsVirtualIPs"] == true);
    let disable = |index| {
        let set = cluster.node(index).set_sysctl("net.ipv6.conf.eth0.disable_ipv6", "1");
        set.expect("IPv6 is disabled");
    };
    disable(first);
    let mut next = first;
    cluster.wait("a node that can hold both takes over", || {
        next = cluster.wait_for_owner(None);
        next != first && cluster.node(next).has_address(v6)
    });
    cluster.wait("both VIPs are confirmed", || instance(&cluster, next)["holdsVirtualIPs"] == true);
    cluster.wait("the first node reports the reason", || {
        degraded(&cluster, first, "IPv6 is disabled on eth0")
            && instance(&cluster, first)["unfit"][0].is_string()
    });
    let log = cluster.daemon(first).log().text();
    let logged = log.matches("this node cannot hold all virtual IPs").count();
    cluster.check(logged == 1, || format!("logged {logged} times"));

    // No node can hold both: one holds the family that it can, and the VIPs do not move.
    (0..3).filter(|&index| index != first).for_each(disable);
    cluster.wait("every node reports the reason", || {
        (0..3).all(|index| degraded(&cluster, index, "IPv6 is disabled on eth0"))
    });
    let active = cluster.wait_for_owner(None);
    let moves = cluster.takeovers();
    cluster.wait("the Active advertises the degraded priority", || {
        let status = instance(&cluster, active);
        status["advertisedPriority"] == 40 && status["holdsVirtualIPs"] == false
    });
    // Longer than a Backup that considers itself better would need: proof, Skew_Time and settling.
    std::thread::sleep(std::time::Duration::from_secs(3));
    cluster
        .check(cluster.takeovers() == moves && cluster.owners() == [active], || "the VIP moved".to_owned());
}
