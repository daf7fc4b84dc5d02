//! Questions for the link-layer address of an address, and the claims that answer them.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, Ethernet2Header, Icmpv6Type};

use crate::announce::{Announcement, arp_request, neighbour_discovery, parse_announcement, parse_arp};
use crate::types::MacAddr;

/// The option that carries the link-layer address of the sender, with its length in units of 8 bytes (RFC 4861 §4.6.1).
const SOURCE_LINK_LAYER_ADDRESS: [u8; 2] = [1, 1];

/// An ARP probe for `ip` (RFC 5227 §2.1.1): a broadcast that claims no address, so that it changes no cache.
#[must_use]
pub fn arp_probe(mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    arp_request(mac, Ipv4Addr::UNSPECIFIED, ip)
}

/// A neighbour solicitation for `ip` (RFC 4861 §4.3) from `source`, an address of `mac`.
#[must_use]
pub fn neighbour_solicitation(mac: MacAddr, source: Ipv6Addr, ip: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = ip.octets();
    // RFC 4291 §2.7.1, RFC 2464 §7.
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let destination = MacAddr([0x33, 0x33, 0xff, a, b, c]);
    let mut body = [0; 16 + 8];
    body[..16].copy_from_slice(&ip.octets());
    body[16..18].copy_from_slice(&SOURCE_LINK_LAYER_ADDRESS);
    body[18..].copy_from_slice(&mac.0);
    neighbour_discovery([mac, destination], [source, group], Icmpv6Type::NeighborSolicitation, &body)
}

/// The statement in an Ethernet frame that an address is at a link-layer address: an ARP packet with a sender, or a valid
/// neighbour advertisement. Anything else is `None`.
#[must_use]
pub fn parse_claim(frame: &[u8]) -> Option<Announcement> {
    let (ethernet, rest) = Ethernet2Header::from_slice(frame).ok()?;
    match ethernet.ether_type {
        EtherType::ARP => parse_arp(rest).map(|arp| arp.claim),
        _ => parse_announcement(frame),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::announce::{gratuitous_arp, unsolicited_na};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);

    #[test]
    fn a_probe_claims_nothing() {
        let ip = Ipv4Addr::new(10, 9, 0, 100);
        let frame = arp_probe(MAC, ip);
        let expected = [
            &[0xff; 6][..],                        // broadcast
            &[2, 0, 0, 0, 0, 7],                   // from us
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], // ARP, Ethernet, IPv4, lengths, request
            &[2, 0, 0, 0, 0, 7, 0, 0, 0, 0],       // sender
            &[0, 0, 0, 0, 0, 0, 10, 9, 0, 100],    // target
        ];
        assert_eq!(frame, expected.concat());
        assert_eq!(parse_claim(&frame), None);
    }

    #[test]
    fn a_solicitation_goes_to_the_group_of_the_target() {
        let (source, target): (Ipv6Addr, Ipv6Addr) =
            ("fe80::7".parse().unwrap(), "fd00::1:2345:6789".parse().unwrap());
        let frame = neighbour_solicitation(MAC, source, target);
        assert_eq!(frame[..14], [0x33, 0x33, 0xff, 0x45, 0x67, 0x89, 2, 0, 0, 0, 0, 7, 0x86, 0xdd]);
        assert_eq!(frame[14 + 4..14 + 8], [0, 32, 58, 255], "32 bytes of ICMPv6 with hop limit 255");
        assert_eq!(frame[14 + 8..14 + 24], source.octets());
        assert_eq!(frame[14 + 24..14 + 40], "ff02::1:ff45:6789".parse::<Ipv6Addr>().unwrap().octets());
        let icmp = &frame[14 + 40..];
        assert_eq!((icmp[0], icmp[1]), (135, 0));
        assert_eq!(icmp[8..24], target.octets());
        assert_eq!(icmp[24..32], [1, 1, 2, 0, 0, 0, 0, 7]);
        let sum = Icmpv6Type::NeighborSolicitation.calc_checksum(
            source.octets(),
            frame[14 + 24..14 + 40].try_into().unwrap(),
            &icmp[8..],
        );
        assert_eq!(icmp[2..4], sum.unwrap().to_be_bytes());
        assert_eq!(parse_claim(&frame), None);
    }

    #[test]
    fn answers_announcements_and_ordinary_requests_claim_their_sender() {
        let (v4, v6) = (Ipv4Addr::new(10, 9, 0, 100), "fd00::100".parse().unwrap());
        assert_eq!(parse_claim(&gratuitous_arp(MAC, v4)), Some(Announcement { mac: MAC, ip: v4.into() }));
        assert_eq!(parse_claim(&unsolicited_na(MAC, v6)), Some(Announcement { mac: MAC, ip: v6.into() }));
        for operation in [1, 2] {
            let mut frame = gratuitous_arp(MAC, v4);
            (frame[21], frame[41]) = (operation, 7);
            assert_eq!(parse_claim(&frame), Some(Announcement { mac: MAC, ip: v4.into() }));
        }
        let mut reverse = gratuitous_arp(MAC, v4);
        reverse[21] = 3;
        assert_eq!(parse_claim(&reverse), None);
    }

    proptest! {
        #[test]
        fn any_frame_never_panics(mut frame in prop::collection::vec(any::<u8>(), 0..120), kind in 0..3) {
            if let Some(ether_type) = frame.get_mut(12..14) {
                ether_type.copy_from_slice(&[[0x08, 0x06], [0x86, 0xdd], [0x08, 0x00]][kind as usize]);
            }
            let _ = parse_claim(&frame);
        }
    }
}
