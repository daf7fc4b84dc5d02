//! Virtual servers in `cplb status`.

use std::net::SocketAddr;

use lb_proxy::BackendState;

use super::plan::{DirectedPort, Member, Standing};
use super::prober::{ProbeResult, ProbeResults};
use super::reconciler::Observed;
use crate::status::schema;

/// The state of a virtual address on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The address is not on this node.
    Elsewhere,
    /// The address is on this node, and the proxy gets its packets.
    Held,
    /// The address is on this node, and IPVS gets its packets.
    Directed,
}

impl DirectedPort {
    /// The virtual server in `cplb status`.
    pub(super) fn status(
        &self,
        observed: &Observed,
        members: &[Member],
        results: &ProbeResults,
        place: Place,
    ) -> schema::VirtualServer {
        let found = observed.services.get(&self.key());
        let servers = found.iter().flat_map(|(_, servers)| servers).map(|server| schema::RealServer {
            address: SocketAddr::new(server.destination.key.address, server.destination.key.port).to_string(),
            weight: server.destination.weight.0,
            connections_active: server.active_connections,
            connections_inactive: server.inactive_connections,
            connections_total: server.stats().connections,
            bytes_in: server.stats().incoming_bytes,
        });
        schema::VirtualServer {
            ip_address: self.vip.to_string(),
            port: self.port.get(),
            service: self.service.clone(),
            mark: self.mark.get(),
            lb_algo: self.algorithm.to_string(),
            lb_kind: self.kind.to_string(),
            persistence_timeout_seconds: self.persistence.map_or(0, |time| time.0),
            held: place != Place::Elsewhere,
            directing: found.is_some() && place == Place::Directed,
            connections_total: found.map_or(0, |(service, _)| service.stats().connections),
            servers: servers.collect(),
            excluded: self.excluded(members, results).collect(),
        }
    }

    /// Servers without a share of the connections, with the reasons.
    pub(super) fn excluded(
        &self,
        members: &[Member],
        results: &ProbeResults,
    ) -> impl Iterator<Item = schema::ExcludedServer> {
        let result = |member| self.probe_target(member).and_then(|target| results.get(&target));
        members.iter().filter_map(move |member| {
            let reason = match (self.standing(member, results), result(member)) {
                _ if member.addr.ip().is_loopback() => return None,
                _ if !self.can_forward_to(member) => "is not of the virtual IP's address family".to_owned(),
                _ if member.state == BackendState::Terminating => "shuts down".to_owned(),
                (Standing::Good, _) => return None,
                (Standing::Down, Some(also @ (ProbeResult::NotOnLink | ProbeResult::Refuses))) => {
                    format!("fails its health checks, and {also}")
                }
                (Standing::Down, _) => "fails its health checks".to_owned(),
                (Standing::Unknown, _) => "has not been probed yet".to_owned(),
                (_, result) => result?.to_string(),
            };
            Some(schema::ExcludedServer { address: member.addr.to_string(), reason })
        })
    }
}
