//! Rules between virtual routers, and between them and k0s.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::read::{InstanceDraft, Placed, host};
use crate::walk::{Finding, Reporter};

use super::common::is_vip;
use super::context::ClusterContext;

/// k0s documents that VRIDs must be unique and does not check it; keepalived then contends with itself.
pub(super) fn unique_vrids(drafts: &[InstanceDraft], out: &Reporter<'_>) {
    let mut seen: BTreeMap<u8, &Placed<_>> = BTreeMap::new();
    for draft in drafts {
        let Some(vrid) = &draft.vrid else { continue };
        let id = vrid.value.get();
        let Some(first) = seen.get(&id) else {
            seen.insert(id, vrid);
            continue;
        };
        let owner = first.path.trim_end_matches(".virtualRouterID");
        let default = if draft.vrid_is_default { " (the default, 51 + index)" } else { "" };
        let message =
            format!("virtualRouterID {id}{default} is already that of {owner} on line {}", first.at.line);
        let help = match free_vrid(drafts) {
            Some(free) => format!("write `virtualRouterID: {free}`, on every controller"),
            None => "give each instance its own virtualRouterID".to_owned(),
        };
        out.error(&vrid.path, vrid.at, Finding::new("duplicate-vrid", message, help));
    }
}

fn free_vrid(drafts: &[InstanceDraft]) -> Option<u8> {
    let used =
        |id: u8| drafts.iter().filter_map(|draft| draft.vrid.as_ref()).any(|vrid| vrid.value.get() == id);
    (51..=255).chain(1..51).find(|&id| !used(id))
}

/// Returns every virtual IP that could be read, sorted.
pub(super) fn unique_vips(drafts: &[InstanceDraft], out: &Reporter<'_>) -> Vec<IpAddr> {
    let mut seen: BTreeMap<IpAddr, &Placed<_>> = BTreeMap::new();
    for vip in drafts.iter().flat_map(|draft| &draft.vips) {
        let ip = vip.value.ip();
        if let Some(first) = seen.get(&ip) {
            let message = format!("{ip} is already a virtual IP on line {}", first.at.line);
            let help = "an address can move with one instance only: keep one of them";
            out.error(&vip.path, vip.at, Finding::new("duplicate-vip", message, help));
        } else {
            seen.insert(ip, vip);
        }
    }
    seen.into_keys().collect()
}

/// Virtual IPs move, so none of them can stand for one router.
pub(super) fn check_unicast(drafts: &[InstanceDraft], vips: &[IpAddr], out: &Reporter<'_>) {
    for draft in drafts {
        if let Some(source) = draft.unicast_source.as_ref().filter(|source| is_vip(vips, source.value)) {
            let message =
                format!("{} is a virtual IP, which is never the source of advertisements", source.value);
            let help = "write this node's own address";
            out.error(&source.path, source.at, Finding::new("unicast-vip", message, help));
        }
        for peer in draft.unicast_peers.iter().filter(|peer| is_vip(vips, peer.value)) {
            let message = format!("{} is a virtual IP of this configuration", peer.value);
            let help = "list the controllers' own addresses";
            out.error(&peer.path, peer.at, Finding::new("unicast-vip", message, help));
        }
    }
}

pub(super) fn check_addresses(cluster: &ClusterContext, vips: &[IpAddr], out: &Reporter<'_>) {
    // A field that binds the API server to one address has a rule of its own.
    let own = cluster.api_address.as_ref().filter(|_| cluster.bound_server.is_none());
    if let Some(address) = own.filter(|address| is_vip(vips, address.value)) {
        let message = format!(
            "spec.api.address is the virtual IP {}: k0s takes it for this node's own, on every node that has this file",
            address.value
        );
        let help = "write this controller's own address, and the virtual IP under spec.api.sans";
        out.warn(&address.path, address.at, Finding::new("api-address-vip", message, help));
    }
    let Some(external) = &cluster.external_address else {
        return;
    };
    if let Err(error) = host(&external.value) {
        let help = "write the host alone, without a port, as k0s demands it; certificates are not compared with this one";
        out.warn(&external.path, external.at, Finding::new("external-address", error.to_string(), help));
    }
    if cluster.endpoint_reconciler_disabled {
        return;
    }
    let what = match external.value.parse::<IpAddr>() {
        Ok(ip) if is_vip(vips, ip) => "externalAddress is a virtual IP".to_owned(),
        _ => "an externalAddress is given".to_owned(),
    };
    let message = format!(
        "{what}: k0s's endpoint reconciler then publishes only this address as the endpoint of the API server"
    );
    let help = "run every controller with --disable-components=endpoint-reconciler, or list the address under \
                spec.api.sans instead";
    out.warn(&external.path, external.at, Finding::new("external-address-vip", message, help));
}
