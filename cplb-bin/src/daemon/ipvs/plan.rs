//! The desired services of IPVS, from the configuration and the observed state. Pure.

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

use crate::daemon::ids::instance_id;

use super::prober::{ProbeResult, ProbeResults, ProbeTarget};

/// The work of IPVS under a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IpvsPlan {
    pub(super) virtual_servers: Vec<DirectedPort>,
    /// Set where directors synchronise their connections.
    pub(super) sync: bool,
}

impl IpvsPlan {
    /// The work under `config`.
    pub(crate) fn new(config: &Config) -> Self {
        Self { virtual_servers: directed_ports(config), sync: config.ipvs_sync }
    }

    /// Returns whether there are no virtual servers.
    pub(crate) fn is_empty(&self) -> bool {
        self.virtual_servers.is_empty()
    }

    /// The instances whose virtual IPs IPVS directs.
    pub(crate) fn instances(&self) -> BTreeSet<InstanceId> {
        self.virtual_servers.iter().filter_map(|it| it.instance).collect()
    }
}

/// One port of one virtual address, balanced by one IPVS service that matches a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DirectedPort {
    pub(super) vip: IpAddr,
    pub(super) port: NonZeroU16,
    /// The same on every node with this configuration, because synchronised connections carry it.
    pub(super) mark: NonZeroU32,
    /// The name of the balanced service, whose health checks decide.
    pub(super) service: String,
    /// The instance that moves the address; `None` if other software moves it.
    pub(super) instance: Option<InstanceId>,
    pub(super) algorithm: LbAlgorithm,
    pub(super) kind: LbKind,
    pub(super) persistence: Option<Seconds>,
}

/// A server with the state of its health checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(super) addr: SocketAddr,
    pub(super) weight: u32,
    pub(super) state: BackendState,
    /// Set if its connections may continue in any state.
    pub(super) spares_sessions: bool,
}

/// The servers of each balanced service, by its name.
pub(crate) type Members = BTreeMap<String, Vec<Member>>;

/// The servers of `services`, with their states in the load balancer.
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

/// The servers of a virtual server's service.
pub(super) fn servers<'a>(members: &'a Members, directed: &DirectedPort) -> &'a [Member] {
    members.get(&directed.service).map_or(&[], Vec::as_slice)
}

/// The usability of a server, from bad to good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It fails its checks.
    Down,
    /// It does not get packets from a director.
    Unreachable,
    /// It refuses connections to the virtual address.
    Refusing,
    /// It was not probed yet.
    Unknown,
    Good,
}

