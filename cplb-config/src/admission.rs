//! The addresses that may be backends: one rule for every source of them.
//!
//! A proxy that connects to itself, to a peer's proxy or to a virtual IP makes a loop that needs no client: health
//! checks start it, and every hop connects again. So each address passes [`BackendRule`] whether it was written in the
//! configuration, given on the command line, resolved, discovered, read from disk or is one of the node's own.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::model::{Config, Host, Port, Service};

/// The source of a backend's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// Written by the operator, in the file or on the command line.
    Written,
    /// An address of a name that the operator wrote.
    Resolved,
    /// Listed by a cluster's API, in this run or an earlier one.
    Discovered,
    /// An address of this node, tried until the API has listed its servers.
    LocalCandidate,
}

/// The reason why an address is no backend. Displays as the end of a sentence that begins with the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The node that holds it would connect to itself.
    #[error("is a virtual IP of this configuration")]
    VirtualIp,
    /// A bind port on this node.
    #[error("is where this node's own proxy listens")]
    OwnProxy,
    /// A bind port, at which every node of the load balancer has its proxy.
    #[error("is where a proxy of this configuration listens, on every node")]
    Proxy,
    /// Unspecified, multicast, broadcast or reserved (RFC 6890).
    #[error("is no address of a server")]
    NoServer,
    /// A link-local address, which means another host on every link.
    #[error("is a link-local address, which names no host without its link")]
    LinkLocal,
    /// A loopback address that the operator did not write.
    #[error("is a loopback address, which is another server on every node")]
    Loopback,
    /// Port 0.
    #[error("has no port")]
    NoPort,
}

/// Decides which addresses may be backends of a configuration; the same for each source of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendRule {
    /// Addresses that move, by VRRP or other means.
    pub(crate) vips: BTreeSet<IpAddr>,
    /// Ports at which this node's proxies listen.
    pub(crate) bind_ports: BTreeSet<Port>,
    /// Those of them at which every node of the load balancer has a proxy, and no server.
    pub(crate) proxy_ports: BTreeSet<Port>,
    /// This node's addresses besides loopback.
    pub(crate) node: BTreeSet<IpAddr>,
}

impl BackendRule {
    /// The same rule on a node that has these addresses.
    #[must_use]
    pub fn on_node(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.node = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
        self
    }

    /// Returns the address to connect to for `service`, without IPv4-mapped form, flow label and scope.
    ///
    /// # Errors
    /// [`Unfit`], if it may not be a backend.
    pub fn admit(&self, server: SocketAddr, service: &Service, origin: Origin) -> Result<SocketAddr, Unfit> {
        let ip = server.ip().to_canonical();
        fit_address(ip, origin)?;
        let port = Port::new(server.port()).ok_or(Unfit::NoPort)?;
        // The servers of a service on its own bind port run on nodes without a proxy. Addresses in the file are checked
        // without this exception, because the operator can correct them.
        let apart = origin != Origin::Written && service.backend_port == port && service.bind_port == port;
        self.leads_elsewhere(&Host::Address(ip), port).or_else(|unfit| match unfit {
            Unfit::Proxy if apart => Ok(()),
            unfit => Err(unfit),
        })?;
        Ok(SocketAddr::new(ip, port.number()))
    }

    /// Returns whether the address is a virtual IP, also in its IPv4-mapped form.
    #[must_use]
    pub fn moves(&self, ip: IpAddr) -> bool {
        self.vips.contains(&ip.to_canonical())
    }

