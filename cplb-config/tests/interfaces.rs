//! What a configuration says against the interfaces of a node.

use cplb_config::{Diagnostic, Loaded, ObservedInterface, Severity, load};

fn eth0() -> ObservedInterface {
    ObservedInterface {
        name: "eth0".to_owned(),
        mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        default_route: true,
        addresses: vec![
            ("10.0.0.11".parse().unwrap(), 24),
            ("fd00::11".parse().unwrap(), 64),
            ("fe80::11".parse().unwrap(), 64),
        ],
    }
}

fn document(instance: &str) -> Loaded {
    let text = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  backends: {{static: [10.0.0.12]}}\n  vrrpInstances:\n  - {instance}\n"
    );
    load(&text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain()))
}

fn check(instance: &str, interfaces: &[ObservedInterface]) -> Vec<(&'static str, String)> {
    let found = document(instance).config.check_interfaces(interfaces);
    assert!(found.iter().all(|finding| finding.severity == Severity::Warning));
    found.into_iter().map(|Diagnostic { rule, message, .. }| (rule, message)).collect()
}

#[test]
fn what_fits_is_silent() {
    for instance in [
        "{virtualIPs: [10.0.0.100/24]}",
        "{virtualIPs: ['fd00::100/64', 'fe80::100/64', 10.0.0.100/16], interface: eth0}",
        "{virtualIPs: [10.0.0.100/32], interface: 52-54-00-12-34-56, unicastSourceIP: 10.0.0.11, unicastPeers: [10.0.0.12]}",
    ] {
        assert_eq!(check(instance, &[eth0()]), [], "{instance}");
    }
}

#[test]
fn a_virtual_ip_outside_the_subnets_of_its_interface_is_told() {
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
    assert_eq!(found, [("vip-subnet", "eth0 has no IPv6 subnet for fd00::100/64".to_owned())]);
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
fn an_unknown_interface_is_told_with_those_there_are() {
    let loaded = document("{virtualIPs: [10.0.0.100/24], interface: eth1}");
    let loopback =
        ObservedInterface { name: "lo".to_owned(), mac: None, default_route: false, addresses: Vec::new() };
    let report = loaded.document.report(loaded.config.check_interfaces(&[loopback.clone(), eth0()]));
    assert_eq!(
        report.plain(),
        "f.yaml:6:46: warning: there is no interface eth1 [vrrpInstances[0].interface]\n    \
         help: did you mean `eth0`? cplb run waits for the interface to appear\n"
    );
    let found = check("{virtualIPs: [10.0.0.100/24], interface: '00:00:5e:00:53:01'}", &[eth0()]);
    assert_eq!(found, [("unknown-interface", "there is no interface 00:00:5e:00:53:01".to_owned())]);
    let found = check("{virtualIPs: [10.0.0.100/24]}", &[loopback]);
    assert_eq!(
        found,
        [("unknown-interface", "there is no default route to take the interface from".to_owned())]
    );
}

#[test]
fn findings_are_given_the_place_of_the_field_or_of_what_is_around_it() {
    let loaded = document("{virtualIPs: [10.0.0.100/24, 10.9.0.100/24]}");
    let report = loaded.document.report(loaded.config.check_interfaces(&[eth0()]));
    let finding = &report.diagnostics[0];
    assert_eq!((finding.line(), finding.column(), finding.text.as_str()), (6, 34, "10.9.0.100/24"));
    let report = loaded.document.report(loaded.config.check_interfaces(&[]));
    let finding = &report.diagnostics[0];
    assert_eq!(
        (finding.path.as_str(), finding.line(), finding.column()),
        ("vrrpInstances[0].interface", 6, 5)
    );
}

#[test]
fn a_foreign_unicast_source_is_told() {
    let found = check(
        "{virtualIPs: [10.0.0.100/24], unicastSourceIP: 10.0.0.13, unicastPeers: [10.0.0.12]}",
        &[eth0()],
    );
    assert_eq!(found, [("unicast-source", "10.0.0.13 is no address of eth0".to_owned())]);
}
