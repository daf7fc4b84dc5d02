//! Neighbours (ARP and NDP), and where packets for an address go.

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NlaBuffer, ParseableParametrized};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourHeader, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteType};
use nix::libc;

use super::decode::{Message, attributes, ip_of, nlas, route_attributes};

/// A neighbour on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ObservedNeighbour {
    /// Interface index.
    pub(crate) index: u32,
    /// Its address.
    pub(crate) ip: IpAddr,
    /// Its link-layer address, if that is known.
    pub(crate) mac: Option<[u8; 6]>,
    /// `true` if its link-layer address has not been confirmed lately.
    pub(crate) is_stale: bool,
}

impl ObservedNeighbour {
    /// `None` for a message that is no neighbour, and for a neighbour without an address.
    pub(crate) fn decode(message: &Message<'_>) -> Option<Self> {
        const KINDS: &[u16] = &[libc::NDA_DST, libc::NDA_LLADDR];
        if message.message_type() != libc::RTM_NEWNEIGH {
            return None;
        }
        let header = NeighbourHeader::parse(message.payload()).ok()?;
        let parse = |nla: &NlaBuffer<&[u8]>| NeighbourAttribute::parse_with_param(nla, header.family);
        let (mut ip, mut mac) = (None, None);
        for attribute in attributes(message.payload(), header.buffer_len(), KINDS, parse) {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(v4.into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(v6.into()),
                NeighbourAttribute::LinkLayerAddress(address) => mac = address.try_into().ok(),
                _ => {}
            }
        }
        let is_stale = header.state == NeighbourState::Stale;
        Some(Self { index: header.ifindex, ip: ip?, mac, is_stale })
    }
}

/// Where packets of this node for an address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoundRoute {
    /// To this node itself.
    Here,
    /// Out by an interface.
    Out {
        /// Its index.
        index: u32,
        /// The address that they come from, where this node has one.
        source: Option<IpAddr>,
        /// `true` if they go to the destination itself, rather than to a router.
        is_direct: bool,
    },
}

impl FoundRoute {
    /// `None` if the message is no route, or one that leads nowhere.
    pub(crate) fn decode(message: &Message<'_>) -> Option<Self> {
        const KINDS: &[u16] = &[libc::RTA_OIF, libc::RTA_PREFSRC];
        const ROUTERS: &[u16] = &[libc::RTA_GATEWAY, libc::RTA_VIA, libc::RTA_MULTIPATH];
        if message.message_type() != libc::RTM_NEWROUTE {
            return None;
        }
        let header = RouteHeader::parse(message.payload()).ok()?;
        match header.kind {
            RouteType::Local => return Some(Self::Here),
            RouteType::Unicast => {}
            _ => return None,
        }
        let (mut interface, mut source) = (None, None);
        for attribute in route_attributes(message.payload(), &header, KINDS) {
            match attribute {
                RouteAttribute::Oif(index) => interface = Some(index),
                RouteAttribute::PrefSource(address) => source = ip_of(&address),
                _ => {}
            }
        }
        // By their numbers, as the parser does not know each kind of router.
        let is_direct =
            !nlas(message.payload(), header.buffer_len()).any(|nla| ROUTERS.contains(&nla.kind()));
        Some(Self::Out { index: interface?, source, is_direct })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode<T>(kind: u16, body: &[u8], decode: impl Fn(&Message<'_>) -> Option<T>) -> Option<T> {
        decode(&Message::new(&crate::wire::message(kind, body)[..]))
    }

    fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), number.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn neighbour(state: u16, attributes: &[&[u8]]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        body.extend(7_u32.to_ne_bytes());
        body.extend(state.to_ne_bytes());
        body.extend([0, 1]);
        body.extend(attributes.concat());
        body
    }

    #[test]
    fn neighbours_are_known_stale_or_unknown() {
        let (ip, mac) = (attribute(1, &[10, 0, 0, 2]), attribute(2, &[2, 0, 0, 0, 0, 9]));
        let decode = |body: &[u8]| decode(libc::RTM_NEWNEIGH, body, ObservedNeighbour::decode);
        let reachable = decode(&neighbour(2, &[&ip, &mac])).unwrap();
        assert_eq!((reachable.index, reachable.ip), (7, [10, 0, 0, 2].into()));
        assert_eq!((reachable.mac, reachable.is_stale), (Some([2, 0, 0, 0, 0, 9]), false));
        assert!(decode(&neighbour(4, &[&ip, &mac])).unwrap().is_stale);
        assert_eq!(decode(&neighbour(0x20, &[&ip])).unwrap().mac, None);
        assert_eq!(decode(&neighbour(2, &[&ip, &attribute(2, &[1; 8])])).unwrap().mac, None, "not Ethernet");
        assert_eq!(decode(&neighbour(2, &[&mac])), None);
        assert_eq!(decode(&[2, 0, 0, 0, 7, 0]), None);
        let link = crate::wire::message(libc::RTM_NEWLINK, &neighbour(2, &[&ip]));
        assert_eq!(ObservedNeighbour::decode(&Message::new(&link[..])), None);
    }

    #[test]
    fn only_a_route_without_a_router_is_direct() {
        let route = |kind: u8, attributes: &[&[u8]]| {
            let mut body = vec![2, 32, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
            body.extend(attributes.concat());
            decode(libc::RTM_NEWROUTE, &body, FoundRoute::decode)
        };
        let out = attribute(4, &7_u32.to_ne_bytes());
        let source = attribute(7, &[10, 0, 0, 1]);
        let found = |source: Option<[u8; 4]>, is_direct| {
            Some(FoundRoute::Out { index: 7, source: source.map(IpAddr::from), is_direct })
        };
        assert_eq!(route(1, &[&out]), found(None, true));
        assert_eq!(route(1, &[&out, &source]), found(Some([10, 0, 0, 1]), true));
        assert_eq!(route(1, &[&source]), None, "by no interface");
        assert_eq!(route(2, &[&out, &source]), Some(FoundRoute::Here));
        assert_eq!(route(7, &[]), None, "unreachable");
        let hop = [8, 0, 0, 0, 7, 0, 0, 0];
        for (number, router) in [(5, &[10, 0, 0, 1][..]), (9, &hop), (18, &[2, 0, 10, 0, 0, 1])] {
            assert_eq!(route(1, &[&out, &attribute(number, router)]), found(None, false));
        }
        let unknown = attribute(18, &[200, 0, 1]);
        assert_eq!(route(1, &[&out, &unknown]), found(None, false), "a router of an unknown family");
        assert_eq!(decode(libc::RTM_NEWROUTE, &[2, 32], FoundRoute::decode), None);
        let body = [2, 32, 0, 0, 254, 0, 0, 2, 0, 0, 0, 0];
        assert_eq!(decode(libc::RTM_NEWADDR, &body, FoundRoute::decode), None);
    }
}
