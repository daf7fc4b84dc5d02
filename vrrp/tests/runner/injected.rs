//! Packets that no router of ours would send.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use vrrp::router::{Discard, Release, StateName};
use vrrp::runner::{InstanceId, RunnerEvent, RunnerOptions};
use vrrp::{Addresses, AdvertInterval, Advertisement, Auth, Version, Vrid, WirePriority};

use crate::Test;
use crate::capture::{Capture, encoded, inject};
use crate::fixture::{Lan, always, eventually, fast, is_real_root, sh};
use crate::member::{ID, Member, Note, VIP4, VRID, config};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        ("bad_packets_are_counted_and_change_nothing", bad_packets_are_counted_and_change_nothing),
        ("a_conflict_with_the_own_address_is_reported", a_conflict_with_the_own_address_is_reported),
        ("a_stalled_backup_reads_before_it_takes_over", a_stalled_backup_reads_before_it_takes_over),
        ("a_stalled_active_listens_before_it_speaks", a_stalled_active_listens_before_it_speaks),
        ("a_flood_neither_stops_nor_kills_the_active", a_flood_neither_stops_nor_kills_the_active),
    ]
}

const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 9);

fn advertisement(priority: u8) -> Advertisement {
    Advertisement {
        version: Version::V3,
        vrid: Vrid::new(VRID).expect("not 0"),
        priority: WirePriority(priority),
        interval: AdvertInterval::from_centiseconds(10).expect("an interval"),
        addresses: Addresses::V4(vec![VIP4]),
        auth: Auth::None,
    }
}

/// A message of the highest priority that was changed by `spoil` and, if so asked, given a good checksum again.
fn spoilt(spoil: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = encoded(STRANGER, &advertisement(254));
    spoil(&mut message);
    message
}

/// Sets one byte and adapts the checksum, so that this byte is the only error.
fn with_byte(offset: usize, value: u8) -> Vec<u8> {
    spoilt(|message| {
        let word = |message: &[u8]| u16::from_be_bytes([message[offset & !1], message[offset | 1]]);
        let before = word(message);
        message[offset] = value;
        let after = word(message);
        // RFC 1624, equation 3.
        let checksum = u16::from_be_bytes([message[6], message[7]]);
        let sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        let checksum = !u16::try_from(folded).expect("folded");
        message[6..8].copy_from_slice(&checksum.to_be_bytes());
    })
}

fn bad_packets_are_counted_and_change_nothing() {
    let lan = Lan::new();
    let (a, stranger) = (lan.node(1), lan.node(9));
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, Duration::from_secs(3));
    let cases: Vec<(Discard, u32, Vec<u8>)> = vec![
        (Discard::HopLimit, 254, encoded(STRANGER, &advertisement(254))),
        (Discard::Truncated, 255, spoilt(|message| message.truncate(10))),
        (Discard::TrailingBytes, 255, spoilt(|message| message.push(0))),
        (Discard::Checksum, 255, spoilt(|message| message[2] ^= 1)),
        (Discard::Version, 255, with_byte(0, 0x41)),
        (Discard::Kind, 255, with_byte(0, 0x32)),
        (Discard::TrailingBytes, 255, with_byte(3, 0)),
        (Discard::Truncated, 255, with_byte(3, 255)),
        (Discard::IntervalZero, 255, with_byte(5, 0)),
        (Discard::OwnerPriority, 255, with_byte(2, 255)),
        (Discard::NoAddresses, 255, vec![0x31, VRID, 254, 0, 0, 10, 0xcf - 0x33, 0]),
    ];
    for (reason, ttl, message) in cases {
        let before = member.status().counters.discarded.get(reason);
        if reason == Discard::NoAddresses {
            let mut empty = advertisement(254);
            empty.addresses = Addresses::V4(Vec::new());
            inject(&stranger, ttl, encoded(STRANGER, &empty));
        } else {
            inject(&stranger, ttl, message);
        }
        eventually(&format!("{reason} is counted"), Duration::from_secs(2), || {
            (member.status().counters.discarded.get(reason) == before + 1).then_some(())
        });
    }
    let foreign = Advertisement { vrid: Vrid::new(77).expect("not 0"), ..advertisement(254) };
    (0..3).for_each(|_| inject(&stranger, 255, encoded(STRANGER, &foreign)));
    inject(&stranger, 255, vec![0x31]);
    let interface = eventually("foreign identifiers are counted", Duration::from_secs(2), || {
        let status = member.handle.status();
        let interface = status.interfaces.first()?.clone();
        (interface.foreign.get(&77) == Some(&3) && interface.malformed == 1).then_some(interface)
    });
    assert!(interface.open && interface.name == "eth0");
    let status = member.status();
    assert_eq!((status.state, status.counters.became_active), (StateName::Active, 1));
    assert!(status.traffic.longest_gap < 3 * fast() / 2 || !is_real_root(), "{:?}", status.traffic);
    let truncated = member.notes.count(|note| {
        matches!(note, Note::Event(RunnerEvent::Discarded { id: ID, reason: Discard::Truncated, .. }))
    });
    assert_eq!(truncated, 1, "two packets, one event a minute");
    assert!(member.notes.count(|note| matches!(note, Note::Event(RunnerEvent::SocketError { .. }))) == 0);
}

