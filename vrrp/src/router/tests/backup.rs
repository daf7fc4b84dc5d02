//! The rows of Backup of RFC 9568 §6.4.2, and the additions of this crate.

use super::*;
use crate::router::output::Reason;

#[test]
fn backup_advertises_before_it_claims_when_the_down_timer_fires() {
    let mut bench = Bench::backup(config());
    bench.advance(DOWN - Duration::from_nanos(1));
    assert_eq!(bench.router.state(), StateName::Backup);
    bench.advance(Duration::from_nanos(1));
    assert_eq!(bench.said(), ["backup -> active", "advertise 100 IPv4", "claim 360.9375ms", "watch Start"]);
    assert_eq!(bench.router.reason(), Reason::ActiveSilent { source: None });
    assert_eq!(bench.left(TimerName::Advertise), Some(INTERVAL));
}

#[test]
fn backup_sets_the_timer_to_skew_when_the_active_resigns() {
    let mut bench = Bench::backup(config());
    bench.hear(HIGHER, 100);
    bench.hear(HIGHER, 0);
    assert_eq!(bench.left(TimerName::Down), Some(SKEW));
    bench.advance(SKEW);
    let reason = Reason::ActiveResigned { source: Some(HIGHER.into()) };
    assert_eq!((bench.router.state(), bench.router.reason()), (StateName::Active, reason));
}

#[test]
fn backup_does_not_wait_anew_with_each_copy_of_a_resignation() {
    let mut bench = Bench::backup(config());
    bench.hear(HIGHER, 100);
    bench.hear(HIGHER, 0);
    bench.advance(ms(50));
    bench.hear(HIGHER, 0);
    assert_eq!(bench.left(TimerName::Down), Some(SKEW - ms(50)));
}

#[test]
fn backup_ignores_the_resignation_of_a_predecessor() {
    let mut bench = Bench::backup(config());
    bench.hear(LOWER, 100);
    bench.hear(HIGHER, 100);
    bench.hear(LOWER, 0);
    assert_eq!(bench.left(TimerName::Down), Some(DOWN));
    assert_eq!(bench.router.counters().resignations_received, 1);
}

#[test]
fn backup_learns_the_interval_and_rearms_for_priorities_at_least_its_own() {
    for priority in [100, 101, 254] {
        let mut bench = Bench::backup(config());
        bench.advance(ms(200));
        let message = Advertisement {
            interval: AdvertInterval::new(Version::V3, ms(500)).unwrap(),
            ..bench.message(priority)
        };
        bench.receive(LOWER, &message).unwrap();
        let skew = ms(500) * 156 / 256;
        let at_least = 3 * ms(500) + skew;
        assert_eq!(bench.router.down_interval(), at_least, "the Active's interval counts");
        assert!(bench.left(TimerName::Down).unwrap() >= at_least);
        assert_eq!(bench.router.active_source(), Some(LOWER.into()));
    }
}

#[test]
fn backup_rearms_for_lower_priorities_unless_it_always_preempts() {
    for preempt in [Preempt::Never, Preempt::Degraded] {
        let mut bench = Bench::backup(RouterConfig { preempt, ..config() });
        bench.advance(ms(200));
        bench.hear(LOWER, 99);
        assert!(bench.left(TimerName::Down).unwrap() >= DOWN, "{preempt:?}");
    }
    let mut bench = Bench::backup(RouterConfig { preempt: Preempt::Always, ..config() });
    bench.advance(ms(200));
    bench.hear(LOWER, 99);
    assert_eq!(bench.left(TimerName::Down), Some(DOWN - ms(200)), "discarded, the timer runs on");
    bench.advance(DOWN);
    assert_eq!((bench.router.state(), bench.router.reason()), (StateName::Active, Reason::LowerPriority));
}

/// Two equal peers, so that the lower one waits for the higher: the offset is 12.5 ms at this interval.
fn second_of_two() -> RouterConfig {
    RouterConfig { peers: vec![HIGHER.into()], ..config() }
}

