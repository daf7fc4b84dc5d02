//! What is discarded, and that it changes nothing.

use super::*;
use crate::types::AuthPass;

/// Receives something on an Active and expects that only a counter moves.
fn discarded(bench: &mut Bench, meta: &RxMeta, message: &Advertisement, expected: Discard) {
    let before = (bench.router.counters().discarded.get(expected), bench.router.poll_timeout());
    let result = bench.router.handle_advertisement(bench.now, meta, message);
    assert_eq!(result, Err(expected));
    let after = (bench.router.counters().discarded.get(expected), bench.router.poll_timeout());
    assert_eq!(after, (before.0 + 1, before.1));
    assert_eq!(bench.router.state(), StateName::Active);
    let outputs = bench.drain();
    let harmless = |output: &Output| matches!(output, Output::Warning(_));
    assert!(outputs.iter().all(harmless), "{outputs:?}");
}

fn v2() -> RouterConfig {
    let advert_interval = AdvertInterval::DEFAULT;
    let auth = Some(AuthPass::new("secret").unwrap());
    RouterConfig { version: Version::V2, auth, advert_interval, ..config() }
}

#[test]
fn each_reason_leaves_the_active_undisturbed() {
    let mut bench = Bench::active(config());
    let good = bench.message(200);
    let from = multicast(HIGHER.into());
    discarded(&mut bench, &RxMeta { hop_limit: 254, ..from }, &good, Discard::HopLimit);
    let other = Advertisement { vrid: Vrid::new(52).unwrap(), ..good.clone() };
    discarded(&mut bench, &from, &other, Discard::ForeignVrid);
    let other = Advertisement { version: Version::V2, ..good.clone() };
    discarded(&mut bench, &from, &other, Discard::Version);
    let other = Advertisement { priority: WirePriority::OWNER, ..good.clone() };
    discarded(&mut bench, &from, &other, Discard::OwnerPriority);
    discarded(&mut bench, &RxMeta { delivery: Delivery::Unicast, ..from }, &good, Discard::UnknownPeer);
    let other = Advertisement { addresses: Addresses::V6(vec![VIP_V6]), ..good.clone() };
    discarded(&mut bench, &multicast(VIP_V6.into()), &other, Discard::Family);
    discarded(&mut bench, &multicast(VIP_V6.into()), &good, Discard::Family);
    discarded(&mut bench, &multicast(OWN.into()), &good, Discard::OwnSource);
}

#[test]
fn authentication_must_match() {
    let mut bench = Bench::active(v2());
    let good = bench.message(200);
    let from = multicast(HIGHER.into());
    let wrong = Auth::Pass(AuthPass::new("Secret").unwrap());
    discarded(&mut bench, &from, &Advertisement { auth: wrong, ..good.clone() }, Discard::Password);
    discarded(&mut bench, &from, &Advertisement { auth: Auth::None, ..good.clone() }, Discard::AuthType);
    let other = Auth::Other { kind: 2, data: [0; 8] };
    discarded(&mut bench, &from, &Advertisement { auth: other, ..good.clone() }, Discard::AuthType);
    assert_eq!(bench.receive(HIGHER, &good), Ok(()));

    let mut open = Bench::active(RouterConfig { auth: None, ..v2() });
    discarded(&mut open, &from, &good, Discard::AuthType);
}

#[test]
fn own_source_raises_a_conflict() {
    let mut bench = Bench::active(config());
    let message = bench.message(100);
    assert_eq!(bench.receive(OWN, &message), Err(Discard::OwnSource));
    assert_eq!(bench.drain(), [Output::Warning(Warning::Conflict { source: OWN.into() })]);
}

#[test]
fn only_peers_are_obeyed_where_that_is_configured() {
    let mut bench = Bench::active(RouterConfig { only_peers: true, ..config() });
    let message = bench.message(200);
    discarded(&mut bench, &multicast(HIGHER.into()), &message, Discard::UnknownPeer);
    assert_eq!(bench.receive(LOWER, &message), Ok(()));
}

#[test]
fn unicast_from_a_peer_needs_no_hop_limit() {
    let mut bench = Bench::active(config());
    let message = bench.message(200);
    let meta = RxMeta { source: LOWER.into(), hop_limit: 3, delivery: Delivery::Unicast };
    assert_eq!(bench.router.handle_advertisement(bench.now, &meta, &message), Ok(()));
    assert_eq!(bench.router.state(), StateName::Yielding);
}

