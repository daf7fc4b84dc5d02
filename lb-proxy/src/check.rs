//! The health check of a service: kind, timing and thresholds, as plain values.

use std::fmt;
use std::time::Duration;

/// Kind, timing and thresholds of a service's health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The request that a check makes.
    pub kind: HealthKind,
    /// Time from the start of one check to the start of the next; at least 10 ms.
    pub interval: Duration,
    /// Time limit of one check.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up, at least 1.
    pub rise: u32,
    /// Failures in a row that take a backend down, at least 1.
    pub fall: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        HealthCheck {
            kind: HealthKind::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 2,
        }
    }
}

/// The kind of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum HealthKind {
    /// The TCP handshake completes.
    #[default]
    Tcp,
    /// The TLS handshake completes; certificates are not verified.
    Tls,
    /// `GET path` over TLS gets a response: 2xx means ready; 401, 403 and 429 mean alive with readiness unknown.
    Https {
        /// Absolute path with optional query, for example `/readyz`.
        path: String,
        /// The only HTTP statuses that mean ready; empty for those above.
        statuses: Vec<u16>,
    },
}

impl HealthKind {
    /// An HTTPS check of `path` with the usual statuses.
    pub fn https(path: impl Into<String>) -> Self {
        HealthKind::Https { path: path.into(), statuses: Vec::new() }
    }
}

impl fmt::Display for HealthKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthKind::Tcp => f.write_str("tcp"),
            HealthKind::Tls => f.write_str("tls"),
            HealthKind::Https { path, .. } => write!(f, "https {path}"),
        }
    }
}
