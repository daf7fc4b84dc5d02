//! Compares the configuration with the interfaces of a node.

use std::net::IpAddr;

use netlink_vip::{FoundInterface, InterfaceSelector, Prefix, VipAddress};

use crate::diagnostic::{Diagnostic, Severity};
use crate::model::{Config, Instance};

impl Config {
    /// Findings about the interfaces of this node; `choose` names the interface that an instance gets. All are
    /// warnings: an interface may come later, and `run` waits for it. Pass them to
    /// [`Document::report`](crate::Document::report) to give them their place.
    #[must_use]
    pub fn check_interfaces(
        &self,
        interfaces: &[FoundInterface],
        choose: impl Fn(&Instance) -> Option<String>,
    ) -> Vec<Diagnostic> {
        let check = |(index, instance): (usize, &Instance)| {
            let chosen = choose(instance);
            let interface = interfaces.iter().find(|interface| Some(&interface.name) == chosen.as_ref());
            let path = format!("vrrpInstances[{index}]");
            match interface {
                Some(interface) => check_instance(&path, instance, interface),
                None => vec![unknown(&path, instance, interfaces)],
            }
        };
        self.instances.iter().enumerate().flat_map(check).collect()
    }
}

fn check_instance(path: &str, instance: &Instance, interface: &FoundInterface) -> Vec<Diagnostic> {
    let name = &interface.name;
    let mut findings = Vec::new();
    if let Some(vrf) = &interface.vrf {
        let message = format!(
            "{name} is a member of the VRF {vrf}, and the proxy listens outside of VRFs: connections through it are refused"
        );
        let help = "set the sysctl net.ipv4.tcp_l3mdev_accept to 1";
        findings.push(warning("vrf", format!("{path}.interface"), message, help));
    }
    let multicast = instance.unicast.is_none();
    let has_v6_vip = instance.virtual_ips.iter().any(|vip| vip.ip().is_ipv6());
    if multicast && has_v6_vip && !interface.addresses.iter().any(|&(ip, _)| is_link_local(ip)) {
        let message = format!(
            "{name} has no IPv6 link-local address, the source of IPv6 advertisements (RFC 9568 §5.1.2.1)"
        );
        let help = "enable IPv6 on it (sysctl net.ipv6.conf.*.disable_ipv6=0, addr_gen_mode=0), or add a link-local address";
        findings.push(warning("no-link-local", format!("{path}.interface"), message, help));
    }
    for (index, vip) in instance.virtual_ips.iter().enumerate() {
        findings.extend(check_vip(format!("{path}.virtualIPs[{index}]"), vip, instance, interface));
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

/// The finding about a virtual IP on the interface of its instance.
fn check_vip(
    path: String,
    vip: &VipAddress,
    instance: &Instance,
    interface: &FoundInterface,
) -> Option<Diagnostic> {
    let name = &interface.name;
    if interface.addresses.iter().any(|&(ip, length)| ip == vip.ip() && !is_full(ip, length)) {
        let message = format!("{} is this node's own address on {name}", vip.ip());
        let help = "choose a free address that no node has";
        return Some(warning("vip-own-address", path, message, help));
    }
    let is_vip = |ip: IpAddr| instance.virtual_ips.iter().any(|vip| vip.ip() == ip);
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
        return None;
    }
    let known: Vec<String> = subnets.iter().map(ToString::to_string).collect();
    // Clouds and routed networks give nodes addresses with a full-length prefix (/32, /128), and routes for the rest.
    let whole = |(ip, length): &(IpAddr, u8)| same_family(ip) && is_full(*ip, *length) && !is_vip(*ip);
    let (message, help) = if known.is_empty() && interface.addresses.iter().any(whole) {
        let (full, family) = if vip.ip().is_ipv4() { (32, "IPv4") } else { (128, "IPv6") };
        let message = format!(
            "{name} has only {family} addresses of length /{full}, so other hosts do not look for {vip} on its link"
        );
        (message, "let the network route the virtual IP to the link, or announce it otherwise".to_owned())
    } else if known.is_empty() {
        let family = if vip.ip().is_ipv4() { "IPv4" } else { "IPv6" };
        (
            format!("{name} has no {family} subnet for {vip}"),
            format!("give {name} an {family} address, or name another interface"),
        )
    } else {
        let message = format!("{vip} is outside the subnets of {name}: {}", known.join(", "));
        (message, "choose an address of the subnet, or name another interface".to_owned())
    };
    Some(warning("vip-subnet", path, message, &help))
}

fn unknown(path: &str, instance: &Instance, interfaces: &[FoundInterface]) -> Diagnostic {
    /// A name that ends with a zero byte fills 16 bytes (`IFNAMSIZ`).
    const LONGEST_NAME: usize = 15;
    let selector = &instance.interface;
    let names: Vec<&str> =
        interfaces.iter().map(|interface| interface.name.as_str()).filter(|name| *name != "lo").collect();
    let here = format!("interfaces here: {}", names.join(", "));
    let covering = interfaces.iter().filter(|interface| {
        let covers = |&(ip, length): &(IpAddr, u8)| {
            !is_full(ip, length)
                && instance.virtual_ips.iter().any(|vip| Prefix::new(ip, length).contains(vip.ip()))
        };
        interface.addresses.iter().any(covers)
    });
    let message = match selector {
        InterfaceSelector::DefaultRoute if covering.count() > 1 => {
            "there is no default route, and several interfaces have the subnet of the virtual IPs".to_owned()
        }
        InterfaceSelector::DefaultRoute => {
            "there is no default route to take the interface from, and none has the subnet of the virtual IPs"
                .to_owned()
        }
        InterfaceSelector::Name(name) if name.len() > LONGEST_NAME => {
            format!(
                "there is no alternative interface name {name}, and names have at most {LONGEST_NAME} characters"
            )
        }
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

/// A /32 or /128 shows no subnet; a virtual IP that is installed already looks like this.
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
