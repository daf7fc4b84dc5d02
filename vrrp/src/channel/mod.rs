//! The group channel: what the controllers of a group tell each other beyond VRRP's 20 bytes.
//!
//! Each node sends its [`Report`] once per [`Timing::interval`] and after each change: its name, whether it can serve
//! and why not, what is degraded, the state of its instances, its last transitions. The election does not depend on it: a
//! lost, late, repeated or forged report changes what an operator sees, not which router is Active. (An owner that takes its
//! unicast peers from reports adds those to the peers that it knows otherwise.) [`Request`]s ask one node to act, and are
//! answered.
//!
//! [`Channel`] is the core: it does no I/O and reads no clock. Datagrams and the time go in through `handle_*`, datagrams
//! and [`Event`]s come out through `poll_*`.
//!
//! # Freshness
//!
//! Sequences stop repeated messages of a sender that is known. Recorded messages of its former life are stopped by a
//! *challenge*: a random number that each node sends, and that the others return. A message counts only if it returns a
//! challenge of the receiver that is at most [`CHALLENGE_INTERVALS`] intervals old, so it is not older itself, and a sender is
//! remembered for that long after its last message. After another *boot* number of a sender only challenges count for it
//! that are newer than that. No clock is compared. A new node is known after two messages: its first one brings its
//! challenge, its second one returns the receiver's.
//!
//! # Authentication
//!
//! With keys each message ends with one signature for each of them, and a message without a signature of a known key is
//! discarded. Without keys the caller is to accept messages of known controllers on the link only, and reports of them are
//! marked as not authenticated.
//!
//! # Choice
//!
//! SWIM (the crate foca, for one) finds members of clusters of any size by probing some of them in turn. Here are three to
//! seven nodes that all hear each other once per interval anyway, and what is to be carried is a state for each node, not
//! membership; its updates have neither signatures nor protection against replay.

mod discard;
mod event;
mod message;
mod peer;
mod random;
mod report;
#[cfg(feature = "runner")]
mod socket;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use discard::Discard;
pub use event::{Datagram, Event};
pub use message::{Answer, Outcome, Request};
pub use report::{InstanceReport, MAX_TRANSITIONS, Report, TransitionReport, Unanswered, group_of};
#[cfg(feature = "runner")]
pub use socket::ChannelSocket;
pub use wire::{MAX_DATAGRAM, MessageError, PORT};

use self::message::{Body, Echo, Message};
use self::peer::{Heard, Peer};
use self::random::Random;
use crate::hmac::{Key, KeyId};

/// The number of [`Timing::interval`]s for which a challenge may be returned.
pub const CHALLENGE_INTERVALS: u32 = 5;

/// The most challenges that may be returned. More than one for each interval there are only while other nodes start.
const MAX_CHALLENGES: usize = 32;

/// The most reports in a row that are sent to nodes that begin to be heard; [`NEW_REPLIES`] more each interval.
const MAX_REPLIES: u32 = 16;
const NEW_REPLIES: u32 = 4;

/// The most peers that are remembered.
pub const MAX_PEERS: usize = 16;

/// The times of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The time between two reports of a node at rest.
    pub interval: Duration,
    /// The silence after which a peer counts as lost.
    pub lost_after: Duration,
    /// The least time between two reports because of changes.
    pub min_gap: Duration,
    /// The time after which a request or its answer is repeated.
    pub repeat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            lost_after: Duration::from_millis(3500),
            min_gap: Duration::from_millis(250),
            repeat: Duration::from_millis(200),
        }
    }
}

/// The configuration of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelConfig {
    /// The keys that sign and verify; without any, messages are not authenticated.
    pub keys: BTreeMap<KeyId, Key>,
    /// The times.
    pub timing: Timing,
}

/// A peer whose report is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerView<'a> {
    /// Its address.
    pub address: IpAddr,
    /// Its last complete report.
    pub report: &'a Report,
    /// The time of its last message.
    pub heard: Instant,
    /// Set if its messages are signed.
    pub authenticated: bool,
}

