//! The serving lease, its hysteresis, and taking over from a degraded Active.

use super::*;
use crate::router::output::Reason;

fn serve(bench: &mut Bench, until: Duration) {
    bench.router.handle_command(bench.now, Command::Serving { until: bench.now + until });
}

fn fail(bench: &mut Bench) {
    bench.router.handle_command(bench.now, Command::NotServing);
}

#[test]
fn an_active_that_does_not_serve_advertises_a_fifth_and_stays() {
    let mut bench = Bench::active(config());
    fail(&mut bench);
    bench.advance(Duration::from_secs(60));
    let said = bench.said();
    assert!(!said.contains(&"advertise 100 IPv4".to_owned()));
    assert!(said.contains(&"advertise 20 IPv4".to_owned()));
    assert_eq!(bench.router.state(), StateName::Active);
}

#[test]
fn evidence_expires_and_is_renewed() {
    let mut bench = Bench::backup(config());
    fail(&mut bench);
    serve(&mut bench, ms(1000));
    for _ in 0..10 {
        bench.advance(ms(500));
        serve(&mut bench, ms(1000));
    }
    assert!(bench.router.is_serving());
    bench.advance(ms(999));
    assert!(bench.router.is_serving());
    bench.advance(ms(1));
    assert!(!bench.router.is_serving());
    serve(&mut bench, Duration::ZERO);
    bench.advance(ms(1000));
    assert!(!bench.router.is_serving(), "evidence that is over already is none");
}

#[test]
fn recovery_counts_after_a_while_and_is_advertised_at_once() {
    let mut bench = Bench::active(config());
    fail(&mut bench);
    bench.advance(ms(1010));
    serve(&mut bench, Duration::from_secs(100));
    bench.advance(ms(399));
    bench.drain();
    assert_eq!(bench.router.priority(), WirePriority(20));
    bench.advance(ms(1));
    assert_eq!(bench.router.priority(), WirePriority(100));
    bench.advance(ms(25));
    let said = bench.said();
    assert!(said.contains(&"advertise 100 IPv4".to_owned()), "{said:?}");
}

#[test]
fn the_first_evidence_counts_at_once() {
    let now = Instant::now();
    let mut router = VirtualRouter::new(config(), now);
    assert_eq!(router.priority(), WirePriority(20));
    router.handle_command(now, Command::NotServing);
    router.handle_command(now, Command::Serving { until: now + ms(1) });
    assert_eq!((router.priority(), router.is_serving()), (WirePriority(100), true));
}

#[test]
fn a_flapping_check_never_looks_like_recovery() {
    let mut bench = Bench::active(config());
    for _ in 0..100 {
        fail(&mut bench);
        bench.advance(ms(200));
        serve(&mut bench, Duration::from_secs(1));
        bench.advance(ms(200));
        assert_eq!(bench.router.priority(), WirePriority(20));
    }
}

#[test]
fn two_degraded_advertisements_and_skew_make_a_takeover() {
    let mut bench = Bench::backup(config());
    bench.hear(LOWER, 100);
    bench.advance(INTERVAL);
    bench.hear(LOWER, 20);
    assert_eq!(bench.left(TimerName::Takeover), None, "once proves nothing");
    bench.hear(LOWER, 20);
    assert_eq!(bench.left(TimerName::Takeover), None, "and a copy neither");
    bench.advance(INTERVAL);
    bench.hear(LOWER, 20);
    assert_eq!(bench.left(TimerName::Takeover), Some(SKEW));
    bench.advance(SKEW);
    let reason = Reason::ActiveDegraded { source: Some(LOWER.into()) };
    assert_eq!((bench.router.state(), bench.router.reason()), (StateName::Active, reason));
}

#[test]
fn recovery_of_the_active_or_loss_of_the_backup_stops_a_takeover() {
    let proven = || {
        let mut bench = Bench::backup(config());
        bench.hear(LOWER, 20);
        bench.advance(INTERVAL);
        bench.hear(LOWER, 20);
        assert!(bench.left(TimerName::Takeover).is_some());
        bench
    };
    let mut bench = proven();
    bench.hear(LOWER, 100);
    assert_eq!(bench.left(TimerName::Takeover), None);
    let mut bench = proven();
    fail(&mut bench);
    assert_eq!(bench.left(TimerName::Takeover), None);
    let mut bench = proven();
    bench.hear(HIGHER, 100);
    assert_eq!(bench.left(TimerName::Takeover), None, "another router was faster");
}

#[test]
fn only_a_backup_that_served_for_a_while_takes_over() {
    let mut bench = Bench::backup(config());
    fail(&mut bench);
    serve(&mut bench, Duration::from_secs(1000));
    for elapsed in 0..20 {
        bench.hear(LOWER, 20);
        assert_eq!(bench.left(TimerName::Takeover), None, "{elapsed}00 ms");
        bench.advance(INTERVAL);
    }
    bench.hear(LOWER, 20);
    bench.advance(INTERVAL);
    bench.hear(LOWER, 20);
    assert!(bench.left(TimerName::Takeover).is_some());
}

#[test]
fn a_router_that_yielded_as_degraded_waits_for_the_hold_time() {
    let mut bench = Bench::active(config());
    fail(&mut bench);
    bench.advance(INTERVAL);
    bench.hear(LOWER, 100);
    assert_eq!(bench.router.state(), StateName::Yielding);
    serve(&mut bench, Duration::from_secs(1000));
    for _ in 0..299 {
        bench.advance(INTERVAL);
        bench.hear(LOWER, 20);
    }
    assert_eq!(bench.router.state(), StateName::Backup);
    assert_eq!(bench.router.priority(), WirePriority(100), "it only waits, it is not worse");
    for _ in 0..5 {
        bench.advance(INTERVAL);
        bench.hear(LOWER, 20);
    }
    assert_eq!(bench.router.state(), StateName::Active);
}

#[test]
fn a_serving_active_stays_against_a_degraded_rival_that_does_not_hear_it() {
    let mut bench = Bench::active(config());
    for _ in 0..100 {
        bench.hear(LOWER, 20);
        bench.advance(ms(90));
    }
    assert_eq!(bench.router.state(), StateName::Active);
    assert!(bench.drain().contains(&Output::Warning(Warning::Contended { source: LOWER.into() })));
}

#[test]
fn equals_that_recover_together_still_differ() {
    // At 100 ms the down timer of a degraded router has passed when it is found to serve.
    let peers: Vec<IpAddr> = vec![LOWER.into(), OWN.into(), HIGHER.into()];
    let now = Instant::now();
    let [low, own, high] = [LOWER, OWN, HIGHER].map(|own| {
        let config = RouterConfig { peers: peers.clone(), priority: Priority::new(200).unwrap(), ..config() };
        let mut router = VirtualRouter::new(config, now);
        router.handle_interface(now, InterfaceEvent::Up { v4: Some(own), v6: None });
        let serving = Command::Serving { until: now + Duration::from_secs(100) };
        for command in [serving.clone(), Command::NotServing, serving] {
            router.handle_command(now, command);
        }
        let (settled, name) = router.poll_timeout().unwrap();
        assert_eq!(name, TimerName::ServingSettled);
        router.handle_timeout(settled);
        (router.state(), router.poll_timeout().unwrap())
    });
    for router in [low, own, high] {
        assert_eq!((router.0, router.1.1), (StateName::Backup, TimerName::Down));
        assert!(router.1.0 > now + ms(400), "the new time of 322 ms is past");
    }
    let turn = INTERVAL / 8;
    assert!(high.1.0 + turn <= own.1.0 && own.1.0 + turn <= low.1.0, "{high:?} {own:?} {low:?}");
}
