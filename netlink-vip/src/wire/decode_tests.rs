//! The other side of these tests is `netlink-packet-route`, whose encoders are an implementation of their own.

use netlink_packet_core::{DefaultNla, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteNextHop, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use proptest::prelude::*;

use super::*;

fn bytes(payload: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(payload));
    message.finalize();
    let mut out = vec![0; message.buffer_len()];
    message.serialize(&mut out);
    out
}

fn decode_one(payload: RouteNetlinkMessage) -> NetEvent {
    let bytes = bytes(payload);
    let mut events = decode_events(&bytes);
    let event = events.next().unwrap().unwrap();
    assert_eq!(events.next(), None);
    event
}

fn address_message() -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = AddressScope::Host;
    message.header.index = 7;
    let mut cache = CacheInfo::default();
    (cache.ifa_valid, cache.ifa_preferred) = (2, 0);
    let ip: IpAddr = [10, 0, 0, 100].into();
    message.attributes = vec![
        AddressAttribute::Address([10, 0, 0, 1].into()),
        AddressAttribute::Local(ip),
        AddressAttribute::CacheInfo(cache),
        AddressAttribute::Flags(AddressFlags::Noprefixroute | AddressFlags::Deprecated),
        AddressAttribute::Protocol(AddressProtocol::Other(203)),
    ];
    message
}

fn expected_address() -> ObservedAddress {
    ObservedAddress {
        index: 7,
        ip: [10, 0, 0, 100].into(),
        prefix_len: 32,
        scope: 254,
        flags: 0x220,
        protocol: Some(203),
        valid: Some(2),
    }
}

#[test]
fn an_address_is_read_with_all_its_attributes() {
    let event = decode_one(RouteNetlinkMessage::NewAddress(address_message()));
    assert_eq!(event, NetEvent::Address(expected_address()));
    let event = decode_one(RouteNetlinkMessage::DelAddress(address_message()));
    assert_eq!(event, NetEvent::AddressRemoved(expected_address()));
}

#[test]
fn unreadable_attributes_do_not_lose_the_event() {
    let mut message = address_message();
    message.attributes.insert(0, AddressAttribute::Other(DefaultNla::new(0x77, vec![1; 300])));
    message.attributes.insert(0, AddressAttribute::Other(DefaultNla::new(8, vec![1, 2, 3])));
    message.attributes.insert(0, AddressAttribute::Other(DefaultNla::new(1, vec![1, 2, 3, 4, 5])));
    message.attributes.push(AddressAttribute::Other(DefaultNla::new(6, vec![9; 3])));
    let mut bytes = bytes(RouteNetlinkMessage::DelAddress(message));
    // A list that breaks in the middle: an attribute that claims to be longer than the message.
    bytes.extend_from_slice(&[200, 0, 1, 0]);
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[..4].copy_from_slice(&length.to_ne_bytes());

    let event = decode_events(&bytes).next().unwrap().unwrap();
    let NetEvent::AddressRemoved(address) = event else { panic!("{event:?}") };
    assert_eq!((address.index, address.ip), (7, [10, 0, 0, 100].into()));
    // The strict decoder of the usual crate gives up on the same bytes.
    assert!(NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).is_err());
}

#[test]
fn a_missing_lifetime_or_mark_is_none() {
    let mut message = address_message();
    let mut cache = CacheInfo::default();
    cache.ifa_valid = u32::MAX;
    message.attributes =
        vec![AddressAttribute::Address([10, 0, 0, 1].into()), AddressAttribute::CacheInfo(cache)];
    let NetEvent::Address(address) = decode_one(RouteNetlinkMessage::NewAddress(message)) else { panic!() };
    assert_eq!((address.valid, address.protocol, address.ip), (None, None, [10, 0, 0, 1].into()));
}

#[test]
fn a_message_without_an_address_is_an_error() {
    let mut message = address_message();
    message.attributes.clear();
    let bytes = bytes(RouteNetlinkMessage::NewAddress(message));
    assert_eq!(decode_events(&bytes).next().unwrap(), Err(DecodeError::NoAddress { kind: 20 }));
}

#[test]
fn a_link_is_read_and_a_bridge_port_is_not_taken_for_one() {
    let mut message = LinkMessage::default();
    message.header.index = 3;
    message.header.flags = LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp;
    message.attributes = vec![
        LinkAttribute::IfName("eth0".into()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
        LinkAttribute::Controller(8),
        LinkAttribute::Mtu(1400),
        LinkAttribute::Link(4),
        LinkAttribute::IfAlias("to the left".into()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]),
        LinkAttribute::PropList(vec![Prop::AltIfName("uplink".into())]),
    ];
    let expected = LinkUpdate {
        index: 3,
        flags: 0x1_0041,
        name: Some("eth0".into()),
        alternative_names: vec!["uplink".into()],
        mac: Some([2, 0, 0, 0, 0, 9]),
        master: Some(8),
        parent: Some(4),
        kind: Some("vlan".into()),
        alias: Some("to the left".into()),
        mtu: Some(1400),
        tunnel: None,
    };
    assert_eq!(decode_one(RouteNetlinkMessage::NewLink(message.clone())), NetEvent::Link(expected));
    assert_eq!(decode_one(RouteNetlinkMessage::DelLink(message.clone())), NetEvent::LinkRemoved { index: 3 });
    message.header.interface_family = AddressFamily::Bridge;
    assert_eq!(decode_one(RouteNetlinkMessage::DelLink(message)), NetEvent::Other { kind: 17 });
}

