//! Moves of virtual IPs on request, as a state machine without I/O.
//!
//! An operator asks any node. A node that is not Active passes the request on through the group channel. The Active names the
//! successor to every router, resigns, and asks the successor how long the takeover took: the blackout follows from the times
//! of both ends. The election alone decides what happens; a message that is lost costs the move, not the addresses.

mod choice;
mod progress;
mod retry;
mod view;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vrrp::channel::{Answer, Request};
use vrrp::router::StateName;
use vrrp::runner::InstanceId;

use super::group::LinkKey;

use choice::{Choice, cannot, choose, may_succeed};
pub(crate) use retry::SETTLING;
pub(crate) use view::{InstanceView, View, selected};
use view::{is_at, label};

/// The time that peers have to answer.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// The time that a router may take beyond Active_Down_Interval, after which an unanswered resignation ends.
const GRACE: Duration = Duration::from_secs(2);

/// The reason of a router that was asked and did not answer.
const SILENT: &str = "it did not answer";

/// The one that wants a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asker {
    /// An operator on this node, by the number of the connection.
    Operator(u64),
    /// This node, which is in standby.
    Standby,
    Peer {
        link: LinkKey,
        address: IpAddr,
        id: u64,
    },
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    Ask {
        link: LinkKey,
        token: u64,
        to: IpAddr,
        request: Request,
        timeout: Duration,
    },
    /// A command for the election: see [`vrrp::router::Command::Succession`].
    Succession {
        instance: InstanceId,
        active: IpAddr,
        successor: IpAddr,
        until: Instant,
    },
    /// A command for the election: see [`vrrp::router::Command::HandOver`].
    HandOver(InstanceId),
    /// The end of a request.
    Reply {
        asker: Asker,
        instance: InstanceId,
        result: MoveResult,
    },
    /// The answer to a peer's request that is no move.
    Answer {
        link: LinkKey,
        to: IpAddr,
        id: u64,
        answer: Answer,
    },
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MoveResult {
    /// The name of the node that had the addresses; empty if it is not known.
    pub(crate) from: String,
    pub(crate) answer: Answer,
}

/// All moves under way.
#[derive(Debug, Default)]
pub(crate) struct Handovers {
    /// By instance: those of which this node is the Active.
    moves: BTreeMap<InstanceId, MoveInProgress>,
    /// By token: requests that were passed on to the Active.
    relays: BTreeMap<u64, Relay>,
    /// Peers that ask when this node had the addresses, which it is about to have.
    questions: Vec<Question>,
    /// Requests of operators on this node, by the number of the connection and the instance.
    asked: BTreeMap<(u64, InstanceId), retry::Asked>,
    tokens: u64,
}

#[derive(Debug)]
struct MoveInProgress {
    asker: Asker,
    began: Instant,
    /// The router that was asked, or that takes over.
    successor: Option<IpAddr>,
    /// Those that are asked if it declines.
    candidates: VecDeque<IpAddr>,
    /// The reasons why others do not take over.
    declined: Vec<String>,
    is_named: bool,
    phase: Phase,
    deadline: Instant,
}

#[derive(Debug)]
enum Phase {
    /// The routers of the group are told about the successor; the tokens of those that have not answered.
    Telling(BTreeMap<u64, IpAddr>),
    /// The election hands over.
    HandingOver,
    /// The successor is asked when it had the addresses.
    Asking { token: u64, answer: Answer },
}

#[derive(Debug)]
struct Relay {
    asker: Asker,
    instance: InstanceId,
    active: String,
    deadline: Instant,
}

#[derive(Debug)]
struct Question {
    link: LinkKey,
    from: IpAddr,
    id: u64,
    instance: InstanceId,
    deadline: Instant,
}

