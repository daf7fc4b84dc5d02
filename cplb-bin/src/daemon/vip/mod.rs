//! The virtual IPs: the election, the keeper of the addresses, and the bridge between their threads.

mod bridge;
mod election;

pub(crate) use bridge::{InstanceSettings, VipEvent};
pub(crate) use election::{Change, Election};
