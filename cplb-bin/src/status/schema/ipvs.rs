//! The kernel's IPVS and its virtual servers.

use serde::{Deserialize, Serialize};

/// The kernel's IPVS.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ipvs {
    /// True if the kernel has it.
    pub(crate) available: bool,
    /// The reason why it is not available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) virtual_servers: Vec<VirtualServer>,
    /// The sync daemons that run, `master` and `backup`.
    pub(crate) sync_daemons: Vec<String>,
}

/// A server that gets no connections.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExcludedServer {
    pub(crate) address: String,
    pub(crate) reason: String,
}

/// One port of a virtual IP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VirtualServer {
    pub(crate) ip_address: String,
    pub(crate) port: u16,
    /// The name of the service whose health checks decide.
    pub(crate) service: String,
    /// The firewall mark that the kernel's service matches, `FWM` in `ipvsadm -Ln`.
    pub(crate) mark: u32,
    pub(crate) lb_algo: String,
    pub(crate) lb_kind: String,
    /// 0 without persistence.
    pub(crate) persistence_timeout_seconds: u32,
    /// True if the virtual IP is on this node.
    pub(crate) held: bool,
    /// True if this node is the director: it has the virtual IP, and the packets of clients go to IPVS.
    pub(crate) directing: bool,
    /// Since the kernel's service was created.
    pub(crate) connections_total: u64,
    pub(crate) servers: Vec<RealServer>,
    /// Servers that a director does not use as long as it has accepting ones.
    pub(crate) excluded: Vec<ExcludedServer>,
}

/// A server that a director forwards to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RealServer {
    pub(crate) address: String,
    /// 0 takes no new connections.
    pub(crate) weight: u32,
    pub(crate) connections_active: u32,
    pub(crate) connections_inactive: u32,
    pub(crate) connections_total: u64,
    pub(crate) bytes_in: u64,
}
