//! Marks, destinations and sysctls that follow from a configuration and the observed state.

use super::*;

fn config(spec: &str) -> Config {
    let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
    cplb_config::load(&text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain())).config
}

const TWO: &str = "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24, 'fd00::100/64']\n  backends: {static: [10.0.0.11]}\n  \
                   services: [{name: kube-apiserver, port: 6443}, {name: join-api, port: 9443}]\n  virtualServers:\n  ";

fn marks(spec: &str) -> BTreeMap<(IpAddr, u16), u32> {
    directed_ports(&config(spec)).iter().map(|d| ((d.vip, d.port.get()), d.mark.get())).collect()
}

#[test]
fn marks_are_distinct_and_do_not_depend_on_other_virtual_servers() {
    let both = marks(&format!("{TWO}- ipAddress: 10.0.0.100\n  - ipAddress: fd00::100\n"));
    assert_eq!(both.len(), 4);
    assert_eq!(both.values().collect::<BTreeSet<_>>().len(), 4);
    let reversed = marks(&format!("{TWO}- ipAddress: fd00::100\n  - ipAddress: 10.0.0.100\n"));
    assert_eq!(both, reversed, "whatever the order of the file");
    let one = marks(&format!("{TWO}- ipAddress: fd00::100\n"));
    assert!(one.iter().all(|(key, mark)| both[key] == *mark), "{one:x?} {both:x?}");
}

#[test]
fn virtual_servers_beyond_the_number_of_marks_are_left_out() {
    let services: String = (1..=65)
        .map(|port| format!("  - {{name: s{port}, port: {port}, bindPort: {}}}\n", 1000 + port))
        .collect();
    let spec = format!(
        "  services:\n{services}  virtualServers: [{{ipAddress: 10.0.0.100}}, {{ipAddress: 10.0.0.101}}]\n  \
         backends: {{static: [10.0.0.11]}}\n"
    );
    let config = config(&spec);
    let all = directed_ports(&config);
    assert_eq!((all.len(), lb_proxy::director_marks().count()), (127, cplb_config::MAX_IPVS_SERVICES));
    assert_eq!(all.iter().map(|directed| directed.mark).collect::<BTreeSet<_>>().len(), 127);
}

fn member(host: u8, weight: u32, state: BackendState) -> Member {
    let spares_sessions = state != BackendState::Down;
    Member { addr: SocketAddr::from(([10, 0, 0, host], 6443)), weight, state, spares_sessions }
}

fn weights(members: &[Member]) -> (Vec<(IpAddr, u32)>, Vec<bool>) {
    weights_where(members, &[])
}

/// The weights and the dead servers, with these probe results by host.
fn weights_where(members: &[Member], by_host: &[(u8, ProbeResult)]) -> (Vec<(IpAddr, u32)>, Vec<bool>) {
    let all = directed_ports(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: TUN}}\n")));
    let known = BTreeMap::from([("kube-apiserver".to_owned(), members.to_vec())]);
    let target = |host: u8| ProbeTarget {
        vip: ([10, 0, 0, 100], 6443).into(),
        server: [10, 0, 0, host].into(),
        tunnel: true,
    };
    let results = by_host.iter().map(|(host, result)| (target(*host), *result)).collect();
    let desired = desired(&all, &known, &results, |directed| directed.service == "kube-apiserver");
    let service = desired.services().next().unwrap();
    let weights = service.destinations().map(|it| (it.key.address, it.weight.0)).collect();
    let dead = members
        .iter()
        .map(|member| service.is_dead(&DestinationKey::new(member.addr.ip(), member.addr.port())))
        .collect();
    (weights, dead)
}

#[test]
fn a_down_server_is_excluded_unless_all_are_down() {
    use BackendState::{Down, Unknown, Up};
    let ip = |host: u8| IpAddr::from([10, 0, 0, host]);
    let members = [member(11, 1, Up), member(12, 3, Unknown), member(13, 1, Down)];
    assert_eq!(weights(&members), (vec![(ip(11), 1), (ip(12), 3)], vec![false, false, true]));
    let members = [member(11, 1, Down), member(12, 0, Down)];
    assert_eq!(weights(&members), (vec![(ip(11), 1), (ip(12), 0)], vec![false, false]));
}

#[test]
fn a_terminating_server_keeps_its_connections() {
    use BackendState::{Down, Terminating, Up};
    let refusing = Member { spares_sessions: true, ..member(13, 1, Down) };
    let members = [member(11, 1, Up), member(12, 1, Terminating), refusing];
    assert_eq!(weights(&members), (vec![([10, 0, 0, 11].into(), 1)], vec![false; 3]));
    assert_eq!(weights(&members[1..]).0.len(), 2, "better than nothing");
}

