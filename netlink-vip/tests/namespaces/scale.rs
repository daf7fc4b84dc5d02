//! As many groups as one interface can have routers, at a fast cadence.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netlink_vip::{GroupId, GroupState, KeeperEvent, LeaseTime, VipGroupConfig};

use crate::fixture::{Fixture, MS, SOON, group};

crate::trials![hundreds_of_groups_are_taken_over_and_kept];

const GROUPS: u32 = 255;

fn hundreds_of_groups_are_taken_over_and_kept(fixture: &Fixture) {
    fixture.with_eth0();
    let config = |id: u32| -> VipGroupConfig { group(GroupId(id), "eth0", &[&format!("10.0.1.{id}/32")]) };
    let keeper = fixture.keeper((1..=GROUPS).map(config).collect());
    let claim_all = || (1..=GROUPS).for_each(|id| _ = keeper.claim(GroupId(id)));
    keeper.wait("Resynced", |event| matches!(event, KeeperEvent::Resynced { .. }));
    let start = keeper.claim(GroupId(1));
    claim_all();
    let mut waiting: BTreeSet<u32> = (1..=GROUPS).collect();
    let mut last = start;
    while !waiting.is_empty() {
        let (at, event) = keeper.wait("Installed", |event| matches!(event, KeeperEvent::Installed { .. }));
        let KeeperEvent::Installed { id, .. } = event else { unreachable!() };
        waiting.remove(&id.0);
        last = at;
    }
    println!("{GROUPS} groups taken over in {:?}", last - start);
    assert!(last - start < SOON);

    let began = Instant::now();
    let refreshed = keeper.handle.status().counters.refreshes;
    let mut longest_gap = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(4) {
        let round = Instant::now();
        claim_all();
        std::thread::sleep(100 * MS);
        longest_gap = longest_gap.max(round.elapsed());
    }
    // The cost depends on the number of writes: a quarter of the claims here.
    let refreshes = keeper.handle.status().counters.refreshes - refreshed;
    // The status is up to a second old.
    let spacing = LeaseTime::MIN.duration() / 6;
    let most = u64::from(GROUPS) * (began.elapsed().as_micros() / spacing.as_micros() + 5) as u64;
    assert!(refreshes <= most, "{refreshes} refreshes, at most {most} are needed");
    let events = keeper.said().len();
    // This thread has no real-time priority: if it was kept from claiming, leases rightly ended.
    assert!(
        events == 0 || longest_gap > 1_000 * MS,
        "{events} events, although claims came every {longest_gap:?}"
    );
    claim_all();
    std::thread::sleep(50 * MS);
    claim_all();
    keeper.shows("all held", |status| {
        status.groups.iter().all(|group| matches!(group.state, GroupState::Held { .. }))
    });
    keeper.end();
    assert!(!fixture.ip("addr show dev eth0").contains("10.0.1."));
}
