//! Signatures and passwords: their rotation, clocks, and forgers.

use std::collections::BTreeMap;
use std::time::Duration;

use vrrp::hmac::{AntiReplay, HmacConfig, Key, KeyId, Mode};
use vrrp::router::{Discard, StateName};
use vrrp::{AuthPass, RouterConfig, Version};

use super::{equals, ms, never_two_holders, secs, settled};
use crate::node::{Stack, config, k0s};
use crate::world::World;

/// All orders in which three nodes can be reloaded.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn id(number: u8) -> KeyId {
    KeyId::new(number).unwrap()
}

fn hmac(numbers: &[u8], active: u8, mode: Mode) -> HmacConfig {
    let key = |number: &u8| (id(*number), Key::new(&[*number; 32]).unwrap());
    let keys: BTreeMap<KeyId, Key> = numbers.iter().map(key).collect();
    let mut hmac = HmacConfig::new(keys, id(active), secs(1)).unwrap();
    hmac.mode = mode;
    hmac
}

fn signed(base: &RouterConfig, hmac: HmacConfig) -> RouterConfig {
    RouterConfig { hmac: Some(hmac), ..base.clone() }
}

fn with_password(password: &str, previous: Option<&str>) -> RouterConfig {
    let pass = |text| AuthPass::new(text).unwrap();
    RouterConfig { auth: Some(pass(password)), auth_previous: previous.map(pass), ..k0s(Stack::V4) }
}

/// The invariants of a rotation or a step: one Active, and never two holders.
fn undisturbed(world: &World) {
    never_two_holders(world);
    assert_eq!(world.actives().len(), 1, "at {:?}", world.elapsed());
}

/// Takes the nodes through all configurations, each on one node after the other in a new order.
fn rotate(steps: &[RouterConfig]) {
    for (seed, order) in (0..).zip(ORDERS) {
        let mut world = settled(equals(seed, 3, &steps[0]));
        let start = world.elapsed();
        for (number, step) in steps.iter().enumerate().skip(1) {
            for place in 0..3 {
                world.reload(ORDERS[(number + order[0] * 2) % 6][order[place]], step);
                let pause = world.rng.between(Duration::ZERO, secs(5));
                world.run_while(pause, undisturbed);
            }
            world.run_while(secs(6), undisturbed);
        }
        assert_eq!(world.takeovers_since(start), [], "order {order:?} moved the addresses");
        // Every node still hears the others: the next one takes over when the Active dies, and only one.
        let active = world.the_active();
        world.kill(active);
        world.run(secs(10));
        assert_eq!(world.takeovers_since(start).len(), 1, "{:?}", world.changes);
    }
}

#[test]
fn key_rotation_in_any_order_moves_nothing() {
    for base in [k0s(Stack::Dual), config(Stack::V6, Version::V3, 200, ms(100))] {
        let step = |keys: &[u8], active| signed(&base, hmac(keys, active, Mode::Enforce));
        // In two steps, and in the three that a group with keepalived needs.
        rotate(&[step(&[1], 1), step(&[1, 2], 2), step(&[2], 2)]);
        rotate(&[step(&[1], 1), step(&[1, 2], 1), step(&[1, 2], 2), step(&[2], 2)]);
    }
}

#[test]
fn introduction_of_signatures_in_any_order_moves_nothing() {
    for base in [k0s(Stack::V4), with_password("Example", None)] {
        let step = |mode| signed(&base, hmac(&[1], 1, mode));
        let enforced = RouterConfig { auth: None, ..step(Mode::Enforce) };
        let mut steps = vec![base.clone(), step(Mode::ReceiveOnly), step(Mode::Permissive), enforced.clone()];
        rotate(&steps);
        // And back.
        steps.reverse();
        rotate(&steps);
    }
}

#[test]
fn password_rotation_in_any_order_moves_nothing() {
    let steps = [with_password("Old", None), with_password("New", Some("Old")), with_password("New", None)];
    rotate(&steps);
}

#[test]
fn copies_are_counted_once_as_advertisements() {
    for step in [with_password("New", Some("Old")), signed(&k0s(Stack::V4), hmac(&[1, 2], 2, Mode::Enforce))]
    {
        let mut world = settled(equals(1, 2, &step));
        let backup = 1 - world.the_active();
        let before = *world.nodes[backup].router.counters();
        world.run(secs(20));
        let after = world.nodes[backup].router.counters();
        let received = after.advertisements_received - before.advertisements_received;
        assert!((19..=21).contains(&received), "{received} of 20");
        assert_eq!(after.copies - before.copies, received);
        assert_eq!(after.discarded.total(), before.discarded.total());
    }
}

