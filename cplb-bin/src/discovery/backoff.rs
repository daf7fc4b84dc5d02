//! The pause before the next request to an API: none after a long watch, else one that grows with each short watch and
//! with each failure.
//!
//! kube-runtime's watcher starts a watch again as soon as one has ended, and lists again as soon as a resource version is
//! gone (410): without pauses a server that ends each watch at once would get thousands of requests per second.

use std::time::{Duration, Instant};

/// The first pause, before jitter.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause, before jitter.
const MAX_PAUSE: Duration = Duration::from_secs(8);
/// A watch is a long one from this length on, or from half of its requested length.
const LONG_WATCH: Duration = Duration::from_secs(5);

/// Counts consecutive short watches and failures. Pure: `now` is a parameter, and the jitter is seeded.
#[derive(Debug)]
pub(super) struct Backoff {
    /// The least length of a long watch.
    long_watch: Duration,
    /// Short watches and failures since the last long watch.
    failures: u32,
    /// Start of the watch under way, or of the last one until its length is known.
    watch_start: Option<Instant>,
    random: u64,
}

impl Backoff {
    /// For requested watches of this length.
    pub(super) fn new(watch: Duration, seed: u64) -> Self {
        Self { long_watch: LONG_WATCH.min(watch / 2), failures: 0, watch_start: None, random: seed }
    }

    /// Returns the pause before the next request. A watch that was under way has ended.
    pub(super) fn before_request(&mut self, now: Instant) -> Duration {
        match self.watch_start.take() {
            None => Duration::ZERO,
            Some(start) if self.is_long(start, now) => {
                self.failures = 0;
                Duration::ZERO
            }
            Some(_) => self.longer_pause(),
        }
    }

    /// Records the start of a watch.
    pub(super) fn watch_started(&mut self, now: Instant) {
        self.watch_start = Some(now);
    }

    /// Records that a request or a watch has failed. Returns the pause before the next attempt.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        if self.watch_start.take().is_some_and(|start| self.is_long(start, now)) {
            self.failures = 0;
        }
        self.longer_pause()
    }

    fn is_long(&self, start: Instant, now: Instant) -> bool {
        now.saturating_duration_since(start) >= self.long_watch
    }

    /// Half of the pause and a random part of the other half, so that the nodes of a cluster do not send at the same time.
    fn longer_pause(&mut self) -> Duration {
        let whole = MIN_PAUSE.saturating_mul(1 << self.failures.min(16)).min(MAX_PAUSE);
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

    #[derive(Clone, Copy, PartialEq)]
    enum Lists {
        Once,
        BeforeEachWatch,
    }

    /// Requests in each of ten minutes to a server whose watches end after `length`.
    fn requests(seed: u64, length: Duration, lists: Lists) -> Vec<usize> {
        let (mut backoff, start) = (Backoff::new(WATCH, seed), Instant::now());
        let (mut now, mut minutes) = (start, vec![0; 10]);
        let mut listed = false;
        while now < start + 10 * MINUTE {
            now += backoff.before_request(now);
            let minute = usize::try_from((now - start).as_secs() / 60).unwrap();
            if let Some(count) = minutes.get_mut(minute) {
                *count += 1;
            }
            if listed {
                backoff.watch_started(now);
                now += length;
            }
            listed = !listed || lists == Lists::Once;
        }
        minutes
    }

    #[test]
    fn a_server_that_ends_each_watch_at_once_gets_few_requests() {
        for seed in 0..50 {
            let minutes = requests(seed, Duration::from_millis(1), Lists::Once);
            assert!(minutes[0] <= 22 && minutes[1..].iter().all(|count| *count <= 15), "{minutes:?}");
            assert!(minutes[1..].iter().all(|count| *count >= 7), "requests go on: {minutes:?}");
        }
    }

    #[test]
    fn lists_after_each_expired_resource_version_are_spaced() {
        for seed in 0..50 {
            let minutes = requests(seed, Duration::ZERO, Lists::BeforeEachWatch);
            assert!(minutes[0] <= 44 && minutes[1..].iter().all(|count| *count <= 32), "{minutes:?}");
        }
    }

    #[test]
    fn long_watches_follow_each_other_without_a_pause() {
        let minutes = requests(1, WATCH, Lists::Once);
        assert!(minutes.iter().all(|count| (2..=4).contains(count)), "{minutes:?}");
        let (mut backoff, now) = (Backoff::new(Duration::from_secs(1), 1), Instant::now());
        backoff.watch_started(now);
        assert_eq!(
            backoff.before_request(now + Duration::from_millis(500)),
            Duration::ZERO,
            "half of the requested length"
        );
    }

    #[test]
    fn pauses_grow_to_8_s_and_only_a_long_watch_resets_them() {
        let (mut backoff, mut now) = (Backoff::new(WATCH, 7), Instant::now());
        for whole in [250, 500, 1_000, 2_000, 4_000, 8_000, 8_000].map(Duration::from_millis) {
            let pause = backoff.failed(now);
            assert!((whole / 2..=whole).contains(&pause), "{pause:?} of {whole:?}");
            // A list that succeeds does not reset the pause.
            now += pause + Duration::from_secs(15);
            assert_eq!(backoff.before_request(now), Duration::ZERO);
        }
        backoff.watch_started(now);
        now += LONG_WATCH;
        assert!(backoff.failed(now) <= MIN_PAUSE);
    }

    #[test]
    fn jitter_differs_between_seeds() {
        let pause = |seed| Backoff::new(WATCH, seed).failed(Instant::now());
        assert_ne!(pause(1), pause(2));
        assert_eq!(pause(1), pause(1));
    }
}
