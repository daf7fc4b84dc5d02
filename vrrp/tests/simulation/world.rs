//! The LAN: nodes, clients, a network with arbitrary faults, and virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vrrp::router::{Claim, Command, Output, Reason, Release, StateName, VipEvent, Warning, Watch};
use vrrp::{Addresses, Family, PseudoHeader, RouterConfig};

use crate::node::{Node, Process};
use crate::rng::Rng;
use crate::stranger::Stranger;

/// The treatment of frames by the network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetworkConditions {
    pub(crate) loss_percent: u64,
    pub(crate) duplicate_percent: u64,
    pub(crate) delay: (Duration, Duration),
    /// The largest delay with which a timer wakes its process.
    pub(crate) wake_up: Duration,
}

impl NetworkConditions {
    pub(crate) const IDEAL: Self = Self {
        loss_percent: 0,
        duplicate_percent: 0,
        delay: (Duration::from_micros(50), Duration::from_micros(500)),
        wake_up: Duration::from_micros(300),
    };
}

/// A frame on the network.
#[derive(Debug, Clone)]
pub(crate) enum Frame {
    Advertisement { bytes: Vec<u8>, pseudo: PseudoHeader },
    Announcement { ip: IpAddr },
}

#[derive(Debug)]
pub(crate) enum Event {
    Deliver { from: usize, to: usize, frame: Frame },
    Wake { node: usize, wake: u64 },
    Keeper { node: usize },
    Expiry { node: usize, lease: u64 },
    Check { node: usize },
    Stranger,
}

/// A piece of work in the queue of a keeper thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// The earliest time at which the thread gets to it.
    at: Instant,
    /// The epoch of the kernel's state that it belongs to; a release ends the epoch.
    epoch: u64,
    work: Work,
}

/// The kinds of work of the keeper thread.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    Refresh(Claim),
    Remove,
}

/// A change of the owner, for the assertions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) at: Duration,
    pub(crate) node: usize,
    pub(crate) from: StateName,
    pub(crate) to: StateName,
    pub(crate) reason: Reason,
}

pub(crate) struct World {
    start: Instant,
    pub(crate) now: Instant,
    pub(crate) rng: Rng,
    pub(crate) nodes: Vec<Node>,
    /// The node that each client has in its neighbour cache.
    pub(crate) clients: Vec<Option<usize>>,
    pub(crate) conditions: NetworkConditions,
    /// Cuts from one endpoint to another; clients follow the nodes.
    pub(crate) cut: Vec<Vec<bool>>,
    events: BinaryHeap<Reverse<(Instant, u64)>>,
    details: std::collections::BTreeMap<u64, Event>,
    sequence: u64,
    pub(crate) steps: u64,
    pub(crate) changes: Vec<Change>,
    pub(crate) trace: bool,
    pub(crate) stranger: Option<Stranger>,
    /// No advertisement arrives anywhere.
    pub(crate) deaf: bool,
    /// Warnings that another node announces an address.
    pub(crate) announced_elsewhere: u64,
}

/// The interval of the daemon's serving verdict, which is valid for twice as long.
pub(crate) const CHECK: Duration = Duration::from_millis(500);
/// The longest delay of the keeper thread.
const KEEPER: Duration = Duration::from_millis(3);
/// The number of frames that a socket buffer holds.
const INBOX: usize = 64;

impl World {
    pub(crate) fn new(seed: u64, configs: Vec<RouterConfig>, clients: usize) -> Self {
        let start = Instant::now();
        let nodes: Vec<_> =
            configs.into_iter().enumerate().map(|(index, config)| Node::new(index, config, start)).collect();
        let endpoints = nodes.len() + clients;
        let mut world = Self {
            start,
            now: start,
            rng: Rng::new(seed),
            nodes,
            clients: vec![None; clients],
            conditions: NetworkConditions::IDEAL,
            cut: vec![vec![false; endpoints]; endpoints],
            events: BinaryHeap::new(),
            details: std::collections::BTreeMap::new(),
            sequence: 0,
            steps: 0,
            changes: Vec::new(),
            trace: false,
            stranger: None,
            deaf: false,
            announced_elsewhere: 0,
        };
        for node in 0..world.nodes.len() {
            world.nodes[node].authenticate(start);
            world.begin(node);
        }
        world
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now.duration_since(self.start)
    }

