//! Hostile and broken packets from another host of the LAN: counted by reason, logged once, obeyed by nobody.

mod support;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use testbed::{Lan, Node, Probe, Test};

use support::{Cluster, Plan};

/// IP protocol number of VRRP.
const VRRP: i32 = 112;
/// The group of RFC 9568 §5.1.1.2.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// How often each packet is sent.
const TIMES: u64 = 10;
/// The VRID that k0s gives to the first instance.
const VRID: u8 = 51;

fn main() -> ExitCode {
    testbed::main(vec![
        Test::new("hostile_packets_are_counted_by_reason_and_disturb_nobody", hostile),
        Test::new("a_unicast_group_hears_only_its_peers", unknown_peer),
    ])
}

/// A version 2 advertisement as k0s's peers send it, which a case then spoils.
#[derive(Debug, Clone)]
struct Packet {
    bytes: Vec<u8>,
    source: Option<Ipv4Addr>,
    destination: Ipv4Addr,
    ttl: u8,
}

impl Packet {
    /// Well-formed, and weaker than the daemons' own.
    fn good(vip: Ipv4Addr) -> Self {
        Self::with_addresses(&[vip])
    }

    fn with_addresses(addresses: &[Ipv4Addr]) -> Self {
        let count = u8::try_from(addresses.len()).expect("at most 255");
        let mut bytes = vec![0x21, VRID, 100, count, 1, 1, 0, 0];
        bytes.extend(addresses.iter().flat_map(Ipv4Addr::octets));
        bytes.extend(b"Example\0");
        Self { bytes, source: None, destination: GROUP, ttl: 255 }.summed()
    }

    /// Overwrites one byte and corrects the checksum.
    fn byte(mut self, at: usize, value: u8) -> Self {
        self.bytes[at] = value;
        self.summed()
    }

    fn cut(mut self, len: usize) -> Self {
        self.bytes.truncate(len);
        self
    }

    /// RFC 1071 over the whole message.
    fn summed(mut self) -> Self {
        self.bytes[6..8].fill(0);
        let words =
            self.bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = !u16::try_from(sum).expect("folded");
        self.bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        self
    }

    fn send(&self, node: &Node) {
        let source = self.source.unwrap_or(node.v4());
        let mut datagram = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, self.ttl, 112, 0, 0];
        datagram.extend(source.octets());
        datagram.extend(self.destination.octets());
        datagram.extend(&self.bytes);
        let (own, to) = (node.v4(), SocketAddrV4::new(self.destination, 0));
        node.run(|| {
            let socket =
                Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(VRRP))).expect("a raw socket");
            socket.set_header_included_v4(true).expect("IP_HDRINCL");
            socket.set_multicast_if_v4(&own).expect("IP_MULTICAST_IF");
            for _ in 0..TIMES {
                // The kernel fills in the lengths and the header's checksum.
                socket.send_to(&datagram, &to.into()).expect("the packet is sent");
            }
        });
    }
}

/// What is sent, and where it is counted in `status --json`.
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

fn cases(cluster: &Cluster, active: usize) -> Vec<Case> {
    let vip = cluster.lan.v4(support::VIP_HOST);
    let good = || Packet::good(vip);
    let many: Vec<Ipv4Addr> = (1..=255).map(|n| Ipv4Addr::new(10, 9, 7, n)).collect();
    let trailing = {
        let mut packet = good();
        packet.bytes.extend([0; 4]);
        packet.summed()
    };
    let damaged = {
        let mut packet = good();
        packet.bytes[7] ^= 0x55;
        packet
    };
    // As version 3 sends it: no authentication data, the checksum over the message only.
    let third = Packet { bytes: good().bytes[..12].to_vec(), ..good() };
    let third = third.byte(0, 0x31).byte(4, 0).byte(5, 100);
    let case = |place, packet| Case { packet, place };
    use Place::{Discarded, Foreign, Malformed, Mismatch};
    vec![
        case(Malformed, good().cut(1)),
        case(Discarded("truncated"), good().cut(10)),
        case(Discarded("truncated"), good().byte(3, 255)),
        case(Discarded("trailing_bytes"), trailing),
        case(Discarded("checksum"), damaged),
        case(Discarded("hop_limit"), Packet { ttl: 254, ..good() }),
        case(Discarded("version"), third),
        case(Discarded("version"), good().byte(0, 0x41)),
        case(Discarded("kind"), good().byte(0, 0x22)),
        case(Foreign("99"), good().byte(1, 99)),
        case(Discarded("password"), good().byte(12, b'e')),
        case(Discarded("auth_type"), good().byte(4, 0)),
        case(Discarded("no_addresses"), Packet::with_addresses(&[])),
        case(Discarded("interval_zero"), good().byte(5, 0)),
        case(Discarded("owner_priority"), good().byte(2, 255)),
        case(Discarded("unknown_peer"), Packet { destination: cluster.node(active).v4(), ..good() }),
        case(Discarded("own_source"), Packet { source: Some(cluster.node(active).v4()), ..good() }),
        case(Mismatch("address_list"), Packet::with_addresses(&[vip, vip])),
        case(Mismatch("address_list"), Packet::with_addresses(&many)),
        case(Mismatch("interval"), good().byte(5, 2)),
    ]
}

