//! The distribution of the times that connects to a backend took.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The number of classes with a bound.
const CLASSES: usize = 11;

/// The times of the successful connects to a backend, from the first packet until the connection was established.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectTimes {
    /// The number of connects by the smallest of [`ConnectTimes::BOUNDS`] that they did not exceed; the last one is of those
    /// that exceeded all.
    pub counts: [u64; CLASSES + 1],
    /// The sum of all times.
    pub sum: Duration,
}

impl ConnectTimes {
    /// The bounds of the classes in ascending order: from less than a local network takes to more than one lost packet costs
    /// (RFC 6298: a second).
    pub const BOUNDS: [Duration; CLASSES] = [
        Duration::from_micros(100),
        Duration::from_micros(250),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_micros(2_500),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(25),
        Duration::from_millis(100),
        Duration::from_millis(500),
        Duration::from_secs(2),
    ];

    /// The number of connects.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// The same, for all workers to add to.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    counts: [AtomicU64; CLASSES + 1],
    micros: AtomicU64,
}

impl Recorder {
    pub(crate) fn record(&self, time: Duration) {
        let class = ConnectTimes::BOUNDS.iter().position(|bound| time <= *bound).unwrap_or(CLASSES);
        self.counts[class].fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn snapshot(&self) -> ConnectTimes {
        ConnectTimes {
            counts: self.counts.each_ref().map(|count| count.load(Relaxed)),
            sum: Duration::from_micros(self.micros.load(Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_once_with_the_smallest_bound_that_it_does_not_exceed() {
        let recorder = Recorder::default();
        for time in [Duration::ZERO, ConnectTimes::BOUNDS[0], Duration::from_micros(101), Duration::MAX / 2] {
            recorder.record(time);
        }
        let times = recorder.snapshot();
        assert_eq!((times.counts[0], times.counts[1], times.counts[CLASSES]), (2, 1, 1));
        assert_eq!(times.count(), 4);
        assert!(ConnectTimes::BOUNDS.is_sorted());
        let recorder = Recorder::default();
        recorder.record(Duration::from_micros(250));
        assert_eq!(recorder.snapshot().sum, Duration::from_micros(250));
    }
}