/// Every virtual server of the configuration with every service, in a fixed order. Pairs beyond the number of marks are
/// left out; validation refuses such a configuration.
fn directed_ports(config: &Config) -> Vec<DirectedPort> {
    let mut free: Vec<u32> = lb_proxy::director_marks().collect();
    let mut all = Vec::new();
    for (server, service) in pairs(config) {
        let (Some(port), Some(mark)) = (
            NonZeroU16::new(service.port.number()),
            take_mark(server.address, service.port.number(), &mut free),
        ) else {
            continue;
        };
        all.push(DirectedPort {
            vip: server.address,
            port,
            mark,
            service: service.name.clone(),
            instance: instance_with(config, server.address),
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

fn instance_with(config: &Config, vip: IpAddr) -> Option<InstanceId> {
    let owner = config.instances.iter().find(|instance| instance.virtual_ips.iter().any(|ip| ip.ip() == vip));
    owner.map(instance_id)
}

/// A mark that is derived from the address and the port, so that it rarely changes when other virtual servers are added
/// or removed.
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

impl DirectedPort {
    pub(super) fn key(&self) -> ServiceKey {
        ServiceKey::fwmark(AddressFamily::of(self.vip), self.mark)
    }

    fn service(&self) -> Service {
        let service = Service::new(self.key(), scheduler(self.algorithm));
        match self.persistence {
            Some(timeout) => service.persistent(timeout),
            None => service,
        }
    }

    /// Returns whether IPVS can forward to the server, which must have the family of the virtual address: only tunnels cross
    /// families, and the tunnel links of this daemon receive only their own. Nothing is forwarded to the loopback, which
    /// may be a local candidate.
    pub(super) fn can_forward_to(&self, member: &Member) -> bool {
        let ip = member.addr.ip();
        ip.is_ipv4() == self.vip.is_ipv4() && !ip.is_loopback()
    }

    pub(super) fn can_forward_to_any(&self, members: &[Member]) -> bool {
        members.iter().any(|member| self.can_forward_to(member))
    }

    /// Returns whether another node can continue its connections after a failover: not where this node translates their
    /// addresses.
    pub(super) fn continues_after_failover(&self) -> bool {
        self.instance.is_some() && self.kind != LbKind::Nat
    }

    /// The probe of a server that must accept the virtual address; `None` where it gets packets with its own address instead.
    pub(super) fn probe_target(&self, member: &Member) -> Option<ProbeTarget> {
        let tunnel = match self.kind {
            LbKind::Nat => return None,
            LbKind::DirectRouting => false,
            LbKind::Tunnel => true,
        };
        let vip = SocketAddr::new(self.vip, self.port.get());
        self.can_forward_to(member).then_some(ProbeTarget { vip, server: member.addr.ip(), tunnel })
    }

    pub(super) fn standing(&self, member: &Member, results: &ProbeResults) -> Standing {
        if matches!(member.state, BackendState::Down | BackendState::Terminating) {
            return Standing::Down;
        }
        let Some(target) = self.probe_target(member) else { return Standing::Good };
        match results.get(&target) {
            Some(ProbeResult::Silent | ProbeResult::NotOnLink) => Standing::Unreachable,
            Some(ProbeResult::Refuses) => Standing::Refusing,
            Some(ProbeResult::Accepts | ProbeResult::NotProbed) => Standing::Good,
            None => Standing::Unknown,
        }
    }

    fn desired(&self, members: &[Member], results: &ProbeResults) -> DesiredService {
        let usable = members.iter().filter(|member| self.can_forward_to(member));
        let usable: Vec<_> = usable.map(|member| (member, self.standing(member, results))).collect();
        // As in the proxy: where all checks fail, the checks themselves may be wrong.
        let best = usable.iter().map(|(_, standing)| *standing).max().unwrap_or(Standing::Good);
        let minimum = match best {
            Standing::Refusing | Standing::Unreachable => Standing::Unreachable,
            best => best,
        };
        usable.iter().fold(DesiredService::new(self.service()), |desired, (member, standing)| {
            let key = DestinationKey::new(member.addr.ip(), member.addr.port());
            match standing {
                good if *good >= minimum => {
                    desired.with(Destination::new(key, method(self.kind)).with_weight(Weight(member.weight)))
                }
                // It gets no new connections, and keeps those that it has.
                Standing::Refusing | Standing::Unknown => desired,
                Standing::Down if member.spares_sessions => desired,
                _ => desired.with_dead(key),
            }
        })
    }

    /// Its rules in the nftables table; packets of clients and directors arrive by the interfaces `from`.
    pub(super) fn director(&self, from: BTreeSet<String>) -> Director {
        Director {
            vip: self.vip,
            port: self.port,
            mark: self.mark,
            from,
            reach: match (self.instance, self.kind) {
                (Some(_), _) => Reach::ArrivalInterface,
                (None, LbKind::Nat) => Reach::Node,
                // Real servers, which also have the address, must not direct the packets that they receive from directors.
                (None, _) => Reach::From,
            },
            peers: BTreeSet::new(),
            masquerade: self.kind == LbKind::Nat,
            departing: false,
        }
    }
}

/// The services, of those for which `has` returns true.
pub(super) fn desired(
    all: &[DirectedPort],
    members: &Members,
    results: &ProbeResults,
    has: impl Fn(&DirectedPort) -> bool,
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

/// The forwarding method of a kind. A server on this node has the same method, because IPVS detects a local address itself;
/// an explicit local method would be wrong on the nodes to which the connection is synchronised.
fn method(kind: LbKind) -> ForwardMethod {
    match kind {
        LbKind::Nat => ForwardMethod::MASQUERADE,
        LbKind::DirectRouting => ForwardMethod::DIRECT_ROUTE,
        LbKind::Tunnel => ForwardMethod::TUNNEL,
    }
}

/// The sysctls below `net.ipv4.vs` that the services need, on every node that may hold their addresses. All others stay
/// unchanged, because other software may need them.
pub(super) fn sysctls(all: &[DirectedPort]) -> Vec<(&'static str, &'static str)> {
    // A connection to a server that was deleted ends with its next packet instead of hanging.
    let mut wanted =
        vec![("expire_nodest_conn", "1"), ("expire_quiescent_template", "1"), ("conn_reuse_mode", "1")];
    if all.iter().any(|directed| directed.kind == LbKind::Nat) {
        // Masquerading needs it. It is set only here, because it costs much of the throughput.
        wanted.push(("conntrack", "1"));
    }
    if all.iter().any(|directed| directed.algorithm == LbAlgorithm::SourceHashing) {
        // The next director chooses the same server, so it may take established connections over.
        wanted.push(("sloppy_tcp", "1"));
    }
    wanted
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
