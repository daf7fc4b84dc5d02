//! Golden messages of keepalived 2.2.7, round trips, and arbitrary bytes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::types::{MULTICAST_V4, MULTICAST_V6};

const V4: PseudoHeader = PseudoHeader::V4 { source: Ipv4Addr::new(10, 9, 0, 1), destination: MULTICAST_V4 };
const V6: PseudoHeader = PseudoHeader::V6 {
    source: Ipv6Addr::new(0xfe80, 0, 0, 0, 0x54cb, 0xe4ff, 0xfeb0, 0xf845),
    destination: MULTICAST_V6,
};

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn encoded(advertisement: &Advertisement, pseudo: &PseudoHeader) -> Vec<u8> {
    let mut out = Vec::new();
    advertisement.encode(pseudo, &mut out);
    out
}

/// Decodes under both policies and encodes again.
fn golden(bytes: &[u8], pseudo: &PseudoHeader) -> Advertisement {
    let decoded = Advertisement::decode(bytes, pseudo, ChecksumPolicy::Strict).unwrap();
    assert_eq!(Advertisement::decode(bytes, pseudo, ChecksumPolicy::Lenient), Ok(decoded.clone()));
    assert_eq!(encoded(&decoded, pseudo), bytes);
    decoded
}

fn refused(bytes: &[u8], pseudo: &PseudoHeader) -> DecodeError {
    Advertisement::decode(bytes, pseudo, ChecksumPolicy::Lenient).unwrap_err()
}

/// Writes a good checksum into a message, so that a test reaches the checks behind it.
fn with_checksum(mut bytes: Vec<u8>, pseudo: &PseudoHeader) -> Vec<u8> {
    bytes[6..8].fill(0);
    let mut sum = checksum::Sum::of(&bytes);
    if bytes[0] >> 4 == 3 {
        pseudo.add_to(&mut sum, bytes.len());
    }
    let checksum = !sum.fold();
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

#[test]
fn golden_v2_without_authentication() {
    let message = golden(&hex("21336401 0001705d 0a090064 00000000 00000000"), &V4);
    assert_eq!(message.version, Version::V2);
    assert_eq!((message.vrid.get(), message.priority.0), (51, 100));
    assert_eq!(message.interval.get(), Duration::from_secs(1));
    assert_eq!(message.addresses, Addresses::V4(vec![Ipv4Addr::new(10, 9, 0, 100)]));
    assert_eq!(message.auth, Auth::None);
}

#[test]
fn golden_v2_with_password() {
    let message = golden(&hex("21336402 0101a027 0a090064 0a090065 61626364 00000000"), &V4);
    assert_eq!(message.auth, Auth::Pass(AuthPass::new("abcd").unwrap()));
    let expected = vec![Ipv4Addr::new(10, 9, 0, 100), Ipv4Addr::new(10, 9, 0, 101)];
    assert_eq!(message.addresses, Addresses::V4(expected));
}

#[test]
fn golden_v3_over_ipv4() {
    let message = golden(&hex("31349601 000a43ba 0a090064"), &V4);
    assert_eq!((message.version, message.vrid.get(), message.priority.0), (Version::V3, 52, 150));
    assert_eq!(message.interval.get(), Duration::from_millis(100));
}

#[test]
fn golden_v3_over_ipv6() {
    let addresses = ["fe80::100", "2001:db8::100"].map(|address| address.parse::<Ipv6Addr>().unwrap());
    let mut bytes = hex("31359602 0019db84");
    addresses.iter().for_each(|address| bytes.extend(address.octets()));
    let message = golden(&bytes, &V6);
    assert_eq!((message.vrid.get(), message.interval.get()), (53, Duration::from_millis(250)));
    assert_eq!(message.addresses, Addresses::V6(addresses.to_vec()));
}

#[test]
fn v3_over_ipv4_is_accepted_without_pseudo_header_unless_strict() {
    // RFC 9568 §5.2.8: the sum of the message only.
    let mut bytes = hex("31349601 000a0000 0a090064");
    let checksum = !checksum::Sum::of(&bytes).fold();
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    assert!(Advertisement::decode(&bytes, &V4, ChecksumPolicy::Lenient).is_ok());
    assert_eq!(Advertisement::decode(&bytes, &V4, ChecksumPolicy::Strict), Err(DecodeError::Checksum));
}

#[test]
fn v2_is_never_accepted_with_a_pseudo_header() {
    let mut bytes = hex("21336401 00010000 0a090064 00000000 00000000");
    let mut sum = checksum::Sum::of(&bytes);
    V4.add_to(&mut sum, bytes.len());
    let checksum = !sum.fold();
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(refused(&bytes, &V4), DecodeError::Checksum);
}

#[test]
fn every_single_bit_error_is_refused_or_changes_a_checked_field() {
    let good = hex("21336402 0101a027 0a090064 0a090065 61626364 00000000");
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let result = Advertisement::decode(&bytes, &V4, ChecksumPolicy::Strict);
        assert!(result.is_err(), "bit {bit} flipped and still {result:?}");
    }
}

