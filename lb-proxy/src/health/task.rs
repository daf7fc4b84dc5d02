//! The life of one target: wait, check, judge, tell.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::outcome::CheckFailure;
use super::probe::Probe;
use super::rise_fall::RiseFall;
use super::schedule::Schedule;
use super::target::{LastCheck, Shared, Sink, Target};

/// Least time a check has, whatever is configured.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// Checks `target` until the future is dropped.
pub(super) async fn run(target: Target, mut probe: impl Probe, shared: Arc<Shared>, sink: Sink, seed: u64) {
    let check = target.check();
    let limit = check.timeout.max(TIMEOUT_MIN);
    let mut schedule = Schedule::new(check.interval, seed, Instant::now());
    let mut rise_fall =
        RiseFall::new(check.rise, check.fall, shared.observe(|observed| observed.status.clone()));
    loop {
        let mut corroborated = wait(&mut schedule, &mut probe, &shared).await;
        let started = Instant::now();
        let result = match timeout(limit, probe.check()).await {
            Ok(result) => result,
            Err(_) => Err(CheckFailure::TimedOut { step: probe.step(), after: limit }),
        };
        let now = Instant::now();
        // A report during the check is older than its result only if the check failed.
        corroborated |= result.is_err() && shared.take_report();
        tracing::trace!(target = %target.key(), ?result, latency = ?(now - started), corroborated, "checked");
        let changed = rise_fall.record(&result, corroborated).is_some();
        let check = LastCheck { at: now.into_std(), latency: now - started, failure: result.err() };
        let change = shared.record(check, changed.then(|| rise_fall.status().clone()));
        if let Some(change) = change {
            sink(change);
        }
        schedule.ended(started, now);
    }
}

