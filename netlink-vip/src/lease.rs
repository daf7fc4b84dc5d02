//! When a claim may refresh a lease. Pure; the clock is a parameter.
//!
//! The kernel has no "refresh if it is still there": a refresh re-creates an absent address. So the question before
//! each refresh is whether the address can have vanished since the last one, and the question after it is whether so
//! much time passed on the way (a stopped process, a paused machine) that it re-created one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::types::LeaseTime;

/// Permission to hold a group's addresses, given by the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// When it was made. A claim does not answer what happened after it.
    pub(crate) issued: Instant,
    /// Until when it holds.
    pub(crate) valid_until: Instant,
}

/// The node's possession of the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LeaseState {
    /// It does not hold them.
    Vacant,
    /// It holds them.
    Held(Held),
    /// It held them until the lease ran out without a claim. The claimant of the next claim does not know that.
    Lapsed,
}

/// A held lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// When the last refresh began: the kernel's lease is not older than that.
    pub(crate) since: Instant,
    /// The length that the kernel was given then.
    pub(crate) time: LeaseTime,
    /// Until when the last claim holds.
    pub(crate) valid_until: Instant,
    /// Addresses that another program removed; only a claim made after that was reported restores them.
    pub(crate) missing: BTreeSet<IpAddr>,
    /// `true` if the next claim is to read and write everything, not just to refresh.
    pub(crate) rewrite: bool,
}

/// Decision on a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimOutcome {
    /// Add the addresses (or restore the missing ones).
    Install,
    /// Refresh them.
    Refresh,
    /// The last refresh is recent enough.
    Fresh,
    /// The claim is over, or older than an event that the claimant did not know.
    Stale,
    /// The addresses may be gone already: give them up and say so.
    Lost,
}

/// A lease and the claims on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The length that the next refresh asks for.
    pub(crate) time: LeaseTime,
    /// Where it stands.
    pub(crate) state: LeaseState,
    /// Claims made before this do not count.
    not_before: Option<Instant>,
}

impl Lease {
    pub(crate) fn new(time: LeaseTime) -> Self {
        Self { time, state: LeaseState::Vacant, not_before: None }
    }

    /// Judges a claim that arrived at `now`.
    pub(crate) fn decide(&self, now: Instant, claim: &Claim) -> ClaimOutcome {
        if now >= claim.valid_until {
            return ClaimOutcome::Stale;
        }
        let outdated = self.not_before.is_some_and(|barrier| claim.issued < barrier);
        match &self.state {
            LeaseState::Lapsed => ClaimOutcome::Lost,
            _ if outdated => ClaimOutcome::Stale,
            LeaseState::Vacant => ClaimOutcome::Install,
            LeaseState::Held(held) => {
                let age = now.saturating_duration_since(held.since);
                if age >= held.time.nearly_over() {
                    ClaimOutcome::Lost
                } else if held.rewrite || !held.missing.is_empty() {
                    ClaimOutcome::Install
                } else if age >= held.time.refresh_spacing() {
                    ClaimOutcome::Refresh
                } else {
                    ClaimOutcome::Fresh
                }
            }
        }
    }

    /// Returns whether writing took so long, read from the clock after an acknowledgement, that what was written may
    /// have been re-created without permission.
    pub(crate) fn wrote_too_late(&self, acked: Instant, claim: &Claim) -> bool {
        let expired = |held: &Held| acked.saturating_duration_since(held.since) >= held.time.nearly_over();
        acked >= claim.valid_until || self.held().is_some_and(expired)
    }

    /// The addresses were written, the first not before `since`.
    pub(crate) fn refreshed(&mut self, since: Instant, claim: &Claim) {
        let (time, valid_until) = (self.time, claim.valid_until);
        self.state =
            LeaseState::Held(Held { since, time, valid_until, missing: BTreeSet::new(), rewrite: false });
    }

    /// A claim was not followed by a refresh because the last one is recent; it still counts for the status.
    pub(crate) fn extended(&mut self, claim: &Claim) {
        if let LeaseState::Held(held) = &mut self.state {
            held.valid_until = claim.valid_until;
        }
    }

    /// The addresses were given up. Claims made before `now` do not bring them back.
    pub(crate) fn vacate(&mut self, now: Instant) {
        self.state = LeaseState::Vacant;
        self.not_before = Some(now);
    }

    /// The lease ran out without a claim. The next claim, even one made before that, is answered by it.
    pub(crate) fn lapse(&mut self) {
        self.state = LeaseState::Lapsed;
    }

    /// Records that `ip` was removed by another program. Returns whether that is new.
    pub(crate) fn mark_missing(&mut self, now: Instant, ip: IpAddr) -> bool {
        let LeaseState::Held(held) = &mut self.state else { return false };
        let is_new = held.missing.insert(ip);
        if is_new {
            self.not_before = Some(now);
        }
        is_new
    }

    /// Addresses that were never there are due with the next claim.
    pub(crate) fn add_missing(&mut self, ips: impl Iterator<Item = IpAddr>) {
        if let LeaseState::Held(held) = &mut self.state {
            held.missing.extend(ips);
        }
    }

    /// The next claim reads and writes everything.
    pub(crate) fn rewrite(&mut self) {
        if let LeaseState::Held(held) = &mut self.state {
            held.rewrite = true;
        }
    }