#[test]
fn the_kind_of_a_link_is_read_although_its_data_is_unreadable() {
    // IFLA_INFO_KIND "bridge", then data whose first attribute ends too early for its number.
    let info = [&[11, 0, 1, 0][..], b"bridge\0", &[0, 8, 0, 2, 0, 4, 0, 1, 0]].concat();
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName("br0".into()),
        LinkAttribute::Other(DefaultNla::new(libc::IFLA_LINKINFO, info)),
    ];
    let bytes = bytes(RouteNetlinkMessage::NewLink(message));
    let NetEvent::Link(link) = decode_events(&bytes).next().unwrap().unwrap() else { panic!() };
    assert_eq!((link.name.as_deref(), link.kind.as_deref()), (Some("br0"), Some("bridge")));
    // The decoder of whole messages gives up on the same bytes.
    assert!(NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).is_err());
}

fn route(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = 254;
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::Dhcp;
    message
}

#[test]
fn default_routes_are_read_single_and_multipath() {
    let mut message = route(AddressFamily::Inet);
    message.attributes =
        vec![RouteAttribute::Oif(5), RouteAttribute::Priority(100), RouteAttribute::Table(1000)];
    let NetEvent::Route(single) = decode_one(RouteNetlinkMessage::NewRoute(message)) else { panic!() };
    assert!(single.destination.is_empty() && single.destination.network().is_ipv4());
    assert_eq!((single.table, single.metric, single.protocol, single.kind), (1000, 100, 16, 1));
    assert_eq!(single.interfaces, [5]);

    let mut message = route(AddressFamily::Inet6);
    let hop = |index| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = index;
        hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet6("fe80::1".parse().unwrap()))];
        hop
    };
    message.attributes = vec![RouteAttribute::MultiPath(vec![hop(9), hop(4)])];
    let NetEvent::RouteRemoved(multi) = decode_one(RouteNetlinkMessage::DelRoute(message)) else { panic!() };
    assert_eq!((multi.interfaces, multi.destination.network().is_ipv6()), (vec![9, 4], true));
}

#[test]
fn a_next_hop_with_an_unknown_encapsulation_keeps_its_interface() {
    let mut hops = Vec::new();
    for (index, attribute) in [(9_u32, [8_u16, 22]), (4, [6, 21])] {
        hops.extend(16_u16.to_ne_bytes());
        hops.extend([0, 0]);
        hops.extend(index.to_ne_bytes());
        hops.extend(attribute.map(u16::to_ne_bytes).concat());
        hops.extend([250, 250, 250, 250]);
    }
    let mut body = vec![2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    body.extend(u16::try_from(4 + hops.len()).unwrap().to_ne_bytes());
    body.extend(9_u16.to_ne_bytes());
    body.extend(&hops);
    let message = crate::wire::message(nix::libc::RTM_NEWROUTE, &body);
    let Ok(NetEvent::Route(route)) = decode_event(&Message::new(&message[..])) else { panic!() };
    assert_eq!(route.interfaces, [9, 4]);
    // A hop that claims to be shorter than its header ends nothing but itself.
    body[16..18].fill(0);
    let message = crate::wire::message(nix::libc::RTM_NEWROUTE, &body);
    assert!(decode_event(&Message::new(&message[..])).is_ok());
}

#[test]
fn several_messages_in_one_datagram_are_all_read_up_to_a_broken_header() {
    let one = bytes(RouteNetlinkMessage::NewAddress(address_message()));
    let mut datagram = [one.clone(), one.clone()].concat();
    assert_eq!(decode_events(&datagram).filter(Result::is_ok).count(), 2);
    datagram.extend_from_slice(&[255, 255, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let events: Vec<_> = decode_events(&datagram).collect();
    assert_eq!(events.len(), 3);
    assert!(matches!(events[2], Err(DecodeError::Truncated(_))));
    assert!(matches!(decode_events(&one[..10]).next(), Some(Err(DecodeError::Truncated(_)))));
}

proptest! {
    /// Nothing from the wire may panic or loop for ever.
    #[test]
    fn decode_terminates_on_arbitrary_input(datagram in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(decode_events(&datagram).count() <= datagram.len() + 1);
    }

    /// The same with a header that is right, so that the bodies are reached.
    #[test]
    fn decode_terminates_on_arbitrary_bodies(kind in 16_u16..80, body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_event(&Message::new(&crate::wire::message(kind, &body)[..]));
    }

    /// Damage in one attribute leaves the others readable.
    #[test]
    fn a_damaged_attribute_leaves_the_others_readable(which in 0_usize..5, byte in any::<u8>()) {
        let mut message = address_message();
        let number = [1, 2, 6, 8, 11][which];
        message.attributes[which] = AddressAttribute::Other(DefaultNla::new(number, vec![byte; 7]));
        let event = decode_one(RouteNetlinkMessage::DelAddress(message));
        let NetEvent::AddressRemoved(address) = event else { panic!("{event:?}") };
        prop_assert_eq!(address.index, 7);
        let ip: IpAddr = if number == 2 { [10, 0, 0, 1].into() } else { [10, 0, 0, 100].into() };
        prop_assert_eq!(address.ip, ip);
    }
}
