//! The vectors of keepalived 2.4, and every reason for which a message is refused.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::packet::{Addresses, Advertisement, Auth, ChecksumPolicy, PseudoHeader};
use crate::types::{AdvertInterval, Family, MULTICAST_V4, Version, Vrid, WirePriority};

const WINDOW: Duration = Duration::from_secs(5);
const SIGNED: Duration = Duration::from_nanos(0x6800_0000 * 1_000_000_000 + 500_000_000);

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn key(first: u8) -> Key {
    Key::new(&(first..first + 32).collect::<Vec<u8>>()).unwrap()
}

fn id(id: u8) -> KeyId {
    KeyId::new(id).unwrap()
}

fn config(ids: &[u8], active: u8) -> HmacConfig {
    let keys = ids.iter().map(|number| (id(*number), key(*number - 1))).collect();
    HmacConfig::new(keys, id(active), Duration::from_secs(1)).unwrap()
}

fn with_mode(mode: Mode) -> HmacConfig {
    let mut config = config(&[1], 1);
    config.mode = mode;
    config
}

/// A monotonic clock that starts at the wall clock's `SIGNED`.
struct Time(Instant);

impl Time {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn after(&self, elapsed: Duration) -> Now {
        Now { instant: self.0 + elapsed, wall: SIGNED + elapsed }
    }

    fn start(&self) -> Now {
        self.after(Duration::ZERO)
    }
}

fn source() -> IpAddr {
    IpAddr::from([198, 51, 100, 10])
}

fn message() -> Vec<u8> {
    hex("3133c80100644402c0000264")
}

fn signed(config: &HmacConfig, sequence: Sequence) -> Vec<Vec<u8>> {
    let copy = |(id, key): (KeyId, &Key)| {
        let mut packet = message();
        packet.extend(sign(key, id, sequence, source(), &message()));
        packet
    };
    config.keys().map(copy).collect()
}

/// Opens a packet and accepts what it has. Returns whether it counts: a copy does not.
fn hear(authenticator: &mut Authenticator, now: Now, packet: &[u8]) -> Result<bool, VerifyError> {
    hear_from(authenticator, now, source(), packet)
}

fn hear_from(
    authenticator: &mut Authenticator,
    now: Now,
    source: IpAddr,
    packet: &[u8],
) -> Result<bool, VerifyError> {
    let opened = authenticator.open(now, source, packet)?;
    let Some(signature) = opened.signature else { return Ok(true) };
    authenticator.accept(now, &signature);
    Ok(!signature.is_copy)
}

fn packet_at(time: Duration) -> Vec<u8> {
    signed(&config(&[1], 1), Sequence::at(time)).remove(0)
}

#[test]
fn vector_of_ipv4() {
    let packet = hex("3133c80100644402c0000264 010100006800000080000000 1b84bc4e8e43892dc6d98448f8ee2265");
    let (message, trailer) = split(&packet, source()).unwrap();
    let sequence = Sequence(0x6800_0000_8000_0000);
    assert_eq!(sequence, Sequence::at(SIGNED));
    assert_eq!(&sign(&key(0), id(1), sequence, source(), message), trailer);
    let time = Time::new();
    let authenticator = Authenticator::new(config(&[1], 1), time.start());
    let opened = authenticator.open(time.start(), source(), &packet).unwrap();
    assert!(opened.message == &packet[..12] && opened.signature.is_some());
    let pseudo = PseudoHeader::new(source(), MULTICAST_V4.into()).unwrap();
    assert!(Advertisement::decode(message, &pseudo, ChecksumPolicy::Lenient).is_ok());
}

#[test]
fn vector_of_ipv6() {
    let packet = hex("3133c8010064a2e9fe800000000000000000000000000100 \
        010100006800000080000000 c8c56146ebfd66ee10ec4d8186461b78");
    let source: IpAddr = "fe80::10".parse().unwrap();
    let (message, trailer) = split(&packet, source).unwrap();
    assert_eq!(&sign(&key(0), id(1), Sequence::at(SIGNED), source, message), trailer);
}

#[test]
fn sequence_orders_times_and_copies() {
    let sequence = Sequence::at(SIGNED);
    assert_eq!(sequence.time(), SIGNED);
    assert!(sequence.next() > sequence);
    assert_eq!(sequence.next().time(), SIGNED);
    assert_eq!(Sequence::at(Duration::MAX).time().as_secs(), u64::from(u32::MAX));
}

