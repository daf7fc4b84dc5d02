//! Invalid and hostile packets from another host of the LAN: counted by reason, logged once, and without effect.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use testbed::{Lan, Probe, Test};

use crate::support::packet::Packet;
use crate::support::{Cluster, Plan};

/// Number of times that each packet is sent.
const TIMES: u64 = 10;
pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("invalid_packets_are_counted_by_reason_and_move_no_vip", || {
            hostile(Plan::default(), cases_v2);
        }),
        Test::new("invalid_version_3_packets_over_ipv6_move_no_vip", || {
            hostile(Plan::v3("1s").v6_only(), cases_v3);
        }),
        Test::new("unicast_instance_accepts_only_its_peers", unknown_peer),
    ]
}

/// A packet, and its counter in `status --json`.
struct Case {
    packet: Packet,
    place: Place,
}

enum Place {
    /// `instances[0].discarded`.
    Discarded(&'static str),
    /// `instances[0].mismatches`.
    Mismatch(&'static str),
    /// `interfaces[0].foreign`.
    Foreign(&'static str),
    /// `interfaces[0].malformed`.
    Malformed,
}

impl Place {
    fn count(&self, status: &serde_json::Value) -> u64 {
        let (instance, interface) = (&status["instances"][0], &status["interfaces"][0]);
        let found = match self {
            Self::Discarded(reason) => &instance["discarded"][reason],
            Self::Mismatch(what) => &instance["mismatches"][what],
            Self::Foreign(vrid) => &interface["foreign"][vrid],
            Self::Malformed => &interface["malformed"],
        };
        found.as_u64().unwrap_or(0)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Discarded(name) | Self::Mismatch(name) | Self::Foreign(name) => name,
            Self::Malformed => "malformed",
        }
    }
}

use Place::{Discarded, Foreign, Malformed, Mismatch};

fn case(place: Place, packet: Packet) -> Case {
    Case { packet, place }
}

/// Errors that both versions have.
fn common_cases(good: &Packet, active: IpAddr) -> Vec<Case> {
    let good = || good.clone();
    let length = good().bytes.len();
    vec![
        case(Malformed, good().resize(1)),
        case(Discarded("truncated"), good().resize(10)),
        case(Discarded("truncated"), good().byte(3, 255)),
        case(Discarded("trailing_bytes"), good().resize(length + 4)),
        case(Discarded("checksum"), Packet { damage: 0x55, ..good() }),
        case(Discarded("hop_limit"), Packet { ttl: 254, ..good() }),
        case(Discarded("version"), good().byte(0, 0x41)),
        case(Discarded("kind"), good().byte(0, good().bytes[0] & 0xf0 | 2)),
        case(Foreign("99"), good().byte(1, 99)),
        case(Discarded("owner_priority"), good().byte(2, 255)),
        case(Discarded("unknown_peer"), Packet { destination: active, ..good() }),
        case(Discarded("own_source"), Packet { source: Some(active), ..good() }),
    ]
}

fn cases_v2(cluster: &Cluster, active: usize) -> Vec<Case> {
    let vip = IpAddr::V4(cluster.lan.v4(crate::support::VIP_HOST));
    let good = || Packet::good(vip);
    let many: Vec<IpAddr> = (1..=255).map(|n| IpAddr::from([10, 9, 7, n])).collect();
    // The form of version 3: no authentication data.
    let third = good().resize(12).byte(0, 0x31).byte(4, 0).byte(5, 100);
    let mut cases = common_cases(&good(), IpAddr::V4(cluster.node(active).v4()));
    cases.extend([
        case(Discarded("version"), third),
        case(Discarded("password"), good().byte(12, b'e')),
        case(Discarded("auth_type"), good().byte(4, 0)),
        case(Discarded("no_addresses"), Packet::of(true, &[])),
        case(Discarded("interval_zero"), good().byte(5, 0)),
        case(Mismatch("address_list"), Packet::with_addresses(&[vip, vip])),
        case(Discarded("other_group"), Packet::with_addresses(&many)),
        case(Mismatch("interval"), good().byte(5, 2)),
    ]);
    cases
}

/// No interval is a mismatch: version 3 adopts it (RFC 9568 §6.4.2).
fn cases_v3(cluster: &Cluster, active: usize) -> Vec<Case> {
    let vip = IpAddr::V6(cluster.lan.v6(crate::support::VIP_HOST));
    let good = || Packet::good(vip);
    let many: Vec<IpAddr> = (1..=80).map(|n| IpAddr::from([0xfd, 7, 0, 0, 0, n, 0, 0])).collect();
    let mut cases = common_cases(&good(), IpAddr::V6(cluster.node(active).link_local()));
    cases.extend([
        case(Discarded("version"), good().byte(0, 0x21)),
        case(Discarded("no_addresses"), Packet::of(false, &[])),
        case(Discarded("interval_zero"), good().byte(5, 0)),
        case(Mismatch("address_list"), Packet::with_addresses(&[vip, vip])),
        case(Discarded("other_group"), Packet::with_addresses(&many)),
        case(Discarded("not_link_local"), Packet { source: Some(cluster.client().v6().into()), ..good() }),
    ]);
    cases
}

fn hostile(plan: Plan, cases: impl Fn(&Cluster, usize) -> Vec<Case>) {
    let mut cluster = Cluster::build(Lan::builder(), plan);
    // Without this the kernel itself drops packets from the receiver's own address.
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.conf.all.accept_local", "1").expect("a sysctl");
    }
    cluster.start_all();
    let observed = Observed::start(&cluster);
    let active = observed.active;
    for Case { packet, place } in cases(&cluster, active) {
        let before = place.count(&cluster.status(active));
        packet.send(cluster.client(), TIMES);
        let mut now = before;
        cluster.wait(&format!("{} bytes are counted as {}", packet.bytes.len(), place.name()), || {
            now = place.count(&cluster.status(active));
            now >= before + TIMES
        });
        cluster.check(now == before + TIMES, || format!("{}: {before} → {now}", place.name()));
    }
    expect_one_line_each(&cluster, active);
    observed.expect_undisturbed(&cluster);
    // Invalid packets reveal nothing about the cluster's configuration; another group and a wrong password do.
    let shown = cluster.degraded(active);
    cluster.check(!shown.contains("advertisement") && shown.contains("another virtualRouterID"), || {
        shown.clone()
    });
}

/// Checks that a reason is logged once a minute, independent of the number of packets.
fn expect_one_line_each(cluster: &Cluster, active: usize) {
    let log = cluster.daemon(active).log().text();
    let mut lines: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("advertisement discarded: ").map(|(_, reason)| reason))
        .map(|reason| reason.split(" vip=").next().unwrap_or(reason))
        .collect();
    cluster.check(lines.len() >= 9, || format!("{lines:?}"));
    lines.sort_unstable();
    let all = lines.len();
    lines.dedup();
    cluster.check(lines.len() == all, || "a reason is logged twice within a minute".to_owned());
    for once in ["another list of virtual addresses", "from this router's own address"] {
        let count = log.lines().filter(|line| line.contains(once) && !line.contains("discarded")).count();
        cluster.check(count == 1, || format!("{once:?} is logged {count} times"));
    }
}

