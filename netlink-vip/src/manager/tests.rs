//! The manager against a fake kernel: what happens between two instructions, and a random life.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use proptest::prelude::*;

use super::fake_kernel::{Bench, ETH0, KernelCall, ONE, UP, config};
use crate::event::{KeeperEvent, Refusal, Removal, ResyncCause, Warning};
use crate::group::Registered;
use crate::lease::{Claim, LeaseState};
use crate::listener::Notification;
use crate::plan::Step;
use crate::types::{InterfaceSelector, Release};
use crate::wire::decode::{DecodeError, NetEvent, ObservedRoute};

const MS: Duration = Duration::from_millis(1);
const VIPS: [&str; 2] = ["10.0.0.100/24", "fd00::100/64"];

fn v4() -> IpAddr {
    [10, 0, 0, 100].into()
}

fn v6() -> IpAddr {
    "fd00::100".parse().unwrap()
}

fn installed(vips: &[&str]) -> Bench {
    let mut bench = Bench::new(vips);
    bench.claim();
    bench.run_once();
    assert!(matches!(bench.take_events()[..], [KeeperEvent::Installed { id: ONE, .. }]));
    bench.take_calls();
    bench
}

#[test]
fn a_stop_just_before_a_refresh_is_noticed_just_after_it() {
    let mut bench = installed(&VIPS);
    bench.pass(1_000 * MS);
    bench.world.borrow_mut().stop_before_write = Some(5_000 * MS);
    bench.claim();
    let world = bench.world.borrow();
    assert!(!world.has(v4()) && !world.has(v6()), "the refresh re-created an address; it did not stay");
    let KernelCall::Step(Step::PutAddress { .. }) = world.calls[0] else { panic!("{:?}", world.calls) };
    assert!(
        matches!(world.calls[1], KernelCall::Step(Step::DeleteAddress { .. })),
        "at once: {:?}",
        world.calls
    );
    drop(world);
    let lost = KeeperEvent::Removed { id: ONE, reason: Removal::LeaseLost };
    assert_eq!(bench.take_events(), [lost, KeeperEvent::LeaseLost { id: ONE }]);
    bench.claim();
    assert!(bench.world.borrow().has(v4()), "the next claim knows");
}

#[test]
fn a_stop_during_the_first_install_is_noticed_too() {
    let mut bench = Bench::new(&VIPS[..1]);
    bench.world.borrow_mut().stop_before_write = Some(1_800 * MS);
    bench.claim();
    assert!(!bench.world.borrow().has(v4()));
    assert_eq!(bench.take_events(), [KeeperEvent::LeaseLost { id: ONE }]);
}

#[test]
fn a_slow_kernel_does_not_end_the_lease_of_an_active_that_keeps_claiming() {
    let mut bench = Bench::new(&VIPS[..1]);
    let start = bench.world.borrow().now;
    bench.validity.extend(ONE, start + 5_000 * MS);
    // The election advertises every 10 ms: each claim is short, but the last word counts.
    bench.world.borrow_mut().stop_before_write = Some(1_000 * MS);
    bench.claim_of(Claim { issued: start, valid_until: start + 32 * MS });
    assert!(matches!(bench.take_events()[..], [KeeperEvent::Installed { id: ONE, .. }]));
    bench.pass(400 * MS);
    bench.world.borrow_mut().stop_before_write = Some(300 * MS);
    let issued = bench.world.borrow().now - 100 * MS;
    bench.claim_of(Claim { issued, valid_until: issued + 32 * MS });
    assert_eq!(bench.take_events(), [], "refreshed, although the claim came late as well");
    assert!(bench.world.borrow().has(v4()));

    bench.validity.withdraw(ONE);
    bench.pass(500 * MS);
    let issued = bench.world.borrow().now;
    bench.world.borrow_mut().stop_before_write = Some(100 * MS);
    bench.claim_of(Claim { issued, valid_until: issued + 32 * MS });
    let lost = KeeperEvent::Removed { id: ONE, reason: Removal::LeaseLost };
    assert_eq!(bench.take_events(), [lost, KeeperEvent::LeaseLost { id: ONE }]);
}

