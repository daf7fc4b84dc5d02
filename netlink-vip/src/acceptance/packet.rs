//! The few TCP segments that it takes to ask a server, as bytes. Pure.

use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, PacketBuilder, TransportSlice};

/// A server that does not have the virtual address and forwards packets must not pass a question on: the answer
/// would be another server's.
const HOPS: u8 = 1;
/// The receive window that a client offers at first, in bytes.
const WINDOW: u16 = 64_240;

/// One side of the conversation, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// May I?
    Syn,
    /// Never mind.
    Rst,
}

/// Answer of a server to a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    /// One more than the sequence number of the SYN that is answered.
    pub(super) acknowledged: u32,
    pub(super) accepts: bool,
}

/// The segment in an IP packet; `None` where the addresses are of two families.
pub(super) fn packet(segment: &Segment) -> Option<Vec<u8>> {
    let builder = match (segment.from.ip(), segment.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        _ => return None,
    };
    let tcp = builder.tcp(segment.from.port(), segment.to.port(), segment.sequence, WINDOW);
    let tcp = match segment.kind {
        Kind::Syn => tcp.syn(),
        Kind::Rst => tcp.rst(),
    };
    let mut bytes = Vec::with_capacity(tcp.size(0));
    // Writing to memory cannot fail, and nothing is too long.
    tcp.write(&mut bytes, &[]).ok()?;
    Some(bytes)
}

/// An IP packet on Ethernet.
pub(super) fn frame(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type: [u8; 2] =
        if packet.first().is_some_and(|first| first >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
    [&destination, &source, ether_type.as_slice(), packet].concat()
}

/// The answer to a SYN in an Ethernet frame, if it is one.
pub(super) fn reply(frame: &[u8]) -> Option<Reply> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (from, to): (IpAddr, IpAddr) = match packet.net? {
        LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    let accepts = tcp.syn() && tcp.ack() && !tcp.rst();
    (accepts || (tcp.rst() && tcp.ack())).then(|| Reply {
        from: SocketAddr::new(from, tcp.source_port()),
        to: SocketAddr::new(to, tcp.destination_port()),
        acknowledged: tcp.acknowledgment_number(),
        accepts,
    })
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket};
    use proptest::prelude::*;

    use super::*;

    const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

    fn pairs() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<[([u8; 4], u16); 2]>().prop_map(|pair| pair.map(SocketAddr::from));
        let v6 = any::<[([u8; 16], u16); 2]>().prop_map(|pair| pair.map(SocketAddr::from));
        prop_oneof![v4, v6].prop_map(|[from, to]| (from, to))
    }

    /// A segment of a server, with these flags.
    fn answer(from: SocketAddr, to: SocketAddr, acknowledged: u32, flags: &str) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(MACS[1], MACS[0]);
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
            _ => unreachable!("two families"),
        };
        let mut tcp = builder.tcp(from.port(), to.port(), 77, 1000);
        for flag in flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                'A' => tcp.ack(acknowledged),
                'R' => tcp.rst(),
                'F' => tcp.fin(),
                other => unreachable!("flag {other}"),
            };
        }
        let mut bytes = Vec::new();
        tcp.write(&mut bytes, &[]).unwrap();
        bytes
    }

    fn some_pair() -> (SocketAddr, SocketAddr) {
        (([10, 0, 0, 100], 6443).into(), ([10, 0, 0, 1], 40_000).into())
    }

    #[test]
    fn only_syn_ack_and_rst_are_replies() {
        let (vip, own) = some_pair();
        let said = |flags| reply(&answer(vip, own, 8, flags)).map(|reply| reply.accepts);
        assert_eq!((said("SA"), said("RA")), (Some(true), Some(false)));
        for other in ["S", "A", "R", "FA", ""] {
            assert_eq!(said(other), None, "{other:?}");
        }
        assert_eq!(said("SRA"), Some(false));
    }

    #[test]
    fn addresses_of_two_families_make_no_packet() {
        let (from, to) = (([10, 0, 0, 1], 1).into(), ([0_u8; 16], 2).into());
        assert_eq!(packet(&Segment { from, to, sequence: 0, kind: Kind::Syn }), None);
    }

    proptest! {
        #[test]
        fn packets_have_the_expected_fields((from, to) in pairs(), sequence: u32, reset: bool) {
            let kind = if reset { Kind::Rst } else { Kind::Syn };
            let bytes = packet(&Segment { from, to, sequence, kind }).unwrap();
            let frame = frame(MACS[0], MACS[1], &bytes);
            prop_assert_eq!((&frame[..6], &frame[6..12]), (&MACS[1][..], &MACS[0][..]));
            let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("no TCP") };
            prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (from.port(), to.port()));
            prop_assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (sequence, 0));
            prop_assert_eq!((tcp.syn(), tcp.rst(), tcp.ack()), (!reset, reset, false));
            let (addresses, hops, checksum) = match parsed.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header();
                    prop_assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                    let pair = (header.source_addr().into(), header.destination_addr().into());
                    let sum = tcp.calc_checksum_ipv4(header.source(), header.destination());
                    (pair, header.ttl(), sum)
                }
                NetSlice::Ipv6(ip) => {
                    let header = ip.header();
                    let pair = (header.source_addr().into(), header.destination_addr().into());
                    let sum = tcp.calc_checksum_ipv6(header.source(), header.destination());
                    (pair, header.hop_limit(), sum)
                }
                NetSlice::Arp(_) => panic!("ARP"),
            };
            prop_assert_eq!((addresses, hops), ((from.ip(), to.ip()), HOPS));
            prop_assert_eq!(tcp.checksum(), checksum.unwrap());
        }

        #[test]
        fn answers_are_read((from, to) in pairs(), acknowledged: u32, accepts: bool) {
            let frame = answer(from, to, acknowledged, if accepts { "SA" } else { "RA" });
            prop_assert_eq!(reply(&frame), Some(Reply { from, to, acknowledged, accepts }));
        }

        #[test]
        fn a_truncated_answer_is_no_answer((from, to) in pairs(), length in 0_usize..74) {
            let frame = answer(from, to, 8, "SA");
            let cut = &frame[..length.min(frame.len() - 1)];
            prop_assert_eq!(reply(cut), None);
        }

        #[test]
        fn reply_parsing_terminates_on_arbitrary_input(bytes in prop::collection::vec(any::<u8>(), 0..192)) {
            let _ = reply(&bytes);
        }

        #[test]
        fn reply_parsing_survives_changed_bytes(
            (from, to) in pairs(),
            changes in prop::collection::vec((0_usize..74, any::<u8>()), 1..8),
        ) {
            let mut frame = answer(from, to, 8, "SA");
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            let _ = reply(&frame);
        }
    }
}
