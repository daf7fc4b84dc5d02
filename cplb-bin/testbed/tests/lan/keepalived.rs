//! Tests with Debian's keepalived on the LAN.

use std::{net::IpAddr, time::Duration};

use testbed::{
    Backend, Keepalived, KeepalivedState, Lan, Probe, Test, Tool, VrrpAdvert, VrrpInstance, eventually,
};

pub(crate) fn tests() -> Vec<Test> {
    let needs = [Tool::Keepalived];
    vec![
        Test::new("three_keepalived_nodes_elect_one_master", three_keepalived_nodes_elect_one_master)
            .needs(needs),
        Test::new(
            "keepalived_adverts_are_decoded_in_every_variant",
            keepalived_adverts_are_decoded_in_every_variant,
        )
        .needs(needs),
        Test::new("crashed_keepalived_leaves_its_address", crashed_keepalived_leaves_its_address)
            .needs(needs),
    ]
}

const LONG: Duration = Duration::from_secs(15);
const FAST: Duration = Duration::from_millis(100);

fn three_keepalived_nodes_elect_one_master() {
    let lan = Lan::builder().build().expect("a LAN");
    let vip: IpAddr = lan.v4(100).into();
    let capture = lan.capture().expect("a capture");
    let instance = |priority| VrrpInstance::v3(51, [(vip, 24)]).priority(priority).interval(FAST);
    let instances = [instance(100), instance(150), instance(120)];
    let trio: Vec<Keepalived> = (lan.controllers().iter().zip(&instances))
        .map(|(node, instance)| Keepalived::start(node, std::slice::from_ref(instance)).expect("keepalived"))
        .collect();
    trio[1].wait_for_state(&instances[1], KeepalivedState::Master, LONG).expect("the highest priority wins");
    eventually("the other instances are backups", LONG, || {
        [0, 2].iter().all(|&i| trio[i].state(&instances[i]) == KeepalivedState::Backup)
    });
    eventually("one node has the address", LONG, || {
        lan.owners(vip).iter().map(|node| node.name()).eq(["c2"])
    });
    let (_, advert) = capture.adverts(51).into_iter().last().expect("an advertisement");
    assert_eq!((advert.version, advert.priority, advert.interval, advert.ttl), (3, 150, FAST, 255));
    assert_eq!((advert.mac, advert.source), (lan.controller(1).mac(), lan.controller(1).v4().into()));
    assert_eq!(advert.destination.to_string(), "224.0.0.18");
    assert!(capture.adverts(52).is_empty());
    eventually("the address is announced", LONG, || {
        capture.announcements(vip).last().is_some_and(|(_, last)| last.mac == lan.controller(1).mac())
    });

    let stopped = trio[1].stop().expect("stopped");
    trio[2].wait_for_state(&instances[2], KeepalivedState::Master, LONG).expect("the next one");
    let resigned = capture.adverts(51).into_iter().any(|(at, advert)| at >= stopped && advert.priority == 0);
    assert!(resigned, "a clean stop resigns");
    eventually("the address has moved", LONG, || lan.owners(vip).iter().map(|node| node.name()).eq(["c3"]));
}

fn keepalived_adverts_are_decoded_in_every_variant() {
    let lan = Lan::builder().build().expect("a LAN");
    let [c1, c2] = [0, 1].map(|index| lan.controller(index));
    let (v4, v6) = ((lan.v4(100).into(), 24), ("fe80::100".parse().expect("an address"), 64));
    let own = |index: usize| IpAddr::from(lan.controller(index).v4());
    let variants = |index: usize, other: usize| {
        [
            VrrpInstance::v2(51, [v4]),
            VrrpInstance::v2(52, [(lan.v4(101).into(), 24)])
                .password("other")
                .unicast(own(index), [own(other)]),
            VrrpInstance::v3(53, [(lan.v4(102).into(), 24)]).interval(FAST),
            VrrpInstance::v3(54, [v6, (lan.v6(100).into(), 64)]).interval(FAST),
        ]
        .map(|instance| instance.priority(if index == 0 { 200 } else { 100 }))
    };
    let (winners, losers) = (variants(0, 1), variants(1, 0));
    let capture = lan.capture().expect("a capture");
    let winner = Keepalived::start(c1, &winners).expect("keepalived");
    let loser = Keepalived::start(c2, &losers).expect("keepalived");
    for (theirs, ours) in winners.iter().zip(&losers) {
        winner.wait_for_state(theirs, KeepalivedState::Master, LONG).expect("it wins");
        loser.wait_for_state(ours, KeepalivedState::Backup, LONG).expect("it loses");
    }
    let sent = |vrid| {
        let from_winner = |advert: &VrrpAdvert| advert.vrid == vrid && advert.mac == c1.mac();
        let frame = capture
            .wait_for("an advertisement", LONG, |frame| frame.vrrp().is_some_and(|it| from_winner(&it)));
        frame.unwrap_or_else(|error| panic!("{vrid}: {error}")).vrrp().expect("an advertisement")
    };
    assert_eq!((sent(51).version, sent(51).interval), (2, Duration::from_secs(1)));
    assert_eq!(sent(51).message.len(), 16 + 4, "with an authentication field");
    assert_eq!(sent(52).destination, own(1));
    assert_eq!((sent(53).version, sent(53).destination.to_string()), (3, "224.0.0.18".into()));
    let v6 = sent(54);
    assert_eq!((v6.version, v6.destination.to_string()), (3, "ff02::12".into()));
    assert_eq!(v6.source, c1.link_local());
}

fn crashed_keepalived_leaves_its_address() {
    let lan = Lan::builder().controllers(2).build().expect("a LAN");
    let vip: IpAddr = lan.v4(100).into();
    let instance = |priority| VrrpInstance::v3(51, [(vip, 24)]).priority(priority).interval(FAST);
    let [high, low] = [instance(200), instance(100)];
    let first = Keepalived::start(lan.controller(0), std::slice::from_ref(&high)).expect("keepalived");
    let second = Keepalived::start(lan.controller(1), std::slice::from_ref(&low)).expect("keepalived");
    first.wait_for_state(&high, KeepalivedState::Master, LONG).expect("it wins");
    let _backends = lan
        .controllers()
        .iter()
        .map(|node| Backend::echo(node, node.name(), 7000).expect("a backend"))
        .collect::<Vec<_>>();
    let probe = Probe::to((vip, 7000).into()).start(lan.client(0)).expect("a probe");
    probe.wait_until_stable(FAST, LONG).expect("probes succeed");
    let crashed = first.crash().expect("crashed");
    second.wait_for_state(&low, KeepalivedState::Master, LONG).expect("it takes over");
    eventually("the second one serves", LONG, || probe.report().served_by_since(crashed).contains_key("c2"));
    assert_eq!(lan.owners(vip).len(), 2, "the kernel still has the address of the dead one");
    // It restarts in spite of its pid files, and does not preempt with `nopreempt`.
    first.stop().expect("nothing is left to stop");
    let start = |instance: &VrrpInstance| {
        Keepalived::start(lan.controller(0), std::slice::from_ref(instance)).expect("keepalived")
    };
    let modest = high.clone().nopreempt();
    let again = start(&modest);
    again.wait_for_state(&modest, KeepalivedState::Backup, LONG).expect("the instance stays a backup");
    assert_eq!(second.state(&low), KeepalivedState::Master);
    again.crash().expect("crashed");
    start(&high).wait_for_state(&high, KeepalivedState::Master, LONG).expect("it wins again");
}