#[test]
fn a_short_stop_is_no_reason_to_give_up() {
    let mut bench = installed(&VIPS);
    bench.pass(1_000 * MS);
    bench.world.borrow_mut().stop_before_write = Some(700 * MS);
    bench.claim();
    assert!(bench.world.borrow().has(v4()));
    assert_eq!(bench.take_events(), []);
}

#[test]
fn the_lease_counts_from_before_the_write() {
    let mut bench = installed(&VIPS[..1]);
    bench.pass(500 * MS);
    bench.world.borrow_mut().stop_before_write = Some(1_000 * MS);
    bench.claim();
    // The write came 1 s after it was begun. What counts is the beginning: nothing is known of when it took effect.
    bench.pass(799 * MS);
    assert_eq!(bench.take_events(), []);
    bench.pass(2 * MS);
    assert_eq!(bench.take_events(), [KeeperEvent::Removed { id: ONE, reason: Removal::Lapsed }]);
}

#[test]
fn sessions_of_addresses_that_stay_on_the_host_are_left_alone() {
    let mut bench = installed(&VIPS);
    let lasting = crate::VipGroupConfig { lasting: [v4()].into(), ..config(&VIPS) };
    bench.manager.update(Registered { config: lasting, labels: [].into() });
    bench.run_once();
    bench.take_calls();
    for ip in [v4(), v6()] {
        bench.world.borrow_mut().connect(ip, 1);
    }
    bench.manager.release(ONE, Release::Planned);
    bench.run_once();
    let ended = bench.take_calls().into_iter().filter(|deed| !matches!(deed, KernelCall::Step(_)));
    assert_eq!(ended.collect::<Vec<_>>(), [KernelCall::Reset(v6())]);
}

#[test]
fn a_route_that_two_groups_need_goes_with_the_second() {
    let mut bench = Bench::new(&["192.0.2.100/24"]);
    let two = crate::GroupId(2);
    let other = crate::VipGroupConfig { id: two, ..config(&["192.0.2.101/24"]) };
    bench.manager.add(Registered { config: other, labels: [].into() });
    bench.run_once();
    bench.claim();
    let issued = bench.world.borrow().now;
    bench.manager.claim(two, &Claim { issued, valid_until: issued + 1_800 * MS });
    bench.run_once();
    let changes = |bench: &Bench| {
        let calls = bench.take_calls();
        let route = |deed: &KernelCall| {
            matches!(deed, KernelCall::Step(Step::PutRoute { .. } | Step::DeleteRoute { .. }))
        };
        calls.into_iter().filter(route).count()
    };
    assert_eq!(changes(&bench), 1, "one route for both");
    bench.manager.release(ONE, Release::Lost);
    bench.run_once();
    assert_eq!((changes(&bench), bench.world.borrow().routes.len()), (0, 1));
    bench.manager.release(two, Release::Lost);
    bench.run_once();
    assert_eq!((changes(&bench), bench.world.borrow().routes.len()), (1, 0));
}

#[test]
fn a_claim_older_than_a_release_does_not_undo_it() {
    let mut bench = installed(&VIPS[..1]);
    let issued = bench.world.borrow().now;
    bench.pass(10 * MS);
    bench.manager.release(ONE, Release::Lost);
    bench.claim_of(Claim { issued, valid_until: issued + 1_800 * MS });
    assert!(!bench.world.borrow().has(v4()));
    bench.claim();
    assert!(bench.world.borrow().has(v4()));
}

#[test]
fn a_claim_older_than_the_missing_report_does_not_restore_the_address() {
    let mut bench = installed(&VIPS);
    bench.pass(500 * MS);
    let issued = bench.world.borrow().now;
    bench.pass(10 * MS);
    bench.world.borrow_mut().remove(v4());
    bench.run_once();
    assert_eq!(bench.take_events(), [KeeperEvent::Missing { id: ONE, ip: v4() }]);
    bench.claim_of(Claim { issued, valid_until: issued + 1_800 * MS });
    assert!(!bench.world.borrow().has(v4()));
    bench.claim();
    assert!(bench.world.borrow().has(v4()));
    assert!(matches!(bench.take_events()[..], [KeeperEvent::Installed { .. }]));
}