    /// Checks that connections to a host and port leave the load balancer.
    ///
    /// # Errors
    /// [`Unfit::VirtualIp`], [`Unfit::OwnProxy`] or [`Unfit::Proxy`], if they do not.
    pub(crate) fn leads_elsewhere(&self, host: &Host, port: Port) -> Result<(), Unfit> {
        let address = if let Host::Address(ip) = host { Some(ip.to_canonical()) } else { None };
        if address.is_some_and(|ip| self.vips.contains(&ip)) {
            return Err(Unfit::VirtualIp);
        }
        let on_this_node = host.is_this_node() || address.is_some_and(|ip| self.node.contains(&ip));
        if on_this_node && self.bind_ports.contains(&port) {
            return Err(Unfit::OwnProxy);
        }
        if self.proxy_ports.contains(&port) {
            return Err(Unfit::Proxy);
        }
        Ok(())
    }
}

/// Checks that a server may have the address in any configuration.
///
/// # Errors
/// [`Unfit::NoServer`], [`Unfit::LinkLocal`] or [`Unfit::Loopback`].
pub(crate) fn fit_address(ip: IpAddr, origin: Origin) -> Result<(), Unfit> {
    let ip = ip.to_canonical();
    let written = origin == Origin::Written;
    match ip {
        // 0.0.0.0/8 is "this network", 240.0.0.0/4 is reserved and ends with the broadcast address.
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.is_multicast() || v4.octets()[0] >= 240 => {
            Err(Unfit::NoServer)
        }
        IpAddr::V4(v4) if v4.is_link_local() && !written => Err(Unfit::LinkLocal),
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => Err(Unfit::NoServer),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(Unfit::LinkLocal),
        ip if ip.is_loopback() && !written && origin != Origin::LocalCandidate => Err(Unfit::Loopback),
        _ => Ok(()),
    }
}

impl Config {
    /// The rule by which addresses become backends of this configuration.
    #[must_use]
    pub fn backend_rule(&self) -> BackendRule {
        let by_hand = self.virtual_servers.iter().map(|server| server.address);
        let bound = |service: &&Service| !self.instances.is_empty() || !self.serves_apart(service);
        BackendRule {
            vips: self.virtual_ips().chain(by_hand).map(|ip| ip.to_canonical()).collect(),
            bind_ports: self.services.iter().map(|service| service.bind_port).collect(),
            proxy_ports: self.services.iter().filter(bound).map(|service| service.bind_port).collect(),
            node: BTreeSet::new(),
        }
    }

