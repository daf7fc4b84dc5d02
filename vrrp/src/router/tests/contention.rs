//! An Active with a rival that goes on yields only on evidence.

use super::*;

/// Routers 12 (this one) and 11 are known as controllers, 13 is not.
fn active() -> Bench {
    let mut bench = Bench::active(RouterConfig { peers: vec![], ..config() });
    bench.know(&[OWN, LOWER]);
    bench.advance(DOWN);
    bench.drain();
    bench
}

/// A rival advertises for this time.
fn contend(bench: &mut Bench, source: Ipv4Addr, priority: u8, duration: Duration) {
    let end = bench.now + duration;
    while bench.now < end && bench.router.state() == StateName::Active {
        bench.hear(source, priority);
        bench.advance(ms(90));
    }
}

#[test]
fn an_active_never_yields_to_a_weaker_stranger_that_only_sends() {
    let mut bench = active();
    contend(&mut bench, HIGHER, 99, Duration::from_secs(600));
    assert_eq!((bench.router.state(), bench.router.counters().unheard), (StateName::Active, 0));
}

#[test]
fn an_active_yields_to_a_known_controller_that_does_not_hear_it() {
    let mut bench = active();
    contend(&mut bench, LOWER, 99, Duration::from_secs(1));
    assert_eq!(bench.router.reason(), Reason::Unheard { source: LOWER.into() });
}

#[test]
fn an_announcement_during_the_contention_is_evidence() {
    let mut bench = active();
    bench.announced(VIP);
    contend(&mut bench, HIGHER, 99, Duration::from_secs(1));
    assert_eq!(bench.router.state(), StateName::Active, "the announcement came before the contention");
    bench.announced(Ipv4Addr::new(10, 9, 0, 99));
    contend(&mut bench, HIGHER, 99, Duration::from_secs(1));
    assert_eq!(bench.router.state(), StateName::Active, "not one of our addresses");
    bench.announced(VIP);
    contend(&mut bench, HIGHER, 99, Duration::from_secs(1));
    assert_eq!(bench.router.reason(), Reason::Unheard { source: HIGHER.into() });
    let followed = bench.router.active_source();
    bench.hear(HIGHER, 99);
    assert_eq!(bench.router.active_source(), followed, "it is believed until it falls silent");
}

/// The announcement may have come from the controller, with its advertisements lost.
#[test]
fn an_announcement_proves_nothing_beside_a_known_active() {
    let mut bench = active();
    contend(&mut bench, HIGHER, 99, ms(200));
    bench.announced(VIP);
    contend(&mut bench, HIGHER, 99, Duration::from_secs(1));
    assert_eq!(bench.router.reason(), Reason::Unheard { source: HIGHER.into() });
    let both = |bench: &mut Bench, duration: Duration| {
        let end = bench.now + duration;
        while bench.now < end {
            bench.hear(HIGHER, 99);
            bench.hear(LOWER, 100);
            bench.advance(ms(90));
        }
        bench.hear(HIGHER, 99);
        bench.router.active_source()
    };
    assert_eq!(both(&mut bench, DOWN), Some(HIGHER.into()), "the controller may yet yield");
    assert_eq!(both(&mut bench, 2 * DOWN), Some(LOWER.into()));
}

/// A router advertised beside the Active while the two did not hear each other, and yielded then.
#[test]
fn a_router_that_has_yielded_is_followed_as_the_next_active() {
    for (silence, followed) in [(ms(200), LOWER), (DOWN + ms(10), HIGHER)] {
        let mut bench = Bench::backup(RouterConfig { preempt: Preempt::Never, ..config() });
        bench.hear(LOWER, 150);
        bench.hear(HIGHER, 60);
        assert_eq!(bench.router.active_source(), Some(LOWER.into()));
        let end = bench.now + silence;
        while bench.now < end {
            bench.advance(ms(90));
            bench.hear(LOWER, 49);
        }
        // The Active is degraded, and the other one takes over.
        bench.hear(HIGHER, 60);
        assert_eq!(bench.router.active_source(), Some(followed.into()), "after {silence:?} of silence");
    }
}

#[test]
fn an_announcement_is_evidence_for_one_contention_only() {
    let mut bench = active();
    contend(&mut bench, HIGHER, 99, ms(200));
    bench.announced(VIP);
    bench.advance(DOWN + ms(100));
    contend(&mut bench, HIGHER, 99, Duration::from_secs(1));
    assert_eq!(bench.router.state(), StateName::Active);
}

