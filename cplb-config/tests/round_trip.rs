//! The effective document is complete: written and loaded again, a configuration is the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use cplb_config::{
    AuthHmac, Backend, Backends, Config, HmacKey, Host, Instance, LbAlgorithm, LbKind, Port, Redact, Service,
    Unicast, UnicastPeers, VirtualServer, load,
};
use lb_proxy::{Balance, HealthCheck, HealthKind};
use netlink_vip::{AddressLabel, InterfaceSelector, VipAddress};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::FileFailurePersistence;
use vrrp::hmac::{AntiReplay, Key, KeyId, Mode};
use vrrp::router::Preempt;
use vrrp::{AdvertInterval, AuthPass, Priority, Version, Vrid};

/// Text that some YAML readers take for another type.
fn awkward() -> impl Strategy<Value = String> {
    let words = select(vec![
        "yes", "No", "on", "y", "N", "true", "null", "~", "0123", "0x10", "0o7", "0b1", "1_000", "1e3",
        "1.50", ".5", "-1", "+1", ".inf", ".NaN", "<<", "=", "-", "?", ":", "# a", "a #b", "a: b", "- a",
        "*a", "&a", "!a", "%a", "@a", "`a", "'", "\"", "\\", "{a", "[a", "a,b", "|", ">", " a", "a ",
        "2001-1-1", "12:30", "é", "𝄞", "\u{a0}", "---", "...", "1:2:3",
    ]);
    prop_oneof![words.prop_map(str::to_owned), "[ -~]{1,8}"]
}

fn ipv4() -> impl Strategy<Value = IpAddr> {
    (1_u8..223, any::<u8>(), any::<u8>(), any::<u8>())
        .prop_map(|(a, b, c, d)| IpAddr::V4(Ipv4Addr::new(if a == 127 { 126 } else { a }, b, c, d)))
}

fn ipv6() -> impl Strategy<Value = IpAddr> {
    (0x2000_u16..0xfe00, any::<[u16; 7]>())
        .prop_map(|(a, [b, c, d, e, f, g, h])| IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)))
}

fn interface() -> impl Strategy<Value = InterfaceSelector> {
    prop_oneof![
        Just(InterfaceSelector::DefaultRoute),
        any::<[u8; 6]>().prop_map(InterfaceSelector::Mac),
        select(vec![
            "eth0",
            "bond0.17",
            "yes",
            "0123",
            "1e3",
            "~",
            "enp0s31f6",
            "wg-0",
            "#",
            "null",
            "5254.0012.345"
        ])
        .prop_map(|name| InterfaceSelector::Name(name.to_owned())),
    ]
}

fn password() -> impl Strategy<Value = AuthPass> {
    awkward()
        .prop_filter("1 to 8 bytes without control characters", |text| {
            (1..=8).contains(&text.len()) && !text.chars().any(char::is_control)
        })
        .prop_map(|text| AuthPass::new(text).unwrap())
}

/// The parts of an instance that are chosen before they are made to fit each other.
type Draft = (
    (Vec<IpAddr>, Vec<IpAddr>, u8, u8),
    (InterfaceSelector, (Option<AuthPass>, Option<AuthPass>, Option<AuthHmac>), bool, u16),
    (u8, Preempt, u32),
    Option<(bool, Vec<IpAddr>, Vec<IpAddr>)>,
);

fn draft() -> impl Strategy<Value = Draft> {
    let preempt = select(vec![Preempt::Never, Preempt::Degraded, Preempt::Always]);
    (
        (vec(ipv4(), 0..3), vec(ipv6(), 0..3), 1_u8..=32, 1_u8..=128),
        (
            interface(),
            (option::of(password()), option::of(password()), option::of(hmac())),
            any::<bool>(),
            1_u16..4096,
        ),
        (50_u8..=254, preempt, 1..u32::MAX),
        option::of((any::<bool>(), vec(ipv4(), 1..4), vec(ipv6(), 1..4))),
    )
}

fn hmac() -> impl Strategy<Value = AuthHmac> {
    let inline = vec(any::<u8>(), 32..=64).prop_map(|bytes| HmacKey::Inline(Key::new(&bytes).unwrap()));
    let file = Just(HmacKey::File("/etc/cplb/vrrp key.txt".into()));
    let keys =
        btree_map((1..=u8::MAX).prop_map(|id| KeyId::new(id).unwrap()), prop_oneof![inline, file], 1..=4);
    let mode = select(vec![Mode::ReceiveOnly, Mode::Permissive, Mode::Enforce]);
    let anti_replay = select(vec![AntiReplay::Time, AntiReplay::Monotonic]);
    (keys, any::<Index>(), mode, anti_replay, 1000_u64..=300_000).prop_map(
        |(keys, active, mode, anti_replay, window)| AuthHmac {
            active: *active.get(&keys.keys().copied().collect::<Vec<_>>()),
            keys,
            mode,
            anti_replay,
            window: Duration::from_millis(window),
        },
    )
}

