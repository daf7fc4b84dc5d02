//! The results of a probe, and their evaluation.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// One connection of a probe.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The time of its start.
    pub started: Instant,
    /// The time of its success or failure.
    pub ended: Instant,
    /// The name of the backend that answered, or the failure.
    pub outcome: Result<Arc<str>, Failure>,
}

/// The reason why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Failure {
    /// The port has no listener.
    Refused,
    /// The connection was reset after it had been established.
    Reset,
    /// The connection was closed before an answer came.
    Closed,
    /// No route, or an ICMP error that the host is unreachable.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// Any other error.
    Other(io::ErrorKind),
}

/// A period without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last success before it, or the beginning of the examined period.
    pub from: Instant,
    /// The first success after it, or the end of the examined period.
    pub until: Instant,
}

impl Gap {
    /// The length of the gap.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.until.duration_since(self.from)
    }
}

/// The results of a probe.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    /// Samples in the order in which they ended.
    samples: Vec<Sample>,
    launches: Vec<Instant>,
    end: Instant,
}

impl ProbeReport {
    pub(crate) fn new(mut samples: Vec<Sample>, launches: Vec<Instant>, end: Instant) -> Self {
        samples.sort_by_key(|sample| sample.ended);
        Self { samples, launches, end }
    }

    /// All connections, in the order in which they ended.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The longest gap between two successes from the last success before `mark` until the end.
    #[must_use]
    pub fn blackout_since(&self, mark: Instant) -> Gap {
        self.blackout_between(mark, self.end)
    }

    /// The longest gap between two successes that ends after `from` and begins before `until`.
    #[must_use]
    pub fn blackout_between(&self, from: Instant, until: Instant) -> Gap {
        let successes =
            self.samples.iter().filter(|sample| sample.outcome.is_ok()).map(|sample| sample.ended);
        longest_gap(successes, from, until)
    }

    /// The longest time since `mark` in which the probe started no connection. If it is close to the blackout, the
    /// machine was too busy to measure.
    #[must_use]
    pub fn own_stall_since(&self, mark: Instant) -> Duration {
        longest_gap(self.launches.iter().copied(), mark, self.end).duration()
    }

    /// The number of connections that ended after `mark`, by the backend that answered.
    #[must_use]
    pub fn served_by_since(&self, mark: Instant) -> BTreeMap<String, usize> {
        let answered = self.since(mark).filter_map(|sample| sample.outcome.as_ref().ok());
        answered.fold(BTreeMap::new(), |mut counts, name| {
            *counts.entry(name.to_string()).or_default() += 1;
            counts
        })
    }

    /// The number of connections that ended after `mark` and failed, by reason.
    #[must_use]
    pub fn failures_since(&self, mark: Instant) -> BTreeMap<Failure, usize> {
        let failed = self.since(mark).filter_map(|sample| sample.outcome.as_ref().err());
        failed.fold(BTreeMap::new(), |mut counts, failure| {
            *counts.entry(*failure).or_default() += 1;
            counts
        })
    }

    fn since(&self, mark: Instant) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.ended >= mark)
    }
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            io::ErrorKind::TimedOut => Self::TimedOut,
            kind => Self::Other(kind),
        }
    }
}

/// The longest gap between neighbouring `events` that overlaps `from` … `until`; the last event before `from` counts as
/// the beginning. Events must be in order.
fn longest_gap(events: impl Iterator<Item = Instant>, from: Instant, until: Instant) -> Gap {
    let mut last = None;
    let mut longest: Option<Gap> = None;
    for event in events.take_while(|&event| event <= until).chain([until]) {
        if event >= from {
            let gap = Gap { from: last.unwrap_or(from), until: event };
            if longest.is_none_or(|longest| gap.duration() > longest.duration()) {
                longest = Some(gap);
            }
        }
        last = Some(event);
    }
    longest.unwrap_or(Gap { from, until: from })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(events: &[u64], from: u64, until: u64) -> (u64, u64) {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let gap = longest_gap(events.iter().map(|&ms| at(ms)), at(from), at(until));
        let ms = |instant: Instant| u64::try_from(instant.duration_since(start).as_millis()).expect("small");
        (ms(gap.from), ms(gap.until))
    }

    #[test]
    fn longest_gap_is_found_between_events() {
        assert_eq!(gap(&[0, 2, 4, 50, 52], 0, 53), (4, 50));
    }

    #[test]
    fn gap_that_begins_before_the_mark_counts_in_full() {
        assert_eq!(gap(&[0, 2, 90, 92], 40, 93), (2, 90));
    }

    #[test]
    fn gaps_outside_the_period_are_ignored() {
        assert_eq!(gap(&[0, 100, 102, 104, 300], 101, 104), (100, 102));
    }

    #[test]
    fn gap_until_the_end_counts() {
        assert_eq!(gap(&[0, 2, 4], 1, 60), (4, 60));
        assert_eq!(gap(&[], 10, 60), (10, 60));
    }
}
