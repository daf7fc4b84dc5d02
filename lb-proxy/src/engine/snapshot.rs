//! The state and the counters of a running balancer, as plain values.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::event::Refusal;
use crate::balance::Balance;
use crate::health::LastCheck;

/// Everything at one moment. Counters only grow while a service or backend stays configured.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The services in configuration order.
    pub services: Vec<ServiceSnapshot>,
    /// The worker threads.
    pub workers: Vec<WorkerSnapshot>,
    /// Whether no new connections are taken any more.
    pub draining: bool,
}

/// One service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceSnapshot {
    /// Its name.
    pub name: Arc<str>,
    /// The addresses really listened on, without those that only linger after a change.
    pub listen: Vec<SocketAddr>,
    /// How backends are chosen.
    pub balance: Balance,
    /// Clients accepted, without those refused because of a limit.
    pub accepted: u64,
    /// Clients refused, for whatever reason.
    pub refused: u64,
    /// The same by reason, without those that did not occur.
    pub refusals: Vec<(Refusal, u64)>,
    /// Client connections that may be open at once: [`crate::Service::max_connections`], at most what the descriptors
    /// of the process allow.
    pub max_connections: usize,
    /// [`crate::Service::max_connections_per_client`].
    pub max_connections_per_client: Option<usize>,
    /// Connections that found their backend only after another had failed or hung.
    pub redispatched: u64,
    /// The backends in configuration order, then those removed that still have sessions.
    pub backends: Vec<BackendSnapshot>,
}

/// One backend of one service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BackendSnapshot {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its configured name.
    pub name: Option<String>,
    /// Its configured weight.
    pub weight: u32,
    /// What it is used for now.
    pub state: BackendState,
    /// Whether sessions with it may go on, whatever its state: it was not seen to be dead, cut off or broken.
    pub spares_sessions: bool,
    /// When this state began: with a verdict of its checks, a change of the configuration, or a suspicion.
    pub since: Instant,
    /// Why it is in this state, for people.
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
}

/// What a backend is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendState {
    /// Not checked yet; takes connections.
    Unknown,
    /// Takes connections.
    Up,
    /// Takes connections, but its clients' connects failed lately: others are preferred.
    Suspect,
    /// It says that it shuts down: takes none unless no other can; its sessions live on.
    Terminating,
    /// Takes none unless no other can. Sessions with it are reset, except where nothing listens any more: those a server
    /// that shuts down ends by itself, and those of a process that is gone the kernel has ended.
    Down,
    /// Takes none (weight 0 or removed); its sessions live on.
    Draining,
}

impl BackendState {
    /// The name in logs, metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            BackendState::Unknown => "unknown",
            BackendState::Up => "up",
            BackendState::Suspect => "suspect",
            BackendState::Terminating => "leaving",
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

/// Whether each service can serve, and by whose evidence; see [`crate::LoadBalancer::serving_evidence`].
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
    /// Backends that are up, or were so until this node could not check them any more, not longer than 60 s ago. Each
    /// connection to them begins the 60 s anew.
    pub healthy: usize,
    /// Of these, those that are not on this node.
    pub healthy_remote: usize,
}
