//! The kernel's IPVS as the balancer of `virtualServers`.

mod controller;
mod forwarding;
mod handle;
mod kube_proxy;
mod listening;
mod node;
mod paths;
mod plan;
mod prober;
mod reconciler;
mod record;
mod status;
mod sysctls;

pub(crate) use controller::{Input, Interfaces, IpvsPlan, Sessions};
pub(crate) use handle::Ipvs;
pub(crate) use plan::{Members, directed, members};
pub(crate) use prober::ProbeReport;
use prober::ProbeTarget;
pub(crate) use reconciler::{News, ReconcilerHandle};

/// Files in the state directory that tell what a daemon before this one made.
const RECORDS: [&str; 2] = [record::RECORD, node::RECORD];
