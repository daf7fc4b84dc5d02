//! Conflicts with other programs of the cluster on the same nodes.

use std::net::IpAddr;

use crate::diagnostic::Severity;
use crate::model::Port;
use crate::read::{BackendsDraft, Placed, Section, ServiceDraft};
use crate::walk::{Finding, Reporter};

use super::common::is_vip;
use super::context::{ClusterContext, KubeProxy};

/// Names beyond this number are counted only.
const MOST_NAMES: usize = 5;

pub(super) fn check(section: &Section, cluster: &ClusterContext, vips: &[IpAddr], out: &Reporter<'_>) {
    if section.disable_load_balancer {
        return;
    }
    bound_server(section, cluster, vips, out);
    if section.virtual_server_addresses.is_empty() {
        return;
    }
    kube_proxy(section, cluster, out);
    workers(section, cluster, out);
}

/// k3s's API server listens on the loopback beside its port, where the proxy would listen by default.
pub(super) fn k3s(
    section: &Section,
    drafts: &[ServiceDraft],
    bind_ports: &[Option<Placed<Port>>],
    out: &Reporter<'_>,
) {
    const K3S_PORT: Option<Port> = Port::new(6444);
    let lists = drafts.iter().filter_map(|draft| draft.backends.as_ref()).chain([&section.backends]);
    let is_k3s = |list: &BackendsDraft| {
        list.kubeconfig.as_ref().is_some_and(|path| path.starts_with("/etc/rancher/k3s"))
    };
    if section.disable_load_balancer || !lists.into_iter().any(is_k3s) {
        return;
    }
    let Some(taken) = bind_ports.iter().flatten().find(|placed| Some(placed.value) == K3S_PORT) else {
        return;
    };
    let message = "the proxy and k3s's own API server both want port 6444 on every server of k3s";
    let help = "write `userSpaceProxyBindPort: 16443`";
    out.warn(&taken.path, taken.at, Finding::new("port-clash", message, help));
}

/// Servers are known and checked by the nodes' own addresses. Direct routing and tunnels leave the destination of
/// packets as it is besides, so a server has to listen on the virtual IPs, too.
fn bound_server(section: &Section, cluster: &ClusterContext, vips: &[IpAddr], out: &Reporter<'_>) {
    let Some(bound) = &cluster.bound_server else { return };
    let by = &bound.by;
    let balanced = |ip| section.virtual_server_addresses.iter().any(|server| server.value == ip);
    let moves = |ip: IpAddr| is_vip(vips, ip) || balanced(ip);
    if let Some(address) = bound.address.as_ref().filter(|address| moves(address.value)) {
        let message = format!(
            "{} is a virtual IP, and with `{}` every API server listens there only, not on its node's own address, where \
             it is looked for",
            address.value, by.value
        );
        let help = format!("remove `{}`", by.value);
        out.error(&address.path, address.at, Finding::new("api-bind-address", message, help));
        return;
    }
    let addressed = section.virtual_servers.iter().filter(|server| server.kind.keeps_destination());
    let vips: Vec<String> = addressed.map(|server| server.address.to_string()).collect();
    if vips.is_empty() {
        return;
    }
    let message = format!(
        "the API server listens on one address only; with lbKind DR or TUN packets arrive addressed to {}",
        vips.join(" and ")
    );
    let help = format!("remove `{}`, or write `lbKind: NAT` for {}", by.value, vips.join(" and "));
    out.error(&by.path, by.at, Finding::new("api-bind-address", message, help));
}

