//! The keeper's process dies or is stopped: the kernel ends the lease, and the next start cleans up.

use std::time::{Duration, Instant};

use netlink_vip::{Keeper, KeeperEvent, KeeperOptions, RegisterError, SpawnError, Warning};
use nix::sys::signal::Signal;

use crate::child::Remote;
use crate::fixture::{Fixture, MS, ONE, Observer, group};

crate::trials![
    after_a_kill_the_kernel_ends_the_lease,
    after_a_stop_nothing_is_refreshed_without_a_new_claim,
    a_short_stop_costs_nothing,
    leftovers_are_reclaimed_and_nothing_else,
    a_state_directory_has_one_keeper,
    an_unreadable_record_is_put_aside,
    an_unusable_state_directory_is_an_error,
    without_privilege_nothing_starts,
];

const VIPS: [&str; 2] = ["10.0.0.100/24", "fd00::100/64"];

/// DESIGN §4 counts on the kernel removing an address between 0.02 s before and 1.02 s after its time.
fn after_a_kill_the_kernel_ends_the_lease(fixture: &Fixture) {
    fixture.with_eth0();
    let before = fixture.tables();
    for lease in [2_u32, 3] {
        let state = fixture.fresh_state();
        let mut child = Remote::start(&state, &lease.to_string(), &VIPS);
        child.install();
        for _ in 0..3 {
            std::thread::sleep(700 * MS);
            child.claim(1_800 * MS);
        }
        let refreshed = Instant::now();
        std::thread::sleep(50 * MS);
        child.signal(Signal::SIGKILL);
        let mut gone = [None, None];
        while gone.contains(&None) {
            for (at, vip) in gone.iter_mut().zip(["10.0.0.100", "fd00::100"]) {
                if at.is_none() && !fixture.is_local(vip) {
                    *at = Some(refreshed.elapsed());
                }
            }
            assert!(refreshed.elapsed() < Duration::from_secs(8), "{}", fixture.ip("addr show"));
            std::thread::sleep(MS);
        }
        let [Some(v4), Some(v6)] = gone else { unreachable!() };
        println!("lease {lease} s: IPv4 gone after {v4:?}, IPv6 after {v6:?}");
        for took in [v4, v6] {
            assert!(took > MS * (lease * 1_000 - 40) && took < MS * (lease * 1_000 + 1_060), "{took:?}");
        }
        // The label cannot have a lifetime; the next start removes it.
        Observer::spawn(KeeperOptions::new(state), vec![]).end();
        fixture.assert_unchanged_since(&before);
    }
}

fn after_a_stop_nothing_is_refreshed_without_a_new_claim(fixture: &Fixture) {
    fixture.with_eth0();
    let mut child = Remote::start(&fixture.fresh_state(), "2", &VIPS);
    child.install();
    for _ in 0..2 {
        child.signal(Signal::SIGSTOP);
        // Written while it is stopped, valid for longer than it is: a claim that was not renewed since.
        child.claim(20_000 * MS);
        fixture.until("the end of the lease", || !fixture.has("10.0.0.100") && !fixture.has("fd00::100"));
        child.signal(Signal::SIGCONT);
        let until = Instant::now() + 1_000 * MS;
        while Instant::now() < until {
            assert!(
                !fixture.is_local("10.0.0.100") && !fixture.is_local("fd00::100"),
                "re-created after a stop"
            );
        }
        let removed = child.wait("Removed");
        assert!(removed.contains("Expired") || removed.contains("Lapsed"), "not Missing: {removed}");
        child.wait("LeaseLost");
        child.claim(1_800 * MS);
        child.wait("Installed");
        assert!(fixture.has("10.0.0.100") && fixture.has("fd00::100"));
    }
}

fn a_short_stop_costs_nothing(fixture: &Fixture) {
    fixture.with_eth0();
    let mut child = Remote::start(&fixture.fresh_state(), "2", &VIPS);
    child.install();
    for _ in 0..3 {
        child.signal(Signal::SIGSTOP);
        std::thread::sleep(900 * MS);
        child.claim(1_800 * MS);
        child.signal(Signal::SIGCONT);
        std::thread::sleep(300 * MS);
        assert!(fixture.has("10.0.0.100") && fixture.has("fd00::100"));
    }
    std::thread::sleep(700 * MS);
    assert!(fixture.has("10.0.0.100"), "the claims after the stops refreshed it");
}

