//! A common host firewall: everything is dropped except ssh, the API server's port, VRRP and established connections.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testbed::{Lan, Node, Probe, Signal};

use super::{delivery, is_served};
use crate::support::{BIND_PORT, Cluster, PORT, Plan, Tproxy, VIP_HOST};

const RULES: &str = "table inet fw {
    chain input {
        type filter hook input priority 0; policy drop;
        iif \"lo\" accept
        ct state established,related accept
        meta l4proto 112 accept
        icmp type echo-request accept
        icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept
        tcp dport { 22, 6443 } accept
    }
}
";

/// Enables the firewall on a node.
pub(crate) fn up(node: &Node) {
    let file: PathBuf = node.directory().join("firewall.nft");
    std::fs::write(&file, RULES).expect("the rules are written");
    let mut command = Command::new("nft");
    command.arg("-f").arg(&file);
    let output = node.output(command).expect("nft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn cluster(tproxy: Tproxy) -> Cluster {
    let plan = Plan::v3("100ms").dual_stack().tproxy(tproxy);
    let mut cluster = Cluster::build(Lan::builder().controllers(2), plan);
    cluster.lan.controllers().iter().for_each(up);
    cluster.start_all();
    cluster.wait_for_owner(None);
    cluster
}

fn vips(cluster: &Cluster) -> [SocketAddr; 2] {
    [
        SocketAddr::new(cluster.lan.v4(VIP_HOST).into(), PORT),
        SocketAddr::new(cluster.lan.v6(VIP_HOST).into(), PORT),
    ]
}

pub(crate) fn transparent() {
    let cluster = cluster(Tproxy::Present);
    let owner = cluster.wait_until_settled();
    for vip in vips(&cluster) {
        cluster.check(is_served(cluster.client(), vip), || format!("{vip} does not answer"));
        cluster.check(is_served(cluster.node(owner), vip), || format!("{vip} does not answer its own node"));
    }
    for index in 0..cluster.len() {
        let shown = delivery(&cluster, index);
        cluster.check(shown == ("transparent".to_owned(), String::new()), || format!("{index}: {shown:?}"));
    }
    let own = SocketAddr::new(cluster.node(owner).v4().into(), BIND_PORT);
    cluster.check(!is_served(cluster.client(), own), || "the bind port is open".to_owned());
    // The other controller serves as well, and no session hangs after the handover.
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(20)).start(cluster.client());
    let probe = probe.expect("the probe starts");
    let at = cluster.signal(owner, Signal::SIGTERM);
    cluster.wait_for_owner(Some(owner));
    cluster.wait_until_ended(owner);
    let served = probe.wait_for_success(at + Duration::from_millis(300), crate::support::TIMEOUT);
    cluster.check(served.is_ok(), || format!("after the handover: {served:?}"));
}

pub(crate) fn dnat() {
    let cluster = cluster(Tproxy::Missing);
    let owner = cluster.wait_for_owner(None);
    cluster.wait("the daemon can serve", || cluster.status(owner)["serving"]["serving"] == true);
    let (mode, reason) = delivery(&cluster, owner);
    cluster.check(mode == "dnat" && reason.contains("nft_tproxy"), || format!("{mode}: {reason}"));
    let degraded = cluster.degraded(owner);
    cluster
        .check(degraded.contains("at the bind port") && degraded.contains("nft_tproxy"), || degraded.clone());
    let log = cluster.daemon(owner).log().text();
    cluster
        .check(log.contains("mode=dnat") && log.contains("nft_tproxy"), || "it is not in the log".to_owned());
    let [v4, v6] = vips(&cluster);
    cluster.check(!is_served(cluster.client(), v4), || "the firewall lets 6444 through".to_owned());
    for node in cluster.lan.controllers() {
        node.exec("nft", ["add", "rule", "inet", "fw", "input", "ct", "status", "dnat", "accept"])
            .expect("the documented line");
    }
    for vip in [v4, v6] {
        cluster.check(is_served(cluster.client(), vip), || format!("{vip} does not answer"));
    }
}
