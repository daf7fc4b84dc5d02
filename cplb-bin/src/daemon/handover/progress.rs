//! The progress of moves and of requests that were passed on: answers, deadlines, and what the election reports.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use vrrp::channel::{Answer, Outcome, Request};
use vrrp::router::{MoveSide, PlannedMove, StateName};
use vrrp::runner::InstanceId;

use super::view::{InstanceView, View, is_at};
use super::{ANSWER_TIME, Handovers, MoveInProgress, MoveResult, Output, Phase, Question, Relay, SILENT};

/// The age up to which a measurement belongs to the move that a peer asks about.
pub(super) const RECENT: Duration = Duration::from_secs(60);

impl Handovers {
    /// Handles the answer to a request of this node; `None` if there was none in time.
    pub(crate) fn answered(
        &mut self,
        now: Instant,
        view: &View,
        token: u64,
        answer: Option<Answer>,
    ) -> Vec<Output> {
        let outputs = self.take_answer(now, view, token, answer);
        self.settle(now, view, outputs)
    }

    fn take_answer(&mut self, now: Instant, view: &View, token: u64, answer: Option<Answer>) -> Vec<Output> {
        if let Some(relay) = self.relays.remove(&token) {
            let Relay { asker, instance, active, .. } = relay;
            let silent = || {
                Answer::refused(format!("{active}, which was Active, did not answer; they may have moved"))
            };
            let answer = answer.unwrap_or_else(silent);
            return vec![Output::Reply { asker, instance, result: MoveResult { from: active, answer } }];
        }
        let concerned = self.moves.iter_mut().find(|(_, current)| match &current.phase {
            Phase::Telling(waiting) => waiting.contains_key(&token),
            Phase::HandingOver => false,
            Phase::Asking { token: asked, .. } => *asked == token,
        });
        let Some((&id, current)) = concerned else { return Vec::new() };
        match &mut current.phase {
            Phase::Telling(waiting) => {
                let Some(peer) = waiting.remove(&token) else { return Vec::new() };
                let is_successor = current.successor == Some(peer);
                let refusal = match answer {
                    Some(answer) if answer.outcome == Outcome::ACCEPTED => None,
                    Some(answer) => Some(answer.reason),
                    None => {
                        if is_successor {
                            // It may know that it is the successor, so that no other one may be named.
                            current.candidates.clear();
                        }
                        Some(SILENT.to_owned())
                    }
                };
                match (view.instance(id), refusal.filter(|_| is_successor)) {
                    (Some(instance), Some(why)) => self.decline(now, view, instance, &why),
                    (Some(instance), None) if self.all_told(id) => self.hand_over(now, instance),
                    _ => Vec::new(),
                }
            }
            Phase::Asking { answer: own, .. } => {
                let taken = answer.and_then(|answer| answer.taken);
                let answer = Answer { taken, ..own.clone() };
                self.end(view, id, answer)
            }
            Phase::HandingOver => Vec::new(),
        }
    }

    /// Handles the deadlines, and the progress of the election.
    pub(crate) fn tick(&mut self, now: Instant, view: &View) -> Vec<Output> {
        let mut outputs = self.answer_questions(now, view);
        let over: Vec<u64> =
            self.relays.iter().filter(|(_, relay)| now >= relay.deadline).map(|(token, _)| *token).collect();
        for token in over {
            outputs.extend(self.answered(now, view, token, None));
        }
        let ids: Vec<InstanceId> = self.moves.keys().copied().collect();
        for id in ids {
            outputs.extend(self.advance(now, view, id));
        }
        outputs = self.settle(now, view, outputs);
        outputs.extend(self.ask_again(now, view));
        outputs
    }

