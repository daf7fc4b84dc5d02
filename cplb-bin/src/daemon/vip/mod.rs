//! The virtual IPs: the election, the keeper of the addresses, and the bridge between their threads.

mod bridge;
mod change;
mod election;
mod plan;
mod removals;
mod slot;

pub(crate) use bridge::VipReport;
pub(crate) use change::Change;
pub(crate) use election::{Election, reclaim};
pub(crate) use plan::{Instance, instances, named_interfaces};
