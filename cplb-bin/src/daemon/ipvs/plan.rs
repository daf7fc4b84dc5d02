//! What IPVS should have, from the configuration and what is known at the moment. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};

use cplb_config::{Config, LbAlgorithm, LbKind, VirtualServer};
use ipvs::reconcile::{Desired, DesiredService};
use ipvs::{
    AddressFamily, Destination, DestinationKey, ForwardMethod, SchedulerName, Seconds, Service, ServiceKey,
    Weight,
};
use lb_proxy::BackendState;
use lb_proxy::nft::{Director, Reach};
use vrrp::runner::InstanceId;

use super::prober::{ProbeResult, ProbeResults, ProbeTarget};

/// One port of one virtual address, balanced by one IPVS service that matches a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directed {
    pub(crate) vip: IpAddr,
    pub(crate) port: NonZeroU16,
    /// The same on every node with this configuration: connections that are kept in step carry it.
    pub(crate) mark: NonZeroU32,
    /// Name of the balanced service, whose health checks decide.
    pub(crate) service: String,
    /// Who moves the address; `None` is somebody else.
    pub(crate) instance: Option<InstanceId>,
    pub(crate) algorithm: LbAlgorithm,
    pub(crate) kind: LbKind,
    pub(crate) persistence: Option<Seconds>,
}

/// A server, as the health checks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) addr: SocketAddr,
    pub(crate) weight: u32,
    pub(crate) state: BackendState,
    /// Whether its connections may go on, whatever its state.
    pub(crate) spares_sessions: bool,
}

/// The servers of each balanced service, by its name.
pub(crate) type Members = BTreeMap<String, Vec<Member>>;

/// The servers of `services`, with the state that the load balancer sees in them.
pub(crate) fn members(services: &[lb_proxy::Service], balancer: Option<&lb_proxy::LoadBalancer>) -> Members {
    let Some(balancer) = balancer else { return Members::new() };
    let snapshot = balancer.snapshot();
    let services = services.iter().map(|service| {
        let found = snapshot.services.iter().find(|found| *found.name == *service.name);
        let members = service.backends.iter().map(|backend| {
            let known = found.and_then(|found| found.backends.iter().find(|it| it.addr == backend.addr));
            let state = known.map_or(BackendState::Unknown, |known| known.state);
            let spares_sessions = known.is_none_or(|known| known.spares_sessions);
            Member { addr: backend.addr, weight: backend.weight, state, spares_sessions }
        });
        (service.name.clone(), members.collect())
    });
    services.collect()
}

/// Those of the service that is behind a virtual address.
pub(crate) fn servers<'a>(members: &'a Members, directed: &Directed) -> &'a [Member] {
    members.get(&directed.service).map_or(&[], Vec::as_slice)
}

/// How good a server is, from bad to good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It fails its checks.
    Down,
    /// What a director would send does not get there.
    Unreachable,
    /// It refuses connections to the virtual address.
    Refusing,
    /// It has not said yet whether it takes them.
    Unknown,
    Good,
}

/// Every virtual server of the configuration with every service, in a fixed order. Those beyond the number of marks are
/// left out, and refused with the configuration.
pub(crate) fn directed(config: &Config) -> Vec<Directed> {
    let mut free: Vec<u32> = lb_proxy::director_marks().collect();
    let mut all = Vec::new();
    for (server, service) in pairs(config) {
        let (Some(port), Some(mark)) = (
            NonZeroU16::new(service.port.number()),
            take_mark(server.address, service.port.number(), &mut free),
        ) else {
            continue;
        };
        all.push(Directed {
            vip: server.address,
            port,
            mark,
            service: service.name.clone(),
            instance: instance_of(config, server.address),
            algorithm: server.algorithm,
            kind: server.kind,
            persistence: server
                .persistence_timeout
                .filter(|_| !service.is_konnectivity())
                .map(|time| Seconds(u32::try_from(time.as_secs()).unwrap_or(u32::MAX))),
        });
    }
    all
}