    /// When the lease lapses unless it is refreshed.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.held().map(|held| held.since + held.time.nearly_over())
    }

    /// Until when the kernel has not removed the address by itself: it does so from 0.02 s before the lease is over
    /// (measured), here with a margin.
    pub(crate) fn expiry(&self) -> Option<Instant> {
        const MARGIN: Duration = Duration::from_millis(100);
        self.held().map(|held| held.since + (held.time.duration() - MARGIN))
    }

    /// Returns whether the kernel itself may have removed the address by `now`.
    pub(crate) fn may_have_expired(&self, now: Instant) -> bool {
        self.expiry().is_some_and(|expiry| now >= expiry)
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        match &self.state {
            LeaseState::Held(held) => Some(held),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn claim(issued: Instant, valid_ms: u32) -> Claim {
        Claim { issued, valid_until: issued + MS * valid_ms }
    }

    fn held(at: Instant) -> Lease {
        let mut lease = Lease::new(LeaseTime::MIN);
        lease.refreshed(at, &claim(at, 1_800));
        lease
    }

    #[test]
    fn a_held_lease_is_refreshed_between_a_sixth_and_nine_tenths_of_it() {
        let start = Instant::now();
        let lease = held(start);
        for (after, verdict) in [
            (0, ClaimOutcome::Fresh),
            (333, ClaimOutcome::Fresh),
            (334, ClaimOutcome::Refresh),
            (1_799, ClaimOutcome::Refresh),
        ] {
            let now = start + MS * after;
            assert_eq!(lease.decide(now, &claim(now, 1_800)), verdict, "{after}");
        }
        let now = start + MS * 1_800;
        assert_eq!(lease.decide(now, &claim(now, 1_800)), ClaimOutcome::Lost);
        assert_eq!(lease.deadline(), Some(now));
    }

    #[test]
    fn expired_and_outdated_claims_do_nothing() {
        let start = Instant::now();
        let mut lease = held(start);
        let old = claim(start + MS * 500, 1_800);
        assert_eq!(lease.decide(start + MS * 2_300, &old), ClaimOutcome::Stale);
        assert!(lease.mark_missing(start + MS * 600, [10, 0, 0, 1].into()));
        assert!(!lease.mark_missing(start + MS * 601, [10, 0, 0, 1].into()), "reported once");
        assert_eq!(lease.decide(start + MS * 602, &old), ClaimOutcome::Stale);
        let new = claim(start + MS * 610, 1_800);
        assert_eq!(lease.decide(start + MS * 610, &new), ClaimOutcome::Install);
        lease.vacate(start + MS * 700);
        assert_eq!(lease.decide(start + MS * 701, &new), ClaimOutcome::Stale);
        assert_eq!(lease.decide(start + MS * 701, &claim(start + MS * 700, 1_800)), ClaimOutcome::Install);
    }

    #[test]
    fn the_claim_after_a_lapse_reports_it_and_only_the_next_one_installs() {
        let start = Instant::now();
        let mut lease = held(start);
        lease.lapse();
        let now = start + MS * 5_000;
        assert_eq!(lease.decide(now, &claim(now, 1_800)), ClaimOutcome::Lost);
        lease.vacate(now);
        assert_eq!(lease.decide(now + MS, &claim(now - MS, 1_800)), ClaimOutcome::Stale);
        assert_eq!(lease.decide(now + MS, &claim(now + MS, 1_800)), ClaimOutcome::Install);
    }

    #[test]
    fn a_write_that_took_too_long_is_noticed() {
        let start = Instant::now();
        let lease = held(start);
        let permission = claim(start + MS * 1_000, 1_800);
        assert!(!lease.wrote_too_late(start + MS * 1_001, &permission));
        assert!(
            lease.wrote_too_late(start + MS * 1_800, &permission),
            "the address may have been gone in between"
        );
        assert!(lease.wrote_too_late(start + MS * 2_800, &permission));
        let vacant = Lease::new(LeaseTime::MIN);
        assert!(!vacant.wrote_too_late(start + MS * 2_799, &permission));
        assert!(vacant.wrote_too_late(start + MS * 2_800, &permission), "the claim was over");
    }

    #[test]
    fn a_longer_lease_counts_from_the_refresh_that_asks_for_it() {
        let start = Instant::now();
        let mut lease = held(start);
        lease.time = LeaseTime::new(Duration::from_secs(60)).unwrap();
        assert_eq!(lease.deadline(), Some(start + MS * 1_800));
        let now = start + MS * 1_800;
        assert_eq!(lease.decide(now, &claim(now, 1_800)), ClaimOutcome::Lost);
        lease.refreshed(now, &claim(now, 1_800));
        assert_eq!(lease.deadline(), Some(now + MS * 54_000));
    }

    #[test]
    fn expiry_by_the_kernel_is_told_from_foreign_removal() {
        let start = Instant::now();
        let lease = held(start);
        assert!(!lease.may_have_expired(start + MS * 1_899));
        assert!(lease.may_have_expired(start + MS * 1_900));
    }

    proptest! {
        /// Whatever the cadence of the claims, no two refreshes lie further apart than the longer of the cadence and
        /// a third of the lease, and there are never more than six in a lease (and the first).
        #[test]
        fn refreshes_are_neither_too_rare_nor_too_many(secs in 2_u64..30, cadence_ms in 10_u32..1_700) {
            let time = LeaseTime::new(Duration::from_secs(secs)).unwrap();
            let start = Instant::now();
            let mut lease = Lease::new(time);
            lease.refreshed(start, &claim(start, 1_800));
            let (mut last, mut count) = (start, 0);
            let mut now = start;
            while now < start + time.duration() * 4 {
                now += MS * cadence_ms;
                match lease.decide(now, &claim(now, 1_800)) {
                    ClaimOutcome::Refresh => {
                        prop_assert!(now - last <= (MS * cadence_ms).max(time.duration() / 3));
                        last = now;
                        count += 1;
                        lease.refreshed(now, &claim(now, 1_800));
                    }
                    verdict => prop_assert_eq!(verdict, ClaimOutcome::Fresh),
                }
            }
            prop_assert!(count <= 24, "{count}");
        }
    }
}