#[test]
fn each_malformation_has_its_reason() {
    let good = hex("31349601 000a43ba 0a090064");
    assert_eq!(refused(&good[..11], &V4), DecodeError::Truncated { len: 11, expected: 12 });
    assert_eq!(refused(&good[..7], &V4), DecodeError::Truncated { len: 7, expected: 8 });
    assert_eq!(refused(&[], &V4), DecodeError::Truncated { len: 0, expected: 8 });
    let trailing: Vec<u8> = good.iter().copied().chain([0]).collect();
    assert_eq!(refused(&trailing, &V4), DecodeError::TrailingBytes { len: 13, expected: 12 });
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        refused(&with_checksum(bytes, &V4), &V4)
    };
    assert_eq!(change(0, 0x41), DecodeError::Version(4));
    assert_eq!(change(0, 0x11), DecodeError::Version(1));
    assert_eq!(change(0, 0x32), DecodeError::Kind(2));
    assert_eq!(change(1, 0), DecodeError::Vrid);
    assert_eq!(change(3, 255), DecodeError::Truncated { len: 12, expected: 1028 });
    assert_eq!(change(3, 0), DecodeError::TrailingBytes { len: 12, expected: 8 });
    assert_eq!(change(5, 0), DecodeError::IntervalZero);
    let empty = with_checksum(hex("31349600 000a0000"), &V4);
    assert_eq!(refused(&empty, &V4), DecodeError::NoAddresses);
    let empty_v2 = with_checksum(hex("21349600 00010000 00000000 00000000"), &V4);
    assert_eq!(refused(&empty_v2, &V4), DecodeError::NoAddresses);
    let v2_interval_0 = with_checksum(hex("21336401 00000000 0a090064 00000000 00000000"), &V4);
    assert_eq!(refused(&v2_interval_0, &V4), DecodeError::IntervalZero);
    let v2_over_v6 = hex("21336401 0001705d 0a090064 00000000 00000000");
    assert_eq!(refused(&v2_over_v6, &V6), DecodeError::Version(2));
}

#[test]
fn reserved_bits_are_ignored() {
    let bytes = with_checksum(hex("31349601 f00a0000 0a090064"), &V4);
    let message = Advertisement::decode(&bytes, &V4, ChecksumPolicy::Strict).unwrap();
    assert_eq!(message.interval.get(), Duration::from_millis(100));
}

#[test]
fn ipv6_addresses_are_sent_as_version_3() {
    let message = Advertisement {
        version: Version::V2,
        addresses: Addresses::V6(vec!["fe80::100".parse().unwrap()]),
        ..golden(&hex("31349601 000a43ba 0a090064"), &V4)
    };
    let bytes = encoded(&message, &V6);
    assert_eq!((bytes[0], bytes.len()), (0x31, 24));
    assert!(Advertisement::decode(&bytes, &V6, ChecksumPolicy::Strict).is_ok());
}

prop_compose! {
    fn any_auth()(kind in 0u8..=255, data: [u8; 8]) -> Auth {
        match kind {
            0..100 => Auth::None,
            100..200 => Auth::Pass(AuthPass::from_wire(data)),
            kind => Auth::Other { kind, data },
        }
    }
}

