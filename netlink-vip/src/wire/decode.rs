//! Tolerant decoding of rtnetlink messages.
//!
//! The kernel may add attributes, change their length, or leave them out; a strict decoder then loses the event,
//! and with it the news that an address is gone. Here only the fixed header of a message has to be complete.
//! An attribute with an unexpected length is skipped; a broken attribute list ends where it breaks.
//! Nothing here panics or allocates more than the input is long, whatever the bytes are (fuzzed).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{family, kind};
use crate::types::Prefix;

/// What one message says. Message kinds that the keeper has no use for are [`NetEvent::Other`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetEvent {
    /// A link exists or changed.
    Link(LinkUpdate),
    /// A link is gone.
    LinkRemoved {
        /// Its index.
        index: u32,
    },
    /// An address exists or changed.
    Address(ObservedAddress),
    /// An address is gone.
    AddressRemoved(ObservedAddress),
    /// A route exists or changed.
    Route(ObservedRoute),
    /// A route is gone.
    RouteRemoved(ObservedRoute),
    /// An IPv6 address label.
    Label(ObservedLabel),
    /// Anything else.
    Other {
        /// `nlmsg_type`.
        kind: u16,
    },
}

/// A link as one message describes it; what the message left out is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkUpdate {
    /// Interface index.
    pub index: u32,
    /// `IFF_*` flags.
    pub flags: u32,
    /// Name.
    pub name: Option<String>,
    /// Alternative names.
    pub alternative_names: Vec<String>,
    /// Hardware address, if it is six bytes long.
    pub mac: Option<[u8; 6]>,
    /// Index of the bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// Index of the device that it is a child of (VLAN, macvlan), or of its peer (veth).
    pub parent: Option<u32>,
    /// `IFLA_INFO_KIND`: "dummy", "vlan", …; physical devices have none.
    pub kind: Option<String>,
    /// What somebody wrote about it (`ip link set … alias`).
    pub alias: Option<String>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// The ends of an "ipip" or "ip6tnl" tunnel.
    pub tunnel: Option<TunnelEnds>,
}

/// Between which addresses a tunnel runs, and what may be inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunnelEnds {
    /// This end; `None` for any address.
    pub local: Option<IpAddr>,
    /// The other end; `None` for any address.
    pub remote: Option<IpAddr>,
    /// The protocol number of what is inside; 0 for IPv4 and IPv6.
    pub protocol: u8,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedAddress {
    /// Interface index.
    pub index: u32,
    /// The address (the local one of a point-to-point pair).
    pub ip: IpAddr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Its scope, see [`super::scope`].
    pub scope: u8,
    /// Its flags, see [`super::address_flag`].
    pub flags: u32,
    /// Who added it (`IFA_PROTO`); `None` if nobody said or the kernel is older than 5.18.
    pub protocol: Option<u8>,
    /// Remaining seconds of validity; `None` without end.
    pub valid: Option<u32>,
}

/// A route, as far as we need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRoute {
    /// Destination; a prefix of length 0 is a default route.
    pub destination: Prefix,
    /// Routing table; the main table is 254.
    pub table: u32,
    /// Who added it (`rtm_protocol`).
    pub protocol: u8,
    /// `rtm_type`; 1 is unicast.
    pub kind: u8,
    /// Metric; lower wins.
    pub metric: u32,
    /// Interfaces of its next hops, in order.
    pub interfaces: Vec<u32>,
}

/// An RFC 6724 label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedLabel {
    /// The prefix that it is for.
    pub prefix: Prefix,
    /// Interface index, 0 for all.
    pub index: u32,
    /// The label.
    pub label: u32,
}

/// Why a message could not be read. The keeper answers each with a fresh look at everything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Shorter than its header says, or than a header is.
    #[error("netlink message cut short: {have} bytes of {need}")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that should be.
        need: usize,
    },
    /// An address or label message without a readable address.
    #[error("netlink message {kind} names no address")]
    NoAddress {
        /// `nlmsg_type`.
        kind: u16,
    },
}

/// Offsets in the fixed headers (`netlink.h`, `if_link.h`, `if_addr.h`, `rtnetlink.h`, `if_addrlabel.h`).
mod offset {
    use std::ops::Range;

    pub(super) const MESSAGE_LENGTH: Range<usize> = 0..4;
    pub(super) const MESSAGE_KIND: Range<usize> = 4..6;
    pub(super) const MESSAGE_FLAGS: Range<usize> = 6..8;
    pub(super) const MESSAGE_SEQUENCE: Range<usize> = 8..12;
    pub(super) const MESSAGE_HEADER: usize = 16;

