//! A router that is no controller advertises the group's addresses with a lower priority.

use std::collections::BTreeSet;
use std::time::Duration;

use vrrp::Version;
use vrrp::router::{Preempt, StateName};

use super::{SEEDS, equals, ms, secs, settled};
use crate::node::{Stack, config, k0s};
use crate::stranger::Stranger;
use crate::world::World;

const WEAKER: Stranger =
    Stranger { priority: 150, interval: Duration::from_secs(1), host: 200, announces: false };

fn known(seed: u64) -> World {
    let mut world = equals(seed, 3, &k0s(Stack::V4));
    world.introduce_all();
    world
}

fn unheard(world: &World) -> u64 {
    world.nodes.iter().map(|node| node.router.counters().unheard).sum()
}

#[test]
fn unknown_router_of_lower_priority_moves_no_address() {
    for seed in 0..SEEDS {
        let mut rng = crate::rng::Rng::new(seed);
        let priority = rng.pick(&[1, 49, 50, 100, 150, 199]);
        let interval = rng.pick(&[ms(10), ms(300), secs(1), secs(7)]);
        for stack in [Stack::V4, Stack::Dual, Stack::V6] {
            let mut world = settled(equals(seed, 3, &k0s(stack)));
            // An IPv6 set has no link-local sources, so every rival is unknown.
            if stack != Stack::V6 {
                world.introduce_all();
            }
            let (active, start) = (world.the_active(), world.elapsed());
            world.intrude(Stranger { priority, interval, ..WEAKER });
            world.run_while(secs(120), |world| assert_eq!(world.holders(), [active]));
            assert_eq!(world.takeovers_since(start), []);
            assert_eq!(unheard(&world), 0);
        }
    }
}

#[test]
fn unknown_router_of_lower_priority_does_not_block_a_new_group() {
    for seed in 0..SEEDS {
        let mut world = known(seed);
        world.intrude(WEAKER);
        world.run(secs(4));
        world.the_active();
    }
}

#[test]
fn unknown_router_of_lower_priority_does_not_delay_the_successor_of_a_crash() {
    for seed in 0..SEEDS {
        for controllers_known in [true, false] {
            let mut world = settled(equals(seed, 3, &k0s(Stack::V4)));
            if controllers_known {
                world.introduce_all();
            }
            let active = world.the_active();
            world.intrude(WEAKER);
            world.run(secs(30));
            world.crash(active);
            world.run(secs(4));
            let [successor] = world.holders()[..] else { panic!("one holder: {:?}", world.holders()) };
            world.run_while(secs(60), |world| assert_eq!(world.holders(), [successor]));
        }
    }
}

#[test]
fn unknown_router_of_lower_priority_does_not_replace_a_degraded_active() {
    for seed in 0..SEEDS {
        let mut world = known(seed);
        (0..3).for_each(|node| world.serve(node, false));
        let mut world = settled(world);
        let active = world.the_active();
        world.intrude(WEAKER);
        world.run_while(secs(60), |world| assert_eq!(world.holders(), [active]));
        let other = (active + 1) % 3;
        world.serve(other, true);
        world.run(secs(6));
        assert_eq!(world.the_active(), other, "one that serves still takes over");
    }
}

#[test]
fn planned_handover_waits_for_a_controller_beside_an_unknown_router() {
    for seed in 0..SEEDS {
        let mut world = settled(known(seed));
        let active = world.the_active();
        world.intrude(WEAKER);
        world.run(secs(10));
        world.command(active, vrrp::router::Command::Resign);
        world.run_while(secs(10), |world| assert!(!world.holders().is_empty(), "a vacancy"));
        assert_ne!(world.the_active(), active);
    }
}

