//! Discarded advertisements, which change nothing.

use super::*;
use crate::hmac::{HmacConfig, Key, KeyId, Mode, VerifyError};
use crate::packet::DecodeError;
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
    let global = Advertisement { addresses: Addresses::V6(vec![VIP_V6]), ..good.clone() };
    discarded(&mut bench, &multicast("fd00::ff".parse().unwrap()), &global, Discard::NotLinkLocal);
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
fn neighbours_that_are_no_peers_are_obeyed_where_that_is_configured() {
    let mut bench = Bench::active(RouterConfig { only_peers: true, accept_neighbours: true, ..config() });
    let prefix = crate::LinkPrefix { address: OWN.into(), len: 24 };
    bench.router.handle_link_prefixes(vec![prefix]);
    let message = bench.message(200);
    let from = RxMeta { delivery: Delivery::Unicast, ..multicast(HIGHER.into()) };
    let elsewhere = RxMeta { source: [192, 0, 2, 9].into(), ..from };
    discarded(&mut bench, &elsewhere, &message, Discard::UnknownPeer);
    discarded(&mut bench, &RxMeta { hop_limit: 254, ..from }, &message, Discard::HopLimit);
    assert_eq!(bench.router.handle_advertisement(bench.now, &from, &message), Ok(()));
}

#[test]
fn a_neighbour_that_no_list_has_is_followed_where_that_is_configured() {
    let config =
        RouterConfig { peers: vec![LOWER.into()], only_peers: true, accept_neighbours: true, ..config() };
    let mut bench = Bench::backup(config);
    bench.router.handle_link_prefixes(vec![crate::LinkPrefix { address: OWN.into(), len: 24 }]);
    bench.know(&[OWN, LOWER]);
    bench.drain();
    let message = bench.message(99);
    let from = RxMeta { delivery: Delivery::Unicast, ..multicast(HIGHER.into()) };
    assert_eq!(bench.router.handle_advertisement(bench.now, &from, &message), Ok(()));
    assert_eq!(bench.router.active_source(), Some(HIGHER.into()));
    let named = |output: &Output| matches!(output, Output::Warning(Warning::Stranger { .. }));
    assert!(!bench.drain().iter().any(named));
    // Its peers are replaced while the election goes on.
    let now = bench.now;
    bench.router.handle_command(now, Command::Peers(vec![LOWER.into(), HIGHER.into()]));
    assert_eq!(bench.router.state(), StateName::Backup);
}

#[test]
fn unicast_from_a_routed_peer_needs_no_hop_limit() {
    let mut bench = Bench::active(config());
    let message = bench.message(200);
    let meta = RxMeta { source: LOWER.into(), hop_limit: 3, delivery: Delivery::Unicast, signed: false };
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
    let reason = bench.router.handle_unusable(DecodeError::Checksum);
    assert_eq!(reason, Discard::Checksum);
    bench.router.handle_unusable(DecodeError::IntervalZero);
    let counted: Vec<_> = bench.router.counters().discarded.iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [(Discard::Checksum, 1), (Discard::IntervalZero, 1)]);
}

#[test]
fn ipv4_unicast_from_a_peer_on_the_link_needs_hop_limit_255() {
    let prefix = |address: IpAddr, len| crate::LinkPrefix { address, len };
    let own: IpAddr = OWN.into();
    let unicast =
        |hop_limit| RxMeta { source: LOWER.into(), hop_limit, delivery: Delivery::Unicast, signed: false };
    for (prefixes, hop_limit, on_link) in [
        (vec![prefix(own, 24)], 254, true),
        (vec![prefix(own, 24)], 255, false),
        (vec![prefix(own, 32), prefix(VIP_V6.into(), 64)], 254, false),
        (vec![], 1, false),
    ] {
        let mut bench = Bench::active(config());
        bench.router.handle_link_prefixes(prefixes.clone());
        let message = bench.message(200);
        if on_link {
            discarded(&mut bench, &unicast(hop_limit), &message, Discard::HopLimit);
        } else {
            let taken = bench.router.handle_advertisement(bench.now, &unicast(hop_limit), &message);
            assert_eq!(taken, Ok(()), "{prefixes:?} {hop_limit}");
        }
    }
}

