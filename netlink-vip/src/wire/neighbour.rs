//! Neighbours (ARP and NDP), and where packets for an address go.

use std::net::IpAddr;

use super::decode::{Message, attributes, ip_of, u16_at, u32_at, u32_of};
use super::kind;

/// `NUD_STALE` of `neighbour.h`.
const STALE: u16 = 0x04;
/// `RTN_UNICAST` of `rtnetlink.h`.
const UNICAST: u8 = 1;
/// `RTN_LOCAL`.
const LOCAL: u8 = 2;

/// Offsets in the fixed headers (`neighbour.h`, `rtnetlink.h`).
mod offset {
    use std::ops::Range;

    pub(super) const NEIGHBOUR_INDEX: Range<usize> = 4..8;
    pub(super) const NEIGHBOUR_STATE: Range<usize> = 8..10;
    pub(super) const NEIGHBOUR_HEADER: usize = 12;

    pub(super) const ROUTE_KIND: usize = 7;
    pub(super) const ROUTE_HEADER: usize = 12;
}

/// Attribute numbers (same headers).
mod attribute {
    pub(super) const NDA_DST: u16 = 1;
    pub(super) const NDA_LLADDR: u16 = 2;

    pub(super) const RTA_OIF: u16 = 4;
    pub(super) const RTA_GATEWAY: u16 = 5;
    pub(super) const RTA_PREFSRC: u16 = 7;
    pub(super) const RTA_MULTIPATH: u16 = 9;
    pub(super) const RTA_VIA: u16 = 18;
}

/// A neighbour on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ObservedNeighbour {
    /// Interface index.
    pub(crate) index: u32,
    /// Its address.
    pub(crate) ip: IpAddr,
    /// Its link-layer address, if that is known.
    pub(crate) mac: Option<[u8; 6]>,
    /// `NUD_*`.
    state: u16,
}

impl ObservedNeighbour {
    /// `None` for what is no neighbour, and for one without an address.
    pub(crate) fn decode(message: &Message<'_>) -> Option<Self> {
        let body = message.body;
        if message.kind != kind::NEWNEIGH {
            return None;
        }
        let (mut ip, mut mac) = (None, None);
        for (number, value) in attributes(body, offset::NEIGHBOUR_HEADER) {
            match number {
                attribute::NDA_DST => ip = ip_of(value),
                attribute::NDA_LLADDR => mac = value.try_into().ok(),
                _ => {}
            }
        }
        let index = u32_at(body, offset::NEIGHBOUR_INDEX)?;
        Some(Self { index, ip: ip?, mac, state: u16_at(body, offset::NEIGHBOUR_STATE)? })
    }

    /// Whether its link-layer address has not been confirmed lately.
    pub(crate) fn is_stale(&self) -> bool {
        self.state & STALE != 0
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
        /// Whether they go to the destination itself, rather than to a router.
        is_direct: bool,
    },
}

impl FoundRoute {
    /// `None` if the message is no route, or one that leads nowhere.
    pub(crate) fn decode(message: &Message<'_>) -> Option<Self> {
        if message.kind != kind::NEWROUTE {
            return None;
        }
        match *message.body.get(offset::ROUTE_KIND)? {
            LOCAL => return Some(Self::Here),
            UNICAST => {}
            _ => return None,
        }
        let (mut interface, mut source, mut is_direct) = (None, None, true);
        for (number, value) in attributes(message.body, offset::ROUTE_HEADER) {
            match number {
                attribute::RTA_OIF => interface = u32_of(value),
                attribute::RTA_PREFSRC => source = ip_of(value),
                attribute::RTA_GATEWAY | attribute::RTA_VIA | attribute::RTA_MULTIPATH => is_direct = false,
                _ => {}
            }
        }
        Some(Self::Out { index: interface?, source, is_direct })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Message<'_> {
        Message { kind, flags: 0, sequence: 0, body }
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
        let decode = |body: &[u8]| ObservedNeighbour::decode(&message(kind::NEWNEIGH, body));
        let reachable = decode(&neighbour(2, &[&ip, &mac])).unwrap();
        assert_eq!((reachable.index, reachable.ip), (7, [10, 0, 0, 2].into()));
        assert_eq!((reachable.mac, reachable.is_stale()), (Some([2, 0, 0, 0, 0, 9]), false));
        assert!(decode(&neighbour(4, &[&ip, &mac])).unwrap().is_stale());
        assert_eq!(decode(&neighbour(0x20, &[&ip])).unwrap().mac, None);
        assert_eq!(decode(&neighbour(2, &[&ip, &attribute(2, &[1; 8])])).unwrap().mac, None, "not Ethernet");
        assert_eq!(decode(&neighbour(2, &[&mac])), None);
        assert_eq!(decode(&[2, 0, 0, 0, 7, 0]), None);
        assert_eq!(ObservedNeighbour::decode(&message(kind::NEWLINK, &neighbour(2, &[]))), None);
    }

    #[test]
    fn only_a_route_without_a_router_is_direct() {
        let route = |kind: u8, attributes: &[&[u8]]| {
            let mut body = vec![2, 32, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
            body.extend(attributes.concat());
            FoundRoute::decode(&message(kind::NEWROUTE, &body))
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
        for router in [5, 9, 18] {
            assert_eq!(route(1, &[&out, &attribute(router, &[10, 0, 0, 1])]), found(None, false));
        }
        assert_eq!(FoundRoute::decode(&message(kind::NEWROUTE, &[2, 32])), None);
        assert_eq!(FoundRoute::decode(&message(kind::NEWADDR, &[2, 32, 0, 0, 254, 0, 0, 1])), None);
    }
}