fn hostile() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::default());
    // Without this the kernel itself drops what claims to come from the receiver's own address.
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.conf.all.accept_local", "1").expect("a sysctl");
    }
    cluster.start_all();
    let active = cluster.wait_until_settled();
    let takeovers = cluster.takeovers();
    let probe = Probe::to(cluster.address())
        .every(Duration::from_millis(10))
        .start(cluster.client())
        .expect("the probe starts");
    let since = Instant::now();
    for Case { packet, place } in cases(&cluster, active) {
        let before = place.count(&cluster.status(active));
        packet.send(cluster.client());
        let mut now = before;
        cluster.wait(&format!("{} is counted as {}", packet.bytes.len(), place.name()), || {
            now = place.count(&cluster.status(active));
            now >= before + TIMES
        });
        cluster.check(now == before + TIMES, || format!("{}: {before} → {now}", place.name()));
    }
    expect_one_line_each(&cluster, active);
    expect_undisturbed(&cluster, active, takeovers, probe, since);
    let shown = cluster.status(active)["degraded"].to_string();
    cluster.check(!shown.contains("advertisement"), || shown.clone());
}

/// However many packets there were, a reason is logged once a minute.
fn expect_one_line_each(cluster: &Cluster, active: usize) {
    let log = cluster.daemon(active).log().text();
    let mut lines: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once("advertisement discarded: ").map(|(_, reason)| reason))
        .map(|reason| reason.split(" vrid=").next().unwrap_or(reason))
        .collect();
    cluster.check(lines.len() >= 12, || format!("{lines:?}"));
    lines.sort_unstable();
    let all = lines.len();
    lines.dedup();
    cluster.check(lines.len() == all, || "a reason is logged twice within a minute".to_owned());
    for once in ["other virtual addresses", "from our own address"] {
        let count = log.lines().filter(|line| line.contains(once) && !line.contains("discarded")).count();
        cluster.check(count == 1, || format!("{once:?} is logged {count} times"));
    }
}

fn expect_undisturbed(cluster: &Cluster, active: usize, takeovers: usize, probe: Probe, since: Instant) {
    if let Err(error) = probe.wait_for_success(Instant::now(), support::PATIENCE) {
        cluster.fail(&error.to_string());
    }
    let failures = probe.stop().failures_since(since);
    cluster.check(failures.is_empty(), || format!("new connections failed: {failures:?}"));
    cluster.check(cluster.owners() == [active], || format!("{:?} own the VIP", cluster.owners()));
    // At the start two nodes may have been Active for a millisecond.
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
}

/// In unicast mode a multicast from a stranger and a unicast from a stranger are both counted, even with a higher
/// priority and a good checksum.
fn unknown_peer() {
    let lan = Lan::builder().controllers(2).build().expect("a LAN");
    let peers = format!("unicastPeers: [\"{}\", \"{}\"]", lan.v4(1), lan.v4(2));
    drop(lan);
    let mut cluster = Cluster::build(Lan::builder().controllers(2), Plan::default().instance(peers));
    cluster.start_all();
    let active = cluster.wait_until_settled();
    let takeovers = cluster.takeovers();
    let probe = Probe::to(cluster.address())
        .every(Duration::from_millis(10))
        .start(cluster.client())
        .expect("the probe starts");
    let since = Instant::now();
    let stranger = Packet::good(cluster.lan.v4(support::VIP_HOST)).byte(2, 254);
    for index in 0..cluster.len() {
        Packet { destination: cluster.node(index).v4(), ..stranger.clone() }.send(cluster.client());
        cluster.wait("the stranger is counted", || {
            Place::Discarded("unknown_peer").count(&cluster.status(index)) == TIMES
        });
    }
    expect_undisturbed(&cluster, active, takeovers, probe, since);
}