fn instance(vrid: u8, draft: Draft, used: &mut BTreeSet<IpAddr>) -> Option<Instance> {
    let (
        (v4, v6, v4_length, v6_length),
        (interface, (auth_pass, previous, auth_hmac), v3, number),
        (priority, preempt, label),
        unicast,
    ) = draft;
    let vip = |ip: IpAddr| VipAddress::new(ip, if ip.is_ipv4() { v4_length } else { v6_length }).unwrap();
    let virtual_ips: Vec<VipAddress> =
        v6.into_iter().chain(v4).filter(|ip| used.insert(*ip)).map(vip).collect();
    let has = |v4: bool| virtual_ips.iter().any(|vip| vip.ip().is_ipv4() == v4);
    if virtual_ips.is_empty() {
        return None;
    }
    let enforced = auth_hmac.as_ref().is_some_and(|hmac| hmac.mode == Mode::Enforce);
    let auth_pass = auth_pass.filter(|_| !enforced);
    let version = if v3 || !has(true) { Version::V3 } else { Version::V2 };
    let interval = match version {
        Version::V3 => Duration::from_millis(u64::from(number.min(4095)) * 10),
        Version::V2 => Duration::from_secs(u64::from(number) % if has(false) { 40 } else { 255 } + 1),
    };
    let unicast = unicast.and_then(|(with_source, v4, v6)| {
        let families = v4.into_iter().filter(|_| has(true)).chain(v6.into_iter().filter(|_| has(false)));
        let peers: Vec<IpAddr> = families.filter(|ip| used.insert(*ip)).collect();
        let decides: Vec<IpAddr> = peers.iter().copied().filter(|ip| ip.is_ipv4() == has(true)).collect();
        let source = with_source.then(|| decides.first().copied()).flatten();
        let peers: Vec<IpAddr> = peers.into_iter().filter(|ip| Some(*ip) != source).collect();
        let reaches = peers.iter().any(|ip| ip.is_ipv4() == has(true));
        // Those without peers find them.
        let peers = if peers.is_empty() { UnicastPeers::Auto } else { UnicastPeers::Listed(peers) };
        (reaches || peers == UnicastPeers::Auto).then_some(Unicast { source, peers })
    });
    Some(Instance {
        virtual_ips,
        interface,
        vrid: Vrid::new(vrid).unwrap(),
        version,
        advert_interval: AdvertInterval::new(version, interval).unwrap(),
        priority: Priority::new(priority).unwrap(),
        preempt,
        auth_pass,
        auth_pass_previous: previous.filter(|_| auth_pass.is_some()).filter(|it| Some(*it) != auth_pass),
        auth_hmac,
        unicast,
        address_label: AddressLabel::new(label).unwrap(),
    })
}

fn port() -> impl Strategy<Value = Port> {
    (1..=u16::MAX).prop_map(|number| Port::new(number).unwrap())
}

fn host() -> impl Strategy<Value = Host> {
    let name = select(vec![
        "controller-0.k0s.lab",
        "yes",
        "no",
        "y",
        "null",
        "a1",
        "x_y.example.com.",
        "e1",
        "0x10g",
    ]);
    prop_oneof![
        ipv4().prop_map(Host::Address),
        ipv6().prop_map(Host::Address),
        name.prop_map(|name| Host::Name(name.to_owned())),
    ]
}

fn backend() -> impl Strategy<Value = Backend> {
    (host(), option::of(port()), 0_u32..=256, option::of(awkward()))
        .prop_map(|(host, port, weight, name)| Backend { host, port, weight, name })
}

fn backends() -> impl Strategy<Value = Backends> {
    let path = select(vec!["/var/lib/k0s/pki/admin.conf", "/a b", "/ # c", "/'", "/é"]);
    (vec(backend(), 0..4), option::of(path.prop_map(Into::into)))
        .prop_map(|(fixed, kubeconfig)| Backends { fixed, kubeconfig })
}

fn health() -> impl Strategy<Value = HealthCheck> {
    let statuses = prop::sample::subsequence(vec![200_u16, 204, 401, 503], 0..=4);
    let https =
        ("/[!-\"$-~]{0,12}", statuses).prop_map(|(path, statuses)| HealthKind::Https { path, statuses });
    let duration = || {
        prop_oneof![
            (10_000_000_u64..=3_600_000_000_000).prop_map(Duration::from_nanos),
            (1_u64..=3600).prop_map(Duration::from_secs),
            (10_u64..=60_000).prop_map(Duration::from_millis),
        ]
    };
    (
        prop_oneof![Just(HealthKind::Tcp), Just(HealthKind::Tls), https],
        duration(),
        duration(),
        1_u32..=100,
        1_u32..=100,
    )
        .prop_map(|(kind, interval, timeout, rise, fall)| HealthCheck {
            kind,
            interval,
            timeout,
            rise,
            fall,
        })
}

