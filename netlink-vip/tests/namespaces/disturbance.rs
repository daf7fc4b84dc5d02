//! Other programs change the interface while this node holds its VIPs.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netlink_vip::{Keeper, KeeperEvent, KeeperOptions, LeaseTime, Removal, ResyncCause, VipGroupConfig};

use crate::fixture::{Fixture, MS, ONE, Observer, group, median};

crate::trials![
    a_deleted_address_is_back_at_once,
    a_flushed_interface_gets_its_vips_back,
    a_deleted_address_comes_back_by_the_next_claim_when_claims_are_frequent,
    a_link_that_goes_down_loses_its_vips_and_gets_them_back,
    a_lost_carrier_counts_as_down,
    dropped_events_cause_a_resync,
    a_removal_without_a_claim_is_not_repaired,
];

/// The promise of DESIGN §4 for an address that another program removes.
const PROMISED: Duration = Duration::from_millis(100);

fn dual(fixture: &Fixture) -> Observer {
    fixture.with_eth0();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64"])]);
    keeper.install(ONE);
    keeper
}

/// Claims again when an address is reported missing, as an Active router does.
fn repair(keeper: &Observer, missing: usize) -> Instant {
    for _ in 0..missing {
        keeper.wait("Missing", |event| matches!(event, KeeperEvent::Missing { .. }));
    }
    keeper.claim(ONE);
    keeper.wait("Installed", |event| matches!(event, KeeperEvent::Installed { .. })).0
}

fn a_deleted_address_is_back_at_once(fixture: &Fixture) {
    let keeper = dual(fixture);
    let mut took = Vec::new();
    for _ in 0..20 {
        for vip in ["10.0.0.100/32", "fd00::100/128"] {
            fixture.ip(&format!("addr del {vip} dev eth0"));
            let gone = Instant::now();
            took.push(repair(&keeper, 1).saturating_duration_since(gone));
            assert!(fixture.has("10.0.0.100") && fixture.has("fd00::100"));
        }
    }
    println!("deleted addresses back:");
    assert!(median(took) < PROMISED);
    keeper.shows("each loss", |status| status.counters.missing == 40);
    keeper.end();
}

fn a_flushed_interface_gets_its_vips_back(fixture: &Fixture) {
    let keeper = dual(fixture);
    fixture.ip("addr flush dev eth0");
    let gone = Instant::now();
    let took = repair(&keeper, 2).saturating_duration_since(gone);
    println!("flushed addresses back after {took:?}");
    assert!(took < 2 * PROMISED, "{took:?}, and once only");
    assert!(fixture.has("10.0.0.100") && fixture.has("fd00::100") && !fixture.has("10.0.0.1"));
    let routes = fixture.ip("route show");
    assert!(routes.contains("10.0.0.0/24 dev eth0 proto 203"), "no covering address any more: {routes}");
    // The node's address comes back, and with it the kernel's route.
    fixture.ip("addr add 10.0.0.1/24 dev eth0");
    fixture.until("our route is gone", || !fixture.ip("route show").contains("proto 203"));
    assert!(fixture.ip("route show").contains("10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.1"));
    keeper.end();
}

fn a_deleted_address_comes_back_by_the_next_claim_when_claims_are_frequent(fixture: &Fixture) {
    let keeper = dual(fixture);
    let took = keeper.while_claiming(ONE, 10 * MS, || {
        let delete_and_wait = |_| {
            fixture.ip("addr del 10.0.0.100/32 dev eth0");
            fixture.until("the address", || fixture.is_local("10.0.0.100"))
        };
        (0..10).map(delete_and_wait).collect()
    });
    assert!(median(took) < PROMISED);
    keeper.shows("no lost lease", |status| status.counters.missing > 0 && status.counters.leases_lost == 0);
    keeper.end();
}

