//! The paths of packets between clients, directors and servers: their arrival interfaces and link-layer sources, and the
//! settings by which this node accepts packets from directors on other nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cplb_config::LbKind;
use netlink_vip::{RealServerConfig, TunnelConfig};

use super::controller::{Controller, arrival_interfaces};
use super::plan::{DirectedPort, servers};

impl Controller {
    /// The interfaces by which packets of clients and other directors arrive.
    pub(super) fn interfaces(&self, directed: &DirectedPort) -> BTreeSet<String> {
        let Some(id) = directed.instance else {
            return match directed.kind {
                LbKind::Nat => BTreeSet::new(),
                // The server on this node serves until IPVS does.
                _ if !self.has_servers(directed) => BTreeSet::new(),
                _ => self.report.local.get(&directed.vip).cloned().unwrap_or_default(),
            };
        };
        let Some(name) = self.interface(id) else { return BTreeSet::new() };
        let mut all = arrival_interfaces(directed, name);
        all.extend(self.egress_interfaces(directed));
        all
    }

    /// The interfaces by which directors on other nodes send packets as they are.
    fn egress_interfaces(&self, directed: &DirectedPort) -> BTreeSet<String> {
        if directed.kind != LbKind::DirectRouting {
            return BTreeSet::new();
        }
        let servers = servers(&self.members, directed).iter();
        servers.filter_map(|server| self.report.egress_interfaces.get(&server.addr.ip()).cloned()).collect()
    }

    /// The link-layer addresses of other nodes, from which directed packets come.
    pub(super) fn peers(&self, directed: &DirectedPort) -> BTreeSet<[u8; 6]> {
        let servers = servers(&self.members, directed).iter();
        servers.filter_map(|server| self.report.macs.get(&server.addr.ip()).copied()).collect()
    }

    /// The settings by which this node accepts packets from directors; none for addresses that other software moves.
    pub(super) fn real_server(&self) -> Option<RealServerConfig> {
        // ARP for an address can be suppressed only where its interface is known.
        let moved: Vec<(&DirectedPort, String)> = self
            .plan
            .virtual_servers
            .iter()
            .chain(self.departing())
            .filter_map(|it| Some((it, self.interface(it.instance?)?)))
            .collect();
        let vips: BTreeSet<IpAddr> = moved.iter().map(|(it, _)| it.vip).collect();
        let egress = |(it, name): &(&DirectedPort, String)| {
            self.egress_interfaces(it).into_iter().filter(|egress| egress != name).collect::<Vec<_>>()
        };
        let egress: BTreeSet<String> = moved.iter().flat_map(egress).collect();
        let interfaces: BTreeSet<String> =
            moved.iter().map(|(_, name)| name).chain(&egress).cloned().collect();
        // Directors send to the address that the configuration lists. There is one tunnel link for each family.
        let tunnelled = moved.iter().filter(|(it, _)| it.kind == LbKind::Tunnel);
        let servers = tunnelled.flat_map(|(it, _)| {
            let servers = servers(&self.members, it).iter();
            servers.filter(|server| it.can_forward_to(server)).map(|server| server.addr.ip())
        });
        let own: BTreeSet<IpAddr> = servers.filter(|ip| self.report.local.contains_key(ip)).collect();
        let first = |v4: bool| own.iter().find(|ip| ip.is_ipv4() == v4).copied();
        let mut config = RealServerConfig::new(vips.into_iter().collect());
        config.interfaces = interfaces.into_iter().collect();
        config.loose = egress.into_iter().collect();
        config.tunnels = [first(true), first(false)].into_iter().flatten().map(TunnelConfig::new).collect();
        (!config.vips.is_empty()).then_some(config)
    }
}
