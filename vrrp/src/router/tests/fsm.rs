//! RFC 9568 §6.4, row by row, and the additions of this crate.

use super::*;
use crate::router::output::Reason;

#[test]
fn init_waits_for_an_address_of_the_deciding_family() {
    let now = Instant::now();
    let mut router = VirtualRouter::new(config(), now);
    assert_eq!((router.state(), router.poll_timeout()), (StateName::Init, None));
    router.handle_interface(now, InterfaceEvent::Up { v4: None, v6: Some(OWN_V6) });
    assert_eq!((router.state(), router.reason()), (StateName::Init, Reason::NoSourceAddress));
    router.handle_interface(now, InterfaceEvent::Up { v4: Some(OWN), v6: None });
    assert_eq!((router.state(), router.reason()), (StateName::Backup, Reason::InterfaceUp));
}

#[test]
fn startup_sets_the_down_timer_to_down() {
    let mut bench = Bench::new(config());
    assert_eq!(bench.said(), ["init -> backup"]);
    assert_eq!(bench.left(TimerName::Down), Some(DOWN));
    assert_eq!(bench.router.down_interval(), DOWN);
}

#[test]
fn active_claims_and_advertises_every_interval() {
    let mut bench = Bench::active(config());
    bench.advance(Duration::from_secs(1) - ms(50));
    let said = bench.said();
    assert_eq!(said.iter().filter(|word| *word == "advertise 100 IPv4").count(), 10);
    let claims = said.iter().filter(|word| word.starts_with("claim")).count();
    assert_eq!(claims, 2, "the lease of 2 s needs no claim every 100 ms: {said:?}");
    let claim = said.iter().position(|word| word.starts_with("claim")).unwrap();
    assert_eq!(said[claim + 1], "advertise 100 IPv4", "refreshed before it is advertised");
}

#[test]
fn active_claims_with_every_advertisement_until_the_addresses_are_there() {
    let mut bench = Bench::backup(config());
    bench.advance(DOWN + 4 * INTERVAL);
    let claims = bench.said().iter().filter(|word| word.starts_with("claim")).count();
    assert_eq!(claims, 5);
}

#[test]
fn slow_routers_claim_with_each_advertisement() {
    let interval = AdvertInterval::from_centiseconds(100).unwrap();
    let mut config = RouterConfig { advert_interval: interval, ..config() };
    config.lease = RouterConfig::lease_for(config.down_interval());
    assert_eq!(config.lease, Duration::from_secs(2));
    let mut bench = Bench::active(config);
    bench.advance(Duration::from_secs(5));
    let said = bench.said();
    let claims: Vec<_> = said.iter().filter(|word| word.starts_with("claim")).collect();
    assert_eq!(claims.len(), 5, "{said:?}");
}

#[test]
fn active_answers_a_resignation_at_once_and_rearms() {
    let mut bench = Bench::active(config());
    bench.hear(HIGHER, 0);
    let said = bench.said();
    assert!(said.contains(&"advertise 100 IPv4".to_owned()), "{said:?}");
    assert_eq!(bench.left(TimerName::Advertise), Some(INTERVAL));
}

#[test]
fn active_yields_to_the_higher_priority_or_address_and_advertises_once_more() {
    for (source, priority) in [(LOWER, 101), (HIGHER, 101), (HIGHER, 100)] {
        let mut bench = Bench::active(config());
        bench.hear(source, priority);
        assert_eq!(bench.said(), ["advertise 100 IPv4", "active -> yielding"]);
        let reason = Reason::Outranked { source: source.into(), priority: WirePriority(priority) };
        assert_eq!(bench.router.reason(), reason);
        bench.advance(ms(3));
        bench.router.handle_announcement(bench.now, announcement(VIP));
        assert_eq!(bench.said(), ["watch Stop", "release Planned", "yielding -> backup"]);
        assert_eq!(bench.router.reason(), reason);
        assert!(bench.left(TimerName::Down).unwrap() >= DOWN);
        assert_eq!(bench.router.claim_until(), None);
        assert_eq!(bench.router.counters().became_backup, 1);
    }
}

