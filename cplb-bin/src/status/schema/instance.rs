//! The VRRP instances.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One VRRP instance.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    #[serde(rename = "virtualRouterID")]
    pub(crate) virtual_router_id: u8,
    /// The interface's name, or the selector of one that does not exist yet.
    pub(crate) interface: String,
    /// True if that interface exists and is up.
    pub(crate) interface_up: bool,
    /// With their prefix lengths.
    #[serde(rename = "virtualIPs")]
    pub(crate) virtual_ips: Vec<String>,
    /// [`vrrp::router::StateName`]: `init`, `backup`, `active`, `listening`, `yielding`, `resigning` or `stopped`.
    pub(crate) state: String,
    /// In this state.
    pub(crate) since_seconds: f64,
    /// [`vrrp::router::Reason`] as text.
    pub(crate) reason: String,
    /// True if the kernel has confirmed each of the VIPs on the interface.
    #[serde(rename = "holdsVirtualIPs")]
    pub(crate) holds_virtual_ips: bool,
    /// The reasons why this node should not hold the VIPs although it serves; with any it advertises the degraded
    /// priority, a fifth of `priority`.
    #[serde(default)]
    pub(crate) unfit: Vec<String>,
    /// VIPs that are on this node without a lease, on whatever interface.
    #[serde(default)]
    pub(crate) copies: Vec<AddressCopy>,
    /// Hosts that answer for VIPs on the link without being the Active.
    #[serde(default)]
    pub(crate) foreign_owners: Vec<ForeignOwner>,
    /// The checks of services through the VIPs, while another router is Active.
    #[serde(default)]
    pub(crate) end_to_end: Vec<EndToEnd>,
    /// As configured, 50 to 254.
    pub(crate) priority: u8,
    /// The priority in advertisements: a fifth of `priority` while not serving, or with reasons in `unfit`.
    pub(crate) advertised_priority: u8,
    pub(crate) advert_interval_seconds: f64,
    /// Length of the VIPs' lease in the kernel, in whole seconds.
    pub(crate) lease_seconds: f64,
    /// The router that advertises, if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) active_router: Option<ActiveRouter>,
    /// The addresses that advertisements are sent to, with unicast: as listed, or as `auto` has found them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unicast_peers: Option<Vec<String>>,
    /// With unicast one per peer.
    pub(crate) advertisements_sent: u64,
    /// Packets that could be decoded, with those discarded later.
    pub(crate) advertisements_received: u64,
    /// Packets that were discarded, by [`vrrp::router::Discard`], without counts of 0.
    pub(crate) discarded: BTreeMap<String, u64>,
    /// Advertisements that were accepted although they show another configuration, by the difference:
    /// `address_list` (other virtual IPs) or `interval` (version 2 only).
    #[serde(default)]
    pub(crate) mismatches: BTreeMap<String, u64>,
    /// Of these the ones within the last 60 s: the time since the last one, by the difference.
    #[serde(default)]
    pub(crate) mismatch_seconds_ago: BTreeMap<String, f64>,
    /// The last 16, the newest first.
    pub(crate) transitions: Vec<Transition>,
    /// The number of all, by the new state and by [`vrrp::router::Reason::as_str`].
    #[serde(default)]
    pub(crate) transition_totals: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A VIP that another program or a person has placed on this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AddressCopy {
    /// With its prefix length.
    pub(crate) address: String,
    /// The interface's name.
    pub(crate) interface: String,
}

/// A host that answers for a VIP and is not the Active.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForeignOwner {
    /// Without a prefix length.
    pub(crate) address: String,
    /// The link-layer address that answers.
    pub(crate) mac: String,
    pub(crate) first_seconds_ago: f64,
    pub(crate) last_seconds_ago: f64,
    /// The address of the controller that has this link-layer address, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) controller: Option<String>,
}

/// The checks of one service through one VIP, as a client on this node's link reaches it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndToEnd {
    /// The name of the service.
    pub(crate) service: String,
    /// The VIP and the port.
    pub(crate) endpoint: String,
    /// The source of the Active's advertisements.
    pub(crate) active: String,
    /// `answers`, `fails`, `local` (the VIP is local to this node, too, which cannot check), `noRoute` or
    /// `unknown`.
    pub(crate) state: String,
    /// The reason for which the last check failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Failures in a row; three are an entry in `degraded`.
    pub(crate) failures: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checked_seconds_ago: Option<f64>,
}

/// Another router that is Active.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ActiveRouter {
    pub(crate) address: String,
    /// The priority that it advertises, 0 to 255.
    pub(crate) priority: u8,
}

/// One change of state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transition {
    /// By the wall clock, which also runs while the machine is suspended.
    pub(crate) seconds_ago: f64,
    /// As [`Instance::state`].
    pub(crate) from: String,
    /// As [`Instance::state`].
    pub(crate) to: String,
    /// As [`Instance::reason`].
    pub(crate) reason: String,
}