/// One node's end of the channel.
#[derive(Debug)]
pub struct Channel {
    config: ChannelConfig,
    boot: u64,
    sequence: u64,
    /// The challenges that may be returned, the current one last.
    challenges: VecDeque<Challenge>,
    random: Random,
    report: Report,
    round: u32,
    peers: BTreeMap<IpAddr, Peer>,
    /// Requests of this node that are not answered yet.
    asked: BTreeMap<u64, Asked>,
    next_report: Instant,
    last_report: Option<Instant>,
    /// The reports that may be sent because of other nodes' messages.
    replies: u32,
    outputs: VecDeque<Datagram>,
    events: VecDeque<Event>,
    discarded: BTreeMap<Discard, u64>,
    sent: u64,
    received: u64,
}

/// A number that others return, to show that their message is newer than it.
#[derive(Debug, Clone, Copy)]
struct Challenge {
    /// The first has 1.
    number: u64,
    value: u64,
    made: Instant,
}

#[derive(Debug)]
struct Asked {
    to: IpAddr,
    request: Request,
    repeat_at: Instant,
    give_up_at: Instant,
}

impl Channel {
    /// A channel without peers. `seed` must be unpredictable and differ at each start: boot number and challenges follow
    /// from it.
    #[must_use]
    pub fn new(config: ChannelConfig, seed: [u64; 2], report: Report, now: Instant) -> Self {
        let mut random = Random::new(seed);
        let boot = random.next();
        let challenges = [Challenge { number: 1, value: random.next(), made: now }].into();
        Self {
            config,
            boot,
            sequence: 0,
            challenges,
            random,
            report,
            round: 0,
            peers: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_report: now,
            last_report: None,
            replies: MAX_REPLIES,
            outputs: VecDeque::new(),
            events: VecDeque::new(),
            discarded: BTreeMap::new(),
            sent: 0,
            received: 0,
        }
    }

    /// Takes over other keys and times. Peers stay known.
    pub fn reconfigure(&mut self, config: ChannelConfig) {
        self.config = config;
    }

    /// Replaces this node's report. A change is sent soon.
    pub fn handle_report(&mut self, now: Instant, report: Report) {
        if self.report.differs(&report) {
            self.report_soon(now);
        }
        self.report = report;
    }

    /// Sets the wall clock of the report, in milliseconds since 1970-01-01 00:00 UTC.
    pub const fn handle_clock(&mut self, clock: u64) {
        self.report.clock = clock;
    }

    /// Handles a datagram from `source`.
    ///
    /// # Errors
    ///
    /// The reason for which it is discarded and counted.
    pub fn handle_datagram(&mut self, now: Instant, source: IpAddr, bytes: &[u8]) -> Result<(), Discard> {
        let result = self.receive(now, source, bytes);
        match result {
            Ok(()) => self.received += 1,
            Err(reason) => *self.discarded.entry(reason).or_default() += 1,
        }
        result
    }

