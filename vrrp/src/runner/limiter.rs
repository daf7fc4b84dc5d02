//! Once per minute and reason: what a peer does wrong, it does with every packet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(60);

/// Remembers when a kind of event was last let through.
///
/// Keys must come from a bounded set: nothing is ever forgotten.
#[derive(Debug)]
pub(super) struct Limiter<K>(BTreeMap<K, Window>);

#[derive(Debug)]
struct Window {
    opened: Instant,
    suppressed: u64,
}

impl<K: Ord> Limiter<K> {
    pub(super) const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The number of events of this kind that were held back since the last one, if this one may pass.
    pub(super) fn pass(&mut self, key: K, now: Instant) -> Option<u64> {
        let Some(window) = self.0.get_mut(&key) else {
            self.0.insert(key, Window { opened: now, suppressed: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(window.opened) < PERIOD {
            window.suppressed += 1;
            return None;
        }
        window.opened = now;
        Some(std::mem::take(&mut window.suppressed))
    }

    /// Forgets the kinds for which `keep` is false.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.0.retain(|key, _| keep(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_a_minute_and_kind_passes_with_the_number_of_suppressed_ones() {
        let mut limiter = Limiter::new();
        let start = Instant::now();
        assert_eq!(limiter.pass("checksum", start), Some(0));
        assert_eq!(limiter.pass("length", start), Some(0), "another kind has its own minute");
        for second in 1..60 {
            assert_eq!(limiter.pass("checksum", start + Duration::from_secs(second)), None);
        }
        assert_eq!(limiter.pass("checksum", start + PERIOD), Some(59));
        assert_eq!(limiter.pass("checksum", start + PERIOD + Duration::from_secs(1)), None);
        assert_eq!(limiter.pass("checksum", start + 3 * PERIOD), Some(1));
    }
}
