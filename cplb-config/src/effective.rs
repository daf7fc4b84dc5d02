//! Rules about a configuration with the servers of the command line in it.

use std::net::IpAddr;

use crate::diagnostic::{Diagnostic, Severity};
use crate::model::{Backend, Backends, Config, Host, Instance, Service, UnicastPeers, VirtualServer};

/// The most virtual servers times services that IPVS can tell apart: each pair has a firewall mark of its own.
pub const MAX_IPVS_SERVICES: usize = 127;

impl Config {
    /// Findings that depend on the servers of the command line, or on what this version implements. A
    /// [`Severity::Error`] among them means that the configuration cannot be used. Pass them to
    /// [`Document::report`](crate::Document::report) to give them their place.
    #[must_use]
    pub fn check_effective(&self) -> Vec<Diagnostic> {
        let mut findings = Vec::new();
        if !self.disable_load_balancer {
            findings.extend(too_many_virtual_servers(self));
            findings.extend(families(self));
            findings.extend(backends(self));
        }
        findings.extend(auto_peers(self));
        findings
    }
}

fn finding(
    severity: Severity,
    rule: &'static str,
    path: String,
    message: String,
    help: &'static str,
) -> Diagnostic {
    let help = help.to_owned();
    Diagnostic { severity, rule, path, location: None, text: String::new(), message, help }
}

fn too_many_virtual_servers(config: &Config) -> Option<Diagnostic> {
    let services = config.virtual_servers.len() * config.services.len();
    let excess = services.checked_sub(MAX_IPVS_SERVICES).filter(|excess| *excess > 0)?;
    Some(finding(
        Severity::Error,
        "too-many-virtual-servers",
        "virtualServers".to_owned(),
        format!("virtualServers times services is {excess} more than IPVS has marks for"),
        "keep virtualServers times services at 127 or fewer",
    ))
}

/// Virtual servers that have no server for a service, as far as its servers are known: names may have addresses of both
/// families.
fn families(config: &Config) -> Vec<Diagnostic> {
    let lacks = |service: &Service, vip: IpAddr| {
        let Backends { fixed, kubeconfig } = config.backends_of(service);
        let other =
            |backend: &Backend| matches!(backend.host, Host::Address(ip) if ip.is_ipv4() != vip.is_ipv4());
        kubeconfig.is_none() && !fixed.is_empty() && fixed.iter().all(other)
    };
    let check = |(index, server): (usize, &VirtualServer)| {
        let vip = server.address;
        let lacking = config.services.iter().filter(|service| lacks(service, vip));
        let names: Vec<&str> = lacking.map(|service| service.name.as_str()).collect();
        (!names.is_empty()).then(|| {
            let message = format!(
                "no server of {} has the family of {vip}, so the proxy serves it instead: IPVS forwards within one family",
                names.join(", ")
            );
            let help = if vip.is_ipv4() {
                "add the servers' IPv4 addresses (outside a native document with --backend), or remove the virtual server"
            } else {
                "add the servers' IPv6 addresses (outside a native document with --backend), or remove the virtual server"
            };
            let path = format!("virtualServers[{index}].ipAddress");
            finding(Severity::Warning, "virtual-server-family", path, message, help)
        })
    };
    config.virtual_servers.iter().enumerate().filter_map(check).collect()
}

/// Instances with `unicastPeers: auto` that no controller is listed for.
fn auto_peers(config: &Config) -> Vec<Diagnostic> {
    let own = config.services.iter().filter_map(|service| service.backends.as_ref());
    let sources: Vec<&Backends> = std::iter::once(&config.backends).chain(own).collect();
    let hosts = || sources.iter().flat_map(|source| &source.fixed).map(|backend| &backend.host);
    let is_found = sources.iter().any(|source| source.kubeconfig.is_some());
    let check = |(index, instance): (usize, &Instance)| {
        instance.unicast.as_ref().filter(|unicast| unicast.peers == UnicastPeers::Auto)?;
        let has_v4 = instance.virtual_ips.iter().any(|vip| vip.ip().is_ipv4());
        let counts = |host: &Host| match host {
            Host::Address(ip) => ip.is_ipv4() == has_v4 && !ip.is_loopback(),
            Host::Name(_) => true,
        };
        if is_found || hosts().any(counts) {
            return None;
        }
        let family = if has_v4 { "IPv4" } else { "IPv6" };
        let message = format!(
            "no controller is known to `auto` by an {family} address, which decides: this node waits until one reports itself"
        );
        let help =
            "list the controllers' addresses in backends.static or with --backend, or give a kubeconfig";
        let path = format!("vrrpInstances[{index}].unicastPeers");
        Some(finding(Severity::Warning, "unicast-auto", path, message, help))
    };
    config.instances.iter().enumerate().filter_map(check).collect()
}

/// Servers that are neither listed nor discovered, so that clients of the service would be refused.
fn backends(config: &Config) -> Vec<Diagnostic> {
    let sharing: Vec<&str> = config.sharing().map(|service| service.name.as_str()).collect();
    let shared = (!sharing.is_empty()).then(|| (String::new(), sharing.join(", "), &config.backends));
    let own = config.services.iter().enumerate().filter_map(|(index, service)| {
        Some((format!("services[{index}]."), service.name.clone(), service.backends.as_ref()?))
    });
    let all = shared.into_iter().chain(own);
    all.filter_map(|(path, users, backends)| no_backends(&path, &users, backends)).collect()
}

