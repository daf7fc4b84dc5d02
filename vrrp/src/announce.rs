//! The Ethernet frames that tell neighbours the link-layer address of a virtual address.
//!
//! IPv4 uses gratuitous ARP in request form (RFC 5227 §3: requests update the caches of more hosts than replies do),
//! IPv6 unsolicited neighbour advertisements with the override flag (RFC 4861 §7.2.6), without which a neighbour keeps
//! the previous owner's link-layer address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::{NeighborAdvertisementHeader, TYPE_NEIGHBOR_ADVERTISEMENT};
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, EtherType, Ethernet2Header, Icmpv6Header, Icmpv6Type,
    IpNumber, Ipv6Header, Ipv6HeaderSlice,
};

use crate::types::{HOP_LIMIT, MacAddr};

/// The group of all nodes on the link (RFC 4291 §2.7.1) and its Ethernet address (RFC 2464 §7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// The option that carries the link-layer address of the target, in units of 8 bytes (RFC 4861 §4.6.1).
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
const OPTION_UNITS: u8 = 1;
const OPTION_UNIT_LEN: usize = 8;

const ICMPV6_HEADER_LEN: usize = 8;
const ICMPV6_CHECKSUM: std::ops::Range<usize> = 2..4;

/// A statement that an address is reached at a link-layer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// The link-layer address neighbours shall use.
    pub mac: MacAddr,
    /// The announced address.
    pub ip: IpAddr,
}

/// A broadcast frame that announces `ip` at `mac`: an ARP request with `ip` as sender and target.
#[must_use]
pub fn gratuitous_arp(mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    arp_request(mac, ip, ip)
}

/// A broadcast frame with an ARP request.
pub(crate) fn arp_request(mac: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac.0,
        sender_ipv4: sender.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    let mut frame = ethernet(mac, MacAddr::BROADCAST, EtherType::ARP);
    frame.extend_from_slice(&arp.to_bytes());
    frame
}

/// A multicast frame to all nodes that announces `ip` at `mac`, overriding what they know.
///
/// Its source is `ip` itself: it is the address that neighbours would answer to, and it needs no other address of
/// `mac`.
#[must_use]
pub fn unsolicited_na(mac: MacAddr, ip: Ipv6Addr) -> Vec<u8> {
    let mut body = [0; 16 + OPTION_UNIT_LEN];
    body[..16].copy_from_slice(&ip.octets());
    body[16..18].copy_from_slice(&[TARGET_LINK_LAYER_ADDRESS, OPTION_UNITS]);
    body[18..].copy_from_slice(&mac.0);

    let flags = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    neighbour_discovery(
        [mac, ALL_NODES_MAC],
        [ip, ALL_NODES],
        Icmpv6Type::NeighborAdvertisement(flags),
        &body,
    )
}

/// A frame of neighbour discovery (RFC 4861 §4), between these two link-layer addresses and these two addresses.
pub(crate) fn neighbour_discovery(
    macs: [MacAddr; 2],
    addresses: [Ipv6Addr; 2],
    kind: Icmpv6Type,
    body: &[u8; 16 + OPTION_UNIT_LEN],
) -> Vec<u8> {
    let [source, destination] = addresses.map(|address| address.octets());
    let mut header = Icmpv6Header::new(kind);
    header.checksum = header.icmp_type.calc_checksum(source, destination, body).unwrap_or_default();
    let ip_header = Ipv6Header {
        // Too small for the length to overflow: 32 bytes.
        payload_length: (ICMPV6_HEADER_LEN + body.len()) as u16,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: HOP_LIMIT,
        source,
        destination,
        ..Ipv6Header::default()
    };
    let mut frame = ethernet(macs[0], macs[1], EtherType::IPV6);
    frame.extend_from_slice(&ip_header.to_bytes());
    frame.extend_from_slice(&header.to_bytes());
    frame.extend_from_slice(body);
    frame
}

