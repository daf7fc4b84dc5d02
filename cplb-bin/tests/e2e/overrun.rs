//! More netlink notifications of addresses than fit into the socket's buffer while the daemon does not run: the kernel
//! drops some (ENOBUFS), and the daemon must not continue with an outdated view of the system.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;

use testbed::{Lan, Node, Signal, Test, Tool};

use crate::support::{Cluster, Plan, TIMEOUT};

pub(crate) fn tests() -> Vec<Test> {
    let tools = [Tool::Nft, Tool::Ip];
    vec![
        Test::new("paused_daemon_recovers_from_a_netlink_overrun", stopped).needs(tools),
        Test::new("frozen_keeper_restores_the_vips_after_a_netlink_overrun", frozen_keeper).needs(tools),
    ]
}

/// The whole daemon is stopped. Afterwards exactly one node holds the VIP, and the stopped daemon has detected the
/// overrun.
fn stopped() {
    let mut cluster = Cluster::build(Lan::builder().controllers(2), Plan::default());
    cluster.start_all();
    let old = cluster.wait_until_settled();
    let (before, mark) = (counters(&cluster, old), cluster.daemon(old).log().len());
    cluster.signal(old, Signal::SIGSTOP);
    let foreign = overrun_socket(&cluster, old);
    cluster.signal(old, Signal::SIGCONT);
    expect_noticed(&cluster, old, mark, before);
    cluster.wait_until_settled();
    expect_untouched(&cluster, old, &foreign);
    expect_no_report(&cluster, old);
}

/// Only the keeper's thread is stopped, and there is no other node to take the VIPs over.
fn frozen_keeper() {
    let mut cluster = Cluster::build(Lan::builder().controllers(1), Plan::default().dual_stack());
    cluster.start_all();
    cluster.wait_until_settled();
    let (before, mark) = (counters(&cluster, 0), cluster.daemon(0).log().len());
    let frozen = cluster.daemon(0).freeze_threads(|name| name == "vip-keeper").expect("it has a keeper");
    let foreign = overrun_socket(&cluster, 0);
    cluster
        .check(cluster.vips().iter().all(|vip| !cluster.node(0).has_address(*vip)), || "VIPs remain".into());
    frozen.thaw();
    expect_noticed(&cluster, 0, mark, before);
    cluster.wait("both VIPs are restored", || {
        cluster.vips().iter().all(|vip| cluster.node(0).has_address(*vip))
    });
    cluster.wait_until_settled();
    expect_untouched(&cluster, 0, &foreign);
    expect_no_report(&cluster, 0);
}

/// The daemon's counters of overruns and resyncs.
fn counters(cluster: &Cluster, index: usize) -> (u64, u64) {
    let status = cluster.status(index);
    let total = |name: &str| status["kernel"][name].as_u64();
    match (total("overruns"), total("resyncs")) {
        (Some(overruns), Some(resyncs)) => (overruns, resyncs),
        _ => cluster.fail(&format!("no counters of netlink events: {status:#}")),
    }
}

/// Changes addresses and links that the daemon does not manage until the kernel has dropped notifications for it, and
/// only then removes the VIPs. Returns the node's traces after that.
fn overrun_socket(cluster: &Cluster, index: usize) -> Vec<String> {
    let node = cluster.node(index);
    let batch = node.directory().join("changes");
    let mut text =
        "link add storm0 type veth peer name storm1\naddress add 203.0.113.1/24 dev storm0\n".to_owned();
    for host in 1..=250 {
        let _ = writeln!(text, "address add 198.51.100.{host}/32 dev lo");
    }
    fs::write(&batch, text).expect("the batch is written");
    let run = || ip(node, &["-batch", &batch.display().to_string()]);
    run();
    let change = "address add 192.0.2.1/32 dev lo\naddress del 192.0.2.1/32 dev lo\nlink set storm1 up\n\
                  link set storm1 down\n";
    fs::write(&batch, change.repeat(250)).expect("the batch is written");
    let took = cluster.wait("the kernel drops notifications", || {
        run();
        dropped(node) > 0
    });
    eprintln!("notifications are dropped after {took:?}");
    for vip in cluster.vips() {
        // Absent if the changes took longer than the lease.
        let _ = node.delete_address(vip);
    }
    traces(cluster, index)
}

fn ip(node: &Node, arguments: &[&str]) -> String {
    node.exec("ip", arguments.iter().copied()).unwrap_or_else(|error| panic!("{error}"))
}

/// Notifications that were dropped for subscribed sockets of the node: the daemon's is the only one.
fn dropped(node: &Node) -> u64 {
    let table =
        node.run(|| fs::read_to_string("/proc/thread-self/net/netlink")).expect("the kernel lists sockets");
    let subscribed = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (protocol, groups, drops) = (fields.get(1)?, fields.get(3)?, fields.get(8)?);
        // NETLINK_ROUTE is 0; the kernel's own sockets have no groups.
        let is_subscribed = *protocol == "0" && groups.contains(|digit| digit != '0');
        is_subscribed.then(|| drops.parse::<u64>().ok())?
    });
    subscribed.sum()
}

/// Addresses, routes and labels of a node, without those of the VIPs.
fn traces(cluster: &Cluster, index: usize) -> Vec<String> {
    let node = cluster.node(index);
    let mut lines = Vec::new();
    for arguments in [
        &["-o", "address", "show"][..],
        &["-4", "route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["addrlabel", "list"],
    ] {
        lines.extend(ip(node, arguments).lines().map(|line| line.trim_end().to_owned()));
    }
    let vips: Vec<String> = cluster.vips().iter().map(IpAddr::to_string).collect();
    let is_of_vip = |line: &String| line.split([' ', '/']).any(|word| vips.iter().any(|vip| vip == word));
    lines.retain(|line| !is_of_vip(line));
    lines.sort_unstable();
    lines
}

/// Checks that the overrun is logged, counted and reported in `status`, and that the daemon resynced.
fn expect_noticed(cluster: &Cluster, index: usize, mark: usize, before: (u64, u64)) {
    let logged = cluster.daemon(index).log().wait_for_line_after(mark, "netlink overrun", TIMEOUT);
    let logged = logged.unwrap_or_else(|error| cluster.fail(&error.to_string()));
    cluster
        .check(logged.text.contains("WARN") && logged.text.contains("`ip monitor`"), || logged.text.clone());
    cluster.wait("the status reports the overrun and a resync", || {
        let (overruns, resyncs) = counters(cluster, index);
        let degraded = cluster.degraded(index);
        overruns > before.0 && resyncs > before.1 && degraded.contains("netlink overrun")
    });
}

fn expect_untouched(cluster: &Cluster, index: usize, before: &[String]) {
    let after = traces(cluster, index);
    cluster.check(after == before, || format!("before: {before:#?}\nafter: {after:#?}"));
}

/// Checks that the overrun is no longer reported as a problem.
fn expect_no_report(cluster: &Cluster, index: usize) {
    cluster
        .wait("the overrun is no longer reported", || !cluster.degraded(index).contains("netlink overrun"));
}
