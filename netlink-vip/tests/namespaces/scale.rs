//! As many groups as one interface can have routers, at a fast cadence.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netlink_vip::{GroupId, GroupState, KeeperEvent, LeaseTime, VipGroupConfig};

use crate::ground::{Ground, MS, SOON, group};

crate::trials![hundreds_of_groups_are_taken_over_and_kept];

const GROUPS: u32 = 255;

/// `utime` and `stime` of this process's keeper threads in ticks of 10 ms (fields 14 and 15 of `stat`).
fn keeper_time(thread: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    let fields: Vec<u32> =
        stat.rsplit(')').next().unwrap().split_whitespace().filter_map(|field| field.parse().ok()).collect();
    10 * MS * (fields[10] + fields[11])
}

fn newest_keeper() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    let named = tasks
        .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|c| c == "vip-keeper\n"));
    let ids = named.filter_map(|task| task.file_name().to_string_lossy().parse::<u32>().ok());
    ids.max().unwrap().to_string()
}

fn hundreds_of_groups_are_taken_over_and_kept(ground: &Ground) {
    ground.with_eth0();
    let config = |id: u32| -> VipGroupConfig { group(GroupId(id), "eth0", &[&format!("10.0.1.{id}/32")]) };
    let keeper = ground.keeper((1..=GROUPS).map(config).collect());
    // Threads of other tests have the same name; ours has just been made.
    let thread = newest_keeper();
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

    let (before, began) = (keeper_time(&thread), Instant::now());
    let refreshed = keeper.handle.status().counters.refreshes;
    let mut longest_gap = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(4) {
        let round = Instant::now();
        claim_all();
        std::thread::sleep(100 * MS);
        longest_gap = longest_gap.max(round.elapsed());
    }
    let load = (keeper_time(&thread) - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("{GROUPS} groups claimed every 100 ms take {:.1} % of a processor", load * 100.0);
    // What it costs is a matter of how many writes there are (a quarter of the claims here), and of who else wants the
    // kernel's lock: waiting for that is processor time as well, so the time itself is only told.
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
    assert!(!ground.ip("addr show dev eth0").contains("10.0.1."));
}
