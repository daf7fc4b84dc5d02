//! The servers of a configuration, which never include a proxy of its own.

use cplb_config::{Config, Redact, RefusedBackend, load};

fn config(text: &str) -> Config {
    load(text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain())).config
}

fn native(spec: &str) -> Config {
    config(&format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}"))
}

fn shared(config: &Config) -> Vec<String> {
    config.backends.fixed.iter().map(ToString::to_string).collect()
}

fn k0sctl(hosts: &str) -> Config {
    config(&format!(
        "apiVersion: k0sctl.k0sproject.io/v1beta1\nkind: Cluster\nspec:\n  hosts:\n{hosts}  k0s:\n    config:\n      spec:\n        network:\n          controlPlaneLoadBalancing:\n            keepalived:\n              vrrpInstances:\n              - virtualIPs: [10.0.0.100/24, 'fd00::100/64']\n                authPass: Example\n"
    ))
}

const VIP: &str = "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24, 'fd00::100/64']\n";

#[test]
fn virtual_ips_are_no_servers_in_any_form() {
    let listed = "[10.0.0.11, 10.0.0.100, '[::ffff:10.0.0.100]:6443', '10.0.0.100:7443', 'fd00::100', 'fd00:0::100:0:0']";
    let spec = format!("{VIP}  backends: {{static: {listed}}}\n");
    assert_eq!(shared(&native(&spec)), ["10.0.0.11", "fd00::100:0:0"]);
    let spec =
        format!("{VIP}  services:\n  - name: api\n    port: 6443\n    backends: {{static: {listed}}}\n");
    let config = native(&spec);
    let own = &config.backends_of(&config.services[0]).fixed;
    assert_eq!(own.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.11", "fd00::100:0:0"]);
    let hosts = "  - {role: controller, privateAddress: 10.0.0.11}\n  - {role: controller, ssh: {address: 10.0.0.100}}\n  \
                 - {role: controller+worker, openSSH: {address: '::ffff:10.0.0.100'}}\n";
    assert_eq!(shared(&k0sctl(hosts)), ["10.0.0.11"]);
}

#[test]
fn servers_of_the_command_line_are_compared_too() {
    let mut config = native(&format!("{VIP}  backends: {{static: [10.0.0.11]}}\n"));
    let mut add = |text: &str| config.add_backend(text.parse().unwrap()).map_err(|error| error.to_string());
    assert_eq!(add("10.0.0.12"), Ok(()));
    assert_eq!(add("10.0.0.12"), Ok(()), "twice is once");
    assert_eq!(add("controller-3"), Ok(()));
    for vip in ["10.0.0.100", "[::ffff:10.0.0.100]:6443", "fd00::100"] {
        assert!(add(vip).unwrap_err().contains("is a virtual IP of this configuration"), "{vip}");
    }
    for proxy in ["127.0.0.1:6444", "[::1]:6444", "localhost:6444", "10.0.0.13:6444", "controller-4:6444"] {
        assert!(add(proxy).unwrap_err().contains("where a proxy of this configuration listens"), "{proxy}");
    }
    assert_eq!(add("127.0.0.1"), Ok(()));
    assert_eq!(add("10.0.0.13:6445"), Ok(()));
    assert_eq!(shared(&config), ["10.0.0.11", "10.0.0.12", "controller-3", "127.0.0.1", "10.0.0.13:6445"]);
    assert!(config.is_virtual_ip("::ffff:10.0.0.100".parse().unwrap()));
    assert!(!config.is_virtual_ip("10.0.0.11".parse().unwrap()));
}

#[test]
fn a_port_for_several_services_is_refused_from_the_command_line_too() {
    let services = "  services:\n  - {name: a, port: 6443}\n  - {name: b, port: 8132}\n";
    let mut config = native(&format!("{services}  backends: {{static: [10.0.0.11]}}\n"));
    let refused = config.add_backend("10.0.0.12:6443".parse().unwrap());
    assert!(matches!(refused, Err(RefusedBackend::SharedPort(_))), "{refused:?}");
    assert_eq!(config.add_backend("10.0.0.12".parse().unwrap()), Ok(()));
}

#[test]
fn the_command_line_cannot_send_a_proxy_to_another_services_proxy() {
    let services = "  services:\n  - {name: a, port: 6443}\n  - {name: b, port: 8132, backendPort: 8133, backends: {static: [10.0.0.11]}}\n";
    let mut config = native(services);
    let refused = config.add_backend("10.0.0.12:6445".parse().unwrap());
    assert!(matches!(refused, Err(RefusedBackend::Proxy(_))), "{refused:?}");
    assert_eq!(config.add_backend("10.0.0.12:8132".parse().unwrap()), Ok(()));
}

#[test]
fn a_plain_load_balancer_may_listen_on_its_servers_port() {
    let spec = "  services: [{name: api, port: 6443, bindPort: 6443}]\n";
    let mut plain = native(spec);
    assert_eq!(plain.add_backend("10.0.0.11".parse().unwrap()), Ok(()));
    let refused = plain.add_backend("127.0.0.1".parse().unwrap());
    assert!(matches!(refused, Err(RefusedBackend::Proxy(_))), "{refused:?}");
    let mut on_controllers = native(&format!("{VIP}{spec}"));
    let refused = on_controllers.add_backend("10.0.0.11".parse().unwrap());
    assert!(matches!(refused, Err(RefusedBackend::Proxy(_))), "{refused:?}");
    assert_eq!(on_controllers.add_backend("10.0.0.11:7443".parse().unwrap()), Ok(()));
}

#[test]
fn a_server_of_the_command_line_that_nothing_uses_is_refused() {
    let own = "  services:\n  - {name: a, port: 6443, backends: {static: [10.0.0.11]}}\n";
    for spec in [own, "  services: []\n", "  backends: {static: [10.0.0.11]}\n  disableLoadBalancer: true\n"]
    {
        let refused = native(spec).add_backend("10.0.0.12".parse().unwrap());
        assert!(matches!(refused, Err(RefusedBackend::Unused(_))), "{spec}: {refused:?}");
    }
}

/// A virtual IP of each family, balanced by IPVS.
fn ipvs(kind: &str, more: &str) -> Config {
    native(&format!(
        "{VIP}  virtualServers:\n  - {{ipAddress: 10.0.0.100, lbKind: {kind}}}\n  - {{ipAddress: 'fd00::100', lbKind: {kind}}}\n{more}"
    ))
}

#[test]
fn a_port_that_ipvs_cannot_change_is_refused_from_the_command_line_too() {
    for kind in ["DR", "TUN"] {
        let mut config = ipvs(kind, "");
        let refused = config.add_backend("10.0.0.12:7443".parse().unwrap()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!(
                "lbKind {kind} cannot change the port: connections to 10.0.0.100 on port 6443 arrive on port 6443 of a server, \
                 not on that of 10.0.0.12:7443; leave the port out, or write `lbKind: NAT`"
            )
        );
        assert_eq!(config.add_backend("10.0.0.12:6443".parse().unwrap()), Ok(()));
    }
    assert_eq!(ipvs("NAT", "").add_backend("10.0.0.12:7443".parse().unwrap()), Ok(()));
}

#[test]
fn ipvs_directs_to_no_loopback_address_of_the_command_line() {
    for kind in ["DR", "NAT"] {
        for loopback in ["127.0.0.1", "::1", "localhost"] {
            let refused = ipvs(kind, "").add_backend(loopback.parse().unwrap());
            assert!(matches!(refused, Err(RefusedBackend::Loopback(_))), "{refused:?}");
        }
    }
    let mut v6 = native(&format!("{VIP}  virtualServers: [{{ipAddress: 'fd00::100'}}]\n"));
    assert_eq!(v6.add_backend("127.0.0.1".parse().unwrap()), Ok(()), "the proxy's only");
}

/// Every backend of the command line could have been written in the file.
#[test]
fn the_effective_configuration_with_servers_of_the_command_line_loads_to_itself() {
    let listed = "  backends: {static: [{address: 10.0.0.11, weight: 3, name: first}, '10.0.0.12:6443']}\n";
    let own = "  services:\n  - {name: a, port: 6443}\n  - {name: b, port: 8132, backends: {static: [10.0.0.11]}}\n";
    let several = "  services:\n  - {name: a, port: 6443}\n  - {name: b, port: 8132}\n";
    let configs = [
        native(listed),
        native(several),
        native("  services: [{name: api, port: 6443, bindPort: 6443}]\n"),
        ipvs("DR", listed),
        ipvs("NAT", listed),
        ipvs("TUN", own),
        ipvs("DR", several),
        ipvs("DR", "  disableLoadBalancer: true\n"),
        ipvs("NAT", "  services: [{name: api, port: 443, backendPort: 6443}]\n"),
    ];
    let servers = [
        "10.0.0.11",
        "10.0.0.12",
        "10.0.0.12:6443",
        "10.0.0.12:6444",
        "10.0.0.12:7443",
        "10.0.0.100",
        "fd00::11",
        "[fd00::11]:8132",
        "127.0.0.1",
        "::1",
        "localhost",
        "localhost:6443",
        "controller-1",
    ];
    let mut taken = 0;
    for config in configs {
        for server in servers {
            let mut config = config.clone();
            taken += usize::from(config.add_backend(server.parse().unwrap()).is_ok());
            let written = config.to_native_yaml(Redact::Nothing).unwrap();
            let again = load(&written, "effective.yaml");
            let again =
                again.unwrap_or_else(|errors| panic!("{server}: {}\n{written}", errors.report().plain()));
            assert_eq!(again.config, config, "{server}\n{written}");
        }
    }
    assert!(taken > 40, "{taken} were taken");
}

#[test]
fn a_controllers_private_address_comes_first_then_a_literal_then_a_name() {
    let hosts = "  - {role: controller, privateAddress: 10.0.0.11, ssh: {address: 192.0.2.1}}
  - {role: controller, ssh: {address: 192.0.2.2}}
  - {role: controller, openSSH: {address: 'fd00::13'}}
  - {role: controller, ssh: {address: jump-host}, openSSH: {address: 192.0.2.4}}
  - {role: controller, ssh: {address: controller-5.lab}}
  - {role: controller, privateAddress: 10.0.0.16, ssh: {address: controller-6.lab}}
  - {role: worker, ssh: {address: 192.0.2.7}}
  - {role: controller, reset: true, ssh: {address: 192.0.2.8}}
";
    let config = k0sctl(hosts);
    assert_eq!(
        shared(&config),
        ["10.0.0.11", "192.0.2.2", "fd00::13", "192.0.2.4", "controller-5.lab", "10.0.0.16"]
    );
    let named: Vec<_> = config.backends.fixed.iter().map(|backend| backend.name.as_deref()).collect();
    assert_eq!(named, [None, None, None, Some("jump-host"), None, Some("controller-6.lab")]);
}

#[test]
fn a_common_https_check_is_for_the_api_server_only() {
    let kinds = |spec: &str| -> Vec<String> {
        native(spec).services.iter().map(|service| service.health.kind.to_string()).collect()
    };
    let three = "  backends: {static: [10.0.0.11]}\n  services:\n  - {name: kube-apiserver, port: 6443}\n  - {name: konnectivity, port: 8132}\n  \
                 - {name: join-api, port: 9443, healthCheck: {type: tcp}}\n";
    let one = "  backends: {static: [10.0.0.11]}\n  services:\n  - {name: api, port: 6443}\n";
    assert_eq!(kinds(three), ["https /readyz", "tls", "tcp"]);
    assert_eq!(
        kinds(&format!("{three}  healthCheck: {{type: https, path: /livez}}\n")),
        ["https /livez", "tls", "tcp"]
    );
    assert_eq!(kinds(&format!("{three}  healthCheck: {{type: tcp}}\n")), ["tcp", "tcp", "tcp"]);
    assert_eq!(kinds(one), ["https /readyz"]);
    assert_eq!(kinds(&format!("{one}  healthCheck: {{path: /healthz}}\n")), ["https /healthz"]);
}