#[test]
fn the_owner_is_obeyed_on_request() {
    let mut bench = Bench::active(RouterConfig { accept_owner_priority: true, ..config() });
    bench.hear(LOWER, 255);
    assert_eq!(bench.router.state(), StateName::Yielding);
}

#[test]
fn another_list_of_addresses_is_counted_and_obeyed() {
    let second = Ipv4Addr::new(10, 9, 0, 101);
    let config = RouterConfig { addresses_v4: vec![VIP, second], ..config() };
    for list in [vec![VIP], vec![VIP, VIP, second], vec![VIP, Ipv4Addr::new(10, 9, 0, 102)], vec![VIP; 255]] {
        let mut bench = Bench::active(config.clone());
        let message = Advertisement { addresses: Addresses::V4(list), ..bench.message(200) };
        assert_eq!(bench.receive(LOWER, &message), Ok(()));
        assert_eq!(bench.router.counters().address_list_mismatches, 1);
        let warning = Output::Warning(Warning::AddressListMismatch { source: LOWER.into() });
        assert!(bench.drain().contains(&warning));
        assert_eq!(bench.router.state(), StateName::Yielding, "there is no second Active");
    }
    let mut bench = Bench::active(config);
    let message = Advertisement { addresses: Addresses::V4(vec![second, VIP]), ..bench.message(200) };
    assert_eq!(bench.receive(LOWER, &message), Ok(()));
    assert_eq!(bench.router.counters().address_list_mismatches, 0, "the order does not matter");
}

#[test]
fn the_family_that_follows_never_decides() {
    let config = RouterConfig { addresses_v6: vec![VIP_V6], ..config() };
    let rival: IpAddr = "fe80::ff".parse().unwrap();
    let mut bench = Bench::active(config.clone());
    let v6 = Advertisement { addresses: Addresses::V6(vec![VIP_V6]), ..bench.message(254) };
    assert_eq!(bench.router.handle_advertisement(bench.now, &multicast(rival), &v6), Ok(()));
    assert_eq!((bench.drain(), bench.router.state()), (vec![], StateName::Active));
    bench.advance(Duration::from_secs(1));
    bench.drain();
    assert_eq!(bench.router.handle_advertisement(bench.now, &multicast(rival), &v6), Ok(()));
    assert_eq!(bench.drain(), [Output::Warning(Warning::FamilySplit { source: rival })]);
    assert_eq!((bench.router.counters().follower_received, bench.router.state()), (2, StateName::Active));

    let mut bench = Bench::backup(config);
    bench.advance(ms(300));
    let left = bench.left(TimerName::Down);
    assert_eq!(bench.router.handle_advertisement(bench.now, &multicast(rival), &v6), Ok(()));
    assert_eq!(bench.left(TimerName::Down), left);
}

#[test]
fn ipv6_decides_where_there_is_no_ipv4() {
    let config = RouterConfig { addresses_v4: vec![], addresses_v6: vec![VIP_V6], peers: vec![], ..config() };
    let mut bench = Bench::active(config);
    let rival: IpAddr = "fe80::ff".parse().unwrap();
    let v6 = Advertisement { addresses: Addresses::V6(vec![VIP_V6]), ..bench.message(100) };
    assert_eq!(bench.router.handle_advertisement(bench.now, &multicast(rival), &v6), Ok(()));
    assert_eq!(bench.router.state(), StateName::Yielding, "fe80::ff is higher than fe80::12");
}

#[test]
fn nothing_counts_before_the_interface_is_up() {
    let now = Instant::now();
    let mut router = VirtualRouter::new(config(), now);
    let message = Bench::backup(config()).message(200);
    let result = router.handle_advertisement(now, &multicast(HIGHER.into()), &message);
    assert_eq!(result, Err(Discard::NotRunning));
}

#[test]
fn malformed_messages_are_counted_by_reason() {
    let mut bench = Bench::active(config());
    let reason = bench.router.handle_malformed(DecodeError::Checksum);
    assert_eq!(reason, Discard::Checksum);
    bench.router.handle_malformed(DecodeError::IntervalZero);
    let counted: Vec<_> = bench.router.counters().discarded.iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [(Discard::Checksum, 1), (Discard::IntervalZero, 1)]);
}
