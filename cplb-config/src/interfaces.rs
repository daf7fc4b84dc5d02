//! Comparing the configuration with the interfaces a node has.

use std::net::IpAddr;

use netlink_vip::{InterfaceSelector, Prefix};

use crate::diagnostic::{Diagnostic, Severity};
use crate::model::{Config, Instance};

/// An interface as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedInterface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one of 6 bytes.
    pub mac: Option<[u8; 6]>,
    /// Whether the default route with the lowest metric leaves through it.
    pub default_route: bool,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
}

impl Config {
    /// What does not fit the interfaces of this node. All findings are warnings: an interface may come later, and `run`
    /// waits for it. Pass them to [`Document::report`](crate::Document::report) to give them their place.
    #[must_use]
    pub fn check_interfaces(&self, interfaces: &[ObservedInterface]) -> Vec<Diagnostic> {
        let instances = self.instances.iter().enumerate();
        instances.flat_map(|(index, instance)| check_instance(index, instance, interfaces)).collect()
    }
}

fn check_instance(index: usize, instance: &Instance, interfaces: &[ObservedInterface]) -> Vec<Diagnostic> {
    let path = format!("vrrpInstances[{index}]");
    let Some(interface) = find(&instance.interface, interfaces) else {
        return vec![unknown(&path, &instance.interface, interfaces)];
    };
    let name = &interface.name;
    let mut findings = Vec::new();
    for (vip_index, vip) in instance.virtual_ips.iter().enumerate() {
        let path = format!("{path}.virtualIPs[{vip_index}]");
        if interface.addresses.iter().any(|&(ip, length)| ip == vip.ip() && !is_full(ip, length)) {
            let message = format!("{} is this node's own address on {name}", vip.ip());
            findings.push(warning(
                "vip-own-address",
                path,
                message,
                "choose a free address that no node has",
            ));
            continue;
        }
        let same_family = |ip: &IpAddr| ip.is_ipv4() == vip.ip().is_ipv4();
        let subnets: Vec<Prefix> = interface
            .addresses
            .iter()
            .filter(|(ip, length)| same_family(ip) && !is_full(*ip, *length))
            // A link-local prefix is the subnet of link-local virtual IPs only.
            .filter(|(ip, _)| is_link_local(*ip) == is_link_local(vip.ip()))
            .map(|&(ip, length)| Prefix::new(ip, length))
            .collect();
        if subnets.iter().any(|subnet| subnet.contains(vip.ip())) {
            continue;
        }
        let known: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        let (message, help) = if known.is_empty() {
            let family = if vip.ip().is_ipv4() { "IPv4" } else { "IPv6" };
            (
                format!("{name} has no {family} subnet for {vip}"),
                format!("give {name} an {family} address, or name another interface"),
            )
        } else {
            let message = format!("{vip} is outside the subnets of {name}: {}", known.join(", "));
            (message, "choose an address of the subnet, or name another interface".to_owned())
        };
        findings.push(warning("vip-subnet", path, message, &help));
    }
    if let Some(source) = instance.unicast.as_ref().and_then(|unicast| unicast.source)
        && !interface.addresses.iter().any(|&(ip, _)| ip == source)
    {
        let message = format!("{source} is no address of {name}");
        let help = "write this node's own address, or leave it out in a native document";
        findings.push(warning("unicast-source", format!("{path}.unicastSourceIP"), message, help));
    }
    findings
}

fn find<'i>(
    selector: &InterfaceSelector,
    interfaces: &'i [ObservedInterface],
) -> Option<&'i ObservedInterface> {
    interfaces.iter().find(|interface| match selector {
        InterfaceSelector::Name(name) => interface.name == *name,
        InterfaceSelector::Mac(mac) => interface.mac == Some(*mac),
        InterfaceSelector::DefaultRoute => interface.default_route,
    })
}

fn unknown(path: &str, selector: &InterfaceSelector, interfaces: &[ObservedInterface]) -> Diagnostic {
    let names: Vec<&str> =
        interfaces.iter().map(|interface| interface.name.as_str()).filter(|name| *name != "lo").collect();
    let here = format!("interfaces here: {}", names.join(", "));
    let message = match selector {
        InterfaceSelector::DefaultRoute => "there is no default route to take the interface from".to_owned(),
        selector => format!("there is no interface {selector}"),
    };
    let help = match selector {
        InterfaceSelector::Name(name) => match crate::suggest::closest(name, &names) {
            Some(close) => format!("did you mean `{close}`? cplb run waits for the interface to appear"),
            None => format!("{here}; cplb run waits for the interface to appear"),
        },
        _ => format!("write `interface:` with a name; {here}"),
    };
    warning("unknown-interface", format!("{path}.interface"), message, &help)
}

/// A /32 or /128 says nothing about a subnet; a virtual IP that is installed already looks like this.
fn is_full(ip: IpAddr, length: u8) -> bool {
    length == if ip.is_ipv4() { 32 } else { 128 }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn warning(rule: &'static str, path: String, message: String, help: &str) -> Diagnostic {
    Diagnostic {
        severity: Severity::Warning,
        rule,
        path,
        location: None,
        text: String::new(),
        message,
        help: help.to_owned(),
    }
}