#[test]
fn clock_steps_move_nothing() {
    for anti_replay in [AntiReplay::Time, AntiReplay::Monotonic] {
        let mut auth = hmac(&[1], 1, Mode::Enforce);
        auth.anti_replay = anti_replay;
        for (seed, by) in (0..).zip([secs(2), secs(60), secs(86_400)]) {
            let mut world = settled(equals(seed, 3, &signed(&k0s(Stack::V4), auth.clone())));
            let start = world.elapsed();
            for (node, forward) in [(0, true), (1, false), (2, true), (0, false), (1, true), (2, false)] {
                world.step_clock(node, forward, by);
                world.run_while(secs(20), undisturbed);
            }
            assert_eq!(world.takeovers_since(start), [], "{by:?}");
        }
    }
}

/// All clocks are wrong alike, and are set right one after the other. A router that is started later refuses the
/// signatures of the Active, until that one hears from it that the others have another time, too.
#[test]
fn corrected_clocks_are_followed_within_one_advertisement() {
    for seed in 0..6 {
        let mut world = settled(equals(seed, 3, &signed(&k0s(Stack::V4), hmac(&[1], 1, Mode::Enforce))));
        let start = world.elapsed();
        for node in ORDERS[usize::try_from(seed).unwrap()] {
            world.step_clock(node, true, secs(3600));
            world.run_while(secs(5), undisturbed);
        }
        assert_eq!(world.takeovers_since(start), []);
        let active = world.the_active();
        world.kill(active);
        world.run(secs(10));
        world.restart(active);
        assert!(contention(&mut world, secs(20)) <= ms(5));
        undisturbed(&world);
    }
}

/// The time within `duration` for which not exactly one router is Active.
fn contention(world: &mut World, duration: Duration) -> Duration {
    let mut contended = Duration::ZERO;
    let end = world.elapsed() + duration;
    while world.elapsed() < end {
        world.run(ms(1));
        if world.actives().len() != 1 {
            contended += ms(1);
        }
    }
    contended
}

/// Each node starts with a clock of its own, so none hears another. Once the clocks are right, it takes at most twice the
/// largest difference until one of them is Active.
#[test]
fn nodes_with_different_wrong_clocks_come_together() {
    let errors = [(true, secs(60)), (false, secs(60)), (true, secs(20))];
    for seed in 0..6 {
        let mut world = equals(seed, 3, &signed(&k0s(Stack::V4), hmac(&[1], 1, Mode::Enforce)));
        for (node, (forward, by)) in errors.into_iter().enumerate() {
            world.step_clock(node, forward, by);
            world.restart(node);
        }
        world.run(secs(20));
        for (node, (forward, by)) in errors.into_iter().enumerate() {
            world.step_clock(node, !forward, by);
        }
        world.run(secs(120));
        world.run_while(secs(60), undisturbed);
    }
}

/// One node starts an hour ahead, and its clock is then set right.
#[test]
fn corrected_node_returns_within_twice_the_window() {
    for seed in 0..6 {
        let mut world = settled(equals(seed, 3, &signed(&k0s(Stack::V4), hmac(&[1], 1, Mode::Enforce))));
        let node = usize::try_from(seed).unwrap() % 3;
        world.step_clock(node, true, secs(3600));
        world.restart(node);
        world.run(secs(20));
        world.step_clock(node, false, secs(3600));
        world.run(secs(11));
        world.run_while(secs(30), undisturbed);
    }
}

#[test]
fn enforcing_routers_ignore_strangers_without_the_key() {
    let signed = signed(&k0s(Stack::V4), hmac(&[1], 1, Mode::Enforce));
    let stranger = signed_by_another_key(&signed);
    let mut world = World::new(7, vec![signed.clone(), signed, stranger], 0);
    world.run(secs(20));
    // The stranger elects itself; the others do not notice.
    assert_eq!(world.nodes[2].router.state(), StateName::Active);
    let members: Vec<usize> = world.actives().into_iter().filter(|node| *node < 2).collect();
    let [active] = members[..] else { panic!("one Active expected: {members:?}") };
    let refused = world.nodes[active].router.counters().discarded.get(Discard::Digest);
    assert!(refused > 10, "{refused} refused");
}

fn signed_by_another_key(config: &RouterConfig) -> RouterConfig {
    let keys = BTreeMap::from([(id(1), Key::new(&[9; 32]).unwrap())]);
    signed(config, HmacConfig::new(keys, id(1), secs(1)).unwrap())
}
