//! The other controllers, as they report themselves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Another controller that reports itself through the group channel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Peer {
    pub(crate) address: String,
    /// The name of the node.
    pub(crate) node: String,
    pub(crate) version: String,
    /// True if its messages are signed.
    pub(crate) authenticated: bool,
    pub(crate) heard_seconds_ago: f64,
    /// The difference of its wall clock to this node's, positive if it is ahead, as of its last report.
    pub(crate) clock_ahead_seconds: f64,
    /// Its serving verdict; absent until it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) serving: Option<bool>,
    /// The reason for not serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) degraded: Vec<String>,
    /// Further entries of its `degraded`, which its report has no room for.
    #[serde(default)]
    pub(crate) degraded_unlisted: u16,
    pub(crate) instances: Vec<PeerInstance>,
    /// The last 8 changes of state of its instances, the newest first.
    #[serde(default)]
    pub(crate) transitions: Vec<PeerTransition>,
}

/// One change of state of an instance of another controller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerTransition {
    #[serde(rename = "virtualRouterID")]
    pub(crate) virtual_router_id: u8,
    /// By this node's wall clock, without the difference of the two clocks.
    pub(crate) seconds_ago: f64,
    /// Its state, such as `active`; `unknown` for one of a later version.
    pub(crate) to: String,
    pub(crate) reason: String,
}

/// An instance of another controller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerInstance {
    #[serde(rename = "virtualRouterID")]
    pub(crate) virtual_router_id: u8,
    /// Its state, such as `active`; `unknown` for one of a later version.
    pub(crate) state: String,
    pub(crate) advertised_priority: u8,
    /// The time for which it may hold the virtual IPs unless it renews its claim; 0 if it does not hold them.
    pub(crate) claim_seconds: f64,
}

/// The group channel on one interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Channel {
    pub(crate) interface: String,
    pub(crate) messages_sent: u64,
    pub(crate) messages_received: u64,
    /// Datagrams that were not used, by reason.
    pub(crate) discarded: BTreeMap<String, u64>,
}
