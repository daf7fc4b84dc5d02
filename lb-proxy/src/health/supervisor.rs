//! Keeps one task for each target.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::outcome::CheckFailure;
use super::probe::Probe;
use super::state::HealthState;
use super::target::{Shared, Sink, Target, TargetKey, TargetSnapshot};
use super::task;

/// The targets as other threads see them.
type Index = Mutex<BTreeMap<TargetKey, Arc<Shared>>>;

/// Controls a [`Supervisor`]; dropping it ends the supervisor.
pub(super) struct Handle {
    updates: mpsc::UnboundedSender<Vec<Target>>,
    index: Arc<Index>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("targets", &lock(&self.index).len()).finish_non_exhaustive()
    }
}

impl Handle {
    pub(super) fn update(&self, targets: Vec<Target>) {
        // The receiver lives as long as the monitor's thread, which only a panicking sink ends early.
        let _ = self.updates.send(targets);
    }

    pub(super) fn report_failure(&self, target: &TargetKey) {
        if let Some(shared) = lock(&self.index).get(target) {
            shared.report_failure();
        }
    }

    pub(super) fn snapshot(&self) -> Vec<TargetSnapshot> {
        let all: Vec<_> = lock(&self.index).values().map(Arc::clone).collect();
        all.iter().map(|shared| shared.snapshot()).collect()
    }
}

struct Running {
    target: Target,
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// Starts and ends the tasks.
pub(super) struct Supervisor<F> {
    probe: F,
    sink: Sink,
    seed: u64,
    updates: mpsc::UnboundedReceiver<Vec<Target>>,
    index: Arc<Index>,
    running: BTreeMap<TargetKey, Running>,
    keys: HashMap<Id, TargetKey>,
    tasks: JoinSet<()>,
}

impl<P: Probe, F: Fn(&Target) -> P> Supervisor<F> {
    /// A supervisor without targets. `probe` makes the probe of a target.
    pub(super) fn new(probe: F, sink: Sink, seed: u64) -> (Handle, Self) {
        let (sender, updates) = mpsc::unbounded_channel();
        let index = Arc::new(Index::default());
        let handle = Handle { updates: sender, index: Arc::clone(&index) };
        let (running, keys, tasks) = Default::default();
        (handle, Self { probe, sink, seed, updates, index, running, keys, tasks })
    }

    /// Runs until the handle is dropped.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                update = self.updates.recv() => match update {
                    Some(targets) => self.update(targets),
                    None => return,
                },
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            }
        }
    }

    fn update(&mut self, targets: Vec<Target>) {
        let mut wanted: BTreeMap<_, _> =
            targets.into_iter().map(|target| (target.key().clone(), target)).collect();
        let mut before = std::mem::take(&mut self.running);
        before.retain(|key, running| {
            let stays = wanted.get(key) == Some(&running.target);
            if stays {
                wanted.remove(key);
            } else {
                running.task.abort();
            }
            stays || wanted.contains_key(key)
        });
        for (key, target) in wanted {
            let previous = before.remove(&key).map(|running| running.shared.snapshot());
            let running = self.start(target, previous);
            before.insert(key, running);
        }
        self.running = before;
        *lock(&self.index) =
            self.running.iter().map(|(key, running)| (key.clone(), Arc::clone(&running.shared))).collect();
    }

    /// Starts the task of a target; `previous` is its state if its check changed.
    fn start(&mut self, target: Target, previous: Option<TargetSnapshot>) -> Running {
        let key = target.key().clone();
        let (state, since) = previous
            .map_or_else(|| (HealthState::Unknown, Instant::now()), |known| (known.state, known.since));
        let shared = Arc::new(Shared::new(key.clone(), state, since));
        let task = self.spawn(&target, &shared);
        Running { target, shared, task }
    }

    fn spawn(&mut self, target: &Target, shared: &Arc<Shared>) -> AbortHandle {
        self.seed = self.seed.wrapping_add(1);
        let probe = (self.probe)(target);
        let fixture = task::run(target.clone(), probe, Arc::clone(shared), Arc::clone(&self.sink), self.seed);
        let task = self.tasks.spawn(fixture);
        self.keys.insert(task.id(), target.key().clone());
        task
    }

    /// Handles the end of a task. It was aborted, or it panicked: then the health is unknown again, and a new task
    /// starts.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        let Some(key) = self.keys.remove(&id) else { return };
        let Some(running) = self.running.get(&key).filter(|running| running.task.id() == id) else { return };
        let (target, shared) = (running.target.clone(), Arc::clone(&running.shared));
        if let Some(change) = shared.forget(CheckFailure::Internal) {
            (self.sink)(change);
        }
        let task = self.spawn(&target, &shared);
        if let Some(running) = self.running.get_mut(&key) {
            running.task = task;
        }
    }
}

