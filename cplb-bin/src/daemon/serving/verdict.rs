//! The serving verdict as a state machine without I/O: evidence comes in by [`Verdict::handle`], a lease comes out.
//!
//! The election believes a good verdict only until its lease ends. If gathering evidence hangs, no lease follows, and
//! this node advertises the degraded priority.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use vrrp::runner::InstanceId;

use crate::status::schema::Serving;

use super::evidence::{self, Evidence};
use super::fitness::Fitness;

/// The shortest lease: a node whose processors are briefly busy still serves, and a heartbeat may take as long.
const MIN_SERVING_LEASE: Duration = Duration::from_secs(1);

/// The reason of a node that could serve.
const STANDBY: &str = "it is in standby";

/// An input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Evidence is due: after the interval, or after a change that may change the verdict.
    Due,
    /// Another configuration is in use, so that evidence under the former one does not count.
    Configured,
    /// This node is in standby, and another one can serve; from the next evidence on.
    Standby(bool),
    /// The evidence of the configuration with this generation. The next one follows after about `interval`.
    Observed { generation: u64, evidence: &'a Evidence, fitness: &'a [Fitness], interval: Duration },
}

/// The work that follows from an input.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// Evidence is to be gathered under this generation.
    pub(crate) gather: Option<u64>,
    /// The new verdict, where it differs from the one before.
    pub(crate) changed: Option<Result<(), String>>,
    /// The lease that the election gets now.
    pub(crate) lease: Option<Lease>,
}

/// The permission to hold virtual IPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lease {
    /// This node may hold all instances except these.
    Until(Instant, BTreeSet<InstanceId>),
    /// It should hold none.
    Withheld,
}

/// The current verdict.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The number of configurations that were put into effect.
    generation: u64,
    stands_by: bool,
    /// `None` before the first evidence.
    verdict: Option<Result<(), String>>,
    since: Instant,
    /// The start of the gathering in progress.
    gathering_since: Option<Instant>,
    /// The end of the lease of a good verdict.
    lease_until: Instant,
    /// The instances that this node should not hold although it serves, with the reasons.
    unfit: BTreeMap<InstanceId, Vec<String>>,
}

impl Verdict {
    /// A verdict before any evidence.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            generation: 0,
            stands_by: false,
            verdict: None,
            since: now,
            gathering_since: None,
            lease_until: now,
            unfit: BTreeMap::new(),
        }
    }

    /// Takes an input, and returns the work that follows.
    pub(crate) fn handle(&mut self, input: Input<'_>, now: Instant) -> Output {
        match input {
            // One round at a time, so that a round that hangs lets the lease expire.
            Input::Due if self.gathering_since.is_some() => Output::default(),
            Input::Due => self.gather(now),
            Input::Configured => {
                self.generation += 1;
                Output::default()
            }
            Input::Standby(stands_by) => {
                self.stands_by = stands_by;
                Output::default()
            }
            Input::Observed { generation, .. } if generation != self.generation => self.gather(now),
            Input::Observed { evidence, fitness, interval, .. } => {
                self.gathering_since = None;
                let verdict =
                    if self.stands_by { Err(STANDBY.to_owned()) } else { evidence::assess(evidence) };
                let changed = self.conclude(verdict, now);
                self.lease_until = now + MIN_SERVING_LEASE.max(2 * interval);
                let unfit = fitness.iter().filter(|found| !found.faults.is_empty());
                self.unfit = unfit.map(|found| (found.id, found.faults.clone())).collect();
                let lease = if self.is_serving() {
                    Lease::Until(self.lease_until, self.unfit.keys().copied().collect())
                } else {
                    Lease::Withheld
                };
                Output { changed, lease: Some(lease), ..Output::default() }
            }
        }
    }

    fn gather(&mut self, now: Instant) -> Output {
        self.gathering_since = Some(now);
        Output { gather: Some(self.generation), ..Output::default() }
    }

    /// Takes another verdict; returns it if it differs from the one before.
    fn conclude(&mut self, verdict: Result<(), String>, now: Instant) -> Option<Result<(), String>> {
        if self.verdict.as_ref().is_none_or(|before| before.is_ok() != verdict.is_ok()) {
            self.since = now;
        }
        let changed = (self.verdict.as_ref() != Some(&verdict)).then(|| verdict.clone());
        self.verdict = Some(verdict);
        changed
    }

    /// The reasons why this node should not hold an instance although it serves.
    pub(crate) fn faults(&self, id: InstanceId) -> Vec<String> {
        self.unfit.get(&id).cloned().unwrap_or_default()
    }

    /// Returns whether evidence of this generation was gathered under the configuration in use.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        generation == self.generation
    }

    fn is_serving(&self) -> bool {
        matches!(self.verdict, Some(Ok(())))
    }

    /// The verdict as the election sees it.
    pub(crate) fn status(&self, now: Instant) -> Serving {
        let expired = self.is_serving() && now > self.lease_until;
        let since = if expired { self.lease_until } else { self.since };
        Serving {
            serving: self.is_serving() && !expired,
            since_seconds: now.saturating_duration_since(since).as_secs_f64(),
            reason: match &self.verdict {
                None => Some("not yet checked".to_owned()),
                Some(Err(why)) => Some(why.clone()),
                Some(Ok(())) if expired => {
                    let hanging =
                        self.gathering_since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
                    Some(format!("its checks have not ended for {:.1} s", hanging.as_secs_f64()))
                }
                Some(Ok(())) => None,
            },
        }
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