#[test]
fn step_of_the_senders_clock_is_spread_over_twice_its_length() {
    let time = Time::new();
    for forward in [true, false] {
        let mut authenticator = Authenticator::new(config(&[1], 1), time.start());
        let mut last = authenticator.next_sequence(time.start());
        for second in 1..=30 {
            let elapsed = Duration::from_secs(second);
            let mut now = time.after(elapsed);
            let step = Duration::from_secs(10);
            now.wall = if forward { now.wall + step } else { now.wall - step };
            let next = authenticator.next_sequence(now);
            assert!(next > last, "sequences grow");
            let advanced = next.time() - last.time();
            assert!(advanced >= Duration::from_millis(499) && advanced <= Duration::from_millis(1501));
            let left = step.saturating_sub(elapsed / 2);
            assert!(
                authenticator.clock_step(now).abs_diff(left) < Duration::from_millis(1),
                "after {second} s"
            );
            last = next;
        }
    }
}

#[test]
fn every_bit_is_covered() {
    let time = Time::new();
    let authenticator = || Authenticator::new(config(&[1], 1), time.start());
    let good = packet_at(SIGNED);
    for bit in 0..good.len() * 8 {
        let mut packet = good.clone();
        packet[bit / 8] ^= 1 << (bit % 8);
        // The checksum is verified by the decoder, not by the digest.
        let checksum = (6..8).contains(&(bit / 8));
        assert_eq!(hear(&mut authenticator(), time.start(), &packet).is_ok(), checksum, "bit {bit}");
    }
    assert_eq!(hear(&mut authenticator(), time.start(), &good), Ok(true));
    let other = IpAddr::from(Ipv4Addr::new(198, 51, 100, 11));
    let refused = hear_from(&mut authenticator(), time.start(), other, &good);
    assert_eq!(refused, Err(VerifyError::Digest));
}

#[test]
fn trailer_needs_its_exact_length() {
    let time = Time::new();
    let good = packet_at(SIGNED);
    let mut authenticator = Authenticator::new(config(&[1], 1), time.start());
    for len in 0..good.len() {
        assert_eq!(hear(&mut authenticator, time.start(), &good[..len]), Err(VerifyError::Unsigned));
    }
    let long = [&good[..], &[0]].concat();
    assert_eq!(hear(&mut authenticator, time.start(), &long), Err(VerifyError::Unsigned));
}

#[test]
fn unsigned_messages_are_accepted_until_enforced() {
    let time = Time::new();
    for (mode, accepted) in [(Mode::ReceiveOnly, true), (Mode::Permissive, true), (Mode::Enforce, false)] {
        let authenticator = Authenticator::new(with_mode(mode), time.start());
        let message = message();
        let opened = authenticator.open(time.start(), source(), &message);
        let expected = Opened { message: &message, signature: None };
        assert_eq!(opened, if accepted { Ok(expected) } else { Err(VerifyError::Unsigned) }, "{mode:?}");
    }
}

#[test]
fn wrong_signatures_are_refused_in_every_mode() {
    let time = Time::new();
    for mode in [Mode::ReceiveOnly, Mode::Permissive, Mode::Enforce] {
        let mut authenticator = Authenticator::new(with_mode(mode), time.start());
        let mut packet = packet_at(SIGNED);
        *packet.last_mut().unwrap() ^= 1;
        assert_eq!(hear(&mut authenticator, time.start(), &packet), Err(VerifyError::Digest));
        let unknown = signed(&config(&[2], 2), Sequence::at(SIGNED)).remove(0);
        assert_eq!(hear(&mut authenticator, time.start(), &unknown), Err(VerifyError::UnknownKey(2)));
        assert_eq!(hear(&mut authenticator, time.start(), &kind(2)), Err(VerifyError::SignatureType));
    }
}

/// A packet whose trailer has another type.
fn kind(kind: u8) -> Vec<u8> {
    let mut packet = packet_at(SIGNED);
    packet[message().len()] = kind;
    packet
}

