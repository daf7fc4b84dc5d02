//! The commands of the owner.

use std::time::{Duration, Instant};

use vrrp::Vrid;
use vrrp::router::{Release, StateName, VipEvent};
use vrrp::runner::InstanceId;

use crate::Test;
use crate::capture::Capture;
use crate::fixture::{Lan, eventually, fast};
use crate::member::{ID, Member, Note, VIP6, VRID, config, with_first_active};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        ("instances_are_added_and_removed_at_run_time", instances_are_added_and_removed_at_run_time),
        ("a_new_priority_is_advertised_without_a_move", a_new_priority_is_advertised_without_a_move),
        ("a_second_family_is_added_without_a_move", a_second_family_is_added_without_a_move),
        ("a_shutdown_ends_within_its_bound", a_shutdown_ends_within_its_bound),
        ("a_shutdown_without_an_active_ends_at_once", a_shutdown_without_an_active_ends_at_once),
        ("dropping_the_last_handle_resigns", dropping_the_last_handle_resigns),
        ("serving_backup_replaces_a_degraded_active", serving_backup_replaces_a_degraded_active),
        ("claims_come_with_advertisements", claims_come_with_advertisements),
        ("every_advertisement_extends_the_claim", every_advertisement_extends_the_claim),
        ("a_missing_address_is_claimed_again", a_missing_address_is_claimed_again),
    ]
}

const SECOND: Duration = Duration::from_secs(1);

fn instances_are_added_and_removed_at_run_time() {
    let lan = Lan::new();
    let (a, b) = (lan.node(1), lan.node(2));
    let members = with_first_active(vec![(&a, config(200, fast())), (&b, config(100, fast()))]);
    members[0].await_state(StateName::Active, 3 * SECOND);
    let second = InstanceId(7);
    for member in &members {
        let mut extra = config(100, fast());
        extra.id = second;
        extra.router.vrid = Vrid::new(VRID + 1).expect("not 0");
        member.handle.add(extra);
        member.place(second);
    }
    let active_for = |id| {
        let states = members.iter().map(|member| member.status_of(id).map(|status| status.state));
        states.filter(|state| *state == Some(StateName::Active)).count()
    };
    eventually("each router has one active", 3 * SECOND, || {
        (active_for(second) == 1 && active_for(ID) == 1).then_some(())
    });
    let holder = members
        .iter()
        .find(|m| m.status_of(second).is_some_and(|s| s.state == StateName::Active))
        .expect("one");
    let removed = Instant::now();
    holder.handle.remove(second);
    eventually("it is gone", SECOND, || holder.status_of(second).is_none().then_some(()));
    assert_eq!(active_for(second), 1, "the other one has it");
    let released = holder
        .notes
        .find(removed, |note| if let Note::Release(id, why) = note { Some((*id, *why)) } else { None });
    assert_eq!(released.map(|(_, release)| release), Some((second, Release::Planned)));
    eventually("its identifier is foreign now", SECOND, || {
        holder.handle.status().interfaces[0].foreign.get(&(VRID + 1)).map(|_| ())
    });
    assert!(members[0].is_active(), "the first router has nothing to do with it");
}

fn a_new_priority_is_advertised_without_a_move() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    let start = Instant::now();
    member.handle.reconfigure(config(201, fast()));
    eventually("the new priority is seen", SECOND, || {
        capture.advertisements(start).iter().find(|seen| seen.advertisement.priority.0 == 201).map(|_| ())
    });
    assert_eq!(member.status().counters.became_active, 1);
    // From the group to a peer that does not exist: the group receives no more advertisements.
    let peer = "10.9.0.9".parse().expect("an address");
    member.handle.reconfigure(crate::member::unicast(config(201, fast()), &[peer]));
    let sent = eventually("it sends to the peer", SECOND, || {
        capture
            .frames()
            .iter()
            .rev()
            .find(|(_, frame)| frame.len() > 34 && frame[30..34] == [10, 9, 0, 9] && frame[23] == 112)
            .map(|(at, _)| *at)
    });
    let since = member.status().traffic.sent;
    eventually("more of them", SECOND, || (member.status().traffic.sent > since + 3).then_some(()));
    let to_group = capture
        .frames()
        .iter()
        .filter(|(at, frame)| *at > sent && frame.len() > 34 && frame[30..34] == [224, 0, 0, 18])
        .count();
    assert_eq!(to_group, 0);
}

fn a_second_family_is_added_without_a_move() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    let start = Instant::now();
    let mut both = config(100, fast());
    both.router.addresses_v6 = vec![VIP6];
    member.handle.reconfigure(both);
    eventually("both families are advertised", SECOND, || {
        let seen = capture.advertisements(start);
        (seen.iter().any(|seen| seen.source.is_ipv6()) && seen.iter().any(|seen| seen.source.is_ipv4()))
            .then_some(())
    });
    assert_eq!((member.state(), member.status().counters.became_active), (StateName::Active, 1));
    assert!(member.notes.find(start, |note| matches!(note, Note::Release(..)).then_some(())).is_none());
}

