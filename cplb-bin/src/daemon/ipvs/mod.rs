//! The kernel's IPVS as the balancer of `virtualServers`.

mod controller;
mod forwarding;
mod handle;
mod input;
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

pub(crate) use handle::Ipvs;
pub(crate) use input::{Input, Interfaces, Sessions};
pub(crate) use plan::{IpvsPlan, Members, members};
pub(crate) use prober::ProbeReport;
pub(crate) use reconciler::{ReconcilerHandle, ReconcilerReport};

/// The files in the state directory that record what a former daemon created.
const RECORDS: [&str; 2] = [record::RECORD, node::RECORD];