fn lock(index: &Index) -> MutexGuard<'_, BTreeMap<TargetKey, Arc<Shared>>> {
    // The map is only replaced as a whole, so it is valid even after a panic.
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::HealthCheck;
    use crate::health::target::HealthChange;
    use crate::health::testing::{ScriptedCheck, ScriptedProbe, key, target};
    use std::time::Duration;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::time::{sleep, timeout};

    const SECOND: Duration = Duration::from_secs(1);

    struct Fixture {
        handle: Handle,
        scripts: BTreeMap<TargetKey, ScriptedProbe>,
        changes: UnboundedReceiver<HealthChange>,
    }

    /// A supervisor of scripted checks, for targets 1 to 3.
    fn fixture() -> Fixture {
        let scripts: BTreeMap<_, _> = (1..=3).map(|number| (key(number), ScriptedProbe::default())).collect();
        let (sender, changes) = unbounded_channel();
        let sink: Sink = Arc::new(move |change| drop(sender.send(change)));
        let made = scripts.clone();
        let (handle, supervisor) =
            Supervisor::new(move |target: &Target| made[target.key()].clone(), sink, 7);
        tokio::spawn(supervisor.run());
        Fixture { handle, scripts, changes }
    }

    impl Fixture {
        async fn change(&mut self) -> (TargetKey, HealthState) {
            let change = timeout(100 * SECOND, self.changes.recv()).await.unwrap().unwrap();
            (change.target, change.to)
        }

        fn checks(&self, number: u8) -> usize {
            self.scripts[&key(number)].starts().len()
        }

        fn known(&self) -> Vec<(TargetKey, HealthState)> {
            self.handle.snapshot().into_iter().map(|known| (known.target, known.state)).collect()
        }
    }

    fn targets(numbers: impl IntoIterator<Item = u8>, check: &HealthCheck) -> Vec<Target> {
        numbers.into_iter().map(|number| target(number, check.clone())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_leaves_unchanged_targets_alone() {
        let mut fixture = fixture();
        let check = HealthCheck::default();
        fixture.handle.update(targets([1, 2], &check));
        assert_eq!(fixture.change().await.1, HealthState::Up);
        assert_eq!(fixture.change().await.1, HealthState::Up);
        for _ in 0..100 {
            fixture.handle.update(targets([2, 1], &check));
            sleep(Duration::from_millis(99)).await;
        }
        // A restart would check at once: a hundred times.
        assert!((9..=12).contains(&fixture.checks(1)), "{}", fixture.checks(1));
        fixture.handle.update(targets([2, 3], &check));
        assert_eq!(fixture.change().await, (key(3), HealthState::Up));
        let checks_before = fixture.checks(1);
        sleep(10 * SECOND).await;
        assert_eq!(fixture.checks(1), checks_before, "removed targets are not checked");
        assert!(fixture.checks(2) >= 19);
        assert_eq!(fixture.known(), [(key(2), HealthState::Up), (key(3), HealthState::Up)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_check_keeps_the_health_state() {
        let mut fixture = fixture();
        fixture.handle.update(targets([1], &HealthCheck::default()));
        fixture.change().await;
        let since = fixture.handle.snapshot()[0].since;
        fixture.handle.update(targets([1], &HealthCheck { interval: SECOND / 10, ..HealthCheck::default() }));
        sleep(10 * SECOND).await;
        assert!(fixture.checks(1) > 90, "{}", fixture.checks(1));
        assert_eq!(fixture.known(), [(key(1), HealthState::Up)]);
        assert_eq!(fixture.handle.snapshot()[0].since, since);
        assert!(fixture.changes.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn reports_reach_their_target_only() {
        let mut fixture = fixture();
        fixture.handle.update(targets([1, 2], &HealthCheck::default()));
        fixture.change().await;
        fixture.change().await;
        fixture.scripts[&key(1)].push(ScriptedCheck::failed(CheckFailure::Refused));
        sleep(SECOND / 2).await;
        let before = fixture.checks(2);
        fixture.handle.report_failure(&key(1));
        fixture.handle.report_failure(&key(3));
        assert_eq!(fixture.change().await, (key(1), HealthState::Down { reason: CheckFailure::Refused }));
        assert_eq!(fixture.checks(2), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_panics_restarts_and_disturbs_no_other() {
        let mut fixture = fixture();
        fixture.handle.update(targets([1, 2], &HealthCheck::default()));
        fixture.change().await;
        fixture.change().await;
        fixture.scripts[&key(1)].push(ScriptedCheck::panics());
        assert_eq!(fixture.change().await, (key(1), HealthState::Unknown));
        let broken = fixture.handle.snapshot()[0].last_check.clone().unwrap();
        assert_eq!(broken.failure, Some(CheckFailure::Internal));
        assert_eq!(fixture.change().await, (key(1), HealthState::Up));
        sleep(10 * SECOND).await;
        assert_eq!(fixture.known(), [(key(1), HealthState::Up), (key(2), HealthState::Up)]);
        assert!(fixture.checks(2) >= 9);
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_handle_ends_all() {
        let Fixture { handle, scripts, mut changes } = fixture();
        handle.update(targets([1], &HealthCheck::default()));
        changes.recv().await.unwrap();
        drop(handle);
        assert!(timeout(SECOND, changes.recv()).await.unwrap().is_none(), "the sink is dropped");
        let checks = scripts[&key(1)].starts().len();
        sleep(10 * SECOND).await;
        assert_eq!(scripts[&key(1)].starts().len(), checks);
    }
}
