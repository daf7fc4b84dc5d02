//! What `cplb status --json` prints: a stable, documented schema.
//!
//! Fields are only ever added within one `schema` number. Names follow the configuration's. Durations are seconds;
//! moments are given as an age in seconds, so that a step of the wall clock cannot falsify them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: f64,
    /// The configuration file in use.
    pub(crate) config: String,
    /// Everything that keeps this node from doing its whole job; empty on a sound node.
    pub(crate) degraded: Vec<String>,
    pub(crate) serving: Serving,
    /// Whether the election runs at real-time priority.
    pub(crate) real_time: bool,
    pub(crate) instances: Vec<Instance>,
    /// What became of the kernel's news about links and addresses; absent without an instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<Kernel>,
    /// The interfaces that advertisements are received on.
    #[serde(default)]
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) services: Vec<Service>,
    /// The nftables table that leads the VIPs' traffic to the load balancer; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<Table>,
}

/// Whether this node could serve clients that reach it through a VIP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Serving {
    pub(crate) serving: bool,
    pub(crate) since_seconds: f64,
    /// Why not; absent while serving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// One VRRP instance.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    #[serde(rename = "virtualRouterID")]
    pub(crate) virtual_router_id: u8,
    /// The interface's name, or what is waited for.
    pub(crate) interface: String,
    /// Whether that interface exists and is up.
    pub(crate) interface_up: bool,
    #[serde(rename = "virtualIPs")]
    pub(crate) virtual_ips: Vec<String>,
    /// Init, Backup, Active, Listening, Resigning or Stopped.
    pub(crate) state: String,
    pub(crate) since_seconds: f64,
    pub(crate) reason: String,
    /// Whether the kernel has confirmed the VIPs on the interface.
    pub(crate) holds_virtual_ips: bool,
    pub(crate) priority: u8,
    /// What is advertised: lower than `priority` while not serving.
    pub(crate) advertised_priority: u8,
    pub(crate) advert_interval_seconds: f64,
    /// Length of the VIPs' lease in the kernel.
    pub(crate) lease_seconds: f64,
    /// The router that advertises, if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) active_router: Option<ActiveRouter>,
    pub(crate) advertisements_sent: u64,
    pub(crate) advertisements_received: u64,
    /// Discarded packets by reason.
    pub(crate) discarded: BTreeMap<String, u64>,
    /// Advertisements that were obeyed although they tell of another configuration, by what differs:
    /// `address_list` (other virtual IPs) or `interval` (version 2 only).
    #[serde(default)]
    pub(crate) mismatches: BTreeMap<String, u64>,
    /// The newest first.
    pub(crate) transitions: Vec<Transition>,
}

/// How this node keeps its picture of the kernel's links and addresses. All are totals since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kernel {
    /// How often the kernel dropped news because they came faster than they were read (netlink's ENOBUFS); each time
    /// everything is read anew.
    pub(crate) overruns: u64,
    /// How often everything was read anew, the first time at the start.
    pub(crate) resyncs: u64,
    /// Virtual IPs that somebody else removed while this node held them.
    pub(crate) missing: u64,
    /// Requests that the kernel refused or did not answer.
    pub(crate) errors: u64,
}

/// What arrived on one interface, whoever it was for. Packets of an instance's own VRID are counted there too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// VRRP packets.
    pub(crate) received: u64,
    /// Those that are too short to name a virtual router.
    pub(crate) malformed: u64,
    /// Those for virtual routers that do not run here, by VRID.
    pub(crate) foreign: BTreeMap<u8, u64>,
}

/// Another router that is Active.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ActiveRouter {
    pub(crate) address: String,
    pub(crate) priority: u8,
}

/// One change of state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transition {
    pub(crate) seconds_ago: f64,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) reason: String,
}

/// One balanced port.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    pub(crate) name: String,
    /// The port at the VIPs.
    pub(crate) port: u16,
    /// The port the load balancer listens on.
    pub(crate) bind_port: u16,
    pub(crate) balance: String,
    pub(crate) connections_active: u64,
    pub(crate) connections_accepted: u64,
    /// Clients that were refused because no backend took the connection.
    pub(crate) connections_refused: u64,
    pub(crate) backends: Vec<Backend>,
}

/// One backend of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Backend {
    pub(crate) address: String,
    /// Unknown, Up, UpReadinessUnknown, Draining or Down.
    pub(crate) state: String,
    pub(crate) since_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) connections_active: u64,
    pub(crate) connections_total: u64,
    pub(crate) connect_failures: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_check_seconds_ago: Option<f64>,
}

/// The nftables table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table {
    pub(crate) present: bool,
    /// How often it had to be restored because somebody removed or changed it.
    pub(crate) restored: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}
