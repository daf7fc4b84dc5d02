//! What the balancer reports while it runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Something an operator may want to know.
///
/// Sent from worker threads to the callback given to [`crate::LoadBalancer::start`], which must not block nor call the
/// balancer. Events that could repeat with every connection are rate-limited at the source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A backend takes connections (again).
    BackendUp {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
        /// What the check found.
        reason: String,
        /// How long it was down or unknown.
        after: Duration,
    },
    /// A backend says that it shuts down: it is no longer given connections, and its sessions go on.
    BackendLeaving {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
        /// Its sessions.
        sessions: usize,
    },
    /// A backend is no longer given connections.
    BackendDown {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
        /// What the check found.
        reason: String,
        /// Its sessions that are being reset. They are left alone where nothing listens any more, and kept while it still
        /// answers and no other backend is better.
        sessions: usize,
    },
    /// Connections to a backend failed or hung, before any check said so: others are preferred for a while.
    BackendSuspected {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
        /// What happened to the connection.
        reason: Failure,
    },
    /// A suspected backend took a connection again.
    BackendTrusted {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
    },
    /// A configured backend was left out because the balancer would talk to itself: it has a forbidden address (a
    /// virtual IP), or is one of the balancer's own listeners.
    BackendForbidden {
        /// The service.
        service: Arc<str>,
        /// The backend.
        backend: SocketAddr,
    },
    /// Clients of a service are refused because no backend could be connected. At most every 10 s for one service.
    ClientsRefused {
        /// The service.
        service: Arc<str>,
        /// Connections of this service refused so far.
        total: u64,
    },
    /// `[::]` could not be listened on, the balancer accepts IPv4 only.
    ListenFallback {
        /// What was configured.
        configured: SocketAddr,
        /// What is listened on.
        actual: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// `SO_MARK` was refused, usually for want of `CAP_NET_ADMIN`; sent once. Connections go on unmarked.
    MarkRefused {
        /// What the system said.
        reason: String,
    },
    /// `IP_TRANSPARENT` was refused, usually for want of `CAP_NET_ADMIN`; sent once. Listeners take only connections to their
    /// own port.
    TransparentRefused {
        /// What the system said.
        reason: String,
    },
    /// `TCP_CONGESTION` was refused; sent once. Connections go on with the system's choice.
    CongestionRefused {
        /// The algorithm asked for.
        algorithm: String,
        /// What the system said.
        reason: String,
    },
    /// Descriptors or memory for sockets ran out: new clients wait, then are refused. At most every 10 s.
    ResourcesExhausted {
        /// The worker.
        worker: usize,
        /// What the system said.
        reason: String,
    },
    /// A worker thread ended unexpectedly. The balancer no longer passes its heartbeat.
    WorkerGone {
        /// The worker.
        worker: usize,
    },
}

/// How a connection to a backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// It was refused or reset.
    Refused,
    /// There was no way to it.
    Unreachable,
    /// It did not answer within the connect timeout.
    TimedOut,
    /// It did not answer before another backend, asked later, did.
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
