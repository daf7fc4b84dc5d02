//! Two nodes in detail, then a network with arbitrary faults and an attacker that records everything.

mod freshness;
mod reports;
mod requests;

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::router::StateName;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn keys(ids: &[u8]) -> BTreeMap<KeyId, Key> {
    ids.iter().map(|id| (KeyId::new(*id).unwrap(), Key::new(&[*id; 32]).unwrap())).collect()
}

fn config(ids: &[u8]) -> ChannelConfig {
    ChannelConfig { keys: keys(ids), timing: Timing::default() }
}

fn address(node: usize) -> IpAddr {
    IpAddr::from([10, 9, 0, 11 + u8::try_from(node).unwrap()])
}

/// A report that tells the boot and the version of its content.
fn report(node: usize, boot: u64, version: u16) -> Report {
    Report { node: format!("node-{node}"), started: boot, unlisted: version, ..Report::default() }
}

/// The room for records with the most returned challenges.
const ROOM: usize = message::report_room(message::MAX_ECHOES);

fn full_report() -> Report {
    Report {
        node: "node-1".to_owned(),
        version: "0.2.0".to_owned(),
        started: 1_795_910_400,
        clock: 1_795_910_400_123,
        addresses: vec![[10, 0, 0, 11].into(), "fd00::11".parse().unwrap()],
        heard: vec![[10, 0, 0, 12].into(), "fe80::12".parse().unwrap()],
        serving: Some(Err("waiting for the health checks of 3 backends".to_owned())),
        instances: vec![
            InstanceReport { vrid: 51, state: Some(StateName::Active), priority: 200, group: 7, claim: 2900 },
            InstanceReport { vrid: 52, state: None, priority: 40, group: 8, claim: 0 },
        ],
        transitions: vec![TransitionReport {
            vrid: 51,
            at: 1_795_910_400_000,
            from: Some(StateName::Init),
            to: Some(StateName::Backup),
            reason: "10.0.0.12 fell silent".to_owned(),
            silence: Some(3200),
        }],
        unanswered: vec![Unanswered {
            group: 7,
            active: "fd00::12".parse().unwrap(),
            address: [10, 0, 0, 100].into(),
            port: 6443,
            reason: "timeout".to_owned(),
        }],
        degraded: vec!["10.0.0.100 is announced by another host".to_owned()],
        unlisted: 0,
    }
}

/// A node of the network.
struct Host {
    channel: Channel,
    boot: u64,
    version: u16,
    running: bool,
    events: Vec<Event>,
}

/// A network that delays, loses, doubles and reorders datagrams, and an attacker on it.
struct Net {
    now: Instant,
    start: Instant,
    random: Random,
    hosts: Vec<Host>,
    flying: BTreeMap<(Instant, u64), (usize, usize, Vec<u8>)>,
    number: u64,
    loss_percent: u64,
    double_percent: u64,
    delay: Duration,
    cut: BTreeSet<(usize, usize)>,
    /// The pairs of which the first one does not send its reports to the second one.
    unlisted: BTreeSet<(usize, usize)>,
    recorded: Vec<(usize, Vec<u8>)>,
    ids: Vec<u8>,
}

