//! Failures of requests.

use std::time::Duration;

use nix::errno::Errno;

use crate::model::{AddressFamily, EngineName, SchedulerName, ServiceKey, SyncState};
use crate::wire::{DecodeError, Request};

/// Failure of a request, whatever its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The kernel has no IPVS: load the module `ip_vs` and try again.
    #[error("the kernel has no IPVS (load the module ip_vs)")]
    NoFamily,
    /// The process lacks CAP_NET_ADMIN in the user namespace of the host; that of a container does not suffice.
    #[error("IPVS needs the capability CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel refused for a reason that has no meaning of its own here.
    #[error("the kernel refused: {0}")]
    Refused(Errno),
    /// The connection has ended or is not polled any more; open another.
    #[error("the netlink connection is closed")]
    Closed,
    /// No answer came in time. Whether a change was made is unknown.
    #[error("no answer from the kernel within {0:?}")]
    TimedOut(Duration),
    /// Answers were lost because the socket's buffer was full. Whether a change was made is unknown; what can be asked
    /// again was asked again, in vain.
    #[error("answers of the kernel were lost")]
    Overrun,
    /// The kernel said several times that the table changed while it was read.
    #[error("the table kept changing while it was read")]
    Interrupted,
    /// The kernel's answer cannot be read.
    #[error("unreadable answer from the kernel: {0}")]
    Malformed(#[from] DecodeError),
    /// The kernel confirmed the request without answering it.
    #[error("the kernel confirmed the request without answering it")]
    NoAnswer,
}

impl RequestError {
    /// Returns whether other requests would fail in the same way.
    pub(super) const fn is_fatal(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Malformed(_) | Self::NoAnswer)
    }

    pub(super) const fn of(errno: Errno) -> Self {
        match errno {
            Errno::EPERM => Self::NotPermitted,
            errno => Self::Refused(errno),
        }
    }
}

/// Failure of a service to be added, changed, found, deleted or zeroed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// It exists already.
    #[error("service {0} exists already")]
    AlreadyExists(ServiceKey),
    /// It does not exist.
    #[error("service {0} does not exist")]
    NotFound(ServiceKey),
    /// The kernel knows no such scheduler and found no module for it.
    #[error("the kernel has no scheduler {0}")]
    UnknownScheduler(SchedulerName),
    /// The kernel knows either the scheduler or the persistence engine not, and found no module for it.
    #[error("the kernel has no scheduler {scheduler} or no persistence engine {engine}")]
    UnknownSchedulerOrEngine {
        /// The scheduler.
        scheduler: SchedulerName,
        /// The persistence engine.
        engine: EngineName,
    },
    /// The kernel was built without the address family.
    #[error("the kernel's IPVS was built without {0}")]
    FamilyNotSupported(AddressFamily),
    /// The settings contradict each other, for instance a prefix length of 0.
    #[error("the kernel finds the settings of service {0} invalid")]
    Invalid(ServiceKey),
    /// The request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// Failure of a destination to be added, changed or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// It exists already.
    #[error("the destination exists already")]
    AlreadyExists,
    /// It does not exist.
    #[error("the destination does not exist")]
    NotFound,
    /// Its service does not exist.
    #[error("service {0} does not exist")]
    ServiceNotFound(ServiceKey),
    /// The weight is above 2³¹ − 1, or the lower threshold above the upper one.
    #[error("weight or thresholds are out of range")]
    OutOfRange,
    /// The kernel was built without the address family.
    #[error("the kernel's IPVS was built without the address family")]
    FamilyNotSupported,
    /// The settings contradict each other: not a unicast address; another family than the service's without a tunnel,
    /// or while a sync daemon runs; GUE without a port; a threshold above 2³¹ − 1.
    #[error("the kernel finds the settings invalid")]
    Invalid,
    /// The request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// Failure of a sync daemon to be started or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// One of its kind runs already.
    #[error("a {0} sync daemon runs already")]
    AlreadyRunning(SyncState),
    /// None of its kind runs.
    #[error("no {0} sync daemon runs")]
    NotRunning(SyncState),
    /// There is no such interface.
    #[error("the interface does not exist")]
    NoInterface,
    /// The settings contradict each other, or there are destinations of another family than their service's, which
    /// daemons do not know.
    #[error("the kernel finds the settings invalid")]
    Invalid,
    /// The request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// Failure of one of several commands, see [`Client::run`](super::Client::run).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// One about a service.
    #[error(transparent)]
    Service(ServiceError),
    /// One about a destination.
    #[error(transparent)]
    Destination(DestinationError),
    /// One about a sync daemon.
    #[error(transparent)]
    Daemon(DaemonError),
    /// Any of them.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl CommandError {
    /// Classifies a refusal.
    pub(super) fn of(request: &Request, errno: Errno) -> Self {
        match request {
            Request::NewService(service) | Request::SetService(service) => {
                Self::Service(match (errno, service.engine) {
                    (Errno::ENOENT, None) => ServiceError::UnknownScheduler(service.scheduler),
                    (Errno::ENOENT, Some(engine)) => {
                        ServiceError::UnknownSchedulerOrEngine { scheduler: service.scheduler, engine }
                    }
                    _ => service_error(service.key(), errno),
                })
            }
            Request::DeleteService(key) | Request::GetService(key) | Request::Zero(Some(key)) => {
                Self::Service(service_error(*key, errno))
            }
            Request::NewDestination(key, _)
            | Request::SetDestination(key, _)
            | Request::DeleteDestination(key, _) => Self::Destination(destination_error(*key, errno)),
            Request::NewDaemon(daemon) => Self::Daemon(daemon_error(daemon.state, errno)),
            Request::DeleteDaemon(state) => Self::Daemon(daemon_error(*state, errno)),
            _ => Self::Request(RequestError::of(errno)),
        }
    }

    /// The failure of the request itself, if it was that.
    #[must_use]
    pub const fn request(&self) -> Option<&RequestError> {
        match self {
            Self::Request(error)
            | Self::Service(ServiceError::Request(error))
            | Self::Destination(DestinationError::Request(error))
            | Self::Daemon(DaemonError::Request(error)) => Some(error),
            _ => None,
        }
    }

    /// Returns whether a deletion found nothing to delete.
    pub(super) const fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Service(ServiceError::NotFound(_))
                | Self::Destination(DestinationError::NotFound | DestinationError::ServiceNotFound(_))
        )
    }
}