    pub(super) const FAMILY: usize = 0;
    pub(super) const LINK_INDEX: Range<usize> = 4..8;
    pub(super) const LINK_FLAGS: Range<usize> = 8..12;
    pub(super) const LINK_HEADER: usize = 16;

    pub(super) const ADDRESS_PREFIX: usize = 1;
    pub(super) const ADDRESS_FLAGS: usize = 2;
    pub(super) const ADDRESS_SCOPE: usize = 3;
    pub(super) const ADDRESS_INDEX: Range<usize> = 4..8;
    pub(super) const ADDRESS_HEADER: usize = 8;

    pub(super) const ROUTE_PREFIX: usize = 1;
    pub(super) const ROUTE_TABLE: usize = 4;
    pub(super) const ROUTE_PROTOCOL: usize = 5;
    pub(super) const ROUTE_KIND: usize = 7;
    pub(super) const ROUTE_HEADER: usize = 12;

    pub(super) const LABEL_PREFIX: usize = 2;
    pub(super) const LABEL_INDEX: Range<usize> = 4..8;
    pub(super) const LABEL_HEADER: usize = 12;

    pub(super) const NEXT_HOP_INDEX: Range<usize> = 4..8;
    pub(super) const NEXT_HOP_HEADER: usize = 8;

    pub(super) const CACHE_VALID: Range<usize> = 4..8;
}

/// Attribute numbers (same headers).
mod attribute {
    pub(super) const TYPE_MASK: u16 = 0x3fff;

    pub(super) const IFLA_ADDRESS: u16 = 1;
    pub(super) const IFLA_IFNAME: u16 = 3;
    pub(super) const IFLA_MTU: u16 = 4;
    pub(super) const IFLA_LINK: u16 = 5;
    pub(super) const IFLA_MASTER: u16 = 10;
    pub(super) const IFLA_LINKINFO: u16 = 18;
    pub(super) const IFLA_IFALIAS: u16 = 20;
    pub(super) const IFLA_PROP_LIST: u16 = 52;
    pub(super) const IFLA_ALT_IFNAME: u16 = 53;
    pub(super) const IFLA_INFO_KIND: u16 = 1;
    pub(super) const IFLA_INFO_DATA: u16 = 2;
    pub(super) const IFLA_IPTUN_LOCAL: u16 = 2;
    pub(super) const IFLA_IPTUN_REMOTE: u16 = 3;
    pub(super) const IFLA_IPTUN_PROTO: u16 = 9;

    pub(super) const IFA_ADDRESS: u16 = 1;
    pub(super) const IFA_LOCAL: u16 = 2;
    pub(super) const IFA_CACHEINFO: u16 = 6;
    pub(super) const IFA_FLAGS: u16 = 8;
    pub(super) const IFA_PROTO: u16 = 11;

    pub(super) const RTA_DST: u16 = 1;
    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const RTA_PRIORITY: u16 = 6;
    pub(super) const RTA_MULTIPATH: u16 = 9;
    pub(super) const RTA_TABLE: u16 = 15;

    pub(super) const IFAL_ADDRESS: u16 = 1;
    pub(super) const IFAL_LABEL: u16 = 2;
}

/// The header of a netlink message, with its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request that caused it, or 0.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// Splits what one read returned into messages. After a broken header nothing can be told apart any more, so the
/// iterator yields one error and ends.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, DecodeError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let header = (
            u32_at(datagram, offset::MESSAGE_LENGTH),
            u16_at(datagram, offset::MESSAGE_KIND),
            u16_at(datagram, offset::MESSAGE_FLAGS),
            u32_at(datagram, offset::MESSAGE_SEQUENCE),
        );
        let have = datagram.len();
        let (Some(length), Some(kind), Some(flags), Some(sequence)) = header else {
            datagram = &[];
            return Some(Err(DecodeError::Truncated { have, need: offset::MESSAGE_HEADER }));
        };
        let need = usize::try_from(length).unwrap_or(usize::MAX).max(offset::MESSAGE_HEADER);
        let Some(body) = datagram.get(offset::MESSAGE_HEADER..need) else {
            datagram = &[];
            return Some(Err(DecodeError::Truncated { have, need }));
        };
        datagram = datagram.get(need.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message { kind, flags, sequence, body }))
    })
}