fn pairs(config: &Config) -> Vec<(&VirtualServer, &cplb_config::Service)> {
    if config.disable_load_balancer {
        return Vec::new();
    }
    let all = config.virtual_servers.iter();
    let mut pairs: Vec<_> =
        all.flat_map(|server| config.services.iter().map(move |service| (server, service))).collect();
    pairs.sort_by_key(|(server, service)| (server.address, service.port));
    pairs
}

fn instance_of(config: &Config, vip: IpAddr) -> Option<InstanceId> {
    let owner = config.instances.iter().find(|instance| instance.virtual_ips.iter().any(|ip| ip.ip() == vip));
    owner.map(|instance| InstanceId(instance.vrid.get().into()))
}

/// A mark that depends on little else than the address and the port, so that other virtual servers can come and go
/// without moving it.
fn take_mark(vip: IpAddr, port: u16, free: &mut Vec<u32>) -> Option<NonZeroU32> {
    let octets = match vip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // FNV-1a.
    let hash = octets
        .iter()
        .chain(&port.to_be_bytes())
        .fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193));
    let wanted = lb_proxy::director_marks().nth(hash as usize % lb_proxy::director_marks().count())?;
    let at = free.iter().position(|mark| *mark >= wanted).or((!free.is_empty()).then_some(0))?;
    NonZeroU32::new(free.remove(at))
}

impl Directed {
    pub(crate) fn key(&self) -> ServiceKey {
        ServiceKey::fwmark(AddressFamily::of(self.vip), self.mark)
    }

    fn service(&self) -> Service {
        let service = Service::new(self.key(), scheduler(self.algorithm));
        match self.persistence {
            Some(timeout) => service.persistent(timeout),
            None => service,
        }
    }

    /// Whether IPVS can forward to the server in this way: only tunnels cross families, and only ours of the same one
    /// are received. Nothing is forwarded to the loopback, where this node's server may be found before it is known
    /// better.
    pub(crate) fn takes(&self, member: &Member) -> bool {
        let ip = member.addr.ip();
        ip.is_ipv4() == self.vip.is_ipv4() && !ip.is_loopback()
    }

    pub(crate) fn takes_any(&self, members: &[Member]) -> bool {
        members.iter().any(|member| self.takes(member))
    }

    /// Whether another node can go on with its connections: not where this one translates their addresses.
    pub(crate) fn outlives_its_director(&self) -> bool {
        self.instance.is_some() && self.kind != LbKind::Nat
    }

    /// What to ask a server before packets for the virtual address are sent there; `None` where it gets them with its own
    /// address instead.
    pub(crate) fn probe_target(&self, member: &Member) -> Option<ProbeTarget> {
        let tunnel = match self.kind {
            LbKind::Nat => return None,
            LbKind::DirectRouting => false,
            LbKind::Tunnel => true,
        };
        let vip = SocketAddr::new(self.vip, self.port.get());
        self.takes(member).then_some(ProbeTarget { vip, server: member.addr.ip(), tunnel })
    }

    pub(super) fn standing(&self, member: &Member, results: &ProbeResults) -> Standing {
        if matches!(member.state, BackendState::Down | BackendState::Terminating) {
            return Standing::Down;
        }
        let Some(ask) = self.probe_target(member) else { return Standing::Good };
        match results.get(&ask) {
            Some(ProbeResult::Silent | ProbeResult::NotOnLink) => Standing::Unreachable,
            Some(ProbeResult::Refuses) => Standing::Refusing,
            Some(ProbeResult::Accepts | ProbeResult::NotProbed) => Standing::Good,
            None => Standing::Unknown,
        }
    }

    fn desired(&self, members: &[Member], results: &ProbeResults) -> DesiredService {
        let usable = members.iter().filter(|member| self.takes(member));
        let usable: Vec<_> = usable.map(|member| (member, self.standing(member, results))).collect();
        // As the proxy: where all checks fail, the checks may be what is wrong.
        let best = usable.iter().map(|(_, standing)| *standing).max().unwrap_or(Standing::Good);
        let enough = match best {
            Standing::Refusing | Standing::Unreachable => Standing::Unreachable,
            best => best,
        };
        usable.iter().fold(DesiredService::new(self.service()), |desired, (member, standing)| {
            let key = DestinationKey::new(member.addr.ip(), member.addr.port());
            match standing {
                good if *good >= enough => {
                    desired.with(Destination::new(key, method(self.kind)).with_weight(Weight(member.weight)))
                }
                // It takes no new connections, and goes on with those that it has.
                Standing::Refusing | Standing::Unknown => desired,
                Standing::Down if member.spares_sessions => desired,
                _ => desired.with_dead(key),
            }
        })
    }

