//! The addresses of this node.

use std::collections::HashSet;
use std::net::IpAddr;

/// Returns all addresses of all interfaces; empty if the system does not list them.
pub(crate) fn local_addresses() -> HashSet<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return HashSet::new() };
    interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect()
}

/// Returns whether an address is on this node, given its [`local_addresses`].
pub(crate) fn is_local(ip: IpAddr, own: &HashSet<IpAddr>) -> bool {
    let ip = ip.to_canonical();
    ip.is_unspecified() || ip.is_loopback() || own.contains(&ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_local_and_a_documentation_address_is_not() {
        let own = local_addresses();
        assert!(own.contains(&IpAddr::from([127, 0, 0, 1])));
        assert!(is_local("127.0.0.9".parse().unwrap(), &own));
        assert!(is_local("::ffff:127.0.0.1".parse().unwrap(), &own));
        assert!(!is_local("192.0.2.1".parse().unwrap(), &own));
    }
}
