//! Which tests run at the same time.

use std::sync::{Condvar, Mutex, PoisonError};

/// Tests that may run at the same time. The groups run in this order, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TestGroup {
    /// Beside other tests of this machine. Most of them wait for timers of the protocols under test.
    Host,
    /// Beside one other test in a guest of its own. A test keeps the two emulated processors of its guest busy for half
    /// of the time; beside more tests, health checks in the guests would time out.
    Guest,
    /// Beside no other test.
    Alone,
}

impl TestGroup {
    const fn limit(self) -> usize {
        match self {
            Self::Host => usize::MAX,
            Self::Guest => GUESTS,
            Self::Alone => 1,
        }
    }
}

/// Guests that run at the same time.
pub(crate) const GUESTS: usize = 2;

/// Lets tests start as the limits of the groups permit.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    /// The group whose tests run now, and their number.
    running: Mutex<Option<(TestGroup, usize)>>,
    changed: Condvar,
}

impl Scheduler {
    /// Waits until a test may run, runs it, and lets others start, even if the test panics.
    pub(crate) fn run<T>(&self, group: TestGroup, test: impl FnOnce() -> T) -> T {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let blocked = |running: &mut Option<(TestGroup, usize)>| {
            running.is_some_and(|(others, count)| others != group || count >= group.limit())
        };
        let mut running = self.changed.wait_while(running, blocked).unwrap_or_else(PoisonError::into_inner);
        let count = running.map_or(0, |(_, count)| count);
        *running = Some((group, count + 1));
        drop(running);
        let _leave = Leave(self);
        test()
    }
}

/// Takes a test off the running ones.
struct Leave<'a>(&'a Scheduler);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = running.and_then(|(group, count)| (count > 1).then_some((group, count - 1)));
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn only_tests_of_one_group_run_at_the_same_time_up_to_its_limit() {
        let scheduler = Scheduler::default();
        let (started, starts) = mpsc::channel();
        thread::scope(|scope| {
            let start = |group: TestGroup| {
                let (end, ends) = mpsc::channel::<()>();
                let (scheduler, started) = (&scheduler, started.clone());
                scope.spawn(move || {
                    scheduler.run(group, || {
                        started.send(group).unwrap();
                        let _ = ends.recv();
                    });
                });
                end
            };
            let [first, second] = [start(TestGroup::Guest), start(TestGroup::Guest)];
            assert_eq!([starts.recv(), starts.recv()], [Ok(TestGroup::Guest); 2]);
            let third = start(TestGroup::Guest);
            let alone = start(TestGroup::Alone);
            assert_eq!(
                scheduler.running.lock().unwrap().unwrap(),
                (TestGroup::Guest, 2),
                "neither has started"
            );
            drop((first, second));
            let next = starts.recv().unwrap();
            assert_eq!(scheduler.running.lock().unwrap().unwrap().0, next, "only one group runs");
            drop((third, alone));
            assert_ne!(starts.recv().unwrap(), next);
        });
        assert_eq!(*scheduler.running.lock().unwrap(), None);
    }

    #[test]
    fn a_panicking_test_lets_others_start() {
        let scheduler = Scheduler::default();
        let panicked = thread::scope(|scope| {
            scope.spawn(|| scheduler.run(TestGroup::Alone, || panic!("as planned"))).join().is_err()
        });
        assert!(panicked);
        assert_eq!(scheduler.run(TestGroup::Host, || 7), 7);
    }
}
