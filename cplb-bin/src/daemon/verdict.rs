//! Draws the serving verdict again and again, and tells the election.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_proxy::{HeartbeatError, LoadBalancer};
use netlink_vip::KeeperHandle;
use tokio::sync::mpsc::UnboundedSender;
use vrrp::runner::InstanceId;

use crate::status::schema::Serving;

use super::fitness::{self, Fitness};
use super::ipvs::DirectorHandle;
use super::link::Event;
use super::serving::{self, Backends, Evidence};
use super::table::{Look, TableKeeper};

/// The load balancer's answer to a heartbeat may take this long.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// A keeper that owes an answer for longer is stuck: the kernel ends its leases.
const KEEPER_PATIENCE: Duration = Duration::from_millis(1500);

/// The current verdict.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// `None` until the first round is over.
    judged: Option<Result<(), String>>,
    since: Instant,
    /// When the round that is under way began.
    round: Option<Instant>,
    /// How long the election believes a good verdict.
    believed: Instant,
    /// The instances that this node should not hold although it serves, and why.
    unfit: BTreeMap<InstanceId, Vec<String>>,
}

impl Default for Verdict {
    fn default() -> Self {
        let (now, unfit) = (Instant::now(), BTreeMap::new());
        Self { judged: None, since: now, round: None, believed: now, unfit }
    }
}

/// What a round found.
#[derive(Debug)]
pub(crate) struct Finding {
    /// As in [`Round`].
    pub(crate) generation: u64,
    pub(crate) evidence: Evidence,
    /// What became of the nftables table, if there is one.
    pub(crate) look: Option<Look>,
    /// Whether this node can hold the addresses of each instance.
    pub(crate) fitness: Vec<Fitness>,
}

/// What a round looks at.
#[derive(Clone)]
pub(crate) struct Round {
    /// Of the configuration whose parts are looked at.
    pub(crate) generation: u64,
    pub(crate) keeper: Option<KeeperHandle>,
    pub(crate) balancer: Option<Arc<LoadBalancer>>,
    pub(crate) table: Arc<TableKeeper>,
    /// Where IPVS balances.
    pub(crate) ipvs: Option<DirectorHandle>,
    /// The service whose backends decide.
    pub(crate) service: Option<String>,
}

impl Verdict {
    /// Starts a round unless one is under way: a round that hangs must let the serving lease run out.
    pub(crate) fn start_round(&mut self, round: Round, events: &UnboundedSender<Event>) {
        if self.round.is_some() {
            return;
        }
        self.round = Some(Instant::now());
        let events = events.clone();
        tokio::spawn(async move {
            let finding = round.look().await;
            let _ = events.send(Event::Finding(finding));
        });
    }

    /// A round is over that says nothing: what it looked at was replaced meanwhile.
    pub(crate) fn discard(&mut self) {
        self.round = None;
    }

    /// Takes the result of a round, which the election believes for as long as `lease`; the new verdict if it differs
    /// from the one before.
    pub(crate) fn conclude(&mut self, evidence: &Evidence, lease: Duration) -> Option<Result<(), String>> {
        self.round = None;
        self.believed = Instant::now() + lease;
        let judged = serving::judge(evidence);
        let changed = self.judged.as_ref().is_none_or(|before| before.is_ok() != judged.is_ok());
        if changed {
            self.since = Instant::now();
        }
        let news = (self.judged.as_ref() != Some(&judged)).then(|| judged.clone());
        self.judged = Some(judged);
        news
    }

    /// Takes over which instances this node should not hold.
    pub(crate) fn set_fitness(&mut self, fitness: &[Fitness]) {
        let unfit = fitness.iter().filter(|found| !found.faults.is_empty());
        self.unfit = unfit.map(|found| (found.id, found.faults.clone())).collect();
    }

    /// The instances that this node should not hold although it serves.
    pub(crate) fn unfit(&self) -> BTreeSet<InstanceId> {
        self.unfit.keys().copied().collect()
    }

    /// Why this node should not hold an instance although it serves.
    pub(crate) fn faults(&self, id: InstanceId) -> Vec<String> {
        self.unfit.get(&id).cloned().unwrap_or_default()
    }

    /// Until when the election may believe a good verdict.
    pub(crate) fn believed(&self) -> Option<Instant> {
        self.is_serving().then_some(self.believed)
    }

    fn is_serving(&self) -> bool {
        matches!(self.judged, Some(Ok(())))
    }

    /// The verdict as the election sees it.
    pub(crate) fn status(&self) -> Serving {
        let now = Instant::now();
        let expired = self.is_serving() && now > self.believed;
        Serving {
            serving: self.is_serving() && !expired,
            since_seconds: now
                .saturating_duration_since(if expired { self.believed } else { self.since })
                .as_secs_f64(),
            reason: match &self.judged {
                None => Some("not yet checked".to_owned()),
                Some(Err(why)) => Some(why.clone()),
                Some(Ok(())) if expired => {
                    let hanging = self.round.map_or(Duration::ZERO, |begun| begun.elapsed());
                    Some(format!("its checks have not ended for {:.1} s", hanging.as_secs_f64()))
                }
                Some(Ok(())) => None,
            },
        }
    }
}

impl Round {
    async fn look(self) -> Finding {
        let look = self.table.look().await;
        let table = match &look {
            Some(Look::Failed(why)) => Some(why.clone()),
            _ => None,
        };
        let unresponsive_for = self.keeper.as_ref().map(KeeperHandle::unresponsive_for).unwrap_or_default();
        let keeper = (unresponsive_for > KEEPER_PATIENCE)
            .then(|| format!("their keeper has not answered for {:.1} s", unresponsive_for.as_secs_f64()));
        let ipvs = self.ipvs.as_ref().and_then(|director| director.observed().unavailable);
        let mut evidence = Evidence { keeper, table, ipvs, ..Evidence::default() };
        if let Some(balancer) = &self.balancer {
            evidence.heartbeat = fault(balancer.heartbeat(HEARTBEAT_TIMEOUT).await);
            evidence.backends = self.backends(balancer);
        }
        let keeper = self.keeper.as_ref().map(KeeperHandle::status);
        let groups = keeper.iter().flat_map(|status| &status.groups);
        let fitness = groups.map(fitness::look).collect();
        Finding { generation: self.generation, evidence, look, fitness }
    }

    fn backends(&self, balancer: &LoadBalancer) -> Option<Backends> {
        let service = self.service.as_deref()?;
        let all = balancer.serving_evidence();
        let found = all.iter().find(|evidence| &*evidence.service == service)?;
        Some(Backends {
            known: found.backends,
            unchecked: found.unchecked,
            healthy: found.healthy,
            remote: found.remote,
            healthy_remote: found.healthy_remote,
        })
    }
}

/// What a heartbeat says against this node. One that could not be made for want of a descriptor or a port says nothing.
fn fault(heartbeat: Result<(), HeartbeatError>) -> Option<String> {
    heartbeat.err().filter(|error| !error.is_inconclusive()).map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use lb_proxy::Shortage;

    use super::*;

    #[test]
    fn a_heartbeat_that_could_not_be_made_says_nothing_against_the_node() {
        let addr = ([127, 0, 0, 1], 6444).into();
        assert_eq!(fault(Ok(())), None);
        for shortage in Shortage::ALL {
            assert_eq!(fault(Err(HeartbeatError::Inconclusive { addr, shortage })), None);
        }
        let silent = HeartbeatError::ListenerSilent { addr, timeout: HEARTBEAT_TIMEOUT };
        assert!(fault(Err(silent)).unwrap().contains("did not answer"));
    }
}