#[test]
fn an_offset_does_not_cost_a_router_its_rank() {
    for heard in [vec![(LOWER, 99)], vec![(LOWER, 99), (HIGHER, 98)]] {
        let mut bench = Bench::backup(second_of_two());
        bench.advance(DOWN + ms(1));
        assert_eq!(bench.left(TimerName::Down), Some(Duration::from_micros(11_500)));
        for (source, priority) in heard {
            bench.hear(source, priority);
            bench.sleep(Duration::from_micros(100));
        }
        bench.router.handle_timeout(bench.now);
        assert_eq!(bench.router.state(), StateName::Active, "by the RFC it would have been Active by now");
    }
}

#[test]
fn overtake_correction_needs_lower_priority_and_a_timely_advert() {
    let cases = [
        (DOWN + ms(1), LOWER, vec![100], "an equal, which went first for good reason"),
        (DOWN - ms(1), LOWER, vec![99], "before Down no other router may take over"),
        (DOWN + ms(20), LOWER, vec![99], "late: the advertisement was in the queue"),
        (DOWN + ms(1), LOWER, vec![99, 100], "an advertisement of a better router was in the queue, too"),
    ];
    for (time, source, priorities, why) in cases {
        let mut bench = Bench::backup(second_of_two());
        bench.sleep(time);
        priorities.into_iter().for_each(|priority| bench.hear(source, priority));
        bench.router.handle_timeout(bench.now);
        assert_eq!(bench.router.state(), StateName::Backup, "{why}");
    }
    let mut bench = Bench::backup(second_of_two());
    bench.hear(LOWER, 100);
    bench.advance(DOWN + ms(1));
    bench.hear(LOWER, 99);
    bench.router.handle_timeout(bench.now);
    assert_eq!(
        bench.router.state(),
        StateName::Backup,
        "the Active lost some packets, but did not take over just now"
    );
}

#[test]
fn a_backup_that_overslept_listens_whatever_event_wakes_it() {
    type Event = fn(&mut Bench);
    let events: [Event; 3] = [
        |_| {},
        |bench| bench.router.handle_command(bench.now, Command::NotServing),
        |bench| bench.router.handle_command(bench.now, Command::Reconfigure(Box::new(second_of_two()))),
    ];
    for event in events {
        let mut bench = Bench::backup(config());
        bench.sleep(DOWN + INTERVAL);
        event(&mut bench);
        bench.router.handle_timeout(bench.now);
        assert_eq!(bench.router.state(), StateName::Backup);
        assert!(bench.left(TimerName::Down).unwrap() >= INTERVAL);
        assert_eq!(bench.router.counters().overslept, 1);
        bench.advance(INTERVAL * 3);
        assert_eq!((bench.router.state(), bench.router.reason()), (StateName::Active, Reason::NoOtherActive));
    }
}

#[test]
fn each_oversleep_is_waited_out_but_not_for_ever() {
    let mut bench = Bench::backup(config());
    bench.sleep(DOWN + INTERVAL);
    bench.router.handle_timeout(bench.now);
    for times in 1..5 {
        assert_eq!((bench.router.state(), bench.router.counters().overslept), (StateName::Backup, times));
        bench.sleep(INTERVAL * 4);
        bench.router.handle_timeout(bench.now);
    }
    assert_eq!(bench.router.state(), StateName::Backup);
    bench.sleep(INTERVAL * 4);
    bench.router.handle_timeout(bench.now);
    assert_eq!((bench.router.state(), bench.router.reason()), (StateName::Active, Reason::NoOtherActive));
}

#[test]
fn version_2_skews_by_seconds_and_keeps_the_longer_interval() {
    let second = AdvertInterval::from_seconds(2).unwrap();
    let mut bench = Bench::backup(RouterConfig { version: Version::V2, advert_interval: second, ..config() });
    let skew = Duration::from_secs(1) * 156 / 256;
    assert_eq!(bench.left(TimerName::Down), Some(Duration::from_secs(6) + skew));
    for (theirs, counts) in [(1, 2), (2, 2), (5, 5)] {
        let interval = AdvertInterval::from_seconds(theirs).unwrap();
        let message = Advertisement { interval, ..bench.message(100) };
        bench.receive(HIGHER, &message).unwrap();
        assert_eq!(bench.router.down_interval(), Duration::from_secs(3 * counts) + skew, "{theirs} s");
    }
    assert_eq!(bench.router.counters().interval_mismatches, 2);
}