    /// Handles the deadlines that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.forget_silent(now);
        self.repeat_requests(now);
        if now >= self.next_report {
            self.send_report(now);
        }
    }

    /// The time at which to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        let lost = self.peers.values().map(|peer| self.silence_ends(peer)).min();
        let repeats = self.asked.values().map(|asked| asked.repeat_at.min(asked.give_up_at)).min();
        [lost, repeats].into_iter().flatten().fold(self.next_report, Instant::min)
    }

    /// The next datagram to send.
    pub fn poll_datagram(&mut self) -> Option<Datagram> {
        self.outputs.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The bytes to send from `source`: the payload, and its signatures.
    #[must_use]
    pub fn seal(&self, payload: &[u8], source: IpAddr) -> Vec<u8> {
        wire::seal(&self.config.keys, payload, source)
    }

    /// Asks a peer for something, until it answers or `timeout` has passed. Returns the request's number.
    pub fn request(&mut self, now: Instant, to: IpAddr, request: Request, timeout: Duration) -> u64 {
        let id = self.random.next();
        self.emit(Some(to), Body::Request { id, request: request.clone() });
        let repeat_at = now + self.config.timing.repeat;
        self.asked.insert(id, Asked { to, request, repeat_at, give_up_at: now + timeout });
        id
    }

    /// Answers a request. It is repeated whenever the request is.
    pub fn answer(&mut self, to: IpAddr, id: u64, answer: &Answer) {
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.answered(id, answer.clone());
        }
        self.emit(Some(to), Body::Answer { id, answer: answer.clone() });
    }

    /// Tells the peers that this node stops.
    pub fn stop(&mut self) {
        self.emit(None, Body::Stop);
    }

    /// The peers that are known, by address.
    pub fn peers(&self) -> impl Iterator<Item = PeerView<'_>> {
        let authenticated = !self.config.keys.is_empty();
        self.peers.iter().filter_map(move |(address, peer)| {
            let report = peer.report.as_ref()?;
            Some(PeerView { address: *address, report, heard: peer.heard, authenticated })
        })
    }

    /// The number of datagrams discarded for each reason.
    #[must_use]
    pub const fn discarded(&self) -> &BTreeMap<Discard, u64> {
        &self.discarded
    }

    /// The numbers of messages sent, a message to several peers counting once, and of those received and used.
    #[must_use]
    pub const fn traffic(&self) -> (u64, u64) {
        (self.sent, self.received)
    }

    fn receive(&mut self, now: Instant, source: IpAddr, bytes: &[u8]) -> Result<(), Discard> {
        let payload = wire::open(&self.config.keys, bytes, source)?;
        let message = Message::decode(payload)?;
        if message.boot == self.boot {
            return Err(Discard::Reflected);
        }
        if !self.peers.contains_key(&source) && !self.make_room() {
            return Err(Discard::TooMany);
        }
        let echo = message.echo_of(self.boot);
        let lifetime = CHALLENGE_INTERVALS * self.config.timing.interval;
        let mut current = self.challenges.iter().filter(|known| now <= known.made + lifetime);
        let returned = current.find(|known| Some(known.value) == echo).map(|known| known.number);
        let peer = self.peers.entry(source).or_insert_with(|| Peer::new(now));
        match peer.hear(now, &message, returned) {
            Heard::Replayed => return Err(Discard::Replayed),
            Heard::Unproven { is_new } => {
                // The sender is to have its challenge back at once. It may be none of those that reports are sent to.
                if is_new {
                    self.reply(source);
                }
                return Err(Discard::NotFresh);
            }
            Heard::Fresh { other_boot: true } => {
                // Recordings of former boots return earlier challenges.
                let number = self.renew_challenge(now);
                if let Some(peer) = self.peers.get_mut(&source) {
                    peer.require_challenge(number);
                }
                self.reply(source);
            }
            Heard::Fresh { other_boot: false } => {}
        }
        self.take(now, source, message)
    }

    /// Makes room for a peer: of those that are not proven, the one that was seen first goes.
    fn make_room(&mut self) -> bool {
        if self.peers.len() < MAX_PEERS {
            return true;
        }
        let unproven = self.peers.iter().filter(|(_, peer)| !peer.is_proven());
        let first = unproven.min_by_key(|(_, peer)| peer.heard).map(|(address, _)| *address);
        first.is_some_and(|address| self.peers.remove(&address).is_some())
    }

    /// Sends a report to a node that begins to be heard, unless many have been sent to others.
    fn reply(&mut self, to: IpAddr) {
        if self.replies > 0 {
            self.replies -= 1;
            self.emit_report(Some(to));
        }
    }

    /// The time for which a silent peer is remembered: as long as what it sent is fresh.
    fn memory(&self) -> Duration {
        self.config.timing.lost_after.max(CHALLENGE_INTERVALS * self.config.timing.interval)
    }

    /// The time at which a silent peer counts as lost, or is forgotten.
    fn silence_ends(&self, peer: &Peer) -> Instant {
        peer.heard + if peer.report.is_some() { self.config.timing.lost_after } else { self.memory() }
    }

    /// Sends a report as soon as the least time since the last one has passed.
    fn report_soon(&mut self, now: Instant) {
        let earliest = self.last_report.map_or(now, |last| last + self.config.timing.min_gap);
        self.next_report = self.next_report.min(earliest.max(now));
    }

    fn take(&mut self, now: Instant, source: IpAddr, message: Message) -> Result<(), Discard> {
        let Some(peer) = self.peers.get_mut(&source) else { return Ok(()) };
        match message.body {
            Body::Report { round, part, parts, records } => {
                let found = peer.report.is_none();
                if peer.assemble(round, part, parts, records) {
                    let event = if found { Event::Found(source) } else { Event::Changed(source) };
                    self.events.push_back(event);
                }
            }
            Body::Request { id, request } => match peer.requested(now, id) {
                peer::Requested::New => {
                    self.events.push_back(Event::Requested { from: source, id, request });
                }
                peer::Requested::Pending => {}
                peer::Requested::Answered(answer) => self.emit(Some(source), Body::Answer { id, answer }),
                peer::Requested::TooMany => return Err(Discard::TooMany),
            },
            Body::Answer { id, answer } => {
                // Only the node that was asked may answer.
                if self.asked.get(&id).is_some_and(|asked| asked.to == source) {
                    self.asked.remove(&id);
                    self.events.push_back(Event::Answered { from: source, id, answer });
                }
            }
            Body::Stop => {
                let known = peer.report.take().is_some();
                peer.heard = now;
                if known {
                    self.events.push_back(Event::Lost(source));
                }
            }
        }
        Ok(())
    }

    /// Makes another challenge the current one, and returns its number.
    fn renew_challenge(&mut self, now: Instant) -> u64 {
        let number = self.challenges.back().map_or(1, |current| current.number + 1);
        self.challenges.push_back(Challenge { number, value: self.random.next(), made: now });
        if self.challenges.len() > MAX_CHALLENGES {
            self.challenges.pop_front();
        }
        number
    }

    /// Drops the reports of peers that have been silent, and later the peers.
    fn forget_silent(&mut self, now: Instant) {
        let (lost_after, memory) = (self.config.timing.lost_after, self.memory());
        for (address, peer) in &mut self.peers {
            if now >= peer.heard + lost_after && peer.report.take().is_some() {
                self.events.push_back(Event::Lost(*address));
            }
        }
        self.peers.retain(|_, peer| now < peer.heard + memory);
    }

    fn repeat_requests(&mut self, now: Instant) {
        let over: Vec<u64> =
            self.asked.iter().filter(|(_, asked)| now >= asked.give_up_at).map(|(id, _)| *id).collect();
        for id in over {
            self.asked.remove(&id);
            self.events.push_back(Event::Unanswered { id });
        }
        let due = self.asked.iter_mut().filter(|(_, asked)| now >= asked.repeat_at);
        let repeat = self.config.timing.repeat;
        let again: Vec<_> = due
            .map(|(id, asked)| {
                asked.repeat_at = now + repeat;
                (asked.to, Body::Request { id: *id, request: asked.request.clone() })
            })
            .collect();
        for (to, body) in again {
            self.emit(Some(to), body);
        }
    }

    fn send_report(&mut self, now: Instant) {
        if self.challenges.back().is_none_or(|current| now >= current.made + self.config.timing.interval) {
            self.renew_challenge(now);
            self.replies = (self.replies + NEW_REPLIES).min(MAX_REPLIES);
        }
        self.emit_report(None);
        self.last_report = Some(now);
        self.next_report = now + self.config.timing.interval;
    }

    fn emit_report(&mut self, to: Option<IpAddr>) {
        self.round = self.round.wrapping_add(1);
        let parts = self.report.to_parts(message::report_room(self.echoes().count()));
        let count = u8::try_from(parts.len()).unwrap_or(u8::MAX);
        for (part, records) in (0..count).zip(parts) {
            self.emit(to, Body::Report { round: self.round, part, parts: count, records });
        }
    }

    /// The challenges to return: those of known peers first.
    fn echoes(&self) -> impl Iterator<Item = Echo> + '_ {
        let proven = self.peers.values().filter_map(Peer::proven_echo);
        proven.chain(self.peers.values().flat_map(Peer::candidate_echoes)).take(message::MAX_ECHOES)
    }

    fn emit(&mut self, to: Option<IpAddr>, body: Body) {
        self.sequence += 1;
        self.sent += 1;
        let echoes = self.echoes().collect();
        let message = Message {
            boot: self.boot,
            sequence: self.sequence,
            challenge: self.challenges.back().map_or(0, |current| current.value),
            echoes,
            body,
        };
        self.outputs.push_back(Datagram { to, payload: message.encode() });
    }
}
