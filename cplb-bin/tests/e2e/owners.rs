//! Hosts that answer for a virtual IP without being Active are named, and those of a healthy group are not.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Keepalived, KeepalivedState, Lan, Node, Signal, Test, Tool, VrrpInstance, wait_until};

use crate::support::{Cluster, Link, Plan, TIMEOUT};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("another_host_with_the_vip_is_named_on_every_node", || foreign_host(Plan::v3("100ms")))
            .needs([Tool::Nft]),
        Test::new("another_host_with_the_vip_is_named_on_every_node_ipv6", || {
            foreign_host(Plan::v3("100ms").v6_only());
        })
        .needs([Tool::Nft]),
        Test::new("forged_announcements_are_named", || forged(Plan::v3("100ms"))).needs([Tool::Nft]),
        Test::new("forged_announcements_are_named_ipv6", || forged(Plan::v3("100ms").v6_only()))
            .needs([Tool::Nft]),
        Test::new("a_router_that_answers_for_everything_is_not_named", proxy).needs([Tool::Nft]),
        Test::new("leftover_vips_of_controllers_are_named_with_them", leftovers).needs([Tool::Nft]),
        Test::new("a_healthy_group_names_no_one", healthy).needs([Tool::Nft, Tool::Keepalived]),
        Test::new("a_healthy_group_names_no_one_dual_stack", healthy_dual_stack).needs([Tool::Nft]),
    ]
}

/// The promised times until an owner is named, and until it is forgotten, with a few seconds for the machine.
const NAMED: Duration = Duration::from_secs(35 + 3);
const FORGOTTEN: Duration = Duration::from_secs(70 + 3);

fn ip(node: &Node, arguments: &str) {
    let done = node.exec("ip", arguments.split_whitespace());
    done.unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
}

fn foreign(cluster: &Cluster, index: usize) -> Vec<Value> {
    let status = cluster.status(index);
    status["instances"][0]["foreignOwners"].as_array().cloned().unwrap_or_default()
}

fn wait_for(cluster: &Cluster, limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    match wait_until(what, limit, condition) {
        Ok(took) => println!("MEASURED {what} after {took:?}"),
        Err(error) => cluster.fail(&error.to_string()),
    }
}

/// The prefix length of one address.
fn host_length(vip: IpAddr) -> u8 {
    if vip.is_ipv4() { 32 } else { 128 }
}

fn foreign_host(plan: Plan) {
    let mut cluster = Cluster::build(Lan::builder().clients(2), plan);
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let (vip, other) = (cluster.vip(), cluster.lan.client(1));
    let (length, mac) = (host_length(vip), other.mac().to_string());
    let flags = if vip.is_ipv6() { "nodad" } else { "" };
    let since = Instant::now();
    ip(other, &format!("addr add {vip}/{length} dev eth0 {flags}"));
    for index in 0..cluster.len() {
        let left = NAMED.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "the other host is named", || {
            let owners = foreign(&cluster, index);
            owners.len() == 1 && owners[0]["mac"] == mac && owners[0]["address"] == vip.to_string()
        });
        cluster.wait("it is in degraded", || {
            let shown = cluster.degraded(index);
            shown.contains(&mac) && shown.contains("which is no controller")
        });
    }
    cluster.check(cluster.owners() == [owner], || "the VIP moved".to_owned());
    ip(other, &format!("addr del {vip}/{length} dev eth0"));
    let since = Instant::now();
    for index in 0..cluster.len() {
        let left = FORGOTTEN.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "it is forgotten", || foreign(&cluster, index).is_empty());
        let text = format!("{mac} answers for");
        cluster.wait("it is not in degraded", || !cluster.degraded(index).contains(&text));
        let log = cluster.daemon(index).log().text();
        let count = log.matches("another host than the Active answers for a virtual IP").count();
        cluster.check(count == 1, || format!("logged {count} times"));
    }
}

fn leftovers() {
    let cluster = Cluster::start(Plan::default());
    let owner = cluster.wait_until_settled();
    let vip = cluster.vip();
    let others: Vec<usize> = (0..cluster.len()).filter(|index| *index != owner).collect();
    let since = Instant::now();
    others.iter().for_each(|index| ip(cluster.node(*index), &format!("addr add {vip}/32 dev lo")));
    for index in 0..cluster.len() {
        // A node does not ask itself.
        let expected: Vec<usize> = others.iter().copied().filter(|other| *other != index).collect();
        let left = NAMED.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "the leftovers of the others are named", || {
            let owners = foreign(&cluster, index);
            expected.iter().all(|other| {
                let (mac, address) =
                    (cluster.node(*other).mac().to_string(), cluster.node(*other).v4().to_string());
                owners.iter().any(|owner| owner["mac"] == mac && owner["controller"] == address)
            })
        });
    }
    cluster.wait("the cause is named", || cluster.degraded(owner).contains("is the address left over there"));
    others.iter().for_each(|index| ip(cluster.node(*index), &format!("addr del {vip}/32 dev lo")));
    let since = Instant::now();
    for index in 0..cluster.len() {
        let left = FORGOTTEN.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "they are forgotten", || foreign(&cluster, index).is_empty());
    }
}