fn no_backends(path: &str, users: &str, backends: &Backends) -> Option<Diagnostic> {
    backends.is_empty().then(|| {
        finding(
            Severity::Warning,
            "no-backends",
            format!("{path}backends"),
            format!("no backend is configured for {users}"),
            "name the controllers' own addresses with --backend, or have them found with --kubeconfig; in a native document \
             under backends.static or backends.kubernetes",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(spec: &str) -> Config {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        crate::load(&text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain())).config
    }

    fn found(spec: &str) -> Vec<(Severity, &'static str, String)> {
        let findings = config(spec).check_effective().into_iter();
        findings.map(|finding| (finding.severity, finding.rule, finding.path)).collect()
    }

    /// Two virtual servers with that many services.
    fn virtual_servers(services: usize) -> String {
        let services: String =
            (1..=services).map(|port| format!("  - {{name: s{port}, port: {port}}}\n")).collect();
        format!(
            "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24, 10.0.0.101/24]\n  virtualServers:\n  \
             - ipAddress: 10.0.0.100\n  - ipAddress: 10.0.0.101\n  services:\n{services}  \
             backends: {{static: [10.0.0.11]}}\n"
        )
    }

    #[test]
    fn settings_without_effect_are_listed_with_their_places() {
        assert_eq!(found("  backends: {static: [10.0.0.11]}\n"), []);
        let spec = "  services:\n  - {name: a, port: 6443}\n  - {name: b, port: 8132, backends: {kubernetes: {}, static: [10.0.0.11]}}\n  \
                    - {name: c, port: 9443, backends: {kubernetes: {}}}\n";
        assert_eq!(found(spec), [(Severity::Warning, "no-backends", "backends".to_owned())]);
        assert_eq!(found(&virtual_servers(63)), []);
        assert_eq!(
            found(&virtual_servers(64)),
            [(Severity::Error, "too-many-virtual-servers", "virtualServers".to_owned())]
        );
    }

    #[test]
    fn auto_without_a_controller_of_its_family_is_reported() {
        let auto = |vips: &str, backends: &str| {
            let spec = format!(
                "  vrrpInstances:\n  - {{virtualIPs: [{vips}], version: 3, unicastPeers: auto}}\n  disableLoadBalancer: true\n\
                 {backends}"
            );
            found(&spec).iter().filter(|(_, rule, _)| *rule == "unicast-auto").count()
        };
        let (v4, v6) = ("10.0.0.100/24", "'fd00::100/64'");
        let both = format!("{v4}, {v6}");
        for (vips, backends, expected) in [
            (v4, "", 1),
            (v4, "  backends: {static: [10.0.0.11]}\n", 0),
            (v4, "  backends: {static: [127.0.0.1, 'fd00::11']}\n", 1),
            (v4, "  backends: {static: [node-1]}\n", 0),
            (v4, "  backends: {kubernetes: {}}\n", 0),
            (v6, "  backends: {static: [10.0.0.11]}\n", 1),
            (v6, "  backends: {static: ['fd00::11']}\n", 0),
            (&both, "  backends: {static: ['fd00::11']}\n", 1),
        ] {
            assert_eq!(auto(vips, backends), expected, "{vips} {backends}");
        }
    }

    #[test]
    fn a_virtual_server_without_a_server_of_its_family_is_reported() {
        let families = |backends: &str| -> Vec<String> {
            let spec = format!(
                "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24, 'fd00::100/64']\n  virtualServers:\n  \
                 - ipAddress: 10.0.0.100\n  - ipAddress: fd00::100\n  services:\n  - {{name: a, port: 6443}}\n  \
                 - {{name: b, port: 8132, backends: {{static: ['fd00::11']}}}}\n  - {{name: c, port: 9443}}\n{backends}"
            );
            let findings = config(&spec).check_effective().into_iter();
            let reported = findings.filter(|finding| finding.rule == "virtual-server-family");
            reported
                .map(|finding| {
                    assert_eq!(finding.severity, Severity::Warning);
                    format!("{}: {}", finding.path, finding.message)
                })
                .collect()
        };
        let why = "so the proxy serves it instead: IPVS forwards within one family";
        let v4 = format!("virtualServers[0].ipAddress: no server of b has the family of 10.0.0.100, {why}");
        let v6 = format!("virtualServers[1].ipAddress: no server of a, c has the family of fd00::100, {why}");
        assert_eq!(families("  backends: {static: [10.0.0.11, 10.0.0.12]}\n"), [v4.clone(), v6]);
        // Servers that are known by name, discovered, or not known at all may be of any family.
        for open in [
            "  backends: {static: [10.0.0.11, 'fd00::12']}\n",
            "  backends: {static: [10.0.0.11, controller-2]}\n",
            "  backends: {static: [10.0.0.11], kubernetes: {}}\n",
            "",
        ] {
            assert_eq!(families(open), std::slice::from_ref(&v4), "{open}");
        }
        assert!(families("  disableLoadBalancer: true\n").is_empty());
    }

    #[test]
    fn a_disabled_load_balancer_needs_neither_servers_nor_marks() {
        let spec = format!("{}  disableLoadBalancer: true\n", virtual_servers(64));
        assert_eq!(found(&spec), []);
    }
}