    fn answer_questions(&mut self, now: Instant, view: &View) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.questions.retain(|question| {
            let instance = view.instance(question.instance);
            let taken = instance.and_then(|instance| taken_from(now, instance, question.from));
            let done = taken.is_some() || now >= question.deadline;
            if done {
                let answer = Answer { holder: view.node.clone(), taken, ..Answer::accepted() };
                let Question { link, from, id, .. } = question;
                outputs.push(Output::Answer { link: link.clone(), to: *from, id: *id, answer });
            }
            !done
        });
        outputs
    }

    fn advance(&mut self, now: Instant, view: &View, id: InstanceId) -> Vec<Output> {
        let Some(current) = self.moves.get_mut(&id) else { return Vec::new() };
        let Some(instance) = view.instance(id) else {
            return self.end(view, id, Answer::refused("the instance was removed"));
        };
        let (late, successor) = (now >= current.deadline, current.successor);
        match &current.phase {
            Phase::Telling(waiting) if late => match successor {
                Some(successor) if waiting.values().any(|peer| *peer == successor) => {
                    current.candidates.clear();
                    self.decline(now, view, instance, SILENT)
                }
                // The successor knows; the others would only wait for it.
                _ => self.hand_over(now, instance),
            },
            Phase::Telling(_) => Vec::new(),
            Phase::HandingOver => {
                let own_move = instance
                    .last_move
                    .filter(|last| last.side == MoveSide::From && last.resigned >= current.began);
                match own_move {
                    // The result is told when this node has them no more.
                    Some(PlannedMove { took: Some(_), .. }) if instance.holds && !late => Vec::new(),
                    Some(PlannedMove { took: Some(kept), other, .. }) => {
                        self.handed_over(now, view, instance, kept, other)
                    }
                    Some(_) if instance.state == StateName::Active => {
                        let why = "no router that can serve took over in time";
                        self.end(view, id, Answer { holder: view.node.clone(), ..Answer::refused(why) })
                    }
                    _ if late => {
                        let why =
                            format!("the handover did not end; {} is {} now", view.node, instance.state);
                        self.end(view, id, Answer::refused(why))
                    }
                    _ => Vec::new(),
                }
            }
            Phase::Asking { answer, .. } if late => {
                let answer = answer.clone();
                self.end(view, id, answer)
            }
            Phase::Asking { .. } => Vec::new(),
        }
    }

    /// The election has handed over: asks the successor when it had the addresses.
    fn handed_over(
        &mut self,
        now: Instant,
        view: &View,
        instance: &InstanceView,
        kept: Duration,
        other: Option<IpAddr>,
    ) -> Vec<Output> {
        let (id, vrid) = (instance.id, instance.vrid);
        let named = self.moves.get(&id).and_then(|current| current.successor);
        let other = other.or(instance.active);
        let holder = other.map(|other| view.name(instance, other)).unwrap_or_default();
        let mut answer = Answer { holder, kept: Some(kept), ..Answer::accepted() };
        if let Some(named) = named.filter(|named| other.is_some_and(|other| other != *named)) {
            answer.reason = format!("it took over because {} did not", view.name(instance, named));
        }
        let peer = other.and_then(|other| {
            let mut peers = view.members(instance).map(|(peer, _)| peer);
            peers.find(|peer| is_at(peer, other)).map(|peer| peer.address)
        });
        let (Some(link), Some(to)) = (&instance.link, peer) else {
            let reason =
                "it is not in the group channel (is it keepalived?), so its end of the move was not measured";
            if answer.reason.is_empty() {
                reason.clone_into(&mut answer.reason);
            }
            return self.end(view, id, answer);
        };
        let token = self.token();
        if let Some(current) = self.moves.get_mut(&id) {
            (current.phase, current.deadline) = (Phase::Asking { token, answer }, now + 2 * ANSWER_TIME);
        }
        let request = Request::Moved { vrid };
        vec![Output::Ask { link: link.clone(), token, to, request, timeout: 2 * ANSWER_TIME }]
    }

    pub(super) fn end(&mut self, view: &View, id: InstanceId, answer: Answer) -> Vec<Output> {
        let Some(MoveInProgress { asker, .. }) = self.moves.remove(&id) else { return Vec::new() };
        let from = view.node.clone();
        vec![Output::Reply { asker, instance: id, result: MoveResult { from, answer } }]
    }
}

/// The time from the resignation of this peer, which was a moment ago, until this node had the addresses.
pub(super) fn taken_from(now: Instant, instance: &InstanceView, peer: IpAddr) -> Option<Duration> {
    let last = instance.last_move.filter(|last| last.side == MoveSide::To)?;
    let is_this = last.other.is_none_or(|other| other == peer);
    let recent = now.saturating_duration_since(last.resigned) < RECENT;
    last.took.filter(|_| is_this && recent)
}
