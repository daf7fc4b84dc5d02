//! What a configuration means for each part of the daemon.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use cplb_config::{Config, Host};
use lb_proxy::nft::{Table, TableName};
use netlink_vip::{GroupId, LeaseTime, VipGroupConfig};
use vrrp::runner::{InstanceConfig, InstanceId, Transport};
use vrrp::{ChecksumPolicy, RouterConfig, lease_time};

use super::link::Member;

/// `SO_MARK` of the load balancer's own connections; the nftables table lets them pass. "cplb" in ASCII.
pub(crate) const MARK: u32 = 0x6370_6c62;
/// How long a router that yielded because it cannot serve, or is not heard, stays out.
const HOLD_TIME: Duration = Duration::from_secs(30);
/// How long a Backup must have served before it takes over from a degraded Active.
const TAKEOVER_AFTER: Duration = Duration::from_secs(2);

/// One VRRP instance for the election and the keeper.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) member: Member,
    pub(crate) router: InstanceConfig,
    pub(crate) group: VipGroupConfig,
}

/// Every instance of `config`. An instance is identified by its VRID, so that a reload that reorders the file
/// moves nothing.
pub(crate) fn instances(config: &Config) -> Result<Vec<Instance>, netlink_vip::LeaseTimeError> {
    config.instances.iter().map(instance).collect()
}

fn instance(config: &cplb_config::Instance) -> Result<Instance, netlink_vip::LeaseTimeError> {
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
    let router = RouterConfig {
        vrid: config.vrid,
        version: config.version,
        priority: config.priority,
        advert_interval: config.advert_interval,
        auth: config.auth_pass,
        addresses_v4: v4,
        addresses_v6: v6,
        preempt: config.preempt,
        hold_time: HOLD_TIME,
        takeover_after: TAKEOVER_AFTER,
        only_peers: config.unicast.is_some(),
        peers: peers.clone(),
        accept_owner_priority: false,
        lease: Duration::ZERO,
        seed: 0,
    };
    let lease = lease_time(&router);
    let router = RouterConfig { lease, ..router };
    let transport = if config.unicast.is_some() { Transport::Unicast { peers } } else { Transport::Multicast };
    Ok(Instance {
        id: InstanceId(id),
        member: Member { vrid: config.vrid.get(), source },
        group: VipGroupConfig {
            id: GroupId(id),
            interface: config.interface.clone(),
            addresses: config.virtual_ips.clone(),
            address_label: Some(config.address_label),
            lease: LeaseTime::new(lease)?,
        },
        router: InstanceConfig { id: InstanceId(id), router, transport, checksum: ChecksumPolicy::Lenient },
    })
}

/// The services for the load balancer; `resolve` turns a host name into addresses.
pub(crate) fn services(config: &Config, resolve: &dyn Fn(&str) -> Vec<IpAddr>) -> Vec<lb_proxy::Service> {
    if config.disable_load_balancer {
        return Vec::new();
    }
    config.services.iter().map(|service| balanced(config, service, resolve)).collect()
}

fn balanced(
    config: &Config,
    service: &cplb_config::Service,
    resolve: &dyn Fn(&str) -> Vec<IpAddr>,
) -> lb_proxy::Service {
    let mut backends: Vec<lb_proxy::Backend> = Vec::new();
    for backend in &config.backends_of(service).fixed {
        let port = backend.port.unwrap_or(service.backend_port).number();
        let addresses = match &backend.host {
            Host::Address(ip) => vec![*ip],
            Host::Name(name) => resolve(name),
        };
        for ip in addresses {
            let addr = SocketAddr::new(ip.to_canonical(), port);
            let name = backend.name.clone().or_else(|| match &backend.host {
                Host::Name(name) => Some(name.clone()),
                Host::Address(_) => None,
            });
            if backends.iter().all(|known| known.addr != addr) {
                backends.push(lb_proxy::Backend { addr, weight: backend.weight, name });
            }
        }
    }
    let listen = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), service.bind_port.number());
    let mut balanced = lb_proxy::Service::new(service.name.clone(), vec![listen], backends);
    balanced.balance = service.balance;
    balanced.health = service.health.clone();
    balanced
}

/// The nftables table, if there is traffic to lead.
pub(crate) fn table(config: &Config) -> Option<Table> {
    let vips: BTreeSet<IpAddr> = config.virtual_ips().collect();
    if config.disable_load_balancer || vips.is_empty() || config.services.is_empty() {
        return None;
    }
    let port = |port: cplb_config::Port| NonZeroU16::new(port.number());
    let redirects = config.services.iter().filter_map(|s| Some((port(s.port)?, port(s.bind_port)?))).collect();
    Some(Table { name: TableName::default(), vips, redirects, mark: NonZeroU32::new(MARK) })
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
