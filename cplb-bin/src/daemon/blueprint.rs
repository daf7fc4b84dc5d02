//! What a configuration means for each part of the daemon.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};

use cplb_config::{Config, Host, LbKind};
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
}

/// Every instance of `config`. An instance is identified by its VRID, so that a reload that reorders the file
/// moves nothing.
pub(crate) fn instances(config: &Config) -> Result<Vec<Instance>, netlink_vip::LeaseTimeError> {
    let lasting = lasting(config);
    config.instances.iter().map(|it| instance(it, &lasting)).collect()
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
        member: Member { vrid: config.vrid.get(), source },
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

/// The services for the load balancer.
pub(crate) fn services(config: &Config, names: &Names) -> Vec<lb_proxy::Service> {
    if config.disable_load_balancer {
        return Vec::new();
    }
    config.services.iter().map(|service| balanced(config, service, names)).collect()
}

/// Servers of the API that the configuration gives.
pub(crate) fn fixed(config: &Config, names: &Names) -> Vec<SocketAddr> {
    let without = names.with(std::collections::BTreeMap::new());
    let backends = config.api_service().map(|service| balanced(config, service, &without).backends);
    backends.into_iter().flatten().map(|backend| backend.addr).collect()
}

fn balanced(config: &Config, service: &cplb_config::Service, names: &Names) -> lb_proxy::Service {
    let mut backends: Vec<lb_proxy::Backend> = Vec::new();
    for backend in &config.backends_of(service).fixed {
        let port = backend.port.unwrap_or(service.backend_port).number();
        let (addresses, host_name) = match &backend.host {
            Host::Address(ip) => (std::slice::from_ref(ip), None),
            Host::Name(name) => (names.addresses(name), Some(name)),
        };
        for ip in addresses {
            let addr = SocketAddr::new(ip.to_canonical(), port);
            let name = backend.name.as_ref().or(host_name).cloned();
            // A name may turn out to mean a VIP; the proxy would talk to itself.
            if !config.is_virtual_ip(*ip) && backends.iter().all(|known| known.addr != addr) {
                backends.push(lb_proxy::Backend { addr, weight: backend.weight, name });
            }
        }
    }
    for addr in discovered(config, service, names) {
        if backends.iter().all(|known| known.addr != addr) {
            backends.push(lb_proxy::Backend { addr, weight: 1, name: None });
        }
    }
    let listen = listen(config).into_iter().map(|ip| SocketAddr::new(ip, service.bind_port.number()));
    let mut balanced = lb_proxy::Service::new(service.name.clone(), listen.collect(), backends);
    balanced.balance = service.balance;
    balanced.health = service.health.clone();
    if is_api(config, service) {
        let kubeconfig = config.backends_of(service).kubeconfig.as_ref();
        let servers = kubeconfig.and_then(|path| names.discovered(path));
        // Until a server has proved itself by it, the kubeconfig may be of another cluster.
        balanced.health.trust = servers.and_then(|servers| servers.trust.clone());
    }
    balanced
}

/// Where the load balancer listens. With virtual IPs on all addresses: the table leads to it, and closes it to others.
fn listen(config: &Config) -> Vec<IpAddr> {
    let has_vips = config.virtual_ips().next().is_some() || !config.virtual_servers.is_empty();
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

/// The servers of a service that were discovered, and where they may be until then. Clients of the API itself use the
/// port that it says, unless the configuration says another; the other services run on the same nodes.
fn discovered(config: &Config, service: &cplb_config::Service, names: &Names) -> Vec<SocketAddr> {
    let kubeconfig = config.backends_of(service).kubeconfig.as_ref();
    let Some(servers) = kubeconfig.and_then(|path| names.discovered(path)) else { return Vec::new() };
    let own_port = is_api(config, service) && service.backend_port == service.port;
    let port = service.backend_port.number();
    let found = servers.found.iter().map(|server| match own_port {
        true => *server,
        false => SocketAddr::new(server.ip(), port),
    });
    let own = servers.own.iter().map(|ip| SocketAddr::new(*ip, port));
    found.chain(own).filter(|server| !config.is_virtual_ip(server.ip())).collect()
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

    fn listens(spec: &str) -> Vec<String> {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        let config = cplb_config::load(&text, "test.yaml").unwrap().config;
        listen(&config).iter().map(ToString::to_string).collect()
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
}
