//! The work of each subsystem under a configuration and resolved backends. Pure, and computed once for each change.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};

use cplb_config::{Config, Host};
use lb_proxy::MARK;
use lb_proxy::nft::{Delivery, Director, Table, TableName};

use super::backends::{Admitted, Refusal, ResolvedBackends, admit, is_api};
use super::drains::Drains;
use super::ipvs::IpvsPlan;
use super::proxy::ProxyPlan;
use super::vip::{self, Instance};
use crate::exit::{Failure, Kind};

/// The work of each subsystem.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Desired {
    pub(crate) proxy: ProxyPlan,
    /// Addresses that were found for services and may not be backends.
    pub(crate) refusals: Vec<Refusal>,
    /// The known controllers of the cluster.
    pub(crate) controllers: BTreeSet<IpAddr>,
    pub(crate) ipvs: IpvsPlan,
    /// The nftables table without rules for IPVS.
    table: Option<Table>,
}

impl Desired {
    /// The work under `config`, while this node may hold the virtual IPs `held`, also those of a former configuration.
    pub(crate) fn new(
        config: &Config,
        resolved: &ResolvedBackends,
        held: &BTreeSet<IpAddr>,
        drains: &Drains,
    ) -> Self {
        let (mut services, refusals) = services(config, resolved, held);
        drains.apply(&mut services);
        Self {
            proxy: ProxyPlan { services, forbidden: config.virtual_ips().collect() },
            refusals,
            controllers: controllers(config, resolved),
            ipvs: IpvsPlan::new(config),
            table: table(config, held),
        }
    }

    /// The nftables table with rules for IPVS, if there is traffic to redirect.
    pub(crate) fn table(&self, directors: Vec<Director>) -> Option<Table> {
        self.table.clone().map(|table| Table { directors, ..table })
    }
}

/// The VRRP instances of `config`.
pub(crate) fn instances(config: &Config) -> Result<Vec<Instance>, Failure> {
    vip::instances(config, &IpvsPlan::new(config).instances())
        .map_err(|error| Failure::new(Kind::Config, error))
}

/// The services for the load balancer, and the addresses that are refused as their backends.
fn services(
    config: &Config,
    resolved: &ResolvedBackends,
    held: &BTreeSet<IpAddr>,
) -> (Vec<lb_proxy::Service>, Vec<Refusal>) {
    if config.disable_load_balancer {
        return (Vec::new(), Vec::new());
    }
    let listen = listen(config, held);
    let Admitted { services, refusals } = admit(config, resolved);
    let services = services.into_iter();
    let services = services.map(|(service, backends)| balance(config, service, backends, resolved, &listen));
    (services.collect(), refusals)
}

fn balance(
    config: &Config,
    service: &cplb_config::Service,
    backends: Vec<lb_proxy::Backend>,
    resolved: &ResolvedBackends,
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
        let servers = kubeconfig.and_then(|path| resolved.discovered(path));
        // Until a server was verified with it, the kubeconfig may belong to another cluster.
        balanced.trust = servers.and_then(|servers| Some(servers.identity.as_ref()?.trust.clone()));
    }
    balanced
}

/// The addresses on which the load balancer listens. While there are virtual IPs, of `config` or still held, these are
/// all addresses: the nftables table redirects to them, and blocks direct connections.
fn listen(config: &Config, held: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let has_vips =
        !held.is_empty() || config.virtual_ips().next().is_some() || !config.virtual_servers.is_empty();
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match config.bind_address {
        Some(ip) if has_vips || ip.is_unspecified() => vec![if has_vips { any } else { ip }],
        Some(ip) if ip.is_loopback() => vec![ip],
        Some(ip) => vec![ip, IpAddr::V4(Ipv4Addr::LOCALHOST)],
        None => vec![any],
    }
}

/// The known addresses of controllers: the servers that the configuration lists, by address or by name, and the
/// discovered ones, without local candidates.
fn controllers(config: &Config, resolved: &ResolvedBackends) -> BTreeSet<IpAddr> {
    let own = config.services.iter().filter_map(|service| service.backends.as_ref());
    let sources: Vec<_> = std::iter::once(&config.backends).chain(own).collect();
    let listed = sources.iter().flat_map(|source| &source.fixed).flat_map(|backend| match &backend.host {
        Host::Address(ip) => std::slice::from_ref(ip),
        Host::Name(name) => resolved.addresses(name),
    });
    let clusters = sources.iter().filter_map(|source| resolved.discovered(source.kubeconfig.as_ref()?));
    let discovered = clusters.flat_map(|servers| &servers.discovered).map(SocketAddr::ip);
    let all = listed.copied().chain(discovered).map(|ip| ip.to_canonical());
    // A loopback address is this node's, whatever node reads the list.
    let is_other = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !config.is_virtual_ip(*ip);
    all.filter(is_other).collect()
}

/// The nftables table, if there is traffic to redirect: to the virtual IPs of `config`, and to others that this node may
/// still hold.
fn table(config: &Config, held: &BTreeSet<IpAddr>) -> Option<Table> {
    let of_virtual_servers = config.virtual_servers.iter().map(|server| server.address);
    let vips: BTreeSet<IpAddr> =
        config.virtual_ips().chain(held.iter().copied()).chain(of_virtual_servers).collect();
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
        directors: Vec::new(),
    })
}

/// The service that decides whether this node serves: the API server's, else the first.
pub(crate) fn deciding_service(config: &Config) -> Option<&str> {
    config.api_service().or(config.services.first()).map(|service| service.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::backends::ClusterServers;

    #[test]
    fn controllers_are_all_servers_except_virtual_ips_and_local_candidates() {
        let text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
                    - virtualIPs: [10.0.0.100/24]\n  services:\n  - {name: kube-apiserver, port: 6443}\n  \
                    - {name: other, port: 7443, backends: {static: [10.0.0.14]}}\n  backends:\n    \
                    static: [10.0.0.11, '::ffff:10.0.0.12']\n    kubernetes: {kubeconfig: /k}\n";
        let config = cplb_config::load(text, "c.yaml").expect("it is accepted").config;
        let ip = |host: u8| IpAddr::from([10, 0, 0, host]);
        let found = [13, 100].map(|host| SocketAddr::new(ip(host), 6443)).into();
        let servers = ClusterServers { discovered: found, local_candidates: vec![ip(99)], identity: None };
        let resolved = ResolvedBackends::default().with_clusters([("/k".into(), servers)].into());
        let desired = Desired::new(&config, &resolved, &BTreeSet::new(), &Drains::default());
        assert_eq!(desired.controllers, [11, 12, 13, 14].map(ip).into());
    }

    fn listens(spec: &str) -> Vec<String> {
        listens_beside(spec, &[])
    }

    /// The addresses that the load balancer listens on, while this node may still hold `others`.
    fn listens_beside(spec: &str, others: &[IpAddr]) -> Vec<String> {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        let config = cplb_config::load(&text, "test.yaml").unwrap().config;
        let held = others.iter().copied().collect();
        let desired = Desired::new(&config, &ResolvedBackends::default(), &held, &Drains::default());
        desired.proxy.services[0].listen.iter().map(|addr| addr.ip().to_string()).collect()
    }

    #[test]
    fn the_bind_address_is_used_only_without_virtual_ips() {
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
