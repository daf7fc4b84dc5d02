//! Whether this node could serve a client that reaches it through a VIP.
//!
//! The verdict decides who should hold the VIP, so it is drawn from what a client would meet on this node: the
//! nftables table, the load balancer's real listener and a healthy backend. When several backends are configured,
//! one of them must answer from another node: a controller that is cut off from the rest still reaches its own API
//! server, and would otherwise believe itself sound.

use std::net::IpAddr;

/// What was observed in one round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// Why the nftables table does not lead traffic to the load balancer.
    pub(crate) table: Option<String>,
    /// Why the load balancer does not answer on its own listener.
    pub(crate) heartbeat: Option<String>,
    /// The backends of the deciding service, and whether each is healthy.
    pub(crate) backends: Vec<(IpAddr, bool)>,
    /// Addresses of this node, VIPs excluded.
    pub(crate) own_addresses: Vec<IpAddr>,
}

/// `Err` carries the reason for the operator.
pub(crate) fn judge(evidence: &Evidence) -> Result<(), String> {
    if let Some(why) = &evidence.table {
        return Err(format!("nftables: {why}"));
    }
    if let Some(why) = &evidence.heartbeat {
        return Err(format!("load balancer: {why}"));
    }
    let is_own = |ip: &IpAddr| ip.is_loopback() || evidence.own_addresses.contains(ip);
    let healthy = |(_, healthy): &&(IpAddr, bool)| *healthy;
    let outside = || evidence.backends.iter().filter(|(ip, _)| !is_own(ip));
    if evidence.backends.is_empty() {
        return Err("no backend is known".to_owned());
    }
    if !evidence.backends.iter().any(|(_, healthy)| *healthy) {
        return Err("no healthy backend".to_owned());
    }
    if evidence.backends.len() > 1 && outside().next().is_some() && !outside().any(|backend| healthy(&backend)) {
        return Err("only this node's own backend answers: this node may be cut off".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(backends: &[(&str, bool)]) -> Evidence {
        Evidence {
            backends: backends.iter().map(|(ip, healthy)| (ip.parse().unwrap(), *healthy)).collect(),
            own_addresses: vec!["10.0.0.11".parse().unwrap()],
            ..Evidence::default()
        }
    }

    #[test]
    fn another_node_s_backend_is_enough() {
        assert_eq!(judge(&evidence(&[("10.0.0.11", false), ("10.0.0.12", true)])), Ok(()));
    }

    #[test]
    fn a_lonely_own_backend_serves_but_not_when_others_should_answer() {
        assert_eq!(judge(&evidence(&[("10.0.0.11", true)])), Ok(()));
        assert!(judge(&evidence(&[("10.0.0.11", true), ("10.0.0.12", false)])).unwrap_err().contains("cut off"));
        assert!(judge(&evidence(&[("127.0.0.1", true), ("10.0.0.12", false)])).unwrap_err().contains("cut off"));
    }

    #[test]
    fn several_backends_of_one_node_are_its_own_affair() {
        assert_eq!(judge(&evidence(&[("10.0.0.11", true), ("127.0.0.1", false)])), Ok(()));
    }

    #[test]
    fn each_missing_piece_is_named() {
        assert_eq!(judge(&evidence(&[("10.0.0.12", false)])), Err("no healthy backend".to_owned()));
        assert_eq!(judge(&evidence(&[])), Err("no backend is known".to_owned()));
        let sound = evidence(&[("10.0.0.12", true)]);
        let table = Evidence { table: Some("gone".into()), ..sound.clone() };
        assert_eq!(judge(&table), Err("nftables: gone".to_owned()));
        let heartbeat = Evidence { heartbeat: Some("worker 1 is silent".into()), ..sound };
        assert_eq!(judge(&heartbeat), Err("load balancer: worker 1 is silent".to_owned()));
    }
}
