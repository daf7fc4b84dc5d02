//! The number that orders the messages of one sender, and says when it signed them.

use std::time::Duration;

/// The time of signing in units of 1/65536 s, and a counter for messages of the same time: 32 bits of seconds since
/// 1970-01-01 00:00 UTC, 16 bits of fraction, 16 bits of counter.
///
/// Greater is later. Times after 2106-02-07 are the last second that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The first sequence of a time.
    #[must_use]
    pub fn at(since_epoch: Duration) -> Self {
        let seconds = u32::try_from(since_epoch.as_secs()).unwrap_or(u32::MAX);
        let fraction = (u64::from(since_epoch.subsec_nanos()) << 16) / 1_000_000_000;
        Self((u64::from(seconds) << 32) | (fraction << 16))
    }

    /// The sequence behind this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The time of signing since 1970-01-01 00:00 UTC, rounded down to 1/65536 s.
    #[must_use]
    pub fn time(self) -> Duration {
        let nanos = ((self.0 >> 16) & 0xffff) * 1_000_000_000 / 65_536;
        Duration::from_secs(self.0 >> 32) + Duration::from_nanos(nanos)
    }
}
