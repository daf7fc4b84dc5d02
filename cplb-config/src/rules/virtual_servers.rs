//! Rules about the virtual IPs that IPVS balances.

use std::net::IpAddr;
use std::time::Duration;

use crate::duration;
use crate::model::{Port, VirtualServer};
use crate::read::{Given, SHORTEST_INTERVAL, Section, ServiceDraft};
use crate::walk::{Finding, Reporter};

use super::common::is_vip;
use super::context::ClusterContext;

/// Checks the virtual servers against the rest of the configuration.
pub(super) fn check(section: &Section, cluster: &ClusterContext, vips: &[IpAddr], out: &Reporter<'_>) {
    let Some(first) = section.virtual_server_addresses.first() else {
        if let Some(sync) = section.ipvs_sync.as_ref().filter(|sync| sync.value) {
            let help = "remove `ipvsSync`, or add `virtualServers`";
            let finding = Finding::new("unused", "ipvsSync has no effect without virtualServers", help);
            out.warn(&sync.path, sync.at, finding);
        }
        return;
    };
    if let Some(external) = &cluster.external_address {
        let message = "externalAddress and virtualServers cannot be used together: k0s finds the API servers for IPVS \
                       through endpoints that externalAddress replaces";
        let help = format!(
            "remove externalAddress, or remove virtualServers (line {}) to use the userspace proxy",
            first.at.line
        );
        out.error(&external.path, external.at, Finding::new("external-address-ipvs", message, help));
    }
    if section.disable_load_balancer {
        let help = "remove `disableLoadBalancer`, or remove `virtualServers`";
        let finding = Finding::new("unused", "virtualServers have no effect with disableLoadBalancer", help);
        out.warn(&first.path, first.at, finding);
    }
    for server in &section.virtual_server_addresses {
        if !is_vip(vips, server.value) {
            let message = format!("{} is no virtual IP of this configuration", server.value);
            let help = match vips.first() {
                Some(vip) => {
                    format!("write one of the virtualIPs without its prefix length, such as `{vip}`")
                }
                None => {
                    "add a vrrpInstance with this address, or bring it to the node by other means".to_owned()
                }
            };
            out.warn(&server.path, server.at, Finding::new("virtual-server-vip", message, help));
        }
    }
    check_sync(section, vips, out);
}

/// The kernel's sync daemons support multicast only, and translated connections end with the node that translates them.
fn check_sync(section: &Section, vips: &[IpAddr], out: &Reporter<'_>) {
    let Some(sync) = section.ipvs_sync.as_ref().filter(|sync| sync.value && !section.disable_load_balancer)
    else {
        return;
    };
    // The intended values of wrong ones are not known.
    let all_read = section.virtual_servers.len() == section.virtual_server_addresses.len();
    let outlives = |server: &VirtualServer| server.kind.keeps_destination() && is_vip(vips, server.address);
    if all_read && !section.virtual_servers.iter().any(outlives) {
        let message = "ipvsSync has no effect: no virtual server is of lbKind DR or TUN and the virtual IP of a vrrpInstance";
        let help = "remove `ipvsSync`, or write `lbKind: DR` or `lbKind: TUN` for a virtual IP";
        out.warn(&sync.path, sync.at, Finding::new("unused", message, help));
        return;
    }
    if let Some(peers) = section.instances.iter().find_map(|draft| draft.unicast_at.as_ref()) {
        let message = format!(
            "ipvsSync uses multicast only (UDP 8848 to 224.0.0.81), whatever the unicastPeers on line {}",
            peers.at.line
        );
        let help = "fine where multicast passes between the nodes; else remove `ipvsSync`, since no connection would \
                    outlive a failover";
        out.warn(&sync.path, sync.at, Finding::new("sync-multicast", message, help));
    }
}

/// Direct routing and tunnels do not rewrite packets, so servers listen on the port of the virtual IP.
pub(super) fn check_ports(section: &Section, drafts: &[ServiceDraft], out: &Reporter<'_>) {
    let Some(server) = section.virtual_servers.iter().find(|server| server.kind.keeps_destination()) else {
        return;
    };
    if section.disable_load_balancer {
        return;
    }
    let report = |path: &str, at, port: Port, wanted: Port| {
        let message = format!(
            "lbKind {} cannot change the port: connections to {} on port {wanted} arrive on port {wanted} of a server, not \
             on {port}",
            server.kind, server.address
        );
        let help = "write `lbKind: NAT`, or let the servers listen on the port of the service";
        out.error(path, at, Finding::new("virtual-server-port", message, help));
    };
    for draft in drafts {
        let Some(port) = &draft.port else { continue };
        if let Given::Value(own) = &draft.backend_port
            && own.value != port.value
        {
            report(&own.path, own.at, own.value, port.value);
        }
        let listed = &draft.backends.as_ref().unwrap_or(&section.backends).fixed;
        for backend in listed {
            if let Some(own) = backend.value.port.filter(|own| *own != port.value) {
                report(&backend.path, backend.at, own, port.value);
            }
        }
    }
}

/// A loopback address is another server on each node.
pub(super) fn check_loopback(section: &Section, drafts: &[ServiceDraft], out: &Reporter<'_>) {
    if section.disable_load_balancer {
        return;
    }
    let shared = drafts.iter().any(|draft| draft.backends.is_none()).then_some(&section.backends);
    let lists = shared.into_iter().chain(drafts.iter().filter_map(|draft| draft.backends.as_ref()));
    for backend in lists.flat_map(|list| &list.fixed) {
        let mut servers = section.virtual_server_addresses.iter();
        let Some(server) = servers.find(|server| backend.value.host.is_loopback_for(server.value)) else {
            continue;
        };
        let message = format!(
            "{} is the local node, on every node: a node that directs connections to {} would direct them to itself",
            backend.value.host, server.value
        );
        let help = "list the controllers' own addresses";
        out.error(&backend.path, backend.at, Finding::new("virtual-server-loopback", message, help));
    }
}

/// The longest interval between health checks that all virtual servers agree with. It is an upper bound, so that k0s's
/// default of 1m makes no check slower than its own interval.
pub(super) fn longest_interval(section: &Section) -> Option<Duration> {
    soonest(section).map(|server| server.delay_loop.max(SHORTEST_INTERVAL))
}

/// Intervals that the file gives and `delayLoop` shortens.
pub(super) fn check_intervals(section: &Section, drafts: &[ServiceDraft], out: &Reporter<'_>) {
    let (Some(server), Some(longest)) = (soonest(section), longest_interval(section)) else { return };
    let given = drafts.iter().filter_map(|draft| draft.health.interval_given(&section.health));
    let mut reported = Vec::new();
    for interval in given.filter(|interval| interval.value > longest) {
        // Services that share it are reported once.
        if reported.contains(&&interval.path) {
            continue;
        }
        reported.push(&interval.path);
        let (longest, written) = (duration::format(longest), duration::format(interval.value));
        let message = format!(
            "checks run every {longest}, not every {written}: the delayLoop of {} allows no longer interval",
            server.address
        );
        let help = format!("write `interval: {longest}` or less, or a longer delayLoop");
        out.warn(&interval.path, interval.at, Finding::new("check-interval", message, help));
    }
}

/// The virtual server with the shortest interval between checks.
fn soonest(section: &Section) -> Option<&VirtualServer> {
    let servers = section.virtual_servers.iter().filter(|_| !section.disable_load_balancer);
    servers.min_by_key(|server| server.delay_loop)
}
