//! When an API may be asked again: at once after a watch that lasted, else after a pause that grows with each one that did
//! not, and with each failure.
//!
//! kube-runtime's watcher begins a watch anew as soon as one has ended, and lists anew as soon as a version is gone (410):
//! without pauses a server that ends each at once is asked thousands of times a second.

use std::time::{Duration, Instant};

/// First and longest pause, before jitter.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// A watch that went on for so long was a good one, however long was asked for.
const GOOD: Duration = Duration::from_secs(5);

/// Counts what went wrong in a row. No clock, and seeded jitter.
#[derive(Debug)]
pub(super) struct Pace {
    /// A watch that went on for so long was a good one.
    good: Duration,
    /// Short watches and failures since the last good watch.
    failures: u32,
    /// When the watch that has not been judged yet began.
    watch: Option<Instant>,
    random: u64,
}

impl Pace {
    /// For watches that are asked for with this length.
    pub(super) fn new(watch: Duration, seed: u64) -> Self {
        Self { good: GOOD.min(watch / 2), failures: 0, watch: None, random: seed }
    }

    /// The pause before the next request. A watch that was under way has ended by now.
    pub(super) fn before_request(&mut self, now: Instant) -> Duration {
        match self.watch.take() {
            None => Duration::ZERO,
            Some(begun) if self.is_good(begun, now) => {
                self.failures = 0;
                Duration::ZERO
            }
            Some(_) => self.longer_pause(),
        }
    }

    /// A watch has begun.
    pub(super) fn watch_began(&mut self, now: Instant) {
        self.watch = Some(now);
    }

    /// A request or a watch has failed; the pause before all begins anew.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        if self.watch.take().is_some_and(|begun| self.is_good(begun, now)) {
            self.failures = 0;
        }
        self.longer_pause()
    }

    fn is_good(&self, begun: Instant, now: Instant) -> bool {
        now.saturating_duration_since(begun) >= self.good
    }

    /// Between half of the time and all of it, so that the nodes of a cluster do not ask in step.
    fn longer_pause(&mut self) -> Duration {
        let whole = PAUSE.0.saturating_mul(1 << self.failures.min(16)).min(PAUSE.1);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        let jitter = self.random() % u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(jitter)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const WATCH: Duration = Duration::from_secs(25);

    /// Requests in each of ten minutes to a server whose watches end after `lasts`, each after a list if it is `gone`.
    fn requests(seed: u64, lasts: Duration, gone: bool) -> Vec<usize> {
        let (mut pace, start) = (Pace::new(WATCH, seed), Instant::now());
        let (mut now, mut minutes) = (start, vec![0; 10]);
        let mut listed = false;
        while now < start + 10 * MINUTE {
            now += pace.before_request(now);
            let minute = usize::try_from((now - start).as_secs() / 60).unwrap();
            if let Some(count) = minutes.get_mut(minute) {
                *count += 1;
            }
            if listed {
                pace.watch_began(now);
                now += lasts;
            }
            listed = !listed || !gone;
        }
        minutes
    }

    #[test]
    fn a_server_that_ends_each_watch_at_once_gets_few_requests() {
        for seed in 0..50 {
            let minutes = requests(seed, Duration::from_millis(1), false);
            assert!(minutes[0] <= 22 && minutes[1..].iter().all(|count| *count <= 15), "{minutes:?}");
            assert!(minutes[1..].iter().all(|count| *count >= 7), "it is not given up: {minutes:?}");
        }
    }

    #[test]
    fn a_server_whose_versions_are_always_gone_gets_few_requests() {
        for seed in 0..50 {
            let minutes = requests(seed, Duration::ZERO, true);
            assert!(minutes[0] <= 44 && minutes[1..].iter().all(|count| *count <= 32), "{minutes:?}");
        }
    }

    #[test]
    fn watches_that_last_follow_each_other_at_once() {
        let minutes = requests(1, WATCH, false);
        assert!(minutes.iter().all(|count| (2..=4).contains(count)), "{minutes:?}");
        let (mut pace, now) = (Pace::new(Duration::from_secs(1), 1), Instant::now());
        pace.watch_began(now);
        assert_eq!(
            pace.before_request(now + Duration::from_millis(500)),
            Duration::ZERO,
            "half of a short one"
        );
    }

    #[test]
    fn pauses_grow_to_8_s_and_only_a_watch_that_lasted_ends_that() {
        let (mut pace, mut now) = (Pace::new(WATCH, 7), Instant::now());
        for whole in [250, 500, 1_000, 2_000, 4_000, 8_000, 8_000].map(Duration::from_millis) {
            let pause = pace.failed(now);
            assert!((whole / 2..=whole).contains(&pause), "{pause:?} of {whole:?}");
            // A list that succeeds, however slowly, is no reason to go back.
            now += pause + Duration::from_secs(15);
            assert_eq!(pace.before_request(now), Duration::ZERO);
        }
        pace.watch_began(now);
        now += GOOD;
        assert!(pace.failed(now) <= PAUSE.0);
    }

    #[test]
    fn nodes_do_not_ask_in_step() {
        let pause = |seed| Pace::new(WATCH, seed).failed(Instant::now());
        assert_ne!(pause(1), pause(2));
        assert_eq!(pause(1), pause(1));
    }
}
