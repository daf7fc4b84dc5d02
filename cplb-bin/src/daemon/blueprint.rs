//! What a configuration means for each part of the daemon.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};

use cplb_config::{BackendRule, Config, Host, LbKind, Origin, Unfit};
use lb_proxy::MARK;
use lb_proxy::nft::{Delivery, Director, Table, TableName};
use netlink_vip::{GroupId, LeaseTime, VipAddress, VipGroupConfig};
use vrrp::runner::{InstanceConfig, InstanceId, Transport};
use vrrp::{ChecksumPolicy, RouterConfig};

use super::link::Member;
use super::names::Names;

/// One VRRP instance for the election and the keeper.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) member: Member,
    pub(crate) router: InstanceConfig,
    pub(crate) group: VipGroupConfig,
}

impl Instance {
    /// Its virtual IPs.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.group.addresses.iter().map(netlink_vip::VipAddress::ip)
    }

    /// Whether it sends IPv6 advertisements by multicast.
    pub(crate) fn multicasts_v6(&self) -> bool {
        matches!(self.router.transport, Transport::Multicast) && self.addresses().any(|ip| ip.is_ipv6())
    }
}

/// Every instance of `config`. An instance is identified by its VRID, so that a reload that reorders the file
/// moves nothing.
pub(crate) fn instances(config: &Config) -> Result<Vec<Instance>, netlink_vip::LeaseTimeError> {
    let lasting = lasting(config);
    let directed: BTreeSet<InstanceId> =
        super::ipvs::directed(config).iter().filter_map(|it| it.instance).collect();
    let all = config.instances.iter().map(|it| {
        let mut instance = instance(it, &lasting)?;
        instance.member.is_directed = directed.contains(&instance.id);
        Ok(instance)
    });
    all.collect()
}

/// The virtual IPs whose connections the next director goes on with. Those that are forwarded by NAT end with the node
/// that translated them.
fn lasting(config: &Config) -> BTreeSet<IpAddr> {
    let synchronised = config.ipvs_sync && !config.disable_load_balancer;
    let servers = config.virtual_servers.iter().filter(|it| synchronised && it.kind != LbKind::Nat);
    servers.map(|server| server.address).collect()
}

fn instance(
    config: &cplb_config::Instance,
    lasting: &BTreeSet<IpAddr>,
) -> Result<Instance, netlink_vip::LeaseTimeError> {
    let id = u32::from(config.vrid.get());
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for vip in &config.virtual_ips {
        match vip.ip() {
            IpAddr::V4(ip) => v4.push(ip),
            IpAddr::V6(ip) => v6.push(ip),
        }
    }
    let (source, peers) = match &config.unicast {
        Some(unicast) => (unicast.source, unicast.peers.clone()),
        None => (None, Vec::new()),
    };
    let mut router = RouterConfig::new(config.vrid, config.version, config.priority, config.advert_interval);
    router.auth = config.auth_pass;
    router.addresses_v4 = v4;
    router.addresses_v6 = v6;
    router.preempt = config.preempt;
    router.only_peers = config.unicast.is_some();
    router.peers.clone_from(&peers);
    // The addresses say which version decides, so the lease is only known now.
    router.lease = RouterConfig::lease_for(router.down_interval());
    let lease = LeaseTime::new(router.lease)?;
    let transport =
        if config.unicast.is_some() { Transport::Unicast { peers } } else { Transport::Multicast };
    Ok(Instance {
        id: InstanceId(id),
        member: Member { source, is_directed: false },
        group: VipGroupConfig {
            id: GroupId(id),
            interface: config.interface.clone(),
            addresses: config.virtual_ips.clone(),
            address_label: Some(config.address_label),
            lease,
            lasting: config
                .virtual_ips
                .iter()
                .map(VipAddress::ip)
                .filter(|ip| lasting.contains(ip))
                .collect(),
        },
        router: InstanceConfig { id: InstanceId(id), router, transport, checksum: ChecksumPolicy::Lenient },
    })
}