#[test]
fn a_server_that_refuses_the_vip_is_excluded_unless_all_refuse() {
    use BackendState::{Down, Up};
    let ip = |host: u8| IpAddr::from([10, 0, 0, host]);
    let members = [member(11, 1, Up), member(12, 1, Up), member(13, 1, Up)];
    let by_host = [(11, ProbeResult::Accepts), (12, ProbeResult::Refuses), (13, ProbeResult::Silent)];
    let (used, dead) = weights_where(&members, &by_host);
    assert_eq!(used, [(ip(11), 1)]);
    assert_eq!(dead, [false, false, true], "one that refuses keeps the connections that it has");
    let (used, _) = weights_where(&members, &by_host[..1]);
    assert_eq!(used, [(ip(11), 1)], "one that is known is better than one that is not");
    let (used, _) = weights_where(&members[1..], &by_host);
    assert_eq!(used, [(ip(12), 1), (ip(13), 1)], "better than nothing");
    let (used, _) = weights_where(&[member(11, 1, Down), member(13, 1, Up)], &by_host);
    assert_eq!(used, [(ip(13), 1)], "one that fails its checks is worse");
}

#[test]
fn nat_servers_are_not_probed() {
    let target = |kind: &str| {
        let all = directed_ports(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: {kind}}}\n")));
        all[0].probe_target(&member(11, 1, BackendState::Up)).map(|target| target.tunnel)
    };
    assert_eq!((target("NAT"), target("DR"), target("TUN")), (None, Some(false), Some(true)));
}

#[test]
fn servers_of_the_other_address_family_are_excluded() {
    let addr = "[fd00::11]:6443".parse().unwrap();
    let other = Member { addr, ..member(11, 1, BackendState::Up) };
    assert_eq!(weights(&[other]).0, []);
    let all = directed_ports(&config(&format!("{TWO}- ipAddress: 10.0.0.100\n")));
    assert!(
        !all[0].can_forward_to_any(&[other])
            && all[0].can_forward_to_any(&[other, member(11, 1, BackendState::Up)])
    );
    let reasons: Vec<_> = all[0].excluded(&[other], &ProbeResults::new()).map(|it| it.reason).collect();
    assert_eq!(reasons, ["is not of the virtual IP's address family"]);
}

#[test]
fn the_reason_of_a_down_server_includes_its_probe_result() {
    let all = directed_ports(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: TUN}}\n")));
    let member = member(11, 1, BackendState::Down);
    let results = ProbeResults::from([(all[0].probe_target(&member).unwrap(), ProbeResult::NotOnLink)]);
    let reasons: Vec<_> = all[0].excluded(&[member], &results).map(|it| it.reason).collect();
    assert!(reasons[0].starts_with("fails its health checks, and is on no link"), "{reasons:?}");
}

#[test]
fn algorithms_and_kinds_map_to_the_kernel_s_names() {
    for (written, scheduler) in [
        ("rr", SchedulerName::RR),
        ("wrr", SchedulerName::WRR),
        ("lc", SchedulerName::LC),
        ("wlc", SchedulerName::WLC),
        ("lblc", SchedulerName::LBLC),
        ("dh", SchedulerName::DH),
        ("sh", SchedulerName::SH),
        ("sed", SchedulerName::SED),
        ("nq", SchedulerName::NQ),
    ] {
        let all = directed_ports(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbAlgo: {written}}}\n")));
        assert_eq!(all[0].service().scheduler, scheduler);
    }
    for (kind, method) in [
        ("DR", ForwardMethod::DIRECT_ROUTE),
        ("NAT", ForwardMethod::MASQUERADE),
        ("TUN", ForwardMethod::TUNNEL),
    ] {
        let all = directed_ports(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: {kind}}}\n")));
        let desired = all[0].desired(&[member(11, 1, BackendState::Up)], &ProbeResults::new());
        let methods: Vec<_> = desired.destinations().map(|it| it.method).collect();
        assert_eq!(methods, [method], "{kind}");
    }
}

#[test]
fn konnectivity_has_no_persistence() {
    let spec = TWO.replace("{name: join-api, port: 9443}", "{name: konnectivity, port: 8132}");
    let all = directed_ports(&config(&format!("{spec}- ipAddress: 10.0.0.100\n")));
    let persistence: Vec<_> = all.iter().map(|it| (it.port.get(), it.persistence.map(|it| it.0))).collect();
    assert_eq!(persistence, [(6443, Some(360)), (8132, None)]);
}

#[test]
fn sysctls_are_only_switched_on_and_only_where_needed() {
    let of = |kind: &str, algorithm: &str| {
        let server = format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: {kind}, lbAlgo: {algorithm}}}\n");
        let all = sysctls(&directed_ports(&config(&server)));
        assert!(all.iter().all(|(_, value)| *value == "1"), "{all:?}");
        let names: BTreeSet<&str> = all.into_iter().map(|(name, _)| name).collect();
        ["conntrack", "sloppy_tcp"].map(|name| names.contains(name))
    };
    assert_eq!(of("NAT", "rr"), [true, false]);
    assert_eq!(of("DR", "sh"), [false, true]);
    assert_eq!(of("TUN", "wlc"), [false, false]);
}