/// A router that the controllers do not know takes part as it should: it hears them, and stays Backup.
#[test]
fn an_unlisted_router_that_hears_the_group_stays_backup() {
    for seed in 0..SEEDS {
        let lower = config(Stack::V4, Version::V2, 100, secs(1));
        let mut world = World::new(seed, vec![k0s(Stack::V4), k0s(Stack::V4), lower], 2);
        let listed: BTreeSet<_> = (0..2).map(|node| crate::node::v4(node).into()).collect();
        for node in 0..2 {
            world.nodes[node].controllers.clone_from(&listed);
            let now = world.now;
            world.nodes[node].introduce(now);
        }
        let mut world = settled(world);
        let active = world.the_active();
        assert_eq!(active, 1);
        world.crash(active);
        world.run(secs(4));
        assert_eq!(world.the_active(), 0);
        assert_eq!(world.nodes[2].router.state(), StateName::Backup);
    }
}

/// Three nodes, of which the last has the highest priority and so is Active.
fn ranked(seed: u64) -> World {
    let priorities = [200, 200, 201];
    let configs = priorities.map(|priority| config(Stack::V4, Version::V2, priority, secs(1)));
    World::new(seed, configs.to_vec(), 2)
}

#[test]
fn active_that_cannot_send_yields_to_an_unknown_successor_that_announces() {
    for seed in 0..SEEDS {
        let mut world = settled(ranked(seed));
        let active = world.the_active();
        (0..3).filter(|node| *node != active).for_each(|node| world.cut(active, node));
        world.run(secs(14));
        let successor = world.the_active();
        assert_ne!(successor, active);
        assert_eq!(world.nodes[active].router.counters().unheard, 1);
    }
}

#[test]
fn active_that_cannot_send_yields_to_a_listed_successor() {
    for seed in 0..SEEDS {
        let mut world = ranked(seed);
        world.introduce_all();
        let mut world = settled(world);
        let active = world.the_active();
        (0..3).filter(|node| *node != active).for_each(|node| world.cut(active, node));
        world.run(secs(8));
        assert_ne!(world.the_active(), active);
        assert_eq!(world.nodes[active].router.counters().unheard, 1);
    }
}

/// A stranger that announces as well does hold the addresses. Every controller yields once, and nothing flaps.
#[test]
fn each_router_yields_once_to_an_announcing_unknown_router() {
    for seed in 0..SEEDS {
        let mut world = settled(known(seed));
        world.intrude(Stranger { announces: true, ..WEAKER });
        world.run(secs(60));
        assert_eq!(world.actives(), []);
        let before = unheard(&world);
        assert!((1..=3).contains(&before), "{before}");
        world.run(secs(240));
        assert_eq!(unheard(&world), before);
        world.stranger = None;
        world.run(secs(4));
        world.the_active();
    }
}

#[test]
fn preempt_always_takes_over_from_any_lower_router() {
    let mut config = k0s(Stack::V4);
    config.preempt = Preempt::Always;
    let mut world = equals(1, 3, &config);
    world.intrude(WEAKER);
    world.run(secs(5));
    world.the_active();
}

/// Without advertisements every node is Active, and they notice each other by announcements only.
#[test]
fn nodes_that_hear_no_advertisements_learn_of_each_other_by_announcements() {
    for seed in 0..SEEDS {
        let mut world = settled(known(seed));
        let active = world.the_active();
        assert_eq!(world.announced_elsewhere, 0);
        world.deaf = true;
        world.run(secs(5));
        assert_eq!(world.actives().len(), 3);
        assert!(world.announced_elsewhere > 0, "the first Active hears the others announce");
        let before = world.announced_elsewhere;
        world.run(secs(70));
        assert!(world.announced_elsewhere >= before + 3, "and each hears the refreshes of the others");
        world.deaf = false;
        world.run(secs(5));
        assert_eq!(world.actives().len(), 1, "{active}");
    }
}

#[test]
fn ordinary_moves_report_no_foreign_announcements() {
    for seed in 0..SEEDS {
        let mut world = settled(known(seed));
        let active = world.the_active();
        world.crash(active);
        world.run(secs(10));
        world.restart(active);
        world.run(secs(10));
        let active = world.the_active();
        world.command(active, vrrp::router::Command::Resign);
        world.run(secs(10));
        let active = world.the_active();
        world.serve(active, false);
        world.run(secs(70));
        assert_eq!(world.announced_elsewhere, 0);
    }
}