impl Net {
    fn new(seed: u64, count: usize, ids: &[u8]) -> Self {
        let now = Instant::now();
        let mut net = Self {
            now,
            start: now,
            random: Random::new([seed, 0]),
            hosts: Vec::new(),
            flying: BTreeMap::new(),
            number: 0,
            loss_percent: 0,
            double_percent: 0,
            delay: ms(1),
            cut: BTreeSet::new(),
            unlisted: BTreeSet::new(),
            recorded: Vec::new(),
            ids: ids.to_vec(),
        };
        for node in 0..count {
            let host = net.boot(node);
            net.hosts.push(host);
        }
        net
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.next() % end
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn boot(&mut self, node: usize) -> Host {
        self.number += 1;
        let boot = self.number;
        let seed = [self.random.next(), self.random.next()];
        let channel = Channel::new(config(&self.ids), seed, report(node, boot, 0), self.now);
        Host { channel, boot, version: 0, running: true, events: Vec::new() }
    }

    fn restart(&mut self, node: usize) {
        let host = self.boot(node);
        self.hosts[node] = host;
    }

    fn change(&mut self, node: usize) {
        let (now, host) = (self.now, &mut self.hosts[node]);
        host.version += 1;
        host.channel.handle_report(now, report(node, host.boot, host.version));
    }

    fn fly(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.number += 1;
        let micros = u64::try_from(self.delay.as_micros()).unwrap();
        let delay = Duration::from_micros(self.below(micros.max(1)));
        self.flying.insert((self.now + delay, self.number), (from, to, bytes));
    }

    /// Carries out what the channels want.
    fn settle(&mut self) {
        for from in 0..self.hosts.len() {
            while let Some(datagram) = self.hosts[from].channel.poll_datagram() {
                let bytes = self.hosts[from].channel.seal(&datagram.payload, address(from));
                assert!(bytes.len() <= MAX_DATAGRAM);
                self.recorded.push((from, bytes.clone()));
                for to in 0..self.hosts.len() {
                    let addressed = match datagram.to {
                        Some(peer) => peer == address(to),
                        None => !self.unlisted.contains(&(from, to)),
                    };
                    if to == from || !addressed || self.cut.contains(&(from, to)) {
                        continue;
                    }
                    if !self.chance(self.loss_percent) {
                        self.fly(from, to, bytes.clone());
                    }
                    if self.chance(self.double_percent) {
                        self.fly(from, to, bytes.clone());
                    }
                }
            }
            while let Some(event) = self.hosts[from].channel.poll_event() {
                self.hosts[from].events.push(event);
            }
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.settle();
            let timeouts = self.hosts.iter().filter(|host| host.running);
            let timeout = timeouts.map(|host| host.channel.poll_timeout()).min();
            let flying = self.flying.keys().next().map(|(at, _)| *at);
            let Some(next) = timeout.into_iter().chain(flying).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            let before: Vec<_> = self.hosts.iter().map(known).collect();
            if flying.is_some_and(|at| at <= self.now) {
                let (_, (from, to, bytes)) = self.flying.pop_first().unwrap();
                let host = &mut self.hosts[to];
                if host.running {
                    let _ = host.channel.handle_datagram(self.now, address(from), &bytes);
                }
            }
            for host in self.hosts.iter_mut().filter(|host| host.running) {
                if host.channel.poll_timeout() <= self.now {
                    host.channel.handle_timeout(self.now);
                }
            }
            self.check_progress(&before);
        }
        self.now = end;
        self.settle();
    }

    /// Knowledge only grows newer: never an earlier boot, never an earlier version of a boot.
    fn check_progress(&self, before: &[BTreeMap<IpAddr, (u64, u16)>]) {
        for (host, before) in self.hosts.iter().zip(before) {
            for (peer, now) in known(host) {
                let former = before.get(&peer).copied().unwrap_or_default();
                assert!(now >= former, "knowledge of {peer} went back from {former:?} to {now:?}");
            }
        }
    }

    /// The attacker sends something that it recorded, as it was or changed, from its source or another.
    fn attack(&mut self) {
        let Some(last) = self.recorded.len().checked_sub(1) else { return };
        let index = usize::try_from(self.below(last as u64 + 1)).unwrap();
        let (mut from, mut bytes) = self.recorded[index].clone();
        match self.below(4) {
            0 => {
                let bit = usize::try_from(self.below(bytes.len() as u64 * 8)).unwrap();
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            1 => bytes.truncate(usize::try_from(self.below(bytes.len() as u64)).unwrap()),
            2 if !self.ids.is_empty() => from = (from + 1) % self.hosts.len(),
            _ => {}
        }
        for to in 0..self.hosts.len() {
            self.fly(from, to, bytes.clone());
        }
    }

    /// Every running node knows all others as they are, and no other.
    fn all_known(&self) {
        for (index, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.running) {
            let others = self.hosts.iter().enumerate();
            let expected = others
                .filter(|(other, host)| *other != index && host.running)
                .map(|(other, host)| (address(other), (host.boot, host.version)));
            assert_eq!(known(host), expected.collect(), "known to {index} at {:?}", self.now - self.start);
        }
    }
}

fn known(host: &Host) -> BTreeMap<IpAddr, (u64, u16)> {
    let of = |peer: PeerView<'_>| (peer.address, (peer.report.started, peer.report.unlisted));
    host.channel.peers().map(of).collect()
}

#[test]
fn nodes_know_each_other_after_two_messages() {
    for ids in [&[][..], &[1]] {
        let mut net = Net::new(1, 3, ids);
        net.run(ms(400));
        net.all_known();
        let view = net.hosts[0].channel.peers().next().unwrap();
        assert_eq!(view.authenticated, !ids.is_empty());
        assert!(net.hosts[0].events.contains(&Event::Found(address(1))));
    }
}

/// By unicast to a list that is incomplete: node 0 sends reports to no one, and hears node 1.
#[test]
fn a_node_that_no_list_has_is_known_after_two_round_trips() {
    let mut net = Net::new(14, 2, &[1]);
    net.cut.insert((0, 1));
    net.run(secs(5));
    net.cut.clear();
    net.unlisted.insert((0, 1));
    net.run(ms(1300));
    net.all_known();
}

#[test]
fn nodes_at_rest_send_one_datagram_each_interval() {
    let mut net = Net::new(2, 3, &[1]);
    net.run(secs(3));
    let before = net.hosts[0].channel.traffic().0;
    net.run(secs(30));
    assert_eq!(net.hosts[0].channel.traffic().0 - before, 30);
    let discarded = net.hosts[0].channel.discarded();
    assert_eq!(discarded.keys().copied().collect::<Vec<_>>(), [Discard::NotFresh], "the first messages only");
}

#[test]
fn changes_arrive_at_once_and_are_reported_once() {
    let mut net = Net::new(3, 2, &[1]);
    net.run(ms(3500));
    net.hosts[1].events.clear();
    net.change(0);
    net.run(ms(150));
    net.all_known();
    net.run(secs(5));
    assert_eq!(net.hosts[1].events, [Event::Changed(address(0))]);
}

#[test]
fn silent_and_stopped_peers_are_lost() {
    let mut net = Net::new(4, 3, &[1]);
    net.run(secs(3));
    net.hosts[0].running = false;
    net.run(ms(4500));
    net.all_known();
    assert!(net.hosts[1].events.contains(&Event::Lost(address(0))));
    net.hosts[1].channel.stop();
    net.settle();
    net.hosts[1].running = false;
    net.run(ms(10));
    net.all_known();
    assert!(net.hosts[2].events.contains(&Event::Lost(address(1))));
}

#[test]
fn many_changes_are_sent_together() {
    let mut net = Net::new(19, 2, &[1]);
    net.run(ms(3500));
    let before = net.hosts[0].channel.traffic().0;
    for _ in 0..100 {
        net.change(0);
        net.run(ms(10));
    }
    net.run(ms(300));
    net.all_known();
    let sent = net.hosts[0].channel.traffic().0 - before;
    assert!((3..=7).contains(&sent), "{sent}");
}

#[test]
fn keys_are_rotated_without_losing_a_peer() {
    let mut net = Net::new(7, 3, &[1]);
    net.run(secs(3));
    for ids in [&[1, 2][..], &[2]] {
        for node in [1, 0, 2] {
            net.hosts[node].channel.reconfigure(config(ids));
            net.run(secs(4));
            net.all_known();
        }
    }
    let lost = |event: &Event| matches!(event, Event::Lost(_));
    assert!(net.hosts.iter().all(|host| !host.events.iter().any(lost)));
}

/// A file with another key of the same identifier on one node, while the group rotates.
#[test]
fn a_key_that_differs_does_not_hide_the_one_in_common() {
    let mut net = Net::new(16, 2, &[1, 2]);
    let mut other = config(&[1, 2]);
    other.keys.insert(KeyId::new(1).unwrap(), Key::new(&[77; 32]).unwrap());
    net.hosts[0].channel.reconfigure(other);
    net.run(secs(3));
    net.all_known();
}

#[test]
fn each_reason_to_discard_is_counted() {
    let mut net = Net::new(8, 2, &[1]);
    net.run(ms(3500));
    let (now, from) = (net.now, address(0));
    let (_, good) = net.recorded.iter().rev().find(|(from, _)| *from == 0).cloned().unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let mut unsigned = good[..good.len() - 17].to_vec();
    unsigned[5] = 0;
    let own = net.recorded.iter().rev().find(|(from, _)| *from == 1).cloned().unwrap().1;
    let channel = &mut net.hosts[1].channel;
    let cases = [
        (Discard::Malformed, from, with(0, b'x')),
        (Discard::Malformed, from, good[..good.len() - 1].to_vec()),
        (Discard::Malformed, from, Vec::new()),
        (Discard::Malformed, from, [&good[..], &[0]].concat()),
        (Discard::Version, from, with(4, 2)),
        (Discard::Unsigned, from, unsigned),
        (Discard::UnknownKey, from, with(good.len() - 17, 9)),
        (Discard::Digest, from, with(good.len() - 1, !good[good.len() - 1])),
        (Discard::Digest, address(5), good.clone()),
        (Discard::Reflected, address(1), own),
        (Discard::Replayed, from, good.clone()),
    ];
    for (reason, source, bytes) in cases {
        let before = channel.discarded().get(&reason).copied().unwrap_or_default();
        assert_eq!(channel.handle_datagram(now, source, &bytes), Err(reason));
        assert_eq!(channel.discarded()[&reason], before + 1);
    }
    net.all_known();
}

/// Arbitrary faults and attacks, three or more, then a fault-free period.
fn faults(seed: u64) {
    let count = 2 + usize::try_from(seed % 4).unwrap();
    let mut net = Net::new(seed, count, &[1]);
    let (steps, mut step, mut faults) = (10 + net.below(20), 0, 0);
    while step < steps || faults < 3 {
        step += 1;
        let node = usize::try_from(net.below(count as u64)).unwrap();
        let other = usize::try_from(net.below(count as u64)).unwrap();
        let kind = net.below(10);
        faults += u64::from(!matches!(kind, 4 | 7) && (kind != 3 || node != other));
        match kind {
            0 => net.loss_percent = net.random.next() % 60,
            1 => net.double_percent = net.random.next() % 40,
            2 => net.delay = ms(1 + net.random.next() % 2000),
            3 => _ = net.cut.insert((node, other)),
            4 => net.cut.clear(),
            5 => net.hosts[node].running = false,
            6 => net.restart(node),
            7 => net.change(node),
            _ => (0..20).for_each(|_| net.attack()),
        }
        let pause = ms(net.below(3000));
        net.run(pause);
    }
    net.cut.clear();
    (net.loss_percent, net.double_percent) = (0, 0);
    // Datagrams under way arrive, attacked peers recover, and recordings get too old.
    let under_way = net.delay;
    net.delay = ms(1);
    net.run(under_way + secs(10));
    net.all_known();
    for _ in 0..50 {
        net.attack();
        net.run(ms(20));
        net.all_known();
    }
}

#[test]
fn knowledge_is_complete_after_faults_and_never_goes_back() {
    let number = std::env::var("VRRP_CHANNEL_SEED").ok().map(|text| text.parse().expect("a number"));
    if let Some(seed) = number {
        return faults(seed);
    }
    for seed in 0..2000 {
        let run = std::panic::catch_unwind(|| faults(seed));
        assert!(run.is_ok(), "seed {seed}; replay: VRRP_CHANNEL_SEED={seed} cargo test -p vrrp channel");
    }
}

proptest! {
    #[test]
    fn arbitrary_datagrams_are_discarded(
        bytes in proptest::collection::vec(any::<u8>(), 0..1500),
        enveloped in any::<bool>(),
        signed in any::<bool>(),
    ) {
        let now = Instant::now();
        let mut channel = Channel::new(config(&[1]), [1, 2], Report::default(), now);
        let keys = if signed { keys(&[1]) } else { keys(&[]) };
        let bytes = if enveloped { wire::seal(&keys, &bytes, address(1)) } else { bytes };
        prop_assert!(channel.handle_datagram(now, address(1), &bytes).is_err());
        prop_assert!(channel.peers().next().is_none());
    }

    #[test]
    fn arbitrary_records_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(report) = Report::decode(&bytes) {
            let parts = report.to_parts(ROOM);
            prop_assert!(parts.iter().all(|part| part.len() <= ROOM));
            prop_assert!(Report::decode(&parts.concat()).is_ok());
        }
    }
}
