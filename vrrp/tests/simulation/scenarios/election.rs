//! Start, crash, order of priorities, and splits.

use std::time::Duration;

use vrrp::router::{Preempt, Reason, StateName};
use vrrp::{RouterConfig, Version};

use super::{SEEDS, equals, ms, never_two_holders, peers, secs, settled};
use crate::node::{Stack, config, k0s, with_known_peers};
use crate::world::World;

#[test]
fn three_equal_nodes_start_together_and_one_becomes_active_within_5_s() {
    for seed in 0..SEEDS {
        for stack in [Stack::V4, Stack::V6, Stack::Dual] {
            for mut world in [equals(seed, 3, &k0s(stack)), peers(seed, 3, &k0s(stack))] {
                world.run_while(secs(5), never_two_holders);
                world.the_active();
                assert_eq!(world.changes.iter().filter(|change| change.to == StateName::Active).count(), 1);
                let owner = Some(world.the_active());
                assert_eq!(world.clients, [owner, owner]);
            }
        }
    }
}

/// Kills the Active again and again; the VIP moves exactly once each time and never back.
fn twenty_crashes(mut world: World, offset: Duration) {
    for crash in 0..20 {
        let active = world.the_active();
        let killed = world.elapsed();
        world.kill(active);
        let down = world.nodes[active].config.down_interval();
        world.run(down + offset + ms(5));
        let successor = world.the_active();
        let lease = world.nodes[active].config.lease;
        world.run((lease + ms(1040)).saturating_sub(down + offset));
        assert_eq!(world.holders(), [successor], "crash {crash}: the dead node's lease is over");
        world.restart(active);
        world.run(down * 2 + secs(3));
        let takeovers = world.takeovers_since(killed);
        assert_eq!(takeovers.len(), 1, "crash {crash}: {takeovers:?}");
        assert_eq!(world.the_active(), successor, "crash {crash}: no router fails back");
        assert_eq!(world.clients, [Some(successor); 2]);
    }
}

#[test]
fn twenty_crashes_of_equal_peers_move_the_vip_once_each() {
    for stack in [Stack::V4, Stack::V6, Stack::Dual] {
        twenty_crashes(settled(peers(1, 3, &k0s(stack))), ms(60));
    }
}

#[test]
fn twenty_crashes_of_equal_unlisted_nodes_move_the_vip_once_each() {
    for stack in [Stack::V4, Stack::V6, Stack::Dual] {
        twenty_crashes(settled(equals(1, 3, &k0s(stack))), ms(100));
    }
}

#[test]
fn twenty_crashes_at_100_ms() {
    let fast = config(Stack::V4, Version::V3, 200, ms(100));
    twenty_crashes(settled(peers(2, 3, &fast)), ms(40));
    twenty_crashes(settled(equals(2, 3, &fast)), ms(25));
}

#[test]
fn a_fast_crash_is_noticed_within_its_bound() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &config(Stack::V4, Version::V3, 200, ms(10))));
        let killed = world.elapsed();
        world.kill(world.the_active());
        world.run(ms(60));
        world.the_active();
        assert!(world.takeovers_since(killed)[0].at - killed < ms(50));
    }
}

#[test]
fn at_one_second_the_address_of_a_killed_node_is_gone_before_its_successor_takes_over() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::Dual)));
        world.kill(world.the_active());
        world.run_while(secs(10), never_two_holders);
        world.the_active();
    }
}

/// Distinct priorities, with addresses in the order that works most against them.
fn ranked(preempt: Preempt, interval: Duration) -> Vec<RouterConfig> {
    let configs = [204, 203, 202, 201, 200].map(|priority| {
        let mut config = config(Stack::V4, Version::V3, priority, interval);
        config.preempt = preempt;
        config
    });
    configs.to_vec()
}

#[test]
fn offsets_never_change_the_order_of_priorities() {
    for seed in 0..SEEDS {
        for configs in [ranked(Preempt::Never, secs(1)), with_known_peers(ranked(Preempt::Never, secs(1)))] {
            let mut world = World::new(seed, configs, 0);
            world.run(secs(10));
            assert_eq!(world.the_active(), 0, "the highest priority wins even from the start");
            for expected in 1..4 {
                let killed = world.elapsed();
                world.kill(world.the_active());
                world.run(secs(10));
                assert_eq!(world.the_active(), expected);
                assert_eq!(world.takeovers_since(killed).len(), 1, "and no other router tries");
            }
        }
    }
}

#[test]
fn clearly_different_priorities_start_in_order_at_every_interval() {
    for seed in 0..SEEDS {
        for milliseconds in [20, 50, 90, 100, 110, 120, 200, 1000] {
            let configs =
                [200, 100].map(|priority| config(Stack::V4, Version::V3, priority, ms(milliseconds)));
            for configs in [configs.to_vec(), with_known_peers(configs.to_vec())] {
                let mut world = World::new(seed, configs, 0);
                world.run(secs(5));
                assert_eq!(world.the_active(), 0);
                let takeovers = world.takeovers_since(ms(0));
                assert_eq!(takeovers.len(), 1, "{milliseconds} ms: {takeovers:?}");
            }
        }
    }
}