fn a_link_that_goes_down_loses_its_vips_and_gets_them_back(fixture: &Fixture) {
    let keeper = dual(fixture);
    let mut took = Vec::new();
    keeper.while_claiming(ONE, 20 * MS, || {
        for _ in 0..5 {
            fixture.ip("link set eth0 down");
            let (_, event) = keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
            assert_eq!(event, KeeperEvent::Removed { id: ONE, reason: Removal::InterfaceDown });
            keeper.wait(
                "down",
                |event| matches!(event, KeeperEvent::Interface { state: Some(state), .. } if !state.up),
            );
            assert!(!fixture.has("10.0.0.100") && !fixture.has("fd00::100"), "claims do not bring it back");
            std::thread::sleep(200 * MS);
            assert!(!fixture.has("10.0.0.100"));

            fixture.ip("link set eth0 up");
            let (up, _) = keeper.wait(
                "up",
                |event| matches!(event, KeeperEvent::Interface { state: Some(state), .. } if state.up),
            );
            let (at, _) = keeper.wait("Installed", |event| matches!(event, KeeperEvent::Installed { .. }));
            took.push(at - up);
            assert!(fixture.has("10.0.0.100") && fixture.has("fd00::100"));
        }
    });
    println!("VIPs back after link up:");
    assert!(median(took) < PROMISED);
    keeper.end();
}

fn a_lost_carrier_counts_as_down(fixture: &Fixture) {
    let keeper = dual(fixture);
    fixture.ip("link set peer0 down");
    let (_, event) = keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
    assert_eq!(event, KeeperEvent::Removed { id: ONE, reason: Removal::InterfaceDown });
    assert!(!fixture.has("10.0.0.100"));
    fixture.ip("link set peer0 up");
    keeper.wait("up", |event| matches!(event, KeeperEvent::Interface { state: Some(state), .. } if state.up));
    keeper.install(ONE);
    keeper.end();
}

fn dropped_events_cause_a_resync(fixture: &Fixture) {
    fixture.with_eth0();
    let mut options = KeeperOptions::new(fixture.fresh_state());
    options.event_buffer = 1;
    let (tell, events) = channel();
    let gate = Arc::new(Mutex::new(()));
    let sink_gate = Arc::clone(&gate);
    let sink = Box::new(move |event| {
        let _ = tell.send(event);
        drop(sink_gate.lock());
    });
    let lease = LeaseTime::new(Duration::from_secs(60)).unwrap();
    let config = VipGroupConfig { lease, ..group(ONE, "eth0", &["10.0.0.100/24"]) };
    let keeper = Keeper::spawn(options, vec![config], sink).unwrap();
    let wait = |what: &str, matches: &dyn Fn(&KeeperEvent) -> bool| loop {
        let event = events.recv_timeout(5_000 * MS).unwrap_or_else(|_| panic!("no {what}"));
        if matches(&event) {
            return event;
        }
    };
    keeper.claim(ONE, Instant::now() + 50_000 * MS);
    wait("Installed", &|event| matches!(event, KeeperEvent::Installed { .. }));
    let closed = gate.lock().unwrap();
    fixture.ip("addr add 10.0.0.9/24 dev eth0");
    wait("Interface", &|event| matches!(event, KeeperEvent::Interface { .. }));
    // The keeper now waits in our callback. What happens meanwhile does not fit into its buffer.
    for host in 1..60 {
        fixture.ip(&format!("addr add 192.0.2.{host}/32 dev lo"));
    }
    fixture.ip("addr del 10.0.0.100/32 dev eth0");
    drop(closed);
    wait("Resynced", &|event| matches!(event, KeeperEvent::Resynced { cause: ResyncCause::Overrun }));
    keeper.claim(ONE, Instant::now() + 50_000 * MS);
    fixture.until("the address", || fixture.has("10.0.0.100"));
    fixture.until("the counters", || {
        let counters = keeper.status().counters;
        counters.overruns >= 1 && counters.missing == 1
    });
    keeper.shutdown();
    keeper.join().unwrap();
}

fn a_removal_without_a_claim_is_not_repaired(fixture: &Fixture) {
    let keeper = dual(fixture);
    fixture.ip("addr del 10.0.0.100/32 dev eth0");
    keeper.wait("Missing", |event| matches!(event, KeeperEvent::Missing { .. }));
    std::thread::sleep(300 * MS);
    assert!(!fixture.has("10.0.0.100"), "there is no claim");
    keeper.end();
}