/// The contention with a controller begins with that controller.
#[test]
fn a_stranger_does_not_make_an_active_yield_to_the_first_advertisement_of_a_controller() {
    let mut bench = active();
    contend(&mut bench, HIGHER, 99, Duration::from_secs(10));
    bench.hear(LOWER, 99);
    assert_eq!(bench.router.state(), StateName::Active);
    for _ in 0..8 {
        bench.advance(ms(90));
        bench.hear(HIGHER, 99);
    }
    bench.hear(LOWER, 99);
    assert_eq!(bench.router.state(), StateName::Active, "it was silent meanwhile");
}

#[test]
fn a_degraded_priority_does_not_lower_the_bar_for_strangers() {
    let mut bench = active();
    bench.router.handle_command(bench.now, Command::NotServing);
    bench.advance(INTERVAL);
    contend(&mut bench, HIGHER, 99, Duration::from_secs(10));
    assert_eq!(bench.router.state(), StateName::Active);
    bench.hear(HIGHER, 100);
    assert_eq!(bench.router.state(), StateName::Yielding, "equal, and the higher address");
}

#[test]
fn an_announcement_without_a_rival_is_reported() {
    let mut bench = active();
    bench.announced(VIP);
    let warning = Warning::AnnouncedElsewhere { ip: VIP.into(), mac: announcement(VIP).mac };
    assert_eq!(bench.drain(), [Output::Warning(warning)]);
    assert_eq!(bench.router.state(), StateName::Active);
    let mut fresh = Bench::backup(config());
    fresh.advance(DOWN);
    fresh.drain();
    fresh.announced(VIP);
    assert_eq!(fresh.drain(), [], "a predecessor may have announced last");
}

#[test]
fn announcements_are_watched_for_while_the_addresses_are_held() {
    let mut bench = Bench::backup(config());
    bench.advance(DOWN);
    assert!(bench.drain().contains(&Output::Watch(Watch::Start)));
    bench.hear(HIGHER, 200);
    assert!(bench.drain().contains(&Output::Watch(Watch::Stop)));
}

/// A listed peer is Active for a moment: it advertises once and announces, then hears this router and yields.
#[test]
fn the_announcement_of_a_controller_is_no_evidence_about_a_stranger() {
    let mut bench = active();
    contend(&mut bench, HIGHER, 99, Duration::from_secs(60));
    assert_eq!(bench.router.state(), StateName::Active);
    bench.hear(LOWER, 99);
    bench.announced(VIP);
    bench.advance(ms(90));
    bench.hear(HIGHER, 99);
    assert_eq!(bench.router.state(), StateName::Active, "{:?}", bench.router.reason());
}

/// A split heals: the controller of the other half announces before it is heard to advertise.
#[test]
fn an_announcement_is_no_evidence_about_a_stranger_if_a_controller_advertises_soon() {
    let mut bench = active();
    contend(&mut bench, HIGHER, 99, Duration::from_secs(10));
    bench.announced(VIP);
    bench.hear(HIGHER, 99);
    assert_eq!(bench.router.state(), StateName::Active, "a controller may yet advertise");
    bench.advance(INTERVAL);
    bench.hear(LOWER, 99);
    contend(&mut bench, HIGHER, 99, Duration::from_secs(10));
    assert_eq!(bench.router.state(), StateName::Active, "{:?}", bench.router.reason());
}

#[test]
fn a_long_interval_of_an_unknown_router_does_not_hide_announcements_elsewhere() {
    let mut bench = Bench::active(config());
    bench.advance(Duration::from_secs(4));
    let interval = AdvertInterval::new(Version::V3, ms(40_950)).unwrap();
    let message = Advertisement { interval, ..bench.message(60) };
    bench.receive(HIGHER, &message).unwrap();
    bench.drain();
    let is_warning = |output: &Output| matches!(output, Output::Warning(Warning::AnnouncedElsewhere { .. }));
    let mut warnings = 0;
    for _ in 0..600 {
        bench.advance(Duration::from_secs(1));
        bench.announced(VIP);
        warnings += bench.drain().into_iter().filter(is_warning).count();
    }
    assert!(warnings > 585, "{warnings}");
}

