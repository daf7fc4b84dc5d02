//! The state that decides about a handover, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use vrrp::channel::InstanceReport;
use vrrp::router::{PlannedMove, StateName};
use vrrp::runner::InstanceId;

use crate::daemon::group::{LinkKey, PeerState};

use super::choice::choose;

/// The instances of this node, and the controllers that it knows.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// The name of this node.
    pub(crate) node: String,
    /// The verdict of this node; an error in standby.
    pub(crate) serving: Result<(), String>,
    pub(crate) instances: Vec<InstanceView>,
    /// The peers of each group channel.
    pub(crate) peers: BTreeMap<LinkKey, Vec<PeerState>>,
    /// The addresses of controllers, whether they take part in the channel or not.
    pub(crate) controllers: BTreeSet<IpAddr>,
}

/// An instance of this node.
#[derive(Debug, Clone)]
pub(crate) struct InstanceView {
    pub(crate) id: InstanceId,
    pub(crate) vrid: u8,
    pub(crate) addresses: Vec<IpAddr>,
    /// Its channel; `None` while its interface cannot be used.
    pub(crate) link: Option<LinkKey>,
    /// The number that its routers have in common ([`group_of`](vrrp::channel::group_of)).
    pub(crate) group: u64,
    pub(crate) state: StateName,
    /// It would advertise the degraded priority.
    pub(crate) degraded: bool,
    /// The source of this node's advertisements.
    pub(crate) own: Option<IpAddr>,
    /// The Active that this node follows.
    pub(crate) active: Option<IpAddr>,
    /// The addresses of unicast peers.
    pub(crate) unicast_peers: Vec<IpAddr>,
    /// Active_Down_Interval.
    pub(crate) down: Duration,
    pub(crate) last_move: Option<PlannedMove>,
    /// The election is over for a while, and the reports of the peers are later.
    pub(crate) settled: bool,
    /// The kernel of this node has its virtual IPs, perhaps only until their sessions are reset.
    pub(crate) holds: bool,
}

impl View {
    pub(crate) fn instance(&self, id: InstanceId) -> Option<&InstanceView> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    /// The instance of a channel with this identifier on the wire.
    pub(crate) fn by_vrid(&self, link: &LinkKey, vrid: u8) -> Option<&InstanceView> {
        self.instances.iter().find(|instance| instance.vrid == vrid && instance.link.as_ref() == Some(link))
    }

    /// The peers that take part in an instance.
    pub(crate) fn members<'a>(
        &'a self,
        instance: &'a InstanceView,
    ) -> impl Iterator<Item = (&'a PeerState, &'a InstanceReport)> {
        let peers = instance.link.as_ref().and_then(|link| self.peers.get(link)).into_iter().flatten();
        peers.filter_map(|peer| {
            let mut instances = peer.report.instances.iter();
            let found = instances.find(|found| found.vrid == instance.vrid && found.group == instance.group);
            found.map(|found| (peer, found))
        })
    }

    /// Returns whether another controller can have the virtual IPs of some instance, as far as this node knows.
    pub(crate) fn others_can_serve(&self) -> bool {
        self.instances.iter().any(|instance| choose(self, instance, None).is_ok())
    }

    /// The name of the node with this address, with the address where it is another one.
    pub(crate) fn name(&self, instance: &InstanceView, address: IpAddr) -> String {
        if instance.own == Some(address) {
            return self.node.clone();
        }
        let peer = self.members(instance).find(|(peer, _)| is_at(peer, address));
        peer.map_or_else(|| address.to_string(), |(peer, _)| label(peer))
    }

    /// The controllers that may have the addresses of an instance and are not in the channel, such as those with
    /// keepalived. The addresses of controllers may be of another network than advertisements come from; they are not if
    /// this node's source is among them.
    pub(crate) fn outside_channel(&self, instance: &InstanceView) -> BTreeSet<IpAddr> {
        let are_sources = instance.own.is_some_and(|own| self.controllers.contains(&own));
        let controllers = self.controllers.iter().filter(|_| are_sources);
        let known = controllers.chain(&instance.unicast_peers).copied();
        let of_family =
            known.filter(|known| instance.own.is_some_and(|own| own.is_ipv4() == known.is_ipv4()));
        of_family
            .filter(|known| instance.own != Some(*known))
            .filter(|known| !self.members(instance).any(|(peer, _)| is_at(peer, *known)))
            .collect()
    }
}

/// Returns whether a peer has this address.
pub(crate) fn is_at(peer: &PeerState, address: IpAddr) -> bool {
    peer.address == address || peer.report.addresses.contains(&address)
}

/// The name of a peer; its address if it has none.
pub(crate) fn label(peer: &PeerState) -> String {
    if peer.report.node.is_empty() { peer.address.to_string() } else { peer.report.node.clone() }
}

/// The instance that an operator names: by a virtual IP, by its identifier, or not at all if there is only one.
///
/// # Errors
///
/// If no instance matches, or more than one.
pub(crate) fn selected(instances: &[InstanceView], named: Option<&str>) -> Result<InstanceId, String> {
    let known = || {
        let text = |instance: &InstanceView| {
            let addresses: Vec<String> = instance.addresses.iter().map(IpAddr::to_string).collect();
            format!("{} (virtual router {})", addresses.join(", "), instance.vrid)
        };
        instances.iter().map(text).collect::<Vec<_>>().join("; ")
    };
    let Some(named) = named else {
        return match instances {
            [] => Err("this node has no virtual IPs".to_owned()),
            [only] => Ok(only.id),
            _ => Err(format!("name one of the instances: {}", known())),
        };
    };
    let address = named.parse::<IpAddr>().ok();
    let vrid = named.parse::<u8>().ok();
    let matches = |instance: &&InstanceView| {
        address.is_some_and(|address| instance.addresses.contains(&address)) || vrid == Some(instance.vrid)
    };
    let mut found = instances.iter().filter(matches);
    match (found.next(), found.next()) {
        (None, _) if instances.is_empty() => Err("this node has no virtual IPs".to_owned()),
        (None, _) => Err(format!("{named} is no virtual IP of this node; there are {}", known())),
        (Some(one), None) => Ok(one.id),
        (Some(_), Some(_)) => Err(format!("{named} is ambiguous; name a virtual IP: {}", known())),
    }
}
