//! Targets of health checks and their observed state.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;
use tokio::sync::Notify;

use super::http::ProbeRequest;
use super::outcome::CheckFailure;
use super::state::HealthState;
use super::trust::Trust;
use crate::check::{HealthCheck, HealthKind};

/// The key of a target: a backend of a service. The same address in two services is two targets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetKey {
    /// Name of the service.
    pub service: Arc<str>,
    /// The address the backend listens on.
    pub backend: SocketAddr,
}

impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.service, self.backend)
    }
}

/// A backend and its health check.
#[derive(Debug, Clone)]
pub struct Target {
    key: TargetKey,
    check: HealthCheck,
    trust: Option<Trust>,
    method: Method,
}

/// The method of a check.
#[derive(Debug, Clone)]
pub(super) enum Method {
    Tcp,
    Tls,
    Https(ProbeRequest),
}

/// A health check cannot be done as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The path is not the absolute path, with optional query, of an HTTP request (RFC 9112 section 3.2.1).
    #[error("health check path '{0}' is not valid: write an absolute path such as /readyz")]
    Path(String),
}

impl Target {
    /// A target without [`Trust`]; see [`Self::with_trust`].
    ///
    /// # Errors
    ///
    /// See [`TargetError`].
    pub fn new(
        service: impl Into<Arc<str>>,
        backend: SocketAddr,
        check: HealthCheck,
    ) -> Result<Self, TargetError> {
        let method = match &check.kind {
            HealthKind::Tcp => Method::Tcp,
            HealthKind::Tls => Method::Tls,
            HealthKind::Https { path, statuses } => Method::Https(request(path, statuses, backend)?),
        };
        Ok(Self { key: TargetKey { service: service.into(), backend }, check, trust: None, method })
    }

    /// Returns the target with HTTPS checks that verify the server by `trust`; with `None` they verify none.
    #[must_use]
    pub fn with_trust(self, trust: Option<Trust>) -> Self {
        Self { trust, ..self }
    }

    /// Its key.
    pub fn key(&self) -> &TargetKey {
        &self.key
    }

    /// Its health check.
    pub fn check(&self) -> &HealthCheck {
        &self.check
    }

    /// Verifies the server of an HTTPS check; `None` verifies none and presents no credential.
    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        // The method follows from the check and the address.
        (&self.key, &self.check, &self.trust) == (&other.key, &other.check, &other.trust)
    }
}

fn request(path: &str, statuses: &[u16], backend: SocketAddr) -> Result<ProbeRequest, TargetError> {
    let invalid = || TargetError::Path(path.to_owned());
    // The type also takes "*", which is for OPTIONS, and "?query" alone.
    let parsed = PathAndQuery::try_from(path).ok().filter(|_| path.starts_with('/')).ok_or_else(invalid)?;
    // A scope (fe80::1%3) means nothing to the other end.
    let host = match backend {
        SocketAddr::V4(_) => backend.to_string(),
        SocketAddr::V6(v6) => format!("[{}]:{}", v6.ip(), v6.port()),
    };
    let host = HeaderValue::from_str(&host).map_err(|_| invalid())?;
    Ok(ProbeRequest::new(parsed, host, statuses.to_vec()))
}

/// Called with every change of a health state, on the monitor's thread; must not block.
pub(super) type Sink = Arc<dyn Fn(HealthChange) + Send + Sync>;

/// A change of a target's health state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthChange {
    /// The target.
    pub target: TargetKey,
    /// The previous state.
    pub from: HealthState,
    /// The new state.
    pub to: HealthState,
    /// Duration of the previous state.
    pub after: Duration,
}

/// The observed state of a target.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TargetSnapshot {
    /// The target.
    pub target: TargetKey,
    /// Its health state.
    pub state: HealthState,
    /// Start of this state, or of the checks.
    pub since: Instant,
    /// The last check that ended.
    pub last_check: Option<LastCheck>,
    /// Checks so far.
    pub checks: u64,
    /// Of these, those that failed.
    pub failures: u64,
}

/// The last check of a target that ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LastCheck {
    /// Its end.
    pub at: Instant,
    /// Its duration.
    pub latency: Duration,
    /// The failure, if it failed.
    pub failure: Option<CheckFailure>,
}

/// The part of a target that its task, the workers and the status report share.
#[derive(Debug)]
pub(super) struct Shared {
    observed: Mutex<TargetSnapshot>,
    reported: AtomicBool,
    wake: Notify,
}

impl Shared {
    pub(super) fn new(target: TargetKey, state: HealthState, since: Instant) -> Self {
        let observed = TargetSnapshot { target, state, since, last_check: None, checks: 0, failures: 0 };
        Self { observed: Mutex::new(observed), reported: AtomicBool::new(false), wake: Notify::new() }
    }

    pub(super) fn snapshot(&self) -> TargetSnapshot {
        self.observe(|observed| observed.clone())
    }

    pub(super) fn observe<T>(&self, action: impl FnOnce(&mut TargetSnapshot) -> T) -> T {
        // No closure panics in the middle of a change.
        action(&mut self.observed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a result, with the new health state if it changed.
    pub(super) fn record(&self, check: LastCheck, state: Option<HealthState>) -> Option<HealthChange> {
        self.observe(|observed| {
            let at = check.at;
            observed.checks += 1;
            observed.failures += u64::from(check.failure.is_some());
            observed.last_check = Some(check);
            let to = state?;
            let from = std::mem::replace(&mut observed.state, to.clone());
            let since = std::mem::replace(&mut observed.since, at);
            let after = at.saturating_duration_since(since);
            Some(HealthChange { target: observed.target.clone(), from, to, after })
        })
    }

    /// Resets the health state to unknown.
    pub(super) fn forget(&self, why: CheckFailure) -> Option<HealthChange> {
        let known = self.observe(|observed| observed.state != HealthState::Unknown);
        let check = LastCheck { at: Instant::now(), latency: Duration::ZERO, failure: Some(why) };
        self.record(check, known.then_some(HealthState::Unknown))
    }

    /// Requests a check at once. From any thread, any number of times; all reports until the next check count as one.
    pub(super) fn report_failure(&self) {
        if !self.reported.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    /// Waits for a report that came since [`Self::take_report`].
    pub(super) async fn reported(&self) {
        // A wake-up outlives the report that a check has taken meanwhile.
        while !self.reported.load(Ordering::Acquire) {
            self.wake.notified().await;
        }
    }

    /// Returns whether a failure was reported since the last call.
    pub(super) fn take_report(&self) -> bool {
        self.reported.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str, backend: &str) -> Result<Target, TargetError> {
        let kind = HealthKind::https(path);
        Target::new("api", backend.parse().unwrap(), HealthCheck { kind, ..HealthCheck::default() })
    }

    #[test]
    fn check_paths_must_be_absolute() {
        for path in ["/", "/readyz", "/readyz?verbose&exclude=etcd"] {
            assert!(target(path, "10.0.0.1:6443").is_ok(), "{path}");
        }
        for path in ["", "readyz", "*", "?a", "/a b", "/\r\nX: y", "https://host/readyz", "/\u{0}"] {
            assert_eq!(target(path, "10.0.0.1:6443"), Err(TargetError::Path(path.to_owned())));
        }
        assert!(target("/readyz", "[fe80::1%3]:6443").is_ok());
    }

    #[test]
    fn reports_between_two_checks_are_one() {
        let shared =
            Shared::new(target("/", "10.0.0.1:1").unwrap().key, HealthState::Unknown, Instant::now());
        (0..1000).for_each(|_| shared.report_failure());
        assert!(shared.take_report());
        assert!(!shared.take_report());
    }
}
