//! Limits lines of one kind about one subject: the first ones are written, further ones are counted, and the last of
//! those is written with the count when the period is over. So the last state of a flapping subject is always written.
//!
//! A pure core without clock and I/O. Call order: [`Limiter::due`], then [`Limiter::offer`] for a new line;
//! [`Limiter::due`] again at [`Limiter::next_due`]; [`Limiter::drain`] at the end.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The time in which lines of a kind about a subject are limited together.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// Lines written in the first period.
pub(super) const BURST: u32 = 10;
/// Lines written at once in a period that follows one with suppressed lines.
pub(super) const LATER_BURST: u32 = 1;
/// Subjects of a kind with a limit of their own: 255 virtual routers, 256 discovered servers. Further ones share one.
pub(super) const MAX_SUBJECTS: usize = 300;

/// Lines `L` by kind `K` and subject. The number of kinds is bounded by that of the log statements in the program.
#[derive(Debug)]
pub(super) struct Limiter<K, L> {
    kinds: HashMap<K, HashMap<Option<u64>, Window<L>>>,
    /// Number of lines held so far, for their order.
    held: u64,
    /// The earliest end of a window with a held line.
    next_due: Option<Instant>,
}

#[derive(Debug)]
struct Window<L> {
    opened: Instant,
    /// Lines that may still be written.
    left: u32,
    held: Option<Held<L>>,
}

/// The last line of a window that was not written, and the number of those before it that were not either.
#[derive(Debug)]
struct Held<L> {
    number: u64,
    line: L,
    suppressed: u64,
}

/// The decision about a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision<L> {
    /// The line is to be written now.
    Write(L),
    /// The line is held, and written later unless another one replaces it. With `first`, the first held line of its
    /// window, [`Limiter::next_due`] may have changed.
    Held { first: bool },
}

/// A held line that is due, and the number of lines suppressed before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due<L> {
    pub(super) line: L,
    pub(super) suppressed: u64,
}

impl<K: Hash + Eq, L> Limiter<K, L> {
    pub(super) fn new() -> Self {
        Self { kinds: HashMap::new(), held: 0, next_due: None }
    }

    /// Decides about a line of `kind` about `subject`.
    pub(super) fn offer(&mut self, kind: K, subject: u64, line: L, now: Instant) -> Decision<L> {
        let windows = self.kinds.entry(kind).or_default();
        let mut key = Some(subject);
        if windows.len() >= MAX_SUBJECTS && !windows.contains_key(&key) {
            windows.retain(|_, window| !window.is_expired(now));
            if windows.len() >= MAX_SUBJECTS {
                key = None;
            }
        }
        let fresh = || Window { opened: now, left: BURST, held: None };
        let window = windows.entry(key).or_insert_with(fresh);
        if window.is_expired(now) {
            *window = fresh();
        }
        if window.left > 0 && window.held.is_none() {
            window.left -= 1;
            return Decision::Write(line);
        }
        self.held += 1;
        let suppressed = window.held.as_ref().map_or(0, |held| held.suppressed + 1);
        let first = window.held.is_none();
        window.held = Some(Held { number: self.held, line, suppressed });
        let end = window.opened + PERIOD;
        self.next_due = Some(self.next_due.map_or(end, |due| due.min(end)));
        Decision::Held { first }
    }

    /// Takes the held lines whose windows are over, in the order in which they came.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Due<L>> {
        if self.next_due.is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.take(now, |window| now.saturating_duration_since(window.opened) >= PERIOD)
    }

    /// Takes all held lines.
    pub(super) fn drain(&mut self, now: Instant) -> Vec<Due<L>> {
        self.take(now, |_| true)
    }

    /// The time at which the next held line is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next_due
    }

    fn take(&mut self, now: Instant, is_over: impl Fn(&Window<L>) -> bool) -> Vec<Due<L>> {
        let mut taken = Vec::new();
        self.next_due = None;
        // The lines of one subject are written together; otherwise its last state might not be written last.
        let held = self.kinds.values().flatten().filter(|(_, window)| window.held.is_some());
        let over: HashSet<_> =
            held.filter(|(_, window)| is_over(window)).map(|(subject, _)| *subject).collect();
        for (subject, window) in self.kinds.values_mut().flatten() {
            if window.held.is_none() {
                continue;
            }
            if over.contains(subject) {
                taken.extend(window.held.take());
                (window.opened, window.left) = (now, LATER_BURST);
            } else {
                let end = window.opened + PERIOD;
                self.next_due = Some(self.next_due.map_or(end, |due: Instant| due.min(end)));
            }
        }
        taken.sort_by_key(|held| held.number);
        taken.into_iter().map(|Held { line, suppressed, .. }| Due { line, suppressed }).collect()
    }
}

