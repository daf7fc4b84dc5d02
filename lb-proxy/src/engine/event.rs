//! Events that the balancer reports while it runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::shortage::Shortage;

/// A change or problem that concerns an operator.
///
/// Sent from worker threads to the callback given to [`crate::LoadBalancer::start`], which must not block or call the
/// balancer. Events that could repeat with every connection are rate-limited at the source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A backend accepts connections (again).
    BackendUp {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
        /// The result of the check.
        reason: String,
        /// Time for which it was down or unknown.
        after: Duration,
    },
    /// A backend reports that it shuts down: it gets no new connections, and its sessions continue.
    BackendTerminating {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
        /// Its sessions.
        sessions: usize,
    },
    /// A backend gets no more connections.
    BackendDown {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
        /// The result of the check.
        reason: String,
        /// The number of its sessions that are being reset. They continue where nothing listens any more, and while the
        /// backend still responds and no other is better.
        sessions: usize,
    },
    /// Connects to a backend failed or timed out before a check did: other backends are preferred for a while.
    BackendSuspected {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
        /// The failure of the connect.
        reason: Failure,
    },
    /// A suspected backend accepted a connection again.
    BackendTrusted {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
    },
    /// A configured backend was left out because the balancer would connect to itself: it has a forbidden address (a
    /// virtual IP), or is one of the balancer's own listeners.
    BackendForbidden {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
    },
    /// Clients of a service are refused. At most every 10 s for one service and reason.
    ClientsRefused {
        /// The service.
        service: Arc<str>,
        /// The reason.
        reason: Refusal,
        /// The limit that was reached, if the reason is one: open connections.
        limit: Option<usize>,
        /// Connections of this service refused for this reason so far.
        total: u64,
    },
    /// `[::]` could not be bound; the balancer accepts IPv4 only.
    ListenFallback {
        /// The configured address.
        configured: SocketAddr,
        /// The bound address.
        actual: SocketAddr,
        /// The system's error.
        reason: String,
    },
    /// `SO_MARK` was refused, usually for want of `CAP_NET_ADMIN`; sent once. Connections continue unmarked.
    MarkRefused {
        /// The system's error.
        reason: String,
    },
    /// `IP_TRANSPARENT` was refused, usually for want of `CAP_NET_ADMIN`; sent once. Listeners accept only connections
    /// to their own port.
    TransparentRefused {
        /// The system's error.
        reason: String,
    },
    /// `TCP_CONGESTION` was refused; sent once. Connections use the system's choice.
    CongestionRefused {
        /// The requested algorithm.
        algorithm: String,
        /// The system's error.
        reason: String,
    },
    /// The process or the host ran out of a resource that connections need. At most every 10 s for one shortage.
    ResourcesExhausted {
        /// The resource.
        shortage: Shortage,
        /// The backend that could not be connected for want of it; `None` if a client could not be accepted.
        backend: Option<SocketAddr>,
        /// The system's error.
        reason: String,
    },
    /// A worker thread ended unexpectedly. The balancer no longer passes its heartbeat.
    WorkerGone {
        /// The worker.
        worker: usize,
    },
}

/// The reason for which a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Refusal {
    /// No backend could be connected.
    NoBackend,
    /// [`crate::Service::max_connections`] are open.
    MaxConnections,
    /// [`crate::Service::max_connections_per_client`] are open from the client's address.
    MaxConnectionsPerClient,
    /// Sessions have all descriptors that the process (`RLIMIT_NOFILE`) or the host allows them.
    Descriptors,
    /// All local ports towards every backend are in use.
    Ports,
    /// The kernel has no memory for a socket.
    Memory,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::NoBackend,
        Self::MaxConnections,
        Self::MaxConnectionsPerClient,
        Self::Descriptors,
        Self::Ports,
        Self::Memory,
    ];

    /// The name in logs, metrics and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoBackend => "no_backend",
            Self::MaxConnections => "max_connections",
            Self::MaxConnectionsPerClient => "max_connections_per_client",
            Self::Descriptors => "descriptors",
            Self::Ports => "ports",
            Self::Memory => "memory",
        }
    }
}

impl From<Shortage> for Refusal {
    fn from(shortage: Shortage) -> Self {
        match shortage {
            Shortage::Descriptors | Shortage::HostFiles => Self::Descriptors,
            Shortage::Ports => Self::Ports,
            Shortage::Memory => Self::Memory,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The way in which a connect to a backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// It was refused or reset.
    Refused,
    /// There was no route to it.
    Unreachable,
    /// It did not answer within the connect timeout.
    TimedOut,
    /// Another backend, tried later, answered first.
    Slow,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Failure::Refused => "connection refused",
            Failure::Unreachable => "unreachable",
            Failure::TimedOut => "connect timed out",
            Failure::Slow => "connect slower than another backend's",
        })
    }
}