#[test]
fn yielding_ends_after_100_ms_without_an_announcement_and_sends_nothing() {
    let mut bench = Bench::active(config());
    bench.hear(HIGHER, 200);
    bench.drain();
    bench.hear(HIGHER, 200);
    bench.hear(LOWER, 20);
    bench.advance(ms(99));
    assert_eq!(bench.said(), Vec::<String>::new());
    bench.advance(ms(1));
    assert_eq!(bench.said(), ["watch Stop", "release Planned", "yielding -> backup"]);
    assert_eq!(bench.router.active_source(), Some(HIGHER.into()));
}

#[test]
fn yielding_ends_when_its_successor_resigns_or_the_process_slept() {
    let mut bench = Bench::active(config());
    bench.hear(HIGHER, 200);
    bench.drain();
    bench.hear(HIGHER, 0);
    assert_eq!(bench.said(), ["watch Stop", "release Planned", "yielding -> backup"]);

    let mut bench = Bench::active(config());
    bench.hear(HIGHER, 200);
    bench.drain();
    bench.sleep(ms(2_000));
    bench.router.handle_command(bench.now, Command::NotServing);
    assert_eq!(bench.said(), ["watch Stop", "release Planned", "yielding -> backup"]);
}

#[test]
fn yielding_ends_with_its_link_or_its_command() {
    let mut bench = Bench::active(config());
    bench.hear(HIGHER, 200);
    bench.drain();
    bench.router.handle_interface(bench.now, InterfaceEvent::Down);
    assert_eq!(bench.said(), ["watch Stop", "release Lost", "yielding -> init"]);

    let mut bench = Bench::active(config());
    bench.hear(HIGHER, 200);
    bench.drain();
    bench.router.handle_command(bench.now, Command::Resign);
    assert_eq!(bench.said(), ["watch Stop", "release Planned", "yielding -> stopped"]);
}

#[test]
fn addresses_that_are_not_installed_are_given_up_at_once() {
    let mut bench = Bench::backup(config());
    bench.advance(DOWN);
    bench.drain();
    bench.hear(HIGHER, 200);
    assert_eq!(bench.said(), ["advertise 100 IPv4", "release Planned", "watch Stop", "active -> backup"]);
}

#[test]
fn active_asserts_itself_against_the_lower_priority_or_address() {
    for (source, priority) in [(LOWER, 100), (LOWER, 99), (HIGHER, 99)] {
        let mut bench = Bench::active(config());
        bench.hear(source, priority);
        let said = bench.said();
        assert!(said.contains(&"advertise 100 IPv4".to_owned()), "{said:?}");
        assert_eq!(bench.router.state(), StateName::Active);
        // A flood makes no flood.
        for _ in 0..1000 {
            bench.hear(source, priority);
        }
        assert_eq!(bench.said(), Vec::<String>::new());
        bench.advance(ms(25));
        let said = bench.said();
        assert_eq!(said.iter().filter(|word| word.starts_with("advertise")).count(), 1, "{said:?}");
    }
}

#[test]
fn active_is_bound_to_what_it_advertised_last() {
    let mut bench = Bench::active(config());
    bench.router.handle_command(bench.now, Command::NotServing);
    bench.hear(LOWER, 99);
    assert_eq!(bench.router.state(), StateName::Active, "the rival acted on 100 and loses against that");
    let words = bench.said();
    assert!(words.contains(&"advertise 20 IPv4".to_owned()), "{words:?}");
    bench.hear(LOWER, 99);
    assert_eq!(bench.router.state(), StateName::Yielding, "but wins against 20");
}

#[test]
fn active_announces_in_a_burst_once_installed_and_repeats() {
    let mut bench = Bench::backup(config());
    bench.advance(DOWN);
    bench.drain();
    bench.router.handle_vip(bench.now, VipEvent::Installed);
    assert_eq!(bench.said(), ["announce"], "at once");
    bench.advance(ms(20));
    assert_eq!(bench.said().iter().filter(|word| *word == "announce").count(), 4);
    bench.advance(Duration::from_secs(3) + ms(20));
    let repeated = bench.said().iter().filter(|word| *word == "announce").count();
    assert_eq!(repeated, 6, "every 500 ms while a predecessor's lease of 3.02 s may last");
    bench.advance(Duration::from_secs(50));
    assert!(!bench.said().contains(&"announce".to_owned()));
    bench.advance(Duration::from_secs(20));
    assert_eq!(bench.said().iter().filter(|word| *word == "announce").count(), 1, "the refresh");
}

