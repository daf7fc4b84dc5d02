//! The rise and fall counter, which turns the results of checks into a health state: no time, no I/O.

use super::outcome::{Answer, CheckFailure};
use super::state::HealthState;

/// Counts results in a row. The first result after [`HealthState::Unknown`] decides at once, since nothing speaks
/// against it; then `rise` successes or `fall` failures in a row do.
#[derive(Debug)]
pub(super) struct RiseFall {
    rise: u32,
    fall: u32,
    status: HealthState,
    passed: u32,
    failed: u32,
    inconclusive: u32,
}

impl RiseFall {
    /// `rise` and `fall` below 1 count as 1.
    pub(super) fn new(rise: u32, fall: u32, status: HealthState) -> Self {
        Self { rise: rise.max(1), fall: fall.max(1), status, passed: 0, failed: 0, inconclusive: 0 }
    }

    pub(super) fn status(&self) -> &HealthState {
        &self.status
    }

    /// Records a result. Returns the previous state if it changed. `is_corroborated`: other evidence of a failure was
    /// seen since the last result; a failure then counts twice, a success cancels the evidence.
    pub(super) fn record(
        &mut self,
        result: &Result<Answer, CheckFailure>,
        is_corroborated: bool,
    ) -> Option<HealthState> {
        let next = match result {
            Ok(Answer::Terminating) => self.terminate(),
            Ok(Answer::Ready) => self.pass(HealthState::Up),
            // A server that shuts down may report that first, and throttle clients afterwards.
            Ok(Answer::Throttled) if self.status == HealthState::Terminating => None,
            Ok(Answer::Denied | Answer::Throttled) => self.pass(HealthState::UpUnready),
            Err(failure) if failure.is_evidence() => self.fail(failure, if is_corroborated { 2 } else { 1 }),
            Err(_) => self.record_inconclusive(),
        }?;
        let same = match (&self.status, &next) {
            // A host that died after its server must not keep sessions waiting.
            (HealthState::Down { reason: before }, HealthState::Down { reason: after }) => {
                !before.spares_sessions() || !after.is_silence()
            }
            (before, after) => before == after,
        };
        (!same).then(|| std::mem::replace(&mut self.status, next))
    }

    fn pass(&mut self, status: HealthState) -> Option<HealthState> {
        (self.failed, self.inconclusive) = (0, 0);
        self.passed = self.passed.saturating_add(1);
        let back = self.status.is_down() || self.status == HealthState::Terminating;
        (!back || self.passed >= self.rise).then_some(status)
    }

    /// Handles a reported shutdown, which needs no confirmation. A backend that was down has no sessions to keep.
    fn terminate(&mut self) -> Option<HealthState> {
        (self.passed, self.failed, self.inconclusive) = (0, 0, 0);
        (!self.status.is_down()).then_some(HealthState::Terminating)
    }

    fn fail(&mut self, failure: &CheckFailure, weight: u32) -> Option<HealthState> {
        (self.passed, self.inconclusive) = (0, 0);
        self.failed = self.failed.saturating_add(weight);
        let ends = matches!(failure, CheckFailure::Refused) || failure.is_silence();
        let expected = match self.status {
            HealthState::Unknown => true,
            // Connections in its accept queue are reset when it closes its port.
            HealthState::Terminating => ends,
            _ => false,
        };
        let enough = expected || self.failed >= self.fall;
        enough.then(|| HealthState::Down { reason: failure.clone() })
    }

