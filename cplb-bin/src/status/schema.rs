//! The document of `cplb status --json`: a stable schema, described in `docs/status.md`.
//!
//! Within one `schema` number fields are added, never changed or removed. Names follow the configuration. Durations are
//! seconds; moments are ages in seconds. All ages but those of transitions are counted by a monotonic clock, so that
//! a step of the wall clock cannot falsify them. Counts are totals since the start of the daemon.

mod group;
mod instance;
mod ipvs;
mod service;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use group::{Channel, Peer, PeerInstance, PeerTransition};
pub(crate) use instance::{ActiveRouter, AddressCopy, EndToEnd, ForeignOwner, Instance, Transition};
pub(crate) use ipvs::{ExcludedServer, Ipvs, RealServer, VirtualServer};
pub(crate) use service::{Backend, ConnectClass, ConnectTimes, Delivery, Service};

/// The number of this schema.
pub(crate) const SCHEMA: u32 = 1;

/// The whole document.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// See [`SCHEMA`].
    pub(crate) schema: u32,
    /// The daemon's version.
    pub(crate) version: String,
    /// The daemon's process.
    pub(crate) pid: u32,
    /// Since the daemon started.
    pub(crate) uptime_seconds: f64,
    /// The configuration file in use.
    pub(crate) config: String,
    /// Everything about this node that is not as it should be; empty on a sound node.
    pub(crate) degraded: Vec<String>,
    /// The number of these entries by the kind of their cause.
    #[serde(default)]
    pub(crate) degraded_causes: BTreeMap<String, u64>,
    pub(crate) serving: Serving,
    /// True if the election runs at real-time priority; false without an instance.
    pub(crate) real_time: bool,
    pub(crate) instances: Vec<Instance>,
    /// Counters of the netlink connection; absent without an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<Kernel>,
    /// The other controllers that report themselves, by address.
    #[serde(default)]
    pub(crate) peers: Vec<Peer>,
    /// The channels by which they do.
    #[serde(default)]
    pub(crate) channels: Vec<Channel>,
    /// The interfaces that advertisements are received on.
    #[serde(default)]
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) services: Vec<Service>,
    /// The clusters whose API servers are discovered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) discovery: Vec<Discovery>,
    /// The kernel's IPVS; absent without `virtualServers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ipvs: Option<Ipvs>,
    /// The nftables table that directs the VIPs' traffic to the load balancer; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<Table>,
}

/// The serving verdict: this node can serve clients that reach it through a VIP, or not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Serving {
    pub(crate) serving: bool,
    /// Age of the verdict.
    pub(crate) since_seconds: f64,
    /// The reason for not serving, such as `no healthy backend`; absent while serving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// Counters of the netlink connection by which this node follows links and addresses; totals since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kernel {
    /// Overruns: the kernel dropped events that were not read in time (netlink's ENOBUFS), and a resync followed.
    pub(crate) overruns: u64,
    /// Complete reads of all links and addresses, the first at the start.
    pub(crate) resyncs: u64,
    /// Virtual IPs that another process removed while this node held them.
    pub(crate) missing: u64,
    /// Requests that the kernel refused or did not answer.
    pub(crate) errors: u64,
}

/// The VRRP packets that arrived on one interface, of all VRIDs. Those of an instance are counted there too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// VRRP packets.
    pub(crate) received: u64,
    /// Packets that are too short for a VRID.
    pub(crate) malformed: u64,
    /// Packets for VRIDs that have no instance on this interface, by VRID.
    pub(crate) foreign: BTreeMap<u8, u64>,
}

/// A cluster whose API servers are discovered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Discovery {
    /// The path of the file.
    pub(crate) kubeconfig: String,
    /// Source of the servers: `api`, `disk` or `nothing`.
    pub(crate) source: String,
    pub(crate) servers: Vec<String>,
    /// The missing file that discovery waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waiting: Option<String>,
    /// The failure because of which the API is not followed now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The reason why the list of the API is not used as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kept: Option<String>,
    /// The API server that answered last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answered_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answered_seconds_ago: Option<f64>,
}

/// The nftables table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table {
    /// True if it was in place at the last check.
    pub(crate) present: bool,
    /// Number of times that it was restored after another program had removed or changed it.
    pub(crate) restored: u64,
    /// The reason why it is not in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests;