    /// Its rules in the nftables table; `from` are the interfaces behind which its clients and directors are.
    pub(crate) fn director(&self, from: BTreeSet<String>) -> Director {
        Director {
            vip: self.vip,
            port: self.port,
            mark: self.mark,
            from,
            reach: match (self.instance, self.kind) {
                (Some(_), _) => Reach::ArrivalInterface,
                (None, LbKind::Nat) => Reach::Node,
                // Servers that have the address to accept it must not direct what they are sent.
                (None, _) => Reach::From,
            },
            peers: BTreeSet::new(),
            masquerade: self.kind == LbKind::Nat,
            departing: false,
        }
    }
}

/// The services that this node `has`.
pub(crate) fn desired(
    all: &[Directed],
    members: &Members,
    results: &ProbeResults,
    has: impl Fn(&Directed) -> bool,
) -> Desired {
    let held = all.iter().filter(|directed| has(directed));
    held.map(|directed| directed.desired(servers(members, directed), results)).collect()
}

fn scheduler(algorithm: LbAlgorithm) -> SchedulerName {
    match algorithm {
        LbAlgorithm::RoundRobin => SchedulerName::RR,
        LbAlgorithm::WeightedRoundRobin => SchedulerName::WRR,
        LbAlgorithm::LeastConnections => SchedulerName::LC,
        LbAlgorithm::WeightedLeastConnections => SchedulerName::WLC,
        LbAlgorithm::LocalityBasedLeastConnections => SchedulerName::LBLC,
        LbAlgorithm::DestinationHashing => SchedulerName::DH,
        LbAlgorithm::SourceHashing => SchedulerName::SH,
        LbAlgorithm::ShortestExpectedDelay => SchedulerName::SED,
        LbAlgorithm::NeverQueue => SchedulerName::NQ,
    }
}

/// A server on this node is reached as any other: IPVS finds by itself that its address is local. Said explicitly, it
/// would be wrong on the nodes that the connection is kept in step with.
fn method(kind: LbKind) -> ForwardMethod {
    match kind {
        LbKind::Nat => ForwardMethod::MASQUERADE,
        LbKind::DirectRouting => ForwardMethod::DIRECT_ROUTE,
        LbKind::Tunnel => ForwardMethod::TUNNEL,
    }
}

