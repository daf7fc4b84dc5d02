//! Advertisements that no correct daemon sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use testbed::Node;

/// IP protocol number of VRRP.
const VRRP: u8 = 112;
/// The groups of RFC 9568 §5.1.1.2 and §5.1.2.2.
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// The VRID that k0s gives to the first instance.
const VRID: u8 = 51;

/// A valid advertisement, of which a test case changes a field.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    /// The bytes behind the message, which the checksum over IPv4 does not cover.
    pub(crate) trailer: Vec<u8>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    /// The difference to the valid checksum (exclusive or).
    pub(crate) damage: u16,
}

impl Packet {
    /// A valid advertisement, of lower priority than the daemons' own.
    pub(crate) fn good(vip: IpAddr) -> Self {
        Self::with_addresses(&[vip])
    }

    /// An advertisement of version 2 with k0s's password for IPv4, of version 3 for IPv6.
    pub(crate) fn with_addresses(addresses: &[IpAddr]) -> Self {
        Self::of(addresses.first().is_none_or(IpAddr::is_ipv4), addresses)
    }

    pub(crate) fn of(v4: bool, addresses: &[IpAddr]) -> Self {
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
        Self { bytes, trailer: Vec::new(), source: None, destination, ttl: 255, damage: 0 }
    }

    /// Overwrites one byte.
    pub(crate) fn byte(mut self, at: usize, value: u8) -> Self {
        self.bytes[at] = value;
        self
    }

    /// Truncates the message, or extends it with zeros.
    pub(crate) fn resize(mut self, len: usize) -> Self {
        self.bytes.resize(len, 0);
        self
    }

    /// The message with its checksum (RFC 9568 §5.2.8, which includes `pseudo_header`).
    fn message(&self, pseudo_header: &[u8]) -> Vec<u8> {
        let mut message = self.bytes.clone();
        if message.len() >= 8 {
            let sum = checksum(&[pseudo_header, &message].concat()) ^ self.damage;
            message[6..8].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    /// Sends the packet from `node`, `times` times in a row.
    pub(crate) fn send(&self, node: &Node, times: u64) {
        match self.destination {
            IpAddr::V4(destination) => self.send_v4(node, destination, times),
            IpAddr::V6(destination) => self.send_v6(node, destination, times),
        }
    }

    fn send_v4(&self, node: &Node, destination: Ipv4Addr, times: u64) {
        let source = match self.source {
            Some(IpAddr::V4(source)) => source,
            _ => node.v4(),
        };
        let mut datagram = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, self.ttl, VRRP, 0, 0];
        datagram.extend(source.octets());
        datagram.extend(destination.octets());
        datagram.extend(self.message(&[]));
        datagram.extend(&self.trailer);
        let own = node.v4();
        node.run(|| {
            let socket = raw(Domain::IPV4, i32::from(VRRP));
            socket.set_header_included_v4(true).expect("IP_HDRINCL");
            socket.set_multicast_if_v4(&own).expect("IP_MULTICAST_IF");
            // The kernel sets the lengths and the header's checksum.
            send_often(&socket, &datagram, &SocketAddrV4::new(destination, 0).into(), times);
        });
    }

    fn send_v6(&self, node: &Node, destination: Ipv6Addr, times: u64) {
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
            // IPPROTO_RAW: the header is included.
            let socket = raw(Domain::IPV6, 255);
            socket.set_multicast_if_v6(index).expect("IPV6_MULTICAST_IF");
            send_often(&socket, &datagram, &SocketAddrV6::new(destination, 0, 0, index).into(), times);
        });
    }
}

fn raw(domain: Domain, protocol: i32) -> Socket {
    Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).expect("a raw socket")
}

fn send_often(socket: &Socket, datagram: &[u8], to: &SockAddr, times: u64) {
    for _ in 0..times {
        socket.send_to(datagram, to).expect("the packet is sent");
    }
}

/// The checksum of RFC 1071; the checksum field itself counts as zero.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
