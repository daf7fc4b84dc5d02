//! Findings about a configuration and the interfaces of a node.

use cplb_config::{Diagnostic, Instance, Loaded, Severity, load};
use netlink_vip::{FoundInterface, InterfaceSelector};

fn eth0() -> FoundInterface {
    FoundInterface {
        name: "eth0".to_owned(),
        addresses: vec![
            ("10.0.0.11".parse().unwrap(), 24),
            ("fd00::11".parse().unwrap(), 64),
            ("fe80::11".parse().unwrap(), 64),
        ],
        ..FoundInterface::default()
    }
}

/// Chooses `eth0` unless another name is given, if it exists.
fn choose(instance: &Instance, interfaces: &[FoundInterface]) -> Option<String> {
    let name = match &instance.interface {
        InterfaceSelector::Name(name) => name.as_str(),
        _ => "eth0",
    };
    interfaces.iter().map(|interface| interface.name.clone()).find(|found| found == name)
}

fn found(loaded: &Loaded, interfaces: &[FoundInterface]) -> Vec<Diagnostic> {
    loaded.config.check_interfaces(interfaces, |instance| choose(instance, interfaces))
}

fn document(instance: &str) -> Loaded {
    let text = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  backends: {{static: [10.0.0.12]}}\n  vrrpInstances:\n  - {instance}\n"
    );
    load(&text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain()))
}

fn check(instance: &str, interfaces: &[FoundInterface]) -> Vec<(&'static str, String)> {
    let found = found(&document(instance), interfaces);
    assert!(found.iter().all(|finding| finding.severity == Severity::Warning));
    found.into_iter().map(|Diagnostic { rule, message, .. }| (rule, message)).collect()
}

#[test]
fn a_fitting_configuration_has_no_findings() {
    for instance in [
        "{virtualIPs: [10.0.0.100/24]}",
        "{virtualIPs: ['fd00::100/64', 'fe80::100/64', 10.0.0.100/16], interface: eth0}",
        "{virtualIPs: [10.0.0.100/32], interface: 52-54-00-12-34-56, unicastSourceIP: 10.0.0.11, unicastPeers: [10.0.0.12]}",
    ] {
        assert_eq!(check(instance, &[eth0()]), [], "{instance}");
    }
}

#[test]
fn a_virtual_ip_outside_the_subnets_of_its_interface_is_reported() {
    assert_eq!(
        check("{virtualIPs: [192.168.0.100/24, 10.0.1.100/16, 'fd01::1/64']}", &[eth0()]),
        [
            ("vip-subnet", "192.168.0.100/24 is outside the subnets of eth0: 10.0.0.0/24".to_owned()),
            ("vip-subnet", "10.0.1.100/16 is outside the subnets of eth0: 10.0.0.0/24".to_owned()),
            ("vip-subnet", "fd01::1/64 is outside the subnets of eth0: fd00::/64".to_owned()),
        ]
    );
    let mut v4_only = eth0();
    v4_only.addresses.truncate(1);
    let found = check("{virtualIPs: ['fd00::100/64']}", &[v4_only]);
    let link_local =
        "eth0 has no IPv6 link-local address, the source of IPv6 advertisements (RFC 9568 §5.1.2.1)";
    assert_eq!(
        found,
        [
            ("no-link-local", link_local.to_owned()),
            ("vip-subnet", "eth0 has no IPv6 subnet for fd00::100/64".to_owned())
        ]
    );
}

#[test]
fn an_address_of_the_node_is_no_virtual_ip_but_an_installed_one_is() {
    let found = check("{virtualIPs: [10.0.0.11/24]}", &[eth0()]);
    assert_eq!(found, [("vip-own-address", "10.0.0.11 is this node's own address on eth0".to_owned())]);
    let mut active = eth0();
    active.addresses.push(("10.0.0.100".parse().unwrap(), 32));
    assert_eq!(check("{virtualIPs: [10.0.0.100/24]}", &[active]), []);
}