    pub(crate) fn log(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12.6} {}", self.elapsed().as_secs_f64(), text());
        }
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        self.run_while(duration, |_| {});
    }

    /// Runs and calls `check` after every step.
    pub(crate) fn run_while(&mut self, duration: Duration, mut check: impl FnMut(&Self)) {
        let end = self.now + duration;
        while let Some(Reverse((at, sequence))) = self.events.peek().copied().filter(|next| next.0.0 <= end) {
            self.events.pop();
            assert!(at >= self.now, "the simulation went back in time");
            self.now = at;
            let event = self.details.remove(&sequence).unwrap();
            self.steps += 1;
            self.happen(event);
            check(self);
        }
        self.now = end;
    }

    pub(crate) fn begin(&mut self, node: usize) {
        let now = self.now;
        self.nodes[node].introduce(now);
        self.report_serving(node);
        let event = self.nodes[node].interface();
        self.nodes[node].router.handle_interface(now, event);
        self.schedule(CHECK, Event::Check { node });
        self.settle(node);
    }

    pub(crate) fn schedule(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + after, self.sequence)));
        self.details.insert(self.sequence, event);
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Deliver { from, to, frame } => self.deliver(from, to, frame),
            Event::Wake { node, wake } => {
                if self.nodes[node].runs() && self.nodes[node].wake == wake {
                    self.nodes[node].wake_at = None;
                    self.nodes[node].router.handle_timeout(now);
                    self.settle(node);
                }
            }
            Event::Keeper { node } => self.keep(node),
            Event::Expiry { node, lease } => self.expire(node, lease),
            Event::Stranger => self.stranger_sends(),
            Event::Check { node } => {
                if self.nodes[node].runs() {
                    self.report_serving(node);
                    self.schedule(CHECK, Event::Check { node });
                }
            }
        }
    }

    pub(crate) fn report_serving(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.nodes[node];
        if host.runs() && host.reports {
            let command =
                if host.serves { Command::Serving { until: now + 2 * CHECK } } else { Command::NotServing };
            host.router.handle_command(now, command);
            self.settle(node);
        }
    }

    fn deliver(&mut self, from: usize, to: usize, frame: Frame) {
        if let Some(client) = to.checked_sub(self.nodes.len()) {
            if matches!(frame, Frame::Announcement { .. }) {
                self.clients[client] = Some(from);
            }
            return;
        }
        if self.deaf && matches!(frame, Frame::Advertisement { .. }) {
            return;
        }
        let now = self.now;
        let host = &mut self.nodes[to];
        match host.process {
            Process::Running if host.link_up => {
                host.receive(now, &frame);
                self.settle(to);
            }
            Process::Paused if host.link_up && host.inbox.len() < INBOX => host.inbox.push_back(frame),
            _ => {}
        }
    }

    /// Runs the keeper thread: does the work that is due, in the order in which it was given.
    fn keep(&mut self, node: usize) {
        loop {
            let (now, host) = (self.now, &mut self.nodes[node]);
            let Some(job) = host.jobs.front().copied().filter(|job| job.at <= now) else { return };
            match host.process {
                Process::Dead => return host.jobs.clear(),
                Process::Paused => return self.schedule(KEEPER, Event::Keeper { node }),
                Process::Running => host.jobs.pop_front(),
            };
            if host.kernel.epoch != job.epoch {
                continue;
            }
            match job.work {
                Work::Refresh(claim) => self.refresh(node, claim),
                Work::Remove => {
                    host.kernel.removing = false;
                    host.kernel.installed = false;
                    host.kernel.refreshed = None;
                    host.kernel.lease += 1;
                }
            }
        }
    }

    /// Changes how long the keeper thread is kept from running. Where it is kept no longer, it does its work at once.
    pub(crate) fn delay_keeper(&mut self, node: usize, delay: Duration) {
        self.log(|| format!("keeper of {node} delayed by {delay:?}"));
        let (now, host) = (self.now, &mut self.nodes[node]);
        host.keeper_delay = delay;
        if delay.is_zero() && !host.jobs.is_empty() {
            host.jobs.iter_mut().for_each(|job| job.at = now);
            self.schedule(Duration::ZERO, Event::Keeper { node });
        }
    }

    fn refresh(&mut self, node: usize, claim: Claim) {
        let now = self.now;
        let lease = self.nodes[node].config.lease;
        let host = &mut self.nodes[node];
        if now >= claim.valid_until || !host.link_up {
            return;
        }
        if host.kernel.installed && host.kernel.refreshed.is_some_and(|at| now >= at + lease * 9 / 10) {
            host.vip(now, VipEvent::LeaseLost);
            return self.settle(node);
        }
        let fresh = !host.kernel.installed;
        host.kernel.installed = true;
        host.kernel.refreshed = Some(now);
        host.kernel.lease += 1;
        let lease_number = host.kernel.lease;
        // FIELD: between 0.02 s before and 1.02 s after its time.
        let spread = self.rng.between(Duration::ZERO, Duration::from_millis(1040));
        self.schedule(
            lease - Duration::from_millis(20) + spread,
            Event::Expiry { node, lease: lease_number },
        );
        if fresh {
            self.nodes[node].vip(now, VipEvent::Installed);
            self.settle(node);
        }
    }

    fn expire(&mut self, node: usize, lease: u64) {
        let now = self.now;
        let host = &mut self.nodes[node];
        if host.kernel.lease != lease {
            return;
        }
        self.nodes[node].kernel.installed = false;
        self.log(|| format!("lease of {node} expired"));
        if self.nodes[node].runs() {
            self.nodes[node].vip(now, VipEvent::LeaseLost);
            self.settle(node);
        }
    }

    /// Carries out the outputs of a router and schedules its next wake-up.
    pub(crate) fn settle(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].router.poll_output() {
            self.carry_out(node, output);
        }
        let next = self.nodes[node].router.poll_timeout().map(|(at, _)| at);
        // A deadline that is due already keeps its wake-up, or every event would put it off.
        let due = next.is_some_and(|at| at <= self.now)
            && self.nodes[node].wake_at.is_some_and(|at| at <= self.now);
        if next == self.nodes[node].wake_at || due {
            return;
        }
        self.nodes[node].wake_at = next;
        self.nodes[node].wake += 1;
        let wake = self.nodes[node].wake;
        if let Some(at) = next {
            let late = self.rng.between(Duration::ZERO, self.conditions.wake_up);
            self.schedule(at.saturating_duration_since(self.now) + late, Event::Wake { node, wake });
        }
    }

    fn carry_out(&mut self, node: usize, output: Output) {
        match output {
            Output::Advertise(advertisement) => {
                self.nodes[node].sent.advertisements += 1;
                self.log(|| {
                    format!("{node} advertises {} {:?}", advertisement.priority, advertisement.family())
                });
                let host = &self.nodes[node];
                let source = match advertisement.family() {
                    Family::V4 => IpAddr::V4(host.v4),
                    Family::V6 => IpAddr::V6(host.v6),
                };
                let pseudo = PseudoHeader::new(source, advertisement.family().multicast()).unwrap();
                let mut bytes = Vec::new();
                advertisement.encode(&pseudo, &mut bytes);
                for bytes in self.nodes[node].payloads(self.now, &pseudo, &bytes) {
                    self.broadcast(node, &Frame::Advertisement { bytes, pseudo });
                }
            }
            Output::Claim(claim) => {
                let state = self.nodes[node].router.state();
                assert!(
                    matches!(state, StateName::Active | StateName::Resigning),
                    "node {node} claims as {state}"
                );
                assert!(claim.valid_until > self.now, "node {node} claims what is over already");
                self.nodes[node].claim = Some(claim);
                self.keeper(node, Work::Refresh(claim));
            }
            Output::Release(release) => {
                self.log(|| format!("{node} releases: {release:?}"));
                let host = &mut self.nodes[node];
                host.claim = None;
                host.kernel.epoch += 1;
                match release {
                    Release::Planned => {
                        host.kernel.removing = true;
                        self.keeper(node, Work::Remove);
                    }
                    Release::Lost => {
                        host.kernel.installed = false;
                        host.kernel.refreshed = None;
                        host.kernel.lease += 1;
                    }
                }
            }
            Output::Announce => self.announce(node),
            Output::Watch(watch) => self.nodes[node].watching = watch == Watch::Start,
            Output::Transition(transition) => {
                let (from, to, reason) = (transition.from, transition.to, transition.reason);
                self.log(|| format!("{node}: {from} -> {to}: {reason}"));
                self.changes.push(Change { at: self.elapsed(), node, from, to, reason });
            }
            Output::Warning(warning) => {
                self.log(|| format!("{node} warns: {warning}"));
                self.announced_elsewhere += u64::from(matches!(warning, Warning::AnnouncedElsewhere { .. }));
            }
        }
    }

    fn keeper(&mut self, node: usize, work: Work) {
        let delay = self.rng.between(Duration::from_micros(50), KEEPER) + self.nodes[node].keeper_delay;
        let (earliest, host) = (self.now + delay, &mut self.nodes[node]);
        let at = host.jobs.back().map_or(earliest, |before| earliest.max(before.at));
        host.jobs.push_back(Job { at, epoch: host.kernel.epoch, work });
        self.schedule(at.saturating_duration_since(self.now), Event::Keeper { node });
    }

    fn announce(&mut self, node: usize) {
        self.nodes[node].sent.announcements += 1;
        self.log(|| format!("{node} announces"));
        let config = &self.nodes[node].config;
        let addresses =
            [Addresses::V4(config.addresses_v4.clone()), Addresses::V6(config.addresses_v6.clone())];
        for addresses in addresses {
            let ips: Vec<IpAddr> = match addresses {
                Addresses::V4(list) => list.into_iter().map(IpAddr::V4).collect(),
                Addresses::V6(list) => list.into_iter().map(IpAddr::V6).collect(),
            };
            for ip in ips {
                self.broadcast(node, &Frame::Announcement { ip });
            }
        }
    }

    /// Delivers a frame of another host to all nodes.
    pub(crate) fn inject(&mut self, frame: &Frame) {
        let from = self.cut.len();
        for to in 0..self.nodes.len() {
            let delay = self.rng.between(self.conditions.delay.0, self.conditions.delay.1);
            self.schedule(delay, Event::Deliver { from, to, frame: frame.clone() });
        }
    }

    fn broadcast(&mut self, from: usize, frame: &Frame) {
        for to in 0..self.cut.len() {
            if to == from || self.cut[from][to] || !self.nodes[from].link_up {
                continue;
            }
            let copies = 1 + usize::from(self.rng.chance(self.conditions.duplicate_percent));
            for _ in 0..copies {
                if !self.rng.chance(self.conditions.loss_percent) {
                    let delay = self.rng.between(self.conditions.delay.0, self.conditions.delay.1);
                    self.schedule(delay, Event::Deliver { from, to, frame: frame.clone() });
                }
            }
        }
    }
}
