//! The delivery of other hosts' connections to the load balancer, for each virtual IP and service, with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_proxy::nft::{Delivery, Table};

/// The destination port that a host firewall sees of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The service's port.
    Transparent,
    /// The load balancer's bind port.
    Dnat,
}

impl Mode {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Transparent => "transparent",
            Self::Dnat => "dnat",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The delivery of connections to one endpoint: translated if there is a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) reason: Option<Reason>,
}

impl Delivered {
    pub(crate) fn mode(&self) -> Mode {
        if self.reason.is_some() { Mode::Dnat } else { Mode::Transparent }
    }
}

/// The reason why connections are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Transparent delivery is unavailable on this node, for this reason.
    Unavailable(String),
    /// IPVS balances the endpoint for us.
    Ipvs,
    /// IPVS balances it for other software.
    ForeignIpvs,
    /// The virtual IP's interface, by name, is a bridge.
    Bridge(String),
    /// The virtual IP's interface is a member of this VRF.
    Vrf(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => f.write_str(why),
            Self::Ipvs => f.write_str("IPVS balances it"),
            Self::ForeignIpvs => f.write_str("the kernel's IPVS has a service of other software for it"),
            Self::Bridge(name) => write!(f, "{name} is a bridge"),
            Self::Vrf(name) => write!(f, "its interface is in the VRF {name}"),
        }
    }
}

/// The texts for `degraded`, where connections are translated because `tproxy` is unavailable.
pub(crate) fn degraded_delivery(delivered: &BTreeMap<SocketAddr, Delivered>) -> Vec<String> {
    let unavailable = delivered.values().filter_map(|it| match &it.reason {
        Some(Reason::Unavailable(why)) => Some(why),
        _ => None,
    });
    let reasons: BTreeSet<&String> = unavailable.collect();
    let text = |why| format!("a host firewall sees connections to the VIPs at the bind port: {why}");
    reasons.into_iter().map(text).collect()
}

/// The endpoints that `applied` redirects to the load balancer. `unavailable` is the reason why no connection can be
/// transparent; `interfaces` has the virtual IPs whose interface is the reason.
pub(super) fn delivered(
    applied: &Table,
    unavailable: Option<&str>,
    interfaces: &BTreeMap<IpAddr, Reason>,
) -> BTreeMap<SocketAddr, Delivered> {
    let vips: BTreeSet<IpAddr> = applied.vips.iter().map(IpAddr::to_canonical).collect();
    let ports = applied.redirects.keys();
    let endpoints = ports.flat_map(|port| vips.iter().map(|vip| SocketAddr::new(*vip, port.get())));
    endpoints
        .map(|endpoint| (endpoint, Delivered { reason: reason(applied, unavailable, interfaces, endpoint) }))
        .collect()
}

fn reason(
    applied: &Table,
    unavailable: Option<&str>,
    interfaces: &BTreeMap<IpAddr, Reason>,
    endpoint: SocketAddr,
) -> Option<Reason> {
    let Delivery::Transparent { except } = &applied.delivery else {
        return Some(Reason::Unavailable(unavailable.unwrap_or("tproxy is not used").to_owned()));
    };
    let is_directed = |vip: IpAddr, port: u16| SocketAddr::new(vip.to_canonical(), port) == endpoint;
    if applied.directors.iter().any(|director| is_directed(director.vip, director.port.get())) {
        return Some(Reason::Ipvs);
    }
    if except.contains(&endpoint) {
        return Some(Reason::ForeignIpvs);
    }
    interfaces.get(&endpoint.ip()).cloned()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn table(delivery: Delivery) -> Table {
        let port = |number| NonZeroU16::new(number).unwrap();
        Table {
            vips: ["10.0.0.100", "fd00::100"].map(|ip| ip.parse().unwrap()).into(),
            redirects: [(port(6443), port(6444)), (port(8132), port(8133))].into(),
            delivery,
            ..Table::default()
        }
    }

    /// The endpoints that are translated, with the reasons.
    fn reasons(table: &Table, unavailable: Option<&str>, bridges: &[(&str, &str)]) -> Vec<(String, Reason)> {
        let bridge = |name: &str| Reason::Bridge(name.to_owned());
        let interfaces = bridges.iter().map(|(ip, name)| (ip.parse().unwrap(), bridge(name))).collect();
        let all = delivered(table, unavailable, &interfaces);
        assert_eq!(all.len(), 4);
        all.into_iter().filter_map(|(endpoint, it)| Some((endpoint.to_string(), it.reason?))).collect()
    }

    #[test]
    fn every_endpoint_is_transparent_unless_there_is_a_reason() {
        assert_eq!(reasons(&table(Delivery::default()), None, &[("192.0.2.1", "br0")]), []);
        let except = ["10.0.0.100:6443".parse().unwrap()].into();
        let found = reasons(&table(Delivery::Transparent { except }), None, &[("fd00::100", "br0")]);
        let bridge = || Reason::Bridge("br0".to_owned());
        let expected = [
            ("10.0.0.100:6443", Reason::ForeignIpvs),
            ("[fd00::100]:6443", bridge()),
            ("[fd00::100]:8132", bridge()),
        ];
        assert_eq!(found, expected.map(|(endpoint, why)| (endpoint.to_owned(), why)));
    }

    #[test]
    fn without_tproxy_every_endpoint_has_that_reason() {
        let found = reasons(&table(Delivery::Dnat), Some("the kernel has no nft_tproxy"), &[]);
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|(_, why)| why.to_string() == "the kernel has no nft_tproxy"));
    }

    #[test]
    fn unavailable_tproxy_alone_is_a_problem_with_one_text() {
        let texts = |table: &Table, unavailable| {
            let interfaces = [("fd00::100".parse().unwrap(), Reason::Bridge("br0".to_owned()))].into();
            degraded_delivery(&delivered(table, unavailable, &interfaces))
        };
        let except = ["10.0.0.100:6443".parse().unwrap()].into();
        assert!(texts(&table(Delivery::Transparent { except }), None).is_empty());
        let found = texts(&table(Delivery::Dnat), Some("the kernel has no nft_tproxy"));
        assert!(found.len() == 1 && found[0].contains("at the bind port: the kernel has no"), "{found:?}");
    }
}
