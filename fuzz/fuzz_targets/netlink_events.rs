//! Any bytes of a netlink datagram decode to events or errors.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Bounded by the datagram: each message takes at least its header.
    let events = netlink_vip::wire::decode_events(data).count();
    assert!(events <= data.len() / 4 + 1);
});