#[test]
fn an_unknown_interface_is_reported_with_the_known_ones() {
    let loaded = document("{virtualIPs: [10.0.0.100/24], interface: eth1}");
    let loopback = FoundInterface { name: "lo".to_owned(), ..FoundInterface::default() };
    let report = loaded.document.report(found(&loaded, &[loopback.clone(), eth0()]));
    assert_eq!(
        report.plain(),
        "f.yaml:6:46: warning: there is no interface eth1 [vrrpInstances[0].interface]\n    \
         help: did you mean `eth0`? cplb run waits for the interface to appear\n"
    );
    let found = check(
        "{virtualIPs: [10.0.0.100/24], interface: '00:00:5e:00:53:01'}",
        std::slice::from_ref(&loopback),
    );
    assert_eq!(found, [("unknown-interface", "there is no interface 00:00:5e:00:53:01".to_owned())]);
    let found = check("{virtualIPs: [10.0.0.100/24], interface: enx001122334455-uplink}", &[eth0()]);
    let text =
        "there is no alternative interface name enx001122334455-uplink, and names have at most 15 characters";
    assert_eq!(found, [("unknown-interface", text.to_owned())]);
    let found = check("{virtualIPs: [10.0.0.100/24]}", &[loopback]);
    let text =
        "there is no default route to take the interface from, and none has the subnet of the virtual IPs";
    assert_eq!(found, [("unknown-interface", text.to_owned())]);
    let twins = ["eth1", "eth2"].map(|name| FoundInterface { name: name.to_owned(), ..eth0() });
    let found = check("{virtualIPs: [10.0.0.100/24]}", &twins);
    let text = "there is no default route, and several interfaces have the subnet of the virtual IPs";
    assert_eq!(found, [("unknown-interface", text.to_owned())]);
}

#[test]
fn findings_get_the_place_of_the_field_or_of_its_parent() {
    let loaded = document("{virtualIPs: [10.0.0.100/24, 10.9.0.100/24]}");
    let report = loaded.document.report(found(&loaded, &[eth0()]));
    let finding = &report.diagnostics[0];
    assert_eq!((finding.line(), finding.column(), finding.text.as_str()), (6, 34, "10.9.0.100/24"));
    let report = loaded.document.report(found(&loaded, &[]));
    let finding = &report.diagnostics[0];
    assert_eq!(
        (finding.path.as_str(), finding.line(), finding.column()),
        ("vrrpInstances[0].interface", 6, 5)
    );
}

#[test]
fn a_foreign_unicast_source_is_reported() {
    let found = check(
        "{virtualIPs: [10.0.0.100/24], unicastSourceIP: 10.0.0.13, unicastPeers: [10.0.0.12]}",
        &[eth0()],
    );
    assert_eq!(found, [("unicast-source", "10.0.0.13 is no address of eth0".to_owned())]);
}

#[test]
fn a_node_with_a_full_length_prefix_is_not_advised_to_add_an_address() {
    let mut routed = eth0();
    routed.addresses = vec![("10.0.0.11".parse().unwrap(), 32)];
    let loaded = document("{virtualIPs: [10.0.0.100/24]}");
    let report = loaded.document.report(found(&loaded, &[routed.clone()]));
    assert_eq!(
        report.plain(),
        "f.yaml:6:19: warning: eth0 has only IPv4 addresses of length /32, so other hosts do not look for 10.0.0.100/24 on its \
         link [vrrpInstances[0].virtualIPs[0]]\n    \
         help: let the network route the virtual IP to the link, or announce it otherwise\n"
    );
    routed.addresses = vec![("10.0.0.100".parse().unwrap(), 32)];
    let only_the_vip = check("{virtualIPs: [10.0.0.100/24]}", &[routed]);
    assert_eq!(only_the_vip, [("vip-subnet", "eth0 has no IPv4 subnet for 10.0.0.100/24".to_owned())]);
}

#[test]
fn a_vrf_that_the_proxy_does_not_listen_in_is_reported() {
    let member = FoundInterface { vrf: Some("red".to_owned()), ..eth0() };
    let found = check("{virtualIPs: [10.0.0.100/24]}", &[member]);
    let text = "eth0 is a member of the VRF red, and the proxy listens outside of VRFs: connections through it are refused";
    assert_eq!(found, [("vrf", text.to_owned())]);
}
