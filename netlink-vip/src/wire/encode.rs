//! Requests, built from `netlink-packet-route`'s types.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
    CacheInfo,
};
use netlink_packet_route::addrlabel::{AddrLabelAttribute, AddrLabelMessage};
use netlink_packet_route::link::{
    InfoData, InfoIpTunnel, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};

use super::{LOCAL_METRIC, PERMANENT_PROTOCOL, PROTOCOL, PROTOCOL_KERNEL, ROUTE_METRIC};
use crate::plan::VipScope;
use crate::types::{LeaseTime, Prefix, full_prefix};

/// The table of the node's own addresses (`rtnetlink.h`).
const RT_TABLE_LOCAL: u8 = 255;

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

/// How long an address lives.
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

/// Neighbours of one family on all interfaces.
pub(crate) fn dump_neighbours(v4: bool) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    dump(RouteNetlinkMessage::GetNeighbour(message))
}

/// Makes the kernel find out or confirm a neighbour's link-layer address, as if it had a packet for it. One that an
/// administrator has entered for good would lose that.
pub(crate) fn use_neighbour(index: u32, ip: IpAddr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Use;
    let address = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    write(NLM_F_CREATE, RouteNetlinkMessage::NewNeighbour(message))
}

/// The route that packets of this node to an address take.
pub(crate) fn get_route(ip: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = full_prefix(ip);
    let address = match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    };
    message.attributes = vec![RouteAttribute::Destination(address)];
    write(0, RouteNetlinkMessage::GetRoute(message))
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

/// IPv4 routes of the local table to addresses of one interface; kernels that do not filter return more.
pub(crate) fn dump_local_routes(index: u32) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RT_TABLE_LOCAL;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(index)];
    dump(RouteNetlinkMessage::GetRoute(message))
}

/// A local route for an address of a dummy link, worse than the one that the kernel makes for the same address on
/// any other interface.
pub(crate) fn put_local_route(index: u32, ip: Ipv4Addr) -> Request {
    let mut message = local_route(index, ip, PROTOCOL);
    message.attributes.push(RouteAttribute::Priority(LOCAL_METRIC));
    write(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewRoute(message))
}

/// Deletes the route of [`put_local_route`].
pub(crate) fn delete_local_route(index: u32, ip: Ipv4Addr) -> Request {
    let mut message = local_route(index, ip, PROTOCOL);
    message.attributes.push(RouteAttribute::Priority(LOCAL_METRIC));
    write(0, RouteNetlinkMessage::DelRoute(message))
}

/// Deletes the local route that the kernel made for an address; the protocol tells it from ours.
pub(crate) fn delete_kernel_route(index: u32, ip: Ipv4Addr) -> Request {
    write(0, RouteNetlinkMessage::DelRoute(local_route(index, ip, PROTOCOL_KERNEL)))
}

fn local_route(index: u32, ip: Ipv4Addr, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.header.table = RT_TABLE_LOCAL;
    message.header.protocol = protocol.into();
    message.header.kind = RouteType::Local;
    message.header.scope = RouteScope::Host;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(ip)),
        RouteAttribute::PrefSource(RouteAddress::Inet(ip)),
        RouteAttribute::Oif(index),
    ];
    message
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
    let destination = match prefix.network() {
        IpAddr::V4(v4) => {
            message.header.scope = RouteScope::Link;
            RouteAddress::Inet(v4)
        }
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    message.attributes = vec![
        RouteAttribute::Destination(destination),
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

/// Creates a dummy link, not yet up.
pub(crate) fn create_dummy(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]),
    ];
    write(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(message))
}

/// Creates a tunnel, not yet up, that unpacks whatever anybody sends to `local`: IPv4 in IPv4, or IPv4 and IPv6 in
/// IPv6.
pub(crate) fn create_tunnel(name: &str, local: IpAddr) -> Request {
    let mut data = vec![InfoIpTunnel::Local(local)];
    let kind = if local.is_ipv4() {
        InfoKind::IpIp
    } else {
        data.push(InfoIpTunnel::Protocol(IpProtocol::Hopopts));
        InfoKind::Ip6Tnl
    };
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(InfoData::IpTunnel(data))]),
    ];
    write(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(message))
}

/// Writes an alias on a link.
pub(crate) fn set_alias(index: u32, alias: &str) -> Request {
    change_link(index, LinkAttribute::IfAlias(alias.to_owned()))
}

/// Sets the largest packet of a link, in bytes.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> Request {
    change_link(index, LinkAttribute::Mtu(mtu))
}

fn change_link(index: u32, attribute: LinkAttribute) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![attribute];
    write(0, RouteNetlinkMessage::SetLink(message))
}

/// One link by its name.
pub(crate) fn get_link_named(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    write(0, RouteNetlinkMessage::GetLink(message))
}

/// One link by its index.
pub(crate) fn get_link(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    write(0, RouteNetlinkMessage::GetLink(message))
}

/// Sets a link administratively up.
pub(crate) fn set_link_up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    write(0, RouteNetlinkMessage::SetLink(message))
}

/// Deletes a link.
pub(crate) fn delete_link(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    write(0, RouteNetlinkMessage::DelLink(message))
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

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
