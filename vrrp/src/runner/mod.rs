//! Sockets, timers and the real-time thread that drive [`VirtualRouter`](crate::VirtualRouter)s on Linux.
//!
//! [`Runner::spawn`] starts one thread for any number of routers. It owns
//!
//! * per interface and family one raw socket for advertisements (protocol 112, bound to the device, TTL 255, CS6,
//!   multicast loop off), shared by all routers of the interface, for IPv4 one AF_PACKET socket that receives them, and
//!   one that watches for the announcements of other nodes, filtered by the virtual addresses that this node holds; per
//!   interface one AF_PACKET socket that announces;
//! * one timerfd for the deadlines of all routers.
//!
//! Each iteration first reads all sockets that matter, then handles commands, then the deadlines that had passed
//! *before* it began to read. A thread that was stopped or starved therefore never takes over from an Active that has
//! advertisements waiting in the queue.
//!
//! It makes no netlink request and takes no lock. It learns the state of an interface by
//! [`RunnerHandle::interface`], and claims and releases virtual addresses through a [`VipKeeper`]; neither waits for
//! the other. Sockets are opened and closed by a helper thread, since the kernel can block both for milliseconds.

mod engine;
mod event;
mod followed;
mod handle;
mod instance;
mod limiter;
mod link;
pub(crate) mod link_layer;
mod opener;
mod outside;
pub(crate) mod readiness;
mod realtime;
mod socket;
mod status;
mod timer;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use event::{RunnerEvent, SocketOperation};
pub use followed::{ActiveChange, ChangeReason};
pub use handle::{JoinError, RunnerHandle};
pub use status::{
    ActivePeer, InstanceStatus, InterfaceStatus, PastTransition, Punctuality, RunnerStatus, Traffic,
};

use crate::packet::ChecksumPolicy;
use crate::prefix::LinkPrefix;
use crate::router::{Claim, Release, RouterConfig};
use crate::types::MacAddr;

/// Names a router to its owner; chosen by the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u32);

impl From<InstanceId> for u32 {
    fn from(id: InstanceId) -> Self {
        id.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A router and how it reaches its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceConfig {
    /// Its name.
    pub id: InstanceId,
    /// The election.
    pub router: RouterConfig,
    /// The transport of the advertisements.
    pub transport: Transport,
    /// The checksums of version 3 over IPv4 that are accepted.
    pub checksum: ChecksumPolicy,
}

/// The transport of the advertisements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// To the group of the family (RFC 9568 §5.1.1.2).
    Multicast,
    /// To each peer. Advertisements of other routers are discarded: the router's own `peers` and `only_peers` are
    /// overridden.
    Unicast {
        /// The other routers, of either family.
        peers: Vec<IpAddr>,
    },
}

/// An interface as its owner's netlink sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index, which changes when it is created anew.
    pub index: u32,
    /// Its address, the sender of announcements.
    pub mac: MacAddr,
    /// Set if it is up and has carrier.
    pub up: bool,
    /// The source of IPv4 advertisements; never a virtual address.
    pub v4: Option<Ipv4Addr>,
    /// The source of IPv6 advertisements, for multicast the link-local address; never a virtual address.
    pub v6: Option<Ipv6Addr>,
    /// All its addresses with their prefixes, but for the virtual ones.
    pub prefixes: Vec<LinkPrefix>,
}

impl Interface {
    /// Returns whether `ip` is an address of the interface, and no virtual one.
    fn is_own(&self, ip: IpAddr) -> bool {
        let source = self.v4.map(IpAddr::V4) == Some(ip) || self.v6.map(IpAddr::V6) == Some(ip);
        source || self.prefixes.iter().any(|prefix| prefix.address == ip)
    }
}

/// The owner of the virtual addresses on the interfaces. It is called on the runner's thread and must not block, nor
/// start threads or processes.
pub trait VipKeeper: Send {
    /// The router may hold its addresses until the claim ends: add or refresh them.
    fn claim(&self, instance: InstanceId, claim: Claim);
    /// The claim last made is valid until then, because the router has advertised again: there is nothing to do now.
    /// A keeper needs it to judge a write that takes longer than the claim was valid.
    fn extend(&self, _instance: InstanceId, _valid_until: Instant) {}
    /// The router may no longer hold its addresses: remove them.
    fn release(&self, instance: InstanceId, release: Release);
}

/// The scheduling of the thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerOptions {
    /// Asks for SCHED_RR.
    pub realtime: bool,
    /// Locks the memory of the process as it is touched.
    pub lock_memory: bool,
    /// The longest time that the thread may compute without a sleep before the kernel ends the process (RLIMIT_RTTIME),
    /// so that a runaway real-time thread cannot hang the host. Only with real-time scheduling, and unless the process
    /// already has such a limit. The runner itself sleeps at least every 100 ms.
    pub runaway: Duration,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self { realtime: true, lock_memory: true, runaway: Duration::from_secs(2) }
    }
}

/// The reason why the runner could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The operating system refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The operating system refused an epoll instance or a timer.
    #[error("cannot wait for events: {0}")]
    Reactor(#[source] io::Error),
}

/// Starts runners.
#[derive(Debug)]
pub struct Runner;

impl Runner {
    /// Starts a thread that runs `instances`, in the network namespace of the caller.
    ///
    /// Each router waits until [`RunnerHandle::interface`] gives it an interface. `events` is called on the runner's
    /// thread: it must not block, nor start threads or processes, which would inherit real-time scheduling.
    ///
    /// # Errors
    ///
    /// The operating system lacks resources. Missing privileges are no error here but events, when they matter.
    pub fn spawn(
        options: RunnerOptions,
        instances: Vec<InstanceConfig>,
        keeper: Box<dyn VipKeeper>,
        events: Box<dyn Fn(RunnerEvent) + Send>,
    ) -> Result<RunnerHandle, SpawnError> {
        handle::spawn(options, instances, keeper, events)
    }
}