impl Handovers {
    /// Returns whether nothing is under way, so that [`Self::tick`] has nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.moves.is_empty() && self.relays.is_empty() && self.questions.is_empty() && self.asked.is_empty()
    }

    /// Begins a move of an instance to the named node, or to the one that the election chooses.
    pub(crate) fn ask(
        &mut self,
        now: Instant,
        view: &View,
        asker: Asker,
        id: InstanceId,
        to: Option<&str>,
    ) -> Vec<Output> {
        self.note(now, view, &asker, id, to);
        let outputs = self.ask_once(now, view, asker, id, to);
        self.settle(now, view, outputs)
    }

    fn ask_once(
        &mut self,
        now: Instant,
        view: &View,
        asker: Asker,
        id: InstanceId,
        to: Option<&str>,
    ) -> Vec<Output> {
        let Some(instance) = view.instance(id) else {
            return vec![refuse(asker, id, "", "the instance does not exist any more")];
        };
        if self.moves.contains_key(&id) {
            return vec![refuse(asker, id, &view.node, "another handover of these virtual IPs is under way")];
        }
        match instance.state {
            StateName::Active => self.begin(now, view, asker, instance, to),
            // Only an operator's request is passed on, so that none goes around in circles.
            _ if matches!(asker, Asker::Operator(_)) => self.relay(now, view, asker, instance, to),
            state => {
                let why = format!("{} is {state} for virtual router {}", view.node, instance.vrid);
                vec![refuse(asker, id, "", why)]
            }
        }
    }

    /// Begins to move the virtual IPs that this node holds in standby, where a peer can serve. A request of an operator that is
    /// to be made again becomes this move.
    pub(crate) fn leave(&mut self, now: Instant, view: &View) -> Vec<Output> {
        let held = view.instances.iter().filter(|instance| instance.state == StateName::Active);
        let can_leave =
            |instance: &&InstanceView| matches!(choose(view, instance, None), Ok(Choice::Ask { .. }));
        let free: Vec<&InstanceView> =
            held.filter(can_leave).filter(|instance| !self.moves.contains_key(&instance.id)).collect();
        let leave = |instance: &InstanceView| {
            let asker = self.waiting(instance.id).unwrap_or(Asker::Standby);
            self.note(now, view, &asker, instance.id, None);
            self.begin(now, view, asker, instance, None)
        };
        let outputs = free.into_iter().flat_map(leave).collect();
        self.settle(now, view, outputs)
    }

    fn relay(
        &mut self,
        now: Instant,
        view: &View,
        asker: Asker,
        instance: &InstanceView,
        to: Option<&str>,
    ) -> Vec<Output> {
        let refused = |from: &str, why: String| vec![refuse(asker.clone(), instance.id, from, why)];
        let Some(active) = instance.active else {
            return refused("", format!("no Active of virtual router {} is known", instance.vrid));
        };
        let peer = view.members(instance).map(|(peer, _)| peer).find(|peer| is_at(peer, active));
        let (Some(link), Some(peer)) = (&instance.link, peer) else {
            let why = format!(
                "{active} is Active and takes no requests, as it is not in the group channel (is it keepalived?): stop it \
                 there instead"
            );
            return refused(&active.to_string(), why);
        };
        let (active, token) = (label(peer), self.token());
        // The Active answers when all is over.
        let members = u32::try_from(view.members(instance).count()).unwrap_or(u32::MAX);
        let timeout = ANSWER_TIME.saturating_mul(members.saturating_add(4)) + instance.down + GRACE;
        let to = to.map(str::to_owned);
        let request = Request::Handover { vrid: instance.vrid, to };
        let ask = Output::Ask { link: link.clone(), token, to: peer.address, request, timeout };
        self.relays.insert(token, Relay { asker, instance: instance.id, active, deadline: now + timeout });
        vec![ask]
    }

    fn begin(
        &mut self,
        now: Instant,
        view: &View,
        asker: Asker,
        instance: &InstanceView,
        to: Option<&str>,
    ) -> Vec<Output> {
        let id = instance.id;
        let (candidates, declined) = match choose(view, instance, to) {
            Ok(Choice::Ask { candidates, declined }) => (candidates, declined),
            Ok(Choice::Resign) => (VecDeque::new(), Vec::new()),
            Ok(Choice::This) => {
                let reason = format!("{} has them already", view.node);
                let answer = Answer { holder: view.node.clone(), reason, ..Answer::accepted() };
                let result = MoveResult { from: view.node.clone(), answer };
                return vec![Output::Reply { asker, instance: id, result }];
            }
            Err(why) => return vec![refuse(asker, id, &view.node, why)],
        };
        let is_directed = !candidates.is_empty();
        let (phase, is_named) = (Phase::Telling(BTreeMap::new()), to.is_some());
        let (successor, began, deadline) = (None, now, now);
        let begun =
            MoveInProgress { asker, began, successor, candidates, declined, is_named, phase, deadline };
        self.moves.insert(id, begun);
        if is_directed { self.ask_next(now, view, instance) } else { self.hand_over(now, instance) }
    }

    /// Asks the next candidate whether it takes over; after the last one the request is refused.
    fn ask_next(&mut self, now: Instant, view: &View, instance: &InstanceView) -> Vec<Output> {
        let Some(current) = self.moves.get_mut(&instance.id) else { return Vec::new() };
        let Some(successor) = current.candidates.pop_front() else {
            let why = if current.is_named { current.declined.join("; ") } else { cannot(&current.declined) };
            let answer = Answer { holder: view.node.clone(), ..Answer::refused(why) };
            return self.end(view, instance.id, answer);
        };
        (current.successor, current.deadline) = (Some(successor), now + ANSWER_TIME);
        if !current.is_named && !view.members(instance).any(|(peer, _)| peer.address == successor) {
            return self.decline(now, view, instance, "it is gone");
        }
        let mut outputs = self.tell(view, instance, successor);
        if self.all_told(instance.id) {
            outputs.extend(self.hand_over(now, instance));
        }
        outputs
    }

    fn decline(&mut self, now: Instant, view: &View, instance: &InstanceView, why: &str) -> Vec<Output> {
        if let Some(current) = self.moves.get_mut(&instance.id) {
            let node = current.successor.map(|successor| view.name(instance, successor)).unwrap_or_default();
            current.declined.push(format!("{node} does not take over: {why}"));
        }
        self.ask_next(now, view, instance)
    }

    /// Names the successor to all routers of the group.
    fn tell(&mut self, view: &View, instance: &InstanceView, successor: IpAddr) -> Vec<Output> {
        let Some(link) = &instance.link else { return Vec::new() };
        let lasts = u32::try_from(succession_time(instance).as_millis()).unwrap_or(u32::MAX);
        let request = Request::Succession { vrid: instance.vrid, successor, lasts };
        let peers = view.members(instance).map(|(peer, _)| (self.token(), peer.address));
        let told: BTreeMap<u64, IpAddr> = peers.collect();
        let ask = |(token, to): (&u64, &IpAddr)| Output::Ask {
            link: link.clone(),
            token: *token,
            to: *to,
            request: request.clone(),
            timeout: ANSWER_TIME,
        };
        let asks = told.iter().map(ask).collect();
        if let Some(current) = self.moves.get_mut(&instance.id) {
            current.phase = Phase::Telling(told);
        }
        asks
    }

    /// Returns whether all routers of the group know the successor.
    fn all_told(&self, id: InstanceId) -> bool {
        let current = self.moves.get(&id);
        current.is_some_and(|current| {
            current.successor.is_some()
                && matches!(&current.phase, Phase::Telling(waiting) if waiting.is_empty())
        })
    }

    fn hand_over(&mut self, now: Instant, instance: &InstanceView) -> Vec<Output> {
        let Some(current) = self.moves.get_mut(&instance.id) else { return Vec::new() };
        (current.phase, current.deadline) = (Phase::HandingOver, now + instance.down + GRACE);
        current.began = now;
        let until = now + succession_time(instance);
        let named = current.successor.zip(instance.own).map(|(successor, active)| Output::Succession {
            instance: instance.id,
            active,
            successor,
            until,
        });
        named.into_iter().chain([Output::HandOver(instance.id)]).collect()
    }

    /// Handles the request of a peer.
    pub(crate) fn requested(
        &mut self,
        now: Instant,
        view: &View,
        (link, from, id): (LinkKey, IpAddr, u64),
        request: Request,
    ) -> Vec<Output> {
        let answer = |answer| Output::Answer { link: link.clone(), to: from, id, answer };
        let (Request::Handover { vrid, .. } | Request::Succession { vrid, .. } | Request::Moved { vrid }) =
            request
        else {
            return vec![answer(Answer::refused("this version of cplb does not know the request"))];
        };
        let found = view.by_vrid(&link, vrid).and_then(|instance| {
            let mut members = view.members(instance).map(|(peer, _)| peer);
            Some((instance, members.find(|peer| peer.address == from)?))
        });
        let Some((instance, peer)) = found else {
            let why = format!("{} has no virtual router {vrid} with the same addresses", view.node);
            return vec![answer(Answer::refused(why))];
        };
        match request {
            Request::Handover { to, .. } => {
                let asker = Asker::Peer { link, address: from, id };
                self.ask(now, view, asker, instance.id, to.as_deref())
            }
            Request::Succession { successor, lasts, .. } => {
                let until = now + Duration::from_millis(lasts.into()).min(succession_time(instance));
                match may_succeed(view, instance, peer, successor) {
                    Ok(active) => {
                        let command = Output::Succession { instance: instance.id, active, successor, until };
                        vec![command, answer(Answer::accepted())]
                    }
                    Err(why) => vec![answer(Answer::refused(why))],
                }
            }
            _ => {
                let (instance, deadline) = (instance.id, now + ANSWER_TIME);
                self.questions.retain(|question| (question.from, question.instance) != (from, instance));
                self.questions.push(Question { link, from, id, instance, deadline });
                self.tick(now, view)
            }
        }
    }

    const fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }
}

/// The time for which a successor is named: until the others have answered, the Active has resigned, and the successor has
/// advertised.
fn succession_time(instance: &InstanceView) -> Duration {
    2 * ANSWER_TIME + instance.down
}

/// A refusal; `from` is the node that has the addresses and keeps them, if it is known.
fn refuse(asker: Asker, instance: InstanceId, from: &str, why: impl Into<String>) -> Output {
    let answer = Answer { holder: from.to_owned(), ..Answer::refused(why) };
    Output::Reply { asker, instance, result: MoveResult { from: from.to_owned(), answer } }
}
