//! Gathers the evidence for the serving verdict from the parts of the daemon.

use std::sync::Arc;
use std::time::Duration;

use lb_proxy::{HeartbeatError, LoadBalancer};
use netlink_vip::KeeperHandle;

use crate::daemon::ipvs::ReconcilerHandle;

use super::evidence::{BackendCounts, Evidence};
use super::fitness::{self, Fitness};

/// The time that the load balancer may take to answer a heartbeat.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// The time after which a keeper that does not answer is unresponsive: its leases expire.
const KEEPER_TIMEOUT: Duration = Duration::from_millis(1500);

/// The evidence of one round, and the fitness observed with it.
#[derive(Debug)]
pub(crate) struct Observation {
    /// The generation of its [`Sources`].
    pub(crate) generation: u64,
    pub(crate) evidence: Evidence,
    /// The fitness of this node for each instance.
    pub(crate) fitness: Vec<Fitness>,
}

/// The parts that evidence is gathered from.
#[derive(Clone)]
pub(crate) struct Sources {
    /// The generation of the configuration in use.
    pub(crate) generation: u64,
    pub(crate) keeper: Option<KeeperHandle>,
    pub(crate) balancer: Option<Arc<LoadBalancer>>,
    /// `None` unless IPVS balances.
    pub(crate) ipvs: Option<ReconcilerHandle>,
    /// The deciding service.
    pub(crate) service: Option<String>,
}

impl Sources {
    /// Gathers the evidence, with the fault of the nftables table.
    pub(crate) async fn gather(self, table_fault: Option<String>) -> Observation {
        let unresponsive = self.keeper.as_ref().map(KeeperHandle::unresponsive_for).unwrap_or_default();
        let keeper_fault = (unresponsive > KEEPER_TIMEOUT)
            .then(|| format!("their keeper has not answered for {:.1} s", unresponsive.as_secs_f64()));
        let ipvs_fault = self.ipvs.as_ref().and_then(|reconciler| reconciler.observed().unavailable);
        let mut evidence = Evidence { keeper_fault, table_fault, ipvs_fault, ..Evidence::default() };
        if let Some(balancer) = &self.balancer {
            evidence.heartbeat_fault = fault(balancer.heartbeat(HEARTBEAT_TIMEOUT).await);
            evidence.backends = self.backends(balancer);
        }
        let keeper = self.keeper.as_ref().map(KeeperHandle::status);
        let groups = keeper.iter().flat_map(|status| &status.groups);
        let fitness = groups.map(fitness::check).collect();
        Observation { generation: self.generation, evidence, fitness }
    }

    fn backends(&self, balancer: &LoadBalancer) -> Option<BackendCounts> {
        let service = self.service.as_deref()?;
        let all = balancer.serving_evidence();
        let found = all.iter().find(|evidence| &*evidence.service == service)?;
        Some(BackendCounts {
            known: found.backends,
            unchecked: found.unchecked,
            healthy: found.healthy,
            remote: found.remote,
            healthy_remote: found.healthy_remote,
        })
    }
}

/// The fault that a heartbeat shows. One that failed for lack of a descriptor or a port is inconclusive.
fn fault(heartbeat: Result<(), HeartbeatError>) -> Option<String> {
    heartbeat.err().filter(|error| !error.is_inconclusive()).map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use lb_proxy::Shortage;

    use super::*;

    #[test]
    fn an_inconclusive_heartbeat_is_no_fault() {
        let addr = ([127, 0, 0, 1], 6444).into();
        assert_eq!(fault(Ok(())), None);
        for shortage in Shortage::ALL {
            assert_eq!(fault(Err(HeartbeatError::Inconclusive { addr, shortage })), None);
        }
        let silent = HeartbeatError::ListenerSilent { addr, timeout: HEARTBEAT_TIMEOUT };
        assert!(fault(Err(silent)).unwrap().contains("did not answer"));
    }
}
