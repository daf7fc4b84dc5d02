//! Plans the steps from the observed to the desired state. Pure.
//!
//! Order: labels before addresses, so that no address is ever without its label; additions before routes that serve
//! them; deletions of addresses before anything else, because they are what other nodes wait for.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::ownership::is_ours;
use crate::types::{LeaseTime, Prefix, VipAddress, full_prefix};
pub use crate::wire::VipScope;
use crate::wire::decode::{ObservedAddress, ObservedLabel, ObservedRoute};
use crate::wire::{self, PROTOCOL};

/// One change to the kernel's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// Deletes an address.
    DeleteAddress {
        /// Interface index.
        index: u32,
        /// The address.
        ip: IpAddr,
        /// Its prefix length.
        prefix_len: u8,
    },
    /// Deletes a prefix route of ours.
    DeleteRoute {
        /// Interface index.
        index: u32,
        /// Destination.
        prefix: Prefix,
    },
    /// Deletes an address label.
    DeleteLabel {
        /// The address that it is for.
        ip: IpAddr,
        /// The label.
        label: u32,
    },
    /// Adds an address label.
    PutLabel {
        /// The address that it is for.
        ip: IpAddr,
        /// The label.
        label: u32,
    },
    /// Adds or refreshes a leased address.
    PutAddress {
        /// Interface index.
        index: u32,
        /// The address.
        ip: IpAddr,
        /// Its lifetime in the kernel.
        lease: LeaseTime,
        /// Its scope.
        scope: VipScope,
    },
    /// Deletes a leased IPv4 address and adds it again, because neither its scope nor its place in the interface's
    /// list can be changed otherwise. It is away for some microseconds; sessions survive.
    MoveAddress {
        /// Interface index.
        index: u32,
        /// The address.
        ip: IpAddr,
        /// Its lifetime in the kernel.
        lease: LeaseTime,
        /// Its scope.
        scope: VipScope,
    },
    /// Adds a prefix route.
    PutRoute {
        /// Interface index.
        index: u32,
        /// Destination.
        prefix: Prefix,
    },
}

impl Step {
    /// Returns whether the step adds an address, which only a valid claim permits.
    pub fn needs_claim(&self) -> bool {
        matches!(self, Self::PutAddress { .. } | Self::MoveAddress { .. } | Self::PutLabel { .. })
    }

    /// The address that the step adds or refreshes.
    pub fn leases(&self) -> Option<IpAddr> {
        match self {
            Self::PutAddress { ip, .. } | Self::MoveAddress { ip, .. } => Some(*ip),
            _ => None,
        }
    }

    /// The step that refreshes what this one added.
    pub(crate) fn again(self) -> Self {
        match self {
            Self::MoveAddress { index, ip, lease, scope } => Self::PutAddress { index, ip, lease, scope },
            other => other,
        }
    }
}

/// The desired state of one interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// The leased addresses.
    pub addresses: BTreeSet<(IpAddr, LeaseTime)>,
    /// Their labels.
    pub labels: BTreeSet<(IpAddr, u32)>,
    /// Addresses whose subnet must be reachable on the interface, by an address of the node or by a route of ours.
    /// They need not be among [`Desired::addresses`]: several groups can share a subnet.
    pub reachable: BTreeSet<VipAddress>,
}

/// The objects that the plan may delete; all others are foreign.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Managed {
    /// Addresses that are ours where they carry our mark.
    pub addresses: BTreeSet<IpAddr>,
    /// Labels that are ours. Labels carry no mark: the caller knows.
    pub labels: BTreeSet<(IpAddr, u32)>,
    /// Destinations of routes that are ours where they carry our mark.
    pub subnets: BTreeSet<Prefix>,
}

/// The observed state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Addresses, of any interface, in the kernel's order.
    pub addresses: Vec<ObservedAddress>,
    /// Labels.
    pub labels: Vec<ObservedLabel>,
    /// Routes; those without our mark are ignored.
    pub routes: Vec<ObservedRoute>,
    /// `true` if the kernel keeps marks on addresses (Linux 5.18).
    pub kernel_marks: bool,
}

