//! Gathers the evidence for the serving verdict from the parts of the daemon.

use std::sync::Arc;
use std::time::Duration;

use lb_proxy::{HeartbeatError, LoadBalancer};
use netlink_vip::KeeperHandle;

use crate::daemon::ipvs::ReconcilerHandle;

use super::evidence::{Backends, Evidence};
use super::fitness::{self, Fitness};

/// The load balancer's answer to a heartbeat may take this long.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// A keeper that owes an answer for longer is stuck: the kernel ends its leases.
const KEEPER_PATIENCE: Duration = Duration::from_millis(1500);

/// The evidence of one moment, and what else was observed with it.
#[derive(Debug)]
pub(crate) struct Observation {
    /// As in [`Sources`].
    pub(crate) generation: u64,
    pub(crate) evidence: Evidence,
    /// Whether this node can hold the addresses of each instance.
    pub(crate) fitness: Vec<Fitness>,
}

/// The parts that are asked.
#[derive(Clone)]
pub(crate) struct Sources {
    /// Of the configuration whose parts these are.
    pub(crate) generation: u64,
    pub(crate) keeper: Option<KeeperHandle>,
    pub(crate) balancer: Option<Arc<LoadBalancer>>,
    /// Where IPVS balances.
    pub(crate) ipvs: Option<ReconcilerHandle>,
    /// The service whose backends decide.
    pub(crate) service: Option<String>,
}

impl Sources {
    /// Gathers the evidence beside `table`, the fault of the nftables table.
    pub(crate) async fn gather(self, table: Option<String>) -> Observation {
        let unresponsive = self.keeper.as_ref().map(KeeperHandle::unresponsive_for).unwrap_or_default();
        let keeper = (unresponsive > KEEPER_PATIENCE)
            .then(|| format!("their keeper has not answered for {:.1} s", unresponsive.as_secs_f64()));
        let ipvs = self.ipvs.as_ref().and_then(|reconciler| reconciler.observed().unavailable);
        let mut evidence = Evidence { keeper, table, ipvs, ..Evidence::default() };
        if let Some(balancer) = &self.balancer {
            evidence.heartbeat = fault(balancer.heartbeat(HEARTBEAT_TIMEOUT).await);
            evidence.backends = self.backends(balancer);
        }
        let keeper = self.keeper.as_ref().map(KeeperHandle::status);
        let groups = keeper.iter().flat_map(|status| &status.groups);
        let fitness = groups.map(fitness::look).collect();
        Observation { generation: self.generation, evidence, fitness }
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

/// The fault of this node by a heartbeat. One that could not be made for want of a descriptor or a port says nothing.
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
