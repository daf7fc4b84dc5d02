//! The schedule of checks, without a clock of its own.

use std::time::Duration;

use tokio::time::Instant;

/// Minimum time between the starts of two scheduled checks, at any configured interval.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// The first check of a target starts within this time, so that a start with many targets causes no burst.
const FIRST_WITHIN: Duration = Duration::from_millis(50);

/// Start times that are `interval` apart, each moved by up to a tenth of it either way, so that the nodes of a cluster
/// do not check in step.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    random: Random,
    next: Instant,
    /// The end of the last check.
    ended: Option<Instant>,
}

impl Schedule {
    pub(super) fn new(interval: Duration, seed: u64, now: Instant) -> Self {
        let interval = interval.max(INTERVAL_MIN);
        let mut random = Random(seed);
        let next = now + random.up_to(FIRST_WITHIN.min(interval));
        Self { interval, random, next, ended: None }
    }

    /// The start of the next check.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Records the end of a check that began at `started`. After a slow check a tenth of the interval remains free.
    pub(super) fn ended(&mut self, started: Instant, now: Instant) {
        let jitter = self.random.up_to(self.interval / 5);
        self.next = (started + self.interval * 9 / 10 + jitter).max(now + self.gap());
        self.ended = Some(now);
    }

    /// Moves the next check forward on evidence of a failure. At most ten such checks fit into an interval.
    pub(super) fn expedite(&mut self, now: Instant) {
        let soonest = self.ended.map_or(now, |ended| (ended + self.gap()).max(now));
        self.next = self.next.min(soonest);
    }

    fn gap(&self) -> Duration {
        self.interval / 10
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): plenty for jitter, and a seed makes a run repeatable.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn up_to(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(z % limit.saturating_add(1).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn starts(seed: u64, takes: Duration, count: usize) -> Vec<Duration> {
        let origin = Instant::now();
        let mut schedule = Schedule::new(SECOND, seed, origin);
        let mut starts = Vec::new();
        for _ in 0..count {
            let start = schedule.next();
            starts.push(start - origin);
            schedule.ended(start, start + takes);
        }
        starts
    }

    #[test]
    fn intervals_vary_by_a_tenth_and_keep_their_mean() {
        for seed in 0..20 {
            let starts = starts(seed, Duration::from_millis(5), 1000);
            assert!(starts[0] <= FIRST_WITHIN, "seed {seed}");
            let gaps: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps.iter().all(|gap| (900..=1100).contains(&gap.as_millis())), "seed {seed}");
            let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
            assert!(*most - *least > Duration::from_millis(150), "seed {seed}: the whole range is used");
            let mean = (starts[999] - starts[0]) / 999;
            assert!((985..=1015).contains(&mean.as_millis()), "seed {seed}: {mean:?}");
        }
    }

    #[test]
    fn seeds_differ_and_repeat() {
        assert_eq!(starts(7, Duration::ZERO, 50), starts(7, Duration::ZERO, 50));
        assert_ne!(starts(7, Duration::ZERO, 50), starts(8, Duration::ZERO, 50));
    }

    #[test]
    fn slow_checks_follow_each_other_with_a_gap() {
        let gaps = starts(1, SECOND * 3, 10);
        assert!(gaps.windows(2).all(|pair| pair[1] - pair[0] == SECOND * 31 / 10), "{gaps:?}");
    }

    #[test]
    fn expedited_checks_keep_a_gap_of_a_tenth_of_the_interval() {
        let origin = Instant::now();
        let mut schedule = Schedule::new(SECOND, 1, origin);
        schedule.expedite(origin);
        assert_eq!(schedule.next(), origin);
        schedule.ended(origin, origin + SECOND / 100);
        let regular = schedule.next();
        schedule.expedite(origin + SECOND / 50);
        assert_eq!(schedule.next(), origin + SECOND / 100 + SECOND / 10);
        schedule.expedite(origin + SECOND / 2);
        assert_eq!(schedule.next(), origin + SECOND / 100 + SECOND / 10, "never later than it was");
        assert!(schedule.next() < regular);
    }

    #[test]
    fn a_zero_interval_does_not_spin() {
        let origin = Instant::now();
        let mut schedule = Schedule::new(Duration::ZERO, 3, origin);
        schedule.ended(origin, origin);
        assert!(schedule.next() >= origin + INTERVAL_MIN * 9 / 10);
    }
}