/// Decodes everything that one read from a netlink socket returned.
pub fn decode_events(datagram: &[u8]) -> impl Iterator<Item = Result<NetEvent, DecodeError>> {
    messages(datagram).map(|message| decode_event(&message?))
}

/// Decodes one message.
///
/// # Errors
/// [`DecodeError`] if its fixed header is incomplete or it does not name the address that it is about.
pub fn decode_event(message: &Message<'_>) -> Result<NetEvent, DecodeError> {
    let Message { kind, body, .. } = *message;
    match kind {
        kind::NEWLINK | kind::DELLINK => decode_link(kind, body),
        kind::NEWADDR => decode_address(kind, body).map(NetEvent::Address),
        kind::DELADDR => decode_address(kind, body).map(NetEvent::AddressRemoved),
        kind::NEWROUTE => {
            decode_route(body).map(|route| route.map_or(NetEvent::Other { kind }, NetEvent::Route))
        }
        kind::DELROUTE => {
            decode_route(body).map(|route| route.map_or(NetEvent::Other { kind }, NetEvent::RouteRemoved))
        }
        kind::NEWADDRLABEL => decode_label(kind, body),
        _ => Ok(NetEvent::Other { kind }),
    }
}

fn decode_link(kind: u16, body: &[u8]) -> Result<NetEvent, DecodeError> {
    need(body, offset::LINK_HEADER)?;
    // A bridge reports its ports with the same message kinds and its own family: there, "deleted" means that the
    // link left the bridge, not that it is gone.
    if body.get(offset::FAMILY) != Some(&family::UNSPEC) {
        return Ok(NetEvent::Other { kind });
    }
    let index = u32_at(body, offset::LINK_INDEX).unwrap_or_default();
    if kind == kind::DELLINK {
        return Ok(NetEvent::LinkRemoved { index });
    }
    let flags = u32_at(body, offset::LINK_FLAGS).unwrap_or_default();
    let mut link = LinkUpdate { index, flags, ..LinkUpdate::default() };
    for (number, value) in attributes(body, offset::LINK_HEADER) {
        match number {
            attribute::IFLA_IFNAME => link.name = text(value),
            attribute::IFLA_ADDRESS => link.mac = value.try_into().ok(),
            attribute::IFLA_LINK => link.parent = u32_of(value).filter(|&parent| parent != 0),
            attribute::IFLA_MASTER => link.master = u32_of(value).filter(|&master| master != 0),
            attribute::IFLA_MTU => link.mtu = u32_of(value),
            attribute::IFLA_IFALIAS => link.alias = text(value),
            attribute::IFLA_LINKINFO => decode_link_info(value, &mut link),
            attribute::IFLA_PROP_LIST => {
                let names = attributes(value, 0).filter(|(number, _)| *number == attribute::IFLA_ALT_IFNAME);
                link.alternative_names = names.filter_map(|(_, name)| text(name)).collect();
            }
            _ => {}
        }
    }
    Ok(NetEvent::Link(link))
}

/// Reads the kind, and what else is known of the kinds that the crate makes.
fn decode_link_info(info: &[u8], link: &mut LinkUpdate) {
    let find = |wanted| attributes(info, 0).find(|(number, _)| *number == wanted).map(|(_, value)| value);
    link.kind = find(attribute::IFLA_INFO_KIND).and_then(text);
    if !matches!(link.kind.as_deref(), Some("ipip" | "ip6tnl")) {
        return;
    }
    let mut ends = TunnelEnds::default();
    for (number, value) in attributes(find(attribute::IFLA_INFO_DATA).unwrap_or_default(), 0) {
        match number {
            attribute::IFLA_IPTUN_LOCAL => ends.local = ip_of(value).filter(|ip| !ip.is_unspecified()),
            attribute::IFLA_IPTUN_REMOTE => ends.remote = ip_of(value).filter(|ip| !ip.is_unspecified()),
            attribute::IFLA_IPTUN_PROTO => ends.protocol = value.first().copied().unwrap_or_default(),
            _ => {}
        }
    }
    link.tunnel = Some(ends);
}

