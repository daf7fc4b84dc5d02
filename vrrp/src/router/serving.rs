//! The evidence that this node can serve.

use std::time::{Duration, Instant};

/// The longest time that evidence must last before it counts: shorter than `takeover_after`, so that an
/// Active that recovers together with its Backups advertises it before one of them takes over; long enough that a check
/// that flaps several times a second never looks like recovery.
const SETTLE: Duration = Duration::from_millis(400);

/// The time since which this node can serve, and whether the evidence counts yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Serving {
    since: Option<Instant>,
    settled: bool,
    /// It could serve once and then could not, so that its evidence may come and go.
    failed: bool,
}

impl Serving {
    /// Records evidence. Returns the time from which it counts if it is the first: now, or later after a failure.
    pub(super) fn begin(&mut self, now: Instant, takeover_after: Duration) -> Option<Instant> {
        if self.since.is_some() {
            return None;
        }
        self.since = Some(now);
        Some(if self.failed { now + SETTLE.min(takeover_after / 5) } else { now })
    }

    pub(super) const fn settle(&mut self) {
        self.settled = self.since.is_some();
    }

    pub(super) const fn end(&mut self) {
        *self = Self { since: None, settled: false, failed: self.failed || self.since.is_some() };
    }

    pub(super) const fn settled(&self) -> bool {
        self.settled
    }

    /// The time that the evidence has lasted.
    pub(super) fn duration(&self, now: Instant) -> Option<Duration> {
        self.since.map(|since| now.saturating_duration_since(since))
    }
}