/// The options of the load balancer.
pub(crate) fn options(config: &Config) -> lb_proxy::Options {
    lb_proxy::Options {
        mark: MARK,
        // Where there are no virtual IPs it may be refused, and does not matter.
        transparent: true,
        forbidden: config.virtual_ips().collect(),
        ..lb_proxy::Options::default()
    }
}

/// The balanced services, and the addresses that were found for them and may not be backends.
#[derive(Debug, Default)]
pub(crate) struct Balanced {
    pub(crate) services: Vec<lb_proxy::Service>,
    pub(crate) refusals: Vec<Refusal>,
}

/// An address that the [`BackendRule`] does not admit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    pub(crate) service: String,
    pub(crate) server: SocketAddr,
    pub(crate) origin: Origin,
    pub(crate) unfit: Unfit,
}

/// The services for the load balancer. This is the only way of an address to the proxy and to IPVS. `others` are virtual IPs
/// besides those of `config` that this node may still hold.
pub(crate) fn balanced(config: &Config, names: &Names, mut others: impl Iterator<Item = IpAddr>) -> Balanced {
    let mut all = Balanced::default();
    if config.disable_load_balancer {
        return all;
    }
    let rule = config.backend_rule().on_node(names.node().iter().copied());
    let listen = listen(config, others.next().is_some());
    for service in &config.services {
        let found = written(config, service, names).into_iter().chain(discovered(config, service, names));
        let backends = admitted(&rule, service, found, &mut all.refusals);
        all.services.push(balance(config, service, backends, names, &listen));
    }
    all
}

/// The services of [`balanced`].
pub(crate) fn services(
    config: &Config,
    names: &Names,
    others: impl Iterator<Item = IpAddr>,
) -> Vec<lb_proxy::Service> {
    balanced(config, names, others).services
}

/// Servers of the API that the configuration gives.
pub(crate) fn fixed(config: &Config, names: &Names) -> Vec<SocketAddr> {
    let Some(service) = config.api_service() else { return Vec::new() };
    let rule = config.backend_rule().on_node(names.node().iter().copied());
    let backends = admitted(&rule, service, written(config, service, names), &mut Vec::new());
    backends.into_iter().map(|backend| backend.addr).collect()
}

/// The address at which a service uses a server that the API lists. Clients of the API itself use the port that it says,
/// unless the configuration says another; the other services run on the same nodes.
pub(crate) fn listed_at(config: &Config, service: &cplb_config::Service, server: SocketAddr) -> SocketAddr {
    let own_port = is_api(config, service) && service.backend_port == service.port;
    if own_port { server } else { SocketAddr::new(server.ip(), service.backend_port.number()) }
}

/// An address for a service, not yet judged.
struct Found {
    server: SocketAddr,
    origin: Origin,
    weight: u32,
    name: Option<String>,
}

fn admitted(
    rule: &BackendRule,
    service: &cplb_config::Service,
    found: impl IntoIterator<Item = Found>,
    refusals: &mut Vec<Refusal>,
) -> Vec<lb_proxy::Backend> {
    let mut backends: Vec<lb_proxy::Backend> = Vec::new();
    for Found { server, origin, weight, name } in found {
        match rule.admit(server, service, origin) {
            Ok(addr) if backends.iter().all(|known| known.addr != addr) => {
                backends.push(lb_proxy::Backend { addr, weight, name });
            }
            Ok(_) => {}
            Err(unfit) => {
                refusals.push(Refusal { service: service.name.clone(), server, origin, unfit });
            }
        }
    }
    backends
}

/// The servers that the operator wrote, by address or by name.
fn written(config: &Config, service: &cplb_config::Service, names: &Names) -> Vec<Found> {
    let mut found = Vec::new();
    for backend in &config.backends_of(service).fixed {
        let port = backend.port.unwrap_or(service.backend_port).number();
        let (addresses, host_name) = match &backend.host {
            Host::Address(ip) => (std::slice::from_ref(ip), None),
            Host::Name(name) => (names.addresses(name), Some(name)),
        };
        let origin = if host_name.is_none() || backend.host.is_this_node() {
            Origin::Written
        } else {
            Origin::Resolved
        };
        found.extend(addresses.iter().map(|ip| Found {
            server: SocketAddr::new(*ip, port),
            origin,
            weight: backend.weight,
            name: backend.name.as_ref().or(host_name).cloned(),
        }));
    }
    found
}

