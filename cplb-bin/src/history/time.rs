//! Points of the wall clock. The fuzz target `state_files` compiles this file, too.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A time in milliseconds since 1970-01-01 00:00 UTC, up to the end of the year 9999; written as by RFC 3339, in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Timestamp", into = "String")]
pub(crate) struct WallTime(u64);

/// The last millisecond of the year 9998: each time of RFC 3339 in any time zone is representable.
const MAX: u64 = 253_370_764_799_999;

impl WallTime {
    /// A later time than the last one that can be written counts as that one.
    pub(crate) const fn from_millis(millis: u64) -> Self {
        Self(if millis > MAX { MAX } else { millis })
    }

    pub(crate) fn now() -> Self {
        SystemTime::now().into()
    }

    /// Milliseconds since 1970-01-01 00:00 UTC.
    pub(crate) const fn millis(self) -> u64 {
        self.0
    }

    pub(crate) const fn saturating_sub(self, duration: Duration) -> Self {
        let millis = duration.as_millis();
        Self(if millis > self.0 as u128 { 0 } else { self.0 - millis as u64 })
    }

    pub(crate) const fn saturating_add(self, duration: Duration) -> Self {
        let millis = duration.as_millis();
        if millis > MAX as u128 { Self(MAX) } else { Self::from_millis(self.0 + millis as u64) }
    }

    /// The time since an earlier one; zero if that is later.
    pub(crate) const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for WallTime {
    /// A time before 1970 counts as 1970.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(MAX))
    }
}

impl From<Timestamp> for WallTime {
    fn from(time: Timestamp) -> Self {
        Self::from_millis(u64::try_from(time.as_millisecond()).unwrap_or_default())
    }
}

impl From<WallTime> for String {
    /// Always with milliseconds, so that times sort as texts.
    fn from(time: WallTime) -> Self {
        time.to_string()
    }
}

impl From<WallTime> for Timestamp {
    fn from(time: WallTime) -> Self {
        let millis = i64::try_from(time.0).unwrap_or_default();
        Self::from_millisecond(millis).unwrap_or_default()
    }
}

/// By RFC 3339 with milliseconds, in UTC.
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", Timestamp::from(*self))
    }
}