    /// Returns whether the servers of the service listen on its own bind port, which shows that they run on other
    /// nodes.
    fn serves_apart(&self, service: &Service) -> bool {
        let servers = &self.backends_of(service).fixed;
        service.backend_port == service.bind_port
            && servers.iter().all(|server| server.port.is_none_or(|port| port == service.bind_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(spec: &str) -> (BackendRule, Service) {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        let config = crate::load(&text, "f.yaml").unwrap_or_else(|e| panic!("{}", e.report().plain())).config;
        (config.backend_rule(), config.services[0].clone())
    }

    const VIPS: &str = "  vrrpInstances: [{virtualIPs: [10.0.0.100/24, 'fd00::100/64']}]\n";
    const ALL: [Origin; 4] = [Origin::Written, Origin::Resolved, Origin::Discovered, Origin::LocalCandidate];

    fn admit(spec: &str, server: &str, origin: Origin) -> Result<String, Unfit> {
        let (rule, service) = rule(spec);
        let rule = rule.on_node(["10.0.0.11".parse().unwrap()]);
        rule.admit(server.parse().unwrap(), &service, origin).map(|server| server.to_string())
    }

    #[test]
    fn a_proxy_of_a_group_with_virtual_ips_is_no_backend_whatever_its_source() {
        for origin in ALL {
            assert_eq!(admit(VIPS, "10.0.0.12:6444", origin), Err(Unfit::Proxy));
            assert_eq!(admit(VIPS, "[::ffff:10.0.0.12]:6444", origin), Err(Unfit::Proxy));
            assert_eq!(admit(VIPS, "10.0.0.11:6444", origin), Err(Unfit::OwnProxy));
            assert_eq!(admit(VIPS, "10.0.0.12:6443", origin), Ok("10.0.0.12:6443".into()));
        }
        let services = format!("{VIPS}  services: [{{name: a, port: 6443}}, {{name: b, port: 8132}}]\n");
        assert_eq!(admit(&services, "10.0.0.12:6445", Origin::Discovered), Err(Unfit::Proxy));
    }

    #[test]
    fn a_service_on_its_own_bind_port_has_its_servers_on_other_nodes() {
        let own = format!("{VIPS}  services: [{{name: a, port: 6443, bindPort: 6443}}]\n");
        assert_eq!(admit(&own, "10.0.0.12:6443", Origin::Discovered), Ok("10.0.0.12:6443".into()));
        assert_eq!(admit(&own, "10.0.0.11:6443", Origin::Discovered), Err(Unfit::OwnProxy));
        assert_eq!(admit(&own, "127.0.0.1:6443", Origin::LocalCandidate), Err(Unfit::OwnProxy));
        assert_eq!(admit(&own, "10.0.0.12:6443", Origin::Written), Err(Unfit::Proxy));
        let plain = "  services: [{name: a, port: 6443, bindPort: 6443}]\n";
        assert_eq!(admit(plain, "10.0.0.12:6443", Origin::Written), Ok("10.0.0.12:6443".into()));
        assert_eq!(admit(plain, "10.0.0.11:6443", Origin::Resolved), Err(Unfit::OwnProxy));
    }

    #[test]
    fn addresses_that_move_are_no_backends_in_any_form() {
        let served = "  virtualServers: [{ipAddress: 10.0.0.200}]\n  backends: {static: [10.0.0.11]}\n";
        for origin in ALL {
            for vip in ["10.0.0.100:6443", "[::ffff:10.0.0.100]:1", "[fd00::100]:6443"] {
                assert_eq!(admit(VIPS, vip, origin), Err(Unfit::VirtualIp), "{vip}");
            }
            assert_eq!(admit(served, "10.0.0.200:6443", origin), Err(Unfit::VirtualIp));
        }
    }

    #[test]
    fn only_unicast_addresses_of_hosts_are_backends() {
        let none = ["0.0.0.0", "0.1.2.3", "224.0.0.18", "239.1.1.1", "240.0.0.1", "255.255.255.255"];
        for origin in ALL {
            for ip in none {
                assert_eq!(admit(VIPS, &format!("{ip}:6443"), origin), Err(Unfit::NoServer), "{ip}");
                assert_eq!(admit(VIPS, &format!("[::ffff:{ip}]:6443"), origin), Err(Unfit::NoServer), "{ip}");
            }
            assert_eq!(admit(VIPS, "[::]:6443", origin), Err(Unfit::NoServer));
            assert_eq!(admit(VIPS, "[ff02::1]:6443", origin), Err(Unfit::NoServer));
            assert_eq!(admit(VIPS, "[fe80::1%3]:6443", origin), Err(Unfit::LinkLocal));
            assert_eq!(admit(VIPS, "10.0.0.12:0", origin), Err(Unfit::NoPort));
        }
        assert_eq!(admit(VIPS, "169.254.1.1:6443", Origin::Discovered), Err(Unfit::LinkLocal));
        assert_eq!(admit(VIPS, "169.254.1.1:6443", Origin::Written), Ok("169.254.1.1:6443".into()));
    }

    #[test]
    fn loopback_needs_the_operators_word_or_a_local_candidate() {
        for ip in ["127.0.0.1", "127.0.1.1", "[::1]", "[::ffff:127.0.0.1]"] {
            let server = format!("{ip}:6443");
            assert!(admit(VIPS, &server, Origin::Written).is_ok(), "{ip}");
            assert!(admit(VIPS, &server, Origin::LocalCandidate).is_ok(), "{ip}");
            assert_eq!(admit(VIPS, &server, Origin::Resolved), Err(Unfit::Loopback), "{ip}");
            assert_eq!(admit(VIPS, &server, Origin::Discovered), Err(Unfit::Loopback), "{ip}");
        }
    }
}
