//! State and counters of a running balancer, as plain values.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::connect_times::ConnectTimes;
use super::event::Refusal;
use crate::balance::Balance;
use crate::health::LastCheck;

/// State and counters of a balancer at one moment. Counters only grow while a service or backend stays configured.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The services in configuration order.
    pub services: Vec<ServiceSnapshot>,
    /// The worker threads.
    pub workers: Vec<WorkerSnapshot>,
    /// Set when new connections are no longer accepted.
    pub draining: bool,
}

/// One service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// The bound addresses, without listeners that only linger after a change.
    pub listen: Vec<SocketAddr>,
    /// The algorithm that chooses backends.
    pub balance: Balance,
    /// Clients accepted, without those refused because of a limit.
    pub accepted: u64,
    /// Clients refused, for any reason.
    pub refused: u64,
    /// Refused clients by reason; reasons that did not occur are absent.
    pub refusals: Vec<(Refusal, u64)>,
    /// Limit on open client connections: [`crate::Service::max_connections`], at most what the descriptors of the
    /// process allow.
    pub max_connections: usize,
    /// [`crate::Service::max_connections_per_client`].
    pub max_connections_per_client: Option<usize>,
    /// Connections for which another backend failed or was too slow first.
    pub redispatched: u64,
    /// The backends in configuration order, then those removed that still have sessions.
    pub backends: Vec<BackendSnapshot>,
}

/// One backend of one service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BackendSnapshot {
    /// The address it listens on.
    pub addr: SocketAddr,
    /// Its configured name.
    pub name: Option<String>,
    /// Its configured weight.
    pub weight: u32,
    /// Its current state.
    pub state: BackendState,
    /// Set if sessions with it may continue, whatever its state: it was not seen to be dead, cut off or broken.
    pub spares_sessions: bool,
    /// Start of this state: a health change, a reconfiguration, or a suspicion.
    pub since: Instant,
    /// The reason of this state, for people.
    pub reason: String,
    /// The last check that ended.
    pub last_check: Option<LastCheck>,
    /// Sessions now.
    pub active: usize,
    /// Connects under way now.
    pub connecting: usize,
    /// Sessions so far, with those active.
    pub total: u64,
    /// Connects that failed.
    pub failures: u64,
    /// Payload bytes from clients.
    pub bytes_in: u64,
    /// Payload bytes to clients.
    pub bytes_out: u64,
    /// The times that connects took.
    pub connect_times: ConnectTimes,
}

/// An open connection of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connection {
    /// The name of the service.
    pub service: Arc<str>,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The address and port that it connected to, such as a virtual IP.
    pub local: SocketAddr,
    /// The address of the backend; `None` until one is connected.
    pub backend: Option<SocketAddr>,
}

/// The state of a backend as the balancer uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendState {
    /// Not checked yet; gets connections.
    Unknown,
    /// Gets connections.
    Up,
    /// Gets connections only after others, because connects to it failed lately.
    Suspect,
    /// Reports that it shuts down: gets no connections unless no other backend can take them; its sessions continue.
    Terminating,
    /// Gets no connections unless no other backend can take them. Its sessions are reset, except where nothing listens
    /// any more: a server that shuts down ends them by itself, and the kernel has ended those of a process that is
    /// gone.
    Down,
    /// Gets no connections (weight 0 or removed); its sessions continue.
    Draining,
}

impl BackendState {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Unknown, Self::Up, Self::Suspect, Self::Terminating, Self::Down, Self::Draining];

    /// The name in logs, metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            BackendState::Unknown => "unknown",
            BackendState::Up => "up",
            BackendState::Suspect => "suspect",
            BackendState::Terminating => "terminating",
            BackendState::Down => "down",
            BackendState::Draining => "draining",
        }
    }
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One worker thread.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// Sessions it carries, with those still connecting.
    pub sessions: usize,
    /// Clients it accepted.
    pub accepted: u64,
    /// Clients it handed to another worker.
    pub handed_off: u64,
}

/// The evidence that a service can serve; see [`crate::LoadBalancer::serving_evidence`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServingEvidence {
    /// The service.
    pub service: Arc<str>,
    /// Backends configured, those of weight 0 left out.
    pub backends: usize,
    /// Of these, those that are not on this node.
    pub remote: usize,
    /// Backends that were never checked, or not lately.
    pub unchecked: usize,
    /// Backends that are up, or were up until this node could not check them any more, at most 60 s ago. Each
    /// connection to them restarts the 60 s.
    pub healthy: usize,
    /// Of these, those that are not on this node.
    pub healthy_remote: usize,
}