fn decode_address(kind: u16, body: &[u8]) -> Result<ObservedAddress, DecodeError> {
    need(body, offset::ADDRESS_HEADER)?;
    let byte = |at: usize| body.get(at).copied().unwrap_or_default();
    let (mut local, mut remote) = (None, None);
    let mut flags = u32::from(byte(offset::ADDRESS_FLAGS));
    let (mut protocol, mut valid) = (None, None);
    for (number, value) in attributes(body, offset::ADDRESS_HEADER) {
        match number {
            attribute::IFA_ADDRESS => remote = ip_of(value),
            attribute::IFA_LOCAL => local = ip_of(value),
            attribute::IFA_FLAGS => flags = u32_of(value).unwrap_or(flags),
            attribute::IFA_PROTO => protocol = value.first().copied(),
            // The reserved value means "without end".
            attribute::IFA_CACHEINFO => {
                valid = u32_at(value, offset::CACHE_VALID).filter(|&left| left != u32::MAX);
            }
            _ => {}
        }
    }
    let ip = local.or(remote).ok_or(DecodeError::NoAddress { kind })?;
    let index = u32_at(body, offset::ADDRESS_INDEX).unwrap_or_default();
    let (prefix_len, scope) = (byte(offset::ADDRESS_PREFIX), byte(offset::ADDRESS_SCOPE));
    Ok(ObservedAddress { index, ip, prefix_len, scope, flags, protocol, valid })
}

/// `None` for families other than IPv4 and IPv6 (multicast routing, MPLS).
fn decode_route(body: &[u8]) -> Result<Option<ObservedRoute>, DecodeError> {
    need(body, offset::ROUTE_HEADER)?;
    let byte = |at: usize| body.get(at).copied().unwrap_or_default();
    let mut destination = match byte(offset::FAMILY) {
        family::INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        family::INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return Ok(None),
    };
    let mut table = u32::from(byte(offset::ROUTE_TABLE));
    let mut metric = 0;
    let mut interfaces = Vec::new();
    for (number, value) in attributes(body, offset::ROUTE_HEADER) {
        match number {
            attribute::RTA_DST => destination = ip_of(value).unwrap_or(destination),
            attribute::RTA_OIF => interfaces.extend(u32_of(value)),
            attribute::RTA_PRIORITY => metric = u32_of(value).unwrap_or(metric),
            attribute::RTA_MULTIPATH => interfaces.extend(next_hops(value)),
            attribute::RTA_TABLE => table = u32_of(value).unwrap_or(table),
            _ => {}
        }
    }
    Ok(Some(ObservedRoute {
        destination: Prefix::new(destination, byte(offset::ROUTE_PREFIX)),
        table,
        protocol: byte(offset::ROUTE_PROTOCOL),
        kind: byte(offset::ROUTE_KIND),
        metric,
        interfaces,
    }))
}

fn next_hops(mut rest: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0..2)?);
        let index = u32_at(rest, offset::NEXT_HOP_INDEX)?;
        if length < offset::NEXT_HOP_HEADER {
            return None;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(index)
    })
}

fn decode_label(kind: u16, body: &[u8]) -> Result<NetEvent, DecodeError> {
    need(body, offset::LABEL_HEADER)?;
    let mut prefix = None;
    let mut label = None;
    for (number, value) in attributes(body, offset::LABEL_HEADER) {
        match number {
            attribute::IFAL_ADDRESS => prefix = ip_of(value),
            attribute::IFAL_LABEL => label = u32_of(value),
            _ => {}
        }
    }
    let (Some(ip), Some(label)) = (prefix, label) else {
        return Err(DecodeError::NoAddress { kind });
    };
    let len = body.get(offset::LABEL_PREFIX).copied().unwrap_or_default();
    let index = u32_at(body, offset::LABEL_INDEX).unwrap_or_default();
    Ok(NetEvent::Label(ObservedLabel { prefix: Prefix::new(ip, len), index, label }))
}

fn need(body: &[u8], need: usize) -> Result<(), DecodeError> {
    if body.len() < need { Err(DecodeError::Truncated { have: body.len(), need }) } else { Ok(()) }
}

/// Attributes from `start` on; ends where the list breaks.
pub(crate) fn attributes(body: &[u8], start: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(start..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0..2)?);
        let number = u16_at(rest, 2..4)? & attribute::TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((number, value))
    })
}

pub(super) fn ip_of(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

pub(crate) fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    let text = std::str::from_utf8(value.get(..end)?).ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn u32_of(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: std::ops::Range<usize>) -> Option<u32> {
    u32_of(bytes.get(at)?)
}

pub(super) fn u16_at(bytes: &[u8], at: std::ops::Range<usize>) -> Option<u16> {
    bytes.get(at)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
