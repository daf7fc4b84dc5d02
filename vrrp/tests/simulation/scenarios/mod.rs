//! Single stories with exact expectations.

mod authentication;
mod election;
mod faults;
mod handover;
mod serving;
mod strangers;

use std::time::Duration;

use vrrp::RouterConfig;

use crate::node::with_known_peers;
use crate::world::World;

const SEEDS: u64 = 20;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Some equal nodes and two clients.
fn equals(seed: u64, count: usize, config: &RouterConfig) -> World {
    World::new(seed, vec![config.clone(); count], 2)
}

/// The same, with the addresses of the others known.
fn peers(seed: u64, count: usize, config: &RouterConfig) -> World {
    World::new(seed, with_known_peers(vec![config.clone(); count]), 2)
}

/// A world in which the election is over and every lease settled.
fn settled(mut world: World) -> World {
    let interval = world.nodes.iter().map(|node| node.config.interval()).max().unwrap();
    world.run(interval * 10 + secs(4));
    world.the_active();
    world
}

/// At every moment at most one node has the addresses.
fn never_two_holders(world: &World) {
    let holders = world.holders();
    assert!(holders.len() <= 1, "two nodes hold the addresses: {holders:?} at {:?}", world.elapsed());
}