impl<L> Window<L> {
    /// Returns whether the period is over and no line is held.
    fn is_expired(&self, now: Instant) -> bool {
        self.held.is_none() && now.saturating_duration_since(self.opened) >= PERIOD
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    /// Lines written with the number of those suppressed before each.
    struct Log(Limiter<&'static str, u64>, Vec<(u64, u64)>);

    impl Log {
        fn new() -> Self {
            Self(Limiter::new(), Vec::new())
        }

        fn line(&mut self, kind: &'static str, subject: u64, line: u64, now: Instant) {
            self.pass(now);
            if let Decision::Write(line) = self.0.offer(kind, subject, line, now) {
                self.1.push((line, 0));
            }
        }

        fn pass(&mut self, now: Instant) {
            let due = self.0.due(now);
            self.1.extend(due.into_iter().map(|due| (due.line, due.suppressed)));
        }
    }

    #[test]
    fn a_burst_writes_ten_lines_then_two_per_period() {
        let (mut log, start) = (Log::new(), Instant::now());
        for number in 0..60_000 {
            log.line("backend suspected", 1, number, start + TICK * u32::try_from(number).unwrap());
        }
        assert_eq!(log.1.len(), 10 + 5 * 2, "{:?}", log.1);
        log.pass(start + Duration::from_secs(70));
        assert_eq!(log.1.last().unwrap().0, 59_999, "the last line is written");
        let suppressed: u64 = log.1.iter().map(|(_, suppressed)| suppressed).sum();
        assert_eq!(suppressed + log.1.len() as u64, 60_000, "each line is written or counted");
    }

    #[test]
    fn the_last_state_of_a_flapping_subject_is_written_last() {
        let (mut log, start) = (Log::new(), Instant::now());
        for number in 0..1_001 {
            let kind = if number % 2 == 0 { "down" } else { "up" };
            log.line(kind, 1, number, start + TICK * u32::try_from(number).unwrap());
        }
        assert_eq!(log.0.next_due(), Some(start + PERIOD), "the window of the other kind ends later");
        log.pass(start + PERIOD);
        let written: Vec<u64> = log.1.iter().map(|(line, _)| *line).collect();
        assert_eq!(written[written.len() - 2..], [999, 1_000], "in their order");
        assert_eq!(log.0.next_due(), None);
    }

    #[test]
    fn subjects_and_kinds_do_not_limit_each_other() {
        let (mut log, now) = (Log::new(), Instant::now());
        for subject in 0..255 {
            log.line("state", subject, subject, now);
            log.line("installed", subject, subject, now);
        }
        assert_eq!(log.1.len(), 510);
    }

    #[test]
    fn a_quiet_period_restores_the_full_burst() {
        let (mut log, start) = (Log::new(), Instant::now());
        for number in 0..20 {
            log.line("up", 1, number, start);
        }
        log.pass(start + PERIOD);
        let later = start + 3 * PERIOD;
        let before = log.1.len();
        for number in 0..20 {
            log.line("up", 1, number, later);
        }
        assert_eq!(log.1.len() - before, BURST as usize);
    }

    #[test]
    fn subjects_beyond_the_maximum_share_one_limit_in_bounded_memory() {
        let (mut log, start) = (Log::new(), Instant::now());
        for number in 0..100_000 {
            log.line("discarded", number, number, start + TICK * u32::try_from(number / 10).unwrap());
        }
        assert!(log.0.kinds["discarded"].len() <= MAX_SUBJECTS + 1);
        // Windows of earlier subjects expire, so each period admits new subjects, whose first lines are written.
        assert!(log.1.len() <= 2 * (MAX_SUBJECTS + BURST as usize), "{}", log.1.len());
    }

    proptest! {
        #[test]
        fn each_line_is_written_or_counted_and_the_last_one_of_a_subject_is_written(
            lines in vec((0_u64..4, 0_u32..3_000), 1..400)
        ) {
            let (mut log, mut now) = (Log::new(), Instant::now());
            let mut last = HashMap::new();
            for (number, (subject, wait)) in lines.iter().enumerate() {
                now += TICK * *wait;
                log.line("line", *subject, number as u64, now);
                last.insert(*subject, number as u64);
            }
            let rest = log.0.drain(now);
            log.1.extend(rest.into_iter().map(|due| (due.line, due.suppressed)));
            let suppressed: u64 = log.1.iter().map(|(_, suppressed)| suppressed).sum();
            prop_assert_eq!(suppressed + log.1.len() as u64, lines.len() as u64);
            prop_assert!(last.values().all(|last| log.1.iter().any(|(line, _)| line == last)));
            prop_assert_eq!(log.0.next_due(), None);
        }
    }
}