/// The announcement in an Ethernet frame: an ARP packet about its own sender, or a neighbour advertisement that
/// RFC 4861 §7.1.2 calls valid. Anything else is `None`.
#[must_use]
pub fn parse_announcement(frame: &[u8]) -> Option<Announcement> {
    let (ethernet, rest) = Ethernet2Header::from_slice(frame).ok()?;
    match ethernet.ether_type {
        EtherType::ARP => parse_arp(rest).filter(|arp| arp.target == arp.claim.ip).map(|arp| arp.claim),
        EtherType::IPV6 => parse_na(MacAddr(ethernet.source), rest),
        _ => None,
    }
}

/// An ARP request or reply.
pub(crate) struct Arp {
    /// The statement about its sender.
    pub(crate) claim: Announcement,
    target: IpAddr,
}

/// An ARP request or reply whose sender claims an address.
pub(crate) fn parse_arp(packet: &[u8]) -> Option<Arp> {
    let arp: ArpEthIpv4Packet = ArpPacketSlice::from_slice(packet).ok()?.to_packet().try_eth_ipv4().ok()?;
    // Sender 0.0.0.0 is a probe (RFC 5227 §2.1.1), which claims nothing.
    let claims = arp.sender_ipv4 != [0; 4];
    let known = matches!(arp.operation, ArpOperation::REQUEST | ArpOperation::REPLY);
    let claim = Announcement { mac: MacAddr(arp.sender_mac), ip: IpAddr::V4(arp.sender_ipv4.into()) };
    (claims && known).then(|| Arp { claim, target: IpAddr::V4(arp.target_ipv4.into()) })
}

fn parse_na(sender: MacAddr, packet: &[u8]) -> Option<Announcement> {
    let ip = Ipv6HeaderSlice::from_slice(packet).ok()?;
    if ip.next_header() != IpNumber::IPV6_ICMP || ip.hop_limit() != HOP_LIMIT {
        return None;
    }
    let payload = packet.get(Ipv6Header::LEN..)?.get(..ip.payload_length().into())?;
    let (header, body) = Icmpv6Header::from_slice(payload).ok()?;
    let Icmpv6Type::NeighborAdvertisement(_) = header.icmp_type else { return None };
    let expected = header.icmp_type.calc_checksum(ip.source(), ip.destination(), body).ok()?;
    let (target, options) = body.split_first_chunk::<16>()?;
    let target = Ipv6Addr::from(*target);
    let valid = payload.get(ICMPV6_CHECKSUM)? == expected.to_be_bytes()
        && payload.first() == Some(&TYPE_NEIGHBOR_ADVERTISEMENT)
        && !target.is_multicast();
    let mac = target_link_layer_address(options)?.unwrap_or(sender);
    valid.then_some(Announcement { mac, ip: IpAddr::V6(target) })
}

/// The address in the option, if there is one; `None` if the options are malformed.
fn target_link_layer_address(mut options: &[u8]) -> Option<Option<MacAddr>> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        // RFC 4861 §4.6: an option of length 0 makes the whole packet invalid.
        let len = usize::from(units) * OPTION_UNIT_LEN;
        let option = options.get(..len).filter(|option| !option.is_empty())?;
        if kind == TARGET_LINK_LAYER_ADDRESS && found.is_none() {
            found = option[2..].first_chunk().map(|mac| MacAddr(*mac));
        }
        options = &options[len..];
    }
    options.is_empty().then_some(found)
}