/// The way from observed to desired.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Steps, in the order in which to take them.
    pub steps: Vec<Step>,
    /// Writes those desired addresses again that are there already: a refresh.
    pub refresh: Vec<Step>,
    /// Desired addresses that are there already as foreign ones, with their prefix length. They are left alone.
    pub foreign: Vec<(IpAddr, u8)>,
}

/// Plans for the interface `index`. Taking the steps leads to `desired` but for [`Plan::foreign`]; planning again
/// then yields nothing. Of the same destination, label or address nothing is touched that is not both `managed` and
/// marked.
pub fn plan(index: u32, desired: &Desired, managed: &Managed, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let is_ours = |address: &ObservedAddress| is_ours(address, observed.kernel_marks);
    plan.steps.extend(obsolete_addresses(index, desired, managed, observed));
    plan.steps.extend(obsolete_routes(index, desired, managed, observed));
    plan.steps.extend(obsolete_labels(desired, managed, observed));
    for &(ip, label) in &desired.labels {
        let stays = |seen: &ObservedLabel| {
            labels_exactly(seen, ip) && !plan.steps.contains(&Step::DeleteLabel { ip, label: seen.label })
        };
        if !observed.labels.iter().any(stays) {
            plan.steps.push(Step::PutLabel { ip, label });
        }
    }
    for &(ip, lease) in &desired.addresses {
        let follows = ip.is_ipv6() || node_addresses(index, desired, managed, observed).next().is_some();
        let scope = if follows { VipScope::Universe } else { VipScope::Host };
        let put = Step::PutAddress { index, ip, lease, scope };
        let mut here = observed.addresses.iter().filter(|seen| seen.index == index && seen.ip == ip);
        let Some(any) = here.clone().next() else {
            plan.steps.push(put);
            continue;
        };
        match here.find(|seen| is_ours(seen)) {
            None => plan.foreign.push((ip, any.prefix_len)),
            Some(ours) if is_misplaced(ours, scope, desired, managed, observed) => {
                plan.steps.push(Step::MoveAddress { index, ip, lease, scope });
            }
            Some(_) => plan.refresh.push(put),
        }
    }
    for prefix in routes_needed(index, desired, observed) {
        if !observed.routes.iter().any(|route| is_our_route(route, index, prefix)) {
            plan.steps.push(Step::PutRoute { index, prefix });
        }
    }
    plan
}

fn obsolete_addresses<'a>(
    index: u32,
    desired: &'a Desired,
    managed: &'a Managed,
    observed: &'a Observed,
) -> impl Iterator<Item = Step> + 'a {
    let desired_here = move |ip| desired.addresses.iter().any(|&(wanted, _)| wanted == ip);
    observed
        .addresses
        .iter()
        .filter(move |seen| {
            managed.addresses.contains(&seen.ip)
                && is_ours(seen, observed.kernel_marks)
                && !(seen.index == index && desired_here(seen.ip))
        })
        .map(|seen| Step::DeleteAddress { index: seen.index, ip: seen.ip, prefix_len: seen.prefix_len })
}

fn obsolete_routes<'a>(
    index: u32,
    desired: &'a Desired,
    managed: &'a Managed,
    observed: &'a Observed,
) -> impl Iterator<Item = Step> + 'a {
    let needed = routes_needed(index, desired, observed);
    let ours = observed
        .routes
        .iter()
        .filter(move |route| route.protocol == PROTOCOL && managed.subnets.contains(&route.destination));
    ours.flat_map(|route| route.interfaces.iter().map(|&at| (at, route.destination)))
        .filter(move |&(at, prefix)| at != index || !needed.contains(&prefix))
        .map(|(index, prefix)| Step::DeleteRoute { index, prefix })
}

