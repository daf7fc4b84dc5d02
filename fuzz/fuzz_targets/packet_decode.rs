//! Any bytes from the wire decode to a message that encodes to the same bytes, or to an error.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use vrrp::{Advertisement, ChecksumPolicy, PseudoHeader, parse_announcement};

fuzz_target!(|data: &[u8]| {
    let _ = parse_announcement(data);
    let v4 = (IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)), IpAddr::V4(vrrp::MULTICAST_V4));
    let v6 = (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), IpAddr::V6(vrrp::MULTICAST_V6));
    for (source, destination) in [v4, v6] {
        let Some(pseudo) = PseudoHeader::new(source, destination) else { continue };
        for policy in [ChecksumPolicy::Lenient, ChecksumPolicy::Strict] {
            let Ok(advertisement) = Advertisement::decode(data, &pseudo, policy) else { continue };
            let mut bytes = Vec::new();
            advertisement.encode(&pseudo, &mut bytes);
            let again = Advertisement::decode(&bytes, &pseudo, ChecksumPolicy::Strict);
            assert_eq!(again.as_ref(), Ok(&advertisement));
        }
    }
});