#[test]
fn a_list_without_a_common_address_is_another_group_regardless_of_other_fields() {
    let foreign = Ipv4Addr::new(10, 9, 0, 200);
    for bench in [&mut Bench::active(config()), &mut Bench::active(v2())] {
        let good = Advertisement { addresses: Addresses::V4(vec![foreign]), ..bench.message(254) };
        let from = multicast(HIGHER.into());
        let password = Auth::Pass(AuthPass::new("other").unwrap());
        let other = if good.version == Version::V2 { Version::V3 } else { Version::V2 };
        for message in [
            good.clone(),
            Advertisement { auth: password, ..good.clone() },
            Advertisement { version: other, ..good.clone() },
            Advertisement { priority: WirePriority::RESIGN, ..good.clone() },
        ] {
            let _ = bench.router.handle_advertisement(bench.now, &from, &message);
            let warning = Warning::OtherGroup { source: HIGHER.into(), addresses: message.addresses.clone() };
            assert_eq!(bench.drain(), [Output::Warning(warning)]);
            discarded(bench, &from, &message, Discard::OtherGroup);
        }
        assert_eq!(bench.router.counters().discarded.get(Discard::OtherGroup), 8);
        assert_eq!(bench.router.counters().address_list_mismatches, 0);
    }
}

#[test]
fn another_group_does_not_keep_a_backup_from_its_addresses() {
    let mut bench = Bench::backup(config());
    for _ in 0..10 {
        let foreign = Addresses::V4(vec![Ipv4Addr::new(10, 9, 0, 200)]);
        let message = Advertisement { addresses: foreign, ..bench.message(254) };
        assert_eq!(bench.receive(HIGHER, &message), Err(Discard::OtherGroup));
        bench.advance(ms(50));
    }
    assert_eq!(bench.router.state(), StateName::Active);
}

/// RFC 9568 §5.2.9: the first address of an IPv6 list is link-local.
#[test]
fn a_link_local_address_that_a_peer_adds_is_no_mismatch() {
    let global: Ipv6Addr = "fd00::100".parse().unwrap();
    let foreign: Ipv6Addr = "fd00::200".parse().unwrap();
    let derived: Ipv6Addr = "fe80::200:5eff:fe00:233".parse().unwrap();
    let receive = |ours: &[Ipv6Addr], theirs: &[Ipv6Addr]| {
        let config =
            RouterConfig { addresses_v4: vec![], addresses_v6: ours.to_vec(), peers: vec![], ..config() };
        let mut bench = Bench::active(config);
        let message = Advertisement { addresses: Addresses::V6(theirs.to_vec()), ..bench.message(254) };
        let rival = multicast("fe80::ff".parse().unwrap());
        let taken = bench.router.handle_advertisement(bench.now, &rival, &message);
        taken.map(|()| bench.router.counters().address_list_mismatches)
    };
    assert_eq!(receive(&[global], &[derived, global]), Ok(0));
    assert_eq!(receive(&[VIP_V6, global], &[VIP_V6, global]), Ok(0));
    assert_eq!(receive(&[VIP_V6, global], &[global]), Ok(1));
    assert_eq!(receive(&[VIP_V6, global], &[derived, global]), Ok(1));
    assert_eq!(receive(&[VIP_V6, global], &[VIP_V6, foreign]), Ok(1), "they contend for the link-local one");
    assert_eq!(receive(&[global], &[derived, foreign]), Err(Discard::OtherGroup));
    assert_eq!(receive(&[global], &[derived]), Err(Discard::OtherGroup));
}

#[test]
fn strangers_are_named_only_where_controllers_are_known_by_their_sources() {
    let elsewhere = Ipv4Addr::new(192, 0, 2, 11);
    let cases: [(&[Ipv4Addr], bool); 5] = [
        (&[], false),
        (&[OWN], false),
        (&[elsewhere, Ipv4Addr::new(192, 0, 2, 12)], false),
        (&[OWN, LOWER], true),
        (&[OWN, LOWER, HIGHER], false),
    ];
    for (controllers, named) in cases {
        let mut bench = Bench::active(RouterConfig { peers: vec![], ..config() });
        bench.know(controllers);
        bench.hear(HIGHER, 99);
        let warning = Warning::Stranger { source: HIGHER.into(), priority: WirePriority(99) };
        assert_eq!(bench.drain().contains(&Output::Warning(warning)), named, "{controllers:?}");
        assert_eq!(bench.router.counters().stranger_advertisements, u64::from(named));
    }
}

#[test]
fn a_router_that_is_no_peer_is_named_where_only_peers_are_obeyed() {
    let mut bench = Bench::backup(RouterConfig { only_peers: true, ..config() });
    let message = bench.message(200);
    assert_eq!(bench.receive(HIGHER, &message), Err(Discard::UnknownPeer));
    let warning = Warning::Stranger { source: HIGHER.into(), priority: WirePriority(200) };
    assert_eq!(bench.drain(), [Output::Warning(warning)]);
}

fn pass(text: &str) -> Auth {
    Auth::Pass(AuthPass::new(text).unwrap())
}

/// A router that rotates its password from `former` to `secret`.
fn rotating() -> RouterConfig {
    RouterConfig { auth_previous: Some(AuthPass::new("former").unwrap()), ..v2() }
}