#[test]
fn messages_that_fail_another_check_are_not_used_up() {
    let time = Time::new();
    let authenticator = Authenticator::new(config(&[1], 1), time.start());
    let packet = packet_at(SIGNED);
    assert!(authenticator.open(time.start(), source(), &packet).is_ok());
    assert!(authenticator.open(time.start(), source(), &packet).is_ok());
}

#[test]
fn what_was_accepted_once_is_never_accepted_again() {
    let time = Time::new();
    let mut authenticator = Authenticator::new(config(&[1], 1), time.start());
    let packet = packet_at(SIGNED);
    let ahead = packet_at(SIGNED + WINDOW);
    assert_eq!(hear(&mut authenticator, time.start(), &packet), Ok(true));
    assert_eq!(hear(&mut authenticator, time.start(), &packet), Err(VerifyError::Replayed));
    assert_eq!(hear(&mut authenticator, time.start(), &ahead), Ok(true));
    for millis in (0..30_000).step_by(250) {
        let mut now = time.after(Duration::from_millis(millis));
        for old in [&packet, &ahead] {
            assert!(hear(&mut authenticator, now, old).is_err(), "after {millis} ms");
        }
        // The clock is set back to the time of the recording.
        now.wall = SIGNED;
        for old in [&packet, &ahead] {
            assert!(hear(&mut authenticator, now, old).is_err(), "set back after {millis} ms");
        }
    }
}

#[test]
fn signing_time_must_be_within_the_window() {
    let time = Time::new();
    let authenticator = || Authenticator::new(config(&[1], 1), time.start());
    let tick = Duration::from_millis(1);
    for signed in [SIGNED - WINDOW, SIGNED + WINDOW] {
        assert_eq!(hear(&mut authenticator(), time.start(), &packet_at(signed)), Ok(true));
    }
    let behind = hear(&mut authenticator(), time.start(), &packet_at(SIGNED - WINDOW - tick));
    assert!(matches!(behind, Err(VerifyError::Stale { direction: Direction::Behind, .. })), "{behind:?}");
    let hour = Duration::from_secs(3600);
    let ahead = hear(&mut authenticator(), time.start(), &packet_at(SIGNED + hour));
    assert_eq!(ahead, Err(VerifyError::Stale { by: hour, direction: Direction::Ahead }));
}

#[test]
fn step_of_the_receivers_clock_changes_nothing() {
    let time = Time::new();
    for step in [86_400, 3600, 10, 1] {
        for forward in [true, false] {
            let mut authenticator = Authenticator::new(config(&[1], 1), time.start());
            assert_eq!(hear(&mut authenticator, time.start(), &packet_at(SIGNED)), Ok(true));
            for second in (1..=7200).step_by(3) {
                let elapsed = Duration::from_secs(second);
                let mut now = time.after(elapsed);
                let step = Duration::from_secs(step);
                now.wall = if forward { now.wall + step } else { now.wall - step };
                let packet = packet_at(SIGNED + elapsed);
                assert_eq!(hear(&mut authenticator, now, &packet), Ok(true), "{step:?} after {second} s");
            }
        }
    }
}

#[test]
fn receivers_follow_a_sender_that_follows_its_wall_clock() {
    let time = Time::new();
    for forward in [true, false] {
        let mut sender = Authenticator::new(config(&[1], 1), time.start());
        let mut receiver = Authenticator::new(config(&[1], 1), time.start());
        for second in 0..8000 {
            let now = time.after(Duration::from_secs(second));
            let hour = Duration::from_secs(3600);
            let mut stepped = now;
            stepped.wall = if forward { now.wall + hour } else { now.wall - hour };
            let packet = signed(&config(&[1], 1), sender.next_sequence(stepped)).remove(0);
            // Four of five are lost.
            if second % 5 == 0 {
                assert_eq!(hear(&mut receiver, now, &packet), Ok(true), "after {second} s");
            }
        }
    }
}

#[test]
fn router_follows_the_wall_clock_once_another_one_confirms_it() {
    let time = Time::new();
    let hour = Duration::from_secs(3600);
    for wall in [SIGNED + hour, SIGNED - hour] {
        let mut authenticator = Authenticator::new(config(&[1], 1), time.start());
        let now = Now { instant: time.0, wall };
        assert_eq!(authenticator.next_sequence(now).time(), SIGNED);
        let mut forged = packet_at(wall);
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(hear(&mut authenticator, now, &forged), Err(VerifyError::Digest));
        assert_eq!(authenticator.clock_step(now), hour, "a forger moves no clock");
        assert_eq!(hear(&mut authenticator, now, &packet_at(wall)), Ok(true));
        assert_eq!(authenticator.clock_step(now), Duration::ZERO);
        assert_eq!(authenticator.next_sequence(now).time(), wall, "also back");
    }
}

