//! Hostile and broken packets from another host of the LAN: counted by reason, logged once, obeyed by nobody.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use testbed::{Lan, Node, Probe, Test};

use support::{Cluster, Plan};

/// IP protocol number of VRRP.
const VRRP: u8 = 112;
/// The groups of RFC 9568 §5.1.1.2 and §5.1.2.2.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// How often each packet is sent.
const TIMES: u64 = 10;
/// The VRID that k0s gives to the first instance.
const VRID: u8 = 51;

fn main() -> ExitCode {
    testbed::main(vec![
        Test::new("hostile_packets_are_counted_by_reason_and_disturb_nobody", || {
            hostile(Plan::default(), cases_v2);
        }),
        Test::new("hostile_packets_of_version_3_over_ipv6_disturb_nobody", || {
            hostile(Plan::v3("1s").v6_only(), cases_v3);
        }),
        Test::new("a_unicast_group_hears_only_its_peers", unknown_peer),
    ])
}

/// An advertisement as the daemons' peers send it, which a case then spoils.
#[derive(Debug, Clone)]
struct Packet {
    bytes: Vec<u8>,
    source: Option<IpAddr>,
    destination: IpAddr,
    ttl: u8,
    /// Is wrong in the checksum.
    damage: u16,
}

impl Packet {
    /// Well-formed, and weaker than the daemons' own.
    fn good(vip: IpAddr) -> Self {
        Self::with_addresses(&[vip])
    }

    /// Version 2 with k0s's password for IPv4, version 3 for IPv6.
    fn with_addresses(addresses: &[IpAddr]) -> Self {
        Self::of(addresses.first().is_none_or(IpAddr::is_ipv4), addresses)
    }

