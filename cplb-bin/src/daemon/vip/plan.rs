//! The VRRP instances of a configuration, as the election and the keeper of the addresses need them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cplb_config::{AuthHmac, Config, LbKind, UnicastPeers};
use netlink_vip::{InterfaceSelector, LeaseTime, LeaseTimeError, VipAddress, VipGroupConfig};
use vrrp::hmac::HmacConfigError;
use vrrp::runner::{InstanceConfig, InstanceId, Transport};
use vrrp::{ChecksumPolicy, RouterConfig};

use crate::daemon::ids::{group_of, instance_id};

use super::slot::InstanceSettings;

/// An instance that the libraries refuse.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(transparent)]
    Lease(#[from] LeaseTimeError),
    #[error(transparent)]
    Hmac(#[from] HmacConfigError),
}

/// One VRRP instance for the election and the keeper.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) settings: InstanceSettings,
    pub(crate) router: InstanceConfig,
    pub(crate) group: VipGroupConfig,
}

impl Instance {
    /// Its virtual IPs.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.group.addresses.iter().map(VipAddress::ip)
    }

    /// The name of its interface, where the configuration gives it.
    pub(crate) fn interface_name(&self) -> Option<String> {
        name(&self.group.interface)
    }

    /// Returns whether its peers are those that are known or found (`unicastPeers: auto`).
    pub(crate) const fn finds_peers(&self) -> bool {
        self.router.router.accept_neighbours
    }

    /// Replaces the peers of an instance with `auto`; with `None` it waits until there are some.
    pub(crate) fn set_peers(&mut self, peers: Option<&[IpAddr]>) {
        self.settings.waits = peers.is_none();
        let peers = peers.unwrap_or_default().to_vec();
        self.router.router.peers.clone_from(&peers);
        self.router.transport = Transport::Unicast { peers };
    }

    /// Returns whether an address is of the family that decides the election.
    pub(crate) const fn has_family_of(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() != self.router.router.addresses_v4.is_empty()
    }

    /// Returns whether it sends IPv6 advertisements by multicast.
    pub(crate) fn multicasts_v6(&self) -> bool {
        matches!(self.router.transport, Transport::Multicast) && self.addresses().any(|ip| ip.is_ipv6())
    }
}

/// Every instance of `config`. An instance is identified by its VRID, so that a reload that reorders the file
/// moves nothing. `directed` are those whose virtual IPs IPVS directs.
pub(crate) fn instances(
    config: &Config,
    directed: &BTreeSet<InstanceId>,
) -> Result<Vec<Instance>, PlanError> {
    let lasting = lasting(config);
    let all = config.instances.iter().map(|it| {
        let mut instance = instance(it, &lasting)?;
        instance.settings.is_directed = directed.contains(&instance.id);
        Ok(instance)
    });
    all.collect()
}

/// The interface of each instance of `config`, where it is given by name.
pub(crate) fn named_interfaces(config: &Config) -> BTreeMap<InstanceId, Option<String>> {
    let all = config.instances.iter();
    all.map(|it| (instance_id(it), name(&it.interface))).collect()
}

fn name(interface: &InterfaceSelector) -> Option<String> {
    match interface {
        InterfaceSelector::Name(name) => Some(name.clone()),
        _ => None,
    }
}

/// The virtual IPs whose connections the next director continues. Connections forwarded by NAT end with the node that
/// translates them.
fn lasting(config: &Config) -> BTreeSet<IpAddr> {
    let synchronised = config.ipvs_sync && !config.disable_load_balancer;
    let servers = config.virtual_servers.iter().filter(|it| synchronised && it.kind != LbKind::Nat);
    servers.map(|server| server.address).collect()
}

fn instance(config: &cplb_config::Instance, lasting: &BTreeSet<IpAddr>) -> Result<Instance, PlanError> {
    let id = instance_id(config);
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for vip in &config.virtual_ips {
        match vip.ip() {
            IpAddr::V4(ip) => v4.push(ip),
            IpAddr::V6(ip) => v6.push(ip),
        }
    }
    let source = config.unicast.as_ref().and_then(|unicast| unicast.source);
    let (peers, is_auto) = match config.unicast.as_ref().map(|unicast| &unicast.peers) {
        Some(UnicastPeers::Listed(peers)) => (peers.clone(), false),
        Some(UnicastPeers::Auto) => (Vec::new(), true),
        None => (Vec::new(), false),
    };
    let mut router = RouterConfig::new(config.vrid, config.version, config.priority, config.advert_interval);
    router.auth = config.auth_pass;
    router.auth_previous = config.auth_pass_previous;
    router.hmac = config.auth_hmac.as_ref().map(AuthHmac::to_config).transpose()?;
    router.addresses_v4 = v4;
    router.addresses_v6 = v6;
    router.preempt = config.preempt;
    router.only_peers = config.unicast.is_some();
    router.peers.clone_from(&peers);
    router.accept_neighbours = is_auto;
    // The lease depends on the version that decides, which follows from the addresses.
    router.lease = RouterConfig::lease_for(router.down_interval());
    let lease = LeaseTime::new(router.lease)?;
    let transport =
        if config.unicast.is_some() { Transport::Unicast { peers } } else { Transport::Multicast };
    Ok(Instance {
        id,
        settings: InstanceSettings { source, is_directed: false, waits: is_auto },
        group: VipGroupConfig {
            id: group_of(id),
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
        router: InstanceConfig { id, router, transport, checksum: ChecksumPolicy::Lenient },
    })
}