    /// Handles a check that failed on this node: it must not go on calling a backend healthy for ever.
    fn record_inconclusive(&mut self) -> Option<HealthState> {
        self.inconclusive = self.inconclusive.saturating_add(1);
        (self.status.is_up() && self.inconclusive > self.fall).then_some(HealthState::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::outcome::Step;
    use super::*;

    const OK: Result<Answer, CheckFailure> = Ok(Answer::Ready);
    const DENIED: Result<Answer, CheckFailure> = Ok(Answer::Denied);
    const REFUSED: Result<Answer, CheckFailure> = Err(CheckFailure::Refused);

    fn local() -> Result<Answer, CheckFailure> {
        Err(CheckFailure::Local("EMFILE".into()))
    }

    fn down() -> HealthState {
        HealthState::Down { reason: CheckFailure::Refused }
    }

    #[test]
    fn what_a_server_says_while_it_shuts_down_is_not_held_against_it() {
        let closed = || Err(CheckFailure::closed(Step::Handshake, &"reset"));
        let mut counter = RiseFall::new(1, 2, HealthState::Up);
        assert!(counter.record(&Ok(Answer::Terminating), false).is_some());
        assert_eq!(counter.record(&Ok(Answer::Throttled), false), None);
        assert_eq!(counter.record(&closed(), false), None);
        assert_eq!(counter.status(), &HealthState::Terminating);
        assert_eq!(counter.record(&REFUSED, false), Some(HealthState::Terminating), "at last");
        assert_eq!(counter.status(), &down());
    }

    #[test]
    fn the_first_result_decides() {
        for (result, status) in [(OK, HealthState::Up), (DENIED, HealthState::UpUnready), (REFUSED, down())] {
            let mut counter = RiseFall::new(3, 3, HealthState::Unknown);
            assert_eq!(counter.record(&result, false), Some(HealthState::Unknown));
            assert_eq!(*counter.status(), status);
        }
    }

    #[test]
    fn rise_and_fall_count_results_in_a_row() {
        let mut counter = RiseFall::new(2, 3, HealthState::Up);
        for result in [REFUSED, REFUSED, OK, REFUSED, REFUSED] {
            assert_eq!(counter.record(&result, false), None);
        }
        assert_eq!(counter.record(&REFUSED, false), Some(HealthState::Up));
        assert_eq!(counter.record(&Err(CheckFailure::Status(500)), false), None, "still down");
        for result in [OK, REFUSED, OK] {
            assert_eq!(counter.record(&result, false), None);
        }
        assert_eq!(counter.record(&DENIED, false), Some(down()));
        assert_eq!(*counter.status(), HealthState::UpUnready);
        assert_eq!(counter.record(&OK, false), Some(HealthState::UpUnready), "between the two at once");
    }

    #[test]
    fn a_corroborated_failure_counts_twice_and_a_success_clears_it() {
        let mut counter = RiseFall::new(1, 2, HealthState::Up);
        assert_eq!(counter.record(&OK, true), None);
        assert_eq!(counter.record(&REFUSED, false), None);
        assert_eq!(counter.record(&OK, false), None);
        assert_eq!(counter.record(&REFUSED, true), Some(HealthState::Up));
    }

    #[test]
    fn a_node_that_cannot_check_stops_claiming_to_know() {
        let mut counter = RiseFall::new(1, 2, HealthState::Up);
        assert_eq!(counter.record(&local(), true), None);
        assert_eq!(counter.record(&local(), false), None);
        assert_eq!(counter.record(&local(), false), Some(HealthState::Up));
        assert_eq!(*counter.status(), HealthState::Unknown);
        let mut counter = RiseFall::new(1, 1, down());
        for _ in 0..10 {
            assert_eq!(counter.record(&local(), false), None, "what is down stays down");
        }
    }

    #[test]
    fn who_shuts_down_is_believed_at_once_and_comes_back_like_any_other() {
        const TERMINATING: Result<Answer, CheckFailure> = Ok(Answer::Terminating);
        let mut counter = RiseFall::new(2, 3, HealthState::Up);
        assert_eq!(counter.record(&TERMINATING, false), Some(HealthState::Up));
        assert_eq!(*counter.status(), HealthState::Terminating);
        assert_eq!(counter.record(&TERMINATING, false), None);
        assert_eq!(counter.record(&REFUSED, false), Some(HealthState::Terminating), "as it said");
        assert_eq!(counter.record(&TERMINATING, false), None, "what is down stays down");
        let mut counter = RiseFall::new(2, 3, HealthState::Terminating);
        assert_eq!(counter.record(&OK, false), None);
        assert_eq!(counter.record(&OK, false), Some(HealthState::Terminating));
        assert_eq!(*counter.status(), HealthState::Up);
        assert!(!HealthState::Terminating.is_up() && !HealthState::Terminating.is_down());
    }

    #[test]
    fn a_host_that_dies_after_its_server_is_news() {
        let silence = || CheckFailure::TimedOut { step: Step::Connect, after: Duration::from_secs(1) };
        let mut counter = RiseFall::new(1, 2, HealthState::Up);
        assert_eq!(counter.record(&REFUSED, true), Some(HealthState::Up));
        assert_eq!(counter.record(&REFUSED, false), None);
        assert_eq!(counter.record(&Err(silence()), false), Some(down()));
        assert_eq!(counter.record(&REFUSED, false), None);
        assert_eq!(counter.record(&Err(silence()), false), None);
    }

    #[test]
    fn zero_counts_as_one() {
        let mut counter = RiseFall::new(0, 0, HealthState::Up);
        assert_eq!(counter.record(&REFUSED, false), Some(HealthState::Up));
        assert_eq!(counter.record(&OK, false), Some(down()));
    }
}
