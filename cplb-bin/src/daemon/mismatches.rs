//! The times at which other routers last advertised another configuration. The counters alone do not show whether that is
//! over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use vrrp::router::Counters;

/// The time after which a difference has ended that was not seen again: more than the longest advertisement interval, 41 s.
const ENDED: Duration = Duration::from_secs(60);

/// The counts of each instance and kind of difference, each with the time of its last increase.
#[derive(Debug, Default)]
pub(crate) struct Mismatches(BTreeMap<(u32, String), Count>);

#[derive(Debug)]
struct Count {
    count: u64,
    /// The time of the last increase; `None` if there was none since the first observation.
    increased: Option<Instant>,
}

impl Mismatches {
    /// Takes a count of an instance.
    pub(crate) fn observe(&mut self, vrid: u32, kind: &str, count: u64, now: Instant) {
        let seen = self.0.entry((vrid, kind.to_owned())).or_insert(Count { count: 0, increased: None });
        if count > seen.count {
            seen.increased = Some(now);
        }
        seen.count = count;
    }

    /// The differences of an instance that have not ended, each with its age.
    pub(crate) fn current(&self, vrid: u32, now: Instant) -> BTreeMap<String, Duration> {
        let of_instance = self.0.iter().filter(|((id, _), _)| *id == vrid);
        let ages = of_instance.filter_map(|((_, kind), seen)| {
            let age = now.saturating_duration_since(seen.increased?);
            (age < ENDED).then(|| (kind.clone(), age))
        });
        ages.collect()
    }

    /// Forgets instances that no longer exist.
    pub(crate) fn retain(&mut self, exists: impl Fn(u32) -> bool) {
        self.0.retain(|(id, _), _| exists(*id));
    }
}

/// The numbers of advertisements of another configuration, by the kind of difference.
pub(crate) fn counts(counters: &Counters) -> BTreeMap<String, u64> {
    [("address_list", counters.address_list_mismatches), ("interval", counters.interval_mismatches)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| (kind.to_owned(), count))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_has_an_age_and_ends_after_60_seconds() {
        let (mut mismatches, start) = (Mismatches::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        mismatches.observe(51, "interval", 0, start);
        assert!(mismatches.current(51, start).is_empty());
        mismatches.observe(51, "interval", 3, after(5));
        mismatches.observe(51, "interval", 3, after(20));
        let age = BTreeMap::from([("interval".to_owned(), Duration::from_secs(15))]);
        assert_eq!(mismatches.current(51, after(20)), age);
        assert!(mismatches.current(52, after(20)).is_empty());
        assert!(mismatches.current(51, after(65)).is_empty(), "it has ended");
        mismatches.observe(51, "interval", 1, after(70));
        assert!(mismatches.current(51, after(70)).is_empty(), "the router has restarted its counters");
        mismatches.observe(51, "interval", 2, after(71));
        assert_eq!(mismatches.current(51, after(71)).len(), 1);
        mismatches.retain(|id| id != 51);
        assert!(mismatches.current(51, after(71)).is_empty());
    }
}