    fn of(v4: bool, addresses: &[IpAddr]) -> Self {
        let count = u8::try_from(addresses.len()).expect("at most 255");
        let mut bytes = match v4 {
            true => vec![0x21, VRID, 100, count, 1, 1, 0, 0],
            false => vec![0x31, VRID, 100, count, 0, 100, 0, 0],
        };
        for address in addresses {
            match address {
                IpAddr::V4(ip) => bytes.extend(ip.octets()),
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
        }
        bytes.extend(if v4 { &b"Example\0"[..] } else { &[] });
        let destination = if v4 { IpAddr::V4(GROUP) } else { IpAddr::V6(GROUP_V6) };
        Self { bytes, source: None, destination, ttl: 255, damage: 0 }
    }

    /// Overwrites one byte.
    fn byte(mut self, at: usize, value: u8) -> Self {
        self.bytes[at] = value;
        self
    }

    /// Ends it early, or goes on with zeros.
    fn resize(mut self, len: usize) -> Self {
        self.bytes.resize(len, 0);
        self
    }

    /// The message with its checksum (RFC 9568 §5.2.8, where `pseudo_header` belongs to it).
    fn message(&self, pseudo_header: &[u8]) -> Vec<u8> {
        let mut message = self.bytes.clone();
        if message.len() >= 8 {
            let sum = checksum(&[pseudo_header, &message].concat()) ^ self.damage;
            message[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    fn send(&self, node: &Node) {
        match self.destination {
            IpAddr::V4(destination) => self.send_v4(node, destination),
            IpAddr::V6(destination) => self.send_v6(node, destination),
        }
    }

    fn send_v4(&self, node: &Node, destination: Ipv4Addr) {
        let source = match self.source {
            Some(IpAddr::V4(source)) => source,
            _ => node.v4(),
        };
        let mut datagram = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, self.ttl, VRRP, 0, 0];
        datagram.extend(source.octets());
        datagram.extend(destination.octets());
        datagram.extend(self.message(&[]));
        let own = node.v4();
        node.run(|| {
            let socket = raw(Domain::IPV4, i32::from(VRRP));
            socket.set_header_included_v4(true).expect("IP_HDRINCL");
            socket.set_multicast_if_v4(&own).expect("IP_MULTICAST_IF");
            // The kernel fills in the lengths and the header's checksum.
            send_often(&socket, &datagram, &SocketAddrV4::new(destination, 0).into());
        });
    }

    fn send_v6(&self, node: &Node, destination: Ipv6Addr) {
        let source = match self.source {
            Some(IpAddr::V6(source)) => source,
            _ => node.link_local(),
        };
        let length = u16::try_from(self.bytes.len()).expect("a short message").to_be_bytes();
        let addresses = [source.octets(), destination.octets()].concat();
        let pseudo_header = [&addresses[..], &[0, 0], &length, &[0, 0, 0, VRRP]].concat();
        let header = [&[0x6c, 0, 0, 0], &length[..], &[VRRP, self.ttl], &addresses].concat();
        let datagram = [header, self.message(&pseudo_header)].concat();
        node.run(|| {
            let index = nix::net::if_::if_nametoindex("eth0").expect("the node's interface");
            // IPPROTO_RAW: with a header of our own.
            let socket = raw(Domain::IPV6, 255);
            socket.set_multicast_if_v6(index).expect("IPV6_MULTICAST_IF");
            send_often(&socket, &datagram, &SocketAddrV6::new(destination, 0, 0, index).into());
        });
    }
}

fn raw(domain: Domain, protocol: i32) -> Socket {
    Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).expect("a raw socket")
}

fn send_often(socket: &Socket, datagram: &[u8], to: &SockAddr) {
    for _ in 0..TIMES {
        socket.send_to(datagram, to).expect("the packet is sent");
    }
}

/// RFC 1071, with the checksum's own place taken as zero.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
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

use Place::{Discarded, Foreign, Malformed, Mismatch};

fn case(place: Place, packet: Packet) -> Case {
    Case { packet, place }
}

/// What is wrong in either version.
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
    let vip = IpAddr::V4(cluster.lan.v4(support::VIP_HOST));
    let good = || Packet::good(vip);
    let many: Vec<IpAddr> = (1..=255).map(|n| IpAddr::from([10, 9, 7, n])).collect();
    // As version 3 sends it: no authentication data.
    let third = good().resize(12).byte(0, 0x31).byte(4, 0).byte(5, 100);
    let mut cases = common_cases(&good(), IpAddr::V4(cluster.node(active).v4()));
    cases.extend([
        case(Discarded("version"), third),
        case(Discarded("password"), good().byte(12, b'e')),
        case(Discarded("auth_type"), good().byte(4, 0)),
        case(Discarded("no_addresses"), Packet::of(true, &[])),
        case(Discarded("interval_zero"), good().byte(5, 0)),
        case(Mismatch("address_list"), Packet::with_addresses(&[vip, vip])),
        case(Mismatch("address_list"), Packet::with_addresses(&many)),
        case(Mismatch("interval"), good().byte(5, 2)),
    ]);
    cases
}

/// No interval is a mismatch: version 3 learns it (RFC 9568 §6.4.2).
fn cases_v3(cluster: &Cluster, active: usize) -> Vec<Case> {
    let vip = IpAddr::V6(cluster.lan.v6(support::VIP_HOST));
    let good = || Packet::good(vip);
    let many: Vec<IpAddr> = (1..=80).map(|n| IpAddr::from([0xfd, 7, 0, 0, 0, n, 0, 0])).collect();
    let mut cases = common_cases(&good(), IpAddr::V6(cluster.node(active).link_local()));
    cases.extend([
        case(Discarded("version"), good().byte(0, 0x21)),
        case(Discarded("no_addresses"), Packet::of(false, &[])),
        case(Discarded("interval_zero"), good().byte(5, 0)),
        case(Mismatch("address_list"), Packet::with_addresses(&[vip, vip])),
        case(Mismatch("address_list"), Packet::with_addresses(&many)),
    ]);
    cases
}

fn hostile(plan: Plan, cases: impl Fn(&Cluster, usize) -> Vec<Case>) {
    let mut cluster = Cluster::build(Lan::builder(), plan);
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
        cluster.wait(&format!("{} bytes are counted as {}", packet.bytes.len(), place.name()), || {
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
    cluster.check(lines.len() >= 9, || format!("{lines:?}"));
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
    let stranger = Packet::good(cluster.vip()).byte(2, 254);
    for index in 0..cluster.len() {
        Packet { destination: cluster.node(index).v4().into(), ..stranger.clone() }.send(cluster.client());
        cluster.wait("the stranger is counted", || {
            Place::Discarded("unknown_peer").count(&cluster.status(index)) == TIMES
        });
    }
    expect_undisturbed(&cluster, active, takeovers, probe, since);
}
