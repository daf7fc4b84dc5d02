//! Requests. Those for leases, and what the keeper's thread asks for, are built here from `netlink-packet-route`'s
//! types: `rtnetlink`'s builder of addresses knows neither lifetimes, flags nor marks, and adds a broadcast address.

#[cfg(feature = "real-server")]
pub(crate) mod real_server;

use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
    CacheInfo,
};
use netlink_packet_route::addrlabel::{AddrLabelAttribute, AddrLabelMessage};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{PERMANENT_PROTOCOL, PROTOCOL, ROUTE_METRIC, VipScope};
use crate::types::{LeaseTime, Prefix, full_prefix};

/// A request without its sequence number.
pub(crate) struct Request {
    flags: u16,
    payload: RouteNetlinkMessage,
}

impl Request {
    /// The bytes to send.
    pub(crate) fn encode(self, sequence: u32) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(self.payload));
        message.header.flags = self.flags;
        message.header.sequence_number = sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
}

/// Lifetime of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// A lease.
    Lease(LeaseTime),
    /// Without end: the addresses of the dummy link, which are the same on every node.
    Permanent,
}

/// Adds or refreshes a VIP. Flags, scope, lifetimes and mark are all sent every time: a refresh clears what it
/// leaves out, and an IPv6 refresh without `noprefixroute` adds a route that outlives the address.
///
/// An IPv6 VIP is deprecated from the start, so that it is never a default source (RFC 6724 §5 rule 3). An IPv4 one
/// has no broadcast address.
pub(crate) fn put_address(index: u32, ip: IpAddr, lifetime: Lifetime, scope: VipScope) -> Request {
    let (valid, mark) = match lifetime {
        Lifetime::Lease(lease) => (lease.as_secs(), PROTOCOL),
        Lifetime::Permanent => (u32::MAX, PERMANENT_PROTOCOL),
    };
    let mut cache = CacheInfo::default();
    cache.ifa_valid = valid;
    let mut flags = AddressFlags::Noprefixroute;
    let mut message = address(index, ip, full_prefix(ip));
    if ip.is_ipv4() {
        cache.ifa_preferred = valid;
        message.header.scope = match scope {
            VipScope::Universe => AddressScope::Universe,
            VipScope::Host => AddressScope::Host,
        };
    } else {
        flags |= AddressFlags::Nodad;
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes.extend([
        AddressAttribute::CacheInfo(cache),
        AddressAttribute::Flags(flags),
        AddressAttribute::Protocol(AddressProtocol::Other(mark)),
    ]);
    write(NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewAddress(message))
}

/// Deletes exactly this address with this prefix length.
pub(crate) fn delete_address(index: u32, ip: IpAddr, prefix_len: u8) -> Request {
    write(0, RouteNetlinkMessage::DelAddress(address(index, ip, prefix_len)))
}

fn address(index: u32, ip: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// Addresses of one interface; 0 stands for all.
pub(crate) fn dump_addresses(index: u32) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = index;
    dump(RouteNetlinkMessage::GetAddress(message))
}

/// All links.
pub(crate) fn dump_links() -> Request {
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
}

/// Routes of the main table; kernels that filter dumps return only those of `protocol`, if given.
pub(crate) fn dump_routes(v4: bool, protocol: Option<u8>) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.protocol = protocol.unwrap_or(0).into();
    dump(RouteNetlinkMessage::GetRoute(message))
}

/// All address labels.
pub(crate) fn dump_labels() -> Request {
    let mut message = AddrLabelMessage::default();
    message.header.family = AddressFamily::Inet6;
    dump(RouteNetlinkMessage::GetAddrLabel(message))
}

/// A route to `prefix` on the link. Without a preferred source, so that the VIP is not chosen for it.
pub(crate) fn put_route(index: u32, prefix: Prefix) -> Request {
    write(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewRoute(route(index, prefix)))
}

/// Deletes the route of [`put_route`]; protocol and metric are part of the match.
pub(crate) fn delete_route(index: u32, prefix: Prefix) -> Request {
    write(0, RouteNetlinkMessage::DelRoute(route(index, prefix)))
}

fn route(index: u32, prefix: Prefix) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(prefix.network());
    message.header.destination_prefix_length = prefix.len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    if prefix.network().is_ipv4() {
        message.header.scope = RouteScope::Link;
    }
    message.attributes = vec![
        RouteAttribute::Destination(prefix.network().into()),
        RouteAttribute::Oif(index),
        RouteAttribute::Priority(ROUTE_METRIC),
    ];
    message
}

/// Adds a label for one IPv6 address on all interfaces.
pub(crate) fn put_label(ip: IpAddr, value: u32) -> Request {
    write(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewAddrLabel(label(ip, value)))
}

/// Deletes the label of [`put_label`].
pub(crate) fn delete_label(ip: IpAddr, value: u32) -> Request {
    write(0, RouteNetlinkMessage::DelAddrLabel(label(ip, value)))
}

fn label(ip: IpAddr, value: u32) -> AddrLabelMessage {
    let mut message = AddrLabelMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.attributes = vec![AddrLabelAttribute::Address(ip), AddrLabelAttribute::Label(value)];
    message
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn write(flags: u16, payload: RouteNetlinkMessage) -> Request {
    Request { flags: NLM_F_REQUEST | NLM_F_ACK | flags, payload }
}

fn dump(payload: RouteNetlinkMessage) -> Request {
    Request { flags: NLM_F_REQUEST | NLM_F_DUMP, payload }
}

#[cfg(all(test, feature = "real-server"))]
mod tests;
