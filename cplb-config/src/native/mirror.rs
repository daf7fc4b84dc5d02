//! The shape of the native document, field by field.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

/// A control plane load balancer of cplb.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) api_version: ApiVersion,
    pub(super) kind: Kind,
    /// Free for the user: names, labels, annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<BTreeMap<String, serde_json::Value>>,
    pub(super) spec: Spec,
}

#[derive(Serialize, JsonSchema)]
pub(super) enum ApiVersion {
    #[serde(rename = "cplb/v1alpha1")]
    V1Alpha1,
}

#[derive(Serialize, JsonSchema)]
pub(super) enum Kind {
    ControlPlaneLoadBalancer,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct Spec {
    /// Virtual routers: addresses that move between the controllers.
    #[schemars(length(max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vrrp_instances: Option<Vec<VrrpInstance>>,
    /// Virtual IPs that the kernel's IPVS balances instead of the userspace proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) virtual_servers: Option<Vec<VirtualServerSpec>>,
    /// Keep the IPVS connections of all nodes in step, so that those of kind DR and TUN outlive a failover.
    /// Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ipvs_sync: Option<bool>,
    /// Only move the virtual IPs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disable_load_balancer: Option<bool>,
    /// The address or name by which clients reach the API servers. The servers' certificates should have it. Default: the
    /// host of the kubeconfig unless that is a controller, else the virtual IPs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) external_address: Option<String>,
    /// First port the userspace proxy binds. Default 6444.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_space_proxy_bind_port: Option<u16>,
    /// The address of the node at which other hosts reach the bind ports themselves; 0.0.0.0 for all of IPv4, :: for
    /// all. Default: none where there are virtual IPs, else all. Processes on the node always reach them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bind_address: Option<IpAddr>,
    /// The balanced services. Default: kube-apiserver on port 6443.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) services: Option<Vec<ServiceSpec>>,
    /// The servers behind every service that has none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backends: Option<BackendsSpec>,
    /// For services without their own. Default roundRobin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) balance: Option<BalanceSpec>,
    /// For services without their own. A type https holds for the API server; others get tls with this timing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) health_check: Option<HealthCheckSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<StatusSpec>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct VrrpInstance {
    /// Addresses with the prefix length of their subnet, such as `10.0.0.100/24`.
    #[serde(rename = "virtualIPs")]
    #[schemars(length(min = 1, max = 255))]
    pub(super) virtual_ips: Vec<String>,
    /// Name or MAC address; the interface of the default route if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interface: Option<String>,
    /// Default 51 + index.
    #[serde(rename = "virtualRouterID", skip_serializing_if = "Option::is_none")]
    pub(super) virtual_router_id: Option<u8>,
    /// 1 to 8 characters, version 2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub(super) auth_pass: Option<String>,
    /// The former authPass, while it is rotated: accepted, too, and advertisements are sent with either.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub(super) auth_pass_previous: Option<String>,
    /// Signatures of advertisements, as keepalived 2.4 has them.
    #[serde(rename = "authHMAC", skip_serializing_if = "Option::is_none")]
    pub(super) auth_hmac: Option<AuthHmacSpec>,
    /// VRRP version of IPv4, 2 or 3. Default 2, and 3 for an instance without IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 3))]
    pub(super) version: Option<u8>,
    /// Version 2: whole seconds up to 255s. Version 3: steps of 10ms up to 40.95s. Default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advert_interval: Option<String>,
    /// k0s's form of advertInterval.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub(super) advert_interval_seconds: Option<u8>,
    /// Default 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50, max = 254))]
    pub(super) priority: Option<u8>,
    /// Default degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) preempt: Option<PreemptSpec>,
    /// Taken from the interface if absent.
    #[serde(rename = "unicastSourceIP", skip_serializing_if = "Option::is_none")]
    pub(super) unicast_source_ip: Option<IpAddr>,
    /// Advertise to these routers instead of by multicast; `auto` for the controllers that are known or found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unicast_peers: Option<UnicastPeersSpec>,
    /// RFC 6724 label of IPv6 addresses, 4294967295 excluded. Default 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address_label: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum UnicastPeersSpec {
    Auto(AutoSpec),
    Listed(Vec<IpAddr>),
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum AutoSpec {
    Auto,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct AuthHmacSpec {
    /// Each signs a copy of every advertisement.
    #[schemars(length(min = 1, max = 4))]
    pub(super) keys: Vec<HmacKeySpec>,
    /// The identifier of the key that signs the first copy. Default: the only key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub(super) active_key: Option<u8>,
    /// Default enforce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<HmacMode>,
    /// Default time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) anti_replay: Option<AntiReplaySpec>,
    /// The largest difference between a time of signing and this node's clock, 1s to 300s. Default three
    /// advertisement intervals, at least 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) window: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct HmacKeySpec {
    /// The same on every controller.
    #[schemars(range(min = 1, max = 255))]
    pub(super) id: u8,
    /// `file:` and an absolute path, `hex:` and 64 to 128 digits, or a text of 32 to 64 bytes.
    pub(super) key: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum HmacMode {
    ReceiveOnly,
    Permissive,
    Enforce,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum AntiReplaySpec {
    Time,
    Monotonic,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum PreemptSpec {
    Never,
    Degraded,
    Always,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct VirtualServerSpec {
    pub(super) ip_address: IpAddr,
    /// The longest interval between the health checks of what IPVS balances; intervals below 10ms are read as 10ms.
    /// Default 1m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delay_loop: Option<String>,
    /// Default rr.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lb_algo: Option<LbAlgo>,
    /// Default DR.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lb_kind: Option<LbKind>,
    /// The time that a client stays with its server; 0 chooses for each connection. Default 360.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_678_400))]
    pub(super) persistence_timeout_seconds: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum LbAlgo {
    Rr,
    Wrr,
    Lc,
    Wlc,
    Lblc,
    Dh,
    Sh,
    Sed,
    Nq,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum LbKind {
    Nat,
    Dr,
    Tun,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum BalanceSpec {
    RoundRobin,
    LeastConnections,
    Weighted,
    SourceHash,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub(super) struct ServiceSpec {
    #[schemars(length(min = 1, max = 63))]
    pub(super) name: String,
    /// Port clients use on the virtual IPs.
    #[schemars(range(min = 1))]
    pub(super) port: u16,
    /// Port the proxy listens on. Default userSpaceProxyBindPort + index.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) bind_port: Option<u16>,
    /// Port of the servers. Default port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) backend_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backends: Option<BackendsSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) balance: Option<BalanceSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) health_check: Option<HealthCheckSpec>,
    /// Client connections of the proxy that may be open at once; further ones are reset. Default, and at most: as many
    /// as the descriptors of the process (LimitNOFILE) allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) max_connections: Option<u32>,
    /// The same for connections from one client address. Default: no such limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) max_connections_per_client: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct BackendsSpec {
    #[serde(rename = "static", skip_serializing_if = "Option::is_none")]
    pub(super) fixed: Option<Vec<BackendSpec>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kubernetes: Option<KubernetesSpec>,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum BackendSpec {
    /// `10.0.0.11`, `10.0.0.11:6443`, `[fd00::11]:6443` or a host name.
    Address(String),
    Full(FullBackendSpec),
}

#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct FullBackendSpec {
    pub(super) address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) port: Option<u16>,
    /// Default 1; 0 takes no new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 256))]
    pub(super) weight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct KubernetesSpec {
    /// Absolute path. Default /var/lib/k0s/pki/admin.conf.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kubeconfig: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct HealthCheckSpec {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<HealthType>,
    /// Default /readyz, type https only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    /// HTTP statuses that mean ready, and no others; type https only. Default: all of 2xx, and a server that answers
    /// 401, 403 or 429 is up as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = 200, max = 599)))]
    pub(super) statuses: Option<Vec<u16>>,
    /// From 10ms to 1h. Default 1s. With virtualServers at most their shortest delayLoop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interval: Option<String>,
    /// Default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<String>,
    /// Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(super) rise: Option<u32>,
    /// Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub(super) fall: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum HealthType {
    Https,
    Tls,
    Tcp,
}

#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct StatusSpec {
    /// Address and port of the status page, such as 127.0.0.1:9000.
    pub(super) listen: Option<String>,
}