fn a_conflict_with_the_own_address_is_reported() {
    let lan = Lan::new();
    let (a, double) = (lan.node(1), lan.node(9));
    let member = Member::start(&a, vec![config(100, fast())]);
    member.await_state(StateName::Active, Duration::from_secs(3));
    always("we never hear ourselves", 5 * fast(), || {
        member.status().counters.discarded.get(Discard::OwnSource) == 0
    });
    // Without this setting the kernel drops such packets itself (as martians).
    a.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/accept_local", "1").expect("sysctl"));
    double.run(|| sh("ip", "addr del 10.9.0.9/24 dev eth0"));
    double.run(|| sh("ip", "addr add 10.9.0.1/24 dev eth0"));
    inject(&double, 255, encoded(a.v4(), &advertisement(254)));
    eventually("the conflict is told", Duration::from_secs(2), || {
        member.notes.find(Instant::now() - Duration::from_secs(60), |note| {
            matches!(
                note,
                Note::Event(RunnerEvent::Warning { warning: vrrp::router::Warning::Conflict { .. }, .. })
            )
            .then_some(())
        })
    });
    assert!(member.is_active());
}

/// The thread is held up for longer than Down while the Active goes on: once while it reads, once while it handles
/// commands.
fn a_stalled_backup_reads_before_it_takes_over() {
    let lan = Lan::new();
    let (a, b, stranger) = (lan.node(1), lan.node(2), lan.node(9));
    let active = Member::start(&a, vec![config(200, fast())]);
    active.await_state(StateName::Active, Duration::from_secs(3));
    let stalls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&stalls);
    let other = InstanceId(2);
    let hook = Box::new(move |event: &RunnerEvent| {
        let reading = matches!(event, RunnerEvent::Discarded { reason: Discard::Checksum, .. });
        let obeying = matches!(event, RunnerEvent::Transition { id, past }
            if *id == other && past.transition.to == StateName::Stopped);
        if reading || obeying {
            // A scheduler that does not run the thread has the same effect.
            std::thread::sleep(8 * fast());
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut unconnected = config(100, fast());
    unconnected.id = other;
    let backup = Member::start_with(&b, RunnerOptions::default(), vec![config(100, fast())], hook);
    backup.handle.add(unconnected);
    eventually("the backup follows", Duration::from_secs(3), || backup.status().active);
    for (number, stall) in [
        Box::new(|| inject(&stranger, 255, spoilt(|message| message[2] ^= 1))) as Box<dyn Fn()>,
        Box::new(|| backup.handle.resign(other)),
    ]
    .into_iter()
    .enumerate()
    {
        stall();
        let over = || (stalls.load(Ordering::SeqCst) > number).then_some(());
        eventually("the stall is over", Duration::from_secs(5), over);
        always("one active", 8 * fast(), || backup.state() == StateName::Backup && active.is_active());
    }
    let counters = backup.status().counters;
    // The election, too, distrusts a deadline that is handled late; it must not come to that.
    assert_eq!((counters.became_active, counters.overslept), (0, 0));
}

/// The Active is held up until its successor has taken over.
fn a_stalled_active_listens_before_it_speaks() {
    let lan = Lan::new();
    let (a, b, observer) = (lan.node(1), lan.node(2), lan.node(9));
    let capture = Capture::on(&observer);
    let hook = Box::new(|event: &RunnerEvent| {
        if matches!(event, RunnerEvent::Discarded { reason: Discard::Checksum, .. }) {
            std::thread::sleep(10 * fast());
        }
    });
    let first = Member::start_with(&a, RunnerOptions::default(), vec![config(200, fast())], hook);
    first.await_state(StateName::Active, Duration::from_secs(3));
    let second = Member::start(&b, vec![config(100, fast())]);
    eventually("the backup follows", Duration::from_secs(3), || second.status().active);
    inject(&observer, 255, spoilt(|message| message[2] ^= 1));
    let stalled = Instant::now();
    second.await_state(StateName::Active, Duration::from_secs(2));
    first.await_state(StateName::Backup, Duration::from_secs(3));
    let (yielded, why) = first
        .notes
        .find(stalled, |note| if let Note::Release(ID, why) = note { Some(*why) } else { None })
        .expect("the addresses are given up");
    assert_eq!(why, Release::Planned);
    assert!(yielded - stalled < 13 * fast() || !is_real_root(), "given up after {:?}", yielded - stalled);
    always("one active", 8 * fast(), || second.is_active() && first.state() == StateName::Backup);
    let late = capture.advertisements(stalled + fast() / 2);
    assert!(!late.is_empty() && late.iter().all(|seen| seen.source == b.v4()), "{late:?}");
}

fn a_flood_neither_stops_nor_kills_the_active() {
    let lan = Lan::new();
    let (a, stranger) = (lan.node(1), lan.node(9));
    let options = RunnerOptions { runaway: Duration::from_millis(500), ..RunnerOptions::default() };
    let member = Member::start_with(&a, options, vec![config(100, fast())], Box::new(|_| {}));
    member.await_state(StateName::Active, Duration::from_secs(3));
    let message = spoilt(|message| message[2] ^= 1);
    let flood = stranger.spawn(move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(112))).expect("a raw socket");
        socket.set_multicast_ttl_v4(255).expect("a TTL");
        socket.bind_device(Some(b"eth0")).expect("the interface");
        let group = std::net::SocketAddrV4::new(vrrp::MULTICAST_V4, 0).into();
        let (start, mut sent) = (Instant::now(), 0_u64);
        let second = Duration::from_secs(1);
        while start.elapsed() < 3 * second || (sent < 50_000 && start.elapsed() < 30 * second) {
            sent += u64::from(socket.send_to(&message, &group).is_ok());
        }
        sent
    });
    let sent = flood.join().expect("the flood ends");
    let status = member.status();
    let counted = status.counters.discarded.get(Discard::Checksum);
    println!("{sent} packets sent, {counted} read, longest gap {:?}", status.traffic.longest_gap);
    assert!(sent >= 50_000 && counted > 0, "a flood worth the name");
    assert!(counted > sent / 2 || !is_real_root());
    assert_eq!((status.state, status.counters.became_active), (StateName::Active, 1));
    assert!(status.traffic.longest_gap < 2 * fast() || !is_real_root(), "{:?}", status.traffic);
}
