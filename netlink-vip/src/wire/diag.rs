//! `inet_diag` messages (`inet_diag.h`, `sock_diag.h`), written by hand: the usual crate knows neither the filter
//! program nor SOCK_DESTROY.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader};

use super::decode::nlas;

/// Message types.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

const IPPROTO_TCP: u8 = 6;
/// `INET_DIAG_REQ_BYTECODE`.
const REQ_BYTECODE: u16 = 1;
/// `INET_DIAG_BC_S_COND`: compares the local address.
const BC_SOURCE: u8 = 7;
/// TCP states as bits: all but TIME_WAIT (6) and CLOSE (7), which hold no session, and LISTEN (10), which is
/// a service and stays.
const SESSION_STATES: u32 = 0xfff & !(1 << 6) & !(1 << 7) & !LISTEN;
const LISTEN: u32 = 1 << 10;
/// `INET_DIAG_SKV6ONLY`, which every listener of IPv6 comes with unasked.
const V6_ONLY: u16 = 11;

/// Address families as the kernel numbers them.
mod family {
    pub(super) const INET: u8 = 2;
    pub(super) const INET6: u8 = 10;
}

/// `struct inet_diag_sockid`.
const SOCKET_ID: usize = 48;
/// Where the id begins in `struct inet_diag_msg`, after family, state, timer and retransmissions.
const ID_IN_REPLY: usize = 4;
/// `struct inet_diag_msg`, which attributes follow.
const REPLY: usize = 72;
/// Where the local address begins in the id, after two ports.
const SOURCE_IN_ID: usize = 4;

/// A socket as the kernel identifies it: ports, addresses, interface and cookie, kept as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SocketId {
    family: u8,
    id: [u8; SOCKET_ID],
}

impl SocketId {
    /// Reads one reply of a dump.
    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let family = *body.first()?;
        let id = body.get(ID_IN_REPLY..ID_IN_REPLY + SOCKET_ID)?.try_into().ok()?;
        Some(Self { family, id })
    }

    /// One that differs from those of other numbers.
    #[cfg(test)]
    pub(crate) fn numbered(number: usize) -> Self {
        let mut id = [0; SOCKET_ID];
        id[..8].copy_from_slice(&(number as u64).to_ne_bytes());
        Self { family: family::INET, id }
    }

    /// The local address; that of an IPv4 session of a dual-stack socket is IPv4.
    pub(crate) fn local(&self) -> Option<IpAddr> {
        self.bound().map(|ip| ip.to_canonical())
    }

    /// The local address as the socket has it.
    fn bound(&self) -> Option<IpAddr> {
        let bytes = self.id.get(SOURCE_IN_ID..SOURCE_IN_ID + 16)?;
        match self.family {
            family::INET => <[u8; 4]>::try_from(bytes.get(..4)?).ok().map(IpAddr::from),
            family::INET6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
            _ => None,
        }
    }

    /// The local port, in network byte order in the id.
    fn port(&self) -> u16 {
        let [high, low, ..] = self.id;
        u16::from_be_bytes([high, low])
    }
}

/// A TCP socket that takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// Its address and port, without a scope. An IPv4 address may come as one of IPv6 that stands for it.
    pub local: SocketAddr,
    /// `true` if a socket of IPv6 takes no connections of IPv4 (`IPV6_V6ONLY`).
    pub is_v6_only: bool,
}

/// Reads one reply of a dump of listeners.
pub(crate) fn listener(body: &[u8]) -> Option<Listener> {
    let id = SocketId::decode(body)?;
    let v6_only = nlas(body, REPLY).find(|nla| nla.kind() == V6_ONLY);
    let is_v6_only = v6_only.is_some_and(|nla| nla.value().first().is_some_and(|&byte| byte != 0));
    Some(Listener { local: SocketAddr::new(id.bound()?, id.port()), is_v6_only })
}

/// The families of TCP sockets.
pub(crate) const FAMILIES: [u8; 2] = [family::INET, family::INET6];

/// The families in which sessions at `ip` are found: those of dual-stack sockets are IPv6 whatever the address.
pub(crate) fn families(ip: IpAddr) -> &'static [u8] {
    if ip.is_ipv4() { &[family::INET, family::INET6] } else { &[family::INET6] }
}

/// Asks for the TCP sessions of one family whose local address is `local`; the kernel does the comparing.
pub(crate) fn dump_sessions(sequence: u32, family: u8, local: IpAddr) -> Vec<u8> {
    let program = source_filter(local);
    let mut body = request(family, SESSION_STATES, &[0; SOCKET_ID]);
    body.extend(u16_bytes(4 + program.len()));
    body.extend(REQ_BYTECODE.to_ne_bytes());
    body.extend(program);
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, sequence, &body)
}

/// Asks for the listening TCP sockets of one family.
pub(crate) fn dump_listeners(sequence: u32, family: u8) -> Vec<u8> {
    let body = request(family, LISTEN, &[0; SOCKET_ID]);
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, sequence, &body)
}

