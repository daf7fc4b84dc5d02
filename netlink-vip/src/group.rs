//! The state of a group in the keeper.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::event::{AddressCopy, InterfaceState, Refusal, Removal};
use crate::lease::{Lease, LeaseState};
use crate::plan::{Desired, Managed, Step};
use crate::status::{AddressState, AddressStatus, GroupState, GroupStatus};
use crate::types::{InterfaceSelector, VipAddress, VipGroupConfig};

/// A group's configuration as it was registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) config: VipGroupConfig,
    /// The labels that are ours to set and to remove.
    pub(crate) labels: BTreeSet<(IpAddr, u32)>,
}

/// A group at work.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) config: VipGroupConfig,
    pub(crate) labels: BTreeSet<(IpAddr, u32)>,
    pub(crate) lease: Lease,
    /// The interface that the selector means now.
    pub(crate) interface: Option<u32>,
    /// When a default route that leads elsewhere is followed.
    pub(crate) switch_at: Option<Instant>,
    /// The interface as last reported; the outer `None` before the first report.
    pub(crate) reported: Option<Option<InterfaceState>>,
    /// The steps that wrote the addresses last; a refresh takes them again.
    pub(crate) written: Vec<Step>,
    /// Addresses that the kernel has acknowledged but does not accept packets for yet.
    pub(crate) arriving: Option<Arriving>,
    pub(crate) refused: BTreeMap<IpAddr, Refusal>,
    /// Addresses that others have placed on this node.
    pub(crate) copies: Vec<AddressCopy>,
    /// Not before this is a group tried again of which every address was refused.
    pub(crate) retry_at: Option<Instant>,
    pub(crate) last_removal: Option<Removal>,
}

/// New IPv6 addresses. The kernel acknowledges them, then a worker thread adds the route that makes it accept packets
/// for them, and sends an event. An announcement before that event sends clients to a node that
/// answers "no route".
#[derive(Debug)]
pub(crate) struct Arriving {
    pub(crate) ips: BTreeSet<IpAddr>,
    /// When the claim was made.
    pub(crate) issued: Instant,
    /// Not to be waited for any longer.
    pub(crate) deadline: Instant,
}

impl Group {
    pub(crate) fn new(registered: Registered) -> Self {
        let Registered { config, labels } = registered;
        Self {
            lease: Lease::new(config.lease),
            config,
            labels,
            interface: None,
            switch_at: None,
            reported: None,
            written: Vec::new(),
            arriving: None,
            refused: BTreeMap::new(),
            copies: Vec::new(),
            retry_at: None,
            last_removal: None,
        }
    }

    /// Returns whether an address on some interface may give the group one.
    pub(crate) fn waits_for_a_subnet(&self) -> bool {
        self.interface.is_none() && self.config.interface == InterfaceSelector::DefaultRoute
    }

    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        self.config.addresses.iter().any(|vip| vip.ip() == ip)
    }

    pub(crate) fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.config.addresses.iter().map(VipAddress::ip)
    }

    /// The addresses that are on this node as far as the keeper knows.
    pub(crate) fn present(&self) -> Vec<IpAddr> {
        let Some(held) = self.lease.held() else { return Vec::new() };
        self.ips().filter(|ip| !held.missing.contains(ip) && !self.refused.contains_key(ip)).collect()
    }

    /// The desired state of the interface while the group is held there.
    pub(crate) fn desired(&self) -> Desired {
        Desired {
            addresses: self.ips().map(|ip| (ip, self.config.lease)).collect(),
            labels: self.labels.clone(),
            reachable: self.config.addresses.iter().copied().collect(),
        }
    }

    /// The objects that may be deleted in the group's name.
    pub(crate) fn managed(&self) -> Managed {
        Managed { addresses: self.config.ips(), labels: self.labels.clone(), subnets: self.config.subnets() }
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let interface = self.reported.clone().flatten();
        let state = match (&self.lease.state, &interface) {
            (_, None) => GroupState::WaitingForInterface,
            (LeaseState::Held(held), _) => {
                GroupState::Held { refreshed: held.since, claimed_until: held.valid_until }
            }
            (_, Some(state)) if !state.up => GroupState::InterfaceDown,
            (LeaseState::Vacant, _) => GroupState::Vacant,
            (LeaseState::Lapsed, _) => GroupState::Lapsed,
        };
        GroupStatus {
            id: self.config.id,
            selector: self.config.interface.to_string(),
            interface,
            state,
            addresses: self.ips().map(|ip| AddressStatus { ip, state: self.address_state(ip) }).collect(),
            copies: self.copies.clone(),
            lease: self.config.lease,
            last_removal: self.last_removal,
        }
    }

    fn address_state(&self, ip: IpAddr) -> AddressState {
        if let Some(refusal) = self.refused.get(&ip) {
            return AddressState::Refused(refusal.clone());
        }
        match self.lease.held() {
            None => AddressState::Absent,
            Some(held) if held.missing.contains(&ip) => AddressState::Missing,
            Some(_) => AddressState::Present,
        }
    }
}
