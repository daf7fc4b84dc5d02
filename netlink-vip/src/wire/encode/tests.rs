//! Golden bytes, from the kernel's headers: a change of what we send is a change on purpose.

use std::net::Ipv4Addr;

use super::real_server::*;
use super::*;

fn hex(request: Request) -> String {
    request.encode(1).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_ipv4_lease_is_sent_whole_every_time() {
    let sent = hex(put_address(7, [10, 0, 0, 100].into(), Lifetime::Lease(LeaseTime::MIN), VipScope::Host));
    let expected = [
        "4c000000140005050100000000000000", // RTM_NEWADDR, REQUEST|ACK|REPLACE|CREATE
        "022000fe07000000",                 // AF_INET, /32, no flag fits in a byte, scope host
        "080002000a000064",                 // IFA_LOCAL
        "080001000a000064",                 // IFA_ADDRESS
        "140006000200000002000000",         // IFA_CACHEINFO: preferred 2, valid 2
        "0000000000000000",
        "0800080000020000", // IFA_FLAGS: noprefixroute
        "05000b00cb000000", // IFA_PROTO: 203
    ];
    assert_eq!(sent, expected.concat(), "and no IFA_BROADCAST");
    let universe =
        put_address(7, [10, 0, 0, 100].into(), Lifetime::Lease(LeaseTime::MIN), VipScope::Universe);
    assert!(hex(universe)[32..].starts_with("0220000007000000"));
}

#[test]
fn an_ipv6_lease_is_deprecated_and_brings_no_route() {
    let ip: std::net::Ipv6Addr = "fd00::100".parse().unwrap();
    let sent = hex(put_address(7, ip.into(), Lifetime::Lease(LeaseTime::MIN), VipScope::Host));
    assert!(sent[32..].starts_with("0a80020007000000"), "AF_INET6, /128, nodad, scope universe");
    assert!(sent.contains("140006000000000002000000"), "preferred 0, valid 2");
    assert!(sent.contains("0800080002020000"), "nodad, noprefixroute");
    assert!(sent.contains("05000b00cb000000"));
}

#[test]
fn deletions_name_address_and_prefix_length() {
    let sent = hex(delete_address(7, [10, 0, 0, 100].into(), 32));
    assert_eq!(
        sent,
        "28000000150005000100000000000000022000000700000008000200 0a00006408000100 0a000064".replace(' ', "")
    );
}

#[test]
fn a_prefix_route_is_marked_and_has_no_source() {
    let sent = hex(put_route(7, Prefix::new([192, 0, 2, 100].into(), 24)));
    let expected = [
        "34000000180005060100000000000000", // RTM_NEWROUTE, REQUEST|ACK|EXCL|CREATE
        "02180000fecbfd0100000000",         // AF_INET, /24, main, protocol 203, scope link, unicast
        "08000100c0000200",                 // RTA_DST
        "0800040007000000",                 // RTA_OIF
        "0800060000040000",                 // RTA_PRIORITY 1024
    ];
    assert_eq!(sent, expected.concat());
    assert!(hex(delete_route(7, Prefix::new([192, 0, 2, 100].into(), 24))).contains("02180000fecbfd01"));
}

#[test]
fn a_label_is_for_one_address_on_every_interface() {
    let ip: IpAddr = "fd00::100".parse().unwrap();
    let sent = hex(put_label(ip, 10_000));
    let expected = [
        "38000000480005060100000000000000", // RTM_NEWADDRLABEL
        "0a0080000000000000000000",         // AF_INET6, /128, no interface
        "14000100fd000000000000000000000000000100",
        "0800020010270000",
    ];
    assert_eq!(sent, expected.concat());
}

#[test]
fn a_dummy_link_is_created_by_name_and_kind() {
    let sent = hex(create_dummy("dummyvip0"));
    assert!(sent.starts_with("40000000100005060100000000000000"), "{sent}");
    assert!(sent.contains("0e00030064756d6d7976697030000000"), "IFLA_IFNAME dummyvip0: {sent}");
    assert!(sent.ends_with("100012000a00010064756d6d79000000"), "IFLA_LINKINFO, kind dummy: {sent}");
    let up = hex(set_link_up(9));
    assert_eq!(up, "200000001300050001000000000000000000000009000000 01000000 01000000".replace(' ', ""));
    assert!(
        hex(delete_link(9))
            .starts_with("20000000110005000100000000000000 00000000 09000000".replace(' ', "").as_str())
    );
}

#[test]
fn a_local_route_of_ours_is_worse_than_the_kernels_and_told_from_it() {
    let ip = Ipv4Addr::new(10, 0, 0, 100);
    let expected = [
        "3c000000180005060100000000000000", // RTM_NEWROUTE, REQUEST|ACK|EXCL|CREATE
        "02200000ffcbfe0200000000",         // AF_INET, /32, local, protocol 203, scope host, local
        "080001000a000064",                 // RTA_DST
        "080007000a000064",                 // RTA_PREFSRC
        "0800040007000000",                 // RTA_OIF
        "08000600cb000000",                 // RTA_PRIORITY 203
    ];
    assert_eq!(hex(put_local_route(7, ip)), expected.concat());
    let deleted = expected.concat().replacen("18000506", "19000500", 1);
    assert_eq!(hex(delete_local_route(7, ip)), deleted);
    let kernels = hex(delete_kernel_route(7, ip));
    assert!(kernels.starts_with("34000000190005000100000000000000") && kernels.contains("02200000ff02fe02"));
    assert!(hex(dump_local_routes(7)).ends_with("02000000ff000002000000000800040007000000"));
}

#[test]
fn a_tunnel_is_made_for_anything_sent_to_one_address() {
    use crate::wire::decode::{NetEvent, TunnelEnds, decode_events};

    let v4 = IpAddr::from([10, 0, 0, 1]);
    let sent = hex(create_tunnel("cplbtun4", v4));
    assert!(sent.contains("0900010069706970000000000c000200080002000a000001"), "ipip, its local end: {sent}");
    let v6: IpAddr = "fd00::1".parse().unwrap();
    for (ip, kind) in [(v4, "ipip"), (v6, "ip6tnl")] {
        let sent = create_tunnel("cplbtun", ip).encode(1);
        let Some(Ok(NetEvent::Link(link))) = decode_events(&sent).next() else { panic!("no link") };
        let ends = TunnelEnds { local: Some(ip), remote: None, protocol: 0 };
        assert_eq!((link.name.as_deref(), link.kind.as_deref()), (Some("cplbtun"), Some(kind)));
        assert_eq!(link.tunnel, Some(ends), "and the kernel says itself what is inside");
    }
    assert!(hex(set_alias(9, "cplb")).ends_with("0900140063706c6200000000"), "IFLA_IFALIAS");
    assert!(hex(set_mtu(9, 1480)).ends_with("08000400c8050000"), "IFLA_MTU");
}

#[test]
fn dumps_ask_for_no_more_than_is_needed() {
    assert!(hex(dump_addresses(7)).ends_with("0000000007000000"));
    assert!(hex(dump_routes(true, Some(PROTOCOL))).contains("02000000fecb0001"));
    assert!(hex(dump_routes(false, None)).contains("0a000000fe000001"));
    assert!(hex(dump_links()).starts_with("2000000012000103"));
    assert!(hex(dump_labels()).contains("0a00000000000000"));
}

#[test]
fn a_neighbour_is_used_and_not_written() {
    let sent = hex(use_neighbour(7, [10, 0, 0, 2].into()));
    let expected = [
        "240000001c0005040100000000000000", // RTM_NEWNEIGH, REQUEST|ACK|CREATE
        "020000000700000000000100",         // AF_INET, no state, NTF_USE
        "080001000a000002",                 // NDA_DST, and no NDA_LLADDR
    ];
    assert_eq!(sent, expected.concat());
}

#[test]
fn a_route_is_asked_for_one_address() {
    let ip: std::net::Ipv6Addr = "fd00::2".parse().unwrap();
    let sent = hex(get_route(ip.into()));
    let expected = [
        "300000001a0005000100000000000000", // RTM_GETROUTE, REQUEST|ACK
        "0a8000000000000000000000",         // AF_INET6, /128
        "14000100fd000000000000000000000000000002",
    ];
    assert_eq!(sent, expected.concat());
}
