//! A probe with scripted results, for tests of the code around it in paused time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::outcome::{Answer, CheckFailure, Step};
use super::probe::Probe;
use super::target::{Target, TargetKey};
use crate::check::HealthCheck;

/// One scripted check: its duration, step and result.
#[derive(Debug, Clone)]
pub(super) struct ScriptedCheck {
    takes: Duration,
    step: Step,
    result: Result<Answer, CheckFailure>,
    panics: bool,
}

impl ScriptedCheck {
    pub(super) fn ok() -> Self {
        Self::answered(Answer::Ready)
    }

    pub(super) fn answered(answer: Answer) -> Self {
        Self { takes: Duration::from_millis(1), step: Step::Response, result: Ok(answer), panics: false }
    }

    pub(super) fn failed(failure: CheckFailure) -> Self {
        Self { result: Err(failure), ..Self::ok() }
    }

    pub(super) fn hangs(step: Step) -> Self {
        Self { takes: Duration::from_secs(1_000_000), step, ..Self::ok() }
    }

    pub(super) fn panics() -> Self {
        Self { panics: true, ..Self::ok() }
    }

    pub(super) fn after(self, takes: Duration) -> Self {
        Self { takes, ..self }
    }
}

#[derive(Debug, Default)]
struct State {
    checks: VecDeque<ScriptedCheck>,
    starts: Vec<Instant>,
    step: Option<Step>,
}

/// A probe that follows a script of checks, then always succeeds.
#[derive(Debug, Clone, Default)]
pub(super) struct ScriptedProbe {
    state: Arc<Mutex<State>>,
    lost: Arc<Notify>,
}

impl ScriptedProbe {
    pub(super) fn new(checks: impl IntoIterator<Item = ScriptedCheck>) -> Self {
        let script = Self::default();
        script.state().checks.extend(checks);
        script
    }

    pub(super) fn push(&self, check: ScriptedCheck) {
        self.state().checks.push_back(check);
    }

    pub(super) fn starts(&self) -> Vec<Instant> {
        self.state().starts.clone()
    }

    pub(super) fn lose_connection(&self) {
        self.lost.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Probe for ScriptedProbe {
    async fn check(&mut self) -> Result<Answer, CheckFailure> {
        let check = {
            let mut state = self.state();
            let check = state.checks.pop_front().unwrap_or_else(ScriptedCheck::ok);
            state.starts.push(Instant::now());
            state.step = Some(check.step);
            check
        };
        sleep(check.takes).await;
        assert!(!check.panics, "by the test's script");
        check.result
    }

    fn step(&self) -> Step {
        self.state().step.unwrap_or(Step::Connect)
    }

    async fn connection_lost(&mut self) {
        self.lost.notified().await;
    }
}

pub(super) fn key(number: u8) -> TargetKey {
    TargetKey { service: "api".into(), backend: ([10, 0, 0, number], 6443).into() }
}

pub(super) fn target(number: u8, check: HealthCheck) -> Target {
    Target::new("api", key(number).backend, check).unwrap()
}
