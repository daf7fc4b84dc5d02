//! Planned handover.

use vrrp::router::{Command, MoveSide, Preempt, Reason, StateName};
use vrrp::{RouterConfig, Version};

use super::{SEEDS, equals, ms, peers, secs, settled};
use crate::node::{Stack, config, k0s, v4, with_known_peers};
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

fn all(world: &World) -> Vec<usize> {
    (0..world.nodes.len()).collect()
}

/// Moves the addresses to a node, and checks that no moment is without them.
fn move_to(world: &mut World, target: usize) {
    let active = world.the_active();
    let interval = world.nodes[active].config.interval();
    world.name_successor(&all(world), active, target, 4 * interval);
    world.command(active, Command::HandOver);
    world.run_while(ms(150), |world| {
        assert_ne!(world.holders(), [], "no node answers at {:?}", world.elapsed());
    });
    let moved = (world.actives(), world.nodes[active].router.state());
    assert_eq!(moved, (vec![target], StateName::Backup), "{:?}", world.changes);
}

#[test]
fn the_named_node_takes_over_every_time() {
    let ranked = |interval| {
        [200, 150, 100, 50].map(|priority| config(Stack::V4, Version::V3, priority, interval)).to_vec()
    };
    for seed in 0..SEEDS {
        for configs in
            intervals().into_iter().map(|config| vec![config; 4]).chain([ranked(ms(100)), ranked(secs(1))])
        {
            let configs = if seed % 2 == 0 { with_known_peers(configs) } else { configs };
            let mut world = settled(World::new(seed, configs, 2));
            let start = world.elapsed();
            for number in 0..20 {
                let target = (world.the_active() + 1 + number % 3) % 4;
                move_to(&mut world, target);
                let pause = world.rng.between(ms(0), secs(2));
                world.run(pause);
                assert_eq!(world.holders(), [target]);
                assert_eq!(world.clients, [Some(target); 2], "the successor announced last");
            }
            assert_eq!(world.takeovers_since(start).len(), 20, "no other move");
        }
    }
}

#[test]
fn without_a_successor_the_active_goes_on() {
    for config in intervals() {
        let mut world = settled(equals(1, 2, &config));
        let active = world.the_active();
        world.kill(1 - active);
        world.command(active, Command::HandOver);
        let down = world.nodes[active].config.down_interval();
        world.run_while(down * 2, |world| assert!(world.holders().contains(&active)));
        assert_eq!(world.the_active(), active);
        let reasons: Vec<_> = world.changes.iter().rev().take(2).map(|change| change.reason).collect();
        assert_eq!(reasons, [Reason::NoSuccessor, Reason::HandoverRequested]);
    }
}

#[test]
fn a_node_that_cannot_serve_does_not_succeed() {
    let mut world = settled(peers(1, 3, &config(Stack::V4, Version::V3, 200, ms(100))));
    let active = world.the_active();
    let (target, other) = ((active + 1) % 3, (active + 2) % 3);
    world.serve(target, false);
    world.run(secs(1));
    world.name_successor(&[target], active, target, secs(1));
    world.command(active, Command::HandOver);
    world.run(secs(1));
    assert_eq!(world.actives(), [other]);
}

#[test]
fn a_stop_during_a_handover_stops() {
    let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
    let active = world.the_active();
    world.command(active, Command::HandOver);
    world.command(active, Command::Resign);
    world.run(secs(1));
    assert_eq!(world.nodes[active].router.state(), StateName::Stopped);
    world.the_active();
}

#[test]
fn a_request_to_succeed_ends() {
    let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
    let active = world.the_active();
    let first = (active + 1) % 3;
    world.name_successor(&all(&world), active, first, ms(500));
    world.run(secs(1));
    let resigned = world.elapsed();
    world.command(active, Command::Resign);
    world.run(secs(1));
    let taken = world.takeovers_since(resigned)[0].at - resigned;
    assert!(taken > ms(200), "after Skew_Time as always: {taken:?}");
}

#[test]
fn a_reload_during_a_handover_leaves_no_moment_without_a_holder() {
    for lonely in [false, true] {
        let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
        let active = world.the_active();
        if lonely {
            (0..3).filter(|node| *node != active).for_each(|node| world.kill(node));
        }
        world.command(active, Command::HandOver);
        let config = RouterConfig { preempt: Preempt::Never, ..world.nodes[active].config.clone() };
        world.reload(active, &config);
        world.run_while(secs(10), |world| {
            assert!(!world.holders().is_empty(), "no node answers at {:?}", world.elapsed());
        });
        world.the_active();
    }
}

#[test]
fn a_node_that_slept_during_a_handover_does_not_take_the_addresses_back() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::V4)));
        let active = world.the_active();
        let target = (active + 1) % 3;
        world.name_successor(&all(&world), active, target, secs(4));
        world.command(active, Command::HandOver);
        world.pause(active);
        let pause = world.rng.between(secs(3), secs(6));
        world.run(pause);
        // A virtual machine that was paused lost what arrived meanwhile.
        world.nodes[active].inbox.clear();
        world.resume(active);
        world.run(secs(3));
        assert_eq!(world.actives(), [target]);
        assert_eq!(world.holders(), [target]);
    }
}