/// The sysctls below `net.ipv4.vs` that the services need, on every node that may come to have them. What they do not
/// need is left as it is: somebody else may.
pub(crate) fn sysctls(all: &[Directed]) -> Vec<(&'static str, &'static str)> {
    // A connection to a server that was deleted ends with its next packet instead of hanging.
    let mut wanted =
        vec![("expire_nodest_conn", "1"), ("expire_quiescent_template", "1"), ("conn_reuse_mode", "1")];
    if all.iter().any(|directed| directed.kind == LbKind::Nat) {
        // Source addresses cannot be rewritten without it. It costs a good part of the throughput.
        wanted.push(("conntrack", "1"));
    }
    if all.iter().any(|directed| directed.algorithm == LbAlgorithm::SourceHashing) {
        // The next director chooses the same server, so it may take connections over in the middle.
        wanted.push(("sloppy_tcp", "1"));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(spec: &str) -> Config {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        cplb_config::load(&text, "f.yaml")
            .unwrap_or_else(|errors| panic!("{}", errors.report().plain()))
            .config
    }

    const TWO: &str = "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24, 'fd00::100/64']\n  backends: {static: [10.0.0.11]}\n  \
                       services: [{name: kube-apiserver, port: 6443}, {name: join-api, port: 9443}]\n  virtualServers:\n  ";

    fn marks(spec: &str) -> BTreeMap<(IpAddr, u16), u32> {
        directed(&config(spec)).iter().map(|d| ((d.vip, d.port.get()), d.mark.get())).collect()
    }

    #[test]
    fn each_service_of_each_virtual_server_has_a_mark_that_stays() {
        let both = marks(&format!("{TWO}- ipAddress: 10.0.0.100\n  - ipAddress: fd00::100\n"));
        assert_eq!(both.len(), 4);
        assert_eq!(both.values().collect::<BTreeSet<_>>().len(), 4);
        let reversed = marks(&format!("{TWO}- ipAddress: fd00::100\n  - ipAddress: 10.0.0.100\n"));
        assert_eq!(both, reversed, "whatever the order of the file");
        let one = marks(&format!("{TWO}- ipAddress: fd00::100\n"));
        assert!(one.iter().all(|(key, mark)| both[key] == *mark), "{one:x?} {both:x?}");
    }

    #[test]
    fn marks_run_out_and_are_never_given_twice() {
        let services: String = (1..=65)
            .map(|port| format!("  - {{name: s{port}, port: {port}, bindPort: {}}}\n", 1000 + port))
            .collect();
        let spec = format!(
            "  services:\n{services}  virtualServers: [{{ipAddress: 10.0.0.100}}, {{ipAddress: 10.0.0.101}}]\n  \
             backends: {{static: [10.0.0.11]}}\n"
        );
        let config = config(&spec);
        let all = directed(&config);
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

    /// With results about hosts.
    fn weights_where(members: &[Member], said: &[(u8, ProbeResult)]) -> (Vec<(IpAddr, u32)>, Vec<bool>) {
        let all = directed(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: TUN}}\n")));
        let known = BTreeMap::from([("kube-apiserver".to_owned(), members.to_vec())]);
        let ask = |host: u8| ProbeTarget {
            vip: ([10, 0, 0, 100], 6443).into(),
            server: [10, 0, 0, host].into(),
            tunnel: true,
        };
        let results = said.iter().map(|(host, result)| (ask(*host), *result)).collect();
        let desired = desired(&all, &known, &results, |directed| directed.service == "kube-apiserver");
        let service = desired.services().next().unwrap();
        let there = service.destinations().map(|it| (it.key.address, it.weight.0)).collect();
        let dead = members
            .iter()
            .map(|member| service.is_dead(&DestinationKey::new(member.addr.ip(), member.addr.port())))
            .collect();
        (there, dead)
    }

    #[test]
    fn what_fails_its_checks_is_dead_unless_everything_does() {
        use BackendState::{Down, Unknown, Up};
        let ip = |host: u8| IpAddr::from([10, 0, 0, host]);
        let members = [member(11, 1, Up), member(12, 3, Unknown), member(13, 1, Down)];
        assert_eq!(weights(&members), (vec![(ip(11), 1), (ip(12), 3)], vec![false, false, true]));
        let members = [member(11, 1, Down), member(12, 0, Down)];
        assert_eq!(weights(&members), (vec![(ip(11), 1), (ip(12), 0)], vec![false, false]));
    }

    #[test]
    fn a_server_that_shuts_down_keeps_its_connections() {
        use BackendState::{Down, Terminating, Up};
        let refusing = Member { spares_sessions: true, ..member(13, 1, Down) };
        let members = [member(11, 1, Up), member(12, 1, Terminating), refusing];
        assert_eq!(weights(&members), (vec![([10, 0, 0, 11].into(), 1)], vec![false; 3]));
        assert_eq!(weights(&members[1..]).0.len(), 2, "better than nothing");
    }

    #[test]
    fn a_server_that_does_not_take_the_address_is_left_out_unless_none_does() {
        use BackendState::{Down, Up};
        let ip = |host: u8| IpAddr::from([10, 0, 0, host]);
        let members = [member(11, 1, Up), member(12, 1, Up), member(13, 1, Up)];
        let said = [(11, ProbeResult::Accepts), (12, ProbeResult::Refuses), (13, ProbeResult::Silent)];
        let (there, dead) = weights_where(&members, &said);
        assert_eq!(there, [(ip(11), 1)]);
        assert_eq!(dead, [false, false, true], "one that refuses keeps the connections that it has");
        let (there, _) = weights_where(&members, &said[..1]);
        assert_eq!(there, [(ip(11), 1)], "one that is known is better than one that is not");
        let (there, _) = weights_where(&members[1..], &said);
        assert_eq!(there, [(ip(12), 1), (ip(13), 1)], "better than nothing");
        let (there, _) = weights_where(&[member(11, 1, Down), member(13, 1, Up)], &said);
        assert_eq!(there, [(ip(13), 1)], "one that fails its checks is worse");
    }

    #[test]
    fn servers_that_get_packets_with_their_own_address_are_not_asked() {
        let ask = |kind: &str| {
            let all = directed(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: {kind}}}\n")));
            all[0].probe_target(&member(11, 1, BackendState::Up)).map(|ask| ask.tunnel)
        };
        assert_eq!((ask("NAT"), ask("DR"), ask("TUN")), (None, Some(false), Some(true)));
    }

    #[test]
    fn servers_of_the_other_family_are_left_out() {
        let addr = "[fd00::11]:6443".parse().unwrap();
        let other = Member { addr, ..member(11, 1, BackendState::Up) };
        assert_eq!(weights(&[other]).0, []);
        let all = directed(&config(&format!("{TWO}- ipAddress: 10.0.0.100\n")));
        assert!(!all[0].takes_any(&[other]) && all[0].takes_any(&[other, member(11, 1, BackendState::Up)]));
        let told: Vec<_> = all[0].excluded(&[other], &ProbeResults::new()).map(|it| it.reason).collect();
        assert_eq!(told, ["is not of the virtual IP's address family"]);
    }

    #[test]
    fn what_fails_its_checks_for_a_known_reason_says_it() {
        let all = directed(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: TUN}}\n")));
        let member = member(11, 1, BackendState::Down);
        let results = ProbeResults::from([(all[0].probe_target(&member).unwrap(), ProbeResult::NotOnLink)]);
        let told: Vec<_> = all[0].excluded(&[member], &results).map(|it| it.reason).collect();
        assert!(told[0].starts_with("fails its health checks, and is on no link"), "{told:?}");
    }

    #[test]
    fn the_kernel_has_its_own_names() {
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
            let all = directed(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbAlgo: {written}}}\n")));
            assert_eq!(all[0].service().scheduler, scheduler);
        }
        for (kind, method) in [
            ("DR", ForwardMethod::DIRECT_ROUTE),
            ("NAT", ForwardMethod::MASQUERADE),
            ("TUN", ForwardMethod::TUNNEL),
        ] {
            let all = directed(&config(&format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: {kind}}}\n")));
            let desired = all[0].desired(&[member(11, 1, BackendState::Up)], &ProbeResults::new());
            let methods: Vec<_> = desired.destinations().map(|it| it.method).collect();
            assert_eq!(methods, [method], "{kind}");
        }
    }

    #[test]
    fn konnectivity_goes_without_persistence() {
        let spec = TWO.replace("{name: join-api, port: 9443}", "{name: konnectivity, port: 8132}");
        let all = directed(&config(&format!("{spec}- ipAddress: 10.0.0.100\n")));
        let persistence: Vec<_> =
            all.iter().map(|it| (it.port.get(), it.persistence.map(|it| it.0))).collect();
        assert_eq!(persistence, [(6443, Some(360)), (8132, None)]);
    }

    #[test]
    fn only_what_is_needed_is_switched_on_and_nothing_off() {
        let of = |kind: &str, algorithm: &str| {
            let server = format!("{TWO}- {{ipAddress: 10.0.0.100, lbKind: {kind}, lbAlgo: {algorithm}}}\n");
            let all = sysctls(&directed(&config(&server)));
            assert!(all.iter().all(|(_, value)| *value == "1"), "{all:?}");
            let names: BTreeSet<&str> = all.into_iter().map(|(name, _)| name).collect();
            ["conntrack", "sloppy_tcp"].map(|name| names.contains(name))
        };
        assert_eq!(of("NAT", "rr"), [true, false]);
        assert_eq!(of("DR", "sh"), [false, true]);
        assert_eq!(of("TUN", "wlc"), [false, false]);
    }
}
