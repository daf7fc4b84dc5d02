//! A peer: its freshness, its report, its requests.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::message::{Answer, Echo, Message};
use super::report::{MAX_PARTS, Report};

/// The most senders under one address whose challenge is returned although they are not proven.
const MAX_CANDIDATES: usize = 2;
/// The most requests of a peer that are remembered.
const MAX_REQUESTS: usize = 16;
/// The time within which a peer may send as many new ones.
const REQUEST_PERIOD: Duration = Duration::from_secs(1);

/// The place of a message among those of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It counts. `other_boot`: it is the first of this boot.
    Fresh { other_boot: bool },
    /// Its sequence is not greater than the last one.
    Replayed,
    /// It does not return a challenge that is recent enough. `is_new`: the sender's own challenge was not known.
    Unproven { is_new: bool },
}

/// The state of a request of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requested {
    New,
    /// The owner of the channel has it already.
    Pending,
    Answered(Answer),
    /// The peer has sent [`MAX_REQUESTS`] others within [`REQUEST_PERIOD`].
    TooMany,
}

/// A request of the peer, for its repetitions.
#[derive(Debug)]
struct Noted {
    id: u64,
    at: Instant,
    answer: Option<Answer>,
}

/// The last message of a sender since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SenderBoot {
    boot: u64,
    sequence: u64,
    challenge: u64,
}

impl SenderBoot {
    const fn of(message: &Message) -> Self {
        Self { boot: message.boot, sequence: message.sequence, challenge: message.challenge }
    }

    const fn echo(self) -> Echo {
        Echo { boot: self.boot, challenge: self.challenge }
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    /// The sender that returned a challenge.
    proven: Option<SenderBoot>,
    /// Senders that have not, the newest last.
    candidates: VecDeque<SenderBoot>,
    /// The number of the first challenge that another boot must return.
    first_challenge: u64,
    /// The time of its last message that counted, or of its first one.
    pub(super) heard: Instant,
    /// The last report of which all parts have arrived.
    pub(super) report: Option<Report>,
    round: u32,
    parts: BTreeMap<u8, Vec<u8>>,
    requests: VecDeque<Noted>,
}

impl Peer {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            proven: None,
            candidates: VecDeque::new(),
            first_challenge: 0,
            heard: now,
            report: None,
            round: 0,
            parts: BTreeMap::new(),
            requests: VecDeque::new(),
        }
    }

    /// Judges a message. `returned` is the number of the challenge that it returns, if that is a current one.
    pub(super) fn hear(&mut self, now: Instant, message: &Message, returned: Option<u64>) -> Heard {
        let sender = SenderBoot::of(message);
        let former = self.proven.filter(|former| former.boot == sender.boot);
        if former.is_some_and(|former| sender.sequence <= former.sequence) {
            return Heard::Replayed;
        }
        let other_boot = former.is_none();
        if returned.is_some_and(|number| !other_boot || number >= self.first_challenge) {
            if other_boot {
                self.begin();
            }
            self.proven = Some(sender);
            self.heard = now;
            return Heard::Fresh { other_boot };
        }
        if let Some(former) = &mut self.proven
            && !other_boot
        {
            // It has not received the new challenge yet; its own one counts.
            let is_new = former.challenge != sender.challenge;
            former.challenge = sender.challenge;
            return Heard::Unproven { is_new };
        }
        let known = self.candidates.iter().any(|candidate| candidate.echo() == sender.echo());
        if !known {
            self.candidates.retain(|candidate| candidate.boot != sender.boot);
            self.candidates.push_back(sender);
            if self.candidates.len() > MAX_CANDIDATES {
                self.candidates.pop_front();
            }
        }
        Heard::Unproven { is_new: !known }
    }

    /// Another sender lives at the address: nothing of the former one counts.
    fn begin(&mut self) {
        self.candidates.clear();
        self.parts.clear();
        self.requests.clear();
        self.round = 0;
    }

    /// Demands a challenge of at least this number from the next boot.
    pub(super) const fn require_challenge(&mut self, number: u64) {
        self.first_challenge = number;
    }

    pub(super) const fn is_proven(&self) -> bool {
        self.proven.is_some()
    }

    /// The challenge to return to the sender that is known.
    pub(super) fn proven_echo(&self) -> Option<Echo> {
        self.proven.map(SenderBoot::echo)
    }

    /// The challenges to return to senders that are not known yet.
    pub(super) fn candidate_echoes(&self) -> impl Iterator<Item = Echo> + '_ {
        self.candidates.iter().map(|sender| sender.echo())
    }

    /// Adds a part of a report. Returns whether the report is complete with it and differs from the one before.
    pub(super) fn assemble(&mut self, round: u32, part: u8, parts: u8, records: Vec<u8>) -> bool {
        if round != self.round {
            self.round = round;
            self.parts.clear();
        }
        if parts > MAX_PARTS {
            return false;
        }
        self.parts.insert(part, records);
        if self.parts.len() < parts.into() {
            return false;
        }
        let all: Vec<u8> = std::mem::take(&mut self.parts).into_values().flatten().collect();
        let Ok(report) = Report::decode(&all) else { return false };
        let differs = self.report.as_ref().is_none_or(|former| former.differs(&report));
        self.report = Some(report);
        differs
    }

    /// Notes a request.
    pub(super) fn requested(&mut self, now: Instant, id: u64) -> Requested {
        match self.requests.iter().find(|known| known.id == id) {
            Some(Noted { answer: Some(answer), .. }) => Requested::Answered(answer.clone()),
            Some(Noted { answer: None, .. }) => Requested::Pending,
            None => {
                if self.requests.len() >= MAX_REQUESTS {
                    match self.requests.front() {
                        Some(first) if now >= first.at + REQUEST_PERIOD => _ = self.requests.pop_front(),
                        _ => return Requested::TooMany,
                    }
                }
                self.requests.push_back(Noted { id, at: now, answer: None });
                Requested::New
            }
        }
    }

    /// Notes the answer to a request, for its repetitions.
    pub(super) fn answered(&mut self, id: u64, answer: Answer) {
        if let Some(known) = self.requests.iter_mut().find(|known| known.id == id) {
            known.answer = Some(answer);
        }
    }
}
