//! The balanced services and their backends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One balanced port.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Service {
    pub(crate) name: String,
    /// The port at the VIPs.
    pub(crate) port: u16,
    /// The port the load balancer listens on.
    pub(crate) bind_port: u16,
    /// [`lb_proxy::Balance`] as in the configuration.
    pub(crate) balance: String,
    /// The delivery of connections from other hosts to the load balancer, by virtual IP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) delivery: Vec<Delivery>,
    /// Open now.
    pub(crate) connections_active: u64,
    /// Clients accepted.
    pub(crate) connections_accepted: u64,
    /// Clients refused for any reason.
    pub(crate) connections_refused: u64,
    /// The same by [`lb_proxy::Refusal`].
    #[serde(default)]
    pub(crate) refusals: BTreeMap<String, u64>,
    /// Client connections that may be open at once.
    #[serde(default)]
    pub(crate) max_connections: u64,
    /// The same from one client address; absent if there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_connections_per_client: Option<u64>,
    pub(crate) backends: Vec<Backend>,
}

/// The delivery of connections from other hosts to a service at one virtual IP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Delivery {
    #[serde(rename = "virtualIP")]
    pub(crate) virtual_ip: String,
    /// `transparent` or `dnat`.
    pub(crate) mode: String,
    /// The reason for `dnat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// One backend of a service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Backend {
    /// With its port.
    pub(crate) address: String,
    /// [`lb_proxy::BackendState`]: `unknown`, `up`, `suspect`, `terminating`, `down` or `draining`.
    pub(crate) state: String,
    /// Since its health last changed, or since it was configured.
    pub(crate) since_seconds: f64,
    /// The reason for its state, such as `connection refused`; optional.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Open now.
    pub(crate) connections_active: u64,
    /// All connections so far, with the open ones.
    pub(crate) connections_total: u64,
    /// Failed connects.
    pub(crate) connect_failures: u64,
    /// Since its last check ended; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_check_seconds_ago: Option<f64>,
    /// The duration of that check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_check_took_seconds: Option<f64>,
    /// Payload from clients to the backend so far.
    #[serde(default)]
    pub(crate) bytes_from_clients: u64,
    /// Payload from the backend to clients so far.
    #[serde(default)]
    pub(crate) bytes_to_clients: u64,
    /// The times that connects to it took.
    #[serde(default)]
    pub(crate) connect_times: ConnectTimes,
}

/// The distribution of the times that successful connects took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectTimes {
    pub(crate) sum_seconds: f64,
    /// The shortest first; each connect is counted once.
    pub(crate) classes: Vec<ConnectClass>,
}

/// The connects that took longer than those of the class before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectClass {
    /// The longest time of this class; absent for the last one, which has no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) up_to_seconds: Option<f64>,
    pub(crate) count: u64,
}
