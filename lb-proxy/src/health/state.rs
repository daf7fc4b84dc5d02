//! The health of a backend as its checks show it.

use std::fmt;

use super::outcome::CheckFailure;

/// What is known of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HealthState {
    /// Not checked yet, or this node could not check it lately.
    #[default]
    Unknown,
    /// It answers and says that it is ready.
    Up,
    /// It answers, but not whether it is ready: strangers are not told (401, 403, client certificate demanded), or
    /// it is throttling requests (429).
    /// Takes connections like [`Self::Up`].
    UpUnready,
    /// It answers that it shuts down. Takes no new connections, and goes on with those that it has until it ends them.
    Terminating,
    /// It does not answer, or says that it does not serve.
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
            Self::Terminating => "leaving",
            Self::Down { .. } => "down",
        }
    }

    /// Whether the backend was seen to answer: [`Self::Up`] or [`Self::UpUnready`].
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up | Self::UpUnready)
    }

    /// Whether the backend was seen to fail.
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