#[test]
fn active_announces_when_a_rival_appears_and_again_when_it_is_gone() {
    let mut bench = Bench::active(config());
    bench.advance(Duration::from_secs(10));
    bench.drain();
    bench.hear(LOWER, 100);
    assert_eq!(bench.said().iter().filter(|word| *word == "announce").count(), 1);
    bench.advance(Duration::from_secs(5));
    let announced = bench.said().iter().filter(|word| *word == "announce").count();
    assert!((6..=8).contains(&announced), "{announced}");
    assert_eq!(bench.left(TimerName::RivalSilent), None);
}

#[test]
fn active_gives_up_for_the_hold_time_when_a_rival_goes_on() {
    let mut bench = Bench::active(config());
    for _ in 0..4 {
        bench.hear(LOWER, 99);
        assert_eq!(bench.router.state(), StateName::Active);
        bench.advance(ms(90));
    }
    bench.drain();
    bench.advance(ms(1));
    bench.hear(LOWER, 99);
    let said = bench.said();
    assert!(
        said.contains(&"active -> yielding".to_owned()) && !said.contains(&"release Planned".to_owned()),
        "{said:?}"
    );
    assert!(matches!(bench.router.reason(), Reason::Unheard { .. }));
    assert_eq!(bench.router.priority(), WirePriority(20), "degraded");
    assert_eq!(bench.router.hold_until(), Some(bench.now + RouterConfig::HOLD_TIME));
    for _ in 0..300 {
        bench.hear(LOWER, 99);
        bench.advance(INTERVAL);
    }
    assert_eq!(bench.router.priority(), WirePriority(100), "for the hold time");
}

#[test]
fn interface_down_releases_at_once_and_up_starts_over() {
    let mut bench = Bench::active(config());
    bench.router.handle_interface(bench.now, InterfaceEvent::Down);
    assert_eq!(bench.said(), ["release Lost", "watch Stop", "active -> init"]);
    assert_eq!(bench.router.poll_timeout().map(|(_, name)| name), Some(TimerName::ServingExpiry));
    bench.up();
    assert_eq!(bench.said(), ["init -> backup"]);
}

#[test]
fn an_address_removed_by_others_is_claimed_again_at_once() {
    let mut bench = Bench::active(config());
    bench.router.handle_vip(bench.now, VipEvent::Missing);
    assert_eq!(bench.said(), ["claim 310.9375ms"], "no longer than the last advertisement allows");
    bench.router.handle_vip(bench.now, VipEvent::Installed);
    bench.advance(ms(500));
    assert!(bench.said().contains(&"announce".to_owned()));
}

#[test]
fn an_active_that_overslept_listens_first_whatever_event_wakes_it() {
    type Event = fn(&mut Bench);
    let events: [Event; 5] = [
        |bench| bench.router.handle_timeout(bench.now),
        |bench| bench.router.handle_vip(bench.now, VipEvent::Missing),
        |bench| bench.router.handle_command(bench.now, Command::NotServing),
        |bench| bench.announced(VIP),
        |bench| bench.up(),
    ];
    for event in events {
        let mut bench = Bench::active(config());
        bench.sleep(DOWN);
        event(&mut bench);
        let said = bench.said();
        assert!(said.contains(&"release Planned".to_owned()), "{said:?}");
        assert!(
            !said.iter().any(|word| word.starts_with("claim") || word.starts_with("advertise")),
            "{said:?}"
        );
        assert_eq!(bench.router.state(), StateName::Listening);
        bench.advance(INTERVAL * 17 / 16);
        assert_eq!((bench.router.state(), bench.router.reason()), (StateName::Active, Reason::NoOtherActive));
    }
}

