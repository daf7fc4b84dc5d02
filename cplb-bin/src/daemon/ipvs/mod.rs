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
pub(crate) use reconciler::{ReconcilerHandle, ReconcilerReport};

/// The files in the state directory that record what a former daemon created.
const RECORDS: [&str; 2] = [record::RECORD, node::RECORD];
