//! Nodes that cannot serve.

use std::time::Duration;

use vrrp::Version;
use vrrp::router::{Preempt, Reason};

use super::{SEEDS, equals, ms, peers, secs, settled};
use crate::node::{Stack, config, k0s};
use crate::world::World;

#[test]
fn only_the_active_loses_its_backends_and_a_serving_backup_takes_over() {
    for seed in 0..SEEDS {
        for interval in [ms(100), secs(1)] {
            for stack in [Stack::V4, Stack::V6] {
                let mut world = settled(peers(seed, 3, &config(stack, Version::V3, 200, interval)));
                let (active, lost) = (world.the_active(), world.elapsed());
                world.serve(active, false);
                // Two degraded advertisements, Skew and the offset.
                world.run(3 * interval + interval / 4 + ms(60));
                let takeovers = world.takeovers_since(lost);
                assert_eq!(takeovers.len(), 1, "{takeovers:?}");
                assert!(
                    matches!(takeovers[0].reason, Reason::ActiveDegraded { source: Some(_) }),
                    "{takeovers:?}"
                );
                assert_ne!(world.the_active(), active);
                world.serve(active, true);
                world.run(secs(60));
                assert_eq!(world.takeovers_since(lost).len(), 1, "nobody fails back");
            }
        }
    }
}

#[test]
fn preempt_never_stays_with_a_degraded_active() {
    let mut config = k0s(Stack::V4);
    config.preempt = Preempt::Never;
    let mut world = settled(peers(1, 3, &config));
    let active = world.the_active();
    world.serve(active, false);
    world.run(secs(60));
    assert_eq!(world.the_active(), active);
}

#[test]
fn a_frozen_daemon_stops_serving_when_its_evidence_expires() {
    let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
    let active = world.the_active();
    world.nodes[active].reports = false;
    world.run(secs(1) + secs(3) + ms(600));
    assert_ne!(world.the_active(), active);
}

#[test]
fn nodes_that_never_serve_still_elect_one_and_keep_it() {
    let mut world = equals(1, 3, &k0s(Stack::V4));
    (0..3).for_each(|node| world.serve(node, false));
    world.run(secs(5));
    let active = world.the_active();
    world.run_while(secs(120), |world| assert_eq!(world.actives(), [active]));
}

/// All nodes lose all backends and recover at slightly different times, `times` over.
fn readiness_dips(mut world: World, seed: u64, times: usize, lag: Duration) {
    let (active, start) = (world.the_active(), world.elapsed());
    for _ in 0..times {
        for serves in [false, true] {
            for step in 0..10 {
                // The Active gets its verdict last, which is the worst case.
                let others = (0..world.nodes.len()).filter(|node| *node != active).collect::<Vec<_>>();
                if step == 0 {
                    others.iter().for_each(|node| world.serve(*node, serves));
                }
                if step == 9 {
                    world.serve(active, serves);
                }
                world.run_while(lag / 10, |world| assert_eq!(world.holders(), [active], "seed {seed}"));
            }
            let rest = world.rng.between(ms(0), secs(6));
            world.run_while(rest, |world| assert_eq!(world.holders(), [active], "seed {seed}"));
        }
    }
    assert_eq!(world.takeovers_since(start), [], "seed {seed}");
}

#[test]
fn all_nodes_lose_all_backends_and_recover_without_a_move() {
    for seed in 0..SEEDS {
        readiness_dips(settled(peers(seed, 3, &k0s(Stack::V4))), seed, 20, ms(1500));
        let fast = config(Stack::V4, Version::V3, 200, ms(100));
        readiness_dips(settled(peers(seed, 3, &fast)), seed, 20, ms(1500));
    }
}

/// Flaps the checks of some nodes every `period` and returns how many times the addresses moved in two minutes.
fn moves_while_flapping(seed: u64, flappers: &[usize], period: Duration, interval: Duration) -> usize {
    let mut world = settled(peers(seed, 3, &config(Stack::V4, Version::V3, 200, interval)));
    let start = world.elapsed();
    // Node 2 has the highest address and is Active after a cold start.
    assert_eq!(world.the_active(), 2);
    for flap in 0..(secs(120).as_nanos() / period.as_nanos()) {
        for node in flappers {
            world.serve(*node, flap % 2 == 1);
        }
        world.run_while(period, |world| assert_ne!(world.actives(), [], "a router is Active"));
    }
    world.takeovers_since(start).len()
}

#[test]
fn a_flapping_check_moves_the_vip_at_most_once_per_hold_time() {
    for seed in 0..SEEDS {
        for interval in [ms(100), secs(1)] {
            assert_eq!(moves_while_flapping(seed, &[2], ms(200), interval), 1, "to a steady node, for good");
            assert_eq!(moves_while_flapping(seed, &[0, 1, 2], ms(200), interval), 0, "no node is better");
            // Slow enough to look like recovery each time.
            let moves = moves_while_flapping(seed, &[2], secs(3), interval);
            assert!(moves <= 1, "{moves} moves to a node that never flaps");
            let moves = moves_while_flapping(seed, &[1, 2], secs(4), interval);
            assert!(moves <= 2, "{moves} moves until the steady node has it");
        }
    }
}

#[test]
fn hold_time_is_kept_after_yielding_the_addresses() {
    let mut world = settled(peers(1, 2, &k0s(Stack::V4)));
    let first = world.the_active();
    let second = 1 - first;
    world.serve(first, false);
    world.run(secs(4));
    assert_eq!(world.the_active(), second);
    let yielded = world.elapsed();
    world.serve(first, true);
    world.run(secs(3));
    world.serve(second, false);
    world.run(secs(20));
    assert_eq!(world.the_active(), second, "the first one holds back");
    world.run(secs(12));
    assert_eq!(world.the_active(), first, "and takes over after the hold time");
    assert_eq!(world.takeovers_since(yielded).len(), 1);
}

#[test]
fn takeover_from_a_degraded_active_has_two_owners_for_at_most_100_ms() {
    /// The longest wait for the successor's announcement and the keeper's removal.
    const OVERLAP: Duration = Duration::from_millis(104);
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::Dual)));
        let active = world.the_active();
        world.serve(active, false);
        let mut both = None;
        world.run_while(secs(5), |world| {
            if world.holders().len() < 2 {
                both = None;
                return;
            }
            let since = *both.get_or_insert(world.elapsed());
            assert!(world.elapsed() - since <= OVERLAP, "two holders since {since:?}");
        });
        let successor = world.the_active();
        assert_ne!(successor, active);
        assert_eq!(world.clients, [Some(successor); 2]);
    }
}
