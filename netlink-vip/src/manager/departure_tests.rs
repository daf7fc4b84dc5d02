//! Every way of losing an address, with sessions through it.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::fake_kernel::{Bench, ETH0, KernelCall, ONE, UP, config};
use crate::event::{KeeperEvent, Removal, Warning};
use crate::group::Registered;
use crate::plan::Step;
use crate::status::GroupState;
use crate::types::Release;

const MS: Duration = Duration::from_millis(1);
const VIPS: [&str; 2] = ["10.0.0.100/24", "fd00::100/64"];

fn v4() -> IpAddr {
    [10, 0, 0, 100].into()
}

fn v6() -> IpAddr {
    "fd00::100".parse().unwrap()
}

/// A name, and what makes the group lose its addresses.
type Cause = (&'static str, fn(&mut Bench));

/// A held group with so many sessions through each of its addresses.
fn held(vips: &[&str], sessions: usize) -> Bench {
    let mut bench = Bench::new(vips);
    bench.claim();
    bench.run_once();
    bench.take_events();
    for ip in config(vips).ips() {
        bench.world.borrow_mut().connect(ip, sessions);
    }
    bench.take_calls();
    bench
}

fn ended(reset: usize, silent: usize) -> impl Fn(&KeeperEvent) -> bool {
    move |event| matches!(event, KeeperEvent::SessionsEnded { reset: r, silent: s, .. } if (*r, *s) == (reset, silent))
}

fn delete() -> KernelCall {
    KernelCall::Step(Step::DeleteAddress { index: ETH0, ip: v4(), prefix_len: 32 })
}

#[test]
fn sessions_are_reset_before_a_planned_release() {
    let mut bench = held(&VIPS[..1], 2);
    bench.manager.release(ONE, Release::Planned);
    bench.run_once();
    assert_eq!(bench.take_calls(), [KernelCall::Reset(v4()), KernelCall::Reset(v4()), delete()]);
    let events = bench.take_events();
    assert_eq!(events[0], KeeperEvent::Removed { id: ONE, reason: Removal::Released(Release::Planned) });
    assert!(ended(2, 0)(&events[1]), "{events:?}");
    assert_eq!(bench.manager.status(false).counters.sessions_reset, 2);
}

#[test]
fn a_lost_address_goes_at_once_and_its_sessions_after_it() {
    let mut bench = held(&VIPS[..1], 2);
    bench.manager.release(ONE, Release::Lost);
    assert!(!bench.world.borrow().has(v4()), "before anything else is done");
    bench.run_once();
    assert_eq!(bench.take_calls(), [delete(), KernelCall::Close(v4()), KernelCall::Close(v4())]);
    assert!(bench.take_events().iter().any(ended(0, 2)));
}

#[test]
fn every_cause_that_leaves_time_resets_the_sessions_of_both_families() {
    let causes: [Cause; 5] = [
        ("released", |bench| bench.manager.release(ONE, Release::Planned)),
        ("removed", |bench| bench.manager.remove(ONE)),
        ("changed", |bench| {
            let config = config(&["10.0.0.99/24"]);
            bench.manager.update(Registered { config, labels: [].into() });
        }),
        ("lapsed", |bench| bench.world.borrow_mut().advance(1_800 * MS)),
        ("shut down", |bench| bench.manager.shutdown()),
    ];
    for (cause, lose) in causes {
        let mut bench = held(&VIPS, 300);
        lose(&mut bench);
        bench.run_once();
        let calls = bench.take_calls();
        let resets = |ip| calls.iter().filter(|deed| **deed == KernelCall::Reset(ip)).count();
        assert_eq!((resets(v4()), resets(v6())), (300, 300), "{cause}");
        assert!(!bench.world.borrow().has(v4()) && !bench.world.borrow().has(v6()), "{cause}");
        assert!(bench.take_events().iter().any(ended(600, 0)), "{cause}");
    }
}

#[test]
fn nothing_is_reset_over_a_link_that_is_down_or_a_lease_that_is_over() {
    let causes: [Cause; 3] = [
        ("down", |bench| bench.world.borrow_mut().set_link(0x1002)),
        ("expired", |bench| bench.world.borrow_mut().advance(2_100 * MS)),
        ("wrote_too_late", |bench| {
            bench.world.borrow_mut().stop_before_write = Some(5_000 * MS);
            bench.pass(1_000 * MS);
            bench.claim();
        }),
    ];
    for (cause, lose) in causes {
        let mut bench = held(&VIPS[..1], 3);
        lose(&mut bench);
        bench.run_once();
        let resets = bench.take_calls().into_iter().filter(|deed| matches!(deed, KernelCall::Reset(_)));
        assert_eq!(resets.count(), 0, "{cause}");
        assert!(bench.take_events().iter().any(ended(0, 3)), "{cause}");
    }
}

#[test]
fn a_slow_reset_ends_at_its_bound_and_counts_what_it_did() {
    let mut bench = held(&VIPS[..1], 8_000);
    bench.world.borrow_mut().per_session = Duration::from_micros(100);
    let start = bench.world.borrow().now;
    bench.manager.release(ONE, Release::Planned);
    while bench.world.borrow().has(v4()) {
        assert!(bench.manager.advance());
    }
    let took = bench.world.borrow().now - start;
    assert!((500 * MS..530 * MS).contains(&took), "100 ms and 50 µs for each: {took:?}");
    bench.run_once();
    let events = bench.take_events();
    let Some(KeeperEvent::SessionsEnded { reset, silent, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(reset + silent, 8_000);
    assert!((4_900..5_200).contains(reset), "{reset}");
}

#[test]
fn clients_that_connect_during_the_reset_are_reset_as_well() {
    let mut bench = held(&VIPS[..1], 200);
    bench.manager.release(ONE, Release::Planned);
    bench.manager.advance();
    bench.world.borrow_mut().connect(v4(), 5);
    bench.run_once();
    assert!(bench.take_events().iter().any(ended(205, 0)));
}

#[test]
fn clients_that_connect_again_after_each_slice_are_reset_when_the_address_goes() {
    for clients in [100, 200, 1_000] {
        let mut bench = held(&VIPS[..1], clients);
        bench.manager.release(ONE, Release::Planned);
        while bench.world.borrow().has(v4()) {
            assert!(bench.manager.advance());
            let mut world = bench.world.borrow_mut();
            let ended = clients - world.sessions.len();
            if world.has(v4()) {
                world.connect(v4(), ended);
            }
        }
        bench.run_once();
        let events = bench.take_events();
        let Some(KeeperEvent::SessionsEnded { reset, silent, .. }) = events.last() else {
            panic!("{events:?}")
        };
        assert!(*reset >= clients && *silent == 0, "{clients}: {reset} {silent}");
        assert!(bench.world.borrow().sessions.is_empty());
    }
}

#[test]
fn only_sessions_that_came_before_the_address_was_gone_are_closed() {
    let mut bench = held(&VIPS[..1], 200);
    bench.world.borrow_mut().returning = 5;
    bench.manager.release(ONE, Release::Planned);
    while bench.world.borrow().has(v4()) {
        bench.manager.advance();
    }
    bench.world.borrow_mut().connect(v4(), 2);
    bench.run_once();
    assert_eq!(bench.world.borrow().sessions.len(), 2, "these came by another link");
    let events = bench.take_events();
    let Some(KeeperEvent::SessionsEnded { silent, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(*silent, 5);
}

#[test]
fn other_groups_are_refreshed_while_sessions_are_reset() {
    let mut bench = held(&VIPS[..1], 20_000);
    let two = crate::GroupId(2);
    let other = crate::VipGroupConfig { id: two, ..config(&["10.0.0.101/24"]) };
    bench.manager.add(Registered { config: other, labels: [].into() });
    let issued = bench.world.borrow().now;
    let claim = crate::lease::Claim { issued, valid_until: issued + 1_800 * MS };
    bench.run_once();
    bench.manager.release(ONE, Release::Planned);
    bench.manager.advance();
    bench.manager.claim(two, &claim);
    assert!(bench.world.borrow().has([10, 0, 0, 101].into()) && bench.world.borrow().has(v4()));
    assert_eq!(bench.manager.status(false).groups[0].state, GroupState::Departing);
}

#[test]
fn a_claim_during_the_reset_brings_the_address_back_and_keeps_the_rest() {
    let mut bench = held(&VIPS[..1], 500);
    bench.manager.release(ONE, Release::Planned);
    bench.manager.advance();
    bench.world.borrow_mut().advance(MS);
    bench.claim();
    bench.run_once();
    assert!(bench.world.borrow().has(v4()));
    assert_eq!(bench.world.borrow().sessions.len(), 500 - 128);
    let events = bench.take_events();
    assert!(matches!(events[0], KeeperEvent::Removed { .. }) && ended(128, 0)(&events[1]), "{events:?}");
    assert!(matches!(events[2], KeeperEvent::Installed { .. }), "{events:?}");
}

#[test]
fn a_claim_after_a_lapse_does_not_hasten_the_reset() {
    let mut bench = held(&VIPS[..1], 500);
    bench.world.borrow_mut().advance(1_800 * MS);
    bench.manager.handle_timeout();
    bench.manager.advance();
    let issued = bench.world.borrow().now;
    bench.manager.claim(ONE, &crate::lease::Claim { issued, valid_until: issued + 1_800 * MS });
    assert!(bench.world.borrow().has(v4()), "its sessions are being reset");
    bench.run_once();
    assert!(!bench.world.borrow().has(v4()));
    let events = bench.take_events();
    assert!(
        events.contains(&KeeperEvent::LeaseLost { id: ONE }) && events.iter().any(ended(500, 0)),
        "{events:?}"
    );
}

#[test]
fn a_release_during_the_reset_after_a_lapse_leaves_nothing_to_be_lost() {
    let mut bench = held(&VIPS[..1], 500);
    bench.world.borrow_mut().advance(1_800 * MS);
    bench.manager.handle_timeout();
    bench.manager.advance();
    bench.manager.release(ONE, Release::Planned);
    bench.run_once();
    bench.take_events();
    bench.world.borrow_mut().advance(60_000 * MS);
    bench.claim();
    bench.run_once();
    assert!(bench.world.borrow().has(v4()), "{:?}", bench.take_events());
}

#[test]
fn a_group_with_other_addresses_is_released_while_its_former_ones_still_go() {
    let mut bench = held(&VIPS[..1], 500);
    bench.manager.release(ONE, Release::Planned);
    bench.manager.advance();
    bench.manager.update(Registered { config: config(&["10.0.0.99/24"]), labels: [].into() });
    bench.manager.reconcile();
    bench.world.borrow_mut().advance(MS);
    let issued = bench.world.borrow().now;
    bench.manager.claim(ONE, &crate::lease::Claim { issued, valid_until: issued + 1_800 * MS });
    assert!(bench.world.borrow().has([10, 0, 0, 99].into()) && bench.world.borrow().has(v4()));
    bench.manager.release(ONE, Release::Planned);
    bench.run_once();
    assert!(!bench.world.borrow().has([10, 0, 0, 99].into()) && !bench.world.borrow().has(v4()));
}

#[test]
fn sessions_that_come_by_another_link_after_a_complete_reset_are_left_alone() {
    let mut bench = held(&VIPS[..1], 3);
    bench.manager.release(ONE, Release::Planned);
    while bench.world.borrow().has(v4()) {
        bench.manager.advance();
    }
    bench.world.borrow_mut().connect(v4(), 2);
    bench.run_once();
    assert_eq!(bench.world.borrow().sessions.len(), 2);
}

#[test]
fn a_link_that_goes_down_during_the_reset_ends_it() {
    let mut bench = held(&VIPS[..1], 500);
    bench.manager.release(ONE, Release::Planned);
    bench.manager.advance();
    bench.world.borrow_mut().set_link(0x1002);
    bench.run_once();
    assert!(bench.take_events().iter().any(ended(128, 372)));
    bench.world.borrow_mut().set_link(UP);
    bench.run_once();
    bench.claim();
    assert!(bench.world.borrow().has(v4()));
}

#[test]
fn a_second_release_neither_waits_nor_answers_twice() {
    let mut bench = held(&VIPS[..1], 500);
    bench.manager.release(ONE, Release::Planned);
    bench.manager.advance();
    bench.manager.remove(ONE);
    bench.manager.shutdown();
    assert!(bench.world.borrow().has(v4()), "its sessions are being reset");
    bench.run_once();
    let events = bench.take_events();
    let removed = events.iter().filter(|event| matches!(event, KeeperEvent::Removed { .. })).count();
    assert!(removed == 1 && events.iter().any(ended(500, 0)), "{events:?}");

    let mut bench = held(&VIPS[..1], 500);
    bench.manager.release(ONE, Release::Planned);
    bench.manager.advance();
    bench.manager.release(ONE, Release::Lost);
    assert!(!bench.world.borrow().has(v4()), "there is no time any more");
}

#[test]
fn without_sock_destroy_the_owner_of_the_sessions_has_100_ms() {
    let mut bench = held(&VIPS[..1], 4);
    bench.world.borrow_mut().cannot_reset = true;
    bench.manager.release(ONE, Release::Planned);
    bench.run_once();
    bench.pass(99 * MS);
    let events = bench.take_events();
    assert!(
        matches!(&events[..], [
            KeeperEvent::SessionsLeft { ips, .. },
            KeeperEvent::Warning { warning: Warning::Sessions(_), .. },
        ] if *ips == [v4()]),
        "{events:?}"
    );
    assert!(bench.world.borrow().has(v4()));
    bench.pass(2 * MS);
    assert!(!bench.world.borrow().has(v4()));
    assert!(matches!(bench.take_events()[..], [KeeperEvent::Removed { .. }]));

    bench.claim();
    bench.take_events();
    bench.manager.release(ONE, Release::Lost);
    bench.run_once();
    let events = bench.take_events();
    assert!(events.iter().any(|event| matches!(event, KeeperEvent::SessionsLeft { .. })), "{events:?}");
}

#[test]
fn a_dropped_address_goes_after_its_sessions_while_the_others_stay() {
    let mut bench = held(&VIPS, 10);
    bench.manager.update(Registered { config: config(&VIPS[1..]), labels: [].into() });
    assert!(bench.world.borrow().has(v4()));
    bench.claim();
    bench.run_once();
    assert!(!bench.world.borrow().has(v4()) && bench.world.borrow().has(v6()));
    assert_eq!(bench.world.borrow().sessions.len(), 10, "those through the address that stays");
    assert!(bench.take_events().iter().any(ended(10, 0)));
}

#[test]
fn an_address_that_changes_its_group_is_deleted_before_the_other_one_holds_it() {
    let mut bench = held(&VIPS, 300);
    let two = crate::GroupId(2);
    bench.manager.update(Registered { config: config(&VIPS[1..]), labels: [].into() });
    let other = crate::VipGroupConfig { id: two, ..config(&VIPS[..1]) };
    bench.manager.add(Registered { config: other, labels: [].into() });
    bench.manager.reconcile();
    let issued = bench.world.borrow().now;
    bench.manager.claim(two, &crate::lease::Claim { issued, valid_until: issued + 1_800 * MS });
    bench.run_once();
    bench.pass(500 * MS);
    assert!(bench.world.borrow().has(v4()), "the departure of the first group does not take it away");
}

proptest! {
    /// However many sessions there are and however slow the kernel is, the address is gone by the bound and every
    /// session has ended.
    #[test]
    fn a_departure_always_ends(sessions in 0_usize..3_000, micros in 1_u32..2_000, age in 0_u32..1_700) {
        let mut bench = held(&VIPS[..1], sessions);
        bench.world.borrow_mut().advance(MS * age);
        bench.world.borrow_mut().per_session = Duration::from_micros(micros.into());
        let start = bench.world.borrow().now;
        bench.manager.release(ONE, Release::Planned);
        while bench.world.borrow().has(v4()) {
            prop_assert!(bench.manager.advance());
        }
        let slice = Duration::from_micros(u64::from(micros) * 128);
        prop_assert!(bench.world.borrow().now - start <= 1_000 * MS + slice);
        bench.run_once();
        prop_assert!(bench.world.borrow().sessions.is_empty() && !bench.manager.is_departing());
    }
}
