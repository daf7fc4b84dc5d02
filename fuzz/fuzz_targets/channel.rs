//! Any datagrams, enveloped and signed or not, end in a reason or a report; nothing that is not fresh becomes a peer.
#![no_main]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vrrp::channel::{Channel, ChannelConfig, Report, Timing};

fuzz_target!(|data: (Vec<Vec<u8>>, u8)| {
    let (payloads, choice) = data;
    let start = Instant::now();
    let config = || ChannelConfig { keys: BTreeMap::new(), timing: Timing::default() };
    let mut channel = Channel::new(config(), [1, 2], Report::default(), start);
    let sender = Channel::new(config(), [3, 4], Report::default(), start);
    let source = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 12));
    for (number, payload) in (0_u64..).zip(&payloads) {
        let now = start + Duration::from_millis(number * u64::from(choice));
        let bytes = if choice % 2 == 0 { sender.seal(payload, source) } else { payload.clone() };
        let _ = channel.handle_datagram(now, source, &bytes);
        channel.handle_timeout(now);
        while let Some(datagram) = channel.poll_datagram() {
            assert!(channel.seal(&datagram.payload, source).len() <= vrrp::channel::MAX_DATAGRAM);
        }
        while channel.poll_event().is_some() {}
    }
    // No datagram can return a challenge that only this channel knows.
    assert_eq!(channel.peers().count(), 0);
});