fn obsolete_labels<'a>(
    desired: &'a Desired,
    managed: &'a Managed,
    observed: &'a Observed,
) -> impl Iterator<Item = Step> + 'a {
    let mine = managed.labels.difference(&desired.labels);
    mine.filter(|&&(ip, label)| {
        observed.labels.iter().any(|seen| labels_exactly(seen, ip) && seen.label == label)
    })
    .map(|&(ip, label)| Step::DeleteLabel { ip, label })
}

fn labels_exactly(seen: &ObservedLabel, ip: IpAddr) -> bool {
    seen.index == 0 && seen.prefix == Prefix::new(ip, full_prefix(ip))
}

fn is_our_route(route: &ObservedRoute, index: u32, prefix: Prefix) -> bool {
    route.protocol == PROTOCOL && route.destination == prefix && route.interfaces == [index]
}

/// A subnet needs a route of ours unless an address of the node on the interface brings one.
pub(crate) fn routes_needed(index: u32, desired: &Desired, observed: &Observed) -> BTreeSet<Prefix> {
    let uncovered = desired
        .reachable
        .iter()
        .filter(|vip| vip.prefix_len() < full_prefix(vip.ip()) && !is_covered(index, vip.ip(), observed));
    uncovered.map(VipAddress::subnet).collect()
}

/// Returns whether an IPv4 VIP has another scope than it should, or is listed before an address of the node although
/// it could come after (the kernel puts an address of scope universe behind the last primary one of the interface).
/// Both happen when the node's addresses went and came back while the VIP stayed. Programs that take the first
/// address of an interface, and routes without a preferred source, would then use the VIP. The kernel always lists
/// the node's second address of a subnet after a VIP, which is the only one of its own.
fn is_misplaced(
    vip: &ObservedAddress,
    scope: VipScope,
    desired: &Desired,
    managed: &Managed,
    observed: &Observed,
) -> bool {
    if vip.ip.is_ipv6() {
        return false;
    }
    let scope_number = match scope {
        VipScope::Universe => wire::scope::UNIVERSE,
        VipScope::Host => wire::scope::HOST,
    };
    let place = |address| observed.addresses.iter().position(|seen| seen == address);
    let before_the_nodes = || {
        let node = node_addresses(vip.index, desired, managed, observed);
        let mut primary = node.filter(|seen| seen.flags & wire::address_flag::SECONDARY == 0);
        primary.any(|seen| place(seen) > place(vip))
    };
    vip.scope != scope_number || scope == VipScope::Universe && before_the_nodes()
}

/// The node's own IPv4 addresses on the interface that are valid everywhere. Whole addresses (/32) count only where
/// there are no others: beside those they are other programs' virtual addresses.
fn node_addresses<'a>(
    index: u32,
    desired: &'a Desired,
    managed: &'a Managed,
    observed: &'a Observed,
) -> impl Iterator<Item = &'a ObservedAddress> {
    let is_vip = move |ip: IpAddr| {
        managed.addresses.contains(&ip)
            || desired.addresses.iter().any(|&(vip, _)| vip == ip)
            || desired.reachable.iter().any(|vip| vip.ip() == ip)
    };
    let own = move || {
        let here = observed.addresses.iter().filter(move |seen| seen.index == index && seen.ip.is_ipv4());
        here.filter(move |seen| seen.scope == wire::scope::UNIVERSE && !is_vip(seen.ip))
    };
    let has_subnet = |seen: &&ObservedAddress| seen.prefix_len < full_prefix(seen.ip);
    let whole = !own().any(|seen| has_subnet(&seen));
    own().filter(move |seen| if whole { seen.protocol != Some(PROTOCOL) } else { has_subnet(seen) })
}

/// Returns whether the subnet of an address on the interface contains `ip`. Whole addresses, as VIPs are, have no
/// subnet.
fn is_covered(index: u32, ip: IpAddr, observed: &Observed) -> bool {
    observed.addresses.iter().any(|seen| {
        seen.index == index
            && seen.prefix_len < full_prefix(seen.ip)
            && Prefix::new(seen.ip, seen.prefix_len).contains(ip)
    })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
