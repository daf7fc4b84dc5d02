//! Errors of starting, reconfiguring and probing the balancer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::health::{MonitorError, TargetError};
use crate::shortage::Shortage;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another socket, perhaps of a second instance, already listens there: stop it or choose another port.
    #[error("{addr} is already in use by another process")]
    PortInUse {
        /// The requested address.
        addr: SocketAddr,
    },
    /// The system refuses.
    #[error("cannot listen on {addr}: {source}")]
    System {
        /// The requested address.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// [`crate::LoadBalancer::start`] failed. Nothing was left running or bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The services contradict themselves; correct them.
    #[error(transparent)]
    Invalid(#[from] InvalidService),
    /// A worker thread could not be started.
    #[error("cannot start a worker thread: {0}")]
    Worker(io::Error),
    /// The health checks could not be started.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

/// [`crate::LoadBalancer::reconfigure`] refused. The previous services continue unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReconfigureError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The services contradict themselves; correct them.
    #[error(transparent)]
    Invalid(#[from] InvalidService),
    /// The balancer drains or has stopped.
    #[error("the balancer is stopping")]
    Stopping,
}

/// A set of services that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidService {
    /// Two services have the same name.
    #[error("the service name {name:?} is used twice")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Two services, or one twice, listen on the same address.
    #[error("service {name:?} listens on {addr}, which is already taken by service {other:?}")]
    DuplicateListen {
        /// The later service.
        name: String,
        /// The earlier one; may be the same.
        other: String,
        /// The address.
        addr: SocketAddr,
    },
    /// A service without an address to listen on.
    #[error("service {name:?} has no address to listen on")]
    NoListen {
        /// The service.
        name: String,
    },
    /// The same backend twice in one service.
    #[error("service {name:?} has the backend {addr} twice")]
    DuplicateBackend {
        /// The service.
        name: String,
        /// The backend.
        addr: SocketAddr,
    },
    /// A health check that cannot be done.
    #[error("service {name:?}: {source}")]
    Check {
        /// The service.
        name: String,
        /// The invalid setting.
        source: TargetError,
    },
    /// A timing of zero that must not be zero.
    #[error("service {name:?}: {setting} must be longer than zero")]
    ZeroDuration {
        /// The service.
        name: String,
        /// The setting.
        setting: &'static str,
    },
}

/// [`crate::LoadBalancer::heartbeat`] did not succeed: the proxy must not be announced as serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeartbeatError {
    /// A worker did not handle a command in time.
    #[error("worker {worker} did not answer within {timeout:?}")]
    WorkerFrozen {
        /// Its number, from 0.
        worker: usize,
        /// The time limit.
        timeout: Duration,
    },
    /// A worker has ended.
    #[error("worker {worker} has ended")]
    WorkerGone {
        /// Its number, from 0.
        worker: usize,
    },
    /// A connection to the proxy's own listener was not accepted and answered in time.
    #[error("the listener on {addr} did not answer within {timeout:?}")]
    ListenerSilent {
        /// The listener.
        addr: SocketAddr,
        /// The time limit.
        timeout: Duration,
    },
    /// A connection to the proxy's own listener failed.
    #[error("the listener on {addr} cannot be reached: {source}")]
    ListenerUnreachable {
        /// The listener.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The process or the host lacked a resource to probe the listener. Says nothing about the proxy, whose workers
    /// respond.
    #[error("the listener on {addr} could not be tried: {shortage}")]
    Inconclusive {
        /// The listener.
        addr: SocketAddr,
        /// The missing resource.
        shortage: Shortage,
    },
    /// The balancer drains or has stopped.
    #[error("the balancer is stopping")]
    Stopping,
}

impl HeartbeatError {
    /// Returns whether this says nothing about the proxy.
    #[must_use]
    pub fn is_inconclusive(&self) -> bool {
        matches!(self, Self::Inconclusive { .. })
    }
}

impl From<ReconfigureError> for StartError {
    fn from(error: ReconfigureError) -> Self {
        match error {
            ReconfigureError::Listen(error) => StartError::Listen(error),
            ReconfigureError::Invalid(invalid) => StartError::Invalid(invalid),
            ReconfigureError::Stopping => StartError::Worker(io::ErrorKind::Interrupted.into()),
        }
    }
}