fn service() -> impl Strategy<Value = Service> {
    let name = prop_oneof![
        select(vec!["kube-apiserver", "yes", "0123", "1e3", "null", "-", "."]).prop_map(str::to_owned),
        "[a-z0-9_.-]{1,63}"
    ];
    let balance =
        select(vec![Balance::RoundRobin, Balance::LeastConnections, Balance::Weighted, Balance::SourceHash]);
    // Konnectivity's servers do not go with every balance.
    let server_port = port().prop_filter("not konnectivity", |port| port.number() != 8132);
    let limit = || option::of((1..=u32::MAX).prop_map(|limit| NonZeroU32::new(limit).unwrap()));
    let limits = (limit(), limit());
    (name, (port(), port(), server_port), option::of(backends()), balance, health(), limits).prop_map(
        |(
            name,
            (port, bind_port, backend_port),
            backends,
            balance,
            health,
            (max_connections, max_connections_per_client),
        )| Service {
            name,
            port,
            bind_port,
            backend_port,
            backends,
            balance,
            health,
            max_connections,
            max_connections_per_client,
        },
    )
}

fn virtual_server() -> impl Strategy<Value = VirtualServer> {
    let algorithms: Vec<LbAlgorithm> = LbAlgorithm::WORDS.iter().map(|(_, value)| *value).collect();
    let kinds: Vec<LbKind> = LbKind::WORDS.iter().map(|(_, value)| *value).collect();
    (
        prop_oneof![ipv4(), ipv6()],
        1..=u64::from(u32::MAX),
        select(algorithms),
        select(kinds),
        option::of(1_u64..=2_678_400),
    )
        .prop_map(|(address, microseconds, algorithm, kind, persistence)| VirtualServer {
            address,
            delay_loop: Duration::from_micros(microseconds),
            algorithm,
            kind,
            persistence_timeout: persistence.map(Duration::from_secs),
        })
}

/// Drops values that a rule between fields would refuse.
fn fit(config: &mut Config, used: &BTreeSet<IpAddr>) {
    let (mut names, mut ports, mut addresses) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    config.virtual_servers.retain(|server| addresses.insert(server.address));
    config.services.retain(|service| {
        names.insert(service.name.clone())
            && (service.port == service.bind_port || ports.insert(service.port))
            && ports.insert(service.bind_port)
    });
    // A proxy listens on a bind port.
    let bound: BTreeSet<Port> = config.services.iter().map(|service| service.bind_port).collect();
    config.services.retain(|service| !bound.contains(&service.backend_port));
    config.status_listen = config
        .status_listen
        .filter(|listen| Port::new(listen.port()).is_some_and(|port| !ports.contains(&port)));
    let mut keeps_ports = config.services.iter().all(|service| service.backend_port == service.port);
    let shared = config.services.iter().filter(|service| service.backends.is_none()).count();
    let own = config.services.iter_mut().filter_map(|service| service.backends.as_mut());
    for backend in config.backends.fixed.iter_mut().filter(|_| shared > 1) {
        backend.port = None;
    }
    for backends in own.chain([&mut config.backends]) {
        // Only NAT changes ports.
        keeps_ports &= backends.fixed.iter().all(|backend| backend.port.is_none());
        let mut seen = BTreeSet::new();
        backends.fixed.retain(|backend| backend.port.is_none_or(|port| !bound.contains(&port)));
        backends.fixed.retain(|backend| match &backend.host {
            Host::Address(ip) if used.contains(ip) => false,
            host => seen.insert((host.clone(), backend.port)),
        });
    }
    let nat = config.virtual_servers.iter_mut().filter(|_| !keeps_ports);
    nat.for_each(|server| server.kind = LbKind::Nat);
    let longest = config.virtual_servers.iter().map(|server| server.delay_loop).min();
    if let Some(longest) = longest.filter(|_| !config.disable_load_balancer) {
        for service in &mut config.services {
            service.health.interval = service.health.interval.min(longest.max(Duration::from_millis(10)));
        }
    }
}

fn config() -> impl Strategy<Value = Config> {
    let status = option::of((prop_oneof![ipv4(), ipv6()], 1..=u16::MAX).prop_map(Into::into));
    (
        vec(draft(), 0..4),
        vec(virtual_server(), 0..3),
        any::<[bool; 2]>(),
        (port(), option::of(prop_oneof![ipv4(), ipv6()]), option::of(host())),
        vec(service(), 0..4),
        backends(),
        status,
    )
        .prop_map(
            |(
                drafts,
                virtual_servers,
                [ipvs_sync, disable_load_balancer],
                (proxy_bind_port, bind_address, external_address),
                services,
                backends,
                status_listen,
            )| {
                let mut used = BTreeSet::new();
                let instances = (100_u8..)
                    .zip(drafts)
                    .filter_map(|(vrid, draft)| instance(vrid, draft, &mut used))
                    .collect();
                let mut config = Config {
                    instances,
                    virtual_servers,
                    ipvs_sync,
                    disable_load_balancer,
                    proxy_bind_port,
                    bind_address,
                    external_address,
                    services,
                    backends,
                    status_listen,
                };
                fit(&mut config, &used);
                config
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/round_trip.proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_written_configuration_loads_to_itself(config in config()) {
        let yaml = config.to_native_yaml(Redact::Nothing).unwrap();
        match load(&yaml, "effective.yaml") {
            Ok(loaded) => prop_assert_eq!(loaded.config, config, "{}", yaml),
            Err(errors) => prop_assert!(false, "{}\n{yaml}", errors.report().plain()),
        }
    }
}
