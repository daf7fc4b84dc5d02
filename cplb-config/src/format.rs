//! The kinds of documents.

use std::fmt;

/// The kind of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `k0s.k0sproject.io`, `ClusterConfig`.
    K0s,
    /// `k0sctl.k0sproject.io`, `Cluster`.
    K0sctl,
    /// `cplb/v1alpha1`, `ControlPlaneLoadBalancer`.
    Native,
}

impl Format {
    /// The advice for a document of this kind that configures nothing.
    pub(crate) fn first_steps(self) -> &'static str {
        match self {
            Self::K0s => {
                "add spec.network.controlPlaneLoadBalancing.keepalived.vrrpInstances with virtualIPs and an authPass"
            }
            Self::K0sctl => {
                "add controllers under spec.hosts, and under spec.k0s.config \
                 spec.network.controlPlaneLoadBalancing.keepalived.vrrpInstances with virtualIPs and an authPass"
            }
            Self::Native => {
                "add `vrrpInstances:` with virtualIPs, or `backends:` with static addresses, under `spec`"
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::K0s => "k0s ClusterConfig",
            Self::K0sctl => "k0sctl Cluster",
            Self::Native => "cplb/v1alpha1 ControlPlaneLoadBalancer",
        })
    }
}