#[test]
fn an_expiry_while_the_keeper_slept_is_not_missing() {
    let mut bench = installed(&VIPS);
    bench.world.borrow_mut().advance(10_000 * MS);
    bench.run_once();
    assert_eq!(bench.take_events(), [KeeperEvent::Removed { id: ONE, reason: Removal::Expired }]);
    bench.claim();
    assert_eq!(bench.take_events(), [KeeperEvent::LeaseLost { id: ONE }]);
    assert!(!bench.world.borrow().has(v4()));
}

#[test]
fn an_ipv6_address_is_reported_when_it_works_or_after_a_limit() {
    let mut bench = Bench::new(&VIPS);
    let issued = bench.world.borrow().now;
    bench.manager.claim(ONE, &Claim { issued, valid_until: issued + 1_800 * MS });
    let late = bench.world.borrow_mut().events.pop_back().unwrap();
    assert!(matches!(&late, Notification::Event(NetEvent::Address(address)) if address.ip == v6()));
    bench.run_once();
    assert_eq!(bench.take_events(), [], "acknowledged, not working yet");
    bench.pass(30 * MS);
    bench.manager.handle_notification(late);
    bench.run_once();
    assert_eq!(bench.take_events(), [KeeperEvent::Installed { id: ONE, took: 30 * MS }]);

    bench.manager.release(ONE, Release::Lost);
    bench.run_once();
    bench.take_events();
    let issued = bench.world.borrow().now;
    bench.manager.claim(ONE, &Claim { issued, valid_until: issued + 1_800 * MS });
    bench.world.borrow_mut().events.clear();
    bench.pass(200 * MS);
    assert_eq!(bench.take_events(), [KeeperEvent::Installed { id: ONE, took: 100 * MS }]);
}

#[test]
fn a_refusal_is_reported_once_and_retried() {
    let mut bench = Bench::new(&VIPS[..1]);
    let mut puts = 0;
    for _ in 0..40 {
        bench.world.borrow_mut().refusals.extend([Errno::ENOBUFS]);
        bench.claim();
        puts += bench.take_calls().len();
        bench.world.borrow_mut().refusals.clear();
        bench.pass(50 * MS);
    }
    let refused = bench.take_events();
    assert!(
        matches!(refused[..], [KeeperEvent::Refused { ip, reason: Refusal::Kernel(_), .. }] if ip == v4()),
        "{refused:?}"
    );
    assert!((3..=5).contains(&puts), "every half second: {puts}");
    bench.pass(500 * MS);
    bench.claim();
    bench.run_once();
    assert!(matches!(bench.take_events()[..], [KeeperEvent::Installed { .. }]));
    assert!(bench.manager.status(false).groups[0].addresses[0].state == crate::AddressState::Present);
}

#[test]
fn a_failed_read_is_reported_once_and_retried() {
    let mut bench = installed(&VIPS);
    bench.world.borrow_mut().blind = 3;
    bench.manager.handle_notification(Notification::Overrun);
    bench.pass(1_000 * MS);
    let events = bench.take_events();
    assert!(
        matches!(
            events[..],
            [
                KeeperEvent::Warning { warning: Warning::Unobserved(_), .. },
                KeeperEvent::Resynced { cause: ResyncCause::Retry },
            ]
        ),
        "{events:?}"
    );
}

#[test]
fn a_release_works_when_every_read_fails() {
    let mut bench = installed(&VIPS);
    bench.world.borrow_mut().blind = 1;
    bench.manager.release(ONE, Release::Lost);
    assert!(!bench.world.borrow().has(v4()) && !bench.world.borrow().has(v6()));
    assert!(bench.world.borrow().has([10, 0, 0, 1].into()));
}

#[test]
fn floods_of_unreadable_events_do_not_become_floods_of_resyncs() {
    let mut bench = installed(&VIPS);
    for _ in 0..300 {
        bench.manager.handle_notification(Notification::Unreadable(DecodeError::NoAddress { kind: 20 }));
        bench.manager.handle_notification(Notification::Overrun);
        bench.pass(MS);
    }
    let resyncs = bench.manager.status(false).counters.resyncs;
    assert!((3..=5).contains(&resyncs), "{resyncs}");
}