fn service_error(key: ServiceKey, errno: Errno) -> ServiceError {
    match errno {
        Errno::EEXIST => ServiceError::AlreadyExists(key),
        Errno::ESRCH => ServiceError::NotFound(key),
        Errno::EAFNOSUPPORT => ServiceError::FamilyNotSupported(key.family()),
        Errno::EINVAL => ServiceError::Invalid(key),
        errno => ServiceError::Request(RequestError::of(errno)),
    }
}

fn destination_error(service: ServiceKey, errno: Errno) -> DestinationError {
    match errno {
        Errno::EEXIST => DestinationError::AlreadyExists,
        Errno::ENOENT => DestinationError::NotFound,
        Errno::ESRCH => DestinationError::ServiceNotFound(service),
        Errno::ERANGE => DestinationError::OutOfRange,
        Errno::EAFNOSUPPORT => DestinationError::FamilyNotSupported,
        Errno::EINVAL => DestinationError::Invalid,
        errno => DestinationError::Request(RequestError::of(errno)),
    }
}

fn daemon_error(state: SyncState, errno: Errno) -> DaemonError {
    match errno {
        Errno::EEXIST => DaemonError::AlreadyRunning(state),
        Errno::ESRCH => DaemonError::NotRunning(state),
        Errno::ENODEV => DaemonError::NoInterface,
        Errno::EINVAL => DaemonError::Invalid,
        errno => DaemonError::Request(RequestError::of(errno)),
    }
}

impl From<CommandError> for ServiceError {
    /// For the answer to a command about a service, which has no other errors.
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Service(error) => error,
            other => Self::Request(other.request().copied().unwrap_or(RequestError::NoAnswer)),
        }
    }
}

impl From<CommandError> for DestinationError {
    /// For the answer to a command about a destination, which has no other errors.
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Destination(error) => error,
            other => Self::Request(other.request().copied().unwrap_or(RequestError::NoAnswer)),
        }
    }
}

impl From<CommandError> for DaemonError {
    /// For the answer to a command about a sync daemon, which has no other errors.
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Daemon(error) => error,
            other => Self::Request(other.request().copied().unwrap_or(RequestError::NoAnswer)),
        }
    }
}

impl From<CommandError> for RequestError {
    /// For the answer to a command that has no errors of its own.
    fn from(error: CommandError) -> Self {
        error.request().copied().unwrap_or(Self::NoAnswer)
    }
}
