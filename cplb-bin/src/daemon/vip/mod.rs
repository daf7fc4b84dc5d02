//! The virtual IPs: the election, the keeper of the addresses, and the bridge between their threads.

mod bridge;
mod election;
mod plan;

pub(crate) use bridge::VipEvent;
pub(crate) use election::{Change, Election};
pub(crate) use plan::{Instance, instances, named_interfaces};