#[test]
fn a_lost_event_is_found_by_the_resync() {
    let mut bench = installed(&VIPS);
    bench.pass(200 * MS);
    bench.world.borrow_mut().remove(v4());
    bench.world.borrow_mut().events.clear();
    bench.pass(200 * MS);
    assert_eq!(bench.take_events(), []);
    bench.manager.handle_notification(Notification::Overrun);
    bench.run_once();
    let cause = ResyncCause::Overrun;
    assert_eq!(
        bench.take_events(),
        [KeeperEvent::Missing { id: ONE, ip: v4() }, KeeperEvent::Resynced { cause }]
    );
}

#[test]
fn a_default_route_that_leads_elsewhere_is_followed_after_a_second() {
    let mut bench = installed(&VIPS[..1]);
    let route = |index, metric| ObservedRoute {
        destination: crate::types::Prefix::new([0, 0, 0, 0].into(), 0),
        table: 254,
        protocol: 3,
        kind: 1,
        metric,
        interfaces: vec![index],
    };
    let mut other = bench.world.borrow().links[0].clone();
    (other.index, other.name) = (9, Some("eth1".into()));
    bench.world.borrow_mut().routes = vec![route(ETH0, 100)];
    bench.manager.handle_notification(Notification::Event(NetEvent::Link(other)));
    let by_route = crate::VipGroupConfig { interface: InterfaceSelector::DefaultRoute, ..config(&VIPS[..1]) };
    bench.manager.update(Registered { config: by_route, labels: [].into() });
    bench.pass(100 * MS);
    bench.claim();
    bench.take_events();

    bench.world.borrow_mut().routes = vec![route(9, 50), route(ETH0, 100)];
    bench.manager.handle_notification(Notification::Event(NetEvent::Route(route(9, 50))));
    bench.pass(900 * MS);
    assert!(bench.world.borrow().has(v4()));
    bench.pass(200 * MS);
    assert!(!bench.world.borrow().has(v4()));
    let events = bench.take_events();
    assert!(
        matches!(&events[..], [
        KeeperEvent::Interface { state: Some(state), .. },
        KeeperEvent::Removed { reason: Removal::InterfaceGone, .. },
    ] if state.name == "eth1"),
        "{events:?}"
    );
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Disturbance {
    Claim { valid_ms: u64, stopped_ms: Option<u64> },
    OldClaim { age_ms: u64 },
    Release(bool),
    Pass(u64),
    Sleep(u64),
    Remove(bool),
    Foreign(bool),
    Link(bool),
    Overrun,
    Blind,
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    let stopped = prop::option::weighted(0.2, 1_u64..4_000);
    prop_oneof![
        8 => (1_u64..2_500, stopped).prop_map(|(valid_ms, stopped_ms)| Disturbance::Claim { valid_ms, stopped_ms }),
        2 => (1_u64..2_500).prop_map(|age_ms| Disturbance::OldClaim { age_ms }),
        1 => any::<bool>().prop_map(Disturbance::Release),
        8 => (1_u64..1_200).prop_map(Disturbance::Pass),
        1 => (1_u64..4_000).prop_map(Disturbance::Sleep),
        2 => any::<bool>().prop_map(Disturbance::Remove),
        1 => any::<bool>().prop_map(Disturbance::Foreign),
        1 => any::<bool>().prop_map(Disturbance::Link),
        1 => Just(Disturbance::Overrun),
        1 => Just(Disturbance::Blind),
    ]
}

fn happen(bench: &mut Bench, what: &Disturbance) {
    let vip = |first: bool| if first { v4() } else { v6() };
    let now = bench.world.borrow().now;
    match *what {
        Disturbance::Claim { valid_ms, stopped_ms } => {
            bench.world.borrow_mut().stop_before_write = stopped_ms.map(Duration::from_millis);
            bench.claim_of(Claim { issued: now, valid_until: now + Duration::from_millis(valid_ms) });
            bench.world.borrow_mut().stop_before_write = None;
        }
        Disturbance::OldClaim { age_ms } => {
            let issued = now - Duration::from_millis(age_ms);
            bench.claim_of(Claim { issued, valid_until: issued + 1_800 * MS });
        }
        Disturbance::Release(planned) => {
            bench.manager.release(ONE, if planned { Release::Planned } else { Release::Lost });
        }
        Disturbance::Pass(ms) => bench.pass(Duration::from_millis(ms)),
        Disturbance::Sleep(ms) => bench.world.borrow_mut().advance(Duration::from_millis(ms)),
        Disturbance::Remove(first) => {
            bench.world.borrow_mut().remove(vip(first));
        }
        Disturbance::Foreign(first) => bench.world.borrow_mut().add(vip(first), 24),
        Disturbance::Link(up) => bench.world.borrow_mut().set_link(if up { UP } else { 0x1002 }),
        Disturbance::Overrun => {
            bench.world.borrow_mut().events.clear();
            bench.manager.handle_notification(Notification::Overrun);
        }
        Disturbance::Blind => bench.world.borrow_mut().blind = 1,
    }
    bench.run_once();
}

/// Invariants after each iteration of the keeper in which its reads succeeded.
fn check(bench: &Bench, what: &Disturbance) {
    let world = bench.world.borrow();
    let group = &bench.manager.groups[&ONE];
    let held = matches!(group.lease.state, LeaseState::Held(_));
    for (address, expires) in &world.addresses {
        let ours = address.protocol == Some(crate::wire::PROTOCOL);
        assert_eq!(
            ours,
            expires.is_some(),
            "whatever we write is a lease, whatever is not ours has none: {address:?}"
        );
        assert!(!ours || held || world.blind > 0, "{address:?} is here although no group holds it");
        assert!(!ours || world.links[0].flags == UP || world.blind > 0, "{address:?} on a link that is down");
    }
    assert!(world.has([10, 0, 0, 1].into()), "the node's own address");
    let wrote = world.calls.iter().any(|deed| matches!(deed, KernelCall::Step(step) if step.needs_claim()));
    let claimed = match what {
        Disturbance::Claim { .. } => true,
        Disturbance::OldClaim { age_ms } => *age_ms < 1_800,
        _ => false,
    };
    assert!(claimed || !wrote, "written without a valid claim: {:?}", world.calls);
    if let Some(held) = group.lease.held() {
        assert!(world.now < held.since + group.config.lease.nearly_over(), "held beyond its time");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn no_address_outlives_its_lease_and_nothing_foreign_changes(
        happenings in prop::collection::vec(disturbance(), 1..40),
    ) {
        let mut bench = Bench::new(&VIPS);
        for what in &happenings {
            let foreign_before: Vec<_> = foreign(&bench);
            happen(&mut bench, what);
            check(&bench, what);
            let removed_by_us = foreign_before.into_iter().any(|address| {
                let deleted = |deed: &KernelCall| matches!(deed, KernelCall::Step(Step::DeleteAddress { ip, prefix_len, .. })
                    if (*ip, *prefix_len) == address);
                bench.world.borrow().calls.iter().any(deleted)
            });
            prop_assert!(!removed_by_us);
            bench.take_calls();
        }

        // Once the disturbances are over, claims bring everything back that is not foreign.
        bench.world.borrow_mut().blind = 0;
        for vip in [v4(), v6()] {
            while foreign(&bench).iter().any(|(ip, _)| *ip == vip) {
                bench.world.borrow_mut().remove(vip);
            }
        }
        bench.world.borrow_mut().set_link(UP);
        for _ in 0..4 {
            bench.pass(600 * MS);
            bench.claim();
        }
        prop_assert!(bench.world.borrow().has(v4()) && bench.world.borrow().has(v6()));
        let events = bench.take_events();
        let last = events.iter().rev().find(|event| matches!(event, KeeperEvent::Installed { .. } | KeeperEvent::Removed { .. }));
        prop_assert!(matches!(last, Some(KeeperEvent::Installed { .. })), "{:?}", events);
    }
}

/// The VIPs that another program has placed.
fn foreign(bench: &Bench) -> Vec<(IpAddr, u8)> {
    let world = bench.world.borrow();
    let foreign = world.addresses.iter().filter(|(address, _)| address.protocol.is_none());
    foreign
        .map(|(address, _)| (address.ip, address.prefix_len))
        .filter(|(ip, _)| [v4(), v6()].contains(ip))
        .collect()
}