/// A settled cluster with a client that connects continuously.
struct Observed {
    active: usize,
    takeovers: usize,
    probe: Probe,
    since: Instant,
}

impl Observed {
    fn start(cluster: &Cluster) -> Self {
        let active = cluster.wait_until_settled();
        let probe = Probe::to(cluster.address()).every(Duration::from_millis(10));
        let probe = probe.start(cluster.client()).expect("the probe starts");
        Self { active, takeovers: cluster.takeovers(), probe, since: Instant::now() }
    }

    fn expect_undisturbed(self, cluster: &Cluster) {
        let Self { active, takeovers, probe, since } = self;
        if let Err(error) = probe.wait_for_success(Instant::now(), crate::support::TIMEOUT) {
            cluster.fail(&error.to_string());
        }
        let failures = probe.stop().failures_since(since);
        cluster.check(failures.is_empty(), || format!("new connections failed: {failures:?}"));
        cluster.check(cluster.owners() == [active], || format!("{:?} own the VIP", cluster.owners()));
        // At the start two nodes may have been Active for a millisecond.
        cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
    }
}

/// In unicast mode multicast and unicast advertisements from an unknown router are counted, even with a higher priority
/// and a valid checksum.
fn unknown_peer() {
    let lan = Lan::builder().controllers(2).build().expect("a LAN");
    let peers = format!("unicastPeers: [\"{}\", \"{}\"]", lan.v4(1), lan.v4(2));
    drop(lan);
    let mut cluster = Cluster::build(Lan::builder().controllers(2), Plan::default().instance(peers));
    cluster.start_all();
    let observed = Observed::start(&cluster);
    let active = observed.active;
    let unknown = Packet::good(cluster.vip()).byte(2, 254);
    for index in 0..cluster.len() {
        Packet { destination: cluster.node(index).v4().into(), ..unknown.clone() }
            .send(cluster.client(), TIMES);
        cluster.wait("the unknown router is counted", || {
            Place::Discarded("unknown_peer").count(&cluster.status(index)) == TIMES
        });
        // The list contains both nodes: neither sends to itself, and neither receives its own advertisements.
        let status = cluster.status(index);
        let shown = status["degraded"].to_string();
        cluster.check(shown.contains("is no known controller"), || shown.clone());
        cluster.check(Place::Discarded("own_source").count(&status) == 0, || status.to_string());
        cluster.check(!shown.contains("own address"), || shown.clone());
    }
    // A peer on the link cannot be behind a router (RFC 5082).
    let (peer, forwarded) = (1 - active, unknown.clone());
    let forwarded = Packet {
        source: Some(cluster.node(peer).v4().into()),
        destination: cluster.node(active).v4().into(),
        ttl: 254,
        ..forwarded
    };
    forwarded.send(cluster.client(), TIMES);
    cluster.wait("the forwarded packets are counted", || {
        Place::Discarded("hop_limit").count(&cluster.status(active)) == TIMES
    });
    observed.expect_undisturbed(&cluster);
}
