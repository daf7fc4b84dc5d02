//! Interfaces that come, go and misbehave.

use std::time::{Duration, Instant};

use vrrp::router::{Reason, Release, StateName};
use vrrp::runner::{RunnerEvent, SocketOperation};

use crate::Test;
use crate::capture::Capture;
use crate::fixture::{Lan, always, eventually, fast, sh};
use crate::member::{ID, Member, Note, config, with_first_active};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        ("a_router_waits_for_its_interface", a_router_waits_for_its_interface),
        ("a_recreated_interface_gets_new_sockets", a_recreated_interface_gets_new_sockets),
        ("an_interface_that_goes_down_loses_the_addresses", an_interface_that_goes_down_loses_the_addresses),
        ("failed_sends_are_reported_counted_and_repeated", failed_sends_are_reported_counted_and_repeated),
        ("sockets_that_cannot_be_opened_are_tried_again", sockets_that_cannot_be_opened_are_tried_again),
        ("a_new_source_address_is_used_at_once", a_new_source_address_is_used_at_once),
        ("a_new_link_layer_address_is_announced", a_new_link_layer_address_is_announced),
    ]
}

const SECOND: Duration = Duration::from_secs(1);

fn a_router_waits_for_its_interface() {
    let lan = Lan::new();
    let a = lan.node(1);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    member.handle.interface(ID, None);
    member.await_state(StateName::Init, SECOND);
    assert_eq!(member.status().interface, None);
    always("it waits", 6 * fast(), || member.state() == StateName::Init);
    assert!(member.handle.status().interfaces.is_empty(), "its sockets are closed");
    member.place(ID);
    member.await_state(StateName::Active, 3 * SECOND);
    assert_eq!(member.status().interface.as_deref(), Some("eth0"));
}

fn a_recreated_interface_gets_new_sockets() {
    let lan = Lan::new();
    let (a, b) = (lan.node(1), lan.node(2));
    let members = with_first_active(vec![(&a, config(200, fast())), (&b, config(100, fast()))]);
    members[0].await_state(StateName::Active, 3 * SECOND);
    eventually("the backup follows", SECOND, || members[1].status().active);
    let before = b.interface("eth0").expect("eth0").index;
    b.run(|| sh("ip", "link del eth0"));
    let tid = b.run(nix::unistd::gettid);
    sh("ip", &format!("link add port2 type veth peer name eth0 netns {tid}"));
    sh("ip", "link set port2 master br0 up");
    b.run(|| sh("ip", "addr add 10.9.0.2/24 dev eth0"));
    b.run(|| sh("ip", "link set eth0 up"));
    let after = eventually("eth0 is back", SECOND, || {
        b.interface("eth0").filter(|eth0| eth0.up && eth0.v4.is_some())
    });
    assert!(after.index != before);
    let index = after.index;
    members[1].handle.interface(ID, Some(after));
    let started = Instant::now();
    eventually("only the new one is in use", SECOND, || {
        let status = members[1].handle.status();
        (status.interfaces.len() == 1 && status.interfaces[0].index == index && status.interfaces[0].open)
            .then_some(())
    });
    eventually("it hears the active again", SECOND, || {
        members[1].status().active.filter(|peer| peer.heard > started)
    });
    members[0].crash();
    members[1].await_state(StateName::Active, 2 * SECOND);
}

fn an_interface_that_goes_down_loses_the_addresses() {
    let lan = Lan::new();
    let a = lan.node(1);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    let start = Instant::now();
    a.run(|| sh("ip", "link set eth0 down"));
    member.place(ID);
    member.await_state(StateName::Init, SECOND);
    let released =
        member.notes.find(start, |note| if let Note::Release(_, why) = note { Some(*why) } else { None });
    assert_eq!(released.map(|(_, why)| why), Some(Release::Lost));
    let last = member.status().transitions.last().expect("a transition").transition;
    assert_eq!(
        (last.from, last.to, last.reason),
        (StateName::Active, StateName::Init, Reason::InterfaceDown)
    );
    a.run(|| sh("ip", "link set eth0 up"));
    eventually("carrier", SECOND, || a.interface("eth0").filter(|eth0| eth0.up));
    member.place(ID);
    member.await_state(StateName::Active, 3 * SECOND);
}

/// The runner is not informed that the interface is down, so it can only find out by sending.
fn failed_sends_are_reported_counted_and_repeated() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    a.run(|| sh("ip", "link set eth0 down"));
    let failed = eventually("failures are counted", SECOND, || {
        Some(member.status().traffic.send_errors).filter(|n| *n > 2)
    });
    let told = member.notes.count(|note| {
        matches!(note, Note::Event(RunnerEvent::SocketError { operation: SocketOperation::Advertise, .. }))
    });
    assert_eq!(told, 1, "{failed} failures, one event a minute");
    a.run(|| sh("ip", "link set eth0 up"));
    let up = Instant::now();
    eventually("it advertises again", 3 * SECOND, || (capture.advertisements(up).len() > 3).then_some(()));
    assert!(member.is_active());
}

fn sockets_that_cannot_be_opened_are_tried_again() {
    let lan = Lan::new();
    let a = lan.node(1);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    let mut ghost = a.interface("eth0").expect("eth0");
    ghost.index = 4711;
    member.handle.interface(ID, Some(ghost));
    member.await_state(StateName::Init, SECOND);
    eventually("two attempts", 4 * SECOND, || {
        member
            .handle
            .status()
            .interfaces
            .iter()
            .find(|link| link.index == 4711 && link.errors >= 2)
            .map(|_| ())
    });
    let told = member.notes.count(|note| {
        matches!(note, Note::Event(RunnerEvent::SocketError { operation: SocketOperation::Open, .. }))
    });
    assert_eq!(told, 1);
    member.place(ID);
    member.await_state(StateName::Active, 3 * SECOND);
}

fn a_new_source_address_is_used_at_once() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    a.run(|| sh("ip", "addr add 10.9.0.77/24 dev eth0"));
    let mut interface = a.interface("eth0").expect("eth0");
    interface.v4 = Some([10, 9, 0, 77].into());
    let start = Instant::now();
    member.handle.interface(ID, Some(interface));
    eventually("its advertisements come from there", SECOND, || {
        capture.advertisements(start).iter().find(|seen| seen.source.to_string() == "10.9.0.77").map(|_| ())
    });
    assert!(member.is_active() && member.status().counters.became_active == 1);
}

fn a_new_link_layer_address_is_announced() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    a.run(|| sh("ip", "link set eth0 address 02:00:00:00:00:77"));
    let start = Instant::now();
    member.place(ID);
    let new = vrrp::MacAddr([2, 0, 0, 0, 0, 0x77]);
    let announced = || capture.announcements(start).into_iter().find(|(_, seen)| seen.mac == new);
    // The periodic announcements would come half a second later.
    eventually("the new address is announced", SECOND / 4, announced);
    assert_eq!(member.status().counters.became_active, 1);
}
