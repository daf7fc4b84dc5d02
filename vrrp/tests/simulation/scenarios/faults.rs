//! One-way cuts, stalls, and addresses that vanish.

use vrrp::Version;
use vrrp::router::{Reason, StateName};

use super::{SEEDS, equals, ms, never_two_holders, peers, secs, settled};
use crate::node::{Stack, config, k0s};
use crate::world::World;

#[test]
fn active_that_cannot_send_yields_after_one_down() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::V4)));
        let active = world.the_active();
        assert_eq!(active, 2, "the highest address: by the tie-break it would never yield");
        (0..2).for_each(|node| world.cut(active, node));
        world.run(secs(4));
        assert_eq!(world.actives().len(), 2, "the old one is not heard");
        world.run(secs(4));
        let successor = world.the_active();
        assert_ne!(successor, active);
        let unheard = world.nodes[active].router.counters().unheard;
        assert_eq!((world.nodes[active].router.state(), unheard), (StateName::Backup, 1));
        world.heal();
        world.run(secs(60));
        assert_eq!(world.the_active(), successor, "and it does not come back after the cut");
    }
}

#[test]
fn degraded_active_that_cannot_receive_does_not_regain_the_addresses() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::V4)));
        let active = world.the_active();
        // It neither hears its peers nor reaches a backend; its announcements still arrive.
        (0..2).for_each(|node| world.cut(node, active));
        world.serve(active, false);
        world.run(secs(5));
        let [successor] =
            world.actives().iter().copied().filter(|node| *node != active).collect::<Vec<_>>()[..]
        else {
            panic!("one successor expected: {:?}", world.actives())
        };
        let sent = world.sent(active).announcements;
        world.run(secs(300));
        assert!(world.actives().contains(&successor), "the one that serves stays");
        assert_eq!(world.sent(active).announcements, sent, "the deaf one calls no clients back");
        assert_eq!(world.clients, [Some(successor); 2]);
        world.heal();
        world.run(secs(2));
        assert_eq!(world.the_active(), successor);
    }
}

#[test]
fn endless_contention_causes_no_advertisement_storm() {
    for interval in [ms(10), ms(100), secs(1)] {
        let mut world = settled(peers(1, 3, &config(Stack::V4, Version::V3, 200, interval)));
        let active = world.the_active();
        (0..2).for_each(|node| world.cut(node, active));
        world.serve(active, false);
        world.run(secs(10));
        let before: Vec<_> = (0..3).map(|node| world.sent(node)).collect();
        world.run(secs(60));
        let per_minute = secs(60).as_nanos() / interval.as_nanos();
        for (node, before) in before.iter().enumerate() {
            let sent = world.sent(node);
            let advertisements = sent.advertisements - before.advertisements;
            assert!(u128::from(advertisements) <= 2 * per_minute + 2, "{advertisements} advertisements");
            assert!(sent.announcements - before.announcements <= 4, "{} announcements", sent.announcements);
        }
    }
}

#[test]
fn flapping_link_between_two_halves_causes_no_advertisement_storm() {
    for seed in 0..SEEDS {
        let mut world = settled(equals(seed, 4, &config(Stack::V4, Version::V3, 200, ms(10))));
        let before: Vec<_> = (0..4).map(|node| world.sent(node)).collect();
        for _ in 0..600 {
            world.split(&[0, 1, 4]);
            world.run(ms(50));
            world.heal();
            world.run(ms(50));
        }
        for (node, before) in before.iter().enumerate() {
            let sent = world.sent(node);
            let changes =
                world.changes.iter().filter(|change| change.node == node && change.to == StateName::Active);
            let bursts = 6 * u64::try_from(changes.count()).unwrap();
            let announcements = sent.announcements - before.announcements;
            assert!(announcements <= 2 * 60 + bursts, "{announcements} announcements, {bursts} in bursts");
            assert!(sent.advertisements - before.advertisements <= 4 * 6000 + bursts);
        }
    }
}