fn ethernet(source: MacAddr, destination: MacAddr, ether_type: EtherType) -> Vec<u8> {
    Ethernet2Header { source: source.0, destination: destination.0, ether_type }.to_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    #[test]
    fn gratuitous_arp_is_a_broadcast_request_about_itself() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(10, 9, 0, 100));
        let expected = [
            &[0xff; 6][..],                        // broadcast
            &[2, 0, 0, 0, 0, 7],                   // from us
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], // ARP, Ethernet, IPv4, lengths, request
            &[2, 0, 0, 0, 0, 7, 10, 9, 0, 100],    // sender
            &[0, 0, 0, 0, 0, 0, 10, 9, 0, 100],    // target
        ];
        assert_eq!(frame, expected.concat());
    }

    #[test]
    fn unsolicited_na_overrides_and_carries_the_link_layer_address() {
        let ip: Ipv6Addr = "fd00::100".parse().unwrap();
        let frame = unsolicited_na(MAC, ip);
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 7, 0x86, 0xdd]);
        assert_eq!(frame[14 + 4..14 + 8], [0, 32, 58, 255], "32 bytes of ICMPv6 with hop limit 255");
        assert_eq!(frame[14 + 24..14 + 40], ALL_NODES.octets());
        let icmp = &frame[14 + 40..];
        assert_eq!((icmp[0], icmp[1], icmp[4]), (136, 0, 0x20), "only the override flag");
        assert_eq!(icmp[8..24], ip.octets());
        assert_eq!(icmp[24..32], [2, 1, 2, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn own_announcements_are_recognised() {
        let v4 = Ipv4Addr::new(10, 9, 0, 100);
        let v6: Ipv6Addr = "fe80::100".parse().unwrap();
        let found = parse_announcement(&gratuitous_arp(MAC, v4));
        assert_eq!(found, Some(Announcement { mac: MAC, ip: v4.into() }));
        let found = parse_announcement(&unsolicited_na(MAC, v6));
        assert_eq!(found, Some(Announcement { mac: MAC, ip: v6.into() }));
    }

    #[test]
    fn padding_of_short_frames_is_ignored() {
        let mut frame = gratuitous_arp(MAC, Ipv4Addr::new(10, 9, 0, 100));
        frame.resize(60, 0);
        assert!(parse_announcement(&frame).is_some());
        let mut frame = unsolicited_na(MAC, "fd00::1".parse().unwrap());
        frame.resize(frame.len() + 10, 0);
        assert!(parse_announcement(&frame).is_some());
    }

    #[test]
    fn the_reply_form_counts_and_questions_do_not() {
        let ip = Ipv4Addr::new(10, 9, 0, 100);
        let with = |at: usize, value: u8| {
            let mut frame = gratuitous_arp(MAC, ip);
            frame[at] = value;
            parse_announcement(&frame)
        };
        assert!(with(21, 2).is_some(), "reply");
        assert_eq!(with(21, 3), None, "reverse ARP");
        assert_eq!(with(41, 7), None, "a question about another address");
        let mut probe = gratuitous_arp(MAC, Ipv4Addr::UNSPECIFIED);
        assert_eq!(parse_announcement(&probe), None);
        probe[38..42].copy_from_slice(&ip.octets());
        assert_eq!(parse_announcement(&probe), None);
    }

    #[test]
    fn invalid_neighbour_advertisements_are_ignored() {
        let good = unsolicited_na(MAC, "fd00::100".parse().unwrap());
        let (hop_limit, checksum, option_len) = (21, 14 + 40 + 2, 14 + 40 + 25);
        for at in [hop_limit, checksum, option_len, 14 + 40] {
            let mut frame = good.clone();
            frame[at] ^= 1;
            assert_eq!(parse_announcement(&frame), None, "byte {at}");
        }
        for len in 0..good.len() {
            assert_eq!(parse_announcement(&good[..len]), None, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_frame_never_panics(mut frame in prop::collection::vec(any::<u8>(), 0..120), kind in 0..3) {
            if let Some(ether_type) = frame.get_mut(12..14) {
                ether_type.copy_from_slice(&[[0x08, 0x06], [0x86, 0xdd], [0x08, 0x00]][kind as usize]);
            }
            let _ = parse_announcement(&frame);
        }

        #[test]
        fn damaged_announcements_never_panic(at in 0usize..86, value: u8, ip: Ipv6Addr) {
            let mut frame = unsolicited_na(MAC, ip);
            frame[at] = value;
            let _ = parse_announcement(&frame);
        }

        #[test]
        fn options_of_any_kind_never_panic(options in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = target_link_layer_address(&options);
        }
    }
}
