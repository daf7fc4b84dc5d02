//! The addresses of this node.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cplb_config::Config;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

/// The limit of this node's addresses that are used as local candidates.
const MAX_LOCAL_CANDIDATES: usize = 16;

/// Every address of this node besides its virtual IPs; none where they cannot be read.
pub(super) fn node_addresses(config: &Config) -> BTreeSet<IpAddr> {
    let addresses = getifaddrs().into_iter().flatten().filter_map(|interface| interface.address.and_then(ip));
    addresses.filter(|ip| !config.is_virtual_ip(*ip)).collect()
}

fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
}

/// Addresses of this node at which its API server may listen, the most likely ones first.
pub(super) fn candidate_addresses(config: &Config) -> Vec<IpAddr> {
    let mut all = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for interface in getifaddrs().into_iter().flatten() {
        let flags = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_BROADCAST | InterfaceFlags::IFF_NOARP;
        let on_a_network = interface.flags & flags == InterfaceFlags::IFF_UP | InterfaceFlags::IFF_BROADCAST;
        let Some(ip) = interface.address.and_then(ip).filter(|_| on_a_network) else { continue };
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !link_local && !config.is_virtual_ip(ip) && !all.contains(&ip) && all.len() < MAX_LOCAL_CANDIDATES
        {
            all.push(ip);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_candidates_begin_with_the_loopback_addresses() {
        let text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  backends: {static: [10.0.0.11]}\n";
        let config = cplb_config::load(text, "f.yaml").unwrap().config;
        let own = candidate_addresses(&config);
        assert_eq!(own[..2], [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        assert!(own.len() <= MAX_LOCAL_CANDIDATES);
    }
}