#[test]
fn nodes_without_a_clock_take_the_first_one() {
    let time = Time::new();
    let mut authenticator = Authenticator::new(config(&[1], 1), time.start());
    let now = Now { instant: time.0, wall: SIGNED + Duration::from_secs(400 * 86_400) };
    assert_eq!(authenticator.next_sequence(now).time(), now.wall);
    assert_eq!(authenticator.clock_step(now), Duration::ZERO);
}

#[test]
fn monotonic_replay_protection_needs_no_clock() {
    let time = Time::new();
    let mut config = config(&[1], 1);
    config.anti_replay = AntiReplay::Monotonic;
    let mut authenticator = Authenticator::new(config, time.start());
    let year = Duration::from_secs(365 * 86_400);
    assert_eq!(hear(&mut authenticator, time.start(), &packet_at(SIGNED - year)), Ok(true));
    assert_eq!(hear(&mut authenticator, time.start(), &packet_at(SIGNED)), Ok(true));
    let old = packet_at(SIGNED - year);
    assert_eq!(hear(&mut authenticator, time.start(), &old), Err(VerifyError::Replayed));
    // A sender whose clock stepped back before it was restarted is heard again after the window.
    let later = time.after(WINDOW + Duration::from_millis(1));
    assert_eq!(hear(&mut authenticator, later, &old), Ok(true));
}

#[test]
fn flood_from_key_holders_forgets_the_most_silent_sender_only() {
    let time = Time::new();
    let mut senders = Senders::default();
    let address = |number: u8| IpAddr::from([10, 0, 0, number]);
    for number in 0..200 {
        senders.accept(time.0 + Duration::from_millis(number.into()), address(number), Sequence(9), 1);
    }
    let now = time.0 + Duration::from_millis(200);
    let order = |number, sequence, key| {
        senders.order(now, address(number), Sequence(sequence), key, |_, silence| silence > WINDOW)
    };
    assert_eq!(order(199, 8, 1), Order::Replayed);
    assert_eq!(order(184, 9, 1), Order::Replayed);
    assert_eq!(order(184, 9, 2), Order::Copy);
    assert_eq!(order(183, 8, 1), Order::Ahead);
}

#[test]
fn keys_and_windows_have_limits() {
    assert_eq!(Key::new(&[0; 31]), Err(KeyError { len: 31 }));
    assert_eq!(Key::new(&[0; 65]), Err(KeyError { len: 65 }));
    assert!(Key::new(&[0; 64]).is_ok());
    let second = Duration::from_secs(1);
    assert_eq!(HmacConfig::new(BTreeMap::new(), id(1), second), Err(HmacConfigError::NoActiveKey(id(1))));
    let five = (1..6).map(|number| (id(number), key(number))).collect();
    assert_eq!(HmacConfig::new(five, id(1), second), Err(HmacConfigError::TooManyKeys { count: 5 }));
    assert_eq!(HmacConfig::default_window(second), WINDOW);
    assert_eq!(HmacConfig::default_window(4 * second), 12 * second);
    assert_eq!(HmacConfig::default_window(Duration::from_secs(1000)), HmacConfig::MAX_WINDOW);
    assert_eq!(format!("{:?}", key(0)), "Key(32 bytes)", "no key is ever printed");
}

/// The keys of a node before, during and after a rotation.
const STEPS: [(&[u8], u8); 3] = [(&[1], 1), (&[1, 2], 2), (&[2], 2)];

