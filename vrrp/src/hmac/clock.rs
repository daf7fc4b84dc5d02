//! A clock for signatures that steps of the wall clock do not move.

use std::time::{Duration, Instant};

use super::Now;

/// The wall clock of one moment, from which the time runs with the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    from: Now,
}

impl Clock {
    pub(super) const fn new(now: Now) -> Self {
        Self { from: now }
    }

    /// The time since 1970-01-01 00:00 UTC.
    pub(super) fn at(&self, instant: Instant) -> Duration {
        self.from.wall + instant.saturating_duration_since(self.from.instant)
    }
}
