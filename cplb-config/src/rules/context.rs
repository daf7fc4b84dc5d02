//! The configuration of the cluster around the load balancing section.

use std::net::IpAddr;

use crate::format::Format;
use crate::model::Port;
use crate::read::{Placed, PlacedBackend};
use crate::yaml::Span;

/// The rest of the cluster's configuration, as far as it matters to the load balancing section.
#[derive(Debug)]
pub(crate) struct ClusterContext {
    pub(crate) format: Format,
    /// The place to report when nothing is configured.
    pub(crate) at: Span,
    /// The API server's port; `None` if it was wrong, which was reported.
    pub(crate) api_port: Option<Port>,
    /// `spec.api.address`, the node's own address to k0s.
    pub(crate) api_address: Option<Placed<IpAddr>>,
    /// `spec.api.externalAddress`, if not empty.
    pub(crate) external_address: Option<Placed<String>>,
    /// Set if every controller runs without k0s's endpoint reconciler.
    pub(crate) endpoint_reconciler_disabled: bool,
    /// The controllers of a k0sctl file.
    pub(crate) controllers: Vec<PlacedBackend>,
    /// Those of them that are workers too, by name.
    pub(crate) workers: Vec<Placed<String>>,
    /// The settings of kube-proxy.
    pub(crate) kube_proxy: KubeProxy,
    /// The field that binds the API server to one address, if there is one.
    pub(crate) bound_server: Option<BoundServer>,
}

/// A field that binds the API server to one address.
#[derive(Debug)]
pub(crate) struct BoundServer {
    /// The field, by its name.
    pub(crate) by: Placed<&'static str>,
    /// The address, where it is given; else it is the node's own.
    pub(crate) address: Option<Placed<IpAddr>>,
}

/// The mode of kube-proxy on the nodes of the load balancer.
#[derive(Debug, Default)]
pub(crate) enum KubeProxy {
    /// No mode is configured, so it is iptables.
    #[default]
    Unspecified,
    /// It does not run there, or in another mode than ipvs.
    WithoutIpvs,
    /// With IPVS.
    Ipvs(IpvsProxy),
}

/// kube-proxy in mode ipvs.
#[derive(Debug)]
pub(crate) struct IpvsProxy {
    /// The place of the mode.
    pub(crate) mode: Placed<()>,
    /// Set if there are settings for the mode.
    pub(crate) has_ipvs: bool,
    /// The networks that it leaves alone.
    pub(crate) excluded: Option<Placed<Vec<String>>>,
}