#[test]
fn neighbouring_steps_of_a_rotation_hear_each_other_once() {
    let time = Time::new();
    for (sender, receiver) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)] {
        let (sender, receiver) = (STEPS[sender], STEPS[receiver]);
        let mut authenticator = Authenticator::new(config(receiver.0, receiver.1), time.start());
        let copies = signed(&config(sender.0, sender.1), Sequence::at(SIGNED));
        let heard: Vec<_> = copies.iter().map(|copy| hear(&mut authenticator, time.start(), copy)).collect();
        assert_eq!(heard.iter().filter(|heard| **heard == Ok(true)).count(), 1, "{sender:?} to {receiver:?}");
        let harmless =
            |heard: &Result<bool, VerifyError>| matches!(heard, Ok(_) | Err(VerifyError::UnknownKey(_)));
        assert!(heard.iter().all(harmless), "{heard:?}");
        for copy in &copies {
            assert!(hear(&mut authenticator, time.start(), copy).is_err(), "a copy counts once, too");
        }
    }
}

#[test]
fn signed_messages_of_both_families_decode() {
    let time = Time::new();
    let families = [("198.51.100.10", "192.0.2.100"), ("fe80::10", "fe80::100")];
    for (source, vip) in families.map(|(source, vip)| (source.parse().unwrap(), vip.parse().unwrap())) {
        let addresses = match vip {
            IpAddr::V4(vip) => Addresses::V4(vec![vip]),
            IpAddr::V6(vip) => Addresses::V6(vec![vip]),
        };
        let advertisement = Advertisement {
            version: Version::V3,
            vrid: Vrid::new(51).unwrap(),
            priority: WirePriority(200),
            interval: AdvertInterval::DEFAULT,
            addresses,
            auth: Auth::None,
        };
        let pseudo = PseudoHeader::new(source, Family::of(source).multicast()).unwrap();
        let mut payload = Vec::new();
        advertisement.encode(&pseudo, &mut payload);
        let len = payload.len();
        let mut sender = Authenticator::new(config(&[1, 2], 1), time.start());
        let mut receiver = Authenticator::new(config(&[2], 2), time.start());
        let mut decoded = 0;
        for trailer in sender.sign(time.start(), source, &payload.clone()) {
            append(&mut payload, len, &trailer, &pseudo);
            let Ok(opened) = receiver.open(time.start(), source, &payload) else { continue };
            let result =
                Advertisement::decode_signed(opened.message, &payload, &pseudo, ChecksumPolicy::Strict);
            assert_eq!(result, Ok(advertisement.clone()), "{source}");
            receiver.accept(time.start(), &opened.signature.unwrap());
            decoded += 1;
        }
        assert_eq!(decoded, 1);
    }
}

/// The vector's checksum over IPv6 covers the trailer.
#[test]
fn vector_of_ipv6_decodes() {
    let payload = hex("3133c8010064a2e9fe800000000000000000000000000100 \
        010100006800000080000000 c8c56146ebfd66ee10ec4d8186461b78");
    let source: IpAddr = "fe80::10".parse().unwrap();
    let pseudo = PseudoHeader::new(source, "fe80::20".parse().unwrap()).unwrap();
    let (message, trailer) = split(&payload, source).unwrap();
    assert!(Advertisement::decode_signed(message, &payload, &pseudo, ChecksumPolicy::Strict).is_ok());
    let mut again = message.to_vec();
    append(&mut again, message.len(), trailer, &pseudo);
    assert_eq!(again, payload);
}

proptest! {
    #[test]
    fn open_terminates_on_arbitrary_input(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        v6 in any::<bool>(),
    ) {
        let time = Time::new();
        let source: IpAddr = if v6 { "fe80::10".parse().unwrap() } else { source() };
        let authenticator = Authenticator::new(config(&[1], 1), time.start());
        prop_assert!(authenticator.open(time.start(), source, &bytes).is_err());
    }

    #[test]
    fn signed_messages_of_any_content_open(
        version in prop_oneof![Just(2_u8), Just(3)],
        count in 0_u8..20,
        filler in any::<u8>(),
        nanos in any::<u32>(),
    ) {
        let time = Time::new();
        let mut message = vec![filler; 8 + 4 * usize::from(count) + if version == 2 { 8 } else { 0 }];
        (message[0], message[3]) = (version << 4 | 1, count);
        let sequence = Sequence::at(SIGNED + Duration::from_nanos(nanos.into()));
        let mut packet = message.clone();
        packet.extend(sign(&key(0), id(1), sequence, source(), &message));
        let authenticator = Authenticator::new(config(&[1], 1), time.start());
        let opened = authenticator.open(time.start(), source(), &packet);
        prop_assert!(opened.is_ok_and(|opened| opened.message == message && opened.signature.is_some()));
    }
}
