//! The task of one target: wait, check, update the health state, report.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::outcome::CheckFailure;
use super::probe::Probe;
use super::rise_fall::RiseFall;
use super::schedule::Schedule;
use super::target::{LastCheck, Shared, Sink, Target};

/// Minimum time limit of a check.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Checks `target` until the future is dropped.
pub(super) async fn run(target: Target, mut probe: impl Probe, shared: Arc<Shared>, sink: Sink, seed: u64) {
    let check = target.check();
    let limit = check.timeout.max(TIMEOUT_MIN);
    let mut schedule = Schedule::new(check.interval, seed, Instant::now());
    let mut rise_fall =
        RiseFall::new(check.rise, check.fall, shared.observe(|observed| observed.state.clone()));
    loop {
        let mut is_corroborated = wait(&mut schedule, &mut probe, &shared).await;
        let started = Instant::now();
        let result = match timeout(limit, probe.check()).await {
            Ok(result) => result,
            Err(_) => Err(CheckFailure::TimedOut { step: probe.step(), after: limit }),
        };
        let now = Instant::now();
        // A report during the check is older than its result only if the check failed.
        is_corroborated |= result.is_err() && shared.take_report();
        tracing::trace!(target = %target.key(), ?result, latency = ?(now - started), is_corroborated, "checked");
        let changed = rise_fall.record(&result, is_corroborated).is_some();
        let check = LastCheck { at: now.into_std(), latency: now - started, failure: result.err() };
        let change = shared.record(check, changed.then(|| rise_fall.state().clone()));
        if let Some(change) = change {
            sink(change);
        }
        schedule.ended(started, now);
    }
}

