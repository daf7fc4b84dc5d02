//! A VIP is added on a claim, stays with further claims, and is removed without.

use std::time::{Duration, Instant};

use netlink_vip::{GroupState, KeeperEvent, Release, Removal};

use crate::fixture::{Fixture, MS, ONE, group, median};

crate::trials![
    a_claim_installs_both_families_and_a_release_leaves_no_trace,
    claims_keep_the_addresses_and_their_end_removes_them,
    a_deferred_release_ends_with_a_claim_or_at_its_deadline,
    from_claim_to_installed,
];

fn a_claim_installs_both_families_and_a_release_leaves_no_trace(fixture: &Fixture) {
    fixture.with_eth0();
    let before = fixture.tables();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64"])]);
    keeper.wait(
        "Interface",
        |event| matches!(event, KeeperEvent::Interface { state: Some(state), .. } if state.up),
    );
    fixture.assert_unchanged_since(&before);

    keeper.install(ONE);
    let v4 = fixture.ip("-4 addr show dev eth0");
    assert!(v4.contains("inet 10.0.0.100/32 scope global dynamic noprefixroute eth0"), "{v4}");
    assert!(v4.contains("valid_lft 2sec preferred_lft 2sec"), "{v4}");
    let v6 = fixture.ip("-6 addr show dev eth0");
    assert!(v6.contains("inet6 fd00::100/128 scope global nodad deprecated dynamic noprefixroute"), "{v6}");
    assert!(v6.contains("valid_lft 2sec preferred_lft 0sec"), "{v6}");
    assert!(fixture.ip("addrlabel list").contains("prefix fd00::100/128 label 10000"));
    keeper.shows("held", |status| matches!(status.groups[0].state, GroupState::Held { .. }));

    keeper.handle.release(ONE, Release::Planned);
    let released = Removal::Released(Release::Planned);
    keeper
        .wait("Removed", |event| matches!(event, KeeperEvent::Removed { reason, .. } if *reason == released));
    fixture.assert_unchanged_since(&before);
    keeper.install(ONE);
    let handle = keeper.handle.clone();
    assert!(handle.is_running());
    keeper.end();
    assert!(!handle.is_running());
    fixture.assert_unchanged_since(&before);
}

fn claims_keep_the_addresses_and_their_end_removes_them(fixture: &Fixture) {
    fixture.with_eth0();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64"])]);
    keeper.install(ONE);
    keeper.while_claiming(ONE, 200 * MS, || {
        for _ in 0..500 {
            assert!(fixture.has("10.0.0.100") && fixture.has("fd00::100"));
            std::thread::sleep(8 * MS);
        }
    });
    let quiet = keeper.said();
    assert!(quiet.is_empty(), "refreshes are silent: {quiet:?}");
    let last = keeper.claim(ONE);
    let (at, event) = keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
    assert_eq!(event, KeeperEvent::Removed { id: ONE, reason: Removal::Lapsed });
    assert!(at - last < Duration::from_secs(2), "before the kernel's own time");
    assert!(!fixture.has("10.0.0.100") && !fixture.has("fd00::100"));

    keeper.claim(ONE);
    keeper.wait("LeaseLost", |event| matches!(event, KeeperEvent::LeaseLost { .. }));
    assert!(!fixture.has("10.0.0.100"), "the claimant did not know that the lease was over");
    keeper.install(ONE);
    keeper.end();
}

fn a_deferred_release_ends_with_a_claim_or_at_its_deadline(fixture: &Fixture) {
    fixture.with_eth0();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24"])]);
    keeper.install(ONE);
    let begun = Instant::now();
    keeper.handle.release_by(ONE, begun + 600 * MS);
    assert!(fixture.has("10.0.0.100"), "its release waits");
    keeper.install(ONE);
    keeper.handle.finish_release(ONE);
    std::thread::sleep((begun + 700 * MS).saturating_duration_since(Instant::now()));
    assert!(fixture.has("10.0.0.100") && keeper.said().is_empty(), "the release is over");

    let deadline = Instant::now() + 200 * MS;
    keeper.handle.release_by(ONE, deadline);
    let (at, _) = keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
    assert!((deadline..deadline + 400 * MS).contains(&at), "{:?}", at.saturating_duration_since(deadline));
    assert!(!fixture.has("10.0.0.100"));
    keeper.end();
}

fn from_claim_to_installed(fixture: &Fixture) {
    fixture.with_eth0();
    for addresses in [&["10.0.0.100/24"][..], &["10.0.0.100/24", "fd00::100/64"]] {
        let keeper = fixture.keeper(vec![group(ONE, "eth0", addresses)]);
        keeper.wait("Interface", |event| matches!(event, KeeperEvent::Interface { state: Some(_), .. }));
        let took: Vec<Duration> = (0..200)
            .map(|_| {
                let took = keeper.install(ONE);
                keeper.handle.release(ONE, Release::Lost);
                keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
                took
            })
            .collect();
        println!("claim to Installed, {addresses:?}:");
        assert!(median(took) < 20 * MS);
        keeper.end();
    }
}
