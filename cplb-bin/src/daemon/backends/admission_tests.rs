//! Addresses of every source pass through admission.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::daemon::backends::ClusterServers;

const KUBECONFIG: &str = "/k.conf";
const VIPS: [&str; 3] = ["10.0.0.100", "fd00::100", "10.0.0.200"];

/// Addresses that occur where a server is expected, usable and unusable ones.
fn address() -> impl Strategy<Value = IpAddr> {
    let text = select(vec![
        "10.0.0.11",
        "10.0.0.12",
        "10.0.0.13",
        "fd00::11",
        "fd00::12",
        "10.0.0.100",
        "10.0.0.200",
        "fd00::100",
        "::ffff:10.0.0.100",
        "::ffff:10.0.0.12",
        "0.0.0.0",
        "0.0.0.7",
        "::",
        "127.0.0.1",
        "127.0.1.1",
        "::1",
        "::ffff:127.0.0.1",
        "224.0.0.18",
        "ff02::12",
        "255.255.255.255",
        "240.0.0.1",
        "fe80::1",
        "169.254.0.9",
    ]);
    text.prop_map(|text| text.parse().unwrap())
}

fn server() -> impl Strategy<Value = SocketAddr> {
    let port = select(vec![6443_u16, 6444, 6445, 8132, 7443, 0]);
    (address(), port, 0_u32..3).prop_map(|(ip, port, scope)| match ip {
        IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, port, scope, scope)),
        ip => SocketAddr::new(ip, port),
    })
}

/// A file with or without virtual IPs, on ports that may collide.
fn file() -> impl Strategy<Value = String> {
    let port = || select(vec![6443_u16, 6444, 6445, 8132]);
    let service = (option::of(port()), option::of(port()));
    let servers =
        vec(select(vec!["10.0.0.11", "10.0.0.12:6443", "host-a", "host-b:6444", "127.0.0.1"]), 0..3);
    (any::<bool>(), any::<bool>(), service.clone(), service, servers).prop_map(
        |(vips, by_hand, first, second, servers)| {
            let ports = |(bind, backend): (Option<u16>, Option<u16>)| {
                let bind = bind.map_or_else(String::new, |port| format!(", bindPort: {port}"));
                bind + &backend.map_or_else(String::new, |port| format!(", backendPort: {port}"))
            };
            let mut text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n".to_owned();
            if vips {
                text += "  vrrpInstances: [{virtualIPs: [10.0.0.100/24, 'fd00::100/64']}]\n";
            }
            if by_hand {
                text += "  virtualServers: [{ipAddress: 10.0.0.200, lbKind: NAT}]\n";
            }
            text += &format!("  services:\n  - {{name: kube-apiserver, port: 6443{}}}\n", ports(first));
            text += &format!("  - {{name: other, port: 9443{}}}\n", ports(second));
            text + &format!(
                "  backends: {{static: [{}], kubernetes: {{kubeconfig: {KUBECONFIG}}}}}\n",
                servers.join(", ")
            )
        },
    )
}

/// Resolved backends beside the file: names, discovered or remembered servers, addresses of the node.
fn names() -> impl Strategy<Value = ResolvedBackends> {
    (vec(address(), 0..4), vec(address(), 0..4), btree_set(server(), 0..6), vec(address(), 0..4)).prop_map(
        |(a, b, found, own)| {
            let clusters = BTreeMap::from([(
                KUBECONFIG.into(),
                ClusterServers { discovered: found, local_candidates: own, identity: None },
            )]);
            let resolved = BTreeMap::from([("host-a".to_owned(), a), ("host-b".to_owned(), b)]);
            ResolvedBackends::of(resolved)
                .with_clusters(clusters)
                .on_node(BTreeSet::from([[10, 0, 0, 11].into()]))
        },
    )
}

/// An independent formulation of the rule that ignores the source of the address.
fn is_harmless(
    server: SocketAddr,
    config: &Config,
    service: &cplb_config::Service,
) -> Result<(), &'static str> {
    let ip = server.ip();
    let is_virtual = VIPS.iter().any(|vip| vip.parse::<IpAddr>() == Ok(ip)) && {
        config.is_virtual_ip(ip) || config.virtual_servers.iter().any(|server| server.address == ip)
    };
    let number = service.bind_port.number();
    let bound = config.services.iter().any(|service| service.bind_port.number() == server.port());
    let is_this_node = ip.is_loopback() || ip == IpAddr::from([10, 0, 0, 11]);
    let on_own_port = server.port() == service.backend_port.number() && server.port() == number;
    match ip {
        _ if is_virtual => Err("it is a virtual address"),
        _ if bound && is_this_node => Err("it is this node's proxy"),
        _ if bound && !config.instances.is_empty() && !on_own_port => Err("it is a peer's proxy"),
        _ if server.port() == 0 => Err("it has no port"),
        IpAddr::V4(v4) if !(1..=223).contains(&v4.octets()[0]) => Err("it is no unicast address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err("it is a mapped address"),
        IpAddr::V6(v6) if v6.is_multicast() || v6.is_unspecified() => Err("it is no unicast address"),
        IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80 => Err("it has no link"),
        _ => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_source_yields_a_proxy_a_virtual_ip_or_an_unusable_address(
        text in file(),
        names in names(),
        given in vec(server(), 0..3),
    ) {
        // Invalid files are refused when they are loaded.
        let Ok(loaded) = cplb_config::load(&text, "f.yaml") else { return Ok(()) };
        let mut config = loaded.config;
        for server in given {
            if let Ok(backend) = server.to_string().parse() {
                let _ = config.add_backend(backend);
            }
        }
        let all = admit(&config, &names);
        for (service, backends) in &all.services {
            for backend in backends {
                let harmless = is_harmless(backend.addr, &config, service);
                prop_assert!(harmless.is_ok(), "{}: {} in {text}", backend.addr, harmless.unwrap_err());
                if let SocketAddr::V6(v6) = backend.addr {
                    prop_assert_eq!((v6.flowinfo(), v6.scope_id()), (0, 0));
                }
            }
        }
    }
}

/// The property above would hold without any backend, too.
#[test]
fn a_usable_address_of_each_source_becomes_a_backend() {
    let text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  \
                vrrpInstances: [{virtualIPs: [10.0.0.100/24]}]\n  \
                backends: {static: [10.0.0.1, host-a], kubernetes: {kubeconfig: /k.conf}}\n";
    let mut config = cplb_config::load(text, "f.yaml").unwrap().config;
    config.add_backend("10.0.0.3".parse().unwrap()).unwrap();
    let found = BTreeSet::from(["10.0.0.4:6443".parse().unwrap()]);
    let own = vec![IpAddr::from(Ipv6Addr::LOCALHOST)];
    let clusters = BTreeMap::from([(
        KUBECONFIG.into(),
        ClusterServers { discovered: found, local_candidates: own, identity: None },
    )]);
    let names = ResolvedBackends::of(BTreeMap::from([("host-a".to_owned(), vec![[10, 0, 0, 2].into()])]))
        .with_clusters(clusters);
    let all = admit(&config, &names);
    let used: Vec<String> = all.services[0].1.iter().map(|it| it.addr.to_string()).collect();
    assert_eq!(used, ["10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443", "10.0.0.4:6443", "[::1]:6443"]);
    assert!(all.refusals.is_empty());
}
