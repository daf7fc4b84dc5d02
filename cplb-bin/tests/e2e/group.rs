//! The group channel between real daemons.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Lan, Readiness, Signal, Test, Tool};

use crate::support::{Cluster, Plan, degraded};

/// The channel's port.
const PORT: u16 = 10112;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("controllers_show_each_other", || show_each_other(Plan::v3("100ms"))).needs([Tool::Nft]),
        Test::new("controllers_show_each_other_ipv6", || show_each_other(Plan::v3("100ms").v6_only()))
            .needs([Tool::Nft]),
        Test::new("controllers_show_each_other_signed_by_unicast", signed_by_unicast).needs([Tool::Nft]),
        Test::new("two_holders_are_named_by_both", two_holders).needs([Tool::Nft]),
        Test::new("election_does_not_depend_on_the_channel", without_channel).needs([Tool::Nft]),
        Test::new("datagrams_of_strangers_are_counted_and_not_used", strangers).needs([Tool::Nft]),
    ]
}

/// The peers that a node shows, by name.
fn peers(cluster: &Cluster, index: usize) -> BTreeSet<String> {
    let status = cluster.status(index);
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().map(|peer| peer["node"].as_str().unwrap_or_default().to_owned()).collect()
}

fn others(cluster: &Cluster, index: usize) -> BTreeSet<String> {
    (0..cluster.len())
        .filter(|other| *other != index)
        .map(|other| cluster.node(other).name().to_owned())
        .collect()
}

fn wait_until_all_show_each_other(cluster: &Cluster) {
    for index in 0..cluster.len() {
        cluster.wait("each controller shows the others", || peers(cluster, index) == others(cluster, index));
    }
}

fn peer(cluster: &Cluster, index: usize, other: usize) -> Value {
    let status = cluster.status(index);
    let peers = status["peers"].as_array().expect("a list");
    let name = cluster.node(other).name();
    peers.iter().find(|peer| peer["node"] == name).cloned().unwrap_or_default()
}

fn show_each_other(plan: Plan) {
    let mut cluster = Cluster::start(plan);
    wait_until_all_show_each_other(&cluster);
    let owner = cluster.wait_until_settled();
    let other = (owner + 1) % 3;
    let shown = || peer(&cluster, other, owner);
    cluster.wait("the Active's claim is shown", || {
        let instance = &shown()["instances"][0];
        instance["state"] == "active" && instance["claimSeconds"].as_f64().is_some_and(|claim| claim > 0.0)
    });
    cluster.wait("it can serve", || shown()["serving"] == true && degraded(&shown()).is_empty());
    cluster.check(shown()["authenticated"] == false, || shown().to_string());
    let ahead = shown()["clockAheadSeconds"].as_f64();
    cluster.check(ahead.is_some_and(|ahead| ahead.abs() < 2.0), || format!("one clock: {ahead:?}"));

    // A change is shown without waiting for the next interval; a daemon that stops says so.
    cluster.backends.iter().for_each(|backend| backend.set_readiness(Readiness::Status(500)));
    cluster.wait("the reason is shown", || shown()["reason"].as_str().is_some_and(|why| !why.is_empty()));
    cluster.backends.iter().for_each(|backend| backend.set_readiness(Readiness::Status(200)));
    cluster.wait("it can serve again", || shown()["serving"] == true);
    let last = (owner + 2) % 3;
    cluster.signal(last, Signal::SIGTERM);
    cluster.wait_until_ended(last);
    cluster.wait("the stopped controller is gone", || peers(&cluster, other).len() == 1);
    cluster.start_daemon(last);
    cluster.wait("it is shown again", || peers(&cluster, other).len() == 2);
    cluster.signal(last, Signal::SIGKILL);
    cluster.wait("the killed controller is gone", || peers(&cluster, other).len() == 1);
}

fn signed_by_unicast() {
    let lan = Lan::builder();
    let mut cluster = Cluster::build(lan, Plan::v3("100ms"));
    let peers: Vec<String> = cluster.lan.controllers().iter().map(|node| node.v4().to_string()).collect();
    cluster.plan = cluster
        .plan
        .clone()
        .instance(format!("unicastPeers: [{}]", peers.join(", ")))
        .instance(format!("authHMAC: {{keys: [{{id: 1, key: {}}}]}}", "k".repeat(32)));
    cluster.start_all();
    wait_until_all_show_each_other(&cluster);
    let shown = peer(&cluster, 0, 1);
    cluster.check(shown["authenticated"] == true, || shown.to_string());

    // At rest a node sends a report to each of its two peers every second.
    let sent = || cluster.status(0)["channels"][0]["messagesSent"].as_u64().unwrap_or_default();
    cluster.wait_until_settled();
    let (before, since) = (sent(), Instant::now());
    cluster.wait("10 s are over", || since.elapsed() >= Duration::from_secs(10));
    let messages = sent() - before;
    cluster.check((8..=14).contains(&messages), || format!("{messages} messages to two peers in 10 s"));
}

fn two_holders() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    wait_until_all_show_each_other(&cluster);
    let rules = "add table bridge quiet; add chain bridge quiet forward { type filter hook forward priority 1; }; \
                 add rule bridge quiet forward ip protocol 112 drop";
    let switch = cluster.lan.switch();
    switch.exec("nft", [rules]).unwrap_or_else(|error| cluster.fail(&error.to_string()));
    let names = |index: usize, text: &str| {
        let degraded = cluster.degraded(index);
        degraded.contains("holds the virtual IPs, too") && degraded.contains(text)
    };
    for index in 0..cluster.len() {
        for other in others(&cluster, index) {
            cluster.wait("each holder names the others", || names(index, &other));
        }
    }
    switch.exec("nft", ["delete table bridge quiet"]).expect("the filter is removed");
    for index in 0..cluster.len() {
        cluster.wait("no holder is named any more", || !names(index, ""));
    }
}

fn without_channel() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let rules = format!(
        "add table bridge quiet; add chain bridge quiet forward {{ type filter hook forward priority 1; }}; \
         add rule bridge quiet forward udp dport {PORT} drop"
    );
    let switch = cluster.lan.switch();
    switch.exec("nft", [rules.as_str()]).unwrap_or_else(|error| cluster.fail(&error.to_string()));
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    for index in 0..cluster.len() {
        let status = cluster.status(index);
        cluster.check(status["peers"] == serde_json::json!([]), || status.to_string());
        cluster.check(degraded(&status).is_empty(), || status.to_string());
    }
    cluster.signal(owner, Signal::SIGKILL);
    cluster.wait_for_owner(Some(owner));
}

fn strangers() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    wait_until_all_show_each_other(&cluster);
    let count =
        |reason: &str| cluster.status(0)["channels"][0]["discarded"][reason].as_u64().unwrap_or_default();
    let before = count("stranger");
    let target = cluster.node(0).v4();
    cluster.client().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_ttl(255).expect("a TTL");
        for _ in 0..20 {
            socket.send_to(b"cplb\x01\0\0\0", (target, PORT)).expect("it is sent");
        }
        // A router would have lowered it: such a datagram does not even reach the socket.
        socket.set_ttl(254).expect("a TTL");
        socket.send_to(b"cplb\x01\0\0\0", (target, PORT)).expect("it is sent");
    });
    cluster.wait("they are counted", || count("stranger") == before + 20);
    cluster.check(peers(&cluster, 0) == others(&cluster, 0), || "the peers are those of before".to_owned());
}