/// Waits until the next check is due. Returns whether something besides a check saw the backend fail.
async fn wait(schedule: &mut Schedule, probe: &mut impl Probe, shared: &Shared) -> bool {
    let mut witnessed = false;
    loop {
        tokio::select! {
            biased;
            () = shared.reported(), if !witnessed => {}
            () = probe.alarm(), if !witnessed => {}
            () = sleep_until(schedule.next()) => return shared.take_report() || witnessed,
        }
        witnessed = true;
        schedule.hurry(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::HealthCheck;
    use crate::health::outcome::{Answer, Step};
    use crate::health::state::Status;
    use crate::health::target::Change;
    use crate::health::testing::{Script, Shot, key, target};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::task::JoinHandle;

    const SECOND: Duration = Duration::from_secs(1);

    struct Life {
        script: Script,
        shared: Arc<Shared>,
        changes: UnboundedReceiver<(Instant, Change)>,
        task: JoinHandle<()>,
        began: Instant,
    }

    impl Life {
        /// A target in paused time; seeds are fixed, so every run is the same.
        fn start(check: HealthCheck, shots: impl IntoIterator<Item = Shot>) -> Self {
            let script = Script::new(shots);
            let shared = Arc::new(Shared::new(key(1), Status::Unknown, Instant::now().into_std()));
            let (sender, changes) = unbounded_channel();
            let sink: Sink = Arc::new(move |change| drop(sender.send((Instant::now(), change))));
            let life = run(target(1, check), script.clone(), Arc::clone(&shared), sink, 42);
            Self { script, shared, changes, task: tokio::spawn(life), began: Instant::now() }
        }

        async fn change(&mut self) -> (Duration, Change) {
            let (at, change) = timeout(100 * SECOND, self.changes.recv()).await.unwrap().unwrap();
            (at - self.began, change)
        }

        async fn no_change_for(&mut self, time: Duration) {
            assert!(timeout(time, self.changes.recv()).await.is_err());
        }
    }

    impl Drop for Life {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn check(rise: u32, fall: u32) -> HealthCheck {
        HealthCheck { rise, fall, ..HealthCheck::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn checks_keep_their_interval() {
        let life = Life::start(check(1, 2), []);
        tokio::time::sleep(100 * SECOND).await;
        let starts = life.script.starts();
        assert!((97..=104).contains(&starts.len()), "{}", starts.len());
        let gaps: Vec<_> = starts.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
        assert!(gaps.iter().all(|gap| (899..=1102).contains(gap)), "{gaps:?}");
        assert!(gaps.iter().any(|gap| *gap < 950) && gaps.iter().any(|gap| *gap > 1050), "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn statuses_follow_rise_and_fall() {
        let shots = [
            Shot::ok(),
            Shot::failed(CheckFailure::Refused),
            Shot::ok(),
            Shot::failed(CheckFailure::Refused),
            Shot::failed(CheckFailure::Status(500)),
            Shot::ok(),
            Shot::failed(CheckFailure::Refused),
            Shot::answered(Answer::Denied),
            Shot::ok(),
        ];
        let mut life = Life::start(check(2, 2), shots);
        let (at, first) = life.change().await;
        assert_eq!((first.from, first.to), (Status::Unknown, Status::Up));
        assert!(at <= Duration::from_millis(60), "the first check comes at once: {at:?}");
        let (at, second) = life.change().await;
        assert_eq!(second.to, Status::Down { reason: CheckFailure::Status(500) });
        assert!((3600..=4500).contains(&at.as_millis()), "the fifth check: {at:?}");
        assert!(second.after.as_secs() == 4 || second.after.as_secs() == 3, "{:?}", second.after);
        let (_, third) = life.change().await;
        assert_eq!((third.from.is_down(), third.to), (true, Status::Up));
        assert_eq!(life.script.starts().len(), 9);
        let snapshot = life.shared.snapshot();
        assert_eq!((snapshot.status, snapshot.checks, snapshot.failures), (Status::Up, 9, 4));
        assert_eq!(snapshot.last_check.unwrap().failure, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_check_is_cut_off_and_named() {
        let slow = HealthCheck { timeout: Duration::from_millis(300), ..check(1, 1) };
        let mut life = Life::start(slow, [Shot::ok(), Shot::hangs(Step::Handshake)]);
        life.change().await;
        let (_, change) = life.change().await;
        let reason = CheckFailure::TimedOut { step: Step::Handshake, after: Duration::from_millis(300) };
        assert_eq!(change.to, Status::Down { reason });
        assert_eq!(change.to.to_string(), "down (no TLS handshake within 300ms)");
        let latency = life.shared.snapshot().last_check.unwrap().latency;
        assert!((300..=301).contains(&latency.as_millis()), "{latency:?}");
        life.change().await;
        let starts = life.script.starts();
        assert!((899..=1101).contains(&(starts[2] - starts[1]).as_millis()), "the next one is on time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reported_failure_is_checked_at_once_and_counts() {
        let mut life = Life::start(check(1, 2), [Shot::ok(), Shot::failed(CheckFailure::Refused)]);
        life.change().await;
        tokio::time::sleep(SECOND / 2).await;
        let reported = life.began.elapsed();
        life.shared.report_failure();
        let (at, change) = life.change().await;
        assert_eq!(change.to, Status::Down { reason: CheckFailure::Refused });
        assert!(at - reported <= Duration::from_millis(2), "{:?}", at - reported);
        // It answers again at the next regular check.
        assert_eq!(life.change().await.1.to, Status::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn reports_that_a_check_refutes_change_nothing() {
        let mut life = Life::start(check(1, 2), []);
        life.change().await;
        let before = life.script.starts().len();
        for _ in 0..1000 {
            life.shared.report_failure();
            life.no_change_for(Duration::from_millis(10)).await;
        }
        let checks = life.script.starts().len() - before;
        assert!((50..=101).contains(&checks), "at most ten in a second, ten seconds: {checks}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_is_a_reason_to_look() {
        let mut life = Life::start(check(1, 2), [Shot::ok(), Shot::failed(CheckFailure::Refused)]);
        life.change().await;
        tokio::time::sleep(SECOND / 2).await;
        let lost = life.began.elapsed();
        life.script.lose_connection();
        let (at, change) = life.change().await;
        assert!(change.to.is_down() && at - lost <= Duration::from_millis(2), "{change:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_during_a_check_that_passes_leads_to_another() {
        let mut life = Life::start(check(1, 1), [Shot::ok(), Shot::ok().after(SECOND / 2)]);
        life.change().await;
        while life.script.starts().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        life.script.push(Shot::failed(CheckFailure::Refused));
        life.shared.report_failure();
        let (at, change) = life.change().await;
        assert!(change.to.is_down());
        let second = life.script.starts()[1] - life.began;
        assert!(at - second < Duration::from_millis(700), "half a second and the gap: {:?}", at - second);
        assert_eq!(change.target, key(1));
    }
}