/// A host that announces the VIP twice a second, as for an attack, and has it not.
fn forged(plan: Plan) {
    let mut cluster = Cluster::build(Lan::builder().clients(2), plan);
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let (other, mac) = (cluster.lan.client(1), cluster.lan.client(1).mac());
    let frame = match cluster.vip() {
        IpAddr::V4(vip) => vrrp::gratuitous_arp(vrrp::MacAddr(mac.0), vip),
        IpAddr::V6(vip) => vrrp::unsolicited_na(vrrp::MacAddr(mac.0), vip),
    };
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let forger = scope.spawn(|| {
            other.run(|| {
                let link = Link::open("eth0");
                while !ends.load(Ordering::Relaxed) {
                    link.send(&frame);
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
        });
        let since = Instant::now();
        for index in 0..cluster.len() {
            let left = NAMED.saturating_sub(since.elapsed());
            wait_for(&cluster, left, "the forger is named", || {
                foreign(&cluster, index).iter().any(|owner| owner["mac"] == mac.to_string())
            });
        }
        ends.store(true, Ordering::Relaxed);
        forger.join().expect("the forger ends");
    });
    let since = Instant::now();
    for index in 0..cluster.len() {
        let left = FORGOTTEN.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "it is forgotten", || foreign(&cluster, index).is_empty());
    }
    cluster.check(cluster.owners() == [owner], || "the VIP moved".to_owned());
}

/// A router with proxy ARP (RFC 1027) answers for all addresses of the subnet, that of the Active as well, in two rounds of
/// questions.
fn proxy() {
    let mut cluster = Cluster::build(Lan::builder().clients(2), Plan::v3("100ms"));
    let router = cluster.lan.client(1);
    ip(router, "link add inside type veth peer name outside");
    ip(router, "link set inside up");
    ip(router, "link set outside up");
    ip(router, "route add 10.9.0.0/25 dev inside");
    for (name, value) in [("forwarding", "1"), ("proxy_arp", "1")] {
        router.set_sysctl(&format!("net.ipv4.conf.eth0.{name}"), value).expect("a sysctl");
    }
    router.set_sysctl("net.ipv4.conf.inside.forwarding", "1").expect("a sysctl");
    router.set_sysctl("net.ipv4.neigh.eth0.proxy_delay", "20").expect("a sysctl");
    let capture = cluster.lan.capture().expect("the capture starts");
    cluster.start_all();
    cluster.wait_for_owner(None);
    let (vip, mac) = (cluster.vip(), cluster.lan.client(1).mac());
    let start = Instant::now();
    wait_for(&cluster, Duration::from_secs(90), "two rounds of questions", || {
        for index in 0..cluster.len() {
            let owners = foreign(&cluster, index);
            cluster.check(owners.is_empty(), || format!("{owners:?}"));
        }
        start.elapsed() > Duration::from_secs(66)
    });
    let seen = capture.announcements(vip);
    let answers = seen.iter().filter(|(_, it)| it.mac == mac).count();
    cluster.check(answers > 0, || "the router did not answer".to_owned());
}

/// Moves between two daemons and keepalived, for longer than two rounds of questions.
fn healthy() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::default());
    let (len4, _) = cluster.lan.prefix_lengths();
    for index in 0..2 {
        cluster.start_daemon(index);
    }
    cluster.wait_for_owner(None);
    let instance = VrrpInstance::v2(51, [(cluster.vip(), len4)]).password("Example").nopreempt();
    let mut keepalived = None;
    let start = Instant::now();
    let mut round = 0;
    while start.elapsed() < healthy_time() {
        let owner = if keepalived.is_some() { 2 } else { cluster.wait_for_owner(None) };
        if owner < 2 && round % 3 == 2 {
            // Keepalived is the only one left to take over.
            let started = Keepalived::start(cluster.node(2), std::slice::from_ref(&instance))
                .expect("keepalived starts");
            let waits = started.wait_for_state(&instance, KeepalivedState::Backup, TIMEOUT);
            waits.unwrap_or_else(|error| cluster.fail(&error.to_string()));
            keepalived = Some(started);
            for index in [1 - owner, owner] {
                cluster.signal(index, Signal::SIGTERM);
                cluster.wait_until_ended(index);
            }
            cluster.wait("keepalived has the VIP", || cluster.owners() == [2]);
            (0..2).for_each(|index| cluster.start_daemon(index));
        } else if let Some(running) = keepalived.take() {
            running.stop().expect("keepalived stops");
            cluster.wait_for_owner(Some(2));
        } else {
            cluster.signal(owner, Signal::SIGTERM);
            cluster.wait_until_ended(owner);
            cluster.start_daemon(owner);
        }
        round += 1;
        names_no_one(&cluster, 0..2, Duration::from_secs(5 + round % 3 * 4));
    }
    println!("MEASURED {round} moves");
}

/// Handovers and crashes of three daemons with IPv4 and IPv6.
fn healthy_dual_stack() {
    let mut cluster = Cluster::start(Plan::v3("100ms").dual_stack());
    let (start, mut round) = (Instant::now(), 0);
    while start.elapsed() < healthy_time() {
        let owner = cluster.wait_for_owner(None);
        let signal = if round % 2 == 0 { Signal::SIGTERM } else { Signal::SIGKILL };
        cluster.signal(owner, signal);
        cluster.wait_until_ended(owner);
        cluster.start_daemon(owner);
        cluster.wait_for_owner(None);
        round += 1;
        names_no_one(&cluster, 0..3, Duration::from_secs(5 + round % 3 * 4));
    }
    println!("MEASURED {round} moves");
}

/// The time of a run without a fault: more than two rounds of questions, or the seconds in `CPLB_HEALTHY_SECONDS`.
fn healthy_time() -> Duration {
    let asked = std::env::var("CPLB_HEALTHY_SECONDS");
    Duration::from_secs(asked.map_or(75, |text| text.parse().expect("CPLB_HEALTHY_SECONDS is a number")))
}

/// No other host is named for a while.
fn names_no_one(cluster: &Cluster, nodes: std::ops::Range<usize>, duration: Duration) {
    let since = Instant::now();
    cluster.wait("the group is at rest for a while", || {
        for index in nodes.clone() {
            let owners = foreign(cluster, index);
            cluster.check(owners.is_empty(), || format!("{owners:?}"));
        }
        since.elapsed() > duration
    });
}
