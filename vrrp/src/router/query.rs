//! Tells a router that takes part in the election from a program that merely sends.
//!
//! A Backup leaves the addresses to an Active of lower priority unless `preempt` is `always`. Such a router may be a
//! peer that is not known, or a program that sends advertisements, hears nothing and serves nobody. Every edition of the
//! standard makes an Active answer an advertisement of priority 0 at once (RFC 9568, 5798, 3768 §6.4.3), so the Backup
//! sends one halfway between two advertisements. Doubt counts for the router: one early advertisement is an answer.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How many queries in a row must remain unanswered.
const PROOF: u8 = 3;

/// The queries to one router.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    pub(super) source: IpAddr,
    /// The interval of the router's advertisements.
    interval: Duration,
    /// When the last query was sent, unless the router has advertised since.
    sent: Option<Instant>,
    unanswered: u8,
    answered: bool,
}

impl Query {
    pub(super) const fn new(source: IpAddr, interval: Duration) -> Self {
        Self { source, interval, sent: None, unanswered: 0, answered: false }
    }

    /// Notes an advertisement. Unless it is an answer, it comes half an interval after a query.
    pub(super) fn heard(&mut self, now: Instant, interval: Duration) {
        if let Some(sent) = self.sent.take() {
            let early = now < sent + self.interval * 3 / 8;
            self.answered |= early;
            self.unanswered += u8::from(!early);
        }
        self.interval = interval;
    }

    /// When to send the next query after an advertisement that was heard now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        (!self.answered && !self.is_proof()).then(|| now + self.interval / 2)
    }

    /// Notes that a query is due, and returns whether to send it: a late one would take the next advertisement for an
    /// answer.
    pub(super) fn send(&mut self, now: Instant, late: Duration) -> bool {
        let in_time = late < self.interval / 16;
        self.sent = in_time.then_some(now);
        in_time
    }

    /// Whether the router does not answer.
    pub(super) const fn is_proof(&self) -> bool {
        !self.answered && self.unanswered >= PROOF
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    /// The advertisements come this long after the queries.
    fn asked(delays: &[u64]) -> Query {
        let mut now = Instant::now();
        let mut query = Query::new(IpAddr::from([10, 9, 0, 13]), INTERVAL);
        query.heard(now, INTERVAL);
        for delay in delays {
            let Some(at) = query.next(now) else { return query };
            assert!(query.send(at, Duration::ZERO));
            now = at + Duration::from_millis(*delay);
            query.heard(now, INTERVAL);
        }
        query
    }

    #[test]
    fn three_regular_advertisements_in_a_row_are_proof_and_one_early_one_refutes_it() {
        assert!(!asked(&[50, 50]).is_proof());
        assert!(asked(&[50, 40, 90]).is_proof());
        assert!(!asked(&[50, 50, 1, 50, 50, 50]).is_proof());
    }

    #[test]
    fn a_late_query_is_not_sent() {
        let now = Instant::now();
        let mut query = asked(&[50, 50]);
        assert!(!query.send(now, INTERVAL / 8));
        query.heard(now + INTERVAL / 2, INTERVAL);
        assert!(!query.is_proof());
    }
}