/// Asks for the reset of one session.
pub(crate) fn destroy(sequence: u32, socket: &SocketId) -> Vec<u8> {
    let body = request(socket.family, u32::MAX, &socket.id);
    message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, sequence, &body)
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// One instruction: if the local address equals, jump just behind the program (accept), else four bytes further
/// (reject).
fn source_filter(local: IpAddr) -> Vec<u8> {
    let (family, octets) = match local {
        IpAddr::V4(v4) => (family::INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (family::INET6, v6.octets().to_vec()),
    };
    let length = 4 + 8 + octets.len();
    let bits = u8::try_from(octets.len() * 8).unwrap_or(u8::MAX);
    let mut program = vec![BC_SOURCE, u8::try_from(length).unwrap_or(u8::MAX)];
    program.extend(u16_bytes(length + 4));
    // struct inet_diag_hostcond: family, prefix length, padding, port (-1: any).
    program.extend([family, bits, 0, 0]);
    program.extend((-1_i32).to_ne_bytes());
    program.extend(octets);
    program
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    let mut bytes = vec![0; header.buffer_len()];
    header.length = u32::try_from(bytes.len() + body.len()).unwrap_or(u32::MAX);
    (header.message_type, header.flags, header.sequence_number) = (kind, flags, sequence);
    header.emit(&mut bytes);
    bytes.extend(body);
    bytes
}

fn u16_bytes(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_address_is_read_in_every_form() {
        let reply = |family: u8, source: &[u8]| {
            let mut body = vec![family, 1, 0, 0, 0x19, 0x2b, 0x9c, 0x40];
            body.extend(source);
            body.resize(ID_IN_REPLY + SOCKET_ID + 16, 0);
            SocketId::decode(&body).unwrap()
        };
        assert_eq!(reply(family::INET, &[10, 0, 0, 100]).local(), Some([10, 0, 0, 100].into()));
        let mapped = "::ffff:10.0.0.100".parse::<std::net::Ipv6Addr>().unwrap().octets();
        assert_eq!(reply(family::INET6, &mapped).local(), Some([10, 0, 0, 100].into()));
        let v6: std::net::Ipv6Addr = "fd00::100".parse().unwrap();
        assert_eq!(reply(family::INET6, &v6.octets()).local(), Some(v6.into()));
        assert_eq!(reply(1, &[0; 16]).local(), None);
        assert_eq!(SocketId::decode(&[2; 51]), None);
    }

    #[test]
    fn listeners_are_read_with_their_port_and_whether_ipv4_is_left_out() {
        let reply = |family: u8, source: &[u8], attributes: &[u8]| {
            let mut body = vec![family, 10, 0, 0, 0x19, 0x2b, 0, 0];
            body.extend(source);
            body.resize(REPLY, 0);
            body.extend(attributes);
            listener(&body).map(|it| (it.local.to_string(), it.is_v6_only))
        };
        let told = |local: &str, is_v6_only| Some((local.to_owned(), is_v6_only));
        assert_eq!(reply(family::INET, &[10, 0, 0, 100], &[]), told("10.0.0.100:6443", false));
        // INET_DIAG_SHUTDOWN before it.
        let mut attributes = [[5_u16.to_ne_bytes(), 8_u16.to_ne_bytes()].concat(), vec![3, 0, 0, 0]].concat();
        attributes.extend([5_u16.to_ne_bytes(), 11_u16.to_ne_bytes()].concat());
        for (value, is_v6_only) in [(0, false), (1, true)] {
            let all = [attributes.as_slice(), &[value, 0, 0, 0]].concat();
            assert_eq!(reply(family::INET6, &[0; 16], &all), told("[::]:6443", is_v6_only));
        }
        let mapped = "::ffff:10.0.0.100".parse::<std::net::Ipv6Addr>().unwrap().octets();
        assert_eq!(reply(family::INET6, &mapped, &[]), told("[::ffff:10.0.0.100]:6443", false));
        assert_eq!(reply(1, &[0; 16], &[]), None);
        assert_eq!(listener(&[2; 51]), None);
    }

    #[test]
    fn requests_have_the_layout_of_the_headers() {
        let dump = dump_sessions(7, family::INET, [10, 0, 0, 100].into());
        assert_eq!(dump.len(), 16 + 56 + 4 + 16);
        assert_eq!(dump[..4], u32::try_from(dump.len()).unwrap().to_ne_bytes());
        assert_eq!(dump[16..20], [2, 6, 0, 0]);
        assert_eq!(dump[20..24], 0x0b3f_u32.to_ne_bytes(), "no LISTEN, TIME_WAIT or CLOSE");
        assert_eq!(dump[76..80], [7, 16, 20, 0], "accept just behind, reject four further");
        assert_eq!(dump[88..], [10, 0, 0, 100]);
        let listeners = dump_listeners(7, family::INET6);
        assert_eq!((listeners.len(), &listeners[16..20]), (16 + 56, &[10, 6, 0, 0][..]));
        assert_eq!(listeners[20..24], 0x400_u32.to_ne_bytes(), "LISTEN only");
        let id = SocketId { family: family::INET6, id: [9; SOCKET_ID] };
        let destroy = destroy(8, &id);
        assert_eq!((destroy.len(), destroy[4], destroy[16]), (16 + 56, 21, 10));
        assert_eq!(destroy[24..], [9; SOCKET_ID]);
    }
}
