//! The inputs of the controller.

use std::collections::BTreeMap;

use lb_proxy::nft::Director;
use vrrp::runner::InstanceId;

use super::plan::{IpvsPlan, Members};
use super::prober::ProbeReport;
use super::reconciler::ReconcilerReport;

/// The interfaces of the instances that the election runs, where the configuration names them. `None` without an
/// election.
pub(crate) type Interfaces = Option<BTreeMap<InstanceId, Option<String>>>;

/// An input of the controller.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Another configuration is in use.
    Configured(IpvsPlan, Interfaces),
    /// The election runs other instances under the same configuration.
    Instances(Interfaces),
    /// The servers of each service, with the states of their health checks.
    Members(Members),
    /// The keeper has read the addresses and interfaces for the first time.
    InitialSync,
    /// The addresses of an instance are on this node.
    Held(InstanceId),
    /// The addresses of an instance are no longer on this node.
    Lost(InstanceId),
    /// An instance has this interface.
    Interface(InstanceId, Option<String>),
    /// An instance is about to release its addresses.
    PlannedRelease(InstanceId, Sessions),
    /// The reconciler has observed the kernel's IPVS.
    Observed(ReconcilerReport),
    /// The prober has another report.
    Probed(ProbeReport),
    /// The table has these rules, or its change failed and it may still have the former ones. A failure counts as applied:
    /// otherwise a backend that dies would stay in IPVS for as long as the table cannot be changed.
    RulesApplied(Vec<Director>),
    /// This node is about to stop.
    Depart,
    /// Time has passed.
    Tick,
}

/// The fate of the sessions of an instance that moves to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// The next director continues them, so the services stay until the addresses are removed: without services, this node
    /// would reset the sessions whose packets still arrive.
    Continue,
    End,
}