/// The discovered servers of a service, and local candidates until there are any.
fn discovered(config: &Config, service: &cplb_config::Service, names: &Names) -> Vec<Found> {
    let kubeconfig = config.backends_of(service).kubeconfig.as_ref();
    let Some(servers) = kubeconfig.and_then(|path| names.discovered(path)) else { return Vec::new() };
    let found = |server, origin| Found { server, origin, weight: 1, name: None };
    let port = service.backend_port.number();
    let listed = servers.found.iter().map(|server| listed_at(config, service, *server));
    let own = servers.own.iter().map(|ip| SocketAddr::new(*ip, port));
    let listed = listed.map(|server| found(server, Origin::Discovered));
    listed.chain(own.map(|server| found(server, Origin::LocalCandidate))).collect()
}

fn balance(
    config: &Config,
    service: &cplb_config::Service,
    backends: Vec<lb_proxy::Backend>,
    names: &Names,
    listen: &[IpAddr],
) -> lb_proxy::Service {
    let listen = listen.iter().map(|ip| SocketAddr::new(*ip, service.bind_port.number()));
    let mut balanced = lb_proxy::Service::new(service.name.clone(), listen.collect(), backends);
    balanced.balance = service.balance;
    balanced.health = service.health.clone();
    let limit = |limit: NonZeroU32| usize::try_from(limit.get()).unwrap_or(usize::MAX);
    balanced.max_connections = service.max_connections.map(limit);
    balanced.max_connections_per_client = service.max_connections_per_client.map(limit);
    if is_api(config, service) {
        let kubeconfig = config.backends_of(service).kubeconfig.as_ref();
        let servers = kubeconfig.and_then(|path| names.discovered(path));
        // Until a server has proved itself by it, the kubeconfig may be of another cluster.
        balanced.trust = servers.and_then(|servers| servers.trust.clone());
    }
    balanced
}

/// Where the load balancer listens. With virtual IPs, of `config` or others that may still be held, on all addresses: the
/// table leads to it, and closes it to others.
fn listen(config: &Config, holds_others: bool) -> Vec<IpAddr> {
    let has_vips =
        holds_others || config.virtual_ips().next().is_some() || !config.virtual_servers.is_empty();
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match config.bind_address {
        Some(ip) if has_vips || ip.is_unspecified() => vec![if has_vips { any } else { ip }],
        Some(ip) if ip.is_loopback() => vec![ip],
        Some(ip) => vec![ip, IpAddr::V4(Ipv4Addr::LOCALHOST)],
        None => vec![any],
    }
}

fn is_api(config: &Config, service: &cplb_config::Service) -> bool {
    config.api_service().is_some_and(|api| api.name == service.name)
}

/// The addresses of the controllers as far as they are known: the servers that the configuration lists, by address or by
/// name, and those that were discovered. This node's own addresses that merely stand in for them are left out.
pub(crate) fn controllers(config: &Config, names: &Names) -> BTreeSet<IpAddr> {
    let own = config.services.iter().filter_map(|service| service.backends.as_ref());
    let sources: Vec<_> = std::iter::once(&config.backends).chain(own).collect();
    let listed = sources.iter().flat_map(|source| &source.fixed).flat_map(|backend| match &backend.host {
        Host::Address(ip) => std::slice::from_ref(ip),
        Host::Name(name) => names.addresses(name),
    });
    let clusters = sources.iter().filter_map(|source| names.discovered(source.kubeconfig.as_ref()?));
    let discovered = clusters.flat_map(|servers| &servers.found).map(SocketAddr::ip);
    let all = listed.copied().chain(discovered).map(|ip| ip.to_canonical());
    all.filter(|ip| !config.is_virtual_ip(*ip)).collect()
}