#[test]
fn offsets_do_not_delay_a_router_above_a_lower_active() {
    // Two routers came back after the Active, which has a lower priority; the higher of them goes first.
    for seed in 0..SEEDS {
        let mut configs = with_known_peers(ranked(Preempt::Never, secs(1)));
        configs.swap(0, 4);
        let mut world = World::new(seed, configs, 0);
        for node in 1..5 {
            world.kill(node);
        }
        world.run(secs(8));
        assert_eq!(world.the_active(), 0, "priority 200 was alone");
        (1..5).for_each(|node| world.restart(node));
        world.run(secs(8));
        let killed = world.elapsed();
        world.kill(0);
        world.run(secs(8));
        assert_eq!(world.nodes[world.the_active()].config.priority.get(), 204);
        assert_eq!(world.takeovers_since(killed).len(), 1);
    }
}

#[test]
fn preempt_always_lets_the_highest_priority_take_over_by_down() {
    let mut world = World::new(3, ranked(Preempt::Always, secs(1)), 0);
    world.kill(0);
    world.run(secs(10));
    assert_eq!(world.the_active(), 1);
    world.restart(0);
    world.run(secs(5));
    assert_eq!(world.the_active(), 0);
    assert_eq!(world.changes.last().map(|change| change.node), Some(1), "the other yielded");
}

#[test]
fn a_healed_split_has_one_owner_within_one_advertisement_and_clients_find_it() {
    for seed in 0..SEEDS {
        for stack in [Stack::V4, Stack::Dual] {
            let mut world = settled(equals(seed, 4, &k0s(stack)));
            world.split(&[0, 1, 4]);
            // Either side may be the first to be heard.
            let phase = world.rng.between(ms(0), secs(1));
            world.run(secs(10) + phase);
            let owners = world.actives();
            assert_eq!(owners.len(), 2, "each half has its own");
            assert_ne!(world.clients[0], world.clients[1]);
            world.heal();
            world.run(secs(1) + ms(10));
            let owner = world.the_active();
            assert_eq!(Some(&owner), owners.iter().max(), "the higher address won");
            world.run(secs(1));
            assert_eq!(world.clients, [Some(owner); 2], "seed {seed}: caches point to the owner");
            assert_eq!(world.holders(), [owner]);
        }
    }
}

#[test]
fn a_lossy_lan_keeps_its_active() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::V4)));
        let before = world.elapsed();
        world.conditions.duplicate_percent = 30;
        world.conditions.delay = (ms(0), ms(400));
        world.run(secs(300));
        assert_eq!(world.takeovers_since(before), [], "delay, reordering and duplicates move nothing");
    }
}

#[test]
fn version_2_interval_mismatch_uses_the_longer_down() {
    let slow = config(Stack::V4, Version::V2, 200, secs(3));
    let quick = k0s(Stack::V4);
    for seed in 0..SEEDS {
        for (first, second) in [(&slow, &quick), (&quick, &slow)] {
            let mut world = World::new(seed, vec![first.clone(), second.clone()], 0);
            world.run(secs(15));
            let before = world.elapsed();
            world.run(secs(120));
            assert_eq!(world.takeovers_since(before), []);
            let backup = 1 - world.the_active();
            assert!(world.nodes[backup].router.counters().interval_mismatches > 30, "counted");
            world.kill(world.the_active());
            world.run(secs(11));
            assert_eq!(world.the_active(), backup, "three of the longer intervals, Skew and the offset");
        }
    }
}

#[test]
fn a_version_3_interval_is_learned() {
    let mut world = World::new(1, vec![config(Stack::V4, Version::V3, 200, secs(10))], 0);
    world.run(secs(60));
    let mut configs = vec![config(Stack::V4, Version::V3, 200, ms(100)); 2];
    configs[1] = config(Stack::V4, Version::V3, 100, secs(10));
    let mut world = World::new(1, configs, 0);
    world.run(secs(5));
    assert_eq!(world.the_active(), 0);
    world.kill(0);
    world.run(ms(450));
    assert_eq!(world.the_active(), 1, "the Active's 100 ms count, not the own 10 s");
}

#[test]
fn the_reason_of_a_takeover_names_the_silent_active() {
    let mut world = settled(equals(1, 2, &k0s(Stack::V4)));
    let active = world.the_active();
    world.kill(active);
    world.run(secs(4));
    let last = world.changes.last().unwrap();
    assert_eq!(
        (last.to, last.reason),
        (StateName::Active, Reason::ActiveSilent { source: Some(world.nodes[active].v4.into()) })
    );
}
