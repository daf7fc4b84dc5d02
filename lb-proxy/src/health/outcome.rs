//! What a check found, in words a program and an operator can both use.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::shortage::Shortage;

/// A backend answered as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It says, as far as this kind of check can ask, that it serves.
    Ready,
    /// It is alive, but says nothing about its readiness: strangers are not told (401, 403, client certificate
    /// demanded).
    Denied,
    /// The same, because it is throttling requests (429).
    Throttled,
    /// It is alive and says that it shuts down.
    Terminating,
}

/// Why a check did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckFailure {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// There is no way to it.
    #[error("unreachable: {0}")]
    Unreachable(Arc<str>),
    /// It was silent, or too slow.
    #[error("no {step} within {after:?}")]
    TimedOut {
        /// What it did not complete.
        step: Step,
        /// The time a whole check has.
        after: Duration,
    },
    /// It hung up before it had answered.
    #[error("connection closed before the {step} was complete: {why}")]
    Closed {
        /// What it did not complete.
        step: Step,
        /// What was seen.
        why: Arc<str>,
    },
    /// It does not speak TLS, or no version or cipher of it that this program knows.
    #[error("TLS handshake failed: {0}")]
    Tls(Arc<str>),
    /// Its certificate does not prove that it is a server of the cluster. Connections that were made before are none the
    /// worse.
    #[error("its certificate is not accepted: {0}")]
    Untrusted(Arc<str>),
    /// What it says over TLS is no HTTP/1 answer of acceptable size.
    #[error("no valid HTTP answer: {0}")]
    Http(Arc<str>),
    /// It answered with an HTTP status that means it does not serve.
    #[error("answered with HTTP status {0}")]
    Status(u16),
    /// It answered that it is not ready, and which of its own checks fail, as Kubernetes' API servers do.
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
    /// The check itself broke. Says nothing about the backend.
    #[error("the check broke off")]
    Internal,
}

/// The part of a check that was under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// TCP handshake.
    Connect,
    /// TLS handshake.
    Handshake,
    /// HTTP answer.
    Answer,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connection",
            Self::Handshake => "TLS handshake",
            Self::Answer => "HTTP answer",
        })
    }
}

impl CheckFailure {
    /// Whether this tells something about the backend rather than about this node.
    pub fn is_evidence(&self) -> bool {
        !matches!(self, Self::Local(_) | Self::Internal)
    }

    /// Whether sessions with the backend may go on although no new ones begin. Where nothing listens any more: a server
    /// that shuts down lets go of its port before its connections, and of a process that is gone the kernel has ended
    /// them. And where a certificate has expired: clients that are connected have seen it in time.
    pub fn spares_sessions(&self) -> bool {
        matches!(self, Self::Refused | Self::Untrusted(_))
    }

    /// Whether nobody answered, not even the host.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Unreachable(_))
    }

    pub(super) fn connecting(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => return Self::Refused,
            // The kernel's own limit, shorter than ours.
            Kind::TimedOut => return Self::Unreachable("the kernel got no answer".into()),
            Kind::ConnectionReset | Kind::ConnectionAborted => return Self::closed(Step::Connect, error),
            _ => {}
        }
        // A local firewall answers EPERM and prohibit routes EACCES: like no route, they bar clients as well.
        let way =
            [Kind::HostUnreachable, Kind::NetworkUnreachable, Kind::NetworkDown, Kind::PermissionDenied];
        // So does a kernel without IPv6, as booted with `ipv6.disable=1`.
        let no_family = error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT);
        if no_family || way.contains(&error.kind()) {
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