#[test]
fn an_overslept_active_that_finds_a_rival_in_the_queue_is_backup_even_if_it_would_win() {
    let mut bench = Bench::active(config());
    bench.sleep(DOWN);
    bench.hear(LOWER, 50);
    assert_eq!((bench.router.state(), bench.router.active_source()), (StateName::Backup, Some(LOWER.into())));
    assert!(!bench.said().iter().any(|word| word.starts_with("advertise")));
}

#[test]
fn a_listener_that_hears_a_resignation_waits_for_skew() {
    let mut bench = Bench::active(config());
    bench.sleep(DOWN);
    bench.hear(LOWER, 0);
    assert_eq!((bench.router.state(), bench.left(TimerName::Down)), (StateName::Backup, Some(SKEW)));
}

#[test]
fn resigning_keeps_the_addresses_until_the_successor_announces() {
    let mut bench = Bench::active(config());
    bench.router.handle_command(bench.now, Command::Resign);
    assert_eq!(bench.said(), ["active -> resigning", "advertise 0 IPv4", "claim 360.9375ms"]);
    bench.advance(ms(70));
    bench.hear(LOWER, 100);
    assert_eq!(bench.left(TimerName::Handover), Some(ms(100)));
    bench.announced(Ipv4Addr::new(10, 9, 0, 99));
    assert_eq!(bench.router.state(), StateName::Resigning, "not one of our addresses");
    bench.announced(VIP);
    assert_eq!(bench.said(), ["release Planned", "watch Stop", "resigning -> stopped"]);
    assert_eq!(bench.router.reason(), Reason::SuccessorAnnounced);
    bench.router.handle_command(bench.now, Command::Resign);
    bench.up();
    assert_eq!((bench.said(), bench.router.state()), (vec![], StateName::Stopped));
}

#[test]
fn resigning_without_being_active_stops_at_once() {
    let mut bench = Bench::backup(config());
    bench.router.handle_command(bench.now, Command::Resign);
    assert_eq!(bench.said(), ["backup -> stopped"]);
}

#[test]
fn a_handover_that_was_slept_through_ends_without_a_claim() {
    let mut bench = Bench::active(config());
    bench.router.handle_command(bench.now, Command::Resign);
    bench.drain();
    bench.sleep(Duration::from_secs(10));
    bench.router.handle_timeout(bench.now);
    assert_eq!(bench.said(), ["release Planned", "watch Stop", "resigning -> stopped"]);
}

#[test]
fn both_families_are_advertised_by_one_owner() {
    let mut bench = Bench::backup(RouterConfig { addresses_v6: vec![VIP_V6], ..config() });
    bench.advance(DOWN);
    let outputs = bench.drain();
    let sent: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Advertise(message) => Some((message.version, message.addresses.clone())),
            _ => None,
        })
        .collect();
    let expected = [Addresses::V4(vec![VIP]), Addresses::V6(vec![VIP_V6])];
    assert_eq!(sent, expected.map(|addresses| (Version::V3, addresses)));
}

#[test]
fn a_new_configuration_moves_nothing_unless_it_is_another_router() {
    let mut bench = Bench::active(config());
    let mut changed = config();
    changed.priority = Priority::new(150).unwrap();
    changed.addresses_v4.push(Ipv4Addr::new(10, 9, 0, 101));
    bench.router.handle_command(bench.now, Command::Reconfigure(Box::new(changed.clone())));
    let said = bench.said();
    assert_eq!(bench.router.state(), StateName::Active);
    assert!(said.contains(&"advertise 150 IPv4".to_owned()), "{said:?}");
    assert!(
        said.iter().any(|word| word.starts_with("claim")),
        "the new address is to be installed: {said:?}"
    );
    changed.vrid = Vrid::new(52).unwrap();
    bench.router.handle_command(bench.now, Command::Reconfigure(Box::new(changed)));
    assert_eq!(bench.said(), ["release Planned", "watch Stop", "active -> backup"]);
    assert_eq!(bench.router.reason(), Reason::Reconfigured);
}
