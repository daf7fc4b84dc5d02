//! Requests for the links, local routes and neighbours of a real server, which nothing in real time waits for: links
//! and local routes come from `rtnetlink`'s builders. It has none for neighbours and for a question for a route.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::{IpProtocol, RouteNetlinkMessage};
use nix::libc;
use rtnetlink::{LinkDummy, LinkIp6Tnl, LinkIpIp, LinkUnspec, RouteMessageBuilder};

use super::{Request, dump, family, write};
use crate::types::full_prefix;
use crate::wire::{LOCAL_METRIC, PROTOCOL};

/// Creates a dummy link, not yet up.
pub(crate) fn create_dummy(name: &str) -> Request {
    create_link(LinkDummy::new(name).build())
}

/// Creates a tunnel, not yet up, that unpacks the packets of any sender to `local`: IPv4 in IPv4, or IPv4 and IPv6 in
/// IPv6.
pub(crate) fn create_tunnel(name: &str, local: IpAddr) -> Request {
    create_link(match local {
        IpAddr::V4(local) => LinkIpIp::new(name).local(local).build(),
        IpAddr::V6(local) => LinkIp6Tnl::new(name).local(local).protocol(IpProtocol::Hopopts).build(),
    })
}

fn create_link(link: LinkMessage) -> Request {
    write(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(link))
}

/// Writes an alias on a link.
pub(crate) fn set_alias(index: u32, alias: &str) -> Request {
    set_link(LinkUnspec::new_with_index(index).alias(alias).build())
}

/// Sets the largest packet of a link, in bytes.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> Request {
    set_link(LinkUnspec::new_with_index(index).mtu(mtu).build())
}

/// Sets a link administratively up.
pub(crate) fn set_link_up(index: u32) -> Request {
    set_link(LinkUnspec::new_with_index(index).up().build())
}

fn set_link(link: LinkMessage) -> Request {
    write(0, RouteNetlinkMessage::SetLink(link))
}

/// Deletes a link.
pub(crate) fn delete_link(index: u32) -> Request {
    write(0, RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build()))
}

/// One link by its name.
pub(crate) fn get_link_named(name: &str) -> Request {
    write(0, RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).build()))
}

/// One link by its index.
pub(crate) fn get_link(index: u32) -> Request {
    write(0, RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(index).build()))
}

/// IPv4 routes of the local table to addresses of one interface; kernels that do not filter return more.
pub(crate) fn dump_local_routes(index: u32) -> Request {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().table_id(libc::RT_TABLE_LOCAL.into());
    let route = route.protocol(0.into()).kind(RouteType::Local).output_interface(index);
    dump(RouteNetlinkMessage::GetRoute(route.build()))
}

/// A local route for an address of a dummy link, worse than the one that the kernel makes for the same address on
/// any other interface.
pub(crate) fn put_local_route(index: u32, ip: Ipv4Addr) -> Request {
    let route = local_route(index, ip, PROTOCOL).priority(LOCAL_METRIC).build();
    write(NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewRoute(route))
}

/// Deletes the route of [`put_local_route`].
pub(crate) fn delete_local_route(index: u32, ip: Ipv4Addr) -> Request {
    let route = local_route(index, ip, PROTOCOL).priority(LOCAL_METRIC).build();
    write(0, RouteNetlinkMessage::DelRoute(route))
}

/// Deletes the local route that the kernel made for an address; the protocol tells it from ours.
pub(crate) fn delete_kernel_route(index: u32, ip: Ipv4Addr) -> Request {
    write(0, RouteNetlinkMessage::DelRoute(local_route(index, ip, libc::RTPROT_KERNEL).build()))
}

fn local_route(index: u32, ip: Ipv4Addr, protocol: u8) -> RouteMessageBuilder<Ipv4Addr> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().table_id(libc::RT_TABLE_LOCAL.into());
    let route = route.protocol(protocol.into()).kind(RouteType::Local).scope(RouteScope::Host);
    route.destination_prefix(ip, full_prefix(ip.into())).pref_source(ip).output_interface(index)
}

/// The route that packets of this node to an address take.
pub(crate) fn get_route(ip: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = full_prefix(ip);
    message.attributes = vec![RouteAttribute::Destination(ip.into())];
    write(0, RouteNetlinkMessage::GetRoute(message))
}

/// Neighbours of one family on all interfaces.
pub(crate) fn dump_neighbours(like: IpAddr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(like);
    dump(RouteNetlinkMessage::GetNeighbour(message))
}

/// Makes the kernel find out or confirm a neighbour's link-layer address, as if it had a packet for it. A permanent
/// entry of an administrator would lose its address.
pub(crate) fn use_neighbour(index: u32, ip: IpAddr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Use;
    message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
    write(NLM_F_CREATE, RouteNetlinkMessage::NewNeighbour(message))
}
