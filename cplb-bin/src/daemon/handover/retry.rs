//! Operators' requests that come while a group settles. Just after an election what the nodes know of each other is older than
//! the election, so a refusal may be out of date at once: the request is made again for a while before it counts. A request is
//! for one move: where the virtual IPs have moved in the meantime, it is not made again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use vrrp::channel::{Answer, Outcome};
use vrrp::router::StateName;
use vrrp::runner::InstanceId;

use super::{Asker, Handovers, InstanceView, MoveResult, Output, View};

/// The time after a change of state in which a refusal does not count: two reports of each peer.
pub(crate) const SETTLING: Duration = Duration::from_secs(2);
/// The time between two attempts.
const AGAIN: Duration = Duration::from_millis(200);
/// An attempt that takes longer has begun a move, or a node was silent: its end counts.
const QUICK: Duration = Duration::from_millis(1200);
/// The longest time that an operator waits for a refusal because of this.
const PATIENCE: Duration = Duration::from_secs(3);

/// A request of an operator that is not answered yet.
#[derive(Debug)]
pub(super) struct Asked {
    to: Option<String>,
    /// The router that had the addresses then, as far as it was known.
    holder: Option<IpAddr>,
    began: Instant,
    /// The start of the last attempt.
    tried: Instant,
    /// The time of the next attempt.
    again: Option<Instant>,
}

impl Handovers {
    /// Notes a request of an operator.
    pub(super) fn note(
        &mut self,
        now: Instant,
        view: &View,
        asker: &Asker,
        id: InstanceId,
        to: Option<&str>,
    ) {
        if let Asker::Operator(number) = asker {
            let holder = view.instance(id).and_then(holder);
            let new = Asked { to: to.map(str::to_owned), holder, began: now, tried: now, again: None };
            let asked = self.asked.entry((*number, id)).or_insert(new);
            (asked.tried, asked.again) = (now, None);
            asked.holder = asked.holder.or(holder);
        }
    }

    /// The operator whose request to move an instance to any other node is to be made again.
    pub(super) fn waiting(&self, id: InstanceId) -> Option<Asker> {
        let waits = |asked: &Asked| asked.again.is_some() && asked.to.is_none();
        let mut waiting = self.asked.iter().filter(|((_, instance), asked)| *instance == id && waits(asked));
        waiting.next().map(|((number, _), _)| Asker::Operator(*number))
    }

    /// Keeps the refusals that may be out of date, and returns the rest.
    pub(super) fn settle(&mut self, now: Instant, view: &View, outputs: Vec<Output>) -> Vec<Output> {
        let counts = |output: &Output| {
            let Output::Reply { asker: Asker::Operator(number), instance, result } = output else {
                return true;
            };
            let key = (*number, *instance);
            let settled = view.instance(*instance).is_none_or(|instance| instance.settled);
            let refused = result.answer.outcome != Outcome::ACCEPTED;
            match self.asked.get_mut(&key) {
                Some(asked)
                    if refused && !settled && now < asked.began + PATIENCE && now < asked.tried + QUICK =>
                {
                    asked.again = Some(now + AGAIN);
                    false
                }
                _ => {
                    self.asked.remove(&key);
                    true
                }
            }
        };
        outputs.into_iter().filter(counts).collect()
    }

    /// Makes the requests that are due again.
    pub(super) fn ask_again(&mut self, now: Instant, view: &View) -> Vec<Output> {
        let is_due = |asked: &Asked| asked.again.is_some_and(|at| at <= now);
        let due: Vec<_> = self.asked.iter().filter(|(_, asked)| is_due(asked)).map(|(key, _)| *key).collect();
        due.into_iter().flat_map(|key| self.ask_once_more(now, view, key)).collect()
    }

    fn ask_once_more(&mut self, now: Instant, view: &View, key: (u64, InstanceId)) -> Vec<Output> {
        let (number, id) = key;
        let Some(Asked { to, holder: before, .. }) = self.asked.get(&key) else { return Vec::new() };
        let (to, before, asker) = (to.clone(), *before, Asker::Operator(number));
        match (view.instance(id), before) {
            (Some(instance), Some(before)) if to.is_none() && has_left(before, instance) => {
                self.asked.remove(&key);
                vec![took_over_meanwhile(view, instance, before, asker)]
            }
            _ => self.ask(now, view, asker, id, to.as_deref()),
        }
    }
}

/// The router that has the addresses, as far as this node knows.
fn holder(instance: &InstanceView) -> Option<IpAddr> {
    if instance.state == StateName::Active { instance.own } else { instance.active }
}

fn has_left(before: IpAddr, instance: &InstanceView) -> bool {
    holder(instance).is_some_and(|now| now != before)
}

fn took_over_meanwhile(view: &View, instance: &InstanceView, before: IpAddr, asker: Asker) -> Output {
    let holder = holder(instance).map(|holder| view.name(instance, holder)).unwrap_or_default();
    let reason = "it took over in the meantime".to_owned();
    let result = MoveResult {
        from: view.name(instance, before),
        answer: Answer { holder, reason, ..Answer::accepted() },
    };
    Output::Reply { asker, instance: instance.id, result }
}