#[test]
fn a_stopped_active_resumes_as_backup() {
    for seed in 0..200 {
        let mut world = settled(peers(seed, 3, &k0s(Stack::Dual)));
        let active = world.the_active();
        let phase = world.rng.between(ms(0), secs(1));
        world.run(phase);
        let start = world.elapsed();
        world.pause(active);
        world.run_while(secs(10), never_two_holders);
        let [_, successor] = world.actives()[..] else { panic!("a successor next to the stopped node") };
        let successor = if successor == active { world.actives()[0] } else { successor };
        world.resume(active);
        assert_eq!(world.nodes[active].router.state(), StateName::Backup, "it drained its socket first");
        world.run_while(secs(10), |world| {
            never_two_holders(world);
            assert_eq!(world.actives(), [successor]);
        });
        assert_eq!(world.takeovers_since(start).len(), 1);
    }
}

#[test]
fn active_that_overslept_and_lost_its_queue_listens_for_an_interval() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::V4)));
        let active = world.the_active();
        world.pause(active);
        world.run(secs(10));
        // A virtual machine that was paused has no queue.
        world.nodes[active].inbox.clear();
        world.resume(active);
        assert_eq!(world.nodes[active].router.state(), StateName::Listening);
        world.run_while(secs(10), never_two_holders);
        assert_ne!(world.the_active(), active);
        let last = world.changes.iter().rev().find(|change| change.node == active).unwrap();
        assert!(matches!(last.reason, Reason::RivalHeard { .. }), "{last:?}");
    }
}

#[test]
fn simultaneous_freeze_of_all_nodes_moves_no_address() {
    for seed in 0..SEEDS {
        for interval in [ms(10), ms(100), secs(1)] {
            let mut world = settled(peers(seed, 3, &config(Stack::V4, Version::V3, 200, interval)));
            let active = world.the_active();
            (0..3).for_each(|node| world.pause(node));
            world.run(secs(30));
            (0..3).for_each(|node| world.nodes[node].inbox.clear());
            let resumed = world.elapsed();
            (0..3).for_each(|node| world.resume(node));
            world.run(interval * 20 + secs(4));
            assert_eq!(world.the_active(), active);
            assert_eq!(world.takeovers_since(resumed).len(), 1, "only the old Active");
        }
    }
}

#[test]
fn a_backup_that_stalls_does_not_become_a_second_active() {
    for seed in 0..SEEDS {
        for interval in [ms(10), secs(1)] {
            let mut world = settled(peers(seed, 3, &config(Stack::V4, Version::V3, 200, interval)));
            let (active, start) = (world.the_active(), world.elapsed());
            for node in (0..3).filter(|node| *node != active) {
                world.pause(node);
                world.run(interval * 7);
                world.nodes[node].inbox.clear();
                world.resume(node);
                world.run(interval * 5);
            }
            assert_eq!(world.takeovers_since(start), []);
        }
    }
}

#[test]
fn externally_removed_address_is_restored_at_once() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::V4)));
        let active = world.the_active();
        for _ in 0..50 {
            let phase = world.rng.between(ms(0), secs(1));
            world.run(phase);
            world.delete_address(active);
            world.run(ms(10));
            assert_eq!(world.holders(), [active]);
        }
        assert_eq!(world.nodes[active].router.counters().missing, 50);
        assert_eq!(world.the_active(), active);
    }
}

#[test]
fn a_keeper_that_cannot_refresh_makes_its_router_listen() {
    let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
    let active = world.the_active();
    world.delay_keeper(active, secs(4));
    world.run(secs(3));
    let lost = world.changes.iter().any(|change| change.node == active && change.reason == Reason::LeaseLost);
    assert!(lost, "{:?}", world.changes);
    world.delay_keeper(active, ms(0));
    world.run(secs(20));
    assert_eq!(world.holders(), world.actives());
}

#[test]
fn a_link_that_goes_down_and_up_on_the_active_hands_over_or_returns() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::Dual)));
        let active = world.the_active();
        world.link(active, false);
        assert_eq!(world.holders(), [], "the addresses go with the link");
        world.run(secs(1));
        world.link(active, true);
        world.run_while(secs(10), never_two_holders);
        assert_ne!(world.the_active(), active, "it was down longer than a Backup can tell");
    }
}

#[test]
fn single_node_keeps_the_addresses_through_stalls() {
    let mut world: World = settled(equals(1, 1, &k0s(Stack::V4)));
    for _ in 0..20 {
        world.pause(0);
        world.run(secs(5));
        world.resume(0);
        world.run(ms(1100));
        assert_eq!(world.holders(), [0], "an interval of listening, and on");
    }
}