fn any_message() -> impl Strategy<Value = (Advertisement, PseudoHeader)> {
    let v4 = |version| {
        (prop::collection::vec(any::<Ipv4Addr>(), 1..=255), any::<[Ipv4Addr; 2]>()).prop_map(
            move |(addresses, [source, destination])| {
                (version, Addresses::V4(addresses), PseudoHeader::V4 { source, destination })
            },
        )
    };
    let v6 = (prop::collection::vec(any::<Ipv6Addr>(), 1..=255), any::<[Ipv6Addr; 2]>()).prop_map(
        |(addresses, [source, destination])| {
            (Version::V3, Addresses::V6(addresses), PseudoHeader::V6 { source, destination })
        },
    );
    let family = prop_oneof![v4(Version::V2), v4(Version::V3), v6];
    (family, 1u8..=255, any::<u8>(), 1u8..=255, 1u16..=4095, any_auth()).prop_map(
        |((version, addresses, pseudo), vrid, priority, seconds, centiseconds, auth)| {
            let (interval, auth) = match version {
                Version::V2 => (AdvertInterval::from_seconds(seconds), auth),
                Version::V3 => (AdvertInterval::from_centiseconds(centiseconds), Auth::None),
            };
            let message = Advertisement {
                version,
                vrid: Vrid::new(vrid).unwrap(),
                priority: WirePriority(priority),
                interval: interval.unwrap(),
                addresses,
                auth,
            };
            (message, pseudo)
        },
    )
}

proptest! {
    #[test]
    fn values_survive_the_wire((message, pseudo) in any_message()) {
        let bytes = encoded(&message, &pseudo);
        let decoded = Advertisement::decode(&bytes, &pseudo, ChecksumPolicy::Strict).unwrap();
        prop_assert_eq!(&decoded, &message);
        prop_assert_eq!(encoded(&decoded, &pseudo), bytes);
    }

    #[test]
    fn encoding_appends((message, pseudo) in any_message(), prefix: Vec<u8>) {
        let mut out = prefix.clone();
        message.encode(&pseudo, &mut out);
        prop_assert_eq!(&out[..prefix.len()], &prefix[..]);
        prop_assert_eq!(&out[prefix.len()..], &encoded(&message, &pseudo)[..]);
    }

    #[test]
    fn encoding_fills_a_buffer_of_the_encoded_length((message, pseudo) in any_message()) {
        let mut fixed = vec![0; message.encoded_len()];
        let mut rest = &mut fixed[..];
        message.encode(&pseudo, &mut rest);
        prop_assert!(rest.is_empty());
        prop_assert_eq!(fixed, encoded(&message, &pseudo));
    }

    #[test]
    fn truncation_and_extension_are_always_refused((message, pseudo) in any_message(), cut in 1usize..64) {
        let mut bytes = encoded(&message, &pseudo);
        let shorter = &bytes[..bytes.len().saturating_sub(cut)];
        let is_truncated = matches!(refused(shorter, &pseudo), DecodeError::Truncated { .. });
        prop_assert!(is_truncated);
        bytes.extend(vec![0; cut]);
        let is_trailing = matches!(refused(&bytes, &pseudo), DecodeError::TrailingBytes { .. });
        prop_assert!(is_trailing);
    }

    /// Accepted bytes are canonical but for the reserved bits, the unused authentication field and the checksum.
    #[test]
    fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), version in 0u8..6, v6: bool) {
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | 1;
        }
        let pseudo = if v6 { V6 } else { V4 };
        let _ = Advertisement::decode(&bytes, &pseudo, ChecksumPolicy::Strict);
        let _ = Advertisement::decode(&bytes, &pseudo, ChecksumPolicy::Lenient);
        if bytes.len() >= 8 {
            // Fit the count to the length and mend the checksum, so that all of the decoder is reached.
            let (trailer, size) = (if version == 2 { 8 } else { 0 }, if v6 { 16 } else { 4 });
            let count = bytes.len().saturating_sub(8 + trailer) / size;
            bytes.truncate(8 + trailer + count * size);
            bytes[3] = u8::try_from(count).unwrap();
            let bytes = with_checksum(bytes, &pseudo);
            if let Ok(message) = Advertisement::decode(&bytes, &pseudo, ChecksumPolicy::Strict) {
                let again = encoded(&message, &pseudo);
                prop_assert_eq!(Advertisement::decode(&again, &pseudo, ChecksumPolicy::Strict), Ok(message));
            }
        }
    }
}
