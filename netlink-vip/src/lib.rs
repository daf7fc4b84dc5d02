//! Virtual IP addresses as kernel leases.
//!
//! A [`Keeper`] holds groups of virtual addresses (VIPs) on interfaces for as long as the caller, usually a VRRP
//! election, keeps claiming them:
//!
//! - **A VIP is a lease.** It is added with a finite lifetime and refreshed under each [`KeeperHandle::claim`]. If
//!   the process is killed, hangs or starves, the kernel itself removes the address.
//! - **Nothing foreign is touched.** Addresses and routes carry a mark (`IFA_PROTO`, `rtm_protocol` 203) and are listed
//!   in a state directory; only what is both is ever changed or deleted. A restart reclaims its own leftovers.
//! - **The node's own addresses are safe.** VIPs are installed as /32 and /128 whatever their subnet, without prefix
//!   routes, and are never a default source.
//! - **Tables, not events, decide.** Events of the kernel are hints to read its tables; lost or unreadable
//!   events lead to a resync.
//!
//! A [`RealServer`] is the other side of IPVS: it makes a node accept what a director, which holds the VIP, sends it.
//! [`acceptance`] finds out whether other nodes do. Beside them stand helpers that do one thing each: [`sessions`]
//! resets TCP sessions through a VIP and lists listening sockets, [`DummyLink`] keeps addresses on a dummy link,
//! [`TunnelLink`] unpacks what comes through tunnels, [`SysctlGuard`] changes sysctls and restores them.
//!
//! The crate is Linux only, needs CAP_NET_ADMIN in its network namespace, and works in the namespace of the thread
//! that calls it.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use netlink_vip::{
//!     InterfaceSelector, Keeper, KeeperOptions, LeaseTime, Release, VipAddress, VipGroupConfig,
//! };
//!
//! let group = VipGroupConfig {
//!     id: 1.into(),
//!     interface: InterfaceSelector::DefaultRoute,
//!     addresses: vec![VipAddress::new([10, 0, 0, 100].into(), 24)?],
//!     address_label: None,
//!     lease: LeaseTime::MIN,
//!     lasting: [].into(),
//! };
//! let events = Box::new(|event| println!("{event:?}"));
//! let keeper = Keeper::spawn(KeeperOptions::new("/var/lib/example"), vec![group], events)?;
//! for _ in 0..10 {
//!     keeper.claim(1.into(), Instant::now() + Duration::from_millis(1_800));
//!     std::thread::sleep(Duration::from_millis(600));
//! }
//! keeper.release(1.into(), Release::Planned);
//! keeper.shutdown();
//! keeper.join()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A node behind directors that route directly or through tunnels:
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//! use netlink_vip::{RealServer, RealServerConfig, TunnelConfig};
//!
//! let mut server = RealServer::open(Path::new("/var/lib/example/real-server"))?;
//! let mut config = RealServerConfig::new(vec![[10, 0, 0, 100].into()]);
//! config.interfaces.push("eth0".to_owned());
//! config.tunnels.push(TunnelConfig::new([10, 0, 0, 1].into()));
//! let mut report = server.change(config)?;
//! for _ in 0..10 {
//!     report.repairs.iter().for_each(|repair| println!("{repair}"));
//!     std::thread::sleep(Duration::from_secs(1));
//!     report = server.reconcile()?;
//! }
//! server.remove()?;
//! # Ok::<(), netlink_vip::RealServerError>(())
//! ```

#[cfg(feature = "real-server")]
pub mod acceptance;
#[cfg(feature = "real-server")]
mod dummy;
#[cfg(feature = "keeper")]
mod event;
#[cfg(feature = "netlink")]
pub mod files;
#[cfg(all(feature = "keeper", feature = "real-server"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "keeper")]
mod group;
#[cfg(feature = "netlink")]
mod inventory;
#[cfg(feature = "keeper")]
mod keeper;
#[cfg(feature = "keeper")]
mod kernel;
#[cfg(feature = "keeper")]
mod lease;
#[cfg(feature = "real-server")]
mod link_name;
#[cfg(feature = "keeper")]
mod listener;
#[cfg(feature = "keeper")]
mod mailbox;
#[cfg(feature = "keeper")]
mod manager;
// Modules that both features share: each alone leaves parts of them unused.
#[cfg(feature = "keeper")]
mod event_loop;
#[cfg(feature = "netlink")]
#[cfg_attr(not(all(feature = "keeper", feature = "real-server")), allow(dead_code))]
mod netlink;
#[cfg(feature = "netlink")]
#[cfg_attr(not(all(feature = "keeper", feature = "real-server")), allow(dead_code))]
mod ownership;
#[cfg(feature = "keeper")]
pub mod plan;
#[cfg(feature = "real-server")]
mod real_server;
#[cfg(feature = "keeper")]
mod realtime;
#[cfg(feature = "keeper")]
mod record;
#[cfg(feature = "real-server")]
mod repair;
#[cfg(feature = "real-server")]
mod rp_filter;
#[cfg(feature = "netlink")]
#[cfg_attr(not(all(feature = "keeper", feature = "real-server")), allow(dead_code))]
mod select;
#[cfg(feature = "netlink")]
#[cfg_attr(not(all(feature = "keeper", feature = "real-server")), allow(dead_code))]
pub mod sessions;
#[cfg(feature = "netlink")]
mod socket;
#[cfg(feature = "keeper")]
mod status;
#[cfg(feature = "real-server")]
mod sysctl;
#[cfg(feature = "real-server")]
mod tunnel;
mod types;
#[cfg(feature = "keeper")]
mod validity;
#[cfg(feature = "netlink")]
#[cfg_attr(not(all(feature = "keeper", feature = "real-server")), allow(dead_code))]
pub mod wire;

pub use types::{
    AddressError, AddressLabel, FoundInterface, GroupError, GroupId, InterfaceSelector, LeaseTime,
    LeaseTimeError, Prefix, Release, VipAddress, VipGroupConfig,
};
#[cfg(feature = "real-server")]
pub use {
    dummy::{DummyError, DummyLink},
    real_server::{RealServer, RealServerConfig, RealServerError, ReconcileReport},
    repair::Repair,
    sysctl::{Recovery, SysctlError, SysctlGuard, SysctlKey},
    tunnel::{TunnelConfig, TunnelError, TunnelLink},
};
#[cfg(feature = "keeper")]
pub use {
    event::{
        AddressCopy, EventSink, InterfaceAddress, InterfaceState, KeeperEvent, Refusal, Removal, ResyncCause,
        Warning,
    },
    keeper::{Keeper, KeeperHandle, KeeperOptions, SpawnError},
    manager::SessionPolicy,
    record::RegisterError,
    status::{AddressState, AddressStatus, Counters, GroupState, GroupStatus, Status},
};
#[cfg(feature = "netlink")]
pub use {inventory::Inventory, socket::KernelError};