/// The nftables table, if there is traffic to lead: to the virtual IPs of `config`, and to others that this node may
/// still hold.
pub(crate) fn table(
    config: &Config,
    others: impl Iterator<Item = IpAddr>,
    directors: Vec<Director>,
) -> Option<Table> {
    let by_hand = config.virtual_servers.iter().map(|server| server.address);
    let vips: BTreeSet<IpAddr> = config.virtual_ips().chain(others).chain(by_hand).collect();
    if config.disable_load_balancer || vips.is_empty() || config.services.is_empty() {
        return None;
    }
    let port = |port: cplb_config::Port| NonZeroU16::new(port.number());
    let redirects =
        config.services.iter().filter_map(|s| Some((port(s.port)?, port(s.bind_port)?))).collect();
    Some(Table {
        name: TableName::default(),
        vips,
        redirects,
        delivery: Delivery::default(),
        bind_address: config.bind_address,
        mark: NonZeroU32::new(MARK),
        directors,
    })
}

/// The service that decides whether this node serves: the API server's, else the first.
pub(crate) fn deciding_service(config: &Config) -> Option<&str> {
    config
        .services
        .iter()
        .find(|service| service.name == "kube-apiserver")
        .or_else(|| config.services.first())
        .map(|service| service.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_all_servers_but_virtual_ips_and_stand_ins() {
        let text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
                    - virtualIPs: [10.0.0.100/24]\n  services:\n  - {name: kube-apiserver, port: 6443}\n  \
                    - {name: other, port: 7443, backends: {static: [10.0.0.14]}}\n  backends:\n    \
                    static: [10.0.0.11, '::ffff:10.0.0.12']\n    kubernetes: {kubeconfig: /k}\n";
        let config = cplb_config::load(text, "c.yaml").expect("it is accepted").config;
        let ip = |host: u8| IpAddr::from([10, 0, 0, host]);
        let found = [13, 100].map(|host| SocketAddr::new(ip(host), 6443)).into();
        let servers = super::super::found::Servers { found, own: vec![ip(99)], trust: None };
        let names = Names::default().with([("/k".into(), servers)].into());
        assert_eq!(controllers(&config, &names), [11, 12, 13, 14].map(ip).into());
    }

    fn listens(spec: &str) -> Vec<String> {
        listens_beside(spec, &[])
    }

    /// The addresses that the load balancer listens on, while this node may still hold `others`.
    fn listens_beside(spec: &str, others: &[IpAddr]) -> Vec<String> {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        let config = cplb_config::load(&text, "test.yaml").unwrap().config;
        let services = services(&config, &Names::default(), others.iter().copied());
        services[0].listen.iter().map(|addr| addr.ip().to_string()).collect()
    }

    #[test]
    fn the_bind_address_is_listened_on_only_where_no_table_closes_the_port() {
        let backends = "  backends: {static: [10.0.0.11]}\n";
        let vips = "  vrrpInstances: [{virtualIPs: [10.0.0.100/24], version: 3}]\n";
        let at = |ip: &str| format!("  bindAddress: \"{ip}\"\n{backends}");
        assert_eq!(listens(backends), ["::"]);
        assert_eq!(listens(&at("0.0.0.0")), ["0.0.0.0"]);
        assert_eq!(listens(&at("127.0.0.1")), ["127.0.0.1"]);
        assert_eq!(listens(&at("10.0.0.11")), ["10.0.0.11", "127.0.0.1"]);
        for ip in ["0.0.0.0", "127.0.0.1", "10.0.0.11"] {
            assert_eq!(listens(&format!("{vips}{}", at(ip))), ["::"]);
        }
    }

    #[test]
    fn the_load_balancer_listens_on_all_addresses_while_removed_virtual_ips_may_be_held() {
        let spec = "  bindAddress: 10.0.0.11\n  backends: {static: [10.0.0.11]}\n";
        assert_eq!(listens_beside(spec, &[[10, 0, 0, 100].into()]), ["::"]);
        assert_eq!(listens_beside(spec, &[]), ["10.0.0.11", "127.0.0.1"]);
    }
}