/// Without a successor a handover takes Skew + 3 A; the bound is shorter.
fn a_shutdown_ends_within_its_bound() {
    let lan = Lan::new();
    let a = lan.node(1);
    let member = Member::start(&a, vec![config(100, SECOND)]);
    member.await_state(StateName::Active, 5 * SECOND);
    let start = Instant::now();
    member.handle.shutdown(SECOND / 2);
    member.handle.join().expect("no panic");
    let took = start.elapsed();
    assert!(took > SECOND / 3 && took < 2 * SECOND, "{took:?}");
    assert!(
        member
            .notes
            .find(start, |note| matches!(note, Note::Release(ID, Release::Planned)).then_some(()))
            .is_some()
    );
    assert!(member.handle.has_ended());
}

fn a_shutdown_without_an_active_ends_at_once() {
    let lan = Lan::new();
    let (a, b) = (lan.node(1), lan.node(2));
    let members = with_first_active(vec![(&a, config(200, fast())), (&b, config(100, fast()))]);
    members[0].await_state(StateName::Active, 3 * SECOND);
    members[1].await_state(StateName::Backup, 3 * SECOND);
    let start = Instant::now();
    members[1].handle.shutdown(5 * SECOND);
    members[1].handle.join().expect("no panic");
    assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
    assert!(members[0].is_active());
}

fn dropping_the_last_handle_resigns() {
    use vrrp::runner::{Runner, RunnerOptions, VipKeeper};
    struct Nobody;
    impl VipKeeper for Nobody {
        fn claim(&self, _: InstanceId, _: vrrp::router::Claim) {}
        fn release(&self, _: InstanceId, _: Release) {}
    }
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let handle = a.run(|| {
        let instances = vec![config(100, fast())];
        Runner::spawn(RunnerOptions::default(), instances, Box::new(Nobody), Box::new(|_| {}))
            .expect("a runner")
    });
    handle.interface(ID, a.interface("eth0"));
    eventually("it is active", 3 * SECOND, || {
        (handle.status().instances[0].state == StateName::Active).then_some(())
    });
    let start = Instant::now();
    drop(handle);
    eventually("it resigns", SECOND, || {
        capture.advertisements(start).iter().find(|seen| seen.advertisement.priority.0 == 0).map(|_| ())
    });
}

fn serving_backup_replaces_a_degraded_active() {
    let lan = Lan::new();
    let (a, b) = (lan.node(1), lan.node(2));
    let members = with_first_active(vec![(&a, config(200, fast())), (&b, config(100, fast()))]);
    members[0].await_state(StateName::Active, 3 * SECOND);
    eventually("the backup serves, too", 4 * SECOND, || members[1].status().serving.then_some(()));
    members[0].handle.not_serving();
    members[1].await_state(StateName::Active, 3 * SECOND);
    members[0].await_state(StateName::Backup, SECOND);
}

fn claims_come_with_advertisements() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let member = Member::start(&a, vec![config(100, SECOND)]);
    member.await_state(StateName::Active, 5 * SECOND);
    let start = Instant::now();
    eventually("some advertisements", 5 * SECOND, || {
        (capture.advertisements(start).len() >= 3).then_some(())
    });
    let claim = |note: &Note| if let Note::Claim(ID, claim) = note { Some(claim.valid_until) } else { None };
    for seen in capture.advertisements(start) {
        let (at, until) = member.notes.find(seen.at - fast(), claim).expect("a claim");
        assert!(at < seen.at + fast(), "the claim belongs to the advertisement");
        assert!(until > at + SECOND && until <= at + 9 * SECOND / 5 + fast(), "valid for {:?}", until - at);
    }
    let claims = member.notes.count(|note| claim(note).is_some());
    assert!(claims <= 2 + capture.advertisements(start - 10 * SECOND).len(), "{claims} claims");
}

/// At 100 ms a claim, with its netlink request, comes only every quarter of the lease.
fn every_advertisement_extends_the_claim() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, 3 * SECOND);
    let start = Instant::now();
    eventually("some advertisements", 5 * SECOND, || {
        (capture.advertisements(start).len() >= 8).then_some(())
    });
    let mut last = start;
    for seen in capture.advertisements(start) {
        let extension = |note: &Note| if let Note::Extend(ID, end) = note { Some(*end) } else { None };
        let extended =
            eventually("an extension", SECOND, || member.notes.find(seen.at - fast() / 2, extension));
        let (at, end) = extended;
        assert!(at < seen.at + fast(), "it belongs to the advertisement");
        assert!(end > last && end <= at + 4 * fast(), "valid for {:?} after {last:?}", end - at);
        last = end;
    }
    let released = Instant::now();
    member.handle.shutdown(SECOND);
    member.handle.join().expect("no panic");
    let after = member.notes.find(released, |note| matches!(note, Note::Release(..)).then_some(()));
    let (gone, ()) = after.expect("a release");
    assert!(member.notes.find(gone, |note| matches!(note, Note::Extend(..)).then_some(())).is_none());
}

fn a_missing_address_is_claimed_again() {
    let lan = Lan::new();
    let a = lan.node(1);
    let member = Member::start(&a, vec![config(100, SECOND)]);
    member.await_state(StateName::Active, 5 * SECOND);
    let start = Instant::now();
    member.handle.vip(ID, VipEvent::Missing);
    let claimed = eventually("a claim", SECOND, || {
        member.notes.find(start, |note| matches!(note, Note::Claim(..)).then_some(()))
    });
    assert!(claimed.0 - start < fast(), "claimed after {:?}", claimed.0 - start);
    member.handle.vip(ID, VipEvent::LeaseLost);
    member.await_state(StateName::Listening, SECOND);
    member.await_state(StateName::Active, 3 * SECOND);
}
