//! The health check of a service: kind, timing and thresholds, as plain values.

use std::fmt;
use std::time::Duration;

/// How and how often the backends of a service are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What a check does.
    pub kind: HealthKind,
    /// Time from the start of one check to the start of the next; at least 10 ms.
    pub interval: Duration,
    /// How long one check may take.
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

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum HealthKind {
    /// The TCP handshake completes.
    #[default]
    Tcp,
    /// The TLS handshake completes; certificates are not judged.
    Tls,
    /// `GET path` over TLS is answered: 2xx is ready, 401, 403 and 429 are alive with readiness unknown.
    Https {
        /// Absolute path with optional query, for example `/readyz`.
        path: String,
        /// The HTTP statuses that are ready, and no others; empty for those above.
        statuses: Vec<u16>,
    },
}

impl HealthKind {
    /// A check that asks for `path` and takes the usual statuses.
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