fn leftovers_are_reclaimed_and_nothing_else(fixture: &Fixture) {
    fixture.with_eth0();
    // Foreign ones, as similar to ours as can be; even our mark on a route that is not listed.
    fixture.ip("addr add 10.0.0.200/32 dev eth0 valid_lft 900 preferred_lft 900");
    fixture.ip("addr add fd00::200/128 dev eth0 nodad valid_lft 900 preferred_lft 0");
    fixture.ip("addrlabel add prefix fd00::200/128 label 10000");
    fixture.ip("route add 198.51.100.0/24 dev eth0 proto 203 metric 1024");
    let before = fixture.tables();
    let state = fixture.fresh_state();
    let vips = ["10.0.0.100/24", "192.0.2.100/24", "fd00::100/64", "2001:db8::100/64"];
    let mut child = Remote::start(&state, "60", &vips);
    child.install();
    child.signal(Signal::SIGKILL);
    child.exit_code();
    let left = fixture.tables();
    for trace in
        ["10.0.0.100/32", "fd00::100/128 label 10000", "192.0.2.0/24 dev eth0", "2001:db8::/64 dev eth0"]
    {
        assert!(left.iter().any(|line| line.contains(trace)), "{trace} in {left:#?}");
    }
    // One of them has meanwhile become foreign.
    fixture.ip("addr del 192.0.2.100/32 dev eth0");
    fixture.ip("addr add 192.0.2.100/32 dev eth0");

    let keeper = Observer::spawn(KeeperOptions::new(&state), vec![group(ONE, "eth0", &VIPS)]);
    let (_, event) = keeper.wait("Reclaimed", |event| {
        matches!(event, KeeperEvent::Warning { warning: Warning::Reclaimed { .. }, .. })
    });
    println!("{event:?}");
    let mut after = fixture.tables();
    after.retain(|line| !line.contains("192.0.2.100"));
    assert_eq!(after, before);
    assert!(fixture.has("192.0.2.100"));
    keeper.end();
}

fn a_state_directory_has_one_keeper(fixture: &Fixture) {
    fixture.with_eth0();
    let state = fixture.fresh_state();
    let keeper = Observer::spawn(KeeperOptions::new(&state), vec![group(ONE, "eth0", &VIPS)]);
    keeper.install(ONE);
    let second = Keeper::spawn(KeeperOptions::new(&state), vec![], Box::new(|_| {}));
    assert!(matches!(second, Err(SpawnError::Register(RegisterError::InUse { .. }))));
    assert!(fixture.has("10.0.0.100"), "it did not reclaim what is in use");
    keeper.end();
    Observer::spawn(KeeperOptions::new(&state), vec![]).end();
}

fn an_unreadable_record_is_put_aside(fixture: &Fixture) {
    fixture.with_eth0();
    let state = fixture.fresh_state();
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("vips.json"), "{\"version\":").unwrap();
    let keeper = Observer::spawn(KeeperOptions::new(&state), vec![group(ONE, "eth0", &VIPS)]);
    keeper.wait("RecordUnreadable", |event| {
        matches!(event, KeeperEvent::Warning { warning: Warning::RecordUnreadable { .. }, .. })
    });
    keeper.install(ONE);
    keeper.end();
    assert!(state.join("vips.bad").exists() && !state.join("vips.json").exists());
}

fn an_unusable_state_directory_is_an_error(fixture: &Fixture) {
    let file = fixture.state.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error =
        Keeper::spawn(KeeperOptions::new(file.join("state")), vec![], Box::new(|_| {})).err().unwrap();
    assert!(matches!(&error, SpawnError::Register(RegisterError::StateDir { .. })), "{error}");
    println!("{error}");
}

fn without_privilege_nothing_starts(fixture: &Fixture) {
    fixture.with_eth0();
    let mut child = Remote::start(&fixture.fresh_state(), "unprivileged", &VIPS);
    child.wait("no permission");
    assert_eq!(child.exit_code(), Some(77));
}
