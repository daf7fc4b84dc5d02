//! The evidence for the serving verdict: the state of every part that a client's connection to a VIP needs on this node.
//!
//! These are the keeper of the address, the nftables table, the load balancer's real listener and a healthy backend. Where
//! several backends are configured, one of them must answer from another node: a controller that is cut off from the rest
//! still reaches its own API server.

/// The state of the parts at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// The reason why virtual IPs cannot be held on this node.
    pub(super) keeper_fault: Option<String>,
    /// The reason why the nftables table does not redirect traffic to the load balancer.
    pub(super) table_fault: Option<String>,
    /// The reason why IPVS does not balance.
    pub(super) ipvs_fault: Option<String>,
    /// The reason why the load balancer does not answer on its own listener.
    pub(super) heartbeat_fault: Option<String>,
    /// The backends of the deciding service; `None` without a load balancer.
    pub(super) backends: Option<BackendCounts>,
}

/// Counts of backends, as the load balancer's health checks see them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BackendCounts {
    pub(super) known: usize,
    /// Those without a recent check.
    pub(super) unchecked: usize,
    pub(super) healthy: usize,
    /// Those on other nodes.
    pub(super) remote: usize,
    pub(super) healthy_remote: usize,
}

/// The verdict by this evidence; `Err` carries the reason for the operator.
pub(super) fn assess(evidence: &Evidence) -> Result<(), String> {
    if let Some(why) = &evidence.keeper_fault {
        return Err(format!("virtual IPs: {why}"));
    }
    if let Some(why) = &evidence.table_fault {
        return Err(format!("nftables: {why}"));
    }
    if let Some(why) = &evidence.ipvs_fault {
        return Err(format!("ipvs: {why}"));
    }
    if let Some(why) = &evidence.heartbeat_fault {
        return Err(format!("load balancer: {why}"));
    }
    let Some(backends) = evidence.backends else { return Ok(()) };
    if backends.known == 0 {
        return Err("no backend is known that is not drained".to_owned());
    }
    if backends.healthy == 0 && backends.unchecked > 0 {
        return Err(format!("waiting for the health checks of {} backends", backends.unchecked));
    }
    if backends.healthy == 0 {
        return Err("no healthy backend".to_owned());
    }
    if backends.remote > 0 && backends.healthy_remote == 0 {
        return Err("only this node's own backend answers: this node may be cut off".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Healthy and known backends, on this node and elsewhere.
    fn evidence(own: (usize, usize), remote: (usize, usize)) -> Evidence {
        let backends = BackendCounts {
            known: own.1 + remote.1,
            unchecked: 0,
            healthy: own.0 + remote.0,
            remote: remote.1,
            healthy_remote: remote.0,
        };
        Evidence { backends: Some(backends), ..Evidence::default() }
    }

    #[test]
    fn a_healthy_backend_on_another_node_suffices() {
        assert_eq!(assess(&evidence((0, 1), (1, 2))), Ok(()));
    }

    #[test]
    fn an_own_backend_suffices_only_where_no_other_is_configured() {
        assert_eq!(assess(&evidence((1, 1), (0, 0))), Ok(()));
        assert!(assess(&evidence((1, 1), (0, 2))).unwrap_err().contains("cut off"));
    }

    #[test]
    fn a_node_without_a_load_balancer_serves() {
        assert_eq!(assess(&Evidence::default()), Ok(()));
    }

    #[test]
    fn unchecked_backends_are_waited_for() {
        let mut waiting = evidence((0, 1), (0, 2));
        waiting.backends.as_mut().unwrap().unchecked = 2;
        assert_eq!(assess(&waiting), Err("waiting for the health checks of 2 backends".to_owned()));
        waiting.backends.as_mut().unwrap().healthy = 1;
        waiting.backends.as_mut().unwrap().healthy_remote = 1;
        assert_eq!(assess(&waiting), Ok(()));
    }

    #[test]
    fn the_reason_names_the_part_at_fault() {
        assert_eq!(assess(&evidence((0, 1), (0, 2))), Err("no healthy backend".to_owned()));
        assert_eq!(
            assess(&evidence((0, 0), (0, 0))),
            Err("no backend is known that is not drained".to_owned())
        );
        let table = Evidence { table_fault: Some("gone".into()), ..evidence((0, 0), (1, 1)) };
        assert_eq!(assess(&table), Err("nftables: gone".to_owned()));
        let keeper = Evidence { keeper_fault: Some("silent".into()), ..evidence((0, 0), (1, 1)) };
        assert_eq!(assess(&keeper), Err("virtual IPs: silent".to_owned()));
        let ipvs = Evidence { ipvs_fault: Some("no module".into()), ..evidence((0, 0), (1, 1)) };
        assert_eq!(assess(&ipvs), Err("ipvs: no module".to_owned()));
        let heartbeat =
            Evidence { heartbeat_fault: Some("worker 1 is silent".into()), ..evidence((0, 0), (1, 1)) };
        assert_eq!(assess(&heartbeat), Err("load balancer: worker 1 is silent".to_owned()));
    }
}