/// The router's last advertisement as Active comes after the first of the router that outranks it.
#[test]
fn a_router_that_was_outranked_once_is_followed_when_it_takes_over_later() {
    let mut bench = Bench::backup(RouterConfig { peers: vec![], ..config() });
    bench.hear(HIGHER, 200);
    bench.hear(LOWER, 60);
    bench.advance(ms(90));
    bench.hear(HIGHER, 200);
    bench.router.handle_command(bench.now, Command::NotServing);
    bench.advance(ms(90));
    for _ in 0..20 {
        bench.hear(LOWER, 60);
        bench.advance(ms(90));
    }
    assert_eq!(bench.router.active_source(), Some(LOWER.into()));
    let until = bench.now + Duration::from_secs(100);
    bench.router.handle_command(bench.now, Command::Serving { until });
    bench.hear(LOWER, 60);
    assert_eq!(bench.router.active_source(), Some(LOWER.into()));
    bench.advance(ms(300));
    bench.hear(LOWER, 60);
    bench.advance(ms(300));
    assert_eq!(bench.router.state(), StateName::Backup, "{:?}", bench.router.reason());
}

#[test]
fn the_last_advertisement_of_an_outranked_router_does_not_shorten_the_interval_of_its_successor() {
    let mut bench = Bench::backup(RouterConfig { preempt: Preempt::Always, ..config() });
    let with = |bench: &Bench, priority, centiseconds| Advertisement {
        interval: AdvertInterval::from_centiseconds(centiseconds).unwrap(),
        ..bench.message(priority)
    };
    let (short, long) = (with(&bench, 150, 1), with(&bench, 200, 100));
    bench.receive(LOWER, &short).unwrap();
    bench.receive(HIGHER, &long).unwrap();
    bench.receive(LOWER, &short).unwrap();
    assert_eq!(bench.router.active_source(), Some(HIGHER.into()));
    assert!(bench.left(TimerName::Down).unwrap() > Duration::from_secs(3));
    // The successor is gone, and its predecessor is Active again.
    bench.advance(Duration::from_secs(1));
    bench.receive(LOWER, &short).unwrap();
    assert_eq!(bench.router.active_source(), Some(LOWER.into()));
}

/// This router and 11 are known, and 13 is Active: a controller that is not listed.
fn behind_a_stranger() -> Bench {
    let mut bench = Bench::backup(RouterConfig { peers: vec![], ..config() });
    bench.know(&[OWN, LOWER]);
    bench.hear(HIGHER, 100);
    bench.router.handle_command(bench.now, Command::NotServing);
    bench
}

#[test]
fn a_degraded_stranger_is_followed_by_a_backup_that_followed_its_full_priority() {
    let mut bench = behind_a_stranger();
    for _ in 0..20 {
        bench.advance(INTERVAL);
        bench.hear(HIGHER, 30);
        assert_eq!(bench.router.active_source(), Some(HIGHER.into()));
    }
    assert_eq!(bench.router.state(), StateName::Backup);
    bench.advance(INTERVAL / 2);
    bench.hear(LOWER, 100);
    bench.hear(HIGHER, 30);
    assert_eq!(bench.router.active_source(), Some(LOWER.into()), "it is not the Active any more");
}

#[test]
fn a_resignation_of_a_stranger_counts_for_a_backup_that_follows_it() {
    let mut bench = behind_a_stranger();
    bench.hear(HIGHER, 0);
    assert!(bench.left(TimerName::Down).unwrap() < INTERVAL + ms(200), "{:?}", bench.left(TimerName::Down));
    assert_eq!(bench.router.counters().resignations_received, 1);
}

#[test]
fn an_unknown_router_of_lower_priority_is_no_successor_until_it_announces() {
    let mut bench = Bench::active(RouterConfig { peers: vec![], ..config() });
    bench.router.handle_command(bench.now, Command::Resign);
    bench.hear(HIGHER, 99);
    bench.advance(DOWN - ms(1));
    assert_eq!(bench.router.state(), StateName::Resigning, "it waits for a successor");
    bench.announced(VIP);
    assert_eq!(bench.router.reason(), Reason::SuccessorAnnounced);
    for (source, priority) in [(HIGHER, 100), (LOWER, 99)] {
        let mut bench = Bench::active(config());
        bench.router.handle_command(bench.now, Command::Resign);
        bench.hear(source, priority);
        bench.advance(ms(100));
        assert_eq!(bench.router.reason(), Reason::SuccessorAdvertised, "{source} {priority}");
    }
}
