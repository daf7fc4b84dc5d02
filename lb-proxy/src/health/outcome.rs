//! The outcome of a check, for programs and for operators.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::shortage::Shortage;

/// The answer of a backend that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It reports that it is ready, as far as this kind of check can ask.
    Ready,
    /// It is alive, but gives no answer to anonymous requests about its readiness (401, 403, client certificate
    /// demanded).
    Denied,
    /// The same, because it is throttling requests (429).
    Throttled,
    /// It is alive and reports that it shuts down.
    Terminating,
}

/// The reason for which a check failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckFailure {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// There is no route to it.
    #[error("unreachable: {0}")]
    Unreachable(Arc<str>),
    /// It did not answer, or too slowly.
    #[error("no {step} within {after:?}")]
    TimedOut {
        /// The step that it did not complete.
        step: Step,
        /// The time limit of a whole check.
        after: Duration,
    },
    /// It closed the connection before it had answered.
    #[error("connection closed before the {step} was complete: {why}")]
    Closed {
        /// The step that it did not complete.
        step: Step,
        /// The error of the connection.
        why: Arc<str>,
    },
    /// It does not speak TLS, or no version or cipher suite that this program supports.
    #[error("TLS handshake failed: {0}")]
    Tls(Arc<str>),
    /// Its certificate does not prove that it is a server of the cluster. Connections made before are not affected.
    #[error("its certificate is not accepted: {0}")]
    Untrusted(Arc<str>),
    /// It sends no HTTP/1 response of acceptable size over TLS.
    #[error("no valid HTTP response: {0}")]
    Http(Arc<str>),
    /// It answered with an HTTP status that means it does not serve.
    #[error("answered with HTTP status {0}")]
    Status(u16),
    /// It answered that it is not ready and named its failing checks, as Kubernetes' API servers do.
    #[error("not ready: {checks} (HTTP status {status})")]
    NotReady {
        /// The HTTP status.
        status: u16,
        /// The names of the checks, separated by ", ".
        checks: Arc<str>,
    },
    /// This node could not check, for want of descriptors, ports or memory. Says nothing about the backend.
    #[error("this node could not check: {0}")]
    Local(Arc<str>),
    /// The check itself panicked. Says nothing about the backend.
    #[error("the check panicked")]
    Internal,
}

/// A step of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// TCP handshake.
    Connect,
    /// TLS handshake.
    Handshake,
    /// HTTP response.
    Response,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connection",
            Self::Handshake => "TLS handshake",
            Self::Response => "HTTP response",
        })
    }
}

impl CheckFailure {
    /// Returns whether this says something about the backend rather than about this node.
    pub fn is_evidence(&self) -> bool {
        !matches!(self, Self::Local(_) | Self::Internal)
    }

    /// Returns whether sessions with the backend may continue although no new ones begin: where nothing listens any
    /// more, because a server that shuts down closes its port before its connections and the kernel has ended those of
    /// a process that is gone; and where a certificate has expired, because clients have verified it in time.
    pub fn spares_sessions(&self) -> bool {
        matches!(self, Self::Refused | Self::Untrusted(_))
    }

    /// Returns whether not even the host answered.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Unreachable(_))
    }

    pub(super) fn connecting(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => return Self::Refused,
            // The kernel's own limit, shorter than that of a check.
            Kind::TimedOut => return Self::Unreachable("the kernel got no answer".into()),
            Kind::ConnectionReset | Kind::ConnectionAborted => return Self::closed(Step::Connect, error),
            _ => {}
        }
        // A local firewall answers EPERM and prohibit routes EACCES: like a missing route, they stop clients as well.
        let unreachable =
            [Kind::HostUnreachable, Kind::NetworkUnreachable, Kind::NetworkDown, Kind::PermissionDenied];
        // So does a kernel without IPv6, as booted with `ipv6.disable=1`.
        let no_family = error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT);
        if no_family || unreachable.contains(&error.kind()) {
            return Self::Unreachable(text(error));
        }
        Self::Local(Shortage::of(error).map_or_else(|| text(error), |shortage| text(&shortage)))
    }

    pub(super) fn closed(step: Step, why: &dyn fmt::Display) -> Self {
        Self::Closed { step, why: text(why) }
    }
}

pub(super) fn text(value: &dyn fmt::Display) -> Arc<str> {
    value.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::connect_error;
    use nix::libc;

    #[test]
    fn errors_of_this_node_are_no_evidence() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL] {
            assert!(!CheckFailure::connecting(&io::Error::from_raw_os_error(errno)).is_evidence(), "{errno}");
        }
        for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ETIMEDOUT, libc::EPERM]
        {
            assert!(CheckFailure::connecting(&io::Error::from_raw_os_error(errno)).is_evidence(), "{errno}");
        }
        for error in [
            io::Error::from_raw_os_error(libc::EAFNOSUPPORT),
            connect_error(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL), || false),
        ] {
            let failure = CheckFailure::connecting(&error);
            assert!(matches!(failure, CheckFailure::Unreachable(_)), "{failure}");
        }
    }
}
