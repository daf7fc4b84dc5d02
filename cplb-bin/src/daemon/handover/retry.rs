//! Operators' requests that come while a group settles. Just after an election what the nodes know of each other is older than
//! the election, so a refusal may be out of date at once: the request is made again for a while before it counts.

use std::time::{Duration, Instant};

use vrrp::channel::Outcome;
use vrrp::runner::InstanceId;

use super::{Asker, Handovers, Output, View};

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
    began: Instant,
    /// The start of the last attempt.
    tried: Instant,
    /// The time of the next attempt.
    again: Option<Instant>,
}

impl Handovers {
    /// Notes a request of an operator.
    pub(super) fn note(&mut self, now: Instant, asker: &Asker, id: InstanceId, to: Option<&str>) {
        if let Asker::Operator(number) = asker {
            let new = Asked { to: to.map(str::to_owned), began: now, tried: now, again: None };
            let asked = self.asked.entry((*number, id)).or_insert(new);
            (asked.tried, asked.again) = (now, None);
        }
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
        let due = self.asked.iter().filter(|(_, asked)| asked.again.is_some_and(|at| at <= now));
        let due: Vec<_> = due.map(|(key, asked)| (*key, asked.to.clone())).collect();
        let ask = |((number, id), to): ((u64, InstanceId), Option<String>)| {
            self.ask(now, view, Asker::Operator(number), id, to.as_deref())
        };
        due.into_iter().flat_map(ask).collect()
    }
}
