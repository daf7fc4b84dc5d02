//! The rise and fall counter, which turns the results of checks into a health state: no time, no I/O.

use super::outcome::{Answer, CheckFailure};
use super::state::HealthState;

/// Counts results in a row. The first result after [`HealthState::Unknown`] decides at once, since nothing speaks
/// against it; then `rise` successes or `fall` failures in a row do.
#[derive(Debug)]
pub(super) struct RiseFall {
    rise: u32,
    fall: u32,
    state: HealthState,
    passed: u32,
    failed: u32,
    inconclusive: u32,
}

impl RiseFall {
    /// `rise` and `fall` below 1 count as 1.
    pub(super) fn new(rise: u32, fall: u32, state: HealthState) -> Self {
        Self { rise: rise.max(1), fall: fall.max(1), state, passed: 0, failed: 0, inconclusive: 0 }
    }

    pub(super) fn state(&self) -> &HealthState {
        &self.state
    }

    /// Records a result. Returns the previous state if it changed. `is_corroborated`: other evidence of a failure was
    /// seen since the last result; a failure then counts twice, a success cancels the evidence.
    pub(super) fn record(
        &mut self,
        result: &Result<Answer, CheckFailure>,
        is_corroborated: bool,
    ) -> Option<HealthState> {
        let next = match result {
            Ok(Answer::Terminating) => self.record_shutdown(),
            Ok(Answer::Ready) => self.record_success(HealthState::Up),
            // A server that shuts down may report that first, and throttle clients afterwards.
            Ok(Answer::Throttled) if self.state == HealthState::Terminating => None,
            Ok(Answer::Denied | Answer::Throttled) => self.record_success(HealthState::UpUnready),
            Err(failure) if failure.is_evidence() => {
                self.record_failure(failure, if is_corroborated { 2 } else { 1 })
            }
            Err(_) => self.record_inconclusive(),
        }?;
        let same = match (&self.state, &next) {
            // A host that died after its server must not keep sessions waiting.
            (HealthState::Down { reason: before }, HealthState::Down { reason: after }) => {
                !before.spares_sessions() || !after.is_silence()
            }
            (before, after) => before == after,
        };
        (!same).then(|| std::mem::replace(&mut self.state, next))
    }

    fn record_success(&mut self, state: HealthState) -> Option<HealthState> {
        (self.failed, self.inconclusive) = (0, 0);
        self.passed = self.passed.saturating_add(1);
        let recovers = self.state.is_down() || self.state == HealthState::Terminating;
        (!recovers || self.passed >= self.rise).then_some(state)
    }

    /// Handles a reported shutdown, which needs no confirmation. A backend that was down has no sessions to keep.
    fn record_shutdown(&mut self) -> Option<HealthState> {
        (self.passed, self.failed, self.inconclusive) = (0, 0, 0);
        (!self.state.is_down()).then_some(HealthState::Terminating)
    }

    fn record_failure(&mut self, failure: &CheckFailure, weight: u32) -> Option<HealthState> {
        (self.passed, self.inconclusive) = (0, 0);
        self.failed = self.failed.saturating_add(weight);
        let ends = matches!(failure, CheckFailure::Refused) || failure.is_silence();
        let expected = match self.state {
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
        (self.state.is_up() && self.inconclusive > self.fall).then_some(HealthState::Unknown)
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
    fn failures_during_a_reported_shutdown_do_not_count() {
        let closed = || Err(CheckFailure::closed(Step::Handshake, &"reset"));
        let mut counter = RiseFall::new(1, 2, HealthState::Up);
        assert!(counter.record(&Ok(Answer::Terminating), false).is_some());
        assert_eq!(counter.record(&Ok(Answer::Throttled), false), None);
        assert_eq!(counter.record(&closed(), false), None);
        assert_eq!(counter.state(), &HealthState::Terminating);
        assert_eq!(counter.record(&REFUSED, false), Some(HealthState::Terminating), "by the closed port");
        assert_eq!(counter.state(), &down());
    }

    #[test]
    fn the_first_result_decides() {
        for (result, state) in [(OK, HealthState::Up), (DENIED, HealthState::UpUnready), (REFUSED, down())] {
            let mut counter = RiseFall::new(3, 3, HealthState::Unknown);
            assert_eq!(counter.record(&result, false), Some(HealthState::Unknown));
            assert_eq!(*counter.state(), state);
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
        assert_eq!(*counter.state(), HealthState::UpUnready);
        assert_eq!(
            counter.record(&OK, false),
            Some(HealthState::UpUnready),
            "between the two states at once"
        );
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
    fn repeated_local_failures_make_the_health_unknown() {
        let mut counter = RiseFall::new(1, 2, HealthState::Up);
        assert_eq!(counter.record(&local(), true), None);
        assert_eq!(counter.record(&local(), false), None);
        assert_eq!(counter.record(&local(), false), Some(HealthState::Up));
        assert_eq!(*counter.state(), HealthState::Unknown);
        let mut counter = RiseFall::new(1, 1, down());
        for _ in 0..10 {
            assert_eq!(counter.record(&local(), false), None, "a backend that is down stays down");
        }
    }

    #[test]
    fn a_reported_shutdown_counts_at_once_and_recovery_needs_rise() {
        const TERMINATING: Result<Answer, CheckFailure> = Ok(Answer::Terminating);
        let mut counter = RiseFall::new(2, 3, HealthState::Up);
        assert_eq!(counter.record(&TERMINATING, false), Some(HealthState::Up));
        assert_eq!(*counter.state(), HealthState::Terminating);
        assert_eq!(counter.record(&TERMINATING, false), None);
        assert_eq!(
            counter.record(&REFUSED, false),
            Some(HealthState::Terminating),
            "the port of a terminating backend is closed"
        );
        assert_eq!(counter.record(&TERMINATING, false), None, "a backend that is down stays down");
        let mut counter = RiseFall::new(2, 3, HealthState::Terminating);
        assert_eq!(counter.record(&OK, false), None);
        assert_eq!(counter.record(&OK, false), Some(HealthState::Terminating));
        assert_eq!(*counter.state(), HealthState::Up);
        assert!(!HealthState::Terminating.is_up() && !HealthState::Terminating.is_down());
    }

    #[test]
    fn silence_of_a_host_after_a_refusal_is_a_change() {
        let silence = || CheckFailure::TimedOut { step: Step::Connect, after: Duration::from_secs(1) };
        let mut counter = RiseFall::new(1, 2, HealthState::Up);
        assert_eq!(counter.record(&REFUSED, true), Some(HealthState::Up));
        assert_eq!(counter.record(&REFUSED, false), None);
        assert_eq!(counter.record(&Err(silence()), false), Some(down()));
        assert_eq!(counter.record(&REFUSED, false), None);
        assert_eq!(counter.record(&Err(silence()), false), None);
    }

    #[test]
    fn rise_and_fall_of_zero_count_as_one() {
        let mut counter = RiseFall::new(0, 0, HealthState::Up);
        assert_eq!(counter.record(&REFUSED, false), Some(HealthState::Up));
        assert_eq!(counter.record(&OK, false), Some(down()));
    }
}
