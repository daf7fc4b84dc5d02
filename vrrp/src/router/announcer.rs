//! The times of the announcements of the virtual addresses.
//!
//! A takeover needs a burst, then repetition while a dead predecessor's kernel may still answer for an address with a
//! lease that has not expired, then a rare refresh. A rival needs one more announcement when it falls silent, because
//! its own may have come last; and so does a node that announces the addresses and is not heard otherwise, but not
//! often (RFC 5227 §2.4), because it may do the same. No packet of a peer makes more than two rounds a second.

use std::time::{Duration, Instant};

const BURST: u8 = 5;
const BURST_GAP: Duration = Duration::from_millis(5);
const REPEAT_GAP: Duration = Duration::from_millis(500);
const REFRESH_GAP: Duration = Duration::from_secs(60);
/// `DEFEND_INTERVAL` of RFC 5227 §1.1.
const DEFEND_GAP: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(super) struct Announcer {
    /// The last round; none before the addresses are installed.
    last: Option<Instant>,
    burst_left: u8,
    repeat_until: Instant,
    once_at: Option<Instant>,
    /// The next defence of the addresses, and the last one.
    defend_at: Option<Instant>,
    defended: Option<Instant>,
    refresh_gap: Duration,
}

/// The importance of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// A neighbour's cache may be wrong without it.
    Needed,
    /// A periodic round, which may be skipped.
    Refresh,
}

impl Announcer {
    /// A silent announcer. `seed` spreads the refreshes of many routers over 6 s.
    pub(super) fn new(now: Instant, seed: u64) -> Self {
        let spread = Duration::from_millis((seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 6000);
        Self {
            last: None,
            burst_left: 0,
            repeat_until: now,
            once_at: None,
            defend_at: None,
            defended: None,
            refresh_gap: REFRESH_GAP + spread,
        }
    }

    /// The addresses are installed: a burst if they were not before, else one round.
    pub(super) fn installed(&mut self, now: Instant) {
        if self.last.is_some() {
            return self.once(now);
        }
        self.burst_left = BURST;
        self.once_at = Some(now);
    }

    /// Repeats rounds until a predecessor has lost the addresses.
    pub(super) fn repeat_until(&mut self, until: Instant) {
        self.repeat_until = self.repeat_until.max(until);
    }

    /// One more round, soon.
    pub(super) fn once(&mut self, now: Instant) {
        let Some(last) = self.last else { return };
        let at = now.max(last + REPEAT_GAP);
        self.once_at = Some(self.once_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// One round after another node has announced the addresses: now, or 10 s after the last such round. So the last
    /// announcement is this router's, however often the other repeats its own.
    pub(super) fn defend(&mut self, now: Instant) {
        let Some(last) = self.last.filter(|_| self.defend_at.is_none()) else { return };
        let earliest = self.defended.map_or(now, |defended| defended + DEFEND_GAP);
        self.defend_at = Some(now.max(last + REPEAT_GAP).max(earliest));
    }

    /// The time at which the next round is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let Some(last) = self.last else { return self.once_at };
        if self.burst_left > 0 {
            return Some(last + BURST_GAP);
        }
        let repeat = Some(last + REPEAT_GAP).filter(|at| *at <= self.repeat_until);
        let refresh = last + self.refresh_gap;
        [self.once_at, repeat, self.defend_at].into_iter().flatten().min().or(Some(refresh))
    }

    /// Records that the round that was due is made now, and returns its importance.
    pub(super) fn round(&mut self, now: Instant) -> Round {
        let refresh = self.last.is_some_and(|last| now >= last + self.refresh_gap);
        let needed = self.burst_left > 0 || self.once_at.is_some() || self.defend_at.is_some() || !refresh;
        if self.defend_at.take_if(|at| *at <= now).is_some() {
            self.defended = Some(now);
        }
        self.burst_left = self.burst_left.saturating_sub(1);
        self.once_at = None;
        self.last = Some(now);
        if needed { Round::Needed } else { Round::Refresh }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times in ms of all rounds until `end`.
    fn rounds(announcer: &mut Announcer, start: Instant, end: Duration) -> Vec<u128> {
        let mut rounds = Vec::new();
        while let Some(at) = announcer.next().filter(|at| *at <= start + end) {
            announcer.round(at);
            rounds.push(at.duration_since(start).as_millis());
        }
        rounds
    }

    #[test]
    fn addresses_are_defended_once_in_ten_seconds_and_last() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut announcer = Announcer::new(start, 0);
        announcer.defend(start);
        assert_eq!(announcer.next(), None, "they are not installed");
        announcer.installed(start);
        rounds(&mut announcer, start, ms(1_000));
        // Another node announces them every 100 ms for 25 s.
        let mut defences = Vec::new();
        for at in (2_000..27_000).step_by(100) {
            announcer.defend(start + ms(at));
            defences.extend(rounds(&mut announcer, start, ms(at + 99)));
        }
        assert_eq!(defences, [2_000, 12_000, 22_000]);
        assert_eq!(rounds(&mut announcer, start, ms(60_000)), [32_000], "after the last of the other's");
    }

    #[test]
    fn a_takeover_bursts_repeats_and_refreshes() {
        let start = Instant::now();
        let mut announcer = Announcer::new(start, 0);
        assert_eq!(announcer.next(), None, "nothing to announce before the addresses are installed");
        announcer.repeat_until(start + Duration::from_millis(1600));
        announcer.installed(start);
        let rounds = rounds(&mut announcer, start, Duration::from_secs(70));
        assert_eq!(rounds, [0, 5, 10, 15, 20, 520, 1020, 1520, 61_520]);
    }

    #[test]
    fn rounds_on_demand_are_rate_limited() {
        let start = Instant::now();
        let mut announcer = Announcer::new(start, 0);
        announcer.installed(start);
        rounds(&mut announcer, start, Duration::from_millis(100));
        let mut count = 0;
        for ms in 100..10_100 {
            let now = start + Duration::from_millis(ms);
            announcer.once(now);
            while announcer.next().is_some_and(|at| at <= now) {
                assert_eq!(announcer.round(now), Round::Needed);
                count += 1;
            }
        }
        assert!((19..=20).contains(&count), "{count} rounds in 10 s");
    }

    #[test]
    fn seeds_spread_refreshes() {
        let start = Instant::now();
        let gaps: std::collections::BTreeSet<_> =
            (1..=255).map(|seed| Announcer::new(start, seed).refresh_gap).collect();
        assert!(gaps.len() > 200, "{} different gaps", gaps.len());
    }
}
