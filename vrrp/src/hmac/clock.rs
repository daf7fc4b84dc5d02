//! A clock for signatures that follows the wall clock slowly.

use std::time::{Duration, Instant};

use super::Now;

/// The time of signatures. It runs with the monotonic clock, and moves towards the wall clock by half of the time that
/// passes: a step of the wall clock is spread over twice its length, so that receivers, which know the sender's last time,
/// follow it. It never goes back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    time: Duration,
    at: Instant,
}

impl Clock {
    pub(super) const fn new(now: Now) -> Self {
        Self { time: now.wall, at: now.instant }
    }

    /// Advances to now, and returns the time since 1970-01-01 00:00 UTC.
    pub(super) fn advance(&mut self, now: Now) -> Duration {
        let passed = now.instant.saturating_duration_since(self.at);
        let time = self.time + passed;
        self.time = if time < now.wall {
            (time + passed / 2).min(now.wall)
        } else {
            time.saturating_sub(passed / 2).max(now.wall).min(time)
        };
        self.at = self.at.max(now.instant);
        self.time
    }

    /// The time, without advancing.
    pub(super) fn read(mut self, now: Now) -> Duration {
        self.advance(now)
    }
}
