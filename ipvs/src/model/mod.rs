//! The things that IPVS consists of.

mod daemon;
mod destination;
mod key;
mod name;
mod service;
mod stats;

pub use daemon::{Info, SyncDaemon, SyncState, TimeoutChange, Timeouts, Version};
pub use destination::{
    Destination, DestinationEntry, ForwardMethod, Tunnel, TunnelFlags, TunnelType, Weight,
};
pub use key::{AddressFamily, DestinationKey, Protocol, ServiceKey};
pub use name::{EngineName, InterfaceName, NameError, SchedulerName};
pub use service::{Netmask, NetmaskError, Seconds, Service, ServiceEntry, ServiceFlags};
pub use stats::{Stats, Stats32};
