//! How connections of other hosts reach the load balancer, for each virtual IP and service, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_proxy::nft::{Delivery, Table};

/// What a host firewall sees of a connection.
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

/// The mode of one endpoint, and why it is not the transparent one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) mode: Mode,
    pub(crate) reason: Option<String>,
}

/// The endpoints that `applied` leads to the load balancer. `unavailable` is why nothing can be transparent; `bridges` are
/// the virtual IPs whose interface is a bridge, with its name.
pub(crate) fn delivered(
    applied: &Table,
    unavailable: Option<&str>,
    bridges: &BTreeMap<IpAddr, String>,
) -> BTreeMap<SocketAddr, Delivered> {
    let vips: BTreeSet<IpAddr> = applied.vips.iter().map(IpAddr::to_canonical).collect();
    let ports = applied.redirects.keys();
    let endpoints = ports.flat_map(|port| vips.iter().map(|vip| SocketAddr::new(*vip, port.get())));
    let decide = |endpoint: SocketAddr| {
        let reason = reason(applied, unavailable, bridges, endpoint);
        let mode = if reason.is_some() { Mode::Dnat } else { Mode::Transparent };
        (endpoint, Delivered { mode, reason })
    };
    endpoints.map(decide).collect()
}

fn reason(
    applied: &Table,
    unavailable: Option<&str>,
    bridges: &BTreeMap<IpAddr, String>,
    endpoint: SocketAddr,
) -> Option<String> {
    let Delivery::Transparent { except } = &applied.delivery else {
        return Some(unavailable.unwrap_or("tproxy is not used").to_owned());
    };
    if applied
        .directors
        .iter()
        .any(|it| (it.vip.to_canonical(), it.port.get()) == (endpoint.ip(), endpoint.port()))
    {
        return Some("IPVS balances it".to_owned());
    }
    if except.contains(&endpoint) {
        return Some("the kernel's IPVS has a service of other software for it".to_owned());
    }
    bridges.get(&endpoint.ip()).map(|name| format!("{name} is a bridge"))
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

    fn reasons(table: &Table, unavailable: Option<&str>, bridges: &[(&str, &str)]) -> Vec<(String, String)> {
        let bridges = bridges.iter().map(|(ip, name)| (ip.parse().unwrap(), (*name).to_owned())).collect();
        let all = delivered(table, unavailable, &bridges);
        assert_eq!(all.len(), 4);
        let translated = all.into_iter().filter(|(_, it)| {
            assert_eq!(it.mode == Mode::Dnat, it.reason.is_some());
            it.mode == Mode::Dnat
        });
        translated.map(|(endpoint, it)| (endpoint.to_string(), it.reason.unwrap())).collect()
    }

    #[test]
    fn every_endpoint_is_transparent_unless_there_is_a_reason() {
        assert_eq!(reasons(&table(Delivery::default()), None, &[("192.0.2.1", "br0")]), []);
        let except = ["10.0.0.100:6443".parse().unwrap()].into();
        let found = reasons(&table(Delivery::Transparent { except }), None, &[("fd00::100", "br0")]);
        let found: Vec<_> = found.iter().map(|(endpoint, why)| (endpoint.as_str(), why.as_str())).collect();
        assert_eq!(
            found,
            [
                ("10.0.0.100:6443", "the kernel's IPVS has a service of other software for it"),
                ("[fd00::100]:6443", "br0 is a bridge"),
                ("[fd00::100]:8132", "br0 is a bridge"),
            ]
        );
    }

    #[test]
    fn without_tproxy_every_endpoint_says_so() {
        let found = reasons(&table(Delivery::Dnat), Some("the kernel has no nft_tproxy"), &[]);
        assert_eq!(found.len(), 4);
        assert!(found.iter().all(|(_, why)| why == "the kernel has no nft_tproxy"));
    }
}
