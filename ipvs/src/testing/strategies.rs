//! Any value of the model.

use std::net::IpAddr;
use std::num::NonZeroU32;

use proptest::option;
use proptest::prelude::*;

use crate::model::*;
use crate::wire::{Attributes, Reply, ReplyContent, Request};

pub(crate) fn families() -> impl Strategy<Value = AddressFamily> {
    prop_oneof![Just(AddressFamily::V4), Just(AddressFamily::V6)]
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

pub(crate) fn keys() -> impl Strategy<Value = ServiceKey> {
    let protocols = prop_oneof![
        Just(Protocol::TCP),
        Just(Protocol::UDP),
        Just(Protocol::SCTP),
        any::<u16>().prop_map(Protocol)
    ];
    prop_oneof![
        (protocols, addresses(), any::<u16>()).prop_map(|(protocol, address, port)| ServiceKey::Address {
            protocol,
            address,
            port
        }),
        (families(), any::<NonZeroU32>()).prop_map(|(family, mark)| ServiceKey::Fwmark { family, mark }),
    ]
}

fn schedulers() -> impl Strategy<Value = SchedulerName> {
    prop_oneof![Just(SchedulerName::RR), "[a-z_ü]{1,7}".prop_map(|name| SchedulerName::new(&name).unwrap())]
}

pub(crate) fn services() -> impl Strategy<Value = Service> {
    let engine = option::of("[!-~]{1,15}".prop_map(|name| EngineName::new(&name).unwrap()));
    (keys(), schedulers(), any::<(u32, u32, u32)>(), any::<u32>(), engine).prop_map(
        |(key, scheduler, (flags, mask, timeout), netmask, engine)| {
            let netmask = match key.family() {
                AddressFamily::V4 => Netmask::V4(netmask.into()),
                AddressFamily::V6 => Netmask::V6(netmask),
            };
            let mut service = Service::new(key, scheduler).with_netmask(netmask).unwrap();
            service.flags = ServiceFlags(flags);
            service.flags_mask = ServiceFlags(mask);
            service.timeout = Seconds(timeout);
            service.engine = engine;
            service
        },
    )
}

pub(crate) fn destinations() -> impl Strategy<Value = Destination> {
    let tunnels = any::<(u8, u16, u16)>().prop_map(|(kind, port, flags)| Tunnel {
        kind: TunnelType(kind),
        port,
        flags: TunnelFlags(flags),
    });
    (addresses(), any::<u16>(), any::<[u32; 4]>(), tunnels).prop_map(
        |(address, port, [method, weight, upper_threshold, lower_threshold], tunnel)| Destination {
            key: DestinationKey::new(address, port),
            method: ForwardMethod(method),
            tunnel,
            weight: Weight(weight),
            upper_threshold,
            lower_threshold,
        },
    )
}

/// Unknown attributes, with numbers that no list knows.
fn others() -> impl Strategy<Value = Attributes> {
    let one =
        (100_u16..0x3fff, prop_oneof![Just(0), Just(0x8000_u16)], prop::collection::vec(any::<u8>(), 0..9));
    prop::collection::vec(one, 0..3).prop_map(|list| {
        let mut others = Attributes::new();
        for (kind, flags, value) in list {
            others.push(kind | flags, &value).unwrap();
        }
        others
    })
}

fn stats() -> impl Strategy<Value = Stats> {
    (any::<[u64; 10]>(), others()).prop_map(|(n, other)| Stats {
        connections: n[0],
        incoming_packets: n[1],
        outgoing_packets: n[2],
        incoming_bytes: n[3],
        outgoing_bytes: n[4],
        connection_rate: n[5],
        incoming_packet_rate: n[6],
        outgoing_packet_rate: n[7],
        incoming_byte_rate: n[8],
        outgoing_byte_rate: n[9],
        other,
    })
}

fn stats32() -> impl Strategy<Value = Stats32> {
    (any::<[u32; 8]>(), any::<[u64; 2]>(), others()).prop_map(|(n, bytes, other)| Stats32 {
        connections: n[0],
        incoming_packets: n[1],
        outgoing_packets: n[2],
        incoming_bytes: bytes[0],
        outgoing_bytes: bytes[1],
        connection_rate: n[3],
        incoming_packet_rate: n[4],
        outgoing_packet_rate: n[5],
        incoming_byte_rate: n[6],
        outgoing_byte_rate: n[7],
        other,
    })
}

fn service_entries() -> impl Strategy<Value = ServiceEntry> {
    (services(), option::of(stats32()), option::of(stats()), others())
        .prop_map(|(service, stats32, stats64, other)| ServiceEntry { service, stats32, stats64, other })
}

fn destination_entries() -> impl Strategy<Value = DestinationEntry> {
    (destinations(), any::<[u32; 3]>(), option::of(stats32()), option::of(stats()), others()).prop_map(
        |(destination, [active, inactive, persistent], stats32, stats64, other)| DestinationEntry {
            destination,
            active_connections: active,
            inactive_connections: inactive,
            persistent_connections: persistent,
            stats32,
            stats64,
            other,
        },
    )
}

fn daemons() -> impl Strategy<Value = SyncDaemon> {
    let name = "[a-z0-9.@-]{1,15}".prop_map(|name| InterfaceName::new(&name).unwrap());
    let rest = (option::of(any::<u16>()), option::of(addresses()), option::of(any::<u16>()));
    (any::<u32>(), name, any::<u32>(), rest, option::of(any::<u8>()), others()).prop_map(
        |(state, interface, sync_id, (max_length, group, port), ttl, other)| SyncDaemon {
            other,
            max_length,
            group,
            port,
            ttl,
            ..SyncDaemon::new(SyncState(state), interface, sync_id)
        },
    )
}

fn seconds() -> impl Strategy<Value = Option<Seconds>> {
    option::of(any::<u32>().prop_map(Seconds))
}

pub(crate) fn requests() -> impl Strategy<Value = Request> {
    let destination_keys = (addresses(), any::<u16>()).prop_map(|(a, p)| DestinationKey::new(a, p));
    let timeouts =
        (seconds(), seconds(), seconds()).prop_map(|(tcp, tcp_fin, udp)| TimeoutChange { tcp, tcp_fin, udp });
    prop_oneof![
        services().prop_map(Request::NewService),
        services().prop_map(Request::SetService),
        keys().prop_map(Request::DeleteService),
        keys().prop_map(Request::GetService),
        Just(Request::DumpServices),
        (keys(), destinations()).prop_map(|(key, value)| Request::NewDestination(key, value)),
        (keys(), destinations()).prop_map(|(key, value)| Request::SetDestination(key, value)),
        (keys(), destination_keys).prop_map(|(key, value)| Request::DeleteDestination(key, value)),
        keys().prop_map(Request::DumpDestinations),
        daemons().prop_map(Request::NewDaemon),
        any::<u32>().prop_map(|state| Request::DeleteDaemon(SyncState(state))),
        Just(Request::DumpDaemons),
        timeouts.prop_map(Request::SetConfig),
        Just(Request::GetConfig),
        Just(Request::GetInfo),
        option::of(keys()).prop_map(Request::Zero),
        Just(Request::Flush),
    ]
}

pub(crate) fn replies() -> impl Strategy<Value = Reply> {
    let timeouts = any::<[u32; 3]>().prop_map(|[tcp, tcp_fin, udp]| Timeouts {
        tcp: Seconds(tcp),
        tcp_fin: Seconds(tcp_fin),
        udp: Seconds(udp),
    });
    let contents = prop_oneof![
        service_entries().prop_map(ReplyContent::Service),
        destination_entries().prop_map(ReplyContent::Destination),
        daemons().prop_map(ReplyContent::Daemon),
        timeouts.prop_map(ReplyContent::Config),
        any::<[u32; 2]>().prop_map(|[version, size]| ReplyContent::Info(Info::new(Version(version), size))),
    ];
    (contents, others()).prop_map(|(content, other)| Reply { content, other })
}