#[test]
fn both_passwords_are_sent_and_accepted_while_rotated() {
    let mut bench = Bench::active(rotating());
    bench.advance(ms(1000));
    let sent = bench.drain().into_iter().filter_map(|output| match output {
        Output::Advertise(advertisement) => Some(advertisement.auth),
        _ => None,
    });
    assert_eq!(sent.collect::<Vec<_>>(), [pass("secret"), pass("former")]);
    assert_eq!(bench.router.counters().resignations_sent, 0);

    let mut bench = Bench::backup(rotating());
    let good = bench.message(100);
    for auth in [pass("secret"), pass("former")] {
        bench.receive(LOWER, &Advertisement { auth, ..good.clone() }).unwrap();
        bench.advance(ms(1000));
    }
    let wrong = Advertisement { auth: pass("other"), ..good };
    assert_eq!(bench.receive(LOWER, &wrong), Err(Discard::Password));
    let counters = bench.router.counters();
    assert_eq!((counters.advertisements_received, counters.copies), (2, 0));
}

#[test]
fn second_password_of_one_advertisement_is_a_copy_in_either_order() {
    for order in [["secret", "former"], ["former", "secret"]] {
        let mut bench = Bench::backup(rotating());
        for _ in 0..3 {
            for password in order {
                let message = Advertisement { auth: pass(password), ..bench.message(100) };
                bench.receive(LOWER, &message).unwrap();
                bench.advance(ms(1));
            }
            bench.advance(ms(1000));
        }
        let counters = bench.router.counters();
        assert_eq!((counters.advertisements_received, counters.copies), (3, 3), "{order:?}");
    }
}

#[test]
fn other_content_or_another_sender_is_no_copy() {
    let mut bench = Bench::backup(rotating());
    let message =
        |password, priority, bench: &Bench| Advertisement { auth: pass(password), ..bench.message(priority) };
    let (first, degraded) = (message("secret", 100, &bench), message("former", 20, &bench));
    bench.receive(LOWER, &first).unwrap();
    bench.receive(LOWER, &degraded).unwrap();
    bench.receive(HIGHER, &message("secret", 20, &bench)).unwrap();
    let counters = bench.router.counters();
    assert_eq!((counters.advertisements_received, counters.copies), (3, 0));
}

#[test]
fn signed_messages_have_no_password_and_enforcing_routers_want_nothing_else() {
    let keys = [(KeyId::MIN, Key::new(&[1; 32]).unwrap())].into();
    let mut hmac = HmacConfig::new(keys, KeyId::MIN, ms(1000)).unwrap();
    for mode in [Mode::ReceiveOnly, Mode::Permissive, Mode::Enforce] {
        hmac.mode = mode;
        let mut bench = Bench::active(RouterConfig { hmac: Some(hmac.clone()), ..v2() });
        bench.advance(ms(1000));
        let signs = mode != Mode::ReceiveOnly;
        let expected = if signs { Auth::None } else { pass("secret") };
        let sent = bench.drain().into_iter().find_map(|output| match output {
            Output::Advertise(advertisement) => Some(advertisement.auth),
            _ => None,
        });
        assert_eq!(sent, Some(expected), "{mode:?}");

        let (unsigned, signed) =
            (multicast(LOWER.into()), RxMeta { signed: true, ..multicast(LOWER.into()) });
        let with_password = bench.message(10);
        let without = Advertisement { auth: Auth::None, ..with_password.clone() };
        let mut hear = |meta, message| bench.router.handle_advertisement(bench.now, meta, message);
        assert_eq!(hear(&signed, &without), Ok(()), "{mode:?}");
        assert_eq!(hear(&signed, &with_password), Err(Discard::AuthType), "{mode:?}");
        let enforced = mode == Mode::Enforce;
        let refused = |otherwise| if enforced { Err(Discard::Unsigned) } else { otherwise };
        assert_eq!(hear(&unsigned, &with_password), refused(Ok(())), "{mode:?}");
        assert_eq!(hear(&unsigned, &without), refused(Err(Discard::AuthType)), "{mode:?}");
    }
}

#[test]
fn every_failed_verification_has_a_reason_of_its_own() {
    let mut bench = Bench::active(config());
    let errors = [
        (VerifyError::Unsigned, Discard::Unsigned),
        (VerifyError::SignatureType, Discard::SignatureType),
        (VerifyError::UnknownKey(7), Discard::UnknownKey),
        (VerifyError::Digest, Discard::Digest),
        (VerifyError::Replayed, Discard::Replayed),
    ];
    for (error, reason) in errors {
        assert_eq!(bench.router.handle_unusable(error), reason);
        assert_eq!(bench.router.counters().discarded.get(reason), 1);
    }
}
