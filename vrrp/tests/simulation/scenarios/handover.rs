//! Planned handover.

use vrrp::router::{Command, Reason, StateName};
use vrrp::{RouterConfig, Version};

use super::{SEEDS, equals, ms, peers, secs, settled};
use crate::node::{Stack, config, k0s};
use crate::world::World;

fn intervals() -> Vec<RouterConfig> {
    let v3 = |interval| config(Stack::V4, Version::V3, 200, interval);
    vec![k0s(Stack::V4), k0s(Stack::V6), k0s(Stack::Dual), v3(ms(10)), v3(ms(100)), v3(secs(10))]
}

/// Resigns the Active and runs until it stopped; a node has the addresses at every moment.
fn hand_over(world: &mut World) -> usize {
    let active = world.the_active();
    world.command(active, Command::Resign);
    let down = world.nodes[active].config.down_interval();
    world.run_while(down + ms(200), |world| {
        assert_ne!(world.holders(), [], "nobody answers at {:?}", world.elapsed());
    });
    assert_eq!(world.nodes[active].router.state(), StateName::Stopped);
    active
}

#[test]
fn the_addresses_are_held_throughout_a_handover() {
    for seed in 0..SEEDS {
        for config in intervals() {
            let mut world = settled(peers(seed, 3, &config));
            let start = world.elapsed();
            let old = hand_over(&mut world);
            let successor = world.the_active();
            assert_eq!(world.takeovers_since(start).len(), 1, "one move");
            assert_eq!(world.holders(), [successor]);
            let reasons: Vec<_> =
                world.changes.iter().filter(|change| change.at >= start && change.node == old).collect();
            assert_eq!(reasons[0].reason, Reason::Shutdown);
            assert_eq!(reasons[1].reason, Reason::SuccessorAnnounced);
            // Neither waits longer than Skew and the offset.
            let skew = config.interval() / 4 + ms(100);
            assert!(reasons[1].at - reasons[0].at <= skew, "{:?}", reasons[1].at - reasons[0].at);
            assert_eq!(world.clients, [Some(successor); 2], "the successor announced last");
        }
    }
}

#[test]
fn a_resignation_that_is_lost_is_repeated() {
    let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
    let old = world.the_active();
    (0..2).for_each(|node| world.cut(old, node));
    world.command(old, Command::Resign);
    world.run(ms(500));
    world.heal();
    world.run_while(ms(900), |world| assert_ne!(world.holders(), []));
    let successor = world.the_active();
    assert_ne!(successor, old, "heard with the second resignation, long before Down");
}

#[test]
fn without_a_successor_the_handover_ends_after_down() {
    let mut world = settled(equals(1, 1, &k0s(Stack::V4)));
    world.command(0, Command::Resign);
    world.run(secs(3));
    assert_eq!((world.nodes[0].router.state(), world.holders()), (StateName::Resigning, vec![0]));
    world.run(ms(300));
    assert_eq!((world.nodes[0].router.state(), world.holders()), (StateName::Stopped, vec![]));
    assert_eq!(world.changes.last().unwrap().reason, Reason::NoSuccessor);
}

#[test]
fn a_successor_that_does_not_announce_ends_the_handover_after_100_ms() {
    let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
    let old = world.the_active();
    (0..2).for_each(|node| world.delay_keeper(node, secs(1)));
    let start = world.elapsed();
    world.command(old, Command::Resign);
    world.run(secs(1));
    let successor = world.takeovers_since(start)[0];
    let stopped =
        world.changes.iter().find(|change| change.node == old && change.to == StateName::Stopped).unwrap();
    assert_eq!(stopped.reason, Reason::SuccessorAdvertised);
    assert!((ms(100)..ms(102)).contains(&(stopped.at - successor.at)), "{:?}", stopped.at - successor.at);
}

#[test]
fn rolling_restart_moves_the_vip_only_with_its_active() {
    let mut world = settled(peers(1, 3, &k0s(Stack::Dual)));
    for round in 0..9 {
        let (node, before) = (round % 3, world.elapsed());
        let was_active = world.the_active() == node;
        world.command(node, Command::Resign);
        world.run_while(secs(4), |world| assert_ne!(world.holders(), []));
        world.restart(node);
        world.run_while(secs(6), |world| assert_ne!(world.holders(), []));
        assert_eq!(world.takeovers_since(before).len(), usize::from(was_active), "round {round}");
    }
}

#[test]
fn a_serving_backup_succeeds_before_a_degraded_one() {
    for seed in 0..SEEDS {
        let mut world = peers(seed, 3, &k0s(Stack::V4));
        world.serve(1, false);
        let mut world = settled(world);
        assert_eq!(world.the_active(), 2);
        hand_over(&mut world);
        assert_eq!(world.the_active(), 0, "node 1 has the higher address, but cannot serve");
    }
}