/// Waits until the next check is due. Returns whether other evidence of a failure was seen.
async fn wait(schedule: &mut Schedule, probe: &mut impl Probe, shared: &Shared) -> bool {
    let mut failure_seen = false;
    loop {
        tokio::select! {
            biased;
            () = shared.reported(), if !failure_seen => {}
            () = probe.connection_lost(), if !failure_seen => {}
            () = sleep_until(schedule.next()) => return shared.take_report() || failure_seen,
        }
        failure_seen = true;
        schedule.expedite(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::HealthCheck;
    use crate::health::outcome::{Answer, Step};
    use crate::health::state::HealthState;
    use crate::health::target::HealthChange;
    use crate::health::testing::{ScriptedCheck, ScriptedProbe, key, target};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::task::JoinHandle;

    const SECOND: Duration = Duration::from_secs(1);

    struct Fixture {
        script: ScriptedProbe,
        shared: Arc<Shared>,
        changes: UnboundedReceiver<(Instant, HealthChange)>,
        task: JoinHandle<()>,
        began: Instant,
    }

    impl Fixture {
        /// Starts the task of a target in paused time; seeds are fixed, so every run is the same.
        fn start(check: HealthCheck, checks: impl IntoIterator<Item = ScriptedCheck>) -> Self {
            let script = ScriptedProbe::new(checks);
            let shared = Arc::new(Shared::new(key(1), HealthState::Unknown, Instant::now().into_std()));
            let (sender, changes) = unbounded_channel();
            let sink: Sink = Arc::new(move |change| drop(sender.send((Instant::now(), change))));
            let fixture = run(target(1, check), script.clone(), Arc::clone(&shared), sink, 42);
            Self { script, shared, changes, task: tokio::spawn(fixture), began: Instant::now() }
        }

        async fn change(&mut self) -> (Duration, HealthChange) {
            let (at, change) = timeout(100 * SECOND, self.changes.recv()).await.unwrap().unwrap();
            (at - self.began, change)
        }

        async fn no_change_for(&mut self, time: Duration) {
            assert!(timeout(time, self.changes.recv()).await.is_err());
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn check(rise: u32, fall: u32) -> HealthCheck {
        HealthCheck { rise, fall, ..HealthCheck::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn checks_keep_their_interval() {
        let fixture = Fixture::start(check(1, 2), []);
        tokio::time::sleep(100 * SECOND).await;
        let starts = fixture.script.starts();
        assert!((97..=104).contains(&starts.len()), "{}", starts.len());
        let gaps: Vec<_> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert!(gaps.iter().all(|gap| (899..=1102).contains(gap)), "{gaps:?}");
        assert!(gaps.iter().any(|gap| *gap < 950) && gaps.iter().any(|gap| *gap > 1050), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn health_states_follow_rise_and_fall() {
        let checks = [
            ScriptedCheck::ok(),
            ScriptedCheck::failed(CheckFailure::Refused),
            ScriptedCheck::ok(),
            ScriptedCheck::failed(CheckFailure::Refused),
            ScriptedCheck::failed(CheckFailure::Status(500)),
            ScriptedCheck::ok(),
            ScriptedCheck::failed(CheckFailure::Refused),
            ScriptedCheck::answered(Answer::Denied),
            ScriptedCheck::ok(),
        ];
        let mut fixture = Fixture::start(check(2, 2), checks);
        let (at, first) = fixture.change().await;
        assert_eq!((first.from, first.to), (HealthState::Unknown, HealthState::Up));
        assert!(at <= Duration::from_millis(60), "the first check comes at once: {at:?}");
        let (at, second) = fixture.change().await;
        assert_eq!(second.to, HealthState::Down { reason: CheckFailure::Status(500) });
        assert!((3600..=4500).contains(&at.as_millis()), "the fifth check: {at:?}");
        assert!(second.after.as_secs() == 4 || second.after.as_secs() == 3, "{:?}", second.after);
        let (_, third) = fixture.change().await;
        assert_eq!((third.from.is_down(), third.to), (true, HealthState::Up));
        assert_eq!(fixture.script.starts().len(), 9);
        let snapshot = fixture.shared.snapshot();
        assert_eq!((snapshot.state, snapshot.checks, snapshot.failures), (HealthState::Up, 9, 4));
        assert_eq!(snapshot.last_check.unwrap().failure, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_check_times_out_and_names_its_step() {
        let slow = HealthCheck { timeout: Duration::from_millis(300), ..check(1, 1) };
        let mut fixture = Fixture::start(slow, [ScriptedCheck::ok(), ScriptedCheck::hangs(Step::Handshake)]);
        fixture.change().await;
        let (_, change) = fixture.change().await;
        let reason = CheckFailure::TimedOut { step: Step::Handshake, after: Duration::from_millis(300) };
        assert_eq!(change.to, HealthState::Down { reason });
        assert_eq!(change.to.to_string(), "down (no TLS handshake within 300ms)");
        let latency = fixture.shared.snapshot().last_check.unwrap().latency;
        assert!((300..=301).contains(&latency.as_millis()), "{latency:?}");
        fixture.change().await;
        let starts = fixture.script.starts();
        assert!((899..=1101).contains(&(starts[2] - starts[1]).as_millis()), "the next one is on time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reported_failure_is_checked_at_once_and_counts() {
        let mut fixture =
            Fixture::start(check(1, 2), [ScriptedCheck::ok(), ScriptedCheck::failed(CheckFailure::Refused)]);
        fixture.change().await;
        tokio::time::sleep(SECOND / 2).await;
        let reported = fixture.began.elapsed();
        fixture.shared.report_failure();
        let (at, change) = fixture.change().await;
        assert_eq!(change.to, HealthState::Down { reason: CheckFailure::Refused });
        assert!(at - reported <= Duration::from_millis(2), "{:?}", at - reported);
        // The next regular check succeeds.
        assert_eq!(fixture.change().await.1.to, HealthState::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn reports_followed_by_a_successful_check_change_nothing() {
        let mut fixture = Fixture::start(check(1, 2), []);
        fixture.change().await;
        let before = fixture.script.starts().len();
        for _ in 0..1000 {
            fixture.shared.report_failure();
            fixture.no_change_for(Duration::from_millis(10)).await;
        }
        let checks = fixture.script.starts().len() - before;
        assert!((50..=101).contains(&checks), "at most ten in a second, ten seconds: {checks}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_triggers_a_check() {
        let mut fixture =
            Fixture::start(check(1, 2), [ScriptedCheck::ok(), ScriptedCheck::failed(CheckFailure::Refused)]);
        fixture.change().await;
        tokio::time::sleep(SECOND / 2).await;
        let lost = fixture.began.elapsed();
        fixture.script.lose_connection();
        let (at, change) = fixture.change().await;
        assert!(change.to.is_down() && at - lost <= Duration::from_millis(2), "{change:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_during_a_successful_check_triggers_another() {
        let mut fixture =
            Fixture::start(check(1, 1), [ScriptedCheck::ok(), ScriptedCheck::ok().after(SECOND / 2)]);
        fixture.change().await;
        while fixture.script.starts().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        fixture.script.push(ScriptedCheck::failed(CheckFailure::Refused));
        fixture.shared.report_failure();
        let (at, change) = fixture.change().await;
        assert!(change.to.is_down());
        let second = fixture.script.starts()[1] - fixture.began;
        assert!(at - second < Duration::from_millis(700), "half a second and the gap: {:?}", at - second);
        assert_eq!(change.target, key(1));
    }
}
