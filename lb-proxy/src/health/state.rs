//! The health of a backend as its checks show it.

use std::fmt;

use super::outcome::CheckFailure;

/// The health of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HealthState {
    /// Not checked yet, or this node could not check it lately.
    #[default]
    Unknown,
    /// It reports that it is ready.
    Up,
    /// It answers, but its readiness is unknown: anonymous requests get no answer (401, 403, client certificate
    /// demanded), or it throttles requests (429). Gets connections like [`Self::Up`].
    UpUnready,
    /// It reports that it shuts down. It gets no new connections, and keeps its open ones until it ends them.
    Terminating,
    /// It does not answer, or reports that it does not serve.
    Down {
        /// The failure that took it down.
        reason: CheckFailure,
    },
}

impl HealthState {
    /// The name in logs, metrics and the status report.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::UpUnready => "up-readiness-unknown",
            Self::Terminating => "terminating",
            Self::Down { .. } => "down",
        }
    }

    /// Returns whether the last checks succeeded: [`Self::Up`] or [`Self::UpUnready`].
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up | Self::UpUnready)
    }

    /// Returns whether the last checks failed.
    pub fn is_down(&self) -> bool {
        matches!(self, Self::Down { .. })
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down { reason } => write!(f, "down ({reason})"),
            other => f.write_str(other.as_str()),
        }
    }
}