#[test]
fn a_successor_that_cannot_serve_loses_the_addresses_without_the_hold_time() {
    let mut world = settled(peers(1, 2, &k0s(Stack::V4)));
    let active = world.the_active();
    move_to(&mut world, 1 - active);
    world.run(secs(3));
    world.serve(1 - active, false);
    world.run(secs(6));
    assert_eq!(world.actives(), [active]);
}

/// Routers that always preempt leave the addresses to a named successor of lower priority for the hold time.
#[test]
fn preemption_waits_for_the_hold_time_after_a_move() {
    for seed in 0..SEEDS {
        for known in [false, true] {
            let configs = [200, 150, 100].map(|priority| {
                let config = config(Stack::V4, Version::V3, priority, ms(100));
                RouterConfig { preempt: Preempt::Always, hold_time: secs(30), ..config }
            });
            let configs = configs.to_vec();
            let configs = if known { with_known_peers(configs) } else { configs };
            let mut world = settled(World::new(seed, configs, 2));
            assert_eq!(world.the_active(), 0);
            move_to(&mut world, 2);
            world.run(secs(25));
            assert_eq!((world.actives(), world.holders()), (vec![2], vec![2]));
            world.run(secs(8));
            assert_eq!(world.actives(), [0], "the hold time is over");
        }
    }
}

/// The named successor dies just after it was asked: another one has the addresses an interval later, and no moment is
/// without a holder, also if the Active stops.
#[test]
fn another_router_takes_over_if_the_named_successor_does_not() {
    for config in intervals() {
        for (command, since) in
            [(Command::HandOver, secs(0)), (Command::Resign, secs(0)), (Command::Resign, secs(2))]
        {
            let mut world = settled(peers(1, 3, &config));
            let active = world.the_active();
            let (target, other) = ((active + 1) % 3, (active + 2) % 3);
            world.name_successor(&all(&world), active, target, secs(4));
            world.kill(target);
            world.run(since);
            let start = world.elapsed();
            world.command(active, command.clone());
            let down = world.nodes[active].config.down_interval();
            world.run_while(2 * down, |world| assert_ne!(world.holders(), []));
            assert_eq!(world.actives(), [other], "{:?}", world.changes);
            let takeovers = world.takeovers_since(start);
            assert_eq!(takeovers.len(), 1, "{takeovers:?}");
            assert!(takeovers[0].at - start <= 2 * config.interval() + ms(200), "{takeovers:?}");
        }
    }
}

/// A router that was told of a move which never came takes part as always when another router is Active.
#[test]
fn a_naming_counts_for_the_active_that_made_it() {
    let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
    let active = world.the_active();
    let (next, last) = ((active + 1) % 3, (active + 2) % 3);
    world.name_successor(&all(&world), active, last, secs(60));
    world.kill(active);
    world.run(secs(4));
    let second = world.the_active();
    assert!([next, last].contains(&second));
    let third = next + last - second;
    let resigned = world.elapsed();
    world.command(second, Command::HandOver);
    world.run_while(secs(1), |world| assert_ne!(world.holders(), []));
    let takeovers = world.takeovers_since(resigned);
    assert_eq!(takeovers[0].node, third);
    assert!(takeovers[0].at - resigned < ms(400), "{takeovers:?}");
}

/// No router that can serve wants the addresses: they do not go to one that cannot.
#[test]
fn a_move_that_only_a_degraded_router_answers_ends_where_it_began() {
    for preempt in [Preempt::Never, Preempt::Degraded, Preempt::Always] {
        let config = RouterConfig { preempt, ..config(Stack::V4, Version::V3, 200, ms(100)) };
        let mut world = settled(peers(1, 2, &config));
        let active = world.the_active();
        world.serve(1 - active, false);
        world.run(secs(1));
        world.command(active, Command::HandOver);
        world.run_while(secs(3), |world| assert_ne!(world.holders(), []));
        assert_eq!((world.actives(), world.holders()), (vec![active], vec![active]));
    }
}

#[test]
fn both_ends_measure_a_move() {
    let mut world = settled(peers(1, 3, &k0s(Stack::V4)));
    let active = world.the_active();
    let target = (active + 1) % 3;
    move_to(&mut world, target);
    let [from, to] = [active, target].map(|node| world.nodes[node].router.last_move().unwrap());
    assert_eq!((from.side, to.side), (MoveSide::From, MoveSide::To));
    assert_eq!((from.other, to.other), (Some(v4(target).into()), Some(v4(active).into())));
    let (gave_up, had) = (from.took.unwrap(), to.took.unwrap());
    assert!(had <= gave_up, "the successor has them before they are given up: {had:?}, {gave_up:?}");
    assert!(gave_up < ms(100), "{gave_up:?}");
}

#[test]
fn a_new_holder_may_resign_at_once() {
    for seed in 0..SEEDS {
        let mut world = settled(peers(seed, 3, &k0s(Stack::V4)));
        let active = world.the_active();
        let target = (active + 1) % 3;
        world.name_successor(&all(&world), active, target, secs(6));
        world.command(active, Command::HandOver);
        world.run(ms(100));
        assert_eq!(world.actives(), [target]);
        let resigned = world.elapsed();
        world.command(target, Command::Resign);
        world.run_while(secs(1), |world| assert_ne!(world.holders(), []));
        let taken = world.takeovers_since(resigned)[0].at - resigned;
        assert!(taken < ms(400), "after Skew_Time as always: {taken:?}");
    }
}