/// Once in a while kube-proxy deletes every service that it did not make and that is not excluded by its address. It
/// knows nothing of marks and takes a service that matches one for a service at the unspecified address (kubernetes,
/// `pkg/proxy/ipvs`: `cleanLegacyService` and `toVirtualServer`), which the kernel then does not find.
fn kube_proxy(section: &Section, cluster: &ClusterContext, out: &Reporter<'_>) {
    let KubeProxy::Ipvs(proxy) = &cluster.kube_proxy else { return };
    let excluded = proxy.excluded.as_ref().map_or(&[][..], |list| &list.value);
    let missing: Vec<&str> =
        seen_as(section).filter(|seen| !excluded.iter().any(|cidr| covers(cidr, *seen))).map(cidr).collect();
    if missing.is_empty() {
        return;
    }
    let addresses: Vec<&str> = missing.iter().filter_map(|cidr| cidr.split('/').next()).collect();
    let message = format!(
        "kube-proxy in mode ipvs keeps trying to delete the IPVS services of others; it sees cplb's, which match a mark, at {}, \
         whatever the virtual IP",
        addresses.join(" and ")
    );
    let list =
        format!("[{}]", missing.iter().map(|cidr| format!("\"{cidr}\"")).collect::<Vec<_>>().join(", "));
    let help = match &proxy.excluded {
        Some(excluded) => format!(
            "add {} to `excludeCIDRs` (line {})",
            missing.iter().map(|cidr| format!("`\"{cidr}\"`")).collect::<Vec<_>>().join(" and "),
            excluded.at.line
        ),
        None if proxy.has_ipvs => format!("add `excludeCIDRs: {list}` under `ipvs` beside the mode"),
        None => format!("add `ipvs: {{excludeCIDRs: {list}}}` beside the mode"),
    };
    out.warn(&proxy.mode.path, proxy.mode.at, Finding::new("kube-proxy-ipvs", message, help));
}

/// k0s refuses to support this, because keepalived's services are on every node and catch what local clients send.
/// Where the mode is given, there is no conflict, or [`kube_proxy`] reports it.
fn workers(section: &Section, cluster: &ClusterContext, out: &Reporter<'_>) {
    let (Some(first), KubeProxy::Unspecified) = (cluster.workers.first(), &cluster.kube_proxy) else {
        return;
    };
    let names: Vec<&str> = cluster.workers.iter().take(MOST_NAMES).map(|name| name.value.as_str()).collect();
    let more = match cluster.workers.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "workers too: {}{more}; k0s does not support virtualServers there, and with cplb pods and local clients reach the \
         virtual IPs through the userspace proxy instead",
        names.join(", ")
    );
    let excluded: Vec<&str> = seen_as(section).map(cidr).collect();
    let help = format!(
        "nothing to do in k0s's default mode of kube-proxy, and `spec.network.kubeProxy.mode: iptables` says that it is meant; \
         in mode ipvs, which shares the IPVS table and the sysctls below net.ipv4.vs, let it exclude {} \
         (`ipvs.excludeCIDRs` beside the mode)",
        excluded.join(" and ")
    );
    let finding = Finding::new("virtual-servers-worker", message, help);
    out.report(Severity::Advice, &first.path, Some(first.at), finding);
}

/// The addresses at which kube-proxy sees cplb's services.
fn seen_as(section: &Section) -> impl Iterator<Item = IpAddr> {
    let has = |v4: bool| section.virtual_server_addresses.iter().any(|server| server.value.is_ipv4() == v4);
    let v4 = has(true).then_some(IpAddr::from([0_u8; 4]));
    let v6 = has(false).then_some(IpAddr::from([0_u8; 16]));
    v4.into_iter().chain(v6)
}

fn cidr(unspecified: IpAddr) -> &'static str {
    if unspecified.is_ipv4() { "0.0.0.0/32" } else { "::/128" }
}

/// Returns whether an unspecified address is in the network.
fn covers(cidr: &str, unspecified: IpAddr) -> bool {
    let Some((ip, length)) = cidr.split_once('/') else { return false };
    let (Ok(ip), Ok(length)) = (ip.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    match (ip, unspecified) {
        (IpAddr::V4(ip), IpAddr::V4(_)) => length <= 32 && ip.to_bits().leading_zeros() >= length,
        (IpAddr::V6(ip), IpAddr::V6(_)) => length <= 128 && ip.to_bits().leading_zeros() >= length,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_covers_the_unspecified_address_of_its_family() {
        let v4 = IpAddr::from([0_u8; 4]);
        let v6 = IpAddr::from([0_u8; 16]);
        for network in ["0.0.0.0/32", "0.0.0.0/0", "10.0.0.0/0", "0.0.0.7/8", "1.0.0.0/7"] {
            assert!(covers(network, v4) && !covers(network, v6), "{network}");
        }
        for network in ["::/128", "::1/64", "fd00::/0"] {
            assert!(covers(network, v6) && !covers(network, v4), "{network}");
        }
        for network in ["10.0.0.100/32", "1.0.0.0/8", "0.0.0.0", "0.0.0.0/33", "::1/128", "0.0.0.0/-1", "x/0"]
        {
            assert!(!covers(network, v4) && !covers(network, v6), "{network}");
        }
    }
}
